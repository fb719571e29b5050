"""Push: bring the block to the place it has in the goal picture."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from worldmodel.envs.base import Appearance, Array, Task
from worldmodel.envs.tabletop import OBJECT_HALF_M, WORKSPACE_HIGH, WORKSPACE_LOW, TabletopEnv
from worldmodel.errors import SimulationError

MIN_GOAL_DISTANCE_M = 0.12
MAX_GOAL_DISTANCE_M = 0.25
_OBJECT_LOW = WORKSPACE_LOW[:2] + 0.06
_OBJECT_HIGH = WORKSPACE_HIGH[:2] - 0.06
PUSH_HEIGHT_M = 0.03
CONTACT_GAP_M = OBJECT_HALF_M + 0.018
"""Distance between gripper and block centre when the closed fingers push, metres."""
_MAX_ATTEMPTS = 5000


class PushEnv(TabletopEnv):
    """Success: the block (a free 7 cm cube) is within 4 cm of its goal position in the plane.

    Goals lie 12 to 25 cm from the start; the gripper starts 9 to 18 cm from the block, on any side of it. The goal
    picture shows the end of a push: block at its goal, turned by a few degrees, closed gripper behind it.
    """

    env_id: ClassVar[str] = "worldmodel/Push-v0"
    success_radius_m: ClassVar[float] = 0.04

    def sample_task(self, rng: np.random.Generator, appearance: Appearance | None = None) -> Task:
        """See `GoalEnv.sample_task`."""
        for _ in range(_MAX_ATTEMPTS):
            start, goal = rng.uniform(_OBJECT_LOW, _OBJECT_HIGH), rng.uniform(_OBJECT_LOW, _OBJECT_HIGH)
            gripper = np.array([*rng.uniform(WORKSPACE_LOW[:2], WORKSPACE_HIGH[:2]), rng.uniform(0.03, 0.10)])
            distance = np.linalg.norm(goal - start)
            if not MIN_GOAL_DISTANCE_M <= distance <= MAX_GOAL_DISTANCE_M:
                continue
            if not 0.09 <= np.linalg.norm(gripper[:2] - start) <= 0.18:
                continue
            yaw = rng.uniform(-np.pi / 4, np.pi / 4)
            direction = (goal - start) / distance
            behind = np.append(goal - direction * _contact_gap(direction, yaw), PUSH_HEIGHT_M)
            if not (behind >= WORKSPACE_LOW).all() or not (behind <= WORKSPACE_HIGH).all():
                continue
            turn = rng.normal(0.0, 0.1)
            return Task(
                env_id=self.env_id,
                start=self.pose_state(gripper, np.append(start, OBJECT_HALF_M), yaw),
                goal=np.append(goal, OBJECT_HALF_M),
                goal_state=self.pose_state(behind, np.append(goal, OBJECT_HALF_M), yaw + turn),
                appearance=appearance or Appearance(),
            )
        raise SimulationError(f"no valid Push task found in {_MAX_ATTEMPTS} attempts")

    def goal_distance(self) -> float:
        """See `GoalEnv.goal_distance`."""
        position, _ = self.object_pose()
        return float(np.linalg.norm(position[:2] - self._goal[:2]))

    def oracle_cost(self) -> float:
        """See `GoalEnv.oracle_cost`."""
        position, yaw = self.object_pose()
        offset = self._goal[:2] - position[:2]
        distance = float(np.linalg.norm(offset))
        direction = offset / max(distance, 1e-6)
        behind = np.append(position[:2] - direction * _contact_gap(direction, yaw), PUSH_HEIGHT_M)
        approach = float(np.linalg.norm(self.gripper_position() - behind))
        # Approach counts only while there is something left to push.
        return distance + 0.2 * min(1.0, distance / 0.04) * approach


def _contact_gap(direction: Array, yaw: float) -> float:
    """Distance in metres between block centre and gripper when the fingers touch, for a push along `direction`."""
    angle = np.arctan2(direction[1], direction[0]) - yaw
    facing = abs((angle + np.pi / 4) % (np.pi / 2) - np.pi / 4)
    return float(OBJECT_HALF_M / np.cos(facing) + CONTACT_GAP_M - OBJECT_HALF_M)
