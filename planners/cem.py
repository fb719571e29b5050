"""The cross-entropy method: fit a Gaussian to the cheapest candidates, again and again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor

from worldmodel.errors import ConfigError, PlanningError
from worldmodel.planners.base import (
    CostFn,
    Plan,
    Planner,
    PlanTrace,
    Problems,
    check_at_least,
    check_time_budget,
    mean_over,
)


@dataclass(kw_only=True)
class CEM(Planner):
    """Cross-entropy method with bounds, a floor under the spread, and memory of the best sequence.

    Rubinstein and Kroese, "The Cross-Entropy Method" (2004), as used for planning in latent space by Hafner et al.
    (arXiv:1811.04551). Deviations: candidates are clamped to the bounds before they are scored; the standard deviation
    has a floor; one candidate is always the current mean, so that the mean's own cost is known; the best sequence ever
    scored is returned, not the last mean; the spread is the population one, defined for a single elite too.

    Attributes:
        num_samples: S, candidates per iteration and problem.
        num_elites: Candidates the Gaussian is fitted to, in [1, num_samples].
        num_iterations: Iterations at most, >= 1.
        init_std: Standard deviation to start with, as a share of half the action range, > 0.
        min_std: Floor under it, same unit, >= 0.
        warm_start_std: Start value when a warm start is given, same unit; None means `init_std`.
        momentum: Weight of the old mean and standard deviation in the new ones, in [0, 1).
        early_stop_std: Stop a problem once the spread of its elites, before the floor, is below this share; 0 never
            does.
        action_repeat: Equal parts of a flat model action that are drawn together and hold the same values; must divide
            its length. With `action_block` env actions a model step, `action_repeat=action_block` searches over
            actions held for a whole step: a far smaller space, where white noise reaches further.
        returns: "best" for the best sequence ever scored, "mean" for the final mean (scored by one extra call).
    """

    num_samples: int = 200
    num_elites: int = 20
    num_iterations: int = 6
    init_std: float = 0.6
    min_std: float = 0.05
    warm_start_std: float | None = None
    momentum: float = 0.0
    early_stop_std: float = 0.0
    action_repeat: int = 1
    returns: str = "best"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least("num_samples", self.num_samples, 1)
        check_at_least("num_iterations", self.num_iterations, 1)
        check_at_least("action_repeat", self.action_repeat, 1)
        if not 1 <= self.num_elites <= self.num_samples:
            raise ConfigError(f"num_elites must be in [1, num_samples={self.num_samples}], got {self.num_elites}")
        check_at_least("min_std", self.min_std, 0)
        check_at_least("early_stop_std", self.early_stop_std, 0)
        for name, std in (("init_std", self.init_std), ("warm_start_std", self.warm_start_std)):
            if std is not None and not 0 < std < math.inf:
                raise ConfigError(f"{name} must be a positive share of half the action range, got {std}")
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"momentum must be in [0, 1), got {self.momentum}")
        if self.returns not in ("best", "mean"):
            raise ConfigError(f"returns must be 'best' or 'mean', got {self.returns!r}")

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
        started = perf_counter()
        check_time_budget(time_budget_s)
        problems = Problems.check(low, high, rng, self.horizon)
        if warm_start is not None:
            problems.check_warm_start(warm_start)
        rng_state = problems.rng_state()
        search = _Search(self, problems, warm_start)
        slowest = 0.0
        for iteration in range(self.num_iterations):
            begun = perf_counter()
            search.iterate(cost_fn, iteration)
            now = perf_counter()
            slowest = max(slowest, now - begun)
            if not search.active or (time_budget_s is not None and now - started + slowest > time_budget_s):
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
            seconds=perf_counter() - started,
        )


class _Search:
    """State of one `plan` call.

    Every step is either per problem (draws, sorting) or made of correctly rounded elementwise operations. No fused
    multiply-add: vector bodies and scalar tails of a kernel may round it differently, and which element falls into the
    tail depends on B.
    """

    def __init__(self, config: CEM, problems: Problems, warm_start: Plan | None) -> None:
        self._config = config
        self._problems = problems
        num_problems, horizon, action_dim = problems.sequence_shape
        is_warm = warm_start is not None
        share = config.warm_start_std if is_warm and config.warm_start_std is not None else config.init_std
        self._floor = (problems.half_range * config.min_std).expand(problems.sequence_shape)
        self.std = torch.maximum((problems.half_range * share).expand(problems.sequence_shape), self._floor)
        self.mean = torch.zeros_like(self.std) if warm_start is None else warm_start.mean.to(self.std, copy=True)
        problems.clamp_(self.mean)
        self._kept = None if warm_start is None else warm_start.actions.to(self.std)
        if action_dim % config.action_repeat:
            raise PlanningError(
                f"action_repeat={config.action_repeat} must divide the length of a flat action, A={action_dim}"
            )
        num_free = action_dim // config.action_repeat
        self._noise = self.std.new_empty(num_problems, config.num_samples, horizon, num_free)
        self._candidates = self.std.new_empty(num_problems, config.num_samples, horizon, action_dim)
        self._rows = torch.arange(num_problems, device=self.std.device).unsqueeze(1)
        self.best_cost = self.std.new_full((num_problems,), math.inf)
        self.best_actions = self.mean
        self.elites = self._candidates[:, : config.num_elites]
        self._record = self.std.new_full((3, num_problems, config.num_iterations), math.nan)
        self.active = list(range(num_problems))

    def trace(self) -> PlanTrace:
        """What happened so far."""
        best_cost, elite_cost, std = self._record
        return PlanTrace(best_cost=best_cost, elite_cost=elite_cost, std=std)

    def iterate(self, cost_fn: CostFn, iteration: int) -> None:
        """Sample, score, remember the best, refit. Problems that have stopped are scored again but never change."""
        candidates = self._sample(iteration)
        cost = self._problems.check_cost(cost_fn(candidates), self._config.num_samples, iteration)
        # stable: equal costs keep the order of the candidates, on every device and whatever B is
        ranked, order = cost.sort(dim=1, stable=True)
        elite_cost = ranked[:, : self._config.num_elites]
        elites = candidates[self._rows, order[:, : self._config.num_elites]]
        lowest = ranked.select(1, 0)
        improved = (lowest < self.best_cost).view(-1, 1, 1)
        best_actions = torch.where(improved, elites.select(1, 0), self.best_actions)
        best_cost = torch.minimum(lowest, self.best_cost)
        mean = mean_over(elites)
        spread = mean_over((elites - mean.unsqueeze(1)).square_()).sqrt_()
        mean_share = mean_over((spread * self._problems.share).flatten(1))
        keep = self._config.momentum
        if keep > 0:
            mean = mean * (1 - keep) + self.mean * keep
            spread = spread * (1 - keep) + self.std * keep
        # rounding in the average must not leave the bounds by a bit
        mean = self._problems.clamp_(mean)
        std = torch.maximum(spread, self._floor)
        state = (mean, std, elites, best_actions, best_cost)
        self._commit(iteration, state, torch.stack([best_cost, mean_over(elite_cost), mean_share]))

    def _sample(self, iteration: int) -> Tensor:
        """Fill the candidates (B, S, H, A) of the active problems."""
        noise = self._problems.draw_(self._noise, self.active)
        candidates = self._candidates
        parts = candidates.unflatten(-1, (self._config.action_repeat, -1))
        if len(self.active) == len(self._problems.rng):
            parts.copy_(noise.unsqueeze(-2).expand_as(parts))
            candidates.mul_(self.std.unsqueeze(1)).add_(self.mean.unsqueeze(1))
        else:
            rows = self.active
            parts[rows] = noise[rows].unsqueeze(-2).expand_as(parts[rows])
            candidates[rows] = candidates[rows] * self.std[rows].unsqueeze(1) + self.mean[rows].unsqueeze(1)
        # Only the active: what a stopped problem is scored on again must be what it was scored on before.
        candidates[self.active, 0] = self.mean[self.active]
        if iteration == 0 and self._kept is not None and self._config.num_samples > 1:
            candidates[:, 1] = self._kept
        return self._problems.clamp_(candidates)

    def _commit(self, iteration: int, state: tuple[Tensor, ...], record: Tensor) -> None:
        """Take over state and trace record (3, B) of the problems still active; stop those that converged."""
        old = (self.mean, self.std, self.elites, self.best_actions, self.best_cost)
        if len(self.active) < len(self._problems.rng):
            is_active = torch.zeros_like(self.best_cost, dtype=torch.bool)
            is_active[self.active] = True
            state = tuple(
                torch.where(is_active.view(-1, *[1] * (new.ndim - 1)), new, kept)
                for new, kept in zip(state, old, strict=True)
            )
            record = torch.where(is_active, record, math.nan)
        self.mean, self.std, self.elites, self.best_actions, self.best_cost = state
        self._record.select(2, iteration).copy_(record)
        if self._config.early_stop_std > 0:
            shares = record[2].tolist()
            self.active = [row for row in self.active if shares[row] >= self._config.early_stop_std]
