"""The tabletop scene all tasks share: arm, gripper, one free object, one fixed camera, end-effector control at 10 Hz.

Tasks differ in what is sampled and what counts as success; physics, control, pictures and state handling are here.
"""

from __future__ import annotations

from importlib import resources
from typing import Any, ClassVar

import gymnasium
import mujoco
import numpy as np
from numpy.typing import NDArray

from worldmodel.envs.base import Appearance, Array, GoalEnv, Task
from worldmodel.envs.kinematics import HOME, ArmKinematics
from worldmodel.envs.rendering import SceneRenderer
from worldmodel.errors import ConfigError, SimulationError

CONTROL_DT_S = 0.1
MAX_STEP_M = 0.04
"""Largest gripper displacement per axis in one control step, metres."""
MAX_OPENING_STEP_M = 0.01
"""Largest change of the finger opening (one finger) in one control step, metres."""
MAX_OPENING_M = 0.04
WORKSPACE_LOW = np.array([0.34, -0.24, 0.025])
WORKSPACE_HIGH = np.array([0.66, 0.24, 0.26])
"""The controller keeps the commanded gripper position inside this box, metres."""
MAX_LEAD_M = 0.045
"""How far the commanded position may run ahead of a blocked gripper, metres."""
OBJECT_HALF_M = 0.035

# What the continuation depends on here. MuJoCo's own "integration" set also holds things this scene never uses, and
# its size may differ between versions: shipped manifests must not.
_STATE_SPEC = int(
    mujoco.mjtState.mjSTATE_TIME
    | mujoco.mjtState.mjSTATE_QPOS
    | mujoco.mjtState.mjSTATE_QVEL
    | mujoco.mjtState.mjSTATE_CTRL
    | mujoco.mjtState.mjSTATE_WARMSTART
)
_SUBSTEP_GROUPS = 5
_GEOM_OF_SHAPE = {
    "box": mujoco.mjtGeom.mjGEOM_BOX,
    "cylinder": mujoco.mjtGeom.mjGEOM_CYLINDER,
    "sphere": mujoco.mjtGeom.mjGEOM_SPHERE,
}
_NUM_COMMAND = 4


class TabletopEnv(GoalEnv):
    """Shared machinery; see `GoalEnv` for the contract.

    Actions are (dx, dy, dz, gripper) in [-1, 1]: displacement of the commanded gripper position (times `MAX_STEP_M`)
    and change of the finger opening (positive opens). Inverse kinematics turns the command into joint targets for
    position servos, interpolated over the control step; the hand always points down.

    Args:
        image_size: Height and width of `pixels`, in [16, 512].
        render: False gives black pixels without an OpenGL context: for oracle rollouts and headless physics.
        render_mode: None or "rgb_array" (Gymnasium's `render()` then returns a 256 px picture).
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 10}  # type: ignore[misc]
    max_steps: ClassVar[int] = 60
    privileged_names: ClassVar[tuple[str, ...]] = (
        "gripper_x",
        "gripper_y",
        "gripper_z",
        "opening",
        "object_x",
        "object_y",
        "object_z",
        "object_yaw",
    )
    env_id: ClassVar[str]

    def __init__(self, *, image_size: int = 64, render: bool = True, render_mode: str | None = None) -> None:
        if not 16 <= image_size <= 512:
            raise ConfigError(f"image_size must be in [16, 512], got {image_size}")
        if render_mode not in (None, "rgb_array"):
            raise ConfigError(f"render_mode must be None or 'rgb_array', got {render_mode!r}")
        self.image_size = image_size
        self.render_mode = render_mode
        xml = resources.files("worldmodel.envs").joinpath("assets/tabletop.xml").read_text()
        self._model = mujoco.MjModel.from_xml_string(xml)
        self._data = mujoco.MjData(self._model)
        self._kinematics = ArmKinematics(self._model)
        self._renderer = SceneRenderer(self._model, "exterior", image_size) if render else None
        self._large_renderer: SceneRenderer | None = None
        self._task: Task | None = None
        self._goal = np.zeros(3)
        self._command = np.zeros(_NUM_COMMAND)
        self._num_steps = 0
        self._ids()
        self._default_camera = self._model.cam_pos[self._camera_id].copy()
        self._default_light = self._model.light_diffuse[0].copy()
        self.observation_space: gymnasium.spaces.Space[Any] = gymnasium.spaces.Dict(
            {
                "pixels": gymnasium.spaces.Box(0, 255, (image_size, image_size, 3), np.uint8),
                "proprio": gymnasium.spaces.Box(-2.0, 2.0, (4,), np.float32),
            }
        )
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (4,), np.float32)

    # ---- Gymnasium API ------------------------------------------------------------------------------------------

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Start the task in `options["task"]`, or sample one (with `options["appearance"]` if given).

        Raises:
            ConfigError: `options` holds unknown keys, or the task belongs to another environment.
        """
        super().reset(seed=seed)
        options = options or {}
        unknown = set(options) - {"task", "appearance"}
        if unknown:
            raise ConfigError(f"unknown reset options {sorted(unknown)}; valid: 'task', 'appearance'")
        task = options.get("task")
        if task is None:
            task = self.sample_task(self.np_random, options.get("appearance"))
        self._begin(task)
        return self._observe(), self._info()

    def step(self, action: NDArray[np.float32]) -> tuple[dict[str, NDArray[Any]], float, bool, bool, dict[str, Any]]:
        """One control step of 0.1 s; reward is minus the goal distance in metres.

        Raises:
            SimulationError: Called before `reset`, or the simulation diverged.
            ConfigError: The action has the wrong shape or is not finite.
        """
        if self._task is None:
            raise SimulationError("step() called before reset()")
        self.simulate(action)
        self._num_steps += 1
        if not np.isfinite(self._data.qpos).all():
            raise SimulationError("the simulation diverged (non-finite positions); reset the environment")
        return self._observe(), -self.goal_distance(), False, self._num_steps >= self.max_steps, self._info()

    def render(self) -> NDArray[np.uint8]:
        """Picture (256, 256, 3) of the current state.

        Raises:
            ConfigError: The environment was made without `render_mode="rgb_array"`.
        """
        if self.render_mode is None:
            raise ConfigError('render() needs render_mode="rgb_array" at construction')
        if self._large_renderer is None:
            self._large_renderer = SceneRenderer(self._model, "exterior", 256)
        return self._draw(self._large_renderer)

    def close(self) -> None:
        """Free the OpenGL contexts."""
        for renderer in (self._renderer, self._large_renderer):
            if renderer is not None:
                renderer.close()
        self._renderer = self._large_renderer = None

    # ---- GoalEnv ------------------------------------------------------------------------------------------------

    def simulate(self, action: NDArray[np.float32]) -> None:
        """See `GoalEnv.simulate`."""
        action = np.asarray(action, dtype=np.float64)
        if action.shape != (_NUM_COMMAND,) or not np.isfinite(action).all():
            raise ConfigError(f"action must be {_NUM_COMMAND} finite numbers, got shape {action.shape}: {action}")
        action = np.clip(action, -1.0, 1.0)
        gripper = self.gripper_position()
        target = np.clip(self._command[:3] + MAX_STEP_M * action[:3], gripper - MAX_LEAD_M, gripper + MAX_LEAD_M)
        self._command[:3] = np.clip(target, WORKSPACE_LOW, WORKSPACE_HIGH)
        opening = self._command[3] + MAX_OPENING_STEP_M * action[3]
        self._command[3] = min(max(opening, 0.0), MAX_OPENING_M)
        old = self._data.ctrl.copy()
        new = old.copy()
        new[:7] = self._kinematics.solve(self._command[:3], old[:7], max_iterations=4)
        new[7:] = self._command[3]
        substeps = round(CONTROL_DT_S / self._model.opt.timestep) // _SUBSTEP_GROUPS
        for group in range(1, _SUBSTEP_GROUPS + 1):
            self._data.ctrl[:] = old + (new - old) * (group / _SUBSTEP_GROUPS)
            mujoco.mj_step(self._model, self._data, substeps)
        # mj_step leaves derived positions one substep behind the joint angles.
        mujoco.mj_kinematics(self._model, self._data)

    def get_state(self) -> Array:
        """See `GoalEnv.get_state`."""
        size = mujoco.mj_stateSize(self._model, _STATE_SPEC)
        state = np.empty(size + _NUM_COMMAND)
        mujoco.mj_getState(self._model, self._data, state[:size], _STATE_SPEC)
        state[size:] = self._command
        return state

    def set_state(self, state: Array) -> None:
        """See `GoalEnv.set_state`."""
        size = mujoco.mj_stateSize(self._model, _STATE_SPEC)
        state = np.asarray(state, dtype=np.float64)
        if state.shape != (size + _NUM_COMMAND,):
            raise SimulationError(
                f"state must have {size + _NUM_COMMAND} entries for this scene, got shape {state.shape}"
            )
        if not np.isfinite(state).all():
            raise SimulationError("state holds non-finite numbers")
        mujoco.mj_setState(self._model, self._data, state[:size], _STATE_SPEC)
        self._command[:] = state[size:]
        # Positions and contacts only: a full mj_forward would change the solver's warm start, and with it the bits
        # of the continuation.
        mujoco.mj_fwdPosition(self._model, self._data)

    def render_goal(self, task: Task | None = None) -> NDArray[np.uint8]:
        """See `GoalEnv.render_goal`."""
        task = task or self._task
        if task is None:
            raise SimulationError("render_goal() needs a task: pass one or call reset() first")
        before = self.get_state()
        look = self._task.appearance if self._task else None
        self._dress(task.appearance)
        self.set_state(task.goal_state)
        picture = self._picture()
        self.set_state(before)
        if look is not None:
            self._dress(look)
        return picture

    def privileged(self) -> Array:
        """See `GoalEnv.privileged`."""
        position, yaw = self.object_pose()
        return np.concatenate([self.gripper_position(), [self.opening()], position, [yaw]])

    # ---- quantities ---------------------------------------------------------------------------------------------

    def gripper_position(self) -> Array:
        """(3,) position between the fingertips, metres, world frame."""
        position: Array = self._data.site_xpos[self._site_id].copy()
        return position

    def opening(self) -> float:
        """Mean opening of the fingers in metres: 0 closed, 0.04 open."""
        return float(self._data.qpos[7:9].mean())

    def object_pose(self) -> tuple[Array, float]:
        """Object centre (3,) in metres and yaw in radians."""
        pose = self._data.qpos[self._object_qpos : self._object_qpos + 7]
        w, x, y, z = pose[3:]
        return pose[:3].copy(), float(np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z)))

    def goal_position(self) -> Array:
        """(3,) goal of the current task, metres, world frame."""
        return self._goal.copy()

    def project(self, points: Array) -> Array:
        """Where points appear in the frames.

        Args:
            points: (..., 3) metres, world frame.

        Returns:
            (..., 2) pixels, x to the right and y down from the corner of `pixels`; those of points in front of the
            camera but outside its view lie outside [0, image_size].
        """
        mujoco.mj_camlight(self._model, self._data)
        axes = self._data.cam_xmat[self._camera_id].reshape(3, 3)  # columns: right, up, backwards
        right, up, back = np.moveaxis((points - self._data.cam_xpos[self._camera_id]) @ axes, -1, 0)
        focal = self.image_size / (2 * np.tan(np.radians(self._model.cam_fovy[self._camera_id]) / 2))
        pixels: Array = self.image_size / 2 + focal * np.stack([right / -back, up / back], axis=-1)
        return pixels

    def in_contact(self) -> bool:
        """Whether a finger touches the object."""
        geoms = self._data.contact.geom
        if not len(geoms):
            return False
        has_object = (geoms == self._object_geom).any(axis=1)
        return bool((has_object & self._is_finger[geoms].any(axis=1)).any())

    def oracle_cost(self) -> float:
        """See `GoalEnv.oracle_cost`."""
        return self.goal_distance()

    # ---- tampering: what no action can do; `reset` undoes it ----------------------------------------------------

    def place_object(self, position: Array) -> None:
        """Put the object to (3,) metres, at rest and turned as it is; nothing else of the state changes."""
        start, speed = self._object_qpos, self._object_qvel
        self._data.qpos[start : start + 3] = position
        self._data.qvel[speed : speed + 6] = 0
        mujoco.mj_fwdPosition(self._model, self._data)

    def paint_object(self, rgba: tuple[float, float, float, float]) -> None:
        """Change the look of the object, each channel in [0, 1]; an alpha of 0 draws none. Physics goes on as before.

        Raises:
            ConfigError: A channel is out of range.
        """
        if len(rgba) != 4 or not all(0 <= channel <= 1 for channel in rgba):
            raise ConfigError(f"rgba must be four numbers in [0, 1], got {rgba}")
        self._model.geom_rgba[self._object_geom] = rgba

    def set_fingers_solid(self, solid: bool) -> None:
        """Whether the fingers touch anything; others go through the object."""
        self._model.geom_contype[self._is_finger] = int(solid)
        self._model.geom_conaffinity[self._is_finger] = int(solid)

    def picture(self) -> NDArray[np.uint8]:
        """Picture (Y, X, 3) of the present state, as an observation shows it; the state stays as it is."""
        return self._picture()

    # ---- helpers for tasks --------------------------------------------------------------------------------------

    def pose_state(self, gripper: Array, object_position: Array, object_yaw: float, opening: float = 0.0) -> Array:
        """Full state at rest with the gripper and the object at the given poses (metres, radians)."""
        mujoco.mj_resetData(self._model, self._data)
        angles = self._kinematics.solve(gripper, HOME, max_iterations=100)
        self._data.qpos[:7] = angles
        self._data.qpos[7:9] = opening
        self._data.ctrl[:7] = angles
        self._data.ctrl[7:] = opening
        start = self._object_qpos
        self._data.qpos[start : start + 3] = object_position
        self._data.qpos[start + 3 : start + 7] = [np.cos(object_yaw / 2), 0, 0, np.sin(object_yaw / 2)]
        self._command[:3] = gripper
        self._command[3] = opening
        mujoco.mj_forward(self._model, self._data)
        self._data.qacc_warmstart[:] = 0
        return self.get_state()

    def _ids(self) -> None:
        def lookup(kind: mujoco.mjtObj, name: str) -> int:
            return int(mujoco.mj_name2id(self._model, kind, name))

        self._site_id = lookup(mujoco.mjtObj.mjOBJ_SITE, "gripper")
        self._object_geom = lookup(mujoco.mjtObj.mjOBJ_GEOM, "object")
        self._table_geom = lookup(mujoco.mjtObj.mjOBJ_GEOM, "table")
        self._is_finger = np.zeros(self._model.ngeom, np.bool_)
        self._is_finger[[lookup(mujoco.mjtObj.mjOBJ_GEOM, f"finger_{side}") for side in ("left", "right")]] = True
        self._camera_id = lookup(mujoco.mjtObj.mjOBJ_CAMERA, "exterior")
        joint = lookup(mujoco.mjtObj.mjOBJ_JOINT, "object")
        self._object_qpos = int(self._model.jnt_qposadr[joint])
        self._object_qvel = int(self._model.jnt_dofadr[joint])
        link0 = lookup(mujoco.mjtObj.mjOBJ_BODY, "link0")
        hand = lookup(mujoco.mjtObj.mjOBJ_BODY, "hand")
        self._arm_geoms = [g for g in range(self._model.ngeom) if link0 <= self._model.geom_bodyid[g] < hand]

    def _begin(self, task: Task) -> None:
        if task.env_id != self.env_id:
            raise ConfigError(f"task belongs to {task.env_id!r}, this environment is {self.env_id!r}")
        self._task = task
        self._goal = task.goal
        self._dress(task.appearance)
        self.set_fingers_solid(True)
        self.set_state(task.start)
        self._num_steps = 0

    def _dress(self, look: Appearance) -> None:
        model = self._model
        model.geom_rgba[self._object_geom] = (*look.object_rgb, 1.0)
        model.geom_rgba[self._table_geom, :3] = look.table_rgb
        model.geom_rgba[self._arm_geoms, :3] = look.arm_rgb
        model.light_diffuse[0] = self._default_light * look.light
        model.cam_pos[self._camera_id] = self._default_camera + np.asarray(look.camera_offset_m)
        model.geom_type[self._object_geom] = _GEOM_OF_SHAPE[look.object_shape].value

    def _picture(self) -> NDArray[np.uint8]:
        if self._renderer is None:
            return np.zeros((self.image_size, self.image_size, 3), dtype=np.uint8)
        return self._draw(self._renderer)

    def _draw(self, renderer: SceneRenderer) -> NDArray[np.uint8]:
        mujoco.mj_kinematics(self._model, self._data)
        mujoco.mj_camlight(self._model, self._data)
        return renderer.render(self._data, shadow_below=self.gripper_position())

    def _observe(self) -> dict[str, NDArray[Any]]:
        proprio = np.append(self.gripper_position(), self.opening()).astype(np.float32)
        return {"pixels": self._picture(), "proprio": proprio}

    def _info(self) -> dict[str, Any]:
        return {
            "is_success": self.is_success(),
            "goal_distance": self.goal_distance(),
            "contact": self.in_contact(),
        }
