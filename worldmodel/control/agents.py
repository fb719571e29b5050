"""Agents: what turns observations into actions, for B problems at once.

`MPCAgent` plans in a world model, `OracleAgent` on the simulator; both replan in a receding horizon and share that
machinery (`receding.py`). `RandomAgent` and `NoopAgent` are the floors any claim is measured against.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worldmodel.control.costs import LatentCost, PlanningModel
from worldmodel.control.objectives import Objective, default_objective
from worldmodel.control.oracle import SimulatedLatentCost, SimulatorCost
from worldmodel.control.receding import Observation, PlanningAgent, Problem, check_batch, check_rows
from worldmodel.envs import make_env, resolve_env_id
from worldmodel.envs.base import Appearance, Task
from worldmodel.errors import ConfigError
from worldmodel.planners import CostFn, Planner
from worldmodel.types import Context, Goal, Latent, to_tensor


class Agent(Protocol):
    """Acts for B problems at once; each has a stream of its own, so its actions do not depend on the others."""

    @property
    def needs_state(self) -> bool:
        """Whether observations must hold the true state."""
        ...

    def reset(self, goals: Sequence[Goal], *, seeds: Sequence[int], rows: Sequence[int] | None = None) -> None:
        """Start problems.

        Args:
            goals: One per problem.
            seeds: One per problem.
            rows: Which problems to restart, the others carry on; None starts afresh with as many as there are goals.

        Raises:
            ConfigError: Goals, seeds and rows do not fit together, or a goal does not fit the agent.
        """
        ...

    def act(self, obs: Observation) -> NDArray[np.float32]:
        """Env actions (B, A_env) for the observation of all B problems.

        Raises:
            ConfigError: The observation does not fit the problems.
        """
        ...


class NoopAgent:
    """Never moves.

    Args:
        env_name: Name or id of the environment whose actions it gives.
    """

    needs_state = False

    def __init__(self, env_name: str) -> None:
        self._low, self._high = _env_bounds(env_name)
        self._num_problems = 0

    def reset(self, goals: Sequence[Goal], *, seeds: Sequence[int], rows: Sequence[int] | None = None) -> None:
        """See `Agent.reset`."""
        check_rows(goals, seeds, rows, self._num_problems)
        self._num_problems = len(goals) if rows is None else self._num_problems

    def act(self, obs: Observation) -> NDArray[np.float32]:
        """See `Agent.act`."""
        check_batch(obs, self._num_problems)
        zeros = np.zeros((self._num_problems, len(self._low)), dtype=np.float32)
        return np.clip(zeros, self._low, self._high)


class RandomAgent:
    """Draws every action uniformly from the action space.

    Args:
        env_name: Name or id of the environment whose actions it gives.
    """

    needs_state = False

    def __init__(self, env_name: str) -> None:
        self._low, self._high = _env_bounds(env_name)
        self._streams: list[torch.Generator] = []

    def reset(self, goals: Sequence[Goal], *, seeds: Sequence[int], rows: Sequence[int] | None = None) -> None:
        """See `Agent.reset`."""
        chosen = check_rows(goals, seeds, rows, len(self._streams))
        if rows is None:
            self._streams = [torch.Generator() for _ in chosen]
        for row, seed in zip(chosen, seeds, strict=True):
            self._streams[row] = torch.Generator().manual_seed(seed)

    def act(self, obs: Observation) -> NDArray[np.float32]:
        """See `Agent.act`."""
        check_batch(obs, len(self._streams))
        draws = np.stack([torch.rand(len(self._low), generator=stream).numpy() for stream in self._streams])
        actions: NDArray[np.float32] = self._low + (self._high - self._low) * draws
        return actions


class MPCAgent(PlanningAgent):
    """Plans in a world model towards a goal picture.

    Keeps the last W frames (one per model step) as context. Goals are encoded once, at reset.

    Args:
        world_model: Encodes and predicts; brings its action bounds and block.
        planner: Search.
        objective: What a plan should achieve.
        replan_every: Model steps carried out between plans, in [1, planner.horizon].
        delay: Control steps a plan takes to arrive, >= 0. The robot goes on meanwhile, and the search starts from the
            latent predicted for the moment its plan takes over: the next boundary of a model step.
        time_budget_s: Seconds from the observation to the plan; None for no limit.
        warm_start: Start every search from the rest of the last plan; else from nothing.

    Attributes:
        last_context: What the last plans started from, all problems planned together; None before the first.

    Raises:
        ConfigError: A value is out of range.
    """

    last_context: Context | None = None

    def __init__(
        self,
        world_model: PlanningModel,
        planner: Planner,
        objective: Objective,
        *,
        replan_every: int = 1,
        delay: int = 0,
        time_budget_s: float | None = None,
        warm_start: bool = True,
    ) -> None:
        low, high = world_model.spec.flat_bounds(world_model.device)
        block = world_model.spec.action_block
        if delay < 0:
            raise ConfigError(f"delay must be >= 0 control steps, got {delay}")
        super().__init__(
            planner,
            low,
            high,
            action_block=block,
            replan_every=replan_every,
            delay=math.ceil(delay / block),
            time_budget_s=time_budget_s,
            warm_start=warm_start,
        )
        self.world_model = world_model
        self.objective = objective.bind(world_model)

    def _start(self, problem: Problem) -> Problem:
        pixels = problem.goal.pixels
        expected = (self.world_model.spec.image_size, self.world_model.spec.image_size, 3)
        if pixels.shape != expected or pixels.dtype != np.uint8:
            raise ConfigError(f"the goal image must be {expected} uint8, got {pixels.shape} {pixels.dtype}; resize it")
        proprio = problem.goal.proprio
        problem.goal_latent = self._encode(pixels[None], None if proprio is None else proprio[None])
        return problem

    def _observe(self, obs: Observation, seen: Sequence[int], due: Sequence[int]) -> None:
        window = self.world_model.window
        rows = list(seen if window > 1 else due)
        if not rows:
            return
        latent = self._encode(obs["pixels"][rows], obs["proprio"][rows] if "proprio" in obs else None)
        for index, row in enumerate(rows):
            problem = self._problems[row]
            if problem.frames:
                block = problem.queue[problem.num_executed - self.action_block : problem.num_executed]
                problem.actions.append(to_tensor(block.reshape(1, 1, -1), self.world_model.device))
            proprio = None if latent.proprio is None else latent.proprio[index : index + 1]
            problem.frames.append(Latent(visual=latent.visual[index : index + 1], proprio=proprio))
            problem.frames = problem.frames[-window:]
            problem.actions = problem.actions[len(problem.actions) - len(problem.frames) + 1 :]

    def _cost(self, obs: Observation, rows: Sequence[int], decided: Tensor) -> CostFn:
        problems = [self._problems[row] for row in rows]
        latent = _stack([_stack(problem.frames, dim=1) for problem in problems], dim=0)
        no_action = self._low.new_empty(1, 0, len(self._low))
        actions = torch.cat([torch.cat([no_action, *problem.actions], dim=1) for problem in problems])
        goals = [problem.goal_latent for problem in problems if problem.goal_latent is not None]
        context = self._foreseen(Context(latent=latent, actions=actions), decided)
        self.last_context = context
        return LatentCost(self.world_model, self.objective, context, _stack(goals, dim=0))

    def _foreseen(self, context: Context, decided: Tensor) -> Context:
        """The context at the moment the plan takes over, after the decided actions (B, delay, A)."""
        if decided.shape[1] == 0:
            return context
        imagined = self.world_model.rollout(context, decided.unsqueeze(1))
        seen, window = context.latent, self.world_model.window
        frames = torch.cat([seen.visual, imagined.visual.squeeze(1).to(seen.visual)], dim=1)[:, -window:]
        body = None
        if seen.proprio is not None and imagined.proprio is not None:
            body = torch.cat([seen.proprio, imagined.proprio.squeeze(1).to(seen.proprio)], dim=1)[:, -window:]
        actions = torch.cat([context.actions, decided.to(context.actions)], dim=1)
        latent = Latent(visual=frames, proprio=body)
        return Context(latent=latent, actions=actions[:, actions.shape[1] - frames.shape[1] + 1 :])

    def _encode(self, pixels: NDArray[np.uint8], proprio: NDArray[np.float32] | None) -> Latent:
        """Latent (R, 1, ...) of R single frames."""
        known = proprio if self.world_model.spec.proprio_names else None
        beside = None if known is None else to_tensor(known).unsqueeze(1)
        with torch.no_grad():
            return self.world_model.encode(to_tensor(pixels).unsqueeze(1), beside)


class OracleAgent(PlanningAgent):
    """Plans on the simulator's true dynamics: the ceiling at a stated budget.

    With the true cost unless it is given a model to judge by. `Goal.state` must hold the true goal position,
    `Task.goal`, and `Goal.appearance` the look of the scene.

    Args:
        env_name: Name or id of the environment; the agent makes one of its own, which renders only for a model.
        planner: Search; its sizes are the budget.
        action_block: Env actions in one model step; that of the model when there is one.
        replan_every: Model steps carried out between plans, in [1, planner.horizon].
        world_model: Judges pictures of simulated states instead of the true cost.
        objective: What it judges by; None means the model's default.

    Raises:
        ConfigError: Unknown environment, or a value out of range.
    """

    needs_state = True

    def __init__(
        self,
        env_name: str,
        planner: Planner,
        *,
        action_block: int = 1,
        replan_every: int = 1,
        world_model: PlanningModel | None = None,
        objective: Objective | None = None,
    ) -> None:
        block = action_block if world_model is None else world_model.spec.action_block
        low, high = (torch.from_numpy(bound).repeat(max(block, 1)) for bound in _env_bounds(env_name))
        super().__init__(planner, low, high, action_block=block, replan_every=replan_every)
        self._env_id = resolve_env_id(env_name)
        self._world_model = world_model
        if world_model is None:
            self._env = make_env(env_name, render=False)
        else:
            self._env = make_env(env_name, image_size=world_model.spec.image_size)
            self._objective = (objective or default_objective(world_model)).bind(world_model)

    def close(self) -> None:
        """Free the environment it plans on."""
        self._env.close()

    def _start(self, problem: Problem) -> Problem:
        state = problem.goal.state
        if state is None or np.shape(state) != (3,):
            got = "none" if state is None else f"shape {np.shape(state)}"
            raise ConfigError(f"an oracle needs the true goal position (3,), `Task.goal`, as Goal.state; got {got}")
        if self._world_model is not None:
            problem.goal_latent = self._world_model.encode(to_tensor(problem.goal.pixels[None, None]))
        return problem

    def _observe(self, obs: Observation, seen: Sequence[int], due: Sequence[int]) -> None:
        if "state" not in obs:
            raise ConfigError("an oracle needs the true states: add obs['state'] (list of B vectors of get_state)")

    def _cost(self, obs: Observation, rows: Sequence[int], decided: Tensor) -> CostFn:
        states = [np.asarray(obs["state"][row], dtype=np.float64) for row in rows]
        problems = [self._problems[row] for row in rows]
        tasks = [
            Task(
                env_id=self._env_id,
                start=state,
                goal=np.asarray(problem.goal.state, dtype=np.float64),
                goal_state=state,
                appearance=problem.goal.appearance or Appearance(),
            )
            for problem, state in zip(problems, states, strict=True)
        ]
        if self._world_model is None:
            return SimulatorCost(self._env, states, tasks, self.action_block)
        goals = [problem.goal_latent for problem in problems if problem.goal_latent is not None]
        goal = _stack(goals, dim=0)
        return SimulatedLatentCost(self._env, states, tasks, self._world_model, self._objective, goal)


def _stack(latents: Sequence[Latent], dim: int) -> Latent:
    """Join latents along problems (0) or frames (1); proprioception only if all have it."""
    proprio = [latent.proprio for latent in latents if latent.proprio is not None]
    return Latent(
        visual=torch.cat([latent.visual for latent in latents], dim=dim),
        proprio=torch.cat(proprio, dim=dim) if len(proprio) == len(latents) else None,
    )


def _env_bounds(env_name: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(A_env,) bounds of the actions of an environment.

    Raises:
        ConfigError: Unknown environment, or its actions are not a vector.
    """
    env = make_env(env_name, render=False)
    space = env.action_space
    env.close()
    if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) != 1:
        raise ConfigError(f"{env_name!r} must have a vector of numbers as action, got {space}")
    return space.low.astype(np.float32), space.high.astype(np.float32)
