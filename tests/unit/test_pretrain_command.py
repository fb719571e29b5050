"""What `worldmodel pretrain` looks at beside its loss."""

from __future__ import annotations

import numpy as np

from worldmodel.commands.pretrain import PROBE_FRAMES, probe_frames


def test_probes_see_every_part_of_an_episode() -> None:
    """4,000 episodes of 61 frames: every 61st frame would be the first of its episode."""
    frames = probe_frames(61 * PROBE_FRAMES)
    assert len(np.unique(frames)) == PROBE_FRAMES
    assert np.array_equal(frames, np.sort(frames))
    assert np.bincount(frames % 61, minlength=61).min() > 30


def test_a_small_file_is_probed_whole() -> None:
    assert np.array_equal(probe_frames(50), np.arange(50))
