"""Frozen encoder features of a data set, computed once, and the trajectories that are drawn from them.

The encoder does not change while the dynamics are learned, so every frame is encoded once into a memory-mapped
float16 array. The file name holds a hash of the encoder's weights and of the data, so a stale cache cannot be read;
a file that grew by appended episodes reuses what is already encoded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from torch import Tensor, nn

from worldmodel.data.episodes import EpisodeDataset
from worldmodel.errors import DataError
from worldmodel.models.encoders import Encoder

PREPROCESSING = "encode_frames/float16/1"
"""Part of the cache key; change it whenever the way from pixels to stored features changes."""
STATISTICS_FRAMES = 8192
"""Training frames from which token statistics are taken; more do not change them visibly."""
_FRAMES_PER_FLUSH = 2048

Progress = Callable[[int, int], None]
"""Called with frames done and frames in total."""


def encoder_hash(encoder: nn.Module) -> str:
    """SHA-256 (hex) over the config and every weight of an encoder."""
    sha = hashlib.sha256(PREPROCESSING.encode())
    config: Any = encoder.config
    sha.update(json.dumps([type(config).__name__, asdict(config)], sort_keys=True).encode())
    for name, value in sorted(encoder.state_dict().items()):
        array = value.detach().cpu().contiguous()
        sha.update(f"|{name}{tuple(array.shape)}{array.dtype}|".encode())
        sha.update(array.flatten().view(torch.uint8).numpy().data)
    return sha.hexdigest()


def cached_features(
    dataset: EpisodeDataset,
    encoder: Encoder,
    cache_dir: str | Path,
    *,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> NDArray[np.float16]:
    """Features of every frame, from the cache or computed into it.

    An interrupted computation continues where it was last flushed.

    Args:
        dataset: Frames to encode.
        encoder: Frozen encoder; runs on the device its weights are on.
        cache_dir: Folder of the cache; created when missing.
        batch_size: Frames encoded at once.
        progress: Told how far the computation is.

    Returns:
        (F, N, D) float16, memory-mapped read-only.

    Raises:
        DataError: The features are not finite in float16.
    """
    folder = Path(cache_dir)
    folder.mkdir(parents=True, exist_ok=True)
    model, data = encoder_hash(encoder), _prefix_hash(dataset, len(dataset))
    target = folder / f"{model[:20]}-{data[:20]}.npy"
    if not target.is_file():
        _compute(dataset, encoder, target, batch_size, progress)
        record = {"encoder": model, "episodes": len(dataset), "frames": dataset.num_frames, "data": data}
        target.with_suffix(".json").write_text(json.dumps(record), encoding="utf-8")
    features: NDArray[np.float16] = np.load(target, mmap_mode="r")
    shape = (dataset.num_frames, encoder.num_tokens, encoder.embed_dim)
    if features.shape != shape:
        raise DataError(f"{target} holds features of shape {features.shape}, expected {shape}; delete it")
    return features


def _prefix_hash(dataset: EpisodeDataset, episodes: int) -> str:
    """Identity of the first episodes of a data set, as they are read."""
    sha = hashlib.sha256(np.ascontiguousarray(dataset.index.digest[:episodes]).data)
    sha.update(dataset.changes)
    return sha.hexdigest()


def _compute(
    dataset: EpisodeDataset, encoder: Encoder, target: Path, batch_size: int, progress: Progress | None
) -> None:
    """Encode into a partial file beside `target`, then rename it."""
    partial, state = target.with_suffix(".partial"), target.with_suffix(".partial.json")
    total = dataset.num_frames
    shape = (total, encoder.num_tokens, encoder.embed_dim)
    if partial.is_file() and state.is_file():
        done = int(json.loads(state.read_text(encoding="utf-8"))["frames"])
        features = open_memmap(partial, mode="r+")
    else:
        features = open_memmap(partial, mode="w+", dtype=np.float16, shape=shape)
        done = _copy_prefix(dataset, target, features)
    while done < total:
        stop = min(done + _FRAMES_PER_FLUSH, total)
        pixels = dataset.load_pixels(done, stop)
        for start in range(0, stop - done, batch_size):
            block = encode_block(encoder, pixels[start : start + batch_size])
            features[done + start : done + start + len(block)] = block
        done = stop
        features.flush()
        state.write_text(json.dumps({"frames": done}), encoding="utf-8")
        if progress is not None:
            progress(done, total)
    del features
    partial.replace(target)
    state.unlink(missing_ok=True)


def _copy_prefix(dataset: EpisodeDataset, target: Path, features: NDArray[np.float16]) -> int:
    """Fill in what an older cache already has for the first episodes of a grown file; returns the frames copied."""
    best = 0
    source: Path | None = None
    for record_path in target.parent.glob(f"{target.name.split('-')[0]}-*.json"):
        record = json.loads(record_path.read_text(encoding="utf-8"))
        older = record_path.with_suffix(".npy")
        if "data" not in record or record["episodes"] > len(dataset) or not older.is_file():
            continue
        if record["frames"] > best and _prefix_hash(dataset, record["episodes"]) == record["data"]:
            best, source = record["frames"], older
    if source is not None:
        features[:best] = np.load(source, mmap_mode="r")
    return best


@torch.no_grad()
def encode_block(encoder: Encoder, pixels: NDArray[np.uint8]) -> NDArray[np.float16]:
    """Encode frames (F, Y, X, 3) to (F, N, D) float16.

    Raises:
        DataError: A feature is not finite in float16.
    """
    anchor = next(chain(encoder.parameters(), encoder.buffers()), torch.empty(0))  # some hold no tensor at all
    device = anchor.device
    tokens = encoder.encode_frames(torch.from_numpy(pixels)[:, None].to(device))[:, 0]
    block: NDArray[np.float16] = tokens.to(dtype=torch.float16, device="cpu").numpy()
    if not np.isfinite(block).all():
        raise DataError("the encoder gives features that are NaN, infinite or beyond float16; check its weights")
    return block


def encode_all(
    encoder: Encoder, pixels: NDArray[np.uint8], *, batch_size: int = 64, progress: Progress | None = None
) -> NDArray[np.float16]:
    """Encode frames (F, Y, X, 3) to (F, N, D) float16, `batch_size` at a time.

    Raises:
        DataError: A feature is not finite in float16.
    """
    features = np.empty((len(pixels), encoder.num_tokens, encoder.embed_dim), np.float16)
    for start in range(0, len(pixels), batch_size):
        features[start : start + batch_size] = encode_block(encoder, pixels[start : start + batch_size])
        if progress is not None:
            progress(min(start + batch_size, len(pixels)), len(pixels))
    return features


def head_input(features: Tensor) -> Tensor:
    """What a head computes on: features in float32, raw frames (uint8) as they are."""
    return features if features.dtype == torch.uint8 else features.float()


@dataclass(kw_only=True)
class FrameStore:
    """Everything the dynamics are learned from, row-aligned with the frames of a data set.

    Attributes:
        features: (F, N, D) float16 frozen features, or (F, Y, X, 3) uint8 frames for an encoder in training.
        action: (F, A_env) float32, env units; the row of an episode's last frame is zero.
        proprio: (F, P) float32, env units.
        privileged: (F, G) float32 true quantities, for probes only; no loss reads them.
        privileged_names: Their names.
        episode_start: (E,) first frame of each episode.
        episode_len: (E,) frames of each episode.
        pixels: (F, Y, X, 3) uint8 frames beside the features, for what is trained to draw them; else None.
        recoloured: Features of the same frames in other colours, any number of arrays like `features`.
    """

    features: NDArray[np.float16] | NDArray[np.uint8]
    action: NDArray[np.float32]
    proprio: NDArray[np.float32]
    privileged: NDArray[np.float32]
    privileged_names: tuple[str, ...]
    episode_start: NDArray[np.int64]
    episode_len: NDArray[np.int64]
    pixels: NDArray[np.uint8] | None = None
    recoloured: tuple[NDArray[np.float16] | NDArray[np.uint8], ...] = ()

    @property
    def looks(self) -> tuple[NDArray[np.float16] | NDArray[np.uint8], ...]:
        """Features of every frame in all its colours, those of the file first."""
        return (self.features, *self.recoloured)

    @classmethod
    def from_dataset(cls, dataset: EpisodeDataset, features: NDArray[np.float16]) -> FrameStore:
        """Put features beside the small arrays of their data set."""
        return cls(
            features=features,
            action=dataset.action,
            proprio=dataset.proprio,
            privileged=dataset.privileged,
            privileged_names=dataset.spec.privileged_names,
            episode_start=dataset.index.start,
            episode_len=dataset.index.length,
        )

    def frames_of(self, episode_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Frame numbers of the episodes, in order."""
        spans = [np.arange(self.episode_len[i]) + self.episode_start[i] for i in episode_ids]
        return np.concatenate(spans) if spans else np.empty(0, np.int64)

    def statistics_frames(self, episode_ids: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
        """Up to `STATISTICS_FRAMES` frames of the episodes, drawn by the seed, sorted."""
        frames = self.frames_of(episode_ids)
        rng = np.random.default_rng(seed)
        return np.sort(rng.choice(frames, size=min(len(frames), STATISTICS_FRAMES), replace=False))

    def windows(self, episode_ids: NDArray[np.int64], reach: int) -> NDArray[np.int64]:
        """First frames of all windows that span `reach` frames beyond their first and stay inside one episode."""
        spans = [np.arange(max(self.episode_len[i] - reach, 0)) + self.episode_start[i] for i in episode_ids]
        return np.concatenate(spans) if spans else np.empty(0, np.int64)


@dataclass(kw_only=True)
class TrajectoryBatch:
    """Sub-trajectories at model-step rate.

    Attributes:
        features: (B, T, N, D) frozen features, or (B, T, Y, X, 3) uint8 frames.
        actions: (B, T-1, A) flat model actions between the frames, env units.
        proprio: (B, T, P) env units.
        frames: (B, T) frame numbers in the data set.
        pixels: (B, T, Y, X, 3) uint8 frames where the store has them beside the features, else None.
        original: Features like `features` in the colours of the file, where those are in others; else None.
    """

    features: Tensor
    actions: Tensor
    proprio: Tensor
    frames: Tensor
    pixels: Tensor | None = None
    original: Tensor | None = None


class SeededSampler:
    """What draws batches from a stream of its own: its place in the stream can be saved and gone back to.

    Args:
        seed: Seed of the stream.
    """

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def state_dict(self) -> dict[str, Any]:
        """State of the stream, JSON-able."""
        return {"rng": self._rng.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue a stream."""
        self._rng.bit_generator.state = state["rng"]


class TrajectorySampler(SeededSampler):
    """Draws sub-trajectories uniformly over every frame offset of the given episodes, with replacement.

    Where the store has frames in several colours, those of each frame are drawn for it alone.

    Args:
        store: Features, actions and proprioception.
        episode_ids: Episodes to draw from.
        num_frames: T, model-step frames per sub-trajectory, >= 2.
        action_block: Env steps between two of them.
        batch_size: B.
        seed: Seed of the sampler's own stream.

    Raises:
        DataError: No episode is long enough.
    """

    def __init__(
        self,
        store: FrameStore,
        episode_ids: NDArray[np.int64],
        *,
        num_frames: int,
        action_block: int,
        batch_size: int,
        seed: int,
    ) -> None:
        super().__init__(seed)
        self.store = store
        self.num_frames = num_frames
        self.action_block = action_block
        self.batch_size = batch_size
        reach = (num_frames - 1) * action_block
        self.starts = store.windows(episode_ids, reach)
        if num_frames < 2 or len(self.starts) == 0:
            longest = int(store.episode_len[episode_ids].max()) if len(episode_ids) else 0
            raise DataError(
                f"{num_frames} frames {action_block} env steps apart need episodes of at least {reach + 1} frames; "
                f"the longest of the {len(episode_ids)} given has {longest}"
            )

    def next_batch(self) -> TrajectoryBatch:
        """Draw the next batch."""
        batch = self.batch_at(self.starts[self._rng.integers(len(self.starts), size=self.batch_size)])
        looks = self.store.looks
        if len(looks) == 1:
            return batch
        frames = batch.frames.numpy()
        drawn = self._rng.integers(len(looks), size=frames.shape)
        features = batch.features.clone()
        for number, look in enumerate(looks[1:], start=1):
            features[torch.from_numpy(drawn == number)] = torch.from_numpy(np.asarray(look[frames[drawn == number]]))
        return replace(batch, features=features, original=batch.features)

    def __iter__(self) -> Iterator[TrajectoryBatch]:
        """Endless batches."""
        while True:
            yield self.next_batch()

    def batch_at(self, starts: NDArray[np.int64]) -> TrajectoryBatch:
        """Sub-trajectories that start at the given frames (B,), in the colours of the file."""
        frames = starts[:, None] + self.action_block * np.arange(self.num_frames)  # (B, T)
        between = frames[:, :-1, None] + np.arange(self.action_block)  # (B, T-1, action_block)
        actions = self.store.action[between].reshape(len(starts), self.num_frames - 1, -1)
        return TrajectoryBatch(
            features=torch.from_numpy(np.asarray(self.store.features[frames])),
            actions=torch.from_numpy(actions),
            proprio=torch.from_numpy(self.store.proprio[frames]),
            frames=torch.from_numpy(frames),
            pixels=None if self.store.pixels is None else torch.from_numpy(self.store.pixels[frames]),
        )


def frame_store(dataset: EpisodeDataset, episode_ids: NDArray[np.int64]) -> FrameStore:
    """Raw frames (F, Y, X, 3) uint8 of some episodes in place of features, 12 KiB a frame at 64 x 64.

    Only these episodes are read, so that few labelled ones take little memory.

    Args:
        dataset: Where they are.
        episode_ids: Which; in the store they are renumbered 0, 1, ... in this order.
    """
    index = dataset.index
    length = index.length[episode_ids]
    spans = [(int(index.start[i]), int(index.start[i] + index.length[i])) for i in episode_ids]
    rows = np.fromiter(chain.from_iterable(range(*span) for span in spans), np.int64)
    return FrameStore(
        features=np.concatenate([dataset.load_pixels(*span) for span in spans]),
        action=dataset.action[rows],
        proprio=dataset.proprio[rows],
        privileged=dataset.privileged[rows],
        privileged_names=dataset.spec.privileged_names,
        episode_start=np.cumsum(length) - length,
        episode_len=length,
    )
