"""Real frames with their latents, to look imagined latents up in: a picture of a prediction without a generator.

A latent cannot be drawn, and a decoder invents what it was not told. The closest real frames of a data set, with their
distance, show what the model means as far as the data can show it, and the distance says when they cannot.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from worldmodel.control.costs import PlanningModel
from worldmodel.data.episodes import EpisodeDataset
from worldmodel.errors import ConfigError, DataError
from worldmodel.types import Latent

Array = NDArray[np.float64]
Ids = NDArray[np.int64]
_PER_EPISODE = 8  # at least; more episodes show more than more frames of one
_ENCODE_FRAMES = 128


@dataclass(frozen=True, kw_only=True)
class Neighbours:
    """The closest frames of a bank.

    Attributes:
        rows: (M, K) rows of the bank, closest first.
        distance: (M, K) root mean squared difference of the latents, in their unit (about 1 for unrelated frames of a
            standardised latent).
    """

    rows: Ids
    distance: Array


@dataclass(frozen=True, kw_only=True)
class FrameBank:
    """Frames of a data set and their latents, row by row.

    Attributes:
        pixels: (F, Y, X, 3) uint8.
        latents: (F, N * D) float32.
        episode: (F,) episode each frame is from.
        truth: (F, G) float32 true quantities.
        truth_names: Their names.
    """

    pixels: NDArray[np.uint8]
    latents: NDArray[np.float32]
    episode: Ids
    truth: NDArray[np.float32]
    truth_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.latents)

    @classmethod
    def build(
        cls,
        model: PlanningModel,
        dataset: EpisodeDataset,
        episodes: Ids | None = None,
        *,
        max_frames: int = 8192,
        seed: int = 0,
    ) -> FrameBank:
        """Encode frames of some episodes, spread over as many of them as `max_frames` allows.

        Args:
            model: Encodes.
            dataset: Where the frames are.
            episodes: Which episodes may be shown; None means all. Leave out what is to be looked up.
            max_frames: Frames at most.
            seed: Of the choice of episodes and frames.

        Raises:
            ConfigError: `max_frames` is not positive, or the model takes frames of another size.
            DataError: There are no episodes.
        """
        ids = np.arange(len(dataset), dtype=np.int64) if episodes is None else np.asarray(episodes, np.int64)
        if max_frames < 1:
            raise ConfigError(f"max_frames must be >= 1, got {max_frames}")
        if not len(ids):
            raise DataError("a bank of frames needs at least one episode, got none")
        rng = np.random.default_rng([seed, 3])
        share = max(_PER_EPISODE, max_frames // len(ids))
        chosen = np.sort(rng.permutation(ids)[: max(1, max_frames // share)])
        pixels, rows, episode = [], [], []
        for number in chosen:
            start, length = int(dataset.index.start[number]), int(dataset.index.length[number])
            take = np.sort(rng.permutation(length)[: min(share, max_frames)])
            pixels.append(dataset.load_pixels(start, start + length)[take])
            rows.append(start + take)
            episode.append(np.full(len(take), number, np.int64))
        frames, row = np.concatenate(pixels), np.concatenate(rows)
        return cls(
            pixels=frames,
            latents=flat_latents(model, frames),
            episode=np.concatenate(episode),
            truth=dataset.privileged[row],
            truth_names=dataset.spec.privileged_names,
        )

    def nearest(self, latents: NDArray[np.float32], *, count: int = 1, leave_out: Ids | None = None) -> Neighbours:
        """Look latents up.

        Args:
            latents: (M, N * D).
            count: K, frames to find for each.
            leave_out: (M,) episode whose frames do not count as an answer, for each latent; None allows all.

        Raises:
            ConfigError: Wrong width, or fewer frames than asked for.
        """
        if latents.ndim != 2 or latents.shape[1] != self.latents.shape[1]:
            raise ConfigError(f"latents must be (M, {self.latents.shape[1]}), got {latents.shape}")
        bank = torch.from_numpy(self.latents)
        squared = torch.cdist(torch.from_numpy(latents), bank).square() / self.latents.shape[1]
        if leave_out is not None:
            own = torch.from_numpy(leave_out)[:, None] == torch.from_numpy(self.episode)[None]
            squared = squared.masked_fill(own, torch.inf)
        free = int(squared.isfinite().sum(dim=1).min())
        if not 1 <= count <= free:
            raise ConfigError(f"count must be in [1, {free}], the frames of other episodes in the bank, got {count}")
        found = squared.topk(count, dim=1, largest=False)
        return Neighbours(rows=found.indices.numpy(), distance=found.values.clamp_min(0).sqrt().double().numpy())

    def columns(self, names: tuple[str, ...]) -> list[int]:
        """Columns of true quantities.

        Raises:
            ConfigError: The data set has no quantity of that name.
        """
        missing = [name for name in names if name not in self.truth_names]
        if missing:
            raise ConfigError(f"the data set records {', '.join(self.truth_names)}, not {', '.join(missing)}")
        return [self.truth_names.index(name) for name in names]


def encode_start(model: PlanningModel, pixels: NDArray[np.uint8], proprio: NDArray[np.float32]) -> Latent:
    """Latent (F, 1, ...) of frames (F, Y, X, 3) that rollouts start from, with proprioception (F, P) if models know it.

    Raises:
        ConfigError: The model takes other frames or proprioception.
    """
    body = torch.from_numpy(proprio)[:, None] if model.spec.proprio_names else None
    return model.encode(torch.from_numpy(np.ascontiguousarray(pixels))[:, None], body)


def flat_latents(model: PlanningModel, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Latents (F, N * D) float32 of frames (F, Y, X, 3), a batch at a time.

    Raises:
        ConfigError: The model takes frames of another size.
    """
    parts = [
        model.encode_batch(torch.from_numpy(np.ascontiguousarray(pixels[start : start + _ENCODE_FRAMES])))
        for start in range(0, len(pixels), _ENCODE_FRAMES)
    ]
    latents: NDArray[np.float32] = torch.cat(parts).flatten(1).float().cpu().numpy()
    return latents
