"""Descent on the cost itself: Adam on several action sequences at once, alone or after the cross-entropy method."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from worldmodel.errors import ConfigError, PlanningError
from worldmodel.planners.base import (
    CostFn,
    Plan,
    Planner,
    PlanTrace,
    Problems,
    Stopwatch,
    check_at_least,
    mean_over,
)
from worldmodel.planners.cem import CEM
from worldmodel.planners.sampling import check_action_repeat, spread_of, start_std

_BETA_1, _BETA_2, _EPS = 0.9, 0.999, 1e-8
"""Adam's constants as published (Kingma and Ba, arXiv:1412.6980)."""


@dataclass(kw_only=True)
class Gradient(Planner):
    """Adam through the cost function, projected onto the bounds, from several starts.

    Kingma and Ba (arXiv:1412.6980). Every start is a row of its own: bias-corrected moments per number, a learning rate
    that falls along a half cosine to a tenth, projection onto the bounds after every step. The starts are the mean of
    the warm start (or no action), its best sequence, and normal noise around the mean. The best sequence ever scored
    is returned. The cost function must be differentiable in the actions.

    Attributes:
        num_restarts: S, sequences improved at the same time, per problem.
        num_iterations: Scored iterations, one gradient step between each two, >= 1.
        lr: Step size to begin with, as a share of half the action range, > 0.
        init_std: Standard deviation of the starts around the mean, same unit, > 0.
        warm_start_std: The same when a warm start is given; None means `init_std`.
        min_std: Floor under the standard deviation handed on in the plan, same unit, >= 0.
        early_stop_step: Stop a problem once the mean length of a step is below this share of half the range; 0 never
            does.
        action_repeat: Equal parts of a flat model action that hold the same values; must divide its length.
    """

    num_restarts: int = 8
    num_iterations: int = 30
    lr: float = 0.1
    init_std: float = 0.5
    warm_start_std: float | None = None
    min_std: float = 0.05
    early_stop_step: float = 0.0
    action_repeat: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_restarts", "num_iterations", "action_repeat"):
            check_at_least(name, getattr(self, name), 1)
        check_at_least("min_std", self.min_std, 0)
        check_at_least("early_stop_step", self.early_stop_step, 0)
        for name, value in (("lr", self.lr), ("init_std", self.init_std), ("warm_start_std", self.warm_start_std)):
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"{name} must be a positive share of half the action range, got {value}")

    @property
    def num_calls(self) -> int:
        """See `Planner.num_calls`; the last iteration needs no gradient."""
        return self.num_restarts * (3 * self.num_iterations - 2)

    @torch.no_grad()
    def plan(
        self,
        cost_fn: CostFn,
        low: Tensor,
        high: Tensor,
        *,
        rng: Sequence[torch.Generator],
        warm_start: Plan | None = None,
        time_budget_s: float | None = None,
    ) -> Plan:
        """See `Planner.plan`; a cost function that cannot be differentiated is a `PlanningError`, too."""
        watch = Stopwatch(time_budget_s)
        problems = Problems.check(low, high, rng, self.horizon)
        if warm_start is not None:
            problems.check_warm_start(warm_start)
        rng_state = problems.rng_state()
        descent = _Descent(self, problems, self._starts(problems, warm_start))
        descent.run(cost_fn, watch)
        return descent.plan(rng_state, watch)

    def _starts(self, problems: Problems, warm_start: Plan | None) -> Tensor:
        """(B, S, H, A) inside the bounds."""
        num_problems, horizon, action_dim = problems.sequence_shape
        check_action_repeat(self.action_repeat, action_dim)
        share = start_std(self.init_std, self.warm_start_std, warm_start)
        shape = (num_problems, self.num_restarts, horizon, action_dim // self.action_repeat)
        noise = problems.draw_(problems.low.new_empty(shape), range(num_problems))
        starts = noise.repeat(1, 1, 1, self.action_repeat)
        starts.mul_((problems.half_range * share).unsqueeze(1))
        if warm_start is not None:
            starts.add_(warm_start.mean.to(starts).unsqueeze(1))
            starts[:, :1] = warm_start.mean.to(starts).unsqueeze(1)
            starts[:, 1:2] = warm_start.actions.to(starts).unsqueeze(1)
        else:
            starts[:, 0] = 0
        return problems.clamp_(starts)


@dataclass(kw_only=True)
class CEMGradient(CEM):
    """Cross-entropy method, then Adam on the best sequence and the best elites.

    As in Bharadhwaj et al. (arXiv:2003.08867), who interleave the two; here the descent follows the search.

    Attributes:
        num_refined: Sequences that are improved by descent, in [1, num_elites].
        num_gradient_iterations: Scored iterations of the descent, >= 1.
        lr: Step size to begin with, as a share of half the action range, > 0.
    """

    num_iterations: int = 4
    num_refined: int = 4
    num_gradient_iterations: int = 10
    lr: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.num_refined <= self.num_elites:
            raise ConfigError(f"num_refined must be in [1, num_elites={self.num_elites}], got {self.num_refined}")
        self._gradient()

    def _gradient(self) -> Gradient:
        return Gradient(
            horizon=self.horizon,
            num_restarts=self.num_refined,
            num_iterations=self.num_gradient_iterations,
            lr=self.lr,
            min_std=self.min_std,
            action_repeat=self.action_repeat,
        )

    @property
    def num_calls(self) -> int:
        """See `Planner.num_calls`."""
        return super().num_calls + self._gradient().num_calls

    @torch.no_grad()
    def plan(
        self,
        cost_fn: CostFn,
        low: Tensor,
        high: Tensor,
        *,
        rng: Sequence[torch.Generator],
        warm_start: Plan | None = None,
        time_budget_s: float | None = None,
    ) -> Plan:
        """See `Planner.plan`; a cost function that cannot be differentiated is a `PlanningError`, too."""
        watch = Stopwatch(time_budget_s)
        found = super().plan(cost_fn, low, high, rng=rng, warm_start=warm_start, time_budget_s=time_budget_s)
        problems = Problems.check(low, high, rng, self.horizon)
        starts = torch.cat([found.actions.unsqueeze(1), found.elites[:, : self.num_refined - 1]], dim=1)
        descent = _Descent(self._gradient(), problems, starts.contiguous())
        if watch.seconds() < (math.inf if time_budget_s is None else time_budget_s):
            descent.run(cost_fn, watch, first_iteration=self.num_iterations)
        refined = descent.plan(found.rng_state, watch)
        is_better = refined.cost < found.cost
        return Plan(
            actions=torch.where(is_better.view(-1, 1, 1), refined.actions, found.actions),
            cost=torch.where(is_better, refined.cost, found.cost),
            mean=torch.where(is_better.view(-1, 1, 1), refined.mean, found.mean),
            std=found.std,
            elites=found.elites,
            trace=_chained(found.trace, refined.trace),
            rng_state=found.rng_state,
            seconds=watch.seconds(),
        )


class _Descent:
    """Adam on (B, S, H, A) sequences at once; every number has moments of its own.

    Args:
        config: Settings.
        problems: Bounds.
        starts: (B, S, H, A) inside the bounds; taken over.
    """

    def __init__(self, config: Gradient, problems: Problems, starts: Tensor) -> None:
        self._config = config
        self._problems = problems
        self._sequences = starts
        self._first = torch.zeros_like(starts)
        self._second = torch.zeros_like(starts)
        self._rows = torch.arange(len(starts), device=starts.device).unsqueeze(1)
        self._best_cost = starts.new_full((len(starts),), math.inf)
        self._best_actions = starts[:, 0]
        self._elites = starts
        self._record = starts.new_full((3, len(starts), config.num_iterations), math.nan)
        self._active = torch.ones(len(starts), dtype=torch.bool, device=starts.device)

    def run(self, cost_fn: CostFn, watch: Stopwatch, *, first_iteration: int = 0) -> None:
        """Score, then step, until the iterations or the time are over or every problem has stopped.

        Args:
            cost_fn: Differentiable in the actions.
            watch: Time left.
            first_iteration: Number of the first iteration in error messages.
        """
        last = self._config.num_iterations - 1
        for iteration in range(last + 1):
            gradient = self._score(cost_fn, iteration, first_iteration, is_last=iteration == last)
            if gradient is None or not watch.has_time():
                return
            self._step(gradient, iteration)
            if not self._active.any():
                return

    def _score(self, cost_fn: CostFn, iteration: int, first: int, *, is_last: bool) -> Tensor | None:
        """Cost of the present sequences into the record; their gradient (B, S, H, A), or None after the last."""
        sequences = self._sequences.detach().requires_grad_(not is_last)
        with torch.set_grad_enabled(not is_last):
            raw = cost_fn(sequences)
            cost = self._problems.check_cost(raw, sequences.shape[1], first + iteration)
            gradient = None if is_last else self._gradient(raw, sequences, first + iteration)
        ranked, order = cost.sort(dim=1, stable=True)
        elites = self._sequences[self._rows, order]
        improved = (ranked[:, 0] < self._best_cost) & self._active
        self._best_actions = torch.where(improved.view(-1, 1, 1), elites[:, 0], self._best_actions)
        self._best_cost = torch.where(improved, ranked[:, 0], self._best_cost)
        self._elites = elites
        _, spread = spread_of(elites)
        share = mean_over((spread * self._problems.share).flatten(1))
        record = torch.stack([self._best_cost, mean_over(ranked), share])
        self._record[:, :, iteration] = torch.where(self._active, record, math.nan)
        return gradient

    def _gradient(self, cost: Tensor, sequences: Tensor, iteration: int) -> Tensor:
        """Slope of the cost in the sequences; every cost depends on its own sequence alone, so one sum serves all."""
        gradient = None
        if cost.requires_grad:
            (gradient,) = torch.autograd.grad(cost.sum(), sequences, allow_unused=True)
        if gradient is None:
            raise PlanningError(
                "cost_fn has no gradient in the actions; planners by descent need a differentiable cost (a simulator "
                "has none): use CEM or another planner by sampling"
            )
        if not math.isfinite(gradient.sum().item()):
            for problem, candidate, step, number in gradient.isfinite().logical_not().nonzero().tolist():
                raise PlanningError(
                    f"the gradient of the cost is {gradient[problem, candidate, step, number].item()} at iteration "
                    f"{iteration}, problem {problem}, candidate {candidate}; a cost must be smooth inside the bounds"
                )
        return gradient

    def _step(self, gradient: Tensor, iteration: int) -> None:
        """One step of Adam in shares of half the action range; products and sums apart, as in `sampling.Search`."""
        scale = self._problems.half_range.unsqueeze(1)
        parts = (gradient * scale).unflatten(-1, (self._config.action_repeat, -1))
        tied = parts.cumsum(dim=-2).select(-2, -1)
        slope = tied.repeat(1, 1, 1, self._config.action_repeat)
        self._first = self._first * _BETA_1 + slope * (1 - _BETA_1)
        self._second = self._second * _BETA_2 + slope.square() * (1 - _BETA_2)
        first = self._first * (1 / (1 - _BETA_1 ** (iteration + 1)))
        second = self._second * (1 / (1 - _BETA_2 ** (iteration + 1)))
        progress = iteration / max(self._config.num_iterations - 1, 1)
        lr = self._config.lr * (0.1 + 0.45 * (1 + math.cos(math.pi * progress)))
        moved = self._sequences - first / (second.sqrt() + _EPS) * lr * scale
        moved = torch.where(self._active.view(-1, 1, 1, 1), self._problems.clamp_(moved), self._sequences)
        length = ((moved - self._sequences).abs_() * self._problems.share.unsqueeze(1)).flatten(1)
        self._sequences = moved
        if self._config.early_stop_step > 0:
            self._active = self._active & (mean_over(length) >= self._config.early_stop_step)

    def plan(self, rng_state: tuple[Tensor, ...], watch: Stopwatch) -> Plan:
        """What was found."""
        _, spread = spread_of(self._elites)
        best_cost, elite_cost, std = self._record
        floor = (self._problems.half_range * self._config.min_std).expand_as(spread)
        return Plan(
            actions=self._best_actions,
            cost=self._best_cost,
            mean=self._best_actions.clone(),
            std=torch.maximum(spread, floor),
            elites=self._elites,
            trace=PlanTrace(best_cost=best_cost, elite_cost=elite_cost, std=std),
            rng_state=rng_state,
            seconds=watch.seconds(),
        )


def _chained(first: PlanTrace, second: PlanTrace) -> PlanTrace:
    """Two traces, one after the other; the best cost never rises."""
    lowest = first.best_cost.nan_to_num(nan=math.inf).amin(dim=1, keepdim=True)
    best = torch.where(second.best_cost.isnan(), second.best_cost, torch.minimum(second.best_cost, lowest))
    return PlanTrace(
        best_cost=torch.cat([first.best_cost, best], dim=1),
        elite_cost=torch.cat([first.elite_cost, second.elite_cost], dim=1),
        std=torch.cat([first.std, second.std], dim=1),
    )
