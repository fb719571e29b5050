"""The contract every environment of this package fulfils, and the records it speaks in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import gymnasium
import numpy as np
from numpy.typing import NDArray

from worldmodel.errors import ConfigError

Array = NDArray[np.float64]

OBJECT_SHAPES = ("box", "cylinder", "sphere")

_NEW_COLOUR = 0.3  # distance in RGB from the trained colour, of a largest possible 1.7
_CONTRAST = 0.4  # of the object to the table it lies on


@dataclass(frozen=True, kw_only=True)
class Appearance:
    """How the scene looks; physics never depends on it, except `object_shape`. Every default is the trained look.

    Attributes:
        object_rgb: Colour of the movable object, each channel in [0, 1].
        table_rgb: Colour of the table top, each channel in [0, 1].
        arm_rgb: Colour of the arm links, each channel in [0, 1].
        light: Brightness of the lamp relative to the default, > 0.
        camera_offset_m: Displacement (3) of the camera, metres, world frame.
        object_shape: One of `OBJECT_SHAPES`.
    """

    object_rgb: tuple[float, float, float] = (0.85, 0.20, 0.15)
    table_rgb: tuple[float, float, float] = (0.80, 0.78, 0.72)
    arm_rgb: tuple[float, float, float] = (0.35, 0.55, 0.85)
    light: float = 1.0
    camera_offset_m: tuple[float, float, float] = (0.0, 0.0, 0.0)
    object_shape: str = "box"

    def __post_init__(self) -> None:
        if self.object_shape not in OBJECT_SHAPES:
            raise ConfigError(f"object_shape must be one of {', '.join(OBJECT_SHAPES)}, got {self.object_shape!r}")
        if not self.light > 0:
            raise ConfigError(f"light must be > 0, got {self.light}")
        for name in ("object_rgb", "table_rgb", "arm_rgb"):
            value = getattr(self, name)
            if len(value) != 3 or not all(0 <= channel <= 1 for channel in value):
                raise ConfigError(f"{name} must be three numbers in [0, 1], got {value}")

    @classmethod
    def new_colours(cls, rng: np.random.Generator) -> Appearance:
        """A look whose object, table and arm differ in colour from the trained ones, and the object from the table.

        Args:
            rng: Stream of the colours.
        """
        trained = cls()
        while True:
            rgb = rng.uniform(0.1, 0.95, size=(3, 3))
            before = np.array([trained.object_rgb, trained.table_rgb, trained.arm_rgb])
            if np.linalg.norm(rgb - before, axis=1).min() > _NEW_COLOUR and np.linalg.norm(rgb[0] - rgb[1]) > _CONTRAST:
                objects, table, arm = (tuple(float(channel) for channel in row) for row in rgb)
                return cls(object_rgb=objects, table_rgb=table, arm_rgb=arm)  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class Task:
    """One problem: where an episode starts and what must be reached.

    Attributes:
        env_id: Registered id, e.g. "worldmodel/Push-v0".
        start: Full simulator state (`GoalEnv.get_state`) at which the episode starts.
        goal: (3,) goal position in metres, world frame (of the gripper for Reach, of the object for Push).
        goal_state: Full simulator state whose picture is the goal image.
        appearance: Look of the scene.
    """

    env_id: str
    start: Array
    goal: Array
    goal_state: Array
    appearance: Appearance = field(default_factory=Appearance)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form (floats survive the round trip bit for bit)."""
        return {
            "env_id": self.env_id,
            "start": self.start.tolist(),
            "goal": self.goal.tolist(),
            "goal_state": self.goal_state.tolist(),
            "appearance": asdict(self.appearance),
        }

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Task:
        """Inverse of `to_dict`."""
        look: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in record["appearance"].items()}
        return cls(
            env_id=record["env_id"],
            start=np.asarray(record["start"], dtype=np.float64),
            goal=np.asarray(record["goal"], dtype=np.float64),
            goal_state=np.asarray(record["goal_state"], dtype=np.float64),
            appearance=Appearance(**look),
        )


class GoalEnv(gymnasium.Env[dict[str, NDArray[Any]], NDArray[np.float32]], ABC):
    """A manipulation environment whose goal is a picture.

    Observations are `{"pixels": (Y, X, 3) uint8, "proprio": (P,) float32}`; actions are float32 in [-1, 1]^A.
    `reset(seed=, options={"task": Task})` starts a given task, `reset(seed=)` samples one. Every `info` holds
    `is_success` (bool, success predicate at this instant), `goal_distance` (float, metres) and `contact`
    (bool, gripper touches object). Episodes end by truncation after `max_steps`; success does not end them, so that
    "held at the end" can be told from "ever". `metadata["render_fps"]` is the control rate, steps per second.

    Where the whole state is a short vector, `worldmodel.envs.state_env.StateEnv` leaves four methods to write.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": [], "render_fps": 10}  # type: ignore[misc]
    max_steps: ClassVar[int]
    success_radius_m: ClassVar[float]
    max_step_m: ClassVar[float] = 0.04
    """Displacement of a full command along one axis in one control step, metres: the scale of drawn plans."""
    privileged_names: ClassVar[tuple[str, ...]]
    """Names of the entries of `privileged()`."""

    @abstractmethod
    def sample_task(self, rng: np.random.Generator, appearance: Appearance | None = None) -> Task:
        """Draw an unsolved, reachable task.

        Args:
            rng: Stream of this task alone.
            appearance: Look of the scene; None means the default look.

        Raises:
            SimulationError: No valid task found within the attempt limit.
        """

    @abstractmethod
    def get_state(self) -> Array:
        """Full physics and controller state as one vector: velocities, actuators and commanded pose included."""

    @abstractmethod
    def set_state(self, state: Array) -> None:
        """Restore what `get_state` returned; the continuation is then bit-equal.

        Raises:
            SimulationError: The vector has the wrong length or is not finite.
        """

    @abstractmethod
    def render_goal(self, task: Task | None = None) -> NDArray[np.uint8]:
        """Picture (Y, X, 3) of the goal of `task` (default: the current one). Leaves the physics state untouched."""

    @abstractmethod
    def privileged(self) -> Array:
        """True quantities (metres, radians) in the order of `privileged_names`, for probes and diagnostics only."""

    @abstractmethod
    def goal_distance(self) -> float:
        """Distance in metres between what must be moved and its goal."""

    @abstractmethod
    def oracle_cost(self) -> float:
        """Dense true-state cost (metres) that an oracle planner minimises: goal distance plus approach shaping."""

    @abstractmethod
    def simulate(self, action: NDArray[np.float32]) -> None:
        """Advance physics by one control step without rendering or bookkeeping (for oracle rollouts)."""

    def expert_action(self) -> NDArray[np.float32] | None:
        """Action (A,) of a scripted expert in the current state, or None where there is no expert."""
        return None

    def is_success(self) -> bool:
        """Success predicate at this instant: `goal_distance() <= success_radius_m`."""
        return self.goal_distance() <= self.success_radius_m
