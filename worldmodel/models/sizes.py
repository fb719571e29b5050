"""The published encoder sizes by name. Separate from `vit.py`: a table, and how it is applied."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace

from worldmodel.errors import ConfigError
from worldmodel.models.vit import ViTConfig


@dataclass(frozen=True, kw_only=True)
class ViTSize:
    """Width, depth, attention heads and MLP ratio of an encoder."""

    embed_dim: int
    depth: int
    num_heads: int
    mlp_ratio: float = 4.0


SIZES = {
    "tiny": ViTSize(embed_dim=192, depth=12, num_heads=3),
    "small": ViTSize(embed_dim=384, depth=12, num_heads=6),
    "base": ViTSize(embed_dim=768, depth=12, num_heads=12),
    "large": ViTSize(embed_dim=1024, depth=24, num_heads=16),
    "huge": ViTSize(embed_dim=1280, depth=32, num_heads=16),
    "giant": ViTSize(embed_dim=1408, depth=40, num_heads=22, mlp_ratio=48 / 11),
}
"""ViT-Ti/S/B/L/H (arXiv:2010.11929, 2012.12877) and ViT-g (2106.04560) as V-JEPA and V-JEPA 2 build them; V-JEPA 2
gives ViT-g 22 heads instead of 16 (2506.09985)."""


def sized(name: str, base: ViTConfig | None = None) -> ViTConfig:
    """`base` (the defaults when None) at a published size; image, patch, clip and positions stay.

    Args:
        name: One of `SIZES`.
        base: Everything that is not size.

    Raises:
        ConfigError: No such size; names the nearest.
    """
    if name not in SIZES:
        near = difflib.get_close_matches(name, SIZES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"unknown encoder size {name!r}; valid: {', '.join(SIZES)}{hint}")
    size = SIZES[name]
    return replace(
        base or ViTConfig(),
        embed_dim=size.embed_dim,
        depth=size.depth,
        num_heads=size.num_heads,
        mlp_ratio=size.mlp_ratio,
    )
