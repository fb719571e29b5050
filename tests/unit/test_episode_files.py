from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from worldmodel.data.episodes import Episode, EpisodeDataset, EpisodeSpec, EpisodeWriter, write_episodes
from worldmodel.errors import DataError

MakeEpisode = Callable[..., Episode]


def assert_same(a: Episode, b: Episode) -> None:
    for field in fields(Episode):
        left, right = getattr(a, field.name), getattr(b, field.name)
        if isinstance(left, np.ndarray):
            assert left.dtype == right.dtype
            np.testing.assert_array_equal(left, right)
        else:
            assert left == right, field.name


def test_what_is_written_is_read(tmp_path: Path, episode_spec: EpisodeSpec, make_episode: MakeEpisode) -> None:
    episodes = [make_episode(i, 5 + i, policy="expert", env_id="worldmodel/Reach-v0") for i in range(3)]
    dataset = write_episodes(tmp_path / "a.h5", episode_spec, episodes)
    assert (len(dataset), dataset.num_frames, dataset.spec) == (3, 18, episode_spec)
    for i, episode in enumerate(episodes):
        assert_same(dataset.episode(i), episode)
    np.testing.assert_array_equal(dataset.pixels, np.concatenate([e.pixels for e in episodes]))
    assert_same(dataset.episode(1), episodes[1])  # now from memory


def test_last_action_row_of_an_episode_is_zero(episode_file: EpisodeDataset) -> None:
    last = episode_file.index.start + episode_file.index.length - 1
    assert not episode_file.action[last].any()
    assert episode_file.action.any(axis=1).sum() == episode_file.num_frames - len(episode_file)


def test_environment_of_the_spec_is_the_default(episode_file: EpisodeDataset) -> None:
    assert episode_file.env_ids == ("worldmodel/Push-v0",)
    assert episode_file.episode(0).env_id == "worldmodel/Push-v0"


def test_append_continues_and_takes_another_environment(
    tmp_path: Path, episode_spec: EpisodeSpec, make_episode: MakeEpisode
) -> None:
    path = tmp_path / "a.h5"
    write_episodes(path, episode_spec, [make_episode(0)])
    with EpisodeWriter(path, replace(episode_spec, env_id="worldmodel/Reach-v0"), append=True) as writer:
        writer.append(make_episode(1, env_id="worldmodel/Reach-v0"))
        assert (len(writer), writer.count("worldmodel/Push-v0"), writer.count("worldmodel/Reach-v0")) == (2, 1, 1)
    dataset = EpisodeDataset.open(path)
    assert dataset.env_ids == ("worldmodel/Push-v0", "worldmodel/Reach-v0")
    assert dataset.spec == episode_spec
    np.testing.assert_array_equal(dataset.episode(0).pixels, make_episode(0).pixels)


def test_append_refuses_another_spec_and_names_the_field(
    tmp_path: Path, episode_spec: EpisodeSpec, make_episode: MakeEpisode
) -> None:
    path = tmp_path / "a.h5"
    write_episodes(path, episode_spec, [make_episode(0)])
    before = path.read_bytes()
    with pytest.raises(DataError, match=r"control_dt_s: 0\.1 against 0\.2"):
        EpisodeWriter(path, replace(episode_spec, control_dt_s=0.2), append=True)
    assert path.read_bytes() == before


def test_existing_file_is_not_overwritten(episode_file: EpisodeDataset, episode_spec: EpisodeSpec) -> None:
    before = episode_file.path.read_bytes()
    with pytest.raises(DataError, match="already exists"):
        EpisodeWriter(episode_file.path, episode_spec)
    assert episode_file.path.read_bytes() == before


def test_content_hash_ignores_how_the_file_was_written(
    tmp_path: Path, episode_spec: EpisodeSpec, make_episode: MakeEpisode
) -> None:
    episodes = [make_episode(i) for i in range(4)]
    whole = write_episodes(tmp_path / "whole.h5", episode_spec, episodes)
    for episode in episodes:
        with EpisodeWriter(tmp_path / "parts.h5", episode_spec, append=True) as writer:
            writer.append(episode)
    assert EpisodeDataset.open(tmp_path / "parts.h5").content_hash == whole.content_hash
    with h5py.File(whole.path, "r+") as file:  # the same values in one uncompressed block
        pixels = file["pixels"][()]
        del file["pixels"]
        file["pixels"] = pixels
    again = EpisodeDataset.open(whole.path)
    again.verify()
    assert again.content_hash == whole.content_hash


@pytest.mark.parametrize("field", ["pixels", "proprio", "action", "privileged", "contact", "policy", "seed", "success"])
def test_content_hash_sees_every_field(
    tmp_path: Path, episode_spec: EpisodeSpec, make_episode: MakeEpisode, field: str
) -> None:
    episode = make_episode(0)
    value = getattr(episode, field)
    if isinstance(value, np.ndarray):
        other = value.copy()
        other.flat[3] = not other.flat[3] if other.dtype == bool else other.flat[3] + 1
    else:
        other = {"policy": "expert", "seed": 7, "success": False}[field]
    a = write_episodes(tmp_path / "a.h5", episode_spec, [episode])
    b = write_episodes(tmp_path / "b.h5", episode_spec, [replace(episode, **{field: other})])
    assert a.content_hash != b.content_hash


def test_verify_finds_altered_pixels(episode_file: EpisodeDataset) -> None:
    with h5py.File(episode_file.path, "r+") as file:
        row = int(episode_file.index.start[3])
        file["pixels"][row] = 255 - file["pixels"][row]
    with pytest.raises(DataError, match="episode 3 differs"):
        EpisodeDataset.open(episode_file.path).verify()


# ---- bad episodes are refused before they are written


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"proprio": np.full((7, 3), np.nan, np.float32)}, "array proprio of episode 0 holds NaN"),
        ({"action": np.full((6, 2), np.inf, np.float32)}, "array action of episode 0 holds NaN"),
        ({"action": np.zeros((7, 2), np.float32)}, r"shape \(8, 2\), expected \(7, 2\)"),
        ({"action": np.zeros(6, np.float32)}, r"must be \(T, 2\)"),
        ({"pixels": np.zeros((7, 8, 8, 3), np.float32)}, "array pixels of episode 0 has dtype float32"),
        ({"contact": np.zeros((6,), np.bool_)}, "array contact"),
        ({"pixels": np.zeros((1, 8, 8, 3), np.uint8)}, "has 1 frames, expected at least 2"),
        ({"policy": "x" * 65}, "at most 64 bytes"),
    ],
)
def test_bad_episode_is_refused(
    tmp_path: Path, episode_spec: EpisodeSpec, make_episode: MakeEpisode, change: dict[str, object], message: str
) -> None:
    with EpisodeWriter(tmp_path / "a.h5", episode_spec) as writer:
        with pytest.raises(DataError, match=message):
            writer.append(replace(make_episode(0), **change))
        writer.append(make_episode(1))
    assert EpisodeDataset.open(tmp_path / "a.h5").index.seed.tolist() == [1001]


# ---- bad files are one DataError of one line


def open_error(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        EpisodeDataset.open(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def test_missing_file(tmp_path: Path) -> None:
    assert "no episode file" in open_error(tmp_path / "none.h5")


def test_not_hdf5(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    path.write_bytes(b"not hdf5 at all" * 100)
    assert "a.h5" in open_error(path)


def test_hdf5_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["x"] = 1
    assert "not an episode file" in open_error(path)


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.95])
def test_truncated_file(episode_file: EpisodeDataset, keep: float) -> None:
    raw = episode_file.path.read_bytes()
    episode_file.path.write_bytes(raw[: int(len(raw) * keep)])
    assert episode_file.path.name in open_error(episode_file.path)


def test_flipped_bytes_in_pixels_are_found_on_reading(episode_file: EpisodeDataset) -> None:
    with h5py.File(episode_file.path, "r") as file:
        chunk = file["pixels"].id.get_chunk_info(0)
    raw = bytearray(episode_file.path.read_bytes())
    middle = chunk.byte_offset + chunk.size // 2
    raw[middle : middle + 8] = bytes(255 - b for b in raw[middle : middle + 8])
    episode_file.path.write_bytes(raw)
    dataset = EpisodeDataset.open(episode_file.path)
    with pytest.raises(DataError, match="cannot be used"):
        dataset.episode(0)


@pytest.mark.parametrize("array", ["proprio", "action", "privileged"])
def test_nan_names_array_and_episode(episode_file: EpisodeDataset, array: str) -> None:
    with h5py.File(episode_file.path, "r+") as file:
        file[array][int(episode_file.index.start[4]) + 2, 1] = np.nan
    assert f"array {array} holds NaN or infinite values in episode 4" in open_error(episode_file.path)


def test_missing_array(episode_file: EpisodeDataset) -> None:
    with h5py.File(episode_file.path, "r+") as file:
        del file["contact"]
    assert "contact" in open_error(episode_file.path)


def test_too_few_rows(episode_file: EpisodeDataset) -> None:
    with h5py.File(episode_file.path, "r+") as file:
        file["pixels"].resize(20, axis=0)
    assert "array pixels" in open_error(episode_file.path)


def test_index_with_a_gap(episode_file: EpisodeDataset) -> None:
    with h5py.File(episode_file.path, "r+") as file:
        file["index/episode_start"][2] += 1
    assert "episode 2 starts at frame" in open_error(episode_file.path)


def test_newer_format_version(episode_file: EpisodeDataset) -> None:
    with h5py.File(episode_file.path, "r+") as file:
        file.attrs["version"] = 99
    assert "format version 99" in open_error(episode_file.path)


def test_unreadable_spec(episode_file: EpisodeDataset) -> None:
    with h5py.File(episode_file.path, "r+") as file:
        file.attrs["spec"] = '{"image_size": 8}'
    with pytest.raises(DataError, match="spec is not readable"):
        EpisodeDataset.open(episode_file.path)


@pytest.mark.parametrize("number", [-1, 10])
def test_no_such_episode(episode_file: EpisodeDataset, number: int) -> None:
    with pytest.raises(DataError, match=r"must be in \[0, 10\)"):
        episode_file.episode(number)


def test_no_such_frames(episode_file: EpisodeDataset) -> None:
    with pytest.raises(DataError, match="not inside"):
        episode_file.load_pixels(0, episode_file.num_frames + 1)


# ---- interruption


def test_rows_without_index_are_ignored_and_overwritten(
    episode_file: EpisodeDataset, episode_spec: EpisodeSpec, make_episode: MakeEpisode
) -> None:
    with h5py.File(episode_file.path, "r+") as file:  # as after a kill between data and index
        for name in ("pixels", "proprio", "action"):
            file[name].resize(episode_file.num_frames + 5, axis=0)
            file[name][episode_file.num_frames :] = np.full(file[name][-5:].shape, 9)
        file["index/seed"].resize(11, axis=0)
    assert len(EpisodeDataset.open(episode_file.path)) == 10
    with EpisodeWriter(episode_file.path, episode_spec, append=True) as writer:
        writer.append(make_episode(10))
    dataset = EpisodeDataset.open(episode_file.path)
    dataset.verify()
    np.testing.assert_array_equal(dataset.episode(10).pixels, make_episode(10).pixels)


_KILLED_WRITER = """
import os, signal, sys
import numpy as np
from worldmodel.data.episodes import Episode, EpisodeSpec, EpisodeWriter

spec = EpisodeSpec(env_id="x", image_size=32, action_low=(-1.0,), action_high=(1.0,), proprio_names=("p",),
                   privileged_names=("g",), control_dt_s=0.1)
with EpisodeWriter(sys.argv[1], spec, append=True) as writer:
    for i in range(30):
        T = 20
        writer.append(Episode(pixels=np.random.default_rng(i).integers(0, 256, (T + 1, 32, 32, 3), dtype=np.uint8),
                              proprio=np.full((T + 1, 1), i, np.float32), action=np.zeros((T, 1), np.float32),
                              privileged=np.zeros((T + 1, 1), np.float32), contact=np.zeros(T + 1, np.bool_),
                              policy="play", seed=i, success=False))
        if i % 5 == 4:
            if i == 24:  # rows of the sixth block are on their way, its index is not
                writer._file["pixels"].resize(10**4, axis=0)
                writer._file["pixels"][525:1000] = np.full((475, 32, 32, 3), 7, np.uint8)
                os.kill(os.getpid(), signal.SIGKILL)
            writer.flush()
"""


def test_killed_process_leaves_what_was_flushed(tmp_path: Path) -> None:
    path = tmp_path / "killed.h5"
    done = subprocess.run([sys.executable, "-c", _KILLED_WRITER, str(path)], check=False, env=dict(os.environ))
    assert done.returncode == -signal.SIGKILL
    dataset = EpisodeDataset.open(path)
    dataset.verify()
    assert dataset.index.seed.tolist() == list(range(20))


# ---- split


def test_split_is_a_partition_of_the_right_size(episode_file: EpisodeDataset) -> None:
    train, held_out = episode_file.split(0.2, seed=3)
    assert sorted([*train, *held_out]) == list(range(10))
    assert len(held_out) == 2
    assert any(episode_file.split(0.2, seed=s)[1].tolist() != held_out.tolist() for s in range(10))


def test_split_never_moves_an_episode_when_the_file_grows(
    episode_file: EpisodeDataset, episode_spec: EpisodeSpec, make_episode: MakeEpisode
) -> None:
    _, before = episode_file.split(0.3, seed=0)
    with EpisodeWriter(episode_file.path, episode_spec, append=True) as writer:
        for i in range(20):
            writer.append(make_episode(100 + i))
    _, after = EpisodeDataset.open(episode_file.path).split(0.3, seed=0)
    assert before.tolist() == [i for i in after.tolist() if i < 10]
    assert len(after) == 9


def test_split_of_a_few_episodes_holds_one_out(episode_file: EpisodeDataset) -> None:
    for seed in range(20):
        train, held_out = episode_file.split(0.01, seed=seed)
        assert (len(train), len(held_out)) == (9, 1)
    assert len(episode_file.split(0.0, seed=0)[1]) == 0


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_split_refuses_bad_fractions(episode_file: EpisodeDataset, fraction: float) -> None:
    with pytest.raises(DataError, match="validation_fraction"):
        episode_file.split(fraction, seed=0)


def test_spec_refuses_nonsense(episode_spec: EpisodeSpec) -> None:
    for change in ({"image_size": 0}, {"action_low": ()}, {"action_high": (1.0,)}, {"control_dt_s": 0.0}):
        with pytest.raises(DataError):
            replace(episode_spec, **change)


def test_no_proprioception_and_nothing_privileged(
    tmp_path: Path, episode_spec: EpisodeSpec, make_episode: MakeEpisode
) -> None:
    empty = np.zeros((7, 0), np.float32)
    episode = replace(make_episode(0), proprio=empty, privileged=empty)
    dataset = write_episodes(tmp_path / "a.h5", replace(episode_spec, proprio_names=(), privileged_names=()), [episode])
    assert dataset.episode(0).proprio.shape == (7, 0)
