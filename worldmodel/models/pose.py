"""Poses of a robot hand as V-JEPA 2-AC writes them, and how an action changes them.

A pose is 7 numbers: position (m), extrinsic xyz Euler angles (rad), gripper closedness in [0, 1], in the frame of the
robot's base. An action is 7 numbers as well: the change of position, the Euler angles of R' R^T, the change of the
gripper (arXiv:2506.09985, section 3; figures in the DROID recipe).
"""

from __future__ import annotations

import torch
from torch import Tensor

POSE_DIM = 7


def propagate_pose(pose: Tensor, action: Tensor) -> Tensor:
    """Pose after an action: positions add, rotations multiply from the left, the gripper adds and is clipped.

    Args:
        pose: (..., 7).
        action: (..., 7).

    Returns:
        (..., 7).
    """
    turned = euler_of(rotation_of(action[..., 3:6]) @ rotation_of(pose[..., 3:6]))
    gripper = (pose[..., 6:] + action[..., 6:]).clamp(0, 1)
    return torch.cat([pose[..., :3] + action[..., :3], turned, gripper], dim=-1)


def pose_change(before: Tensor, after: Tensor) -> Tensor:
    """Action that leads from one pose to another, (..., 7) each -> (..., 7); the inverse of `propagate_pose`."""
    turn = euler_of(rotation_of(after[..., 3:6]) @ rotation_of(before[..., 3:6]).transpose(-1, -2))
    return torch.cat([after[..., :3] - before[..., :3], turn, after[..., 6:] - before[..., 6:]], dim=-1)


def rotation_of(angles: Tensor) -> Tensor:
    """Matrices (..., 3, 3) = Rz Ry Rx of extrinsic xyz Euler angles (..., 3), radians."""
    (cx, cy, cz), (sx, sy, sz) = angles.cos().unbind(-1), angles.sin().unbind(-1)
    rows = (
        (cz * cy, cz * sy * sx - sz * cx, cz * sy * cx + sz * sx),
        (sz * cy, sz * sy * sx + cz * cx, sz * sy * cx - cz * sx),
        (-sy, cy * sx, cy * cx),
    )
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def euler_of(rotation: Tensor) -> Tensor:
    """Extrinsic xyz Euler angles (..., 3) of matrices (..., 3, 3); y is in [-pi/2, pi/2]."""
    x = torch.atan2(rotation[..., 2, 1], rotation[..., 2, 2])
    y = torch.atan2(-rotation[..., 2, 0], torch.hypot(rotation[..., 0, 0], rotation[..., 1, 0]))
    z = torch.atan2(rotation[..., 1, 0], rotation[..., 0, 0])
    return torch.stack([x, y, z], dim=-1)
