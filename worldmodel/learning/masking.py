"""Space-time masks, V-JEPA's multi-block ones and those it is compared with, with token counts that never change.

Published V-JEPA cuts every batch to its shortest sample in raster order, which changes the tensor shapes each step
(slow on CPUs) and drops late frames more often than early ones. Here the counts of each kind of mask are fixed once
per grid, samples with fewer tokens are drawn again, and the surplus is dropped at random.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from worldmodel.errors import ConfigError
from worldmodel.learning.multiblock import BlockShape, published_masks

Grid = tuple[int, int, int]
Mask = tuple[Tensor, Tensor]
"""Visible token ids (B, K) and target token ids (B, M), long, ascending, disjoint within a row."""

KINDS = ("blocks", "published", "tube", "momentary", "future", "motion")
_MAX_ROUNDS = 200
_MOTION_TRIES = 4  # of as many masks, the one that hides most motion


@dataclass(kw_only=True)
class MaskConfig:
    """Several masks per clip, one per entry of `num_blocks` and `spatial_scale` (arXiv:2404.08471, section 3.2).

    Defaults: number, area, length and aspect ratio of the blocks as published there; `reject` is ours, `tube_fraction`
    VideoMAE's (arXiv:2203.12602).

    Attributes:
        kind: How the hidden region is drawn. "blocks": union of space-time blocks, the published multi-block mask
            with fixed token counts. "published": the same with the published collation (`multiblock.py`).
            "tube": places at random, hidden for the whole clip (VideoMAE). "momentary": blocks that last one token.
            "future": the late frames. "motion": blocks around what moves.
        tube_fraction: Share of the places that a tube mask hides.
        num_blocks: Blocks whose union is the target region.
        spatial_scale: Area of a block over the area of a frame.
        aspect_min: Smallest height over width of a block; drawn uniformly.
        aspect_max: Largest height over width.
        temporal_scale: Length of a block over the clip's; 1 hides a place for the whole clip.
        future_fraction: Share of samples in which the late frames are the target and the early ones the context.
        max_target_tokens: Upper limit on the targets of a sample, chosen at random; 0 keeps all (published).
        share: Consecutive clips that get the same mask; cheaper, and at least 1.
        reject: Share of drawn samples whose token count may fall short of the fixed one; they are drawn again.
    """

    kind: str = "blocks"
    tube_fraction: float = 0.9
    num_blocks: tuple[int, ...] = (8, 2)
    spatial_scale: tuple[float, ...] = (0.15, 0.70)
    aspect_min: float = 0.75
    aspect_max: float = 1.5
    temporal_scale: float = 1.0
    future_fraction: float = 0.0
    max_target_tokens: int = 0
    share: int = 1
    reject: float = 0.25

    def __post_init__(self) -> None:
        self.num_blocks, self.spatial_scale = tuple(self.num_blocks), tuple(self.spatial_scale)
        if not self.num_blocks or len(self.num_blocks) != len(self.spatial_scale):
            raise ConfigError(
                f"num_blocks and spatial_scale need one entry per kind of mask, got {self.num_blocks} "
                f"and {self.spatial_scale}"
            )
        if min(self.num_blocks) < 1:
            raise ConfigError(f"num_blocks must be >= 1, got {self.num_blocks}")
        if not all(0 < scale <= 1 for scale in (*self.spatial_scale, self.temporal_scale)):
            raise ConfigError(
                f"spatial_scale={self.spatial_scale} and temporal_scale={self.temporal_scale} must be in (0, 1]"
            )
        if not 0 < self.aspect_min <= self.aspect_max:
            raise ConfigError(f"need 0 < aspect_min <= aspect_max, got {self.aspect_min} and {self.aspect_max}")
        if not 0 <= self.future_fraction <= 1:
            raise ConfigError(f"future_fraction must be in [0, 1], got {self.future_fraction}")
        if not 0 <= self.reject <= 0.9:
            raise ConfigError(f"reject must be in [0, 0.9], got {self.reject}")
        if self.kind not in KINDS:
            raise ConfigError(f"mask kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        if not 0 < self.tube_fraction < 1:
            raise ConfigError(f"tube_fraction must be in (0, 1), got {self.tube_fraction}")
        if self.kind == "published" and (self.max_target_tokens or self.future_fraction):
            raise ConfigError(
                "masks of kind 'published' keep every target and hide no futures, got max_target_tokens="
                f"{self.max_target_tokens}, future_fraction={self.future_fraction}; set both to 0"
            )
        if self.max_target_tokens < 0 or self.share < 1:
            raise ConfigError(f"need max_target_tokens >= 0 and share >= 1, got {self.max_target_tokens}, {self.share}")


def sample_masks(
    config: MaskConfig, grid: Grid, batch: int, generator: torch.Generator, *, motion: Tensor | None = None
) -> list[Mask]:
    """Draw one mask for every clip and entry of `num_blocks`.

    Args:
        config: Kinds of masks.
        grid: Tokens along time, rows, columns.
        batch: Number of clips B, a multiple of `config.share`.
        generator: Random stream; the masks live on its device.
        motion: (B, N) how much each token moves, >= 0; needed by and only by kind "motion".

    Returns:
        One (visible (B, K), target (B, M)) pair per entry. K and M depend on config and grid only, except for the kind
        "published", where the batch decides.

    Raises:
        ConfigError: The batch is no multiple of `share`, the settings leave no visible token on this grid, or motion is
            missing.
    """
    if batch % config.share:
        raise ConfigError(f"batch={batch} must be a multiple of share={config.share}")
    if config.kind == "motion" and motion is None:
        raise ConfigError("masks of kind 'motion' need to know what moves: pass motion (B, N)")
    groups = None if motion is None else motion.unflatten(0, (-1, config.share)).mean(dim=1)
    masks = []
    for entry in range(len(config.num_blocks)):
        if config.kind == "published":
            keep, target = published_masks(_published_block(config, entry), grid, batch // config.share, generator)
        else:
            keep, target = _sample_entry(config, entry, grid, batch // config.share, generator, groups)
        masks.append((keep.repeat_interleave(config.share, 0), target.repeat_interleave(config.share, 0)))
    return masks


def token_counts(config: MaskConfig, grid: Grid) -> list[tuple[int, int]]:
    """Fixed numbers of visible and target tokens (K, M) per entry of `num_blocks` on this grid.

    Raises:
        ConfigError: The kind has no fixed counts, or the settings leave no visible token.
    """
    if config.kind == "published":
        raise ConfigError("masks of kind 'published' have other counts in every batch")
    frames, plane = grid[0], grid[1] * grid[2]
    entries = range(len(config.num_blocks))
    limit = config.max_target_tokens or frames * plane
    if config.kind == "tube":
        hidden = min(max(1, round(config.tube_fraction * plane)), plane - 1)
        return [(frames * (plane - hidden), min(limit, frames * hidden)) for _ in entries]
    if config.kind == "future" and frames > 1:
        seen = frames // 2
        return [(seen * plane, min(limit, (frames - seen) * plane)) for _ in entries]
    aspect = (config.aspect_min, config.aspect_max)
    return [_count(_shape(config, e, grid), aspect, grid, config.reject, config.max_target_tokens) for e in entries]


def _published_block(config: MaskConfig, entry: int) -> BlockShape:
    return BlockShape(
        count=config.num_blocks[entry],
        spatial_scale=config.spatial_scale[entry],
        temporal_scale=config.temporal_scale,
        aspect_min=config.aspect_min,
        aspect_max=config.aspect_max,
    )


def _shape(config: MaskConfig, entry: int, grid: Grid) -> tuple[int, float, float]:
    """Number, area and length of the blocks of one entry; a momentary block is one token long."""
    length = 1 / grid[0] if config.kind == "momentary" else config.temporal_scale
    return config.num_blocks[entry], config.spatial_scale[entry], length


@functools.lru_cache(maxsize=64)
def _count(
    shape: tuple[int, float, float], aspect: tuple[float, float], grid: Grid, reject: float, max_target: int
) -> tuple[int, int]:
    # A fixed stream: the counts are a property of the settings, not of the run.
    region = _draw_regions(shape, aspect, grid, 4096, torch.Generator().manual_seed(0))
    tokens = math.prod(grid)
    targets = region.sum(dim=1).sort().values
    targets = targets[targets < tokens]  # published: drawn again when nothing is left to see
    if len(targets) < 64:
        raise ConfigError(
            f"{shape[0]} blocks of spatial_scale={shape[1]} hide the whole grid {grid} almost always; use smaller or "
            "fewer blocks"
        )
    # Half of the rejected samples may fall short of targets, half of visible tokens.
    low = int(targets[int(reject / 2 * (len(targets) - 1))])
    high = int(targets[math.ceil((1 - reject / 2) * (len(targets) - 1))])
    return tokens - high, min(low, max_target) if max_target else low


def _draw_regions(
    shape: tuple[int, float, float],
    aspect: tuple[float, float],
    grid: Grid,
    batch: int,
    generator: torch.Generator,
) -> Tensor:
    """Union of random blocks: (batch, N) bool, True where a token is a target."""
    frames, rows, columns = grid
    blocks, spatial_scale, temporal_scale = shape
    device = generator.device

    def uniform(*size: int) -> Tensor:
        return torch.rand(size, generator=generator, device=device)

    # One block size per sample, as published (there: per batch, because of the truncation this module avoids).
    ratio = aspect[0] + (aspect[1] - aspect[0]) * uniform(batch, 1)
    area = int(rows * columns * spatial_scale)
    height = (area * ratio).sqrt().round().clamp(1, rows)
    width = (area / ratio).sqrt().round().clamp(1, columns)
    length = torch.full((batch, 1), float(max(1, int(frames * temporal_scale))), device=device)
    inside = []
    for size, extent in ((length, frames), (height, rows), (width, columns)):
        first = (uniform(batch, blocks) * (extent - size + 1)).floor()
        place = torch.arange(extent, device=device)
        inside.append(
            (place >= first.unsqueeze(-1)) & (place < (first + size).unsqueeze(-1))
        )  # (batch, blocks, extent)
    t, y, x = inside
    hit = t[:, :, :, None, None] & y[:, :, None, :, None] & x[:, :, None, None, :]
    return hit.any(dim=1).flatten(1)


def _draw_futures(grid: Grid, counts: tuple[int, int], batch: int, generator: torch.Generator) -> Tensor:
    """Targets are all tokens from a random frame on: (batch, N) bool; every row satisfies `counts`."""
    frames, plane = grid[0], grid[1] * grid[2]
    starts = [t for t in range(1, frames) if t * plane >= counts[0] and (frames - t) * plane >= counts[1]]
    if not starts:
        raise ConfigError(
            f"future_fraction > 0 needs {counts[0]} visible and {counts[1]} target tokens, which no split of the "
            f"grid {grid} by time gives; set max_target_tokens or future_fraction=0"
        )
    pick = torch.randint(len(starts), (batch,), generator=generator, device=generator.device)
    start = torch.tensor(starts, device=generator.device)[pick]
    time = torch.arange(math.prod(grid), device=generator.device) // plane
    return time >= start.unsqueeze(1)


def _sample_entry(
    config: MaskConfig, entry: int, grid: Grid, batch: int, generator: torch.Generator, motion: Tensor | None
) -> Mask:
    counts = token_counts(config, grid)[entry]
    if config.kind == "tube":
        region = _draw_tubes(grid, counts, batch, generator)
    elif config.kind == "future" and grid[0] > 1:  # a single frame has no future
        time = torch.arange(math.prod(grid), device=generator.device) // (grid[1] * grid[2])
        region = (time >= grid[0] // 2).expand(batch, -1)
    elif config.kind == "motion":
        tries = _draw_blocks(config, entry, grid, counts, _MOTION_TRIES * batch, generator)
        tries = tries.unflatten(0, (_MOTION_TRIES, batch))
        assert motion is not None
        best = (tries * motion).sum(dim=-1).argmax(dim=0)
        region = tries[best, torch.arange(batch, device=best.device)]
    else:
        region = _draw_blocks(config, entry, grid, counts, batch, generator)
        if config.future_fraction > 0 and grid[0] > 1:
            future = torch.rand(batch, generator=generator, device=region.device) < config.future_fraction
            region = torch.where(future.unsqueeze(1), _draw_futures(grid, counts, batch, generator), region)
    return _choose(~region, counts[0], generator), _choose(region, counts[1], generator)


def _draw_blocks(
    config: MaskConfig, entry: int, grid: Grid, counts: tuple[int, int], batch: int, generator: torch.Generator
) -> Tensor:
    """Regions of blocks that have the counts: (batch, N) bool."""
    shape, aspect = _shape(config, entry, grid), (config.aspect_min, config.aspect_max)
    tokens = math.prod(grid)
    accepted: list[Tensor] = []
    missing = batch
    for _ in range(_MAX_ROUNDS):
        region = _draw_regions(shape, aspect, grid, 2 * missing + 4, generator)
        sizes = region.sum(dim=1)
        region = region[(sizes >= counts[1]) & (sizes <= tokens - counts[0])][:missing]
        accepted.append(region)
        missing -= len(region)
        if missing == 0:
            return torch.cat(accepted)
    raise ConfigError(f"no mask with {counts} visible and target tokens found on grid {grid}; raise reject")


def _draw_tubes(grid: Grid, counts: tuple[int, int], batch: int, generator: torch.Generator) -> Tensor:
    """Random places hidden for the whole clip: (batch, N) bool."""
    frames, plane = grid[0], grid[1] * grid[2]
    score = torch.rand((batch, plane), generator=generator, device=generator.device)
    visible = counts[0] // frames
    hidden = score.argsort(dim=1).argsort(dim=1) >= visible
    return hidden.repeat(1, frames)


def _choose(allowed: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Pick `count` allowed ids of every row at random, (batch, N) bool -> (batch, count) ascending."""
    score = torch.rand(allowed.shape, generator=generator, device=allowed.device)
    return score.masked_fill(~allowed, 2.0).topk(count, dim=1, largest=False).indices.sort(dim=1).values


@functools.lru_cache(maxsize=16)
def _distances(grid: Grid) -> Tensor:
    axes = torch.meshgrid(*(torch.arange(float(size)) for size in grid), indexing="ij")
    position = torch.stack(axes, dim=-1).reshape(-1, 3)
    return torch.cdist(position, position)


def context_distance(keep: Tensor, target: Tensor, grid: Grid) -> Tensor:
    """Distance of each visible token to the nearest target: (B, K), (B, M) ids -> (B, K), in tokens, >= 1.

    Distances are Euclidean in the space-time grid (V-JEPA 2.1 weights its context loss by 1 / sqrt of this).
    """
    table = _distances(grid).to(keep.device)
    return table[keep.unsqueeze(2), target.unsqueeze(1)].amin(dim=2)
