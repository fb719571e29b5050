"""The HDF5 layout of an episode file: names, creation, header and index.

Kept apart from `episodes` so that the writer and the reader there say what they do, and this module how HDF5 is told.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from worldmodel.data.records import EpisodeSpec
from worldmodel.errors import DataError

FORMAT = "worldmodel-episodes"
VERSION = 1
FRAMES_PER_CHUNK = 32
_MAX_CHUNK_BYTES = 2**20
NAME_DTYPE = "S64"
INDEX_DTYPES: dict[str, Any] = {
    "episode_start": np.int64,
    "episode_len": np.int64,
    "env_id": NAME_DTYPE,
    "policy": NAME_DTYPE,
    "seed": np.int64,
    "success": np.bool_,
}


@contextmanager
def hdf5_errors(path: Path) -> Iterator[None]:
    """Turn whatever HDF5 says about a bad or busy file into a DataError of one line."""
    try:
        yield
    except DataError:
        raise
    except BlockingIOError as error:
        raise DataError(f"{path} is open in another process; wait for it to finish") from error
    except (OSError, KeyError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path} cannot be used as an episode file: {reason}") from error


@contextmanager
def open_file(path: Path) -> Iterator[Any]:
    """Open an HDF5 file for reading."""
    with hdf5_errors(path), h5py.File(path, "r") as file:
        yield file


def read_spec(file: Any, path: Path) -> EpisodeSpec:
    """Check the header of an open file and return its spec."""
    if file.attrs.get("format") != FORMAT:
        raise DataError(
            f"{path} is an HDF5 file but not an episode file (attribute format={file.attrs.get('format')!r})"
        )
    if int(file.attrs["version"]) != VERSION:
        raise DataError(f"{path} has format version {file.attrs['version']}, this package reads version {VERSION}")
    return EpisodeSpec.from_json(str(file.attrs["spec"]))


def pin_metadata(file: Any) -> None:
    """Let HDF5 write metadata at a flush only, so that a killed process leaves the state of the last flush."""
    config = file.id.get_mdc_config()
    config.evictions_enabled = False
    config.incr_mode = config.flash_incr_mode = config.decr_mode = 0  # required when evictions are off
    file.id.set_mdc_config(config)


def _chunk_rows(row_bytes: int) -> int:
    """Frames per chunk: a block of frames, fewer when a frame is large."""
    return max(1, min(FRAMES_PER_CHUNK, _MAX_CHUNK_BYTES // row_bytes))


def create_arrays(file: Any, spec: EpisodeSpec) -> None:
    """Lay out an empty episode file."""
    file.attrs.update({"format": FORMAT, "version": VERSION, "spec": spec.to_json()})
    for name, (row, dtype) in spec.array_layout().items():
        rows = _chunk_rows(int(np.prod(row))) if name == "pixels" else 1024
        # HDF5 wants chunks of at least one entry; an axis of no entries must then be resizable.
        maxshape, chunks = (None, *(n or None for n in row)), (rows, *(max(n, 1) for n in row))
        options = {"compression": "gzip", "compression_opts": 1, "fletcher32": True}
        file.create_dataset(name, (0, *row), dtype, maxshape=maxshape, chunks=chunks, **options)
    index = file.create_group("index")
    for name, dtype in INDEX_DTYPES.items():
        index.create_dataset(name, (0,), dtype, maxshape=(None,), chunks=(1024,), fletcher32=True)
    index.create_dataset("digest", (0, 32), np.uint8, maxshape=(None, 32), chunks=(1024, 32), fletcher32=True)
    file.flush()


@dataclass(frozen=True, kw_only=True)
class EpisodeIndex:
    """The index table; every array has one entry per episode (E).

    Attributes:
        start: (E,) first frame.
        length: (E,) number of frames.
        env_id: (E,) environment ids (numpy strings).
        policy: (E,) policy names.
        seed: (E,) int64.
        success: (E,) bool.
        digest: (E, 32) uint8, SHA-256 of each episode.
    """

    start: NDArray[np.int64]
    length: NDArray[np.int64]
    env_id: NDArray[np.str_]
    policy: NDArray[np.str_]
    seed: NDArray[np.int64]
    success: NDArray[np.bool_]
    digest: NDArray[np.uint8]


def read_index(file: Any, path: Path) -> EpisodeIndex:
    """Read the index as far as all of its columns and the data arrays reach, and check that it makes sense."""
    table = file["index"]
    columns = {name: table[name][()] for name in (*INDEX_DTYPES, "digest")}
    count = min(len(column) for column in columns.values())
    columns = {name: column[:count] for name, column in columns.items()}
    start, length = columns["episode_start"], columns["episode_len"]
    if (length < 2).any():
        raise DataError(f"{path}: episode {int(np.argmax(length < 2))} has fewer than 2 frames in the index")
    expected = np.concatenate([[0], np.cumsum(length)])
    if (start != expected[:-1]).any():
        bad = int(np.argmax(start != expected[:-1]))
        raise DataError(f"{path}: episode {bad} starts at frame {start[bad]} in the index, expected {expected[bad]}")
    return EpisodeIndex(
        start=start,
        length=length,
        env_id=np.char.decode(columns["env_id"], "utf-8"),
        policy=np.char.decode(columns["policy"], "utf-8"),
        seed=columns["seed"],
        success=columns["success"],
        digest=columns["digest"],
    )
