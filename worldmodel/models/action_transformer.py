"""Action-conditioned transformer over patch latents, with a key/value cache for rollouts.

After the AdaLN predictor of JEPA-WMs (arXiv 2512.24497): the action enters only through the modulation of every
block. Deviations: a band of `window` frames instead of full causality, so that training and rollout see the same
past, and a residual output (the untrained model predicts "nothing changes").
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from worldmodel.errors import ConfigError
from worldmodel.models.ac_dynamics import ACDynamics, ACDynamicsConfig
from worldmodel.models.action_predictor import ActionPredictor, ResidualMLPConfig, ResidualMLPPredictor
from worldmodel.models.frame_predictor import FramePredictor, FramePredictorConfig
from worldmodel.models.init import seeded_weights
from worldmodel.models.vit import Rope, apply_rope, rope_axis_dim, rope_tables, rope_turns

Cache = list[tuple[Tensor, Tensor]]
"""Per block: keys and values (R, heads, frames * N, head_dim) of the frames already seen."""


@dataclass(kw_only=True)
class TransformerPredictorConfig:
    """Banded-causal transformer on patch tokens.

    Attributes:
        embed_dim: Width of the tokens inside.
        depth: Blocks.
        num_heads: Attention heads; the head width must be even and at least 6 (three rotated axes).
        window: Frames a token may attend to, its own included.
        mlp_ratio: Hidden width of the MLP over `embed_dim`.
    """

    embed_dim: int = 128
    depth: int = 4
    num_heads: int = 4
    window: int = 3
    mlp_ratio: float = 4.0

    def __post_init__(self) -> None:
        for name in ("embed_dim", "depth", "num_heads", "window"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be >= 1, got {getattr(self, name)}")
        if self.embed_dim % self.num_heads:
            raise ConfigError(f"embed_dim={self.embed_dim} must be a multiple of num_heads={self.num_heads}")
        rope_axis_dim(self.embed_dim // self.num_heads)


class ModulatedBlock(nn.Module):
    """Transformer block whose two norms and gates are set by the action of the frame."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm_attention = nn.LayerNorm(dim, eps=1e-6)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.project = nn.Linear(dim, dim)
        self.norm_mlp = nn.LayerNorm(dim, eps=1e-6)
        self.up = nn.Linear(dim, int(dim * mlp_ratio))
        self.down = nn.Linear(int(dim * mlp_ratio), dim)
        self.modulation = nn.Linear(dim, 6 * dim)
        # Ten times timm's usual .02, as JEPA-WMs do: at .02 the action is all but invisible at the start.
        nn.init.trunc_normal_(self.modulation.weight, std=0.2)
        nn.init.zeros_(self.modulation.bias)

    def forward(
        self, x: Tensor, condition: Tensor, rope: Rope, mask: Tensor | None, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Update tokens (R, T, N, E).

        Args:
            x: (R, T, N, E) tokens of the new frames.
            condition: (R, T, E) embedding of the action taken at each of them.
            rope: Rotations of the T * N new tokens.
            mask: (T * N, past + T * N) True where a query may attend, or None for everywhere.
            past: Keys and values of earlier frames, or None.

        Returns:
            The tokens, and keys and values of earlier and new frames together.
        """
        rows, frames, tokens, dim = x.shape
        terms = self.modulation(functional.silu(condition)).unsqueeze(2).chunk(6, dim=-1)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = terms
        h = self.norm_attention(x) * (1 + scale_a) + shift_a
        qkv = self.qkv(h).view(rows, frames * tokens, 3, self.num_heads, dim // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (R, heads, T * N, head_dim)
        q, k = apply_rope(q, rope), apply_rope(k, rope)
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        attended = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + gate_a * self.project(attended.transpose(1, 2).reshape(rows, frames, tokens, dim))
        h = self.norm_mlp(x) * (1 + scale_m) + shift_m
        x = x + gate_m * self.down(functional.gelu(self.up(h)))
        return x, (k, v)


class TransformerPredictor(ActionPredictor):
    """Predicts all patch tokens of the next frame at once.

    Args:
        config: Sizes.
        num_tokens: N; a square number is read as a square grid, anything else as one row.
        latent_dim: D.
        action_dim: A.
    """

    def __init__(
        self, config: TransformerPredictorConfig, *, num_tokens: int, latent_dim: int, action_dim: int
    ) -> None:
        super().__init__()
        self.config = config
        self.window = config.window
        self.num_tokens = num_tokens
        self.latent_dim = latent_dim
        self.action_dim = action_dim
        side = math.isqrt(num_tokens)
        self.grid_width = side if side * side == num_tokens else num_tokens
        self.embed = nn.Linear(latent_dim, config.embed_dim)
        self.action = nn.Linear(action_dim, config.embed_dim)
        self.blocks = nn.ModuleList(
            ModulatedBlock(config.embed_dim, config.num_heads, config.mlp_ratio) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.embed_dim, eps=1e-6)
        self.out = nn.Linear(config.embed_dim, latent_dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    @property
    def candidate_bytes(self) -> int:
        """Keys and values of a window in every block, twice while they are joined, and one block's intermediates."""
        config = self.config
        cached = 2 * 2 * config.depth * config.window * config.embed_dim
        inside = (8 + 2 * config.mlp_ratio) * config.embed_dim
        return int(self.num_tokens * (cached + inside) * self.embed.weight.element_size())

    def _rope(self, first: int, frames: int, device: torch.device) -> Rope:
        """Tables of frames starting at true time `first`; one row per token."""
        time = torch.arange(first, first + frames, device=device).repeat_interleave(self.num_tokens)
        token = torch.arange(self.num_tokens, device=device).repeat(frames)
        positions = torch.stack([time, token // self.grid_width, token % self.grid_width], dim=1)
        cos, sin = rope_tables(positions, self.config.embed_dim // self.config.num_heads)
        return torch.view_as_complex(rope_turns((cos, sin)))

    def _band(self, first: int, frames: int, past: int, device: torch.device) -> Tensor | None:
        """Mask (frames * N, (past + frames) * N) of the band, or None when all of it may be seen."""
        if frames == 1 and past < self.window:
            return None
        query = torch.arange(first, first + frames, device=device).repeat_interleave(self.num_tokens)
        key = torch.arange(first - past, first + frames, device=device).repeat_interleave(self.num_tokens)
        age = query[:, None] - key[None, :]
        return (age >= 0) & (age < self.window)

    def _run(self, x: Tensor, actions: Tensor, first: int, cache: Cache | None) -> tuple[Tensor, Cache]:
        """Change predicted for new frames of embedded tokens (R, T, N, E), the first of them at time `first`."""
        frames = x.shape[1]
        past = 0 if cache is None else cache[0][0].shape[2] // self.num_tokens
        rope = self._rope(first, frames, x.device)
        mask = self._band(first, frames, past, x.device)
        condition = self.action(actions)
        seen: Cache = []
        for index, block in enumerate(self.blocks):
            x, pair = block(x, condition, rope, mask, None if cache is None else cache[index])
            seen.append(pair)
        change: Tensor = self.out(self.norm(x))
        return change, seen

    def _recent(self, cache: Cache) -> Cache | None:
        """Keys and values of the frames the next one may still attend to."""
        if self.window == 1:
            return None
        keep = (self.window - 1) * self.num_tokens
        return [(k[:, :, -keep:], v[:, :, -keep:]) for k, v in cache]

    def forward(self, z: Tensor, actions: Tensor) -> Tensor:
        """See `ActionPredictor.forward`. Trains every prefix length: frame t has min(t + 1, window) frames to see."""
        change, _ = self._run(self.embed(z), actions, 0, None)
        return z + change

    def rollout(self, context_z: Tensor, context_actions: Tensor, actions: Tensor) -> Tensor:
        """See `ActionPredictor.rollout`.

        Frames before the last are encoded once for all candidates; the last one already depends on the first action
        through the modulation, so it is the first frame computed per candidate.
        """
        self.check_rollout(context_z, context_actions, actions)
        problems, candidates, horizon, _ = actions.shape
        rows, last = problems * candidates, context_z.shape[1] - 1
        cache: Cache | None = None
        if last > 0:
            _, seen = self._run(self.embed(context_z[:, :last]), context_actions, 0, None)
            recent = self._recent(seen)
            cache = recent and [(_per_candidate(k, candidates), _per_candidate(v, candidates)) for k, v in recent]
        x = _per_candidate(self.embed(context_z[:, last:]), candidates)
        z = _per_candidate(context_z[:, last:], candidates)
        flat = actions.reshape(rows, horizon, 1, -1)
        steps = []
        for step in range(horizon):
            change, seen = self._run(x, flat[:, step], last + step, cache)
            z = z + change
            steps.append(z)
            if step + 1 < horizon:
                cache, x = self._recent(seen), self.embed(z)
        return torch.cat(steps, dim=1).view(problems, candidates, horizon, self.num_tokens, self.latent_dim)


def _per_candidate(x: Tensor, candidates: int) -> Tensor:
    """Repeat each problem's rows: (B, ...) to (B * S, ...)."""
    return x.unsqueeze(1).expand(-1, candidates, *x.shape[1:]).flatten(0, 1)


PredictorConfig = ResidualMLPConfig | TransformerPredictorConfig | ACDynamicsConfig | FramePredictorConfig


def build_predictor(
    config: PredictorConfig, *, num_tokens: int, latent_dim: int, action_dim: int, seed: int = 0
) -> ActionPredictor:
    """Predictor that belongs to `config`, for latents of `num_tokens` tokens of width `latent_dim`.

    Args:
        config: Which predictor, and its sizes.
        num_tokens: N.
        latent_dim: D.
        action_dim: A.
        seed: Seed of the initial weights.
    """
    with seeded_weights(seed):
        if isinstance(config, ResidualMLPConfig):
            return ResidualMLPPredictor(config, num_tokens=num_tokens, latent_dim=latent_dim, action_dim=action_dim)
        if isinstance(config, ACDynamicsConfig):
            return ACDynamics(config, num_tokens=num_tokens, latent_dim=latent_dim, action_dim=action_dim, seed=seed)
        if isinstance(config, FramePredictorConfig):
            return FramePredictor(config, num_tokens=num_tokens, latent_dim=latent_dim, action_dim=action_dim)
        return TransformerPredictor(config, num_tokens=num_tokens, latent_dim=latent_dim, action_dim=action_dim)
