"""The published masks: statistics of vjepa.md 1.4, truncation in raster order, one size per batch."""

from __future__ import annotations

import math

import pytest
import torch

from worldmodel.errors import ConfigError
from worldmodel.learning.masking import MaskConfig, sample_masks, token_counts
from worldmodel.learning.multiblock import BlockShape, block_size, published_masks

SHORT = BlockShape(count=8, spatial_scale=0.15, temporal_scale=1.0, aspect_min=0.75, aspect_max=1.5)
LONG = BlockShape(count=2, spatial_scale=0.70, temporal_scale=1.0, aspect_min=0.75, aspect_max=1.5)
PUBLISHED = MaskConfig(kind="published")


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shares(shape: BlockShape, grid: tuple[int, int, int], batch: int, rounds: int) -> torch.Tensor:
    """(rounds, 2) share of visible and of target tokens."""
    generator = stream()
    masks = [published_masks(shape, grid, batch, generator) for _ in range(rounds)]
    return torch.tensor([[part.shape[1] / math.prod(grid) for part in mask] for mask in masks])


# grid, batch, blocks, visible per sample, visible and targets after truncation: measured with the released collator
TABLE = [
    ((8, 14, 14), 24, SHORT, 0.371, 0.239, 0.477),
    ((8, 14, 14), 24, LONG, 0.187, 0.069, 0.695),
    ((8, 16, 16), 24, SHORT, 0.378, 0.241, 0.464),
    ((8, 16, 16), 24, LONG, 0.190, 0.065, 0.705),
    ((8, 8, 8), 24, SHORT, 0.352, 0.218, 0.481),
    ((8, 8, 8), 24, LONG, 0.199, 0.086, 0.692),
    ((8, 8, 8), 128, SHORT, None, 0.173, 0.429),
    ((8, 8, 8), 128, LONG, None, 0.085, 0.692),
]


@pytest.mark.parametrize(("grid", "batch", "shape", "alone", "visible", "targets"), TABLE)
def test_statistics_are_the_measured_ones(
    grid: tuple[int, int, int], batch: int, shape: BlockShape, alone: float | None, visible: float, targets: float
) -> None:
    """Whole-clip blocks: one frame has the statistics of all of them, at an eighth of the work."""
    plane = (1, *grid[1:])
    found = shares(shape, plane, batch, 100).mean(dim=0)
    assert found.tolist() == pytest.approx([visible, targets], abs=0.02)
    if alone is not None:
        assert float(shares(shape, plane, 1, 600)[:, 0].mean()) == pytest.approx(alone, abs=0.02)


def test_the_spread_of_short_masks_is_the_measured_one() -> None:
    """Vjepa.md: .371 +- .077 per sample; after truncation between .163 and .321."""
    assert float(shares(SHORT, (1, 14, 14), 1, 600)[:, 0].std()) == pytest.approx(0.077, abs=0.01)
    low, high = shares(SHORT, (1, 14, 14), 24, 100)[:, 0].quantile(torch.tensor([0.05, 0.95])).tolist()
    assert low == pytest.approx(0.163, abs=0.02)
    assert high == pytest.approx(0.321, abs=0.02)


def test_the_fixed_counts_lie_between_the_sample_and_the_truncated_batch() -> None:
    """Our variant keeps more than the published collation and hides as much."""
    (short_keep, short_target), (long_keep, long_target) = token_counts(MaskConfig(), (8, 14, 14))
    assert 0.239 < short_keep / 1568 < 0.371
    assert 0.069 < long_keep / 1568 < 0.187
    assert short_target / 1568 > 0.477
    assert long_target / 1568 > 0.695


def test_rows_are_disjoint_ascending_and_end_early() -> None:
    """Cut in raster order: what is lost is lost at the end of the clip."""
    late = []
    for keep, target in sample_masks(PUBLISHED, (4, 8, 8), 24, stream()):
        for visible, hidden in zip(keep, target, strict=True):
            assert not set(visible.tolist()) & set(hidden.tolist())
            assert torch.all(visible.diff() > 0)
            assert torch.all(hidden.diff() > 0)
        share = torch.bincount((keep // 64).flatten(), minlength=4) / keep.numel()
        late.append(float(share[0] - share[3]))
    assert min(late) > 0.02


def test_the_shortest_sample_loses_nothing() -> None:
    keep, target = published_masks(SHORT, (2, 8, 8), 16, stream(3))
    assert keep.shape[1] + target.shape[1] <= 128
    alone = [published_masks(SHORT, (2, 8, 8), 1, stream(seed)) for seed in range(5)]
    assert all(keep.shape[1] + target.shape[1] == 128 for keep, target in alone)


def test_one_size_is_drawn_per_batch_by_the_published_rule() -> None:
    """area = int(H W scale); h = round(sqrt(area r)), w = round(sqrt(area / r)), r uniform in [.75, 1.5]."""
    sizes = {block_size(SHORT, (8, 14, 14), stream(seed)) for seed in range(200)}
    assert sizes == {
        (8, round(math.sqrt(29 * r)), round(math.sqrt(29 / r))) for r in torch.linspace(0.75, 1.5, 2000).tolist()
    }
    half = BlockShape(count=1, spatial_scale=0.25, temporal_scale=0.5, aspect_min=1.0, aspect_max=1.0)
    assert block_size(half, (5, 8, 8), stream()) == (2, 4, 4)
    _, target = published_masks(half, (4, 8, 8), 6, stream())
    assert target.shape[1] == 2 * 4 * 4


def test_samples_without_context_are_drawn_again() -> None:
    """Two blocks of 3 x 2 on 3 x 3: half of the draws hide everything."""
    shape = BlockShape(count=2, spatial_scale=0.7, temporal_scale=1.0, aspect_min=1.5, aspect_max=1.5)
    assert block_size(shape, (1, 3, 3), stream()) == (1, 3, 2)
    keep, _ = published_masks(shape, (1, 3, 3), 64, stream())
    assert keep.shape[1] == 3
    everything = BlockShape(count=1, spatial_scale=1.0, temporal_scale=1.0, aspect_min=1.0, aspect_max=1.0)
    with pytest.raises(ConfigError, match="smaller or fewer"):
        published_masks(everything, (1, 4, 4), 2, stream())


def test_groups_share_a_mask_and_counts_are_not_fixed() -> None:
    keep, _ = sample_masks(MaskConfig(kind="published", share=4), (4, 8, 8), 8, stream())[0]
    assert torch.equal(keep[0], keep[3])
    assert not torch.equal(keep[3], keep[4])
    with pytest.raises(ConfigError, match="other counts"):
        token_counts(PUBLISHED, (4, 8, 8))
    with pytest.raises(ConfigError, match="set both to 0"):
        MaskConfig(kind="published", max_target_tokens=8)
