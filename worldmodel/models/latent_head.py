"""From frozen encoder tokens to the latent that is planned in.

Three heads behind one interface: `IdentityHead` keeps one token per patch (as JEPA-WMs do), `NormHead` does so the way
of V-JEPA 2-AC, `CompactHead` turns a frame into one short vector, which makes a replan 10 to 50 times cheaper. Kept
apart from the encoders because a head is trained with the dynamics while the encoder stays frozen.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from worldmodel.errors import ConfigError, DataError
from worldmodel.models.init import seeded_weights

STD_FLOOR_SHARE = 0.05
"""Smallest standard deviation a token channel may be divided by, as a share of the mean over all of them.

A patch of static background hardly varies; dividing by its true deviation would blow up rounding noise.
"""


@dataclass(kw_only=True)
class IdentityHeadConfig:
    """Patch latent: standardised tokens, optionally narrowed.

    Attributes:
        latent_dim: Width after a fixed random orthogonal projection per token, which keeps distances roughly; None
            keeps the tokens as they are. Nothing in this head is trained, so the latent cannot collapse.
    """

    latent_dim: int | None = None

    def __post_init__(self) -> None:
        if self.latent_dim is not None and self.latent_dim < 1:
            raise ConfigError(f"latent_dim must be >= 1 or None, got {self.latent_dim}")


@dataclass(kw_only=True)
class CompactHeadConfig:
    """Compact latent: one vector per frame.

    Attributes:
        token_dim: Width of each token after the shared linear map, before flattening.
        hidden_dim: Width of the hidden layer of the MLP.
        latent_dim: Width of the latent.
    """

    token_dim: int = 48
    hidden_dim: int = 512
    latent_dim: int = 128

    def __post_init__(self) -> None:
        for name in ("token_dim", "hidden_dim", "latent_dim"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be >= 1, got {getattr(self, name)}")


@dataclass(kw_only=True)
class GridHeadConfig(CompactHeadConfig):
    """Compact latent whose tokens look at their neighbours before they are flattened.

    Attributes:
        blocks: Residual 3 x 3 convolutions over the grid of tokens, >= 1.
    """

    blocks: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.blocks < 1:
            raise ConfigError(f"blocks must be >= 1, got {self.blocks}; a CompactHeadConfig has none")


@dataclass(kw_only=True)
class NormHeadConfig:
    """Patch latent of V-JEPA 2-AC: layer-normed tokens."""


class TokenStandardiser(nn.Module):
    """Zero mean and unit deviation for every token position and channel, from statistics of the training frames."""

    mean: Tensor
    std: Tensor
    fitted: Tensor

    def __init__(self, num_tokens: int, embed_dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(num_tokens, embed_dim))
        self.register_buffer("std", torch.ones(num_tokens, embed_dim))
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))

    @torch.no_grad()
    def fit(self, blocks: Iterable[Tensor]) -> None:
        """Set the statistics from blocks of frames (F, N, D), read once.

        Raises:
            DataError: There are fewer than two frames, or a frame is not finite.
        """
        count = 0
        shift: Tensor | None = None
        total = torch.zeros(self.mean.shape, dtype=torch.float64)
        square = torch.zeros(self.mean.shape, dtype=torch.float64)
        for block in blocks:
            frames = block.detach().to(device="cpu", dtype=torch.float32)
            if frames.shape[1:] != self.mean.shape:
                expected = tuple(self.mean.shape)
                raise DataError(f"features must be (F, N, D) with (N, D) = {expected}, got {tuple(frames.shape)}")
            # Sums of deviations from the first frame: plain sums of squares cancel where the background is static.
            shift = frames[0] if shift is None else shift
            centred = frames - shift
            total += centred.sum(0, dtype=torch.float64)
            square += centred.square().sum(0, dtype=torch.float64)
            count += len(frames)
        if shift is None or count < 2:
            raise DataError(f"standardisation needs at least 2 frames, got {count}")
        if not torch.isfinite(square).all():
            raise DataError("features hold NaN or infinite values; rebuild the feature cache")
        mean = total / count
        std = (square / count - mean.square()).clamp_min(0).sqrt()
        floor = (STD_FLOOR_SHARE * std.mean()).clamp_min(1e-6)
        self.mean.copy_(shift + mean)
        self.std.copy_(std.clamp_min(floor))
        self.fitted.fill_(True)

    def forward(self, tokens: Tensor) -> Tensor:
        """Standardise tokens (..., N, D)."""
        scale = self.std.reciprocal()
        return torch.addcmul(-self.mean * scale, tokens, scale)  # one pass over the tokens, which are large


class LatentHead(nn.Module, ABC):
    """Frozen tokens (B, T, N, D) to planning latents (B, T, N', D'), frame by frame.

    Attributes:
        num_tokens: N', tokens per frame of the latent.
        latent_dim: D', their width.
        standardise: Statistics of the incoming tokens; fit them before training.
    """

    num_tokens: int
    latent_dim: int
    standardise: TokenStandardiser

    @abstractmethod
    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (B, T, N, D) to latents (B, T, N', D')."""


class IdentityHead(LatentHead):
    """Standardised tokens, their channels projected when the config asks for it.

    Args:
        config: Width of the projection.
        num_tokens: Tokens per frame the encoder gives.
        embed_dim: Their width.

    Raises:
        ConfigError: The projection would widen the tokens.
    """

    def __init__(self, config: IdentityHeadConfig, *, num_tokens: int, embed_dim: int) -> None:
        super().__init__()
        self.config = config
        self.num_tokens = num_tokens
        self.latent_dim = embed_dim if config.latent_dim is None else config.latent_dim
        self.standardise = TokenStandardiser(num_tokens, embed_dim)
        if self.latent_dim > embed_dim:
            raise ConfigError(f"latent_dim={self.latent_dim} must be at most the token width {embed_dim}")
        self.project: nn.Module = nn.Identity()
        if config.latent_dim is not None:
            self.project = nn.Linear(embed_dim, self.latent_dim, bias=False).requires_grad_(False)
            nn.init.orthogonal_(self.project.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        """See `LatentHead.forward`."""
        projected: Tensor = self.project(self.standardise(tokens))
        return projected


class NormHead(LatentHead):
    """Layer norm of every token, without statistics and without weights (arXiv:2506.09985, section 3).

    Args:
        config: Nothing to choose.
        num_tokens: Tokens per frame the encoder gives.
        embed_dim: Their width.
    """

    def __init__(self, config: NormHeadConfig, *, num_tokens: int, embed_dim: int) -> None:
        super().__init__()
        self.config = config
        self.num_tokens, self.latent_dim = num_tokens, embed_dim
        self.standardise = TokenStandardiser(num_tokens, embed_dim)  # stays the identity

    def forward(self, tokens: Tensor) -> Tensor:
        """See `LatentHead.forward`."""
        return nn.functional.layer_norm(self.standardise(tokens), (self.latent_dim,))


class CompactHead(LatentHead):
    """Linear map per token, flatten, two-layer MLP: one vector per frame (N' = 1).

    Flattening, not pooling: where a token sits is what tells where the object is.

    Args:
        config: Widths.
        num_tokens: Tokens per frame the encoder gives.
        embed_dim: Their width.
    """

    def __init__(self, config: CompactHeadConfig, *, num_tokens: int, embed_dim: int) -> None:
        super().__init__()
        self.config = config
        self.num_tokens = 1
        self.latent_dim = config.latent_dim
        self.standardise = TokenStandardiser(num_tokens, embed_dim)
        self.token = nn.Linear(embed_dim, config.token_dim)
        self.hidden = nn.Linear(num_tokens * config.token_dim, config.hidden_dim)
        self.norm = nn.LayerNorm(config.hidden_dim)
        self.out = nn.Linear(config.hidden_dim, config.latent_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """See `LatentHead.forward`."""
        narrow = self.token(self.standardise(tokens))
        hidden = nn.functional.gelu(self.norm(self.hidden(narrow.flatten(-2))))
        latent: Tensor = self.out(hidden)
        return latent.unsqueeze(-2)


class GridHead(LatentHead):
    """`CompactHead` with residual 3 x 3 convolutions over the grid of tokens before it flattens them.

    The same weights at every place: what was learned of a block here is known of a block there, which counts where few
    places have been seen (docs/decisions/0019-grid-head.md).

    Args:
        config: Widths and number of convolutions.
        num_tokens: Tokens per frame the encoder gives, those of a square grid, row by row.
        embed_dim: Their width.

    Raises:
        ConfigError: The tokens are not those of a square grid.
    """

    def __init__(self, config: GridHeadConfig, *, num_tokens: int, embed_dim: int) -> None:
        super().__init__()
        self.config = config
        self.num_tokens = 1
        self.latent_dim = config.latent_dim
        self.side = math.isqrt(num_tokens)
        if self.side**2 != num_tokens:
            raise ConfigError(f"convolutions need a square grid of tokens, got {num_tokens}; set grid_blocks=0")
        width = config.token_dim
        self.standardise = TokenStandardiser(num_tokens, embed_dim)
        self.token = nn.Linear(embed_dim, width)
        self.blocks = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(config.blocks))
        self.hidden = nn.Linear(num_tokens * width, config.hidden_dim)
        self.norm = nn.LayerNorm(config.hidden_dim)
        self.out = nn.Linear(config.hidden_dim, config.latent_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """See `LatentHead.forward`."""
        narrow = self.token(self.standardise(tokens))
        grid = narrow.flatten(0, -3).unflatten(1, (self.side, self.side)).permute(0, 3, 1, 2)
        for block in self.blocks:
            grid = grid + nn.functional.gelu(block(grid))
        flat = grid.permute(0, 2, 3, 1).reshape(*narrow.shape[:-2], -1)
        latent: Tensor = self.out(nn.functional.gelu(self.norm(self.hidden(flat))))
        return latent.unsqueeze(-2)


HeadConfig = CompactHeadConfig | IdentityHeadConfig | NormHeadConfig


def build_head(config: HeadConfig, *, num_tokens: int, embed_dim: int, seed: int = 0) -> LatentHead:
    """Head that belongs to `config`, for an encoder with `num_tokens` tokens of width `embed_dim`.

    Args:
        config: Which head, and its sizes.
        num_tokens: Tokens per frame the encoder gives.
        embed_dim: Their width.
        seed: Seed of the initial weights.
    """
    with seeded_weights(seed):
        if isinstance(config, GridHeadConfig):
            return GridHead(config, num_tokens=num_tokens, embed_dim=embed_dim)
        if isinstance(config, CompactHeadConfig):
            return CompactHead(config, num_tokens=num_tokens, embed_dim=embed_dim)
        if isinstance(config, NormHeadConfig):
            return NormHead(config, num_tokens=num_tokens, embed_dim=embed_dim)
        return IdentityHead(config, num_tokens=num_tokens, embed_dim=embed_dim)
