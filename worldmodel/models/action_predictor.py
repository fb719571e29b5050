"""What the latent becomes under an action: the interface of action-conditioned predictors, and the compact one.

The patch-latent transformer lives in `action_transformer.py`. Both speak standardised latents and actions; units are
the business of `WorldModel`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from worldmodel.errors import ConfigError


@dataclass(kw_only=True)
class ResidualMLPConfig:
    """Residual MLP on one vector per frame.

    Attributes:
        hidden_dim: Width of the residual stream and of the hidden layers.
        num_blocks: Residual blocks between the input and the output map.
    """

    hidden_dim: int = 512
    num_blocks: int = 2

    def __post_init__(self) -> None:
        if self.hidden_dim < 1 or self.num_blocks < 0:
            got = f"hidden_dim={self.hidden_dim}, num_blocks={self.num_blocks}"
            raise ConfigError(f"hidden_dim must be >= 1 and num_blocks >= 0, got {got}")


class ActionPredictor(nn.Module, ABC):
    """Predicts the next latent; banded-causal: frame t sees frames t - window + 1 ... t, in training and in rollout.

    Attributes:
        window: Frames a prediction may look back on, itself included.
        num_tokens: N, tokens per frame.
        latent_dim: D, width of a token.
        action_dim: A, width of a flat model action.
    """

    window: int
    num_tokens: int
    latent_dim: int
    action_dim: int

    @property
    def candidate_bytes(self) -> int:
        """Memory a rollout needs at once for one candidate, bytes, about; 0 when it is too little to matter."""
        return 0

    @abstractmethod
    def forward(self, z: Tensor, actions: Tensor) -> Tensor:
        """Predict every next frame from the true frames before it.

        Args:
            z: (B, T, N, D) latents.
            actions: (B, T, A) standardised; actions[:, t] is taken at frame t.

        Returns:
            (B, T, N, D); entry t predicts z[:, t + 1].
        """

    @abstractmethod
    def rollout(self, context_z: Tensor, context_actions: Tensor, actions: Tensor) -> Tensor:
        """Imagine S futures per problem. Differentiable, and equal to `forward` fed with its own predictions.

        Args:
            context_z: (B, T0, N, D) latents really seen, T0 >= 1.
            context_actions: (B, T0 - 1, A) standardised actions between them.
            actions: (B, S, H, A) standardised candidates; actions[:, :, 0] is taken at the last context frame.

        Returns:
            (B, S, H, N, D) predicted latents after each action.

        Raises:
            ConfigError: The shapes do not belong together.
        """

    def check_rollout(self, context_z: Tensor, context_actions: Tensor, actions: Tensor) -> None:
        """Refuse rollout arguments whose shapes do not belong together.

        Raises:
            ConfigError: Names the argument, its shape and the shape expected.
        """
        problems, frames = context_z.shape[0], context_z.shape[1] if context_z.dim() == 4 else 0
        frame_shape = (self.num_tokens, self.latent_dim)
        if frames < 1 or tuple(context_z.shape[2:]) != frame_shape:
            expected = f"(B, T0 >= 1, {frame_shape[0]}, {frame_shape[1]})"
            raise ConfigError(f"context latents must be {expected}, got {tuple(context_z.shape)}")
        if tuple(context_actions.shape) != (problems, frames - 1, self.action_dim):
            expected = f"({problems}, {frames - 1}, {self.action_dim})"
            raise ConfigError(
                f"context actions must be (B, T0 - 1, A) = {expected}, got {tuple(context_actions.shape)}"
            )
        if actions.dim() != 4 or actions.shape[0] != problems or actions.shape[3] != self.action_dim:
            expected = f"({problems}, S, H, {self.action_dim})"
            raise ConfigError(f"actions must be (B, S, H, A) = {expected}, got {tuple(actions.shape)}")


class ProprioPredictor(ActionPredictor):
    """Dynamics that also need where the robot is: proprioception goes in with the context and comes out predicted."""

    @abstractmethod
    def rollout_from(
        self, context_z: Tensor, context_actions: Tensor, actions: Tensor, context_proprio: Tensor
    ) -> tuple[Tensor, Tensor]:
        """As `ActionPredictor.rollout`, with proprioception.

        Args:
            context_z: (B, T0, N, D).
            context_actions: (B, T0 - 1, A).
            actions: (B, S, H, A).
            context_proprio: (B, T0, P) standardised, at the context frames.

        Returns:
            (B, S, H, N, D) predicted latents and (B, S, H, P) predicted proprioception.

        Raises:
            ConfigError: The shapes do not belong together.
        """

    def forward(self, z: Tensor, actions: Tensor) -> Tensor:
        """Refuse: see `rollout_from`.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError(f"{type(self).__name__} predicts from proprioception too: use rollout_from")

    def rollout(self, context_z: Tensor, context_actions: Tensor, actions: Tensor) -> Tensor:
        """Refuse: see `rollout_from`.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError(f"{type(self).__name__} predicts from proprioception too: use rollout_from")


class ResidualBlock(nn.Module):
    """Pre-norm two-layer MLP added to its input."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.up = nn.Linear(dim, dim)
        self.down = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., W) to (..., W)."""
        residual: Tensor = x + self.down(functional.gelu(self.up(self.norm(x))))
        return residual


class ResidualMLPPredictor(ActionPredictor):
    """Markov dynamics of the compact latent: z' = z + f(z, a). Starts as copy-last-frame.

    The first layer is linear in state and action separately, so the state term of the context frame is computed once
    for all candidates and the action terms of all steps in a single product.

    Args:
        config: Widths.
        num_tokens: Must be 1.
        latent_dim: D.
        action_dim: A.

    Raises:
        ConfigError: The latent has more than one token per frame.
    """

    def __init__(self, config: ResidualMLPConfig, *, num_tokens: int = 1, latent_dim: int, action_dim: int) -> None:
        super().__init__()
        if num_tokens != 1:
            raise ConfigError(
                f"ResidualMLPPredictor needs one token per frame (a compact latent), got num_tokens={num_tokens}; "
                "use TransformerPredictor for patch latents"
            )
        self.config = config
        self.window = 1
        self.num_tokens = num_tokens
        self.latent_dim = latent_dim
        self.action_dim = action_dim
        self.state = nn.Linear(latent_dim, config.hidden_dim)
        self.action = nn.Linear(action_dim, config.hidden_dim, bias=False)
        self.blocks = nn.ModuleList(ResidualBlock(config.hidden_dim) for _ in range(config.num_blocks))
        self.norm = nn.LayerNorm(config.hidden_dim)
        self.out = nn.Linear(config.hidden_dim, latent_dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def _change(self, state_term: Tensor, action_term: Tensor) -> Tensor:
        """Change of the latent (..., D) from the two first-layer terms (..., W)."""
        x = state_term + action_term
        for block in self.blocks:
            x = block(x)
        change: Tensor = self.out(self.norm(x))
        return change

    def forward(self, z: Tensor, actions: Tensor) -> Tensor:
        """See `ActionPredictor.forward`."""
        return z + self._change(self.state(z), self.action(actions).unsqueeze(-2))

    def rollout(self, context_z: Tensor, context_actions: Tensor, actions: Tensor) -> Tensor:
        """See `ActionPredictor.rollout`; frames before the last one do not matter (window 1)."""
        self.check_rollout(context_z, context_actions, actions)
        action_terms = self.action(actions.transpose(1, 2))  # (B, H, S, W): one product, contiguous per step
        z = context_z[:, -1]  # (B, 1, D), broadcast over the candidates until the first step has told them apart
        steps = []
        for step in range(actions.shape[2]):
            z = z + self._change(self.state(z), action_terms[:, step])
            steps.append(z)
        return torch.stack(steps, dim=2).unsqueeze(3)
