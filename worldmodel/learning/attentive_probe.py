"""The attentive probe: learned queries that read the tokens of a clip by cross-attention, and a linear layer.

What frozen evaluation trains, whatever the encoder was trained for. Separate from `probes.py`, whose ridge probes read
single frames in closed form, and from `probe_training.py`, which trains it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from timm.layers.mlp import Mlp
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel.errors import ConfigError
from worldmodel.models.encoders import Encoder, VideoViT
from worldmodel.models.init import seeded_weights
from worldmodel.models.vit import LAYER_NORM_EPS, Block, grid_positions, init_transformer, run_blocks, sincos_table

Grid = tuple[int, int, int]
"""Tokens of a clip along time, rows and columns."""


@dataclass(kw_only=True)
class AttentiveProbeConfig:
    """Probe of V-JEPA (arXiv:2404.08471, section 4.1): one cross-attention block. V-JEPA 2 (2506.09985) takes four.

    Attributes:
        num_blocks: Blocks, the last of which is the cross-attention; the others are self-attention over the tokens.
        num_heads: Attention heads; must divide the width of the encoder.
        mlp_ratio: Hidden width of the MLPs over that of the encoder.
        positions: Add fixed sine-cosine positions to the tokens. The published probe has none: it relies on encoders
            that write the place of a patch into its token, which small ones with rotary positions hardly do, and image
            encoders cannot know the time of a frame.
    """

    num_blocks: int = 1
    num_heads: int = 4
    mlp_ratio: float = 4.0
    positions: bool = True

    def __post_init__(self) -> None:
        for name in ("num_blocks", "num_heads"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be >= 1, got {getattr(self, name)}")
        if not self.mlp_ratio > 0:
            raise ConfigError(f"mlp_ratio must be > 0, got {self.mlp_ratio}")


class CrossAttention(nn.Module):
    """Queries read tokens. With few queries the keys need not be computed: see `forward`.

    The published block holds an output projection that its forward pass never applies; it is left out.

    Args:
        embed_dim: Width D.
        num_heads: Heads; divides D.
    """

    def __init__(self, embed_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(embed_dim, embed_dim)
        self.kv = nn.Linear(embed_dim, 2 * embed_dim)

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        """Read the tokens.

        A score is q . (W x + b), linear in the token x, and the bias shifts all scores of a query alike, which the
        softmax ignores. So W is applied to the queries instead of to every token, and to the weighted mean of the
        tokens instead of to each: the same numbers for a fraction of the arithmetic.

        Args:
            queries: (Q, D), the same for every clip.
            tokens: (B, K, D).

        Returns:
            (B, Q, D).
        """
        count, width = queries.shape
        heads, head_dim = self.num_heads, width // self.num_heads
        key, value = self.kv.weight.view(2, heads, head_dim, width)
        q = self.q(queries).view(count, heads, head_dim)
        turned = torch.einsum("qhd,hdc->qhc", q, key).reshape(count * heads, width) * head_dim**-0.5
        weights = F.softmax(tokens @ turned.t(), dim=1)  # (B, K, Q * heads)
        mean = (weights.transpose(1, 2) @ tokens).view(-1, count, heads, width)
        out = torch.einsum("bqhc,hdc->bqhd", mean, value) + self.kv.bias.view(2, heads, head_dim)[1]
        return out.reshape(-1, count, width)


class AttentiveProbe(nn.Module):
    """Tokens of a clip to outputs, one set per query.

    q <- q + attention(q, LN(tokens)), q <- q + MLP(LN(q)), then a linear layer; the queries are not normalised before
    the attention, as published. Deviations: tokens are first layer-normed without affine, so that encoders of any
    scale are read alike, and positions are added (`AttentiveProbeConfig.positions`).

    Args:
        config: Sizes.
        grid: Tokens of a clip along time, rows and columns.
        embed_dim: Width D of a token.
        num_queries: Queries Q: one for a label of the clip, one per frame for labels of frames.
        num_outputs: Outputs O of each.
        seed: Seed of the initial weights.

    Raises:
        ConfigError: The heads do not divide the width.
    """

    positions: Tensor

    def __init__(
        self,
        config: AttentiveProbeConfig,
        *,
        grid: Grid,
        embed_dim: int,
        num_queries: int,
        num_outputs: int,
        seed: int,
    ) -> None:
        super().__init__()
        if embed_dim % config.num_heads:
            raise ConfigError(
                f"the probe's num_heads={config.num_heads} must divide the width {embed_dim} of the encoder; choose "
                f"another probe.num_heads"
            )
        self.embed_dim = embed_dim
        hidden = int(config.mlp_ratio * embed_dim)
        with seeded_weights(seed):
            self.blocks = nn.ModuleList(
                Block(embed_dim, config.num_heads, config.mlp_ratio) for _ in range(config.num_blocks - 1)
            )
            self.queries = nn.Parameter(torch.empty(num_queries, embed_dim))
            self.norm1 = nn.LayerNorm(embed_dim, eps=LAYER_NORM_EPS)
            self.attention = CrossAttention(embed_dim, config.num_heads)
            self.norm2 = nn.LayerNorm(embed_dim, eps=LAYER_NORM_EPS)
            self.mlp = Mlp(embed_dim, hidden_features=hidden)
            self.linear = nn.Linear(embed_dim, num_outputs)
        generator = torch.Generator().manual_seed(seed)
        init_transformer(self, generator)
        nn.init.trunc_normal_(self.queries, std=0.02, generator=generator)
        with torch.no_grad():
            self.mlp.fc2.weight.div_(math.sqrt(2 * config.num_blocks))
        table = sincos_table(grid_positions(grid), embed_dim) if config.positions else torch.zeros(1, embed_dim)
        self.register_buffer("positions", table, persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Read tokens (B, K, D) ordered by time, row, column -> (B, Q, O)."""
        x = F.layer_norm(tokens, (self.embed_dim,), eps=LAYER_NORM_EPS) + self.positions
        x = run_blocks(self.blocks, x, None)
        q = self.queries + self.attention(self.queries, self.norm1(x))
        q = q + self.mlp(self.norm2(q))
        out: Tensor = self.linear(q)
        return out


def clip_tokens(encoder: Encoder, pixels: Tensor) -> Tensor:
    """Encode clips in the way an encoder was made for.

    A video encoder sees a clip as a clip; one made for shorter clips sees segments, whose tokens are put one after
    another (as V-JEPA does with several segments). Image encoders, and every encoder given single frames, encode
    frame by frame.

    Args:
        encoder: Any encoder; gradients pass where it is trained.
        pixels: (B, T, Y, X, 3) uint8.

    Returns:
        (B, K, D) with K = the product of `token_grid`.

    Raises:
        ConfigError: The clip does not divide into tubelets.
    """
    grid = token_grid(encoder, pixels.shape[1])
    if not isinstance(encoder, VideoViT) or pixels.shape[1] == 1:
        return encoder.encode_frames(pixels).flatten(1, 2)
    clip = pixels.permute(0, 1, 4, 2, 3).float() / 255.0
    parts = [
        encoder.forward_levels(encoder.patchify(part), encoder.config.taps)
        for part in clip.split(encoder.config.num_frames, dim=1)
    ]
    tokens = torch.cat(parts, dim=1)
    assert tokens.shape[1] == math.prod(grid)
    return tokens


def token_grid(encoder: Encoder, num_frames: int) -> Grid:
    """Tokens of a clip of `num_frames` frames along time, rows and columns; in one column where they form no square.

    Raises:
        ConfigError: The clip does not divide into the encoder's tubelets.
    """
    side = math.isqrt(encoder.num_tokens)
    rows, columns = (side, side) if side * side == encoder.num_tokens else (encoder.num_tokens, 1)
    if not isinstance(encoder, VideoViT) or num_frames == 1:
        return num_frames, rows, columns
    tubelet = encoder.config.tubelet_size
    if num_frames % tubelet:
        raise ConfigError(f"clips of {num_frames} frames do not divide into the encoder's tubelets of {tubelet}")
    return num_frames // tubelet, rows, columns
