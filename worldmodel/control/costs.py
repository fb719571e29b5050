"""The seam between models and planners: a world model, an objective and a goal become a function of actions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from worldmodel.control.objectives import Objective
from worldmodel.errors import PlanningError
from worldmodel.types import Context, Latent

if TYPE_CHECKING:
    from worldmodel.models.world_model import ModelSpec


class PlanningModel(Protocol):
    """What planning asks of a world model; `worldmodel.models.world_model.WorldModel` is one."""

    @property
    def spec(self) -> ModelSpec:
        """Actions and pictures it was made for."""
        ...

    @property
    def window(self) -> int:
        """W, frames of context its dynamics look at."""
        ...

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        ...

    def encode(self, pixels: Tensor, proprio: Tensor | None = None) -> Latent:
        """(B, T, Y, X, 3) uint8 and (B, T, P) or None -> visual (B, T, N, D), proprio (B, T, P) or None."""
        ...

    def encode_batch(self, pixels: Tensor) -> Tensor:
        """Latents (F, N, D) of frames (F, Y, X, 3) uint8 in one pass; their last bits depend on F."""
        ...

    def rollout(self, context: Context, actions: Tensor) -> Latent:
        """Env units (B, S, H, A) -> visual (B, S, H, N, D), proprio (B, S, H, P) or None."""
        ...


class LatentCost:
    """Cost of action sequences under a world model (a `CostFn`).

    Attributes:
        counts_steps: Whether a cost is a number of model steps to the goal.

    Args:
        world_model: Predicts latents.
        objective: Turns predicted and goal latents into a cost.
        context: Frames seen and actions taken, B problems.
        goal: The encoded goal frame: visual (B, 1, N, D), proprio (B, 1, P) or None.

    Raises:
        PlanningError: Context and goal are for different numbers of problems, or the goal is not a single frame.
    """

    def __init__(self, world_model: PlanningModel, objective: Objective, context: Context, goal: Latent) -> None:
        num_problems = context.latent.visual.shape[0]
        if goal.visual.ndim != 4 or tuple(goal.visual.shape[:2]) != (num_problems, 1):
            expected = f"(B={num_problems}, 1, N, D)"
            raise PlanningError(f"the goal latent must have shape {expected}, got {tuple(goal.visual.shape)}")
        self.counts_steps = objective.counts_steps
        self._world_model = world_model
        self._objective = objective
        self._context = context
        proprio = None if goal.proprio is None else goal.proprio.unsqueeze(1)
        self._goal = Latent(visual=goal.visual.unsqueeze(1), proprio=proprio)

    def __call__(self, actions: Tensor) -> Tensor:
        """Actions (B, S, H, A) in env units -> costs (B, S)."""
        latent = self._world_model.rollout(self._context, actions)
        return self._objective(latent, self._goal, actions)
