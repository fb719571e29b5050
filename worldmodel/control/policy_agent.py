"""An agent that does not plan: it asks a goal-conditioned policy, carries out the answer, and asks again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worldmodel.control.receding import Observation, check_batch, check_rows
from worldmodel.errors import ConfigError
from worldmodel.models.policy import GoalPolicy
from worldmodel.types import Goal, to_tensor


@dataclass(kw_only=True)
class _Problem:
    """One row of the agent.

    Attributes:
        goal: (1, N, D) encoded goal.
        queue: (action_block, A_env) env actions of the last decision; empty before the first.
        num_executed: How many of them have been carried out.
    """

    goal: Tensor
    queue: NDArray[np.float32]
    num_executed: int = 0


class PolicyAgent:
    """Carries out each decision of a policy, `action_block` env actions, before it looks again.

    Args:
        policy: Decides; brings its action bounds and block. Goals are encoded once, at reset.
    """

    needs_state = False

    def __init__(self, policy: GoalPolicy) -> None:
        self.policy = policy
        self._problems: list[_Problem] = []

    def reset(self, goals: Sequence[Goal], *, seeds: Sequence[int], rows: Sequence[int] | None = None) -> None:
        """See `Agent.reset`; the policy draws nothing, so the seeds do not matter."""
        chosen = check_rows(goals, seeds, rows, len(self._problems))
        fresh = [self._start(goal) for goal in goals]
        if rows is None:
            self._problems = fresh
            return
        for row, problem in zip(chosen, fresh, strict=True):
            self._problems[row] = problem

    def act(self, obs: Observation) -> NDArray[np.float32]:
        """See `Agent.act`."""
        check_batch(obs, len(self._problems))
        due = [row for row, problem in enumerate(self._problems) if problem.num_executed == len(problem.queue)]
        if due:
            latent = self.policy.encode(to_tensor(obs["pixels"][due]))
            flat = self.policy.decide(latent, torch.cat([self._problems[row].goal for row in due])).cpu().numpy()
            for row, action in zip(due, flat, strict=True):
                problem = self._problems[row]
                problem.queue, problem.num_executed = action.reshape(self.policy.spec.action_block, -1), 0
        actions = np.stack([problem.queue[problem.num_executed] for problem in self._problems])
        for problem in self._problems:
            problem.num_executed += 1
        return actions

    def _start(self, goal: Goal) -> _Problem:
        expected = (self.policy.spec.image_size, self.policy.spec.image_size, 3)
        pixels = goal.pixels
        if pixels.shape != expected or pixels.dtype != np.uint8:
            raise ConfigError(f"the goal image must be {expected} uint8, got {pixels.shape} {pixels.dtype}; resize it")
        nothing = np.zeros((0, self.policy.spec.action_dim), dtype=np.float32)
        return _Problem(goal=self.policy.encode(to_tensor(pixels[None])), queue=nothing)
