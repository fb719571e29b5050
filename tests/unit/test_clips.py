from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
import torch

from worldmodel.data.clips import ClipBatch, ClipSampler
from worldmodel.data.episodes import EpisodeDataset
from worldmodel.errors import ConfigError, DataError


def sampler(dataset: EpisodeDataset, ids: list[int] | None = None, **changes: int) -> ClipSampler:
    settings = {"num_frames": 3, "frame_step": 2, "batch_size": 4, "seed": 5} | changes
    return ClipSampler(dataset, list(range(10)) if ids is None else ids, **settings)


def test_shapes_and_dtypes(episode_file: EpisodeDataset) -> None:
    batch = next(sampler(episode_file))
    assert batch.pixels.shape == (4, 3, 8, 8, 3)
    assert batch.pixels.dtype == torch.uint8
    assert batch.proprio.shape == (4, 3, 3)
    assert batch.actions.shape == (4, 2, 4)
    assert batch.actions.dtype == torch.float32
    assert batch.episode.shape == batch.start.shape == (4,)


def test_frames_and_actions_are_those_of_the_episode(episode_file: EpisodeDataset) -> None:
    clips = sampler(episode_file)
    batch = clips.clips(np.arange(len(clips)))
    for b in range(len(clips)):
        episode = episode_file.episode(int(batch.episode[b]))
        start = int(batch.start[b])
        np.testing.assert_array_equal(batch.pixels[b].numpy(), episode.pixels[start : start + 5 : 2])
        np.testing.assert_array_equal(batch.proprio[b].numpy(), episode.proprio[start : start + 5 : 2])
        np.testing.assert_array_equal(batch.actions[b].numpy(), episode.action[start : start + 4].reshape(2, 4))


def test_every_possible_clip_exists_once(episode_file: EpisodeDataset) -> None:
    clips = sampler(episode_file, ids=[0, 3])  # 5 and 8 frames, a clip spans 5
    batch = clips.clips(np.arange(len(clips)))
    found = sorted(zip(batch.episode.tolist(), batch.start.tolist(), strict=True))
    assert found == [(0, 0), (3, 0), (3, 1), (3, 2), (3, 3)]


def test_single_frames_have_no_actions(episode_file: EpisodeDataset) -> None:
    clips = sampler(episode_file, num_frames=1)
    assert len(clips) == episode_file.num_frames
    assert next(clips).actions.shape == (4, 0, 4)


def test_an_epoch_shows_every_clip_once_and_the_next_in_another_order(episode_file: EpisodeDataset) -> None:
    clips = sampler(episode_file, ids=[5, 6, 7, 8], batch_size=3)
    assert len(clips) % 3 == 0
    assert clips.batches_per_epoch == len(clips) / 3

    def epoch() -> list[tuple[int, int]]:
        keys = []
        for _ in range(len(clips) // 3):
            batch = next(clips)
            keys += list(zip(batch.episode.tolist(), batch.start.tolist(), strict=True))
        return keys

    first, second = epoch(), epoch()
    assert max(Counter(first).values()) == max(Counter(second).values()) == 1
    assert len(first) == len(clips)
    assert first != second
    assert first != sorted(first)


def test_batches_stay_full_across_the_end_of_an_epoch(episode_file: EpisodeDataset) -> None:
    clips = sampler(episode_file, ids=[0], batch_size=4)  # one clip in all
    assert len(clips) == 1
    assert next(clips).pixels.shape[0] == 4


def same(a: ClipBatch, b: ClipBatch) -> bool:
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in a.__dict__)


def test_seed_decides_the_order(episode_file: EpisodeDataset) -> None:
    assert same(next(sampler(episode_file)), next(sampler(episode_file)))
    assert not same(next(sampler(episode_file)), next(sampler(episode_file, seed=6)))


@pytest.mark.parametrize("drawn", [0, 1, 7, 40])
def test_resume_continues_bit_for_bit(episode_file: EpisodeDataset, drawn: int) -> None:
    whole = sampler(episode_file)
    for _ in range(drawn):
        next(whole)
    state = json.loads(json.dumps(whole.state_dict()))
    resumed = sampler(episode_file)
    resumed.load_state_dict(state)
    for _ in range(15):
        assert same(next(whole), next(resumed))


def test_state_of_another_stream_is_refused(episode_file: EpisodeDataset) -> None:
    state = sampler(episode_file).state_dict()
    with pytest.raises(DataError, match="seed: 5 saved, 6 now"):
        sampler(episode_file, seed=6).load_state_dict(state)
    with pytest.raises(DataError, match="num_clips"):
        sampler(episode_file, ids=[9]).load_state_dict(state)
    with pytest.raises(DataError, match="drawn=-1"):
        sampler(episode_file).load_state_dict({**state, "drawn": -1})


def test_samplers_of_one_dataset_share_the_pixels(episode_file: EpisodeDataset) -> None:
    next(sampler(episode_file, ids=[9]))
    kept = episode_file.pixels
    next(sampler(episode_file, ids=[8]))
    assert episode_file.pixels is kept


def test_batch_moves_to_a_device(episode_file: EpisodeDataset) -> None:
    batch = next(sampler(episode_file)).to(torch.device("meta"))
    assert all(value.device.type == "meta" for value in batch.__dict__.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_frames": 0}, "num_frames must be >= 1, got 0"),
        ({"frame_step": 0}, "frame_step must be >= 1"),
        ({"batch_size": 0}, "batch_size must be >= 1"),
        ({"action_block": 3}, "action_block must equal frame_step=2, got 3"),
        ({"seed": -1}, "seed must be >= 0"),
    ],
)
def test_bad_settings(episode_file: EpisodeDataset, change: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sampler(episode_file, **change)


def test_episodes_too_short(episode_file: EpisodeDataset) -> None:
    with pytest.raises(DataError, match="longest: 14 frames"):
        sampler(episode_file, num_frames=8)


@pytest.mark.parametrize("ids", [[10], [-1], []])
def test_episode_ids_that_do_not_exist(episode_file: EpisodeDataset, ids: list[int]) -> None:
    with pytest.raises(DataError):
        sampler(episode_file, ids=ids)


def test_clip_numbers_that_do_not_exist(episode_file: EpisodeDataset) -> None:
    clips = sampler(episode_file)
    for numbers in ([-1], [len(clips)], []):
        with pytest.raises(DataError, match="clip numbers"):
            clips.clips(np.array(numbers, np.int64))
