"""Planning on the simulator itself: the ceiling any model can be compared with, behind the same seam."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from worldmodel.control.objectives import check_step_weights, step_weights
from worldmodel.envs.base import Array, GoalEnv, Task
from worldmodel.errors import ConfigError, PlanningError


class SimulatorCost:
    """Cost of action sequences under the true dynamics (a `CostFn`): `GoalEnv.oracle_cost` after every model step.

    Steps are weighted as in `GoalDistance`. The environment is left in some later state: give the oracle one of its
    own, made without rendering.

    Args:
        env: Simulates all problems, one after another.
        states: Full states at which the B plans start.
        tasks: Their tasks; the goal and the look of the object matter, the start does not.
        action_block: Env actions in one model step.
        last_step_weight: Weight of the last step of the horizon, > 0.
        step_weight: Weight of every earlier step, >= 0.

    Raises:
        ConfigError: Different numbers of states and tasks, or a value out of range.
    """

    def __init__(
        self,
        env: GoalEnv,
        states: Sequence[Array],
        tasks: Sequence[Task],
        action_block: int,
        *,
        last_step_weight: float = 1.0,
        step_weight: float = 0.3,
    ) -> None:
        if len(states) != len(tasks):
            raise ConfigError(f"every problem needs a state and a task, got {len(states)} and {len(tasks)}")
        if action_block < 1:
            raise ConfigError(f"action_block must be >= 1, got {action_block}")
        check_step_weights(last_step_weight, step_weight)
        self._env = env
        self._states = states
        self._tasks = tasks
        self._block = action_block
        self._last_step_weight = last_step_weight
        self._step_weight = step_weight

    def __call__(self, actions: Tensor) -> Tensor:
        """Actions (B, S, H, A) in env units -> costs (B, S), metres.

        Raises:
            PlanningError: The actions do not fit the problems or the environment.
            SimulationError: The simulation diverged.
        """
        shape = self._env.action_space.shape
        env_dim = shape[0] if shape else 0
        expected = (len(self._tasks), self._block * env_dim)
        if actions.ndim != 4 or (actions.shape[0], actions.shape[3]) != expected:
            raise PlanningError(
                f"actions must be (B={expected[0]}, S, H, A={expected[1]}) for {self._block} actions of {env_dim} "
                f"numbers a step, got {tuple(actions.shape)}"
            )
        num_problems, num_samples, horizon, _ = actions.shape
        blocks = actions.detach().cpu().to(torch.float32).numpy()
        blocks = blocks.reshape(num_problems, num_samples, horizon, self._block, env_dim)
        cost = np.empty((num_problems, num_samples, horizon))
        for problem, task in enumerate(self._tasks):
            # the task brings its goal into the environment; the state then moves it to where the plan starts
            self._env.reset(options={"task": task})
            for candidate in range(num_samples):
                cost[problem, candidate] = self._simulate(self._states[problem], blocks[problem, candidate])
        weights = step_weights(horizon, self._last_step_weight, self._step_weight)
        weighted: Tensor = (torch.from_numpy(cost).to(weights) * weights).sum(dim=-1)
        return weighted.to(actions)

    def _simulate(self, state: Array, blocks: np.ndarray) -> list[float]:
        """Oracle cost after each of the H blocks (H, block, A_env)."""
        self._env.set_state(state)
        costs = []
        for block in blocks:
            for action in block:
                self._env.simulate(action)
            costs.append(self._env.oracle_cost())
        return costs
