"""Synthetic episodes for the tests of data files, clips and summaries."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from worldmodel.data.episodes import Episode, EpisodeDataset, EpisodeSpec, write_episodes

MakeEpisode = Callable[..., Episode]


@pytest.fixture
def episode_spec() -> EpisodeSpec:
    return EpisodeSpec(
        env_id="worldmodel/Push-v0",
        image_size=8,
        action_low=(-1.0, -1.0),
        action_high=(1.0, 1.0),
        proprio_names=("gripper_x", "gripper_y", "opening"),
        privileged_names=("gripper_x", "gripper_y", "object_x", "object_y"),
        control_dt_s=0.1,
    )


@pytest.fixture
def make_episode() -> MakeEpisode:
    """Episode whose values are unique to (number, frame): pixel [t, 0, 0] = (number, t, 0), action[t, 0] tells t."""

    def make(number: int, num_frames: int = 7, *, policy: str = "play", env_id: str = "") -> Episode:
        rng = np.random.default_rng([17, number])
        pixels = rng.integers(0, 256, (num_frames, 8, 8, 3), dtype=np.uint8)
        pixels[:, 0, 0] = np.stack([np.full(num_frames, number), np.arange(num_frames), np.zeros(num_frames)], axis=1)
        action = rng.uniform(-0.9, 0.9, (num_frames - 1, 2)).astype(np.float32)
        action[:, 0] = np.arange(num_frames - 1) / 100
        return Episode(
            pixels=pixels,
            proprio=rng.normal(size=(num_frames, 3)).astype(np.float32),
            action=action,
            privileged=rng.uniform(0, 0.5, (num_frames, 4)).astype(np.float32),
            contact=rng.random(num_frames) < 0.5,
            policy=policy,
            seed=1000 + number,
            success=number % 2 == 0,
            env_id=env_id,
        )

    return make


@pytest.fixture
def episode_file(tmp_path: Path, episode_spec: EpisodeSpec, make_episode: MakeEpisode) -> EpisodeDataset:
    """Ten episodes of 5 to 14 frames."""
    return write_episodes(tmp_path / "ten.h5", episode_spec, [make_episode(i, 5 + i) for i in range(10)])
