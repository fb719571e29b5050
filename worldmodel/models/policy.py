"""A goal-conditioned policy: what to do now, from a picture of now and a picture of the goal.

The model-free counterpart of `WorldModel`: the same encoder, head and normalisation, but it answers with an action
instead of a prediction, so nothing is planned.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from worldmodel.data.normalize import Normalizer
from worldmodel.errors import ConfigError
from worldmodel.models.encoders import Encoder
from worldmodel.models.init import seeded_weights
from worldmodel.models.latent_head import LatentHead
from worldmodel.models.world_model import ModelSpec


@dataclass(kw_only=True)
class GoalMLPConfig:
    """Multi-layer perceptron on the latents of now and of the goal.

    Attributes:
        hidden_dim: Width of the hidden layers.
        num_layers: Hidden layers.
    """

    hidden_dim: int = 512
    num_layers: int = 3

    def __post_init__(self) -> None:
        if self.hidden_dim < 1 or self.num_layers < 1:
            got = f"hidden_dim={self.hidden_dim}, num_layers={self.num_layers}"
            raise ConfigError(f"hidden_dim and num_layers must be >= 1, got {got}")


class GoalMLP(nn.Module):
    """Standardised flat action from two latents.

    Args:
        config: Widths.
        latent_dim: Numbers in a flattened latent, N * D.
        action_dim: A, length of the flat action.
        seed: Seed of the initial weights.
    """

    def __init__(self, config: GoalMLPConfig, *, latent_dim: int, action_dim: int, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.latent_dim, self.action_dim = latent_dim, action_dim
        with seeded_weights(seed):
            layers: list[nn.Module] = []
            width = 3 * latent_dim
            for _ in range(config.num_layers):
                layers += [nn.Linear(width, config.hidden_dim), nn.LayerNorm(config.hidden_dim), nn.GELU()]
                width = config.hidden_dim
            self.body = nn.Sequential(*layers, nn.Linear(width, action_dim))

    def forward(self, latent: Tensor, goal: Tensor) -> Tensor:
        """Actions (B, A), standardised, from latents (B, N, D) of now and of the goal."""
        now, then = latent.flatten(1), goal.flatten(1)
        action: Tensor = self.body(torch.cat([now, then, then - now], dim=-1))
        return action


class GoalPolicy(nn.Module):
    """Encoder, latent head, network and the normalisation around them. Always in evaluation mode.

    Args:
        encoder: Frozen frame encoder.
        head: Turns its tokens into the latent the policy decides on.
        net: The decision.
        action_normalizer: Of flat model actions (A).
        spec: What the policy was trained for.

    Raises:
        ConfigError: The parts do not fit each other or the spec.
    """

    def __init__(
        self, encoder: Encoder, head: LatentHead, net: GoalMLP, action_normalizer: Normalizer, spec: ModelSpec
    ) -> None:
        super().__init__()
        if net.action_dim != spec.flat_action_dim:
            raise ConfigError(
                f"the network gives actions of width {net.action_dim}, the spec asks for {spec.flat_action_dim} "
                f"(action_dim {spec.action_dim} x action_block {spec.action_block})"
            )
        if net.latent_dim != head.num_tokens * head.latent_dim:
            got = f"{net.latent_dim} numbers, the head gives {head.num_tokens} x {head.latent_dim}"
            raise ConfigError(f"the network takes latents of {got}")
        self.encoder = encoder
        self.head = head
        self.net = net
        self.action_normalizer = action_normalizer
        self.spec = spec
        self.requires_grad_(False)
        self.eval()

    @property
    def device(self) -> torch.device:
        """Where the weights are; inputs are moved there."""
        return self.action_normalizer.mean.device

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Latents (B, N, D) of frames (B, Y, X, 3) uint8, one by one: each gets the same bits in any company.

        Raises:
            ConfigError: Wrong shape or dtype.
        """
        size = self.spec.image_size
        if pixels.dim() != 4 or tuple(pixels.shape[1:]) != (size, size, 3) or pixels.dtype != torch.uint8:
            expected = f"(B, {size}, {size}, 3) uint8"
            raise ConfigError(f"pixels must be {expected}, got {tuple(pixels.shape)} {pixels.dtype}")
        moved = pixels.to(self.device)
        latents = [self.head(self.encoder.encode_frames(moved[i : i + 1, None].clone()))[0] for i in range(len(moved))]
        return torch.cat(latents)

    @torch.no_grad()
    def decide(self, latent: Tensor, goal: Tensor) -> Tensor:
        """Flat actions (B, A) in env units, inside the bounds, from latents (B, N, D) of now and of the goal."""
        rows = [self.net(latent[i : i + 1].clone(), goal[i : i + 1].clone()) for i in range(len(latent))]
        low, high = self.spec.flat_bounds(self.device)
        actions: Tensor = self.action_normalizer.inverse(torch.cat(rows))
        return actions.clamp(low, high)

    def act(self, pixels: Tensor, goal_pixels: Tensor) -> Tensor:
        """What to do in the next `spec.action_block` env steps.

        Args:
            pixels: (B, Y, X, 3) uint8, now.
            goal_pixels: (B, Y, X, 3) uint8.

        Returns:
            (B, A) flat actions, env units, inside the action bounds.

        Raises:
            ConfigError: Wrong shape or dtype, or different numbers of frames and goals.
        """
        if len(pixels) != len(goal_pixels):
            raise ConfigError(f"need as many goals as frames, got {len(goal_pixels)} and {len(pixels)}")
        return self.decide(self.encode(pixels), self.encode(goal_pixels))
