"""The planner seam: a planner sees a function of actions, nothing else.

What every planner shares is here: the record it returns, the checks at its border, and arithmetic whose last bits do
not depend on how many problems are solved together.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor

from worldmodel.errors import ConfigError, PlanningError

CostFn = Callable[[Tensor], Tensor]
"""Maps actions (B, S, H, A) in env units to costs (B, S), lower is better. Always called with all B rows.

The tensor it is given is reused by the planner: a cost function that wants to keep it must copy it.
"""


@dataclass(kw_only=True)
class PlanTrace:
    """What happened in each iteration, J of them allowed; NaN where a problem had already stopped.

    Attributes:
        best_cost: (B, J) lowest cost seen up to and including this iteration.
        elite_cost: (B, J) mean cost of this iteration's elites.
        std: (B, J) spread of the elites as a share of half the action range, mean over steps and dimensions, before
            the floor is applied.
    """

    best_cost: Tensor
    elite_cost: Tensor
    std: Tensor

    @property
    def num_iterations(self) -> Tensor:
        """(B,) iterations each problem really ran."""
        return self.best_cost.isnan().logical_not().sum(dim=1)

    def select(self, rows: Sequence[int]) -> PlanTrace:
        """The trace of some problems, in the order given."""
        index = list(rows)
        return PlanTrace(best_cost=self.best_cost[index], elite_cost=self.elite_cost[index], std=self.std[index])


@dataclass(kw_only=True)
class Plan:
    """What a planner found for B problems, and what it needs to continue from there.

    Attributes:
        actions: (B, H, A) inside the bounds, env units.
        cost: (B,) cost of `actions`; NaN after `shifted`, where it is no longer known.
        mean: (B, H, A) centre of the last sampling distribution.
        std: (B, H, A) its standard deviation, env units.
        elites: (B, K, H, A) best candidates of the last iteration, best first.
        trace: Costs and spread per iteration.
        rng_state: State of each problem's stream before the first draw: with it and the same cost function the plan
            can be recomputed bit for bit. B separate tensors, because `torch.Generator.set_state` crashes on slices.
        seconds: Wall time of the `plan` call this came from, all its problems together.
    """

    actions: Tensor
    cost: Tensor
    mean: Tensor
    std: Tensor
    elites: Tensor
    trace: PlanTrace
    rng_state: tuple[Tensor, ...]
    seconds: float

    @property
    def num_problems(self) -> int:
        """B."""
        return self.actions.shape[0]

    @property
    def horizon(self) -> int:
        """H, model steps."""
        return self.actions.shape[1]

    def __rich__(self) -> object:
        from worldmodel.display import plan_table  # needs rich, which searching does not

        return plan_table(self)

    def _repr_html_(self) -> str:
        from worldmodel.display import plan_html

        return plan_html(self)

    def shifted(self, steps: int) -> Plan:
        """The part of the plan left after executing its first steps, as a warm start for the next call.

        The tail is filled with zero actions and with the last step's standard deviation.

        Args:
            steps: Model steps executed, >= 0; at `horizon` or beyond nothing is left but zeros.

        Raises:
            PlanningError: `steps` is negative.
        """
        if steps < 0:
            raise PlanningError(f"a plan can only be shifted forward: steps must be >= 0, got {steps}")
        num_new = min(steps, self.horizon)
        tail = self.std[:, -1:].expand(-1, num_new, -1)
        return Plan(
            actions=_shift(self.actions, num_new),
            cost=self.cost if steps == 0 else torch.full_like(self.cost, math.nan),
            mean=_shift(self.mean, num_new),
            std=torch.cat([self.std[:, num_new:], tail], dim=1),
            elites=_shift(self.elites, num_new),
            trace=self.trace,
            rng_state=self.rng_state,
            seconds=self.seconds,
        )

    def select(self, rows: Sequence[int]) -> Plan:
        """The plans of some problems, in the order given (copies)."""
        index = list(rows)
        return Plan(
            actions=self.actions[index],
            cost=self.cost[index],
            mean=self.mean[index],
            std=self.std[index],
            elites=self.elites[index],
            trace=self.trace.select(index),
            rng_state=tuple(self.rng_state[row] for row in index),
            seconds=self.seconds,
        )

    @staticmethod
    def concat(plans: Sequence[Plan]) -> Plan:
        """One plan for the problems of several, in order; `seconds` is the longest of theirs.

        Raises:
            PlanningError: There is none, or they differ in anything but the number of problems.
        """
        shapes = {(plan.actions.shape[1:], plan.elites.shape[1:], plan.trace.std.shape[1:]) for plan in plans}
        if len(shapes) != 1:
            raise PlanningError(f"plans to join must exist and agree in horizon, actions and elites, got {shapes}")
        traces = [plan.trace for plan in plans]
        return Plan(
            actions=torch.cat([plan.actions for plan in plans]),
            cost=torch.cat([plan.cost for plan in plans]),
            mean=torch.cat([plan.mean for plan in plans]),
            std=torch.cat([plan.std for plan in plans]),
            elites=torch.cat([plan.elites for plan in plans]),
            trace=PlanTrace(
                best_cost=torch.cat([trace.best_cost for trace in traces]),
                elite_cost=torch.cat([trace.elite_cost for trace in traces]),
                std=torch.cat([trace.std for trace in traces]),
            ),
            rng_state=tuple(state for plan in plans for state in plan.rng_state),
            seconds=max(plan.seconds for plan in plans),
        )


def _shift(sequence: Tensor, steps: int) -> Tensor:
    """Drop the first steps of (..., H, A) and append as many zero actions."""
    tail = torch.zeros_like(sequence[..., :steps, :])
    return torch.cat([sequence[..., steps:, :], tail], dim=-2)


@dataclass(kw_only=True)
class Planner(ABC):
    """Searches for cheap action sequences. Fields are hyper-parameters; nothing evolves inside.

    Attributes:
        horizon: H, model steps to plan ahead, >= 1.
    """

    horizon: int = 5

    def __post_init__(self) -> None:
        check_at_least("horizon", self.horizon, 1)

    @property
    def num_calls(self) -> int | None:
        """Model calls per problem and plan at most, None when unknown.

        A sequence scored is one call; one that is differentiated as well counts three times, as its backward pass
        costs twice the forward one.
        """
        return None

    @abstractmethod
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
        """Plan for B problems at once; a problem's plan depends on nothing but its own cost and stream.

        Args:
            cost_fn: Cost of candidate sequences, see `CostFn`.
            low: (A,) or (B, A) smallest actions, env units. Its dtype and device are those of the candidates.
            high: Same shape; largest actions. Equal bounds freeze a dimension.
            rng: One stream per problem; B is their number. They advance.
            warm_start: An earlier plan for the same problems, already `shifted` by the steps executed since.
            time_budget_s: Return the best found so far when the next iteration would not finish in time. At least one
                iteration always runs.

        Raises:
            PlanningError: Unusable bounds, streams, warm start or time budget, or a cost of the wrong shape or not
                finite.
        """


@dataclass(kw_only=True)
class Problems:
    """The checked inputs of one `plan` call, in the shapes planners compute with.

    Attributes:
        low: (B, 1, A) bounds; `high` and `half_range` likewise.
        share: (B, 1, A) factor from env units to shares of half the range; 0 for frozen dimensions.
        rng: B streams.
        horizon: H.
    """

    low: Tensor
    high: Tensor
    half_range: Tensor
    share: Tensor
    rng: Sequence[torch.Generator]
    horizon: int

    @classmethod
    def check(cls, low: Tensor, high: Tensor, rng: Sequence[torch.Generator], horizon: int) -> Problems:
        """Validate bounds and streams.

        Raises:
            PlanningError: What is wrong with them.
        """
        num_problems = len(rng)
        if num_problems == 0:
            raise PlanningError("rng must hold one torch.Generator per problem, got none")
        if len({id(stream) for stream in rng}) != num_problems:
            raise PlanningError("every problem needs a torch.Generator of its own; the same object was given twice")
        for name, bound in (("low", low), ("high", high)):
            if not isinstance(bound, Tensor) or not bound.is_floating_point():
                raise PlanningError(f"{name} must be a floating-point tensor, got {_describe(bound)}")
            if bound.ndim not in (1, 2) or bound.shape[-1] == 0 or (bound.ndim == 2 and len(bound) != num_problems):
                raise PlanningError(f"{name} must have shape (A,) or (B={num_problems}, A), got {tuple(bound.shape)}")
            if not bound.isfinite().all():
                raise PlanningError(f"{name} must be finite, got {bound.tolist()}")
        if low.shape != high.shape or low.dtype != high.dtype or low.device != high.device:
            raise PlanningError(f"low and high must be alike, got {_describe(low)} and {_describe(high)}")
        if (low > high).any():
            where = (low > high).nonzero()[0].tolist()
            index = tuple(where)
            raise PlanningError(
                f"bounds are reversed at {where}: low {low[index].item()} > high {high[index].item()}; swap them"
            )
        shape = (num_problems, 1, low.shape[-1])
        low, high = (bound.unsqueeze(-2).expand(shape).contiguous() for bound in (low, high))
        half_range = high * 0.5 - low * 0.5
        share = torch.where(half_range > 0, 1 / half_range, 0.0)
        return cls(low=low, high=high, half_range=half_range, share=share, rng=rng, horizon=horizon)

    @property
    def sequence_shape(self) -> tuple[int, int, int]:
        """(B, H, A)."""
        return self.low.shape[0], self.horizon, self.low.shape[2]

    def clamp_(self, sequences: Tensor) -> Tensor:
        """Put (B, H, A) or (B, S, H, A) inside the bounds, in place."""
        low, high = (self.low, self.high) if sequences.ndim == 3 else (self.low.unsqueeze(1), self.high.unsqueeze(1))
        return torch.clamp(sequences, low, high, out=sequences)

    def draw_(self, noise: Tensor, rows: Sequence[int], *, is_uniform: bool = False) -> Tensor:
        """Fill the given rows of (B, S, H, A) with random numbers, each from its own problem's stream.

        Args:
            noise: Filled in place.
            rows: Problems to draw for.
            is_uniform: Draw from [0, 1) instead of the standard normal distribution.
        """
        for row in rows:
            stream = self.rng[row]
            own = noise[row]
            # a stream on the CPU serves models anywhere, so that seeds mean the same on every device
            drawn = own if stream.device == own.device else torch.empty_like(own, device=stream.device)
            if is_uniform:
                drawn.uniform_(generator=stream)
            else:
                drawn.normal_(generator=stream)
            if drawn is not own:
                own.copy_(drawn)
        return noise

    def rng_state(self) -> tuple[Tensor, ...]:
        """States of the B streams."""
        return tuple(stream.get_state() for stream in self.rng)

    def check_warm_start(self, plan: Plan) -> None:
        """Refuse a plan made for other problems.

        Raises:
            PlanningError: Shapes differ, or the plan is not finite.
        """
        for name, sequence in (("actions", plan.actions), ("mean", plan.mean)):
            if tuple(sequence.shape) != self.sequence_shape:
                raise PlanningError(
                    f"warm_start.{name} must have shape (B, H, A) = {self.sequence_shape}, got "
                    f"{tuple(sequence.shape)}; use Plan.select for other problems and Plan.shifted for executed steps"
                )
            if not sequence.isfinite().all():
                raise PlanningError(f"warm_start.{name} holds numbers that are not finite")

    def check_cost(self, cost: Tensor, num_samples: int, iteration: int) -> Tensor:
        """Validate what a cost function returned and bring it to the candidates' dtype and device.

        Args:
            cost: Expected (B, S).
            num_samples: S.
            iteration: Counted from 0, for the message.

        Raises:
            PlanningError: Wrong type or shape, or not finite.
        """
        expected = (len(self.rng), num_samples)
        if not isinstance(cost, Tensor) or not cost.is_floating_point() or tuple(cost.shape) != expected:
            raise PlanningError(
                f"cost_fn must return a float tensor of shape (B, S) = {expected}, got {_describe(cost)}"
            )
        # one sum is the cheapest test; only finite costs so large that their sum overflows need the second look
        if not math.isfinite(cost.sum().item()):
            for problem, candidate in cost.isfinite().logical_not().nonzero().tolist():
                raise PlanningError(
                    f"cost is {cost[problem, candidate].item()} at iteration {iteration}, problem {problem}, candidate "
                    f"{candidate}; a cost must be finite for every action inside the bounds"
                )
        return cost.detach().to(self.low)


def counts_steps(cost_fn: CostFn) -> bool:
    """Whether a cost function says that its costs are numbers of model steps to the goal (`counts_steps`)."""
    return bool(getattr(cost_fn, "counts_steps", False))


class Stopwatch:
    """Wall time of one `plan` call, and whether another iteration fits into its budget.

    Args:
        time_budget_s: Seconds; None for no limit.

    Raises:
        PlanningError: The budget is zero, negative or NaN.
    """

    def __init__(self, time_budget_s: float | None) -> None:
        if time_budget_s is not None and not time_budget_s > 0:
            raise PlanningError(f"time_budget_s must be > 0 seconds or None, got {time_budget_s}")
        self._started = self._lap = perf_counter()
        self._budget = math.inf if time_budget_s is None else time_budget_s
        self._slowest = 0.0

    def seconds(self) -> float:
        """Seconds since the start."""
        return perf_counter() - self._started

    def has_time(self) -> bool:
        """Call it after every iteration: whether one as slow as the slowest so far would end in time."""
        now = perf_counter()
        self._slowest = max(self._slowest, now - self._lap)
        self._lap = now
        return now - self._started + self._slowest <= self._budget


def check_at_least(name: str, value: float, smallest: float) -> None:
    """Refuse a hyper-parameter below its smallest value.

    Raises:
        ConfigError: It is smaller, or NaN.
    """
    if not value >= smallest or math.isinf(value):
        raise ConfigError(f"{name} must be finite and >= {smallest}, got {value}")


def mean_over(values: Tensor) -> Tensor:
    """Mean of (B, K, ...) over K whose bits do not depend on B.

    Library sums choose their order by shape and thread count. A running sum has only one order.
    """
    return values.cumsum(dim=1).select(1, -1) * (1.0 / values.shape[1])


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} tensor of shape {tuple(value.shape)} on {value.device}"
    return type(value).__name__
