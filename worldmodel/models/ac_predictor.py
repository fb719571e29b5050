"""The predictor of V-JEPA 2-AC (arXiv:2506.09985, section 3): patch tokens under 7-DoF actions and robot states.

Kept apart from `action_transformer.py`: actions and states are tokens here, not modulation, the whole past is seen
instead of a window, and states are carried along by the kinematics (`pose.py`). Names follow the released state dict.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel.errors import ConfigError
from worldmodel.models.init import seeded_weights
from worldmodel.models.pose import POSE_DIM, propagate_pose
from worldmodel.models.vit import LAYER_NORM_EPS, Block, init_transformer, rope_axis_dim, rope_tables, run_blocks

EXTRINSICS_DIM = 6


@dataclass(kw_only=True)
class ACPredictorConfig:
    """Sizes; the defaults are those of the released model on top of ViT-g (305.22 M parameters).

    Attributes:
        latent_dim: Width D of the encoder's tokens.
        embed_dim: Width of the tokens inside.
        depth: Blocks.
        num_heads: Attention heads.
        mlp_ratio: Hidden width of the MLP over `embed_dim`.
        grid_size: Patches per side that row and column positions are scaled to, whatever the image.
        uses_extrinsics: Add a token with the camera's pose to every step. The released model was trained without.
        rope_tiled: Frequency tiling of the released weights; see `ViTConfig`.
    """

    latent_dim: int = 1408
    embed_dim: int = 1024
    depth: int = 24
    num_heads: int = 16
    mlp_ratio: float = 4.0
    grid_size: int = 16
    uses_extrinsics: bool = False
    rope_tiled: bool = True

    def __post_init__(self) -> None:
        for name in ("latent_dim", "embed_dim", "depth", "num_heads", "grid_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be >= 1, got {getattr(self, name)}")
        if self.embed_dim % self.num_heads:
            raise ConfigError(f"embed_dim={self.embed_dim} must be a multiple of num_heads={self.num_heads}")
        rope_axis_dim(self.embed_dim // self.num_heads)


class ACPredictor(nn.Module):
    """Block-causal transformer over the steps [action, state, (extrinsics), patches] of a trajectory.

    The tokens of a step attend to one another and to all earlier steps. Patches are rotated by time, row and column,
    the tokens in front of them by time alone. What comes out at the patches of step t predicts those of step t + 1.

    Deviation: the mask is built for the steps at hand instead of stored for the longest clip (4.4 GB in the published
    training configuration).

    Args:
        config: Sizes.
        seed: Seed of the initial weights.

    Attributes:
        checkpoint_activations: Trade time for memory in training; see `run_blocks`.
    """

    def __init__(self, config: ACPredictorConfig, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.checkpoint_activations = False
        width = config.embed_dim
        with seeded_weights(seed):
            self.predictor_embed = nn.Linear(config.latent_dim, width)
            self.action_encoder = nn.Linear(POSE_DIM, width)
            self.state_encoder = nn.Linear(POSE_DIM, width)
            self.extrinsics_encoder = nn.Linear(EXTRINSICS_DIM, width)  # released with the weights even where unused
            self.predictor_blocks = nn.ModuleList(
                Block(width, config.num_heads, config.mlp_ratio) for _ in range(config.depth)
            )
            self.predictor_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
            self.predictor_proj = nn.Linear(width, config.latent_dim)
        init_transformer(self, torch.Generator().manual_seed(seed))

    @property
    def num_conditions(self) -> int:
        """Tokens in front of the patches of a step."""
        return 3 if self.config.uses_extrinsics else 2

    def forward(self, z: Tensor, actions: Tensor, states: Tensor, extrinsics: Tensor | None = None) -> Tensor:
        """Predict the next frame of every step from the true frames up to it.

        Args:
            z: (B, T, N, D) layer-normed tokens of single frames; N is a square number.
            actions: (B, T, 7) change of the pose from step t to t + 1: metres, radians, gripper.
            states: (B, T, 7) pose at step t; see `pose.py`.
            extrinsics: (B, T, 6) pose of the camera, exactly when the config uses it.

        Returns:
            (B, T, N, D); entry t predicts z[:, t + 1], before any layer norm.

        Raises:
            ConfigError: The shapes do not belong together.
        """
        self._check(z, actions, states, extrinsics)
        batch, steps, tokens, _ = z.shape
        front = [self.action_encoder(actions), self.state_encoder(states)]
        if extrinsics is not None:
            front.append(self.extrinsics_encoder(extrinsics))
        x = torch.cat([torch.stack(front, dim=2), self.predictor_embed(z)], dim=2)  # (B, T, conditions + N, E)
        per_step = x.shape[2]
        mask = block_causal_mask(steps, per_step, z.device) if steps > 1 else None
        rope = self._rope(steps, tokens, z.device)
        flat = run_blocks(self.predictor_blocks, x.flatten(1, 2), rope, mask, checkpointed=self.checkpoint_activations)
        patches = flat.view(batch, steps, per_step, -1)[:, :, per_step - tokens :]
        out: Tensor = self.predictor_proj(self.predictor_norm(patches))
        return out

    def rollout(self, context_z: Tensor, states: Tensor, past_actions: Tensor, actions: Tensor) -> Tensor:
        """Imagine S futures per problem; predictions are layer-normed and states follow the kinematics.

        Args:
            context_z: (B, T0, N, D) layer-normed tokens seen, T0 >= 1.
            states: (B, T0, 7) poses at these frames.
            past_actions: (B, T0 - 1, 7) actions between them.
            actions: (B, S, H, 7) candidates; the first is taken at the last frame seen.

        Returns:
            (B, S, H, N, D) layer-normed predictions.

        Raises:
            ConfigError: The shapes do not belong together.
        """
        if actions.ndim != 4 or past_actions.shape[1] != context_z.shape[1] - 1:
            raise ConfigError(
                f"need actions (B, S, H, 7) and T0 - 1 past actions for T0 = {context_z.shape[1]} frames, got "
                f"{tuple(actions.shape)} and {tuple(past_actions.shape)}"
            )
        problems, candidates, horizon, _ = actions.shape
        z, pose, taken = (_per_candidate(part, candidates) for part in (context_z, states, past_actions))
        future = actions.flatten(0, 1)
        seen = z.shape[1]
        for step in range(horizon):
            taken = torch.cat([taken, future[:, step : step + 1]], dim=1)
            z = torch.cat([z, normalise_tokens(self(z, taken, pose)[:, -1:])], dim=1)
            pose = torch.cat([pose, propagate_pose(pose[:, -1:], taken[:, -1:])], dim=1)
        return z[:, seen:].reshape(problems, candidates, horizon, *z.shape[2:])

    def _rope(self, steps: int, tokens: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Tables (T * (conditions + N), 1, head_dim) of all tokens."""
        side = math.isqrt(tokens)
        scale = self.config.grid_size / side
        place = torch.zeros(self.num_conditions + tokens, 2, dtype=torch.float64, device=device)
        token = torch.arange(tokens, device=device)
        place[self.num_conditions :] = torch.stack([token // side, token % side], dim=1) * scale
        time = torch.arange(steps, dtype=torch.float64, device=device).repeat_interleave(len(place))
        positions = torch.cat([time.unsqueeze(1), place.repeat(steps, 1)], dim=1)
        head_dim = self.config.embed_dim // self.config.num_heads
        cos, sin = rope_tables(positions, head_dim, tiled=self.config.rope_tiled)
        return cos.unsqueeze(1), sin.unsqueeze(1)

    def _check(self, z: Tensor, actions: Tensor, states: Tensor, extrinsics: Tensor | None) -> None:
        if z.ndim != 4 or z.shape[3] != self.config.latent_dim or math.isqrt(z.shape[2]) ** 2 != z.shape[2]:
            raise ConfigError(
                f"tokens must be (B, T, N, {self.config.latent_dim}) with N a square number, got {tuple(z.shape)}"
            )
        if (extrinsics is not None) != self.config.uses_extrinsics:
            raise ConfigError(f"extrinsics must be given exactly when uses_extrinsics={self.config.uses_extrinsics}")
        named = {"actions": (actions, POSE_DIM), "states": (states, POSE_DIM)}
        if extrinsics is not None:
            named["extrinsics"] = (extrinsics, EXTRINSICS_DIM)
        for name, (value, width) in named.items():
            expected = (*z.shape[:2], width)
            if tuple(value.shape) != expected:
                raise ConfigError(f"{name} must be {expected}, got {tuple(value.shape)}")


def block_causal_mask(steps: int, per_step: int, device: torch.device | None = None) -> Tensor:
    """(T * K, T * K) bool, True where a token (row) may attend: everything in its own step and in earlier ones."""
    step = torch.arange(steps, device=device).repeat_interleave(per_step)
    return step[:, None] >= step[None, :]


def normalise_tokens(z: Tensor) -> Tensor:
    """Layer norm without affine over the width: the space in which V-JEPA 2-AC predicts and compares."""
    return F.layer_norm(z, (z.shape[-1],))


def _per_candidate(x: Tensor, candidates: int) -> Tensor:
    """Repeat the rows of each problem: (B, ...) to (B * S, ...)."""
    return x.repeat_interleave(candidates, dim=0)
