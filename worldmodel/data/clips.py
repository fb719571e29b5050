"""Windows over episodes, as batches for training.

The whole dataset is held in memory as uint8 (shared by all samplers of one `EpisodeDataset`), because decoding frames
costs more than small models need to look at them. Which clip comes when is a function of (seed, number of clips drawn)
alone, so a resumed run sees exactly what the uninterrupted one would have seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worldmodel.data.episodes import EpisodeDataset
from worldmodel.errors import ConfigError, DataError


@dataclass(kw_only=True)
class ClipBatch:
    """A batch of clips of T frames.

    Attributes:
        pixels: (B, T, Y, X, 3) uint8.
        proprio: (B, T, P) float32, env units.
        actions: (B, T - 1, A) float32 flat model actions between the frames, env units.
        episode: (B,) int64 episode each clip is from.
        start: (B,) int64 frame within the episode at which the clip starts.
    """

    pixels: Tensor
    proprio: Tensor
    actions: Tensor
    episode: Tensor
    start: Tensor

    def to(self, device: torch.device) -> ClipBatch:
        """Copy on another device."""
        return ClipBatch(**{name: value.to(device) for name, value in self.__dict__.items()})


class ClipSampler:
    """Endless stream of shuffled clip batches; every possible clip once per epoch, then in another order.

    Batches always have `batch_size` clips: one that reaches the end of an epoch is filled up from the next.

    Args:
        dataset: Where the clips are from.
        episode_ids: Episodes to use, e.g. one side of `EpisodeDataset.split`.
        num_frames: Frames per clip, T >= 1.
        frame_step: Env steps from one frame of a clip to the next.
        action_block: Env actions per model action. It must equal `frame_step`, so that the actions of a clip lead from
            each of its frames to the next without gap or overlap; None means just that.
        batch_size: Clips per batch.
        seed: Root of the shuffling.

    Raises:
        ConfigError: A number is out of range, or `action_block` differs from `frame_step`.
        DataError: An episode id does not exist, or no episode is long enough for a clip.
    """

    def __init__(
        self,
        dataset: EpisodeDataset,
        episode_ids: Sequence[int] | NDArray[np.int64],
        *,
        num_frames: int,
        batch_size: int,
        frame_step: int = 1,
        action_block: int | None = None,
        seed: int = 0,
    ) -> None:
        action_block = frame_step if action_block is None else action_block
        for name, value in (("num_frames", num_frames), ("frame_step", frame_step), ("batch_size", batch_size)):
            if value < 1:
                raise ConfigError(f"{name} must be >= 1, got {value}")
        if action_block != frame_step:
            raise ConfigError(f"action_block must equal frame_step={frame_step}, got {action_block}")
        if seed < 0:
            raise ConfigError(f"seed must be >= 0, got {seed}")
        self.dataset = dataset
        self.num_frames = num_frames
        self.frame_step = frame_step
        self.action_block = action_block
        self.batch_size = batch_size
        self.seed = seed
        self._drawn = 0
        self._order: tuple[int, NDArray[np.int64]] | None = None
        self._episode, self._start = self._windows(np.asarray(episode_ids, np.int64))

    def _windows(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Episode and start of every possible clip, (C,) each."""
        index = self.dataset.index
        if len(ids) and not (ids.min() >= 0 and ids.max() < len(self.dataset)):
            raise DataError(f"episode ids must be in [0, {len(self.dataset)}), got {ids.min()} to {ids.max()}")
        counts = np.maximum(index.length[ids] - (self.num_frames - 1) * self.frame_step, 0)
        if not counts.sum():
            longest = int(index.length[ids].max()) if len(ids) else 0
            raise DataError(
                f"no clip of {self.num_frames} frames, {self.frame_step} apart, fits into the {len(ids)} episodes "
                f"chosen from {self.dataset.path} (longest: {longest} frames); use fewer frames or longer episodes"
            )
        starts = np.concatenate([np.arange(count) for count in counts])
        return np.repeat(ids, counts), starts

    def __len__(self) -> int:
        """Number of different clips."""
        return len(self._episode)

    @property
    def batches_per_epoch(self) -> float:
        """Batches until every clip was seen once."""
        return len(self) / self.batch_size

    def __iter__(self) -> Iterator[ClipBatch]:
        return self

    def __next__(self) -> ClipBatch:
        chosen = [self._clip_number(self._drawn + k) for k in range(self.batch_size)]
        self._drawn += self.batch_size
        return self.clips(np.array(chosen, np.int64))

    def _clip_number(self, drawn: int) -> int:
        epoch, position = divmod(drawn, len(self))
        if self._order is None or self._order[0] != epoch:
            stream = np.random.default_rng(np.random.SeedSequence([self.seed, epoch]))
            self._order = (epoch, stream.permutation(len(self)))
        return int(self._order[1][position])

    def clips(self, numbers: NDArray[np.int64]) -> ClipBatch:
        """The clips with the given numbers in [0, len), in that order; the stream is not moved.

        Raises:
            DataError: A number is out of range.
        """
        if len(numbers) == 0 or numbers.min() < 0 or numbers.max() >= len(self):
            raise DataError(f"clip numbers must be in [0, {len(self)}) and at least one, got {numbers}")
        data = self.dataset
        episode, start = self._episode[numbers], self._start[numbers]
        first = data.index.start[episode] + start
        span = (self.num_frames - 1) * self.frame_step
        frames = first[:, None] + np.arange(0, span + 1, self.frame_step)
        steps = first[:, None] + np.arange(span)
        actions = data.action[steps].reshape(len(numbers), self.num_frames - 1, -1) if span else None
        if actions is None:
            actions = np.zeros((len(numbers), 0, self.action_block * data.spec.action_dim), np.float32)
        return ClipBatch(
            pixels=torch.from_numpy(data.pixels[frames]),
            proprio=torch.from_numpy(data.proprio[frames]),
            actions=torch.from_numpy(actions),
            episode=torch.from_numpy(episode),
            start=torch.from_numpy(start),
        )

    def state_dict(self) -> dict[str, Any]:
        """JSON-ready position in the stream."""
        return {**self._identity(), "drawn": self._drawn}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken.

        Raises:
            DataError: The state belongs to another stream (other clips or another seed).
        """
        mine = self._identity()
        wrong = [f"{k}: {state.get(k)} saved, {mine[k]} now" for k in mine if state.get(k) != mine[k]]
        drawn = state.get("drawn")
        if wrong or not isinstance(drawn, int) or drawn < 0:
            raise DataError(f"cannot continue this clip stream: {'; '.join(wrong) or f'drawn={drawn!r}'}")
        self._drawn = drawn

    def _identity(self) -> dict[str, Any]:
        """What a saved position depends on; the batch size is free to change."""
        return {
            "seed": self.seed,
            "num_clips": len(self),
            "num_frames": self.num_frames,
            "frame_step": self.frame_step,
            "content_hash": self.dataset.content_hash,
        }
