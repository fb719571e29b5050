"""Environments of one's own in a few lines: the state is a short vector, and four methods say what it does.

Apart from `base.py`, which only promises: here the promises are kept for everybody whose simulator is a function.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import gymnasium
import numpy as np
from numpy.typing import NDArray

from worldmodel.envs.base import Appearance, Array, GoalEnv, Task
from worldmodel.errors import ConfigError, SimulationError

_MAX_ATTEMPTS = 1000
_LARGEST = 1e3  # bound of proprioception that is declared; nothing is clipped to it


class StateEnv(GoalEnv):
    """A `GoalEnv` whose dynamics are a function of a vector, with tasks, snapshots and bookkeeping done.

    A subclass sets `env_id`, `max_steps`, `success_radius_m`, `privileged_names` (one name per entry of the state)
    and `action_dim`, and defines `sample_states`, `advance`, `draw` and, unless the first entries of the state are what
    must reach the goal, `goal_position`. Actions are in [-1, 1]^A.

    Args:
        image_size: Height and width of the pictures, pixels.
        render: False gives black pictures.
    """

    env_id: ClassVar[str]
    action_dim: ClassVar[int]
    proprio_dim: ClassVar[int | None] = None
    """So many first entries of the state are what the robot measures of itself; None for all of them."""

    def __init__(self, *, image_size: int = 64, render: bool = True) -> None:
        if image_size < 1:
            raise ConfigError(f"image_size must be >= 1, got {image_size}")
        self.image_size = image_size
        self.is_rendered = render
        size = len(self.privileged_names)
        self._num_proprio = size if self.proprio_dim is None else self.proprio_dim
        spaces: dict[str, gymnasium.Space[Any]] = {
            "pixels": gymnasium.spaces.Box(0, 255, (image_size, image_size, 3), np.uint8),
            "proprio": gymnasium.spaces.Box(-_LARGEST, _LARGEST, (self._num_proprio,), np.float32),
        }
        self.observation_space: gymnasium.Space[Any] = gymnasium.spaces.Dict(spaces)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (self.action_dim,), np.float32)
        self._state = np.zeros(size)
        self._task: Task | None = None
        self._num_steps = 0

    # ---- to be defined ------------------------------------------------------------------------------------------

    @abstractmethod
    def sample_states(self, rng: np.random.Generator) -> tuple[Array, Array]:
        """Start and goal state of a task; called again while the start is a success.

        Args:
            rng: Stream of this task alone.
        """

    @abstractmethod
    def advance(self, state: Array, action: Array) -> Array:
        """State after one control step, a new array.

        Args:
            state: Before it.
            action: (A,), in [-1, 1].
        """

    @abstractmethod
    def draw(self, state: Array) -> NDArray[np.uint8]:
        """Picture (image_size, image_size, 3) of a state."""

    def goal_position(self, state: Array) -> Array:
        """What must be brought to the goal, at most three coordinates in metres; the first entries of the state."""
        return state[:3]

    # ---- GoalEnv ------------------------------------------------------------------------------------------------

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Start the task in `options["task"]`, or sample one.

        Raises:
            ConfigError: The task belongs to another environment.
        """
        super().reset(seed=seed)
        task = (options or {}).get("task") or self.sample_task(self.np_random)
        if task.env_id != self.env_id:
            raise ConfigError(f"the task is one of {task.env_id}, this is {self.env_id}")
        self._task = task
        self.set_state(task.start)
        self._num_steps = 0
        return self._observe(), self._info()

    def step(self, action: NDArray[np.float32]) -> tuple[dict[str, NDArray[Any]], float, bool, bool, dict[str, Any]]:
        """One control step; the reward is minus the goal distance in metres."""
        self.simulate(action)
        self._num_steps += 1
        return self._observe(), -self.goal_distance(), False, self._num_steps >= self.max_steps, self._info()

    def simulate(self, action: NDArray[np.float32]) -> None:
        """See `GoalEnv.simulate`.

        Raises:
            ConfigError: The action has the wrong shape or is not finite.
            SimulationError: The new state is not finite.
        """
        values = np.asarray(action, dtype=np.float64)
        if values.shape != (self.action_dim,) or not np.isfinite(values).all():
            raise ConfigError(f"action must be {self.action_dim} finite numbers, got shape {values.shape}: {values}")
        self.set_state(self.advance(self._state.copy(), np.clip(values, -1.0, 1.0)))

    def sample_task(self, rng: np.random.Generator, appearance: Appearance | None = None) -> Task:
        """See `GoalEnv.sample_task`."""
        for _ in range(_MAX_ATTEMPTS):
            start, goal = (np.asarray(state, dtype=np.float64) for state in self.sample_states(rng))
            if np.linalg.norm(self._place(start) - self._place(goal)) > self.success_radius_m:
                look = appearance or Appearance()
                return Task(env_id=self.env_id, start=start, goal=self._place(goal), goal_state=goal, appearance=look)
        raise SimulationError(f"no unsolved task of {self.env_id} found in {_MAX_ATTEMPTS} attempts")

    def get_state(self) -> Array:
        """See `GoalEnv.get_state`."""
        return self._state.copy()

    def set_state(self, state: Array) -> None:
        """See `GoalEnv.set_state`."""
        values = np.asarray(state, dtype=np.float64)
        if values.shape != self._state.shape or not np.isfinite(values).all():
            raise SimulationError(f"state must be {len(self._state)} finite numbers, got {values}")
        self._state = values.copy()

    def render_goal(self, task: Task | None = None) -> NDArray[np.uint8]:
        """See `GoalEnv.render_goal`."""
        return self._picture((task or self._current()).goal_state)

    def privileged(self) -> Array:
        """The state."""
        return self._state.copy()

    def goal_distance(self) -> float:
        """Euclidean distance from `goal_position` to its goal, metres."""
        return float(np.linalg.norm(self._place(self._state) - self._current().goal))

    def oracle_cost(self) -> float:
        """The goal distance; override it where the way there needs shaping."""
        return self.goal_distance()

    def is_contact(self) -> bool:
        """Whether the robot touches the object, for `info["contact"]`; never, unless overridden."""
        return False

    def _current(self) -> Task:
        if self._task is None:
            raise SimulationError("there is no task before reset()")
        return self._task

    def _place(self, state: Array) -> Array:
        """`goal_position` as the (3,) of a task."""
        place = np.zeros(3)
        found = np.asarray(self.goal_position(state), dtype=np.float64)
        place[: len(found)] = found
        return place

    def _picture(self, state: Array) -> NDArray[np.uint8]:
        if not self.is_rendered:
            return np.zeros((self.image_size, self.image_size, 3), dtype=np.uint8)
        return np.asarray(self.draw(state.copy()), dtype=np.uint8)

    def _observe(self) -> dict[str, NDArray[Any]]:
        return {"pixels": self._picture(self._state), "proprio": self._state[: self._num_proprio].astype(np.float32)}

    def _info(self) -> dict[str, Any]:
        distance = self.goal_distance()
        return {"is_success": self.is_success(), "goal_distance": distance, "contact": self.is_contact()}
