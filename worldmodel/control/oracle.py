"""Planning on the simulator itself: the ceiling any model can be compared with, behind the same seam."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from worldmodel.control.costs import PlanningModel
from worldmodel.control.objectives import Objective, check_step_weights, step_weights
from worldmodel.envs.base import Array, GoalEnv, Task
from worldmodel.errors import ConfigError, PlanningError
from worldmodel.types import Latent


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
        blocks = env_blocks(actions, self._env, len(self._tasks), self._block)
        num_problems, num_samples, horizon = blocks.shape[:3]
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


class SimulatedLatentCost:
    """Cost of action sequences under the true dynamics, judged as a model judges: objective on encoded pictures.

    Beside the model's own plans it tells errors of the predictor (this cost finds better plans) from errors of the
    cost (it does not). Only the steps the objective scores are drawn and encoded. The environment is left in some
    later state: give the oracle one of its own, which renders.

    Attributes:
        counts_steps: See `LatentCost`.

    Args:
        env: Simulates and draws all problems, one after another.
        states: Full states at which the B plans start.
        tasks: Their tasks; goal and look matter, the start does not.
        world_model: Encodes pictures; its action block is the model step.
        objective: Bound to the model.
        goal: Encoded goal pictures: visual (B, 1, N, D).

    Raises:
        ConfigError: Different numbers of states, tasks and goals.
    """

    def __init__(
        self,
        env: GoalEnv,
        states: Sequence[Array],
        tasks: Sequence[Task],
        world_model: PlanningModel,
        objective: Objective,
        goal: Latent,
    ) -> None:
        if not len(states) == len(tasks) == len(goal.visual):
            counts = f"{len(states)} states, {len(tasks)} tasks, {len(goal.visual)} goals"
            raise ConfigError(f"every problem needs a state, a task and a goal, got {counts}")
        self.counts_steps = objective.counts_steps
        self._env = env
        self._states = states
        self._tasks = tasks
        self._world_model = world_model
        self._objective = objective
        self._goal = Latent(visual=goal.visual.unsqueeze(1))

    def __call__(self, actions: Tensor) -> Tensor:
        """Actions (B, S, H, A) in env units -> costs (B, S).

        Raises:
            PlanningError: The actions do not fit the problems or the environment.
            SimulationError: The simulation diverged.
        """
        blocks = env_blocks(actions, self._env, len(self._tasks), self._world_model.spec.action_block)
        num_samples, horizon = blocks.shape[1:3]
        scored = self._objective.scored_steps(horizon)
        visual = self._goal.visual.expand(-1, num_samples, horizon, -1, -1).clone()
        for problem, task in enumerate(self._tasks if any(scored) else ()):
            self._env.reset(options={"task": task})
            pictures: list[np.ndarray] = []
            for candidate in range(num_samples):
                pictures += self._simulate(self._states[problem], blocks[problem, candidate], scored)
            # problem by problem: the bits of a latent depend on how many frames are encoded with it
            seen = self._world_model.encode_batch(torch.from_numpy(np.stack(pictures)))
            visual[problem][:, list(scored)] = seen.unflatten(0, (num_samples, sum(scored))).to(visual)
        cost: Tensor = self._objective(Latent(visual=visual), self._goal, actions.to(visual.device))
        return cost.to(actions)

    def _simulate(self, state: Array, blocks: np.ndarray, scored: Sequence[bool]) -> list[np.ndarray]:
        """Pictures (Y, X, 3) at the end of the scored ones of H blocks (H, block, A_env)."""
        self._env.set_state(state)
        pictures = []
        for block, is_scored in zip(blocks, scored, strict=True):
            for action in block[:-1]:
                self._env.simulate(action)
            if is_scored:
                pictures.append(self._env.step(block[-1])[0]["pixels"])
            else:
                self._env.simulate(block[-1])
        return pictures


def env_blocks(actions: Tensor, env: GoalEnv, num_problems: int, action_block: int) -> np.ndarray:
    """Env actions (B, S, H, block, A_env), float32, of flat model actions (B, S, H, A).

    Raises:
        PlanningError: The actions do not fit the problems or the environment.
    """
    shape = env.action_space.shape
    env_dim = shape[0] if shape else 0
    expected = (num_problems, action_block * env_dim)
    if actions.ndim != 4 or (actions.shape[0], actions.shape[3]) != expected:
        raise PlanningError(
            f"actions must be (B={expected[0]}, S, H, A={expected[1]}) for {action_block} actions of {env_dim} "
            f"numbers a step, got {tuple(actions.shape)}"
        )
    flat = actions.detach().cpu().to(torch.float32).numpy()
    return flat.reshape(*actions.shape[:3], action_block, env_dim)
