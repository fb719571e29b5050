"""What planners by sampling share: draw candidates, score them, remember the best, move the distribution."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

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


@dataclass(kw_only=True)
class SamplingPlanner(Planner, ABC):
    """Settings of every planner that draws candidates around a mean.

    Candidates are clamped to the bounds before they are scored, and the best sequence ever scored is kept.

    Attributes:
        num_samples: S, candidates per iteration and problem.
        num_iterations: Iterations at most, >= 1.
        init_std: Standard deviation to start with, as a share of half the action range, > 0.
        min_std: Floor under it, same unit, >= 0.
        warm_start_std: Start value when a warm start is given, same unit; None means `init_std`.
        early_stop_std: Stop a problem once the spread of its elites, before the floor, is below this share; 0 never
            does.
        action_repeat: Equal parts of a flat model action that are drawn together and hold the same values; must divide
            its length. With `action_block` env actions a model step, `action_repeat=action_block` searches over
            actions held for a whole step: a far smaller space, where white noise reaches further.
        returns: "best" for the best sequence ever scored, "mean" for the final mean (scored by one extra call).
    """

    num_samples: int = 200
    num_iterations: int = 6
    init_std: float = 0.6
    min_std: float = 0.05
    warm_start_std: float | None = None
    early_stop_std: float = 0.0
    action_repeat: int = 1
    returns: str = "best"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least("num_samples", self.num_samples, 1)
        check_at_least("num_iterations", self.num_iterations, 1)
        check_at_least("action_repeat", self.action_repeat, 1)
        check_at_least("min_std", self.min_std, 0)
        check_at_least("early_stop_std", self.early_stop_std, 0)
        for name, std in (("init_std", self.init_std), ("warm_start_std", self.warm_start_std)):
            if std is not None and not 0 < std < math.inf:
                raise ConfigError(f"{name} must be a positive share of half the action range, got {std}")
        if self.returns not in ("best", "mean"):
            raise ConfigError(f"returns must be 'best' or 'mean', got {self.returns!r}")

    @property
    def num_calls(self) -> int:
        """See `Planner.num_calls`."""
        return self.num_samples * self.num_iterations + (self.returns == "mean")

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
        """See `Planner.plan`."""
        watch = Stopwatch(time_budget_s)
        problems = Problems.check(low, high, rng, self.horizon)
        if warm_start is not None:
            problems.check_warm_start(warm_start)
        rng_state = problems.rng_state()
        search = self._search(problems, warm_start)
        for iteration in range(self.num_iterations):
            search.iterate(cost_fn, iteration)
            if not search.active or not watch.has_time():
                break
        actions, cost = search.best_actions, search.best_cost
        if self.returns == "mean":
            actions = search.mean.clone()
            cost = problems.check_cost(cost_fn(actions.unsqueeze(1)), 1, self.num_iterations)[:, 0]
        return Plan(
            actions=actions,
            cost=cost,
            mean=search.mean,
            std=search.std,
            elites=search.elites,
            trace=search.trace(),
            rng_state=rng_state,
            seconds=watch.seconds(),
        )

    @abstractmethod
    def _search(self, problems: Problems, warm_start: Plan | None) -> Search:
        """State of one `plan` call."""


def check_num_elites(num_elites: int, num_samples: int) -> None:
    """Refuse more elites than candidates, or none.

    Raises:
        ConfigError: They are out of range.
    """
    if not 1 <= num_elites <= num_samples:
        raise ConfigError(f"num_elites must be in [1, num_samples={num_samples}], got {num_elites}")


class Scored(NamedTuple):
    """Candidates of one iteration and what they cost.

    Attributes:
        candidates: (B, S, H, A).
        cost: (B, S) in their order.
        elites: (B, K, H, A) the cheapest, best first.
        elite_cost: (B, K).
        best_actions: (B, H, A) best ever, these candidates included.
        best_cost: (B,).
    """

    candidates: Tensor
    cost: Tensor
    elites: Tensor
    elite_cost: Tensor
    best_actions: Tensor
    best_cost: Tensor


class Search(ABC):
    """State of one `plan` call.

    Every step is either per problem (draws, sorting) or made of correctly rounded elementwise operations. No fused
    multiply-add: vector bodies and scalar tails of a kernel may round it differently, and which element falls into the
    tail depends on B.

    Args:
        config: Settings.
        problems: Bounds and streams.
        warm_start: Earlier plan, checked.
        num_elites: K, how many of the cheapest candidates are kept in the plan and described in the trace.

    Attributes:
        mean: (B, H, A) centre of the distribution; `std` likewise.
        elites: (B, K, H, A) of the last iteration.
        best_actions: (B, H, A); `best_cost` (B,).
        active: Rows of the problems that have not stopped.
    """

    def __init__(
        self, config: SamplingPlanner, problems: Problems, warm_start: Plan | None, *, num_elites: int
    ) -> None:
        self.config = config
        self.problems = problems
        self.num_elites = num_elites
        num_problems, horizon, action_dim = problems.sequence_shape
        share = start_std(config.init_std, config.warm_start_std, warm_start)
        self.floor = (problems.half_range * config.min_std).expand(problems.sequence_shape)
        self.std = torch.maximum((problems.half_range * share).expand(problems.sequence_shape), self.floor)
        self.mean = torch.zeros_like(self.std) if warm_start is None else warm_start.mean.to(self.std, copy=True)
        problems.clamp_(self.mean)
        self.kept = None if warm_start is None else warm_start.actions.to(self.std)
        check_action_repeat(config.action_repeat, action_dim)
        num_free = action_dim // config.action_repeat
        self._noise = self.std.new_empty(num_problems, config.num_samples, horizon, num_free)
        self._candidates = self.std.new_empty(num_problems, config.num_samples, horizon, action_dim)
        self._rows = torch.arange(num_problems, device=self.std.device).unsqueeze(1)
        self.best_cost = self.std.new_full((num_problems,), math.inf)
        self.best_actions = self.mean
        self.elites = self._candidates[:, :num_elites]
        self._record = self.std.new_full((3, num_problems, config.num_iterations), math.nan)
        self.active = list(range(num_problems))

    def trace(self) -> PlanTrace:
        """What happened so far."""
        best_cost, elite_cost, std = self._record
        return PlanTrace(best_cost=best_cost, elite_cost=elite_cost, std=std)

    def iterate(self, cost_fn: CostFn, iteration: int) -> None:
        """Sample, score, remember the best, refit. Problems that have stopped are scored again but never change."""
        candidates = self._sample(iteration)
        cost = self.problems.check_cost(cost_fn(candidates), candidates.shape[1], iteration)
        # stable: equal costs keep the order of the candidates, on every device and whatever B is
        ranked, order = cost.sort(dim=1, stable=True)
        elites = candidates[self._rows, order[:, : self.num_elites]]
        lowest = ranked.select(1, 0)
        improved = (lowest < self.best_cost).view(-1, 1, 1)
        scored = Scored(
            candidates=candidates,
            cost=cost,
            elites=elites,
            elite_cost=ranked[:, : self.num_elites],
            best_actions=torch.where(improved, elites.select(1, 0), self.best_actions),
            best_cost=torch.minimum(lowest, self.best_cost),
        )
        mean, std, spread = self._refit(scored, iteration)
        # rounding in the average must not leave the bounds by a bit
        mean = self.problems.clamp_(mean)
        mean_share = mean_over((spread * self.problems.share).flatten(1))
        state = (mean, torch.maximum(std, self.floor), elites, scored.best_actions, scored.best_cost)
        self._commit(iteration, state, torch.stack([scored.best_cost, mean_over(scored.elite_cost), mean_share]))

    @abstractmethod
    def _refit(self, scored: Scored, iteration: int) -> tuple[Tensor, Tensor, Tensor]:
        """Next mean and standard deviation, and the elites' spread for the trace, each (B, H, A)."""

    def _colour(self, noise: Tensor) -> Tensor:
        """Give the white noise (B, S, H, F) another colour over time, in place or not; it is white by default."""
        return noise

    def _sample(self, iteration: int) -> Tensor:
        """Fill the candidates (B, S, H, A) of the active problems."""
        noise = self._colour(self.problems.draw_(self._noise, self.active))
        candidates = self._candidates
        parts = candidates.unflatten(-1, (self.config.action_repeat, -1))
        if len(self.active) == len(self.problems.rng):
            parts.copy_(noise.unsqueeze(-2).expand_as(parts))
            candidates.mul_(self.std.unsqueeze(1)).add_(self.mean.unsqueeze(1))
        else:
            rows = self.active
            parts[rows] = noise[rows].unsqueeze(-2).expand_as(parts[rows])
            candidates[rows] = candidates[rows] * self.std[rows].unsqueeze(1) + self.mean[rows].unsqueeze(1)
        # Only the active: what a stopped problem is scored on again must be what it was scored on before.
        candidates[self.active, 0] = self.mean[self.active]
        self._keep_best(candidates, iteration)
        return self.problems.clamp_(candidates)

    def _keep_best(self, candidates: Tensor, iteration: int) -> None:
        """Score the best sequence of the warm start in the first iteration, unless there is room for the mean alone."""
        if iteration == 0 and self.kept is not None and self.config.num_samples > 1:
            candidates[:, 1] = self.kept

    def _commit(self, iteration: int, state: tuple[Tensor, ...], record: Tensor) -> None:
        """Take over state and trace record (3, B) of the problems still active; stop those that converged."""
        old = (self.mean, self.std, self.elites, self.best_actions, self.best_cost)
        if len(self.active) < len(self.problems.rng):
            is_active = torch.zeros_like(self.best_cost, dtype=torch.bool)
            is_active[self.active] = True
            state = tuple(
                torch.where(is_active.view(-1, *[1] * (new.ndim - 1)), new, kept)
                for new, kept in zip(state, old, strict=True)
            )
            record = torch.where(is_active, record, math.nan)
        self.mean, self.std, self.elites, self.best_actions, self.best_cost = state
        self._record.select(2, iteration).copy_(record)
        if self.config.early_stop_std > 0:
            shares = record[2].tolist()
            self.active = [row for row in self.active if shares[row] >= self.config.early_stop_std]


def start_std(init_std: float, warm_start_std: float | None, warm_start: Plan | None) -> float:
    """Standard deviation that a search begins with, as a share of half the action range."""
    return init_std if warm_start is None or warm_start_std is None else warm_start_std


def check_action_repeat(action_repeat: int, action_dim: int) -> None:
    """Refuse parts that do not fill a flat action.

    Raises:
        PlanningError: `action_repeat` does not divide A.
    """
    if action_dim % action_repeat:
        raise PlanningError(f"action_repeat={action_repeat} must divide the length of a flat action, A={action_dim}")


def spread_of(elites: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and population standard deviation (B, H, A) of elites (B, K, H, A)."""
    mean = mean_over(elites)
    return mean, mean_over((elites - mean.unsqueeze(1)).square_()).sqrt_()
