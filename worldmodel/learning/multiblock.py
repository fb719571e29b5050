"""The multi-block mask with the collation of the V-JEPA papers (arXiv:2404.08471, section 3.2 and appendix).

Beside `masking.py`, whose counts never change: here one block size is drawn per batch, each sample places its blocks
anywhere, and every batch is cut to its shortest sample in raster order. That drops a quarter of the tokens, late
frames first, which is why it is not the default; it is what the published models were trained with.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from worldmodel.errors import ConfigError

_MAX_ROUNDS = 100


@dataclass(frozen=True, kw_only=True)
class BlockShape:
    """Blocks of one mask; fields as in `masking.MaskConfig`.

    Attributes:
        count: Number of blocks.
        spatial_scale: Area of a block over the area of a frame.
        temporal_scale: Length of a block over the length of the clip.
        aspect_min: Smallest height over width.
        aspect_max: Largest height over width.
    """

    count: int
    spatial_scale: float
    temporal_scale: float
    aspect_min: float
    aspect_max: float


def published_masks(
    shape: BlockShape, grid: tuple[int, int, int], batch: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw one mask for every clip.

    Deviation: block size and places come from one stream (published: the size from a stream that all processes share,
    the places from an unseeded one), so that a run can be repeated; processes draw sizes of their own.

    Args:
        shape: The blocks.
        grid: Tokens along time, rows, columns.
        batch: Number of clips B.
        generator: Random stream; the masks live on its device.

    Returns:
        Visible (B, K) and target (B, M) token ids, ascending, disjoint within a row; K and M are those of the sample
        that has fewest, of each.

    Raises:
        ConfigError: The blocks hide the whole grid almost always.
    """
    size = block_size(shape, grid, generator)
    region = _regions(shape.count, size, grid, batch, generator)
    for _ in range(_MAX_ROUNDS):
        blind = region.all(dim=1)
        if not blind.any():
            break
        region[blind] = _regions(shape.count, size, grid, int(blind.sum()), generator)
    else:
        raise ConfigError(
            f"{shape.count} blocks of spatial_scale={shape.spatial_scale} hide the whole grid {grid} almost always; "
            "use smaller or fewer blocks"
        )
    return _first(~region), _first(region)


def block_size(shape: BlockShape, grid: tuple[int, int, int], generator: torch.Generator) -> tuple[int, int, int]:
    """Tokens of a block along time, rows and columns; the aspect ratio is drawn uniformly."""
    frames, rows, columns = grid
    draw = float(torch.rand((), generator=generator, device=generator.device))
    aspect = shape.aspect_min + (shape.aspect_max - shape.aspect_min) * draw
    area = int(rows * columns * shape.spatial_scale)
    height = min(rows, max(1, round(math.sqrt(area * aspect))))
    width = min(columns, max(1, round(math.sqrt(area / aspect))))
    return max(1, int(frames * shape.temporal_scale)), height, width


def _regions(
    count: int, size: tuple[int, int, int], grid: tuple[int, int, int], batch: int, generator: torch.Generator
) -> Tensor:
    """Unions of `count` blocks, each anywhere in the grid: (batch, N) bool, True where a token is a target."""
    inside = []
    for length, extent in zip(size, grid, strict=True):
        places = (batch, count, 1)
        first = torch.randint(extent - length + 1, places, generator=generator, device=generator.device)
        index = torch.arange(extent, device=generator.device)
        inside.append((index >= first) & (index < first + length))  # (batch, count, extent)
    t, y, x = inside
    return (t[:, :, :, None, None] & y[:, :, None, :, None] & x[:, :, None, None, :]).any(dim=1).flatten(1)


def _first(chosen: Tensor) -> Tensor:
    """The first ids of every row of (B, N) bool in raster order, as many as the poorest row has."""
    fewest = int(chosen.sum(dim=1).min())
    return (~chosen).to(torch.uint8).argsort(dim=1, stable=True)[:, :fewest]
