"""Inverse kinematics of the arm: a gripper position with the hand pointing straight down, as joint angles."""

from __future__ import annotations

import mujoco
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

HOME = np.array([0.0, -0.2, 0.0, -2.4, 0.0, 2.2, np.pi / 4])
"""Joint angles (rad) the null space is pulled to, so that one gripper position has one arm posture."""


class ArmKinematics:
    """Damped least squares with a null-space pull, on a private copy of the kinematic state.

    Source: Buss, "Introduction to inverse kinematics with Jacobian transpose, pseudoinverse and damped least squares
    methods" (2004), eq. 11, plus the usual null-space term.

    Args:
        model: Compiled tabletop model; its first seven degrees of freedom are the arm.
    """

    num_joints = 7

    def __init__(self, model: mujoco.MjModel) -> None:
        self._model = model
        self._data = mujoco.MjData(model)
        self._site = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_SITE, "gripper")
        self._jacobian = np.zeros((6, model.nv))
        self._low = model.jnt_range[: self.num_joints, 0]
        self._high = model.jnt_range[: self.num_joints, 1]
        self._damping = 1e-4 * np.eye(6)
        self._error = np.zeros(6)

    def solve(self, target: Array, start: Array, *, tolerance_m: float = 2e-4, max_iterations: int = 30) -> Array:
        """Joint angles that bring the gripper to `target`.

        Args:
            target: (3,) gripper position, metres, world frame.
            start: (7,) joint angles to start from, radians.
            tolerance_m: Stop when position error (and orientation error in radians) is below this.
            max_iterations: Give up improving after this many steps and return the best effort.

        Returns:
            (7,) joint angles inside the joint limits.
        """
        angles = start.copy()
        n = self.num_joints
        for _ in range(max_iterations):
            self._data.qpos[:n] = angles
            mujoco.mj_kinematics(self._model, self._data)
            mujoco.mj_comPos(self._model, self._data)
            error = self._pose_error(target)
            if np.abs(error).max() < tolerance_m:
                break
            mujoco.mj_jacSite(self._model, self._data, self._jacobian[:3], self._jacobian[3:], self._site)
            jacobian = self._jacobian[:, :n]
            pinv = np.linalg.solve(jacobian @ jacobian.T + self._damping, jacobian).T
            posture = 0.2 * (HOME - angles)
            angles = angles + pinv @ (error - jacobian @ posture) + posture
            np.clip(angles, self._low, self._high, out=angles)
        return angles

    def gripper_position(self, angles: Array) -> Array:
        """(3,) gripper position in metres at the given joint angles."""
        self._data.qpos[: self.num_joints] = angles
        mujoco.mj_kinematics(self._model, self._data)
        position: Array = self._data.site_xpos[self._site].copy()
        return position

    def _pose_error(self, target: Array) -> Array:
        """(6,) position error and rotation vector from the current hand frame to "fingers down, opening along y"."""
        self._error[:3] = target - self._data.site_xpos[self._site]
        rotation = self._data.site_xmat[self._site].reshape(3, 3)
        # Half the sum of cross products of the hand's axes with the wanted ones (x stays, y and z flipped): the
        # rotation vector to first order.
        self._error[3] = 0.5 * (rotation[2, 1] - rotation[1, 2])
        self._error[4] = 0.5 * (rotation[2, 0] + rotation[0, 2])
        self._error[5] = -0.5 * (rotation[0, 1] + rotation[1, 0])
        return self._error
