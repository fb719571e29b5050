"""Labels of clips, from the true states of the scene in every env step they span. Pure functions of numbers.

Separate from `probe_tasks.py`, which chooses the clips: states made by hand, with known answers, test these.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from worldmodel.errors import DataError

Floats = NDArray[np.float64]

ACTIONS = ("push_left", "push_right", "push_away", "push_towards", "touch", "approach", "retreat", "pass")
"""Kinds of actions, directions as the camera sees them: it looks along -x, so +y is right and +x comes nearer."""
POSES = (
    *("gripper_x", "gripper_y", "gripper_z", "object_x", "object_y"),
    *("object_turn_cos", "object_turn_sin", "gripper_vx", "gripper_vy", "gripper_vz"),
)
"""Quantities of the last frame. A box looks the same after a quarter turn, so its angle is taken four times; velocities
(m/s, over the last frame step) are in no single frame."""
NO_ACTION = -1
MIN_PUSH_M = 0.03
MAX_STILL_M = 0.01
MAX_UNTOUCHED_M = 0.005
MIN_APPROACH_M = 0.06
MAX_PASS_M = 0.02
MIN_PASS_MOTION_M = 0.05
DOMINANCE = 1.5
"""How much further an object must go along one axis than along the other to be pushed in that direction."""


def action_labels(gripper: NDArray[Any], thing: NDArray[Any], contact: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Kind of action of each clip, an index into `ACTIONS`, or `NO_ACTION` where none of them clearly applies.

    - push: the gripper touches the object, which ends at least 3 cm from where it began, mostly along one axis;
    - touch: the gripper touches the object, which ends within 1 cm of where it began;
    - approach, retreat: never touches; the distance falls, or grows, by at least 6 cm;
    - pass: never touches; the gripper ends at least 5 cm from where it began, and within 2 cm as far from the object.

    Args:
        gripper: (B, S, 3) position in every env step of the clip, metres.
        thing: (B, S, 3) position of the object.
        contact: (B, S) whether the gripper touches it.

    Raises:
        DataError: Shapes differ.
    """
    if gripper.shape != thing.shape or gripper.shape[:2] != contact.shape or gripper.shape[-1:] != (3,):
        raise DataError(f"need (B, S, 3) twice and (B, S), got {gripper.shape}, {thing.shape} and {contact.shape}")
    moved = (thing[:, -1] - thing[:, 0])[:, :2]
    size = np.linalg.norm(moved, axis=-1)
    distance = np.linalg.norm(gripper - thing, axis=-1)
    change = distance[:, -1] - distance[:, 0]
    travel = np.linalg.norm(gripper[:, -1] - gripper[:, 0], axis=-1)
    touched = contact.any(axis=1)
    alone = ~touched & (size <= MAX_UNTOUCHED_M)
    pushed = touched & (size >= MIN_PUSH_M)
    sideways = np.abs(moved[:, 1]) >= DOMINANCE * np.abs(moved[:, 0])
    in_depth = np.abs(moved[:, 0]) >= DOMINANCE * np.abs(moved[:, 1])
    conditions = {
        "push_left": pushed & sideways & (moved[:, 1] < 0),
        "push_right": pushed & sideways & (moved[:, 1] > 0),
        "push_away": pushed & in_depth & (moved[:, 0] < 0),
        "push_towards": pushed & in_depth & (moved[:, 0] > 0),
        "touch": touched & (size <= MAX_STILL_M),
        "approach": alone & (change <= -MIN_APPROACH_M),
        "retreat": alone & (change >= MIN_APPROACH_M),
        "pass": alone & (np.abs(change) <= MAX_PASS_M) & (travel >= MIN_PASS_MOTION_M),
    }
    labels = np.full(len(moved), NO_ACTION, np.int64)
    for number, name in enumerate(ACTIONS):
        labels[conditions[name]] = number
    return labels


def pose_targets(gripper: NDArray[Any], thing: NDArray[Any], yaw: NDArray[Any], step_s: float) -> NDArray[np.float32]:
    """`POSES` of each clip.

    Args:
        gripper: (B, T, 3) position in the frames of the clip, T >= 2, metres.
        thing: (B, T, 3) position of the object.
        yaw: (B, T) its angle, radians.
        step_s: Seconds between two frames of the clip.

    Raises:
        DataError: A clip of one frame has no velocity.
    """
    if gripper.shape[1] < 2:
        raise DataError("velocities need clips of at least 2 frames")
    turn = 4.0 * yaw[:, -1:]
    velocity = (gripper[:, -1] - gripper[:, -2]) / step_s
    parts = (gripper[:, -1], thing[:, -1, :2], np.cos(turn), np.sin(turn), velocity)
    return np.concatenate(parts, axis=1).astype(np.float32)


def frame_contacts(contact: NDArray[np.bool_], frame_step: int) -> NDArray[np.bool_]:
    """Whether the gripper touches the object in the time a frame stands for: until the next frame of the clip.

    Args:
        contact: (B, T * frame_step) in every env step.
        frame_step: Env steps from one frame to the next.

    Returns:
        (B, T).
    """
    return np.asarray(contact.reshape(len(contact), -1, frame_step).any(axis=2))


def object_boxes(
    project: Callable[[Floats], Floats], position: NDArray[Any], yaw: NDArray[Any], half_m: float, image_size: int
) -> Floats:
    """Boxes around a cube in the picture, cut off at its edges.

    Args:
        project: World points (..., 3) to pixels (..., 2).
        position: (..., 3) centre of the cube, metres.
        yaw: (...) its angle about the vertical, radians.
        half_m: Half its side.
        image_size: Side of the picture, pixels.

    Returns:
        (..., 4) left, top, right, bottom as shares of the picture, in [0, 1].
    """
    signs = np.stack(np.meshgrid([-1, 1], [-1, 1], [-1, 1], indexing="ij"), axis=-1).reshape(8, 3) * half_m
    cos, sin = np.cos(yaw)[..., None], np.sin(yaw)[..., None]
    x = signs[:, 0] * cos - signs[:, 1] * sin
    y = signs[:, 0] * sin + signs[:, 1] * cos
    corners = np.stack([x, y, np.broadcast_to(signs[:, 2], x.shape)], axis=-1) + position[..., None, :]
    pixels = project(corners.astype(np.float64)) / image_size
    boxes: Floats = np.clip(np.concatenate([pixels.min(axis=-2), pixels.max(axis=-2)], axis=-1), 0.0, 1.0)
    return boxes
