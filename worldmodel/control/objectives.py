"""What a plan should achieve, as a number: objectives over predicted latents, composable with `+`."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from worldmodel.errors import ConfigError, PlanningError
from worldmodel.types import Latent


@dataclass(kw_only=True)
class Objective(ABC):
    """Definition of a cost; the number it yields is lower when better. Differentiable in latent and actions."""

    @abstractmethod
    def __call__(self, latent: Latent, goal: Latent, actions: Tensor) -> Tensor:
        """Cost of every candidate.

        Args:
            latent: Predicted: visual (B, S, H, N, D), proprio (B, S, H, P) or None.
            goal: Visual (B, 1, 1, N, D), proprio (B, 1, 1, P) or None.
            actions: (B, S, H, A), env units.

        Returns:
            (B, S).
        """

    def scored_steps(self, horizon: int) -> tuple[bool, ...]:
        """Which of the H model steps the cost depends on; the latents of others may hold anything finite."""
        return (True,) * horizon

    @property
    def counts_steps(self) -> bool:
        """Whether the number is one of model steps to the goal, so that a planner may ask what is near."""
        return False

    def bind(self, model: object) -> Objective:
        """The objective for one model; those that use learned parts of a model take them here.

        Raises:
            ConfigError: The model lacks such a part.
        """
        return self

    def __add__(self, other: Objective) -> Objective:
        return ObjectiveSum(terms=(self, other))


@dataclass(kw_only=True)
class ObjectiveSum(Objective):
    """Sum of objectives.

    Attributes:
        terms: At least one.
    """

    terms: tuple[Objective, ...]

    def __post_init__(self) -> None:
        if not self.terms:
            raise ConfigError("a sum of objectives needs at least one term")

    def scored_steps(self, horizon: int) -> tuple[bool, ...]:
        """See `Objective.scored_steps`."""
        return tuple(any(steps) for steps in zip(*(term.scored_steps(horizon) for term in self.terms), strict=True))

    @property
    def counts_steps(self) -> bool:
        """See `Objective.counts_steps`; a price beside the steps is counted as some of them."""
        return any(term.counts_steps for term in self.terms)

    def bind(self, model: object) -> Objective:
        """See `Objective.bind`."""
        return ObjectiveSum(terms=tuple(term.bind(model) for term in self.terms))

    def __call__(self, latent: Latent, goal: Latent, actions: Tensor) -> Tensor:
        """See `Objective.__call__`."""
        total = self.terms[0](latent, goal, actions)
        for term in self.terms[1:]:
            total = total + term(latent, goal, actions)
        return total


@dataclass(kw_only=True)
class GoalDistance(Objective):
    """Distance between predicted and goal latents, weighted over the horizon.

    Per step: mean squared ("l2") or mean absolute ("l1") difference over tokens and dimensions, plus `proprio_weight`
    times the same of the proprioception. Over steps: the weighted mean, so that the scale does not depend on H.

    Attributes:
        last_step_weight: Weight of the last step of the horizon, > 0.
        step_weight: Weight of every earlier step, >= 0. More than 0 rewards getting there early, and staying.
        metric: "l2" or "l1".
        proprio_weight: Weight of proprioception beside vision, >= 0; more than 0 needs goals and models that have it.
    """

    last_step_weight: float = 1.0
    step_weight: float = 0.3
    metric: str = "l2"
    proprio_weight: float = 0.0

    def __post_init__(self) -> None:
        check_step_weights(self.last_step_weight, self.step_weight)
        if self.metric not in ("l1", "l2"):
            raise ConfigError(f"metric must be 'l1' or 'l2', got {self.metric!r}")
        check_weight("proprio_weight", self.proprio_weight)

    def scored_steps(self, horizon: int) -> tuple[bool, ...]:
        """See `Objective.scored_steps`."""
        return _weighted_steps(horizon, self.step_weight)

    def __call__(self, latent: Latent, goal: Latent, actions: Tensor) -> Tensor:
        """See `Objective.__call__`.

        Raises:
            PlanningError: Proprioception is weighted but missing, or prediction and goal differ in shape.
        """
        distance = self._distance(latent.visual, goal.visual, "visual").mean(dim=(-2, -1))
        if self.proprio_weight > 0:
            if latent.proprio is None or goal.proprio is None:
                owner = "the model predicts none" if latent.proprio is None else "the goal has none"
                raise PlanningError(f"proprio_weight is {self.proprio_weight} but {owner}; set it to 0 or supply it")
            proprio = self._distance(latent.proprio, goal.proprio, "proprio").mean(dim=-1)
            distance = distance + self.proprio_weight * proprio
        weights = step_weights(distance.shape[-1], self.last_step_weight, self.step_weight)
        return (distance * weights.to(distance)).sum(dim=-1)

    def _distance(self, predicted: Tensor, goal: Tensor, name: str) -> Tensor:
        if predicted.shape[3:] != goal.shape[3:] or tuple(goal.shape[:3]) != (predicted.shape[0], 1, 1):
            raise PlanningError(
                f"{name} goal latent must be (B, 1, 1, ...) like the prediction {tuple(predicted.shape)}, "
                f"got {tuple(goal.shape)}"
            )
        difference = predicted.float() - goal.float()
        return difference.abs() if self.metric == "l1" else difference.square()


@dataclass(kw_only=True)
class StepsToGoal(Objective):
    """Learned number of model steps to the goal, weighted over the horizon, plus a share of the latent distance.

    The steps say where to go, also when the way leads through frames that look less like the goal; the latent
    distance is the sharper of the two near the goal. Must be bound to a model with a temporal distance.

    Attributes:
        last_step_weight: Weight of the last step of the horizon, > 0.
        step_weight: Weight of every earlier step, >= 0.
        latent_weight: Weight of the mean squared latent distance, in steps per unit, >= 0.
    """

    last_step_weight: float = 1.0
    step_weight: float = 0.3
    latent_weight: float = 6.0

    def __post_init__(self) -> None:
        check_step_weights(self.last_step_weight, self.step_weight)
        check_weight("latent_weight", self.latent_weight)

    def bind(self, model: object) -> Objective:
        """See `Objective.bind`."""
        distance = getattr(model, "temporal_distance", None)
        if not isinstance(distance, nn.Module):
            raise ConfigError(
                "this model has no temporal distance (it was trained with temporal_distance.steps=0, or has a patch "
                "latent); plan with objective=goal_distance"
            )
        return BoundStepsToGoal(definition=self, distance=distance)

    def __call__(self, latent: Latent, goal: Latent, actions: Tensor) -> Tensor:
        """Refuse to work unbound.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError("StepsToGoal needs the temporal distance of a model: call bind(world_model) first")


@dataclass(kw_only=True)
class BoundStepsToGoal(Objective):
    """`StepsToGoal` with the network of one model.

    Attributes:
        definition: Weights.
        distance: Maps latents (..., N, D) and goals (..., N, D) to steps (...).
    """

    definition: StepsToGoal
    distance: nn.Module

    @property
    def counts_steps(self) -> bool:
        """See `Objective.counts_steps`."""
        return True

    def scored_steps(self, horizon: int) -> tuple[bool, ...]:
        """See `Objective.scored_steps`."""
        return _weighted_steps(horizon, self.definition.step_weight)

    def __call__(self, latent: Latent, goal: Latent, actions: Tensor) -> Tensor:
        """See `Objective.__call__`."""
        definition = self.definition
        steps: Tensor = self.distance(latent.visual, goal.visual)
        if definition.latent_weight > 0:
            squared = (latent.visual.float() - goal.visual.float()).square().mean(dim=(-2, -1))
            steps = steps + definition.latent_weight * squared
        weights = step_weights(steps.shape[-1], definition.last_step_weight, definition.step_weight)
        return (steps * weights.to(steps)).sum(dim=-1)


def default_objective(model: object) -> Objective:
    """What a model is planned with unless told otherwise: its temporal distance, or the latent distance without one."""
    has_distance = isinstance(getattr(model, "temporal_distance", None), nn.Module)
    return StepsToGoal() if has_distance else GoalDistance()


@dataclass(kw_only=True)
class ActionCost(Objective):
    """Mean squared action (env units) over steps and dimensions: prefers small motions among equally good ones.

    Attributes:
        weight: Factor, >= 0.
    """

    weight: float = 0.01

    def __post_init__(self) -> None:
        check_weight("weight", self.weight)

    def scored_steps(self, horizon: int) -> tuple[bool, ...]:
        """See `Objective.scored_steps`: no latent is looked at."""
        return (False,) * horizon

    def __call__(self, latent: Latent, goal: Latent, actions: Tensor) -> Tensor:
        """See `Objective.__call__`."""
        return self.weight * actions.square().mean(dim=(-2, -1))


def step_weights(horizon: int, last_step_weight: float, step_weight: float) -> Tensor:
    """(H,) weights of the steps of a horizon, summing to 1."""
    weights = torch.full((horizon,), step_weight)
    weights[-1] = last_step_weight
    return weights / weights.sum()


def _weighted_steps(horizon: int, step_weight: float) -> tuple[bool, ...]:
    return (*[step_weight > 0] * (horizon - 1), True)


def check_step_weights(last_step_weight: float, step_weight: float) -> None:
    """Refuse weights that cannot be normalised.

    Raises:
        ConfigError: The last step's is not positive, or the others' is negative.
    """
    check_weight("step_weight", step_weight)
    if not 0 < last_step_weight < math.inf:
        raise ConfigError(f"last_step_weight must be finite and > 0, got {last_step_weight}")


def check_weight(name: str, weight: float) -> None:
    """Refuse a weight that is negative or not finite.

    Raises:
        ConfigError: It is.
    """
    if not 0 <= weight < math.inf:
        raise ConfigError(f"{name} must be finite and >= 0, got {weight}")
