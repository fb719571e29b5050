"""How many model steps a goal is away: a learned distance between two planning latents.

Squared distance between latents says how different two frames are; a planner needs to know how long the way is. The
two disagree exactly where manipulation is hard: a gripper on the wrong side of the block looks nearly right.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from worldmodel.errors import ConfigError
from worldmodel.models.init import seeded_weights


@dataclass(kw_only=True)
class TemporalDistanceConfig:
    """Multi-layer perceptron on a pair of latents.

    Attributes:
        hidden_dim: Width of the hidden layers.
        num_layers: Hidden layers.
    """

    hidden_dim: int = 256
    num_layers: int = 3

    def __post_init__(self) -> None:
        if self.hidden_dim < 1 or self.num_layers < 1:
            got = f"hidden_dim={self.hidden_dim}, num_layers={self.num_layers}"
            raise ConfigError(f"hidden_dim and num_layers must be >= 1, got {got}")


class TemporalDistance(nn.Module):
    """Discounted number of model steps from one latent to another under good behaviour; asymmetric.

    Args:
        config: Widths.
        latent_dim: Numbers in a flattened latent, N * D.
        seed: Seed of the initial weights.
    """

    def __init__(self, config: TemporalDistanceConfig, *, latent_dim: int, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.latent_dim = latent_dim
        with seeded_weights(seed):
            width = config.hidden_dim
            # The first layer of [z, goal, z - goal], written as two products so that a goal shared by thousands of
            # candidates is multiplied once.
            self.from_latent = nn.Linear(latent_dim, width)
            self.from_goal = nn.Linear(latent_dim, width, bias=False)
            layers: list[nn.Module] = [nn.LayerNorm(width), nn.GELU()]
            for _ in range(config.num_layers - 1):
                layers += [nn.Linear(width, width), nn.LayerNorm(width), nn.GELU()]
            self.body = nn.Sequential(*layers, nn.Linear(width, 1))

    def forward(self, latent: Tensor, goal: Tensor) -> Tensor:
        """Distances.

        Args:
            latent: (..., N, D) where the way begins.
            goal: (..., N, D) where it should end; leading dimensions broadcast against those of `latent`.

        Returns:
            (...) model steps, discounted; not forced to be positive.
        """
        first = self.from_latent(latent.flatten(-2)) + self.from_goal(goal.flatten(-2))
        steps: Tensor = self.body(first)
        return steps.squeeze(-1)
