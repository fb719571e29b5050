"""Reach: bring the gripper to the place it has in the goal picture."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from worldmodel.envs.base import Appearance, Array, Task
from worldmodel.envs.tabletop import OBJECT_HALF_M, WORKSPACE_HIGH, WORKSPACE_LOW, TabletopEnv
from worldmodel.errors import SimulationError

MIN_GOAL_DISTANCE_M = 0.10
_CLEARANCE_M = 0.11
_MAX_ATTEMPTS = 1000


class ReachEnv(TabletopEnv):
    """Success: the gripper is within 3 cm (3-D) of the goal position. Goals lie at least 10 cm from the start.

    The object stands on the table in both pictures at the same place; start and goal keep 11 cm of horizontal
    distance from it, or hover above it.
    """

    env_id: ClassVar[str] = "worldmodel/Reach-v0"
    success_radius_m: ClassVar[float] = 0.03

    def sample_task(self, rng: np.random.Generator, appearance: Appearance | None = None) -> Task:
        """See `GoalEnv.sample_task`."""
        low, high = WORKSPACE_LOW + 0.01, WORKSPACE_HIGH - 0.01
        for _ in range(_MAX_ATTEMPTS):
            cube = np.array([*rng.uniform(low[:2] + 0.03, high[:2] - 0.03), OBJECT_HALF_M])
            yaw = rng.uniform(-np.pi / 4, np.pi / 4)
            start, goal = rng.uniform(low, high), rng.uniform(low, high)
            if np.linalg.norm(goal - start) < MIN_GOAL_DISTANCE_M:
                continue
            if not (_is_clear(start, cube) and _is_clear(goal, cube)):
                continue
            return Task(
                env_id=self.env_id,
                start=self.pose_state(start, cube, yaw),
                goal=goal,
                goal_state=self.pose_state(goal, cube, yaw),
                appearance=appearance or Appearance(),
            )
        raise SimulationError(f"no valid Reach task found in {_MAX_ATTEMPTS} attempts")

    def goal_distance(self) -> float:
        """See `GoalEnv.goal_distance`."""
        return float(np.linalg.norm(self.gripper_position() - self._goal))


def _is_clear(gripper: Array, cube: Array) -> bool:
    return bool(np.linalg.norm(gripper[:2] - cube[:2]) > _CLEARANCE_M or gripper[2] > 3.5 * OBJECT_HALF_M)
