"""Masks: a partition with fixed counts, block shapes as published, no bias toward early frames."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from worldmodel.errors import ConfigError
from worldmodel.learning.masking import MaskConfig, context_distance, sample_masks, token_counts

GRIDS = [(4, 8, 8), (8, 14, 14), (1, 8, 8), (2, 4, 6)]


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"temporal_scale": 0.5},
        {"max_target_tokens": 5, "future_fraction": 0.5},
        {"kind": "tube"},
        {"kind": "tube", "tube_fraction": 0.5, "max_target_tokens": 7},
        {"kind": "momentary"},
        {"kind": "future"},
        {"kind": "motion"},
    ],
)
def test_visible_and_target_tokens_are_disjoint_ids_of_fixed_number(
    grid: tuple[int, int, int], changes: dict[str, Any]
) -> None:
    config = MaskConfig(**changes)
    counts = token_counts(config, grid)
    for seed in range(5):
        motion = torch.rand(6, math.prod(grid), generator=stream(seed))
        masks = sample_masks(config, grid, 6, stream(seed), motion=motion)
        assert [(keep.shape[1], target.shape[1]) for keep, target in masks] == counts
        for keep, target in masks:
            for row in torch.cat((keep, target), dim=1):
                assert len(set(row.tolist())) == len(row)
                assert 0 <= int(row.min()) <= int(row.max()) < math.prod(grid)
            assert torch.equal(keep, keep.sort(dim=1).values)


def test_a_full_time_block_hides_a_place_in_every_frame() -> None:
    """Otherwise a hidden patch could be copied from the frame before."""
    for keep, target in sample_masks(MaskConfig(), (4, 8, 8), 16, stream()):
        for visible, hidden in zip(keep % 64, target % 64, strict=True):
            assert not set(visible.tolist()) & set(hidden.tolist())


def test_fractions_are_close_to_the_published_ones() -> None:
    """vjepa.md 1.4: short-range masks leave about 37 % visible, long-range ones 19 %, before any truncation."""
    (short_keep, short_target), (long_keep, long_target) = token_counts(MaskConfig(), (8, 14, 14))
    tokens = 8 * 14 * 14
    assert 0.22 < short_keep / tokens < 0.38
    assert 0.45 < short_target / tokens < 0.64
    assert 0.05 < long_keep / tokens < 0.19
    assert 0.65 < long_target / tokens < 0.82


def test_one_block_has_the_size_it_was_asked_for() -> None:
    config = MaskConfig(num_blocks=(1,), spatial_scale=(0.25,), aspect_min=1.0, aspect_max=1.0, temporal_scale=0.5)
    ((keep, target),) = sample_masks(config, (4, 8, 8), 8, stream())
    assert (keep.shape[1], target.shape[1]) == (256 - 32, 32)
    for row in target:
        t, y, x = row // 64, row % 64 // 8, row % 8
        for axis, extent in ((t, 2), (y, 4), (x, 4)):
            assert int(axis.max() - axis.min()) + 1 == extent


def test_tubes_hide_places_for_the_whole_clip() -> None:
    for keep, target in sample_masks(MaskConfig(kind="tube"), (4, 8, 8), 8, stream()):
        assert (keep.shape[1], target.shape[1]) == (4 * 6, 4 * 58)
        for visible, hidden in zip(keep % 64, target % 64, strict=True):
            assert not set(visible.tolist()) & set(hidden.tolist())


def test_momentary_blocks_leave_the_place_visible_at_another_moment() -> None:
    """What makes them easy: the hidden patch can be copied from the frame before."""
    config = MaskConfig(kind="momentary", num_blocks=(2,), spatial_scale=(0.25,))
    ((keep, target),) = sample_masks(config, (4, 8, 8), 16, stream())
    copied = [
        len(set(hidden.tolist()) & set(visible.tolist())) / len(set(hidden.tolist()))
        for visible, hidden in zip(keep % 64, target % 64, strict=True)
    ]
    assert min(copied) == 1.0


def test_future_kind_hides_the_second_half() -> None:
    for keep, target in sample_masks(MaskConfig(kind="future"), (4, 8, 8), 3, stream()):
        assert keep.max() < 128 <= target.min()


def test_motion_masks_hide_what_moves_more_often_than_chance() -> None:
    motion = torch.zeros(64, 4, 8, 8)
    motion[:, :, 2:4, 5:7] = 1.0
    motion = motion.flatten(1)

    def hidden(kind: str) -> float:
        config = MaskConfig(kind=kind, num_blocks=(2,), spatial_scale=(0.15,))
        ((_, target),) = sample_masks(config, (4, 8, 8), 64, stream(), motion=motion)
        return float(motion.gather(1, target).sum() / motion.sum())

    assert hidden("motion") > hidden("blocks") + 0.25


def test_motion_masks_need_motion() -> None:
    with pytest.raises(ConfigError, match="need to know what moves"):
        sample_masks(MaskConfig(kind="motion"), (4, 8, 8), 2, stream())


def test_late_frames_are_kept_as_often_as_early_ones() -> None:
    keep, target = sample_masks(MaskConfig(), (4, 8, 8), 512, stream())[0]
    for index in (keep, target):
        share = torch.bincount((index // 64).flatten(), minlength=4) / index.numel()
        assert torch.allclose(share, torch.full((4,), 0.25), atol=0.01)


def test_future_masks_hide_whole_late_frames() -> None:
    config = MaskConfig(future_fraction=1.0, max_target_tokens=64)
    for keep, target in sample_masks(config, (4, 8, 8), 32, stream()):
        assert torch.all((keep // 64).amax(dim=1) < (target // 64).amin(dim=1))
    some = sample_masks(MaskConfig(future_fraction=0.5, max_target_tokens=64), (4, 8, 8), 400, stream())[0]
    future = ((some[0] // 64).amax(dim=1) < (some[1] // 64).amin(dim=1)).float().mean()
    assert 0.4 < float(future) < 0.6


def test_future_masks_that_cannot_have_the_counts_are_an_error() -> None:
    with pytest.raises(ConfigError, match="max_target_tokens"):
        sample_masks(MaskConfig(future_fraction=0.5), (4, 8, 8), 4, stream())


def test_a_single_frame_has_no_future() -> None:
    masks = sample_masks(MaskConfig(future_fraction=1.0), (1, 8, 8), 4, stream())
    assert len(masks) == 2


def test_shared_masks_repeat_within_a_group_only() -> None:
    keep, _ = sample_masks(MaskConfig(share=4), (4, 8, 8), 8, stream())[0]
    assert torch.equal(keep[0], keep[3])
    assert not torch.equal(keep[3], keep[4])
    with pytest.raises(ConfigError, match="share=4"):
        sample_masks(MaskConfig(share=4), (4, 8, 8), 6, stream())


def test_the_stream_decides() -> None:
    first, again, other = (sample_masks(MaskConfig(), (4, 8, 8), 4, stream(seed))[0][0] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_masks_that_hide_everything_are_an_error() -> None:
    with pytest.raises(ConfigError, match="smaller or"):
        token_counts(MaskConfig(num_blocks=(3,), spatial_scale=(1.0,), aspect_min=1.0, aspect_max=1.0), (4, 8, 8))


def test_distance_to_the_nearest_target() -> None:
    keep, target = torch.tensor([[0, 1, 9]]), torch.tensor([[5, 2]])
    # grid (2, 2, 3): 0 = (0,0,0), 1 = (0,0,1), 9 = (1,1,0); 5 = (0,1,2), 2 = (0,0,2)
    expected = torch.tensor([[2.0, 1.0, math.sqrt(5)]])
    assert torch.allclose(context_distance(keep, target, (2, 2, 3)), expected)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"num_blocks": (8,)}, "one entry"),
        ({"num_blocks": (8, 0)}, "num_blocks"),
        ({"spatial_scale": (0.1, 1.5)}, "spatial_scale"),
        ({"aspect_min": 2.0}, "aspect_min"),
        ({"future_fraction": 1.1}, "future_fraction"),
        ({"share": 0}, "share"),
        ({"kind": "holes"}, "kind"),
        ({"tube_fraction": 1.0}, "tube_fraction"),
        ({"reject": 1.0}, "reject"),
    ],
)
def test_bad_settings_are_named(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        MaskConfig(**changes)
