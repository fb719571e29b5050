"""Vision-transformer parts shared by the encoder and the predictors: tubelet patches, 3-D RoPE, pre-norm blocks.

Kept apart from `encoders.py` because predictors rotate and attend in the same way but embed no pixels. Names follow
timm and the published V-JEPA state dicts (`blocks.0.attn.qkv.weight`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from timm.layers.mlp import Mlp
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from worldmodel.errors import ConfigError

LAYER_NORM_EPS = 1e-6
Rope = tuple[Tensor, Tensor] | Tensor
"""Cosine and signed sine tables (..., d) of `rope_tables`, or the complex turns (..., d / 2) of `rope_turns`."""


@dataclass(kw_only=True)
class ViTConfig:
    """A video vision transformer (V-JEPA, arXiv:2404.08471; RoPE as in V-JEPA 2, arXiv:2506.09985).

    Defaults: tubelet and MLP ratio as published, positions as in V-JEPA 2, sizes for 64-pixel frames on two cores
    (docs/log.md). `sizes.SIZES` holds the published widths and depths.

    Attributes:
        image_size: Height and width of a frame, pixels.
        patch_size: Side of a patch, pixels.
        tubelet_size: Frames in one token.
        num_frames: Frames of a full clip; shorter clips are accepted, longer ones are not. 1, with tubelet_size=1,
            makes an encoder of single images (I-JEPA, arXiv:2301.08243).
        embed_dim: Width D of a token.
        depth: Number of blocks.
        num_heads: Attention heads; the head width must be even and, with RoPE, at least 6.
        mlp_ratio: Hidden width of the MLP over `embed_dim`.
        pos_embed: "rope" (rotary, V-JEPA 2) or "sincos" (fixed, added to the tokens, V-JEPA 1).
        rope_tiled: Reproduce the frequency tiling of the released V-JEPA 2 weights, which is not a true rotation.
            Only for loading those weights.
        taps: Blocks (0-based) whose outputs `VideoViT.encode_frames` concatenates; empty means the final output.
    """

    image_size: int = 64
    patch_size: int = 8
    tubelet_size: int = 2
    num_frames: int = 8
    embed_dim: int = 192
    depth: int = 6
    num_heads: int = 3
    mlp_ratio: float = 4.0
    pos_embed: str = "rope"
    rope_tiled: bool = False
    taps: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        self.taps = tuple(self.taps)  # OmegaConf hands over a list
        for name in ("image_size", "patch_size", "tubelet_size", "num_frames", "embed_dim", "depth", "num_heads"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be >= 1, got {getattr(self, name)}")
        for name, part in (("image_size", "patch_size"), ("num_frames", "tubelet_size"), ("embed_dim", "num_heads")):
            if getattr(self, name) % getattr(self, part):
                raise ConfigError(
                    f"{name}={getattr(self, name)} must be a multiple of {part}={getattr(self, part)}; change either"
                )
        if self.pos_embed not in ("rope", "sincos"):
            raise ConfigError(f"pos_embed must be 'rope' or 'sincos', got {self.pos_embed!r}")
        if self.pos_embed == "rope":
            rope_axis_dim(self.embed_dim // self.num_heads)
        for tap in self.taps:
            if not 0 <= tap < self.depth:
                raise ConfigError(f"taps must lie in [0, depth={self.depth}), got {tap}")

    @property
    def grid(self) -> tuple[int, int, int]:
        """Tokens of a full clip along time, rows and columns."""
        side = self.image_size // self.patch_size
        return self.num_frames // self.tubelet_size, side, side

    @property
    def patch_dim(self) -> int:
        """Numbers in one tubelet: 3 colours x tubelet_size x patch_size^2."""
        return 3 * self.tubelet_size * self.patch_size**2


def patchify(pixels: Tensor, *, tubelet_size: int, patch_size: int) -> Tensor:
    """Cut a clip into tubelets, so that a linear layer on them equals the published Conv3d embedding.

    Args:
        pixels: (B, T, 3, Y, X), any dtype.
        tubelet_size: Frames per token; divides T.
        patch_size: Patch side in pixels; divides Y and X.

    Returns:
        (B, N, 3 * tubelet_size * patch_size^2), same dtype; tokens ordered by time, row, column, and the numbers of
        a token by colour, time, row, column, as in a flattened Conv3d kernel.
    """
    batch, frames, _, height, width = pixels.shape
    t, h, w = frames // tubelet_size, height // patch_size, width // patch_size
    split = pixels.reshape(batch, t, tubelet_size, 3, h, patch_size, w, patch_size)
    return split.permute(0, 1, 4, 6, 3, 2, 5, 7).reshape(batch, t * h * w, -1)


def grid_positions(grid: tuple[int, int, int]) -> Tensor:
    """(N, 3) long (time, row, column) of every token of a (t, h, w) grid, in token order."""
    axes = torch.meshgrid(*(torch.arange(size) for size in grid), indexing="ij")
    return torch.stack(axes, dim=-1).reshape(-1, 3)


def rope_axis_dim(head_dim: int) -> int:
    """Channels of a head rotated along each of the three axes: an even third, the rest is left alone.

    Raises:
        ConfigError: The head is odd or too narrow to give every axis one rotated pair.
    """
    axis_dim = 2 * ((head_dim // 3) // 2)
    if head_dim % 2 or axis_dim < 2:
        raise ConfigError(
            f"RoPE needs an even head width (embed_dim / num_heads) of at least 6, got {head_dim}; "
            "change num_heads or embed_dim"
        )
    return axis_dim


def rope_tables(positions: Tensor, head_dim: int, *, tiled: bool = False) -> tuple[Tensor, Tensor]:
    """Tables of the 3-D rotary embedding (V-JEPA 2), computed once and reused by every block.

    Args:
        positions: (..., 3) time, row, column, in token units; need not be integers.
        head_dim: Width of a head.
        tiled: Repeat the frequencies as [f0..fn, f0..fn], as the released V-JEPA 2 code does although it rotates
            interleaved pairs; False repeats each frequency for both members of its pair (a true rotation).

    Returns:
        cos, sin, each (..., head_dim) float32; sin carries the sign of the rotation (- for the first of a pair).
    """
    axis_dim = rope_axis_dim(head_dim)
    pairs = axis_dim // 2
    frequency = 10000.0 ** (-torch.arange(pairs, dtype=torch.float64, device=positions.device) / pairs)
    angle = positions.to(torch.float64).unsqueeze(-1) * frequency  # (..., 3, pairs)
    angle = torch.cat((angle, angle), dim=-1) if tiled else angle.repeat_interleave(2, dim=-1)
    angle = F.pad(angle.flatten(-2), (0, head_dim - 3 * axis_dim))  # the leftover channels turn by zero
    sign = torch.tensor([-1.0, 1.0], dtype=torch.float64, device=positions.device).repeat(head_dim // 2)
    return angle.cos().float(), (angle.sin() * sign).float()


def rope_turns(tables: tuple[Tensor, Tensor]) -> Tensor:
    """The same rotation as numbers (..., d / 2, 2) = (cos, sin) per pair; `torch.view_as_complex` of it is a `Rope`.

    Multiplying complex numbers takes half the time of the real form, forward and backward. Only for true rotations.
    """
    cos, sin = tables
    return torch.stack((cos[..., 1::2], sin[..., 1::2]), dim=-1)


def apply_rope(x: Tensor, rope: Rope) -> Tensor:
    """Rotate channel pairs of queries or keys.

    Args:
        x: (..., d) of which the tables' shape is a broadcastable match.
        rope: Tables, indexed and unsqueezed to broadcast against x.

    Returns:
        Same shape and dtype as x.
    """
    if isinstance(rope, Tensor):
        pairs = torch.view_as_complex(x.float().view(*x.shape[:-1], -1, 2))
        return torch.view_as_real(pairs * rope).flatten(-2).to(x.dtype)
    cos, sin = rope
    swapped = x.view(*x.shape[:-1], -1, 2).flip(-1).flatten(-2)
    return torch.addcmul(x * cos, swapped, sin).to(x.dtype)


class RopeGrid(nn.Module):
    """Rotary tables of every token of a grid, cached on the device and never stored in checkpoints."""

    table: Tensor
    cos: Tensor
    sin: Tensor

    def __init__(self, grid: tuple[int, int, int], head_dim: int, *, tiled: bool) -> None:
        super().__init__()
        self.tiled = tiled
        tables = rope_tables(grid_positions(grid), head_dim, tiled=tiled)
        if tiled:
            self.register_buffer("cos", tables[0], persistent=False)
            self.register_buffer("sin", tables[1], persistent=False)
        else:
            self.register_buffer("table", rope_turns(tables), persistent=False)

    def forward(self, index: Tensor) -> Rope:
        """Tables of the tokens `index`, (K,) or (B, K) long, to broadcast against (B, K, heads, d)."""
        if self.tiled:
            return self.cos[index].unsqueeze(-2), self.sin[index].unsqueeze(-2)
        return torch.view_as_complex(self.table[index]).unsqueeze(-2)


def sincos_table(positions: Tensor, embed_dim: int) -> Tensor:
    """Fixed sine-cosine embedding of V-JEPA 1 with equal power per axis.

    Args:
        positions: (N, 3) time, row, column, or (N, 2) row, column.
        embed_dim: Width D.

    Returns:
        (N, D) float32: per axis [sin | cos] of width 2 * ceil(D / (2 * axes)), concatenated and cut to D.
    """
    axis_dim = 2 * math.ceil(embed_dim / (2 * positions.shape[-1]))
    frequency = 10000.0 ** (-torch.arange(axis_dim // 2, dtype=torch.float64) / (axis_dim / 2))
    angle = positions.to(torch.float64).unsqueeze(-1) * frequency  # (N, axes, axis_dim / 2)
    return torch.cat((angle.sin(), angle.cos()), dim=-1).flatten(-2)[:, :embed_dim].float()


def position_table(config: ViTConfig, embed_dim: int) -> Tensor:
    """Sine-cosine embedding (N, embed_dim) of a full clip.

    An encoder of single images (num_frames=1, I-JEPA's case) gives all of the width to rows and columns, as published.
    """
    positions = grid_positions(config.grid)
    return sincos_table(positions[:, 1:] if config.num_frames == 1 else positions, embed_dim)


def gather_tokens(x: Tensor, index: Tensor) -> Tensor:
    """Pick tokens: x (B, N, D), index (B, K) long -> (B, K, D)."""
    return x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


class Attention(nn.Module):
    """Multi-head self-attention with optional rotary positions."""

    def __init__(self, embed_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim)
        self.proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, x: Tensor, rope: Rope | None, mask: Tensor | None = None) -> Tensor:
        """Map x (B, K, D) -> (B, K, D).

        Args:
            x: Tokens.
            rope: A `RopeGrid` output for these tokens.
            mask: (K, K) bool, True where a token (row) may attend to another; None for everywhere.
        """
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.num_heads, -1).unbind(2)  # each (B, K, heads, d)
        if rope is not None:
            q, k = apply_rope(q, rope), apply_rope(k, rope)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        projected: Tensor = self.proj(out.transpose(1, 2).reshape(batch, tokens, width))
        return projected


class Block(nn.Module):
    """Pre-norm transformer block: x += attn(LN(x)); x += MLP(LN(x))."""

    def __init__(self, embed_dim: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(embed_dim, eps=LAYER_NORM_EPS)
        self.attn = Attention(embed_dim, num_heads)
        self.norm2 = nn.LayerNorm(embed_dim, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(embed_dim, hidden_features=int(embed_dim * mlp_ratio))

    def forward(self, x: Tensor, rope: Rope | None, mask: Tensor | None = None) -> Tensor:
        """Map x (B, K, D) -> (B, K, D); arguments as for `Attention`."""
        x = x + self.attn(self.norm1(x), rope, mask)
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


def run_blocks(
    blocks: Iterable[nn.Module],
    x: Tensor,
    rope: Rope | None,
    mask: Tensor | None = None,
    *,
    checkpointed: bool = False,
) -> Tensor:
    """Apply blocks in order, x (B, K, D) -> (B, K, D).

    Args:
        blocks: `Block`s.
        x: Tokens.
        rope: As for `Block`.
        mask: As for `Block`.
        checkpointed: Keep only the tokens between blocks for the backward pass and compute the rest again: the same
            gradients for about a third more time and a fraction of the memory (Chen et al., arXiv:1604.06174).
    """
    for block in blocks:
        if checkpointed and torch.is_grad_enabled():
            # no dropout in a block, so there is no random state to keep
            x = checkpoint(block, x, rope, mask, use_reentrant=False, preserve_rng_state=False)
        else:
            x = block(x, rope, mask)
    return x


def init_transformer(module: nn.Module, generator: torch.Generator) -> None:
    """Initialise every linear layer and norm as V-JEPA 2 does, drawing from `generator` only.

    Linear weights ~ N(0, 0.02) truncated at +-2, biases 0, norms 1 / 0; then the two residual outputs of block l
    (1-based) are divided by sqrt(2 l).
    """
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=0.02, generator=generator)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.LayerNorm) and part.elementwise_affine:
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)
    blocks = [part for part in module.modules() if isinstance(part, Block)]
    with torch.no_grad():
        for layer, block in enumerate(blocks, start=1):
            block.attn.proj.weight.div_(math.sqrt(2 * layer))
            block.mlp.fc2.weight.div_(math.sqrt(2 * layer))
