"""Episodes on disk: write, read, validate, split and hash.

One HDF5 file holds flat arrays over frames (F) and an index over episodes, so that it opens in any HDF5 tool:

```
/pixels (F,Y,X,3) uint8     /proprio (F,P) float32     /action (F,A) float32
/privileged (F,G) float32   /contact (F,) bool
/index/episode_start, episode_len, env_id, policy, seed, success, digest
attributes: format, version, spec (JSON)
```

Row f of `action` is the action taken in frame f; the last row of an episode is zero because nothing follows it.
Episodes lie one after another without gaps. Data rows are written and flushed before the index rows that name them, and
HDF5 is kept from reusing space or writing metadata in between, so a killed recording leaves what was flushed readable.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from worldmodel.data.distractor import DistractorConfig, distract
from worldmodel.data.recolour import Recolouring, recolour
from worldmodel.data.records import ARRAYS, Episode, EpisodeSpec, check_episode, episode_digest, frame_rows
from worldmodel.data.storage import (
    INDEX_DTYPES,
    NAME_DTYPE,
    EpisodeIndex,
    create_arrays,
    hdf5_errors,
    open_file,
    pin_metadata,
    read_index,
    read_spec,
)
from worldmodel.display import facts_table, film_strip, html_of
from worldmodel.errors import DataError

__all__ = ["Episode", "EpisodeDataset", "EpisodeSpec", "EpisodeWriter", "write_episodes"]

_SHOWN = 6  # episodes whose first frame a notebook shows
_MAX_PENDING = 64  # episodes held in memory before a flush happens by itself


class EpisodeWriter:
    """Appends episodes to a file; use as a context manager. Leaving it through an exception keeps what was appended.

    Args:
        path: File to create, or to continue with `append`.
        spec: Must equal the spec of an existing file in everything but `env_id`.
        append: Continue an existing file (create it when missing). Without it an existing file is refused.

    Raises:
        DataError: The file exists and `append` is off, cannot be read, or has another spec.
    """

    def __init__(self, path: str | Path, spec: EpisodeSpec, *, append: bool = False) -> None:
        self.path = Path(path)
        self.spec = spec
        self._pending: list[Episode] = []
        self._num_episodes = self._num_frames = 0
        self._env_counts: Counter[str] = Counter()
        exists = self.path.exists()
        if exists and not append:
            raise DataError(f"{self.path} already exists; append to it with append=true, or choose another path")
        if exists:
            stored = EpisodeDataset.open(self.path)
            differences = stored.spec.differences(spec)
            if differences:
                raise DataError(f"cannot append to {self.path}: file against request: {'; '.join(differences)}")
            self._num_episodes, self._num_frames = len(stored), stored.num_frames
            self._env_counts.update(stored.index.env_id.tolist())
            self.spec = stored.spec
        with hdf5_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if exists:
                self._file = h5py.File(self.path, "r+")
                self._drop_unindexed()
            else:
                # No free-space reuse: a rewritten chunk goes to fresh space and the flushed one stays intact.
                self._file = h5py.File(self.path, "w", libver=("v108", "v110"), fs_strategy="none")
                create_arrays(self._file, spec)
            pin_metadata(self._file)

    def __len__(self) -> int:
        """Episodes in the file, those not flushed yet included."""
        return self._num_episodes + len(self._pending)

    def count(self, env_id: str) -> int:
        """Episodes of one environment, those not flushed yet included."""
        return self._env_counts[env_id]

    def _drop_unindexed(self) -> None:
        """Drop rows that an interrupted run wrote but never indexed."""
        for name in ARRAYS:
            self._file[name].resize(self._num_frames, axis=0)
        for name in (*INDEX_DTYPES, "digest"):
            self._file["index"][name].resize(self._num_episodes, axis=0)

    def append(self, episode: Episode) -> None:
        """Add one episode; it is in memory until `flush`, which happens by itself from time to time.

        Raises:
            DataError: Shapes, dtypes or values do not fit the spec; the episode is then not added.
        """
        named = replace(episode, env_id=episode.env_id or self.spec.env_id)
        check_episode(named, self.spec, f"episode {len(self)}")
        for label in (named.env_id, named.policy):
            if len(label.encode()) > np.dtype(NAME_DTYPE).itemsize:
                raise DataError(f"names are at most {np.dtype(NAME_DTYPE).itemsize} bytes, got {label!r}")
        self._pending.append(named)
        self._env_counts[named.env_id] += 1
        if len(self._pending) >= _MAX_PENDING:
            self.flush()

    def flush(self) -> None:
        """Make all appended episodes part of the file: data first, then the index rows that name them.

        Raises:
            DataError: The file cannot be written.
        """
        if not self._pending:
            return
        lengths = np.array([episode.num_frames for episode in self._pending], np.int64)
        starts = self._num_frames + np.cumsum(lengths) - lengths
        stop = int(starts[-1] + lengths[-1])
        rows = [frame_rows(episode) for episode in self._pending]
        with hdf5_errors(self.path):
            for name in ARRAYS:
                self._file[name].resize(stop, axis=0)
                self._file[name][self._num_frames : stop] = np.concatenate([row[name] for row in rows])
            self._file.flush()
            self._write_index(starts, lengths)
            self._file.flush()
        self._num_frames = stop
        self._num_episodes += len(self._pending)
        self._pending.clear()

    def _write_index(self, starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> None:
        episodes = self._pending
        columns: dict[str, Any] = {
            "episode_start": starts,
            "episode_len": lengths,
            "env_id": np.array([episode.env_id.encode() for episode in episodes], NAME_DTYPE),
            "policy": np.array([episode.policy.encode() for episode in episodes], NAME_DTYPE),
            "seed": np.array([episode.seed for episode in episodes], np.int64),
            "success": np.array([episode.success for episode in episodes], np.bool_),
            "digest": np.stack([np.frombuffer(episode_digest(episode), np.uint8) for episode in episodes]),
        }
        for name, values in columns.items():
            dataset = self._file["index"][name]
            dataset.resize(self._num_episodes + len(episodes), axis=0)
            dataset[self._num_episodes :] = values

    def close(self) -> None:
        """Flush and close; closing twice is harmless."""
        if self._file:
            try:
                self.flush()
            finally:
                self._file.close()

    def __enter__(self) -> EpisodeWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class EpisodeDataset:
    """Read access to an episode file. Small arrays are in memory, pixels are read on demand (or kept, see `pixels`)."""

    distractor: DistractorConfig | None = None
    """Drawn over every frame that is read; set by `open`."""
    recolouring: Recolouring | None = None
    """What every frame that is read is recoloured by, distractor and all; set by `open`."""

    def __init__(self, path: Path, spec: EpisodeSpec, index: EpisodeIndex, small: dict[str, NDArray[Any]]) -> None:
        self.path = path
        self.spec = spec
        self.index = index
        self.proprio: NDArray[np.float32] = small["proprio"]
        self.action: NDArray[np.float32] = small["action"]
        self.privileged: NDArray[np.float32] = small["privileged"]
        self.contact: NDArray[np.bool_] = small["contact"]

    @classmethod
    def open(
        cls, path: str | Path, *, distractor: DistractorConfig | None = None, recolouring: Recolouring | None = None
    ) -> EpisodeDataset:
        """Open and validate a file: header, index, shapes, dtypes and finite values.

        Args:
            path: HDF5 file.
            distractor: Drawn over every frame that is read. The file is left as it is, and `verify` is for the file.
            recolouring: Other colours for every frame that is read; the same holds.

        Raises:
            DataError: Missing, unreadable, or holding values that make no sense.
        """
        path = Path(path)
        if not path.is_file():
            raise DataError(f"no episode file at {path}; record one with `worldmodel collect out={path}`")
        with open_file(path) as file:
            spec = read_spec(file, path)
            index = read_index(file, path)
            num_frames = int(index.length.sum())
            small: dict[str, NDArray[Any]] = {}
            for name, (row, dtype) in spec.array_layout().items():
                data = file[name]
                if data.shape[1:] != row or data.dtype != dtype or len(data) < num_frames:
                    raise DataError(
                        f"{path}: array {name} is {data.dtype}{data.shape}, "
                        f"expected {np.dtype(dtype)} with at least {num_frames} rows of shape {row}"
                    )
                if name != "pixels":
                    small[name] = data[:num_frames]
        dataset = cls(path, spec, index, small)
        dataset._refuse_nan()
        dataset.distractor = distractor if distractor is not None and distractor.kind != "none" else None
        dataset.recolouring = recolouring
        return dataset

    def _refuse_nan(self) -> None:
        for name in ("proprio", "action", "privileged"):
            bad = ~np.isfinite(getattr(self, name)).all(axis=1)
            if bad.any():
                episode = int(np.searchsorted(self.index.start, int(np.argmax(bad)), side="right")) - 1
                raise DataError(f"{self.path}: array {name} holds NaN or infinite values in episode {episode}")

    def __len__(self) -> int:
        return len(self.index.start)

    def __rich__(self) -> Table:
        policies = Counter(map(str, self.index.policy.tolist()))
        facts = {
            "environments": ", ".join(self.env_ids),
            "episodes": f"{len(self)}, {int(self.index.success.sum())} of them end in success",
            "frames": f"{self.num_frames} of {self.spec.image_size} x {self.spec.image_size} pixels",
            "actions": f"{self.spec.action_dim} numbers every {self.spec.control_dt_s:g} s",
            "policies": ", ".join(f"{name} {count}" for name, count in policies.most_common()),
        }
        return facts_table(str(self.path), facts)

    def _repr_html_(self) -> str:
        shown = [self.load_pixels(int(start), int(start) + 1)[0] for start in self.index.start[:_SHOWN]]
        strip = film_strip(np.stack(shown), "first frames of the first episodes") if shown else ""
        return html_of(self.__rich__(), strip)

    @property
    def num_frames(self) -> int:
        """Frames of all episodes together."""
        return int(self.index.length.sum())

    @property
    def env_ids(self) -> tuple[str, ...]:
        """Distinct environment ids, in order of first appearance."""
        return tuple(dict.fromkeys(self.index.env_id.tolist()))

    @property
    def content_hash(self) -> str:
        """SHA-256 (hex) over spec, arrays and index, independent of chunking and compression.

        Built from the digests that were taken when the episodes were written; `verify` recomputes those.
        """
        sha = hashlib.sha256(self.spec.to_json().encode())
        sha.update(np.ascontiguousarray(self.index.digest).data)
        sha.update(self.changes)
        return sha.hexdigest()

    @property
    def changes(self) -> bytes:
        """Identity of what is done to every frame that is read; empty for frames as they are in the file."""
        changes = [change.facts for change in (self.distractor, self.recolouring) if change is not None]
        return b"".join(json.dumps(facts, sort_keys=True).encode() for facts in changes)

    def verify(self) -> None:
        """Read every episode and compare it with its digest.

        Raises:
            DataError: An episode differs from what was written.
        """
        for i in range(len(self)):
            self.verified_episode(i)

    def verified_episode(self, i: int) -> Episode:
        """`episode(i)`, compared with its digest.

        Raises:
            DataError: No such episode, or it differs from what was written.
        """
        episode = self.episode(i)
        if episode_digest(episode) != self.index.digest[i].tobytes():
            raise DataError(f"{self.path}: episode {i} differs from its digest; the file was altered or damaged")
        return episode

    @cached_property
    def pixels(self) -> NDArray[np.uint8]:
        """All frames (F, Y, X, 3), read once and kept: 12 KiB a frame at 64 x 64."""
        return self.load_pixels()

    def load_pixels(self, start: int = 0, stop: int | None = None) -> NDArray[np.uint8]:
        """Read the frames [start, stop) as (F, Y, X, 3) uint8.

        Raises:
            DataError: The file is damaged.
        """
        stop = self.num_frames if stop is None else stop
        if not 0 <= start <= stop <= self.num_frames:
            raise DataError(f"frames [{start}, {stop}) are not inside [0, {self.num_frames}) of {self.path}")
        with open_file(self.path) as file:
            frames: NDArray[np.uint8] = file["pixels"][start:stop]
        if self.distractor is not None:
            frames = self._distracted(frames, start)
        if self.recolouring is not None:
            frames = recolour(frames, self.recolouring, rows=np.arange(start, stop))
        return frames

    def _distracted(self, frames: NDArray[np.uint8], start: int) -> NDArray[np.uint8]:
        """The frames [start, start + F) with the distractor of their episodes over them."""
        assert self.distractor is not None
        rows = np.arange(start, start + len(frames))
        owner = np.searchsorted(self.index.start, rows, side="right") - 1
        parts = [
            distract(frames[owner == i], self.distractor, episode=int(i), steps=rows[owner == i] - self.index.start[i])
            for i in np.unique(owner)
        ]
        return np.concatenate(parts) if parts else frames

    def episode(self, i: int) -> Episode:
        """Read episode `i`.

        Raises:
            DataError: No such episode, or the file is damaged.
        """
        if not 0 <= i < len(self):
            raise DataError(f"episode must be in [0, {len(self)}), got {i}")
        start = int(self.index.start[i])
        stop = start + int(self.index.length[i])
        cached = self.__dict__.get("pixels")
        return Episode(
            pixels=self.load_pixels(start, stop) if cached is None else cached[start:stop].copy(),
            proprio=self.proprio[start:stop].copy(),
            action=self.action[start : stop - 1].copy(),
            privileged=self.privileged[start:stop].copy(),
            contact=self.contact[start:stop].copy(),
            policy=str(self.index.policy[i]),
            seed=int(self.index.seed[i]),
            success=bool(self.index.success[i]),
            env_id=str(self.index.env_id[i]),
        )

    def split(self, validation_fraction: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Divide the episodes into training and validation ids, both sorted.

        Every 1/fraction-th episode is held out, at a phase drawn from the seed. Unlike a shuffle this never moves an
        episode to the other side when the file grows, so nothing an older model was trained on turns up as held out.

        Args:
            validation_fraction: Share held out, in [0, 1).
            seed: Phase of the selection.

        Raises:
            DataError: The fraction is out of range, or one side would be empty although both are asked for.
        """
        if not 0 <= validation_fraction < 1:
            raise DataError(f"validation_fraction must be in [0, 1), got {validation_fraction}")
        ids = np.arange(len(self), dtype=np.int64)
        phase = np.random.default_rng(seed).random()
        held_out = np.floor((ids + 1) * validation_fraction + phase) > np.floor(ids * validation_fraction + phase)
        if validation_fraction > 0 and len(self) > 1 and not held_out.any():
            held_out[int(phase * len(self))] = True
        if held_out.all() or (validation_fraction > 0 and not held_out.any()):
            raise DataError(
                f"cannot hold out {validation_fraction} of {len(self)} episodes of {self.path}; record more"
            )
        return ids[~held_out], ids[held_out]


def write_episodes(path: str | Path, spec: EpisodeSpec, episodes: Sequence[Episode]) -> EpisodeDataset:
    """Write a new file in one go and open it."""
    with EpisodeWriter(path, spec) as writer:
        for episode in episodes:
            writer.append(episode)
    return EpisodeDataset.open(path)
