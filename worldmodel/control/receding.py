"""Receding-horizon control, whatever plans are scored with: plan, carry out the beginning, look, plan again.

The bookkeeping of many problems at once is here (who is due, who has seen how much, who carries which plan), so that
the agents in `agents.py` only say what they see and what it costs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worldmodel.errors import ConfigError
from worldmodel.planners import CostFn, Plan, Planner
from worldmodel.planners.base import counts_steps
from worldmodel.types import Goal, Latent, to_tensor

Observation = dict[str, Any]
"""`pixels` (B, Y, X, 3) uint8, `proprio` (B, P) float32 and, for agents with `needs_state`, `state`: B full states."""


@dataclass(kw_only=True)
class Problem:
    """One row of a planning agent.

    Attributes:
        stream: Its random numbers.
        goal: What it was asked for.
        plan: The last plan (B = 1), None before the first.
        queue: (rows, A_env) env actions from the last replan on: those already decided for the delay, then that plan's.
        num_executed: How many of them have been carried out.
        num_calls: Sequences scored for it since it was started, counted as `Planner.num_calls` does.
        goal_latent: Encoded goal, for agents that have one.
        frames: Latents (1, 1, ...) of the last model steps, oldest first.
        actions: (1, 1, A) flat actions between those frames.
    """

    stream: torch.Generator
    goal: Goal
    plan: Plan | None = None
    queue: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 0), dtype=np.float32))
    num_executed: int = 0
    num_calls: int = 0
    goal_latent: Latent | None = None
    frames: list[Latent] = field(default_factory=list)
    actions: list[Tensor] = field(default_factory=list)


class CountedCost:
    """A cost function that counts what it was asked, per problem, in the unit of `Planner.num_calls`.

    Attributes:
        cost_fn: Does the scoring.
        counts_steps: Whether its costs are numbers of model steps to the goal.
        num_calls: Sequences scored so far; one that is to be differentiated counts three times.
    """

    def __init__(self, cost_fn: CostFn) -> None:
        self.cost_fn = cost_fn
        self.counts_steps = counts_steps(cost_fn)
        self.num_calls = 0

    def __call__(self, actions: Tensor) -> Tensor:
        """See `CostFn`."""
        self.num_calls += actions.shape[1] * (3 if actions.requires_grad else 1)
        return self.cost_fn(actions)


class PlanningAgent(ABC):
    """Receding-horizon control: plan, carry out the beginning, look, plan again from the shifted rest.

    Problems that are due at the same moment and have seen equally much are planned in one call.

    Args:
        planner: Search.
        low: (A,) smallest flat model action, env units.
        high: (A,) largest.
        action_block: Env actions in one model step.
        replan_every: Model steps carried out between plans, in [1, planner.horizon].
        delay: Model steps that pass before a new plan takes over, in [0, planner.horizon]; meanwhile the old one is
            carried out, or nothing is done before the first. With more of them than `replan_every` a plan is asked for
            as soon as the last one has arrived.
        time_budget_s: Seconds from the observation to the plan; None for no limit. Plan one problem at a time with it.
        warm_start: Start every search from the rest of the last plan; else from nothing.

    Attributes:
        replan_s: Wall seconds of every replan, from observation to plans, for all problems then due together.
        replan_s_per_problem: The same divided by the number of those problems.

    Raises:
        ConfigError: A value is out of range.
    """

    needs_state = False

    def __init__(
        self,
        planner: Planner,
        low: Tensor,
        high: Tensor,
        *,
        action_block: int,
        replan_every: int,
        delay: int = 0,
        time_budget_s: float | None = None,
        warm_start: bool = True,
    ) -> None:
        if action_block < 1:
            raise ConfigError(f"action_block must be >= 1, got {action_block}")
        if not 1 <= replan_every <= planner.horizon:
            raise ConfigError(f"replan_every must be in [1, horizon={planner.horizon}] model steps, got {replan_every}")
        if not 0 <= delay <= planner.horizon:
            raise ConfigError(
                f"a delay of {delay} model steps ({delay * action_block} control steps) does not fit into a plan of "
                f"horizon={planner.horizon}; plan faster or further ahead"
            )
        if time_budget_s is not None and not time_budget_s > 0:
            raise ConfigError(f"time_budget_s must be > 0 seconds or None, got {time_budget_s}")
        self.planner = planner
        self.delay = delay
        self.time_budget_s = time_budget_s
        self.warm_start = warm_start
        self.action_block = action_block
        self.replan_every = replan_every
        self.replan_s: list[float] = []
        self.replan_s_per_problem: list[float] = []
        self._low, self._high = low, high
        self._problems: list[Problem] = []

    @property
    def plan(self) -> Plan | None:
        """The last plan of every problem, in one record; None before the first action."""
        plans = [problem.plan for problem in self._problems if problem.plan is not None]
        return Plan.concat(plans) if plans and len(plans) == len(self._problems) else None

    @property
    def model_calls(self) -> tuple[int, ...]:
        """Sequences scored for every problem since it was started, in the unit of `Planner.num_calls`."""
        return tuple(problem.num_calls for problem in self._problems)

    def reset(self, goals: Sequence[Goal], *, seeds: Sequence[int], rows: Sequence[int] | None = None) -> None:
        """See `Agent.reset`."""
        chosen = check_rows(goals, seeds, rows, len(self._problems))
        fresh = [
            self._start(Problem(stream=torch.Generator().manual_seed(seed), goal=goal))
            for goal, seed in zip(goals, seeds, strict=True)
        ]
        if rows is None:
            self._problems = fresh
            return
        for row, problem in zip(chosen, fresh, strict=True):
            self._problems[row] = problem

    def act(self, obs: Observation) -> NDArray[np.float32]:
        """See `Agent.act`."""
        started = perf_counter()
        check_batch(obs, len(self._problems))
        due = [row for row, problem in enumerate(self._problems) if self._is_due(problem)]
        seen = [row for row, problem in enumerate(self._problems) if problem.num_executed % self.action_block == 0]
        self._observe(obs, seen, due)
        for rows in self._groups(due):
            self._replan(obs, rows, started)
        if due:
            seconds = perf_counter() - started
            self.replan_s.append(seconds)
            self.replan_s_per_problem.append(seconds / len(due))
        actions = np.stack([problem.queue[problem.num_executed] for problem in self._problems])
        for problem in self._problems:
            problem.num_executed += 1
        return actions

    @abstractmethod
    def _start(self, problem: Problem) -> Problem:
        """Check and prepare a problem's goal."""

    @abstractmethod
    def _observe(self, obs: Observation, seen: Sequence[int], due: Sequence[int]) -> None:
        """Take in the observation of the problems at a model step (`seen`), of which some replan (`due`)."""

    @abstractmethod
    def _cost(self, obs: Observation, rows: Sequence[int], decided: Tensor) -> CostFn:
        """Cost function of some problems, B of them, after the actions decided for the delay, (B, delay, A)."""

    @property
    def interval(self) -> int:
        """Model steps between two plans."""
        return max(self.replan_every, self.delay)

    def _is_due(self, problem: Problem) -> bool:
        return problem.plan is None or problem.num_executed == self.interval * self.action_block

    def _groups(self, due: Sequence[int]) -> list[list[int]]:
        """Problems that can share a call: all with a warm start or none, and contexts of one length."""
        groups: dict[tuple[bool, int], list[int]] = {}
        for row in due:
            problem = self._problems[row]
            groups.setdefault((problem.plan is None, len(problem.frames)), []).append(row)
        return list(groups.values())

    def _replan(self, obs: Observation, rows: Sequence[int], started: float) -> None:
        problems = [self._problems[row] for row in rows]
        plans = [problem.plan for problem in problems if problem.plan is not None]
        decided = np.stack([self._decided(problem) for problem in problems])
        ahead = to_tensor(decided, self._low.device).view(len(rows), self.delay, len(self._low))
        cost_fn = CountedCost(self._cost(obs, rows, ahead))
        left = None if self.time_budget_s is None else max(self.time_budget_s - (perf_counter() - started), 1e-6)
        plan = self.planner.plan(
            cost_fn,
            self._low,
            self._high,
            rng=[problem.stream for problem in problems],
            warm_start=Plan.concat(plans).shifted(self.interval) if plans and self.warm_start else None,
            time_budget_s=left,
        )
        # planners promise to stay inside; the robot must not depend on a promise
        flat = plan.actions.clamp(self._low, self._high).to(dtype=torch.float32).cpu().numpy()
        for index, problem in enumerate(problems):
            problem.plan = plan.select([index])
            problem.num_calls += cost_fn.num_calls
            new = flat[index].reshape(plan.horizon * self.action_block, -1)
            problem.queue = np.concatenate([decided[index], new])
            problem.num_executed = 0

    def _decided(self, problem: Problem) -> NDArray[np.float32]:
        """(delay x block, A_env) what is carried out before the next plan can be: the old plan, or nothing."""
        count = self.delay * self.action_block
        if problem.plan is None:
            idle = torch.zeros_like(self._low).clamp(self._low, self._high).float().cpu().numpy()
            return np.tile(idle.reshape(self.action_block, -1), (self.delay, 1))
        return problem.queue[problem.num_executed : problem.num_executed + count]


def check_rows(
    goals: Sequence[Goal], seeds: Sequence[int], rows: Sequence[int] | None, num_problems: int
) -> Sequence[int]:
    """Rows that a reset restarts.

    Raises:
        ConfigError: None at all, different numbers of goals, seeds and rows, or a row that does not exist.
    """
    chosen = range(len(goals)) if rows is None else rows
    if not len(goals) == len(seeds) == len(chosen) >= 1:
        counts = f"{len(goals)} goals, {len(seeds)} seeds, {len(chosen)} rows"
        raise ConfigError(f"reset needs as many seeds (and rows) as goals, at least one, got {counts}")
    if rows is not None and (len(set(rows)) != len(rows) or not all(0 <= row < num_problems for row in rows)):
        raise ConfigError(f"rows must be different and in [0, {num_problems}), got {list(rows)}")
    return chosen


def check_batch(obs: Observation, num_problems: int) -> None:
    """Refuse an observation of another number of problems than were reset.

    Raises:
        ConfigError: It is one.
    """
    if num_problems == 0:
        raise ConfigError("act() called before reset()")
    for name, values in obs.items():
        if len(values) != num_problems:
            raise ConfigError(f"obs[{name!r}] must hold {num_problems} rows, one per problem reset, got {len(values)}")
