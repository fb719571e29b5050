"""What `worldmodel pretrain` looks at beside its loss."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from worldmodel.commands.pretrain import PROBE_FRAMES, Settings, backgrounds, probe_frames
from worldmodel.data.episodes import Episode, EpisodeDataset, EpisodeSpec, EpisodeWriter
from worldmodel.errors import ConfigError


def test_probes_see_every_part_of_an_episode() -> None:
    """4,000 episodes of 61 frames: every 61st frame would be the first of its episode."""
    frames = probe_frames(61 * PROBE_FRAMES)
    assert len(np.unique(frames)) == PROBE_FRAMES
    assert np.array_equal(frames, np.sort(frames))
    assert np.bincount(frames % 61, minlength=61).min() > 30


def test_a_small_file_is_probed_whole() -> None:
    assert np.array_equal(probe_frames(50), np.arange(50))


def test_the_recording_tells_what_an_object_at_rest_hides(tmp_path: Path) -> None:
    """A block that stands still for a whole episode is background of the episode, and none of the recording."""
    path = tmp_path / "blocks.h5"
    names = {"proprio_names": (), "privileged_names": ()}
    spec = EpisodeSpec(env_id="a", image_size=16, action_low=(-1.0,), action_high=(1.0,), **names, control_dt_s=0.1)
    nothing = {"proprio": np.zeros((5, 0), np.float32), "privileged": np.zeros((5, 0), np.float32)}
    facts = {"contact": np.zeros(5, np.bool_), "policy": "play", "seed": 0, "success": False}
    with EpisodeWriter(path, spec) as writer:
        for place in range(8):
            pixels = np.full((5, 16, 16, 3), 90, np.uint8)
            pixels[:, 2 * place : 2 * place + 2, :4] = 200
            writer.append(Episode(pixels=pixels, action=np.zeros((4, 1), np.float32), **nothing, **facts))
    dataset = EpisodeDataset.open(path)
    own, shared = backgrounds(dataset), backgrounds(dataset, "recording")
    assert own.shape == shared.shape == (8, 16, 16, 3)
    first = torch.from_numpy(dataset.pixels[:1])
    assert torch.equal(own[:1], first)
    assert (first[0] != shared[0]).any(dim=-1).sum() == 8  # the pixels of the block
    assert torch.equal(shared[0], torch.full((16, 16, 3), 90, dtype=torch.uint8))


def test_an_unknown_background_is_refused() -> None:
    with pytest.raises(ConfigError, match="background must be one of episode, recording"):
        Settings(data="push.h5", background="sky")
