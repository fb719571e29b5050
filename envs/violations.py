"""What cannot happen, staged: clips that are equal up to an event, after which one of them breaks a law of physics.

Violation of expectation: a model of the world should be surprised by the impossible twin and not by the possible one.
Both show the same start, actions and look; the event is made by tampering with the simulator, and nothing else is
touched. Two more clips are controls, for what may look like surprise: `held` makes the event happen while the arm holds
still, so that what merely counts change is drawn to the possible twin, whose arm moves on; `always` shows what the
impossible clip shows after the event, but it was like that from the start, so that what is merely unusual to look at
is no reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from worldmodel.envs.base import Appearance, Array, Task
from worldmodel.envs.push import CONTACT_GAP_M, PUSH_HEIGHT_M
from worldmodel.envs.scripted import move_towards, play
from worldmodel.envs.tabletop import OBJECT_HALF_M, WORKSPACE_HIGH, WORKSPACE_LOW, TabletopEnv
from worldmodel.errors import ConfigError, SimulationError

KINDS: dict[str, str] = {
    "vanish": "the object is gone",
    "teleport": "the object is somewhere else",
    "pass_through": "the gripper goes through the object",
    "no_contact": "the object slides though nothing touches it",
    "recolour": "the object has another colour",
}
"""The violations, with what they look like."""

CONTROLS: dict[str, tuple[str, ...]] = {
    "vanish": ("held", "always"),
    "teleport": ("held", "always"),
    "pass_through": (),
    "no_contact": ("held",),
    "recolour": ("held", "always"),
}
"""Controls that a kind has. The gripper has to move to go through an object, whose possible twin shows more motion
anyway; a slide has no state that it could have been in from the start."""

MIN_JUMP_M = 0.12
"""Smallest distance of a teleport, metres."""
CLEARANCE_M = 0.09
"""Horizontal distance that the gripper keeps from an object that slides or arrives by itself, metres."""
MIN_PUSHED_M = 0.04
"""How far the object is pushed at least where the gripper does not go through it, metres."""
_SLIDE_M = (0.008, 0.016)  # per control step; pushing is as fast
_MIN_PIXELS_SHARE = 16 / 64**2  # of a picture: what differs less is not seen
_SEEN = 12  # of 255: difference of a channel from which a pixel counts as different
_NEW_COLOUR = 0.5  # distance in RGB to the old colour and to the table, of a largest possible 1.7
_MAX_ATTEMPTS = 400
_PLACES = 8  # tried for one run of the arm
_OBJECT_LOW, _OBJECT_HIGH = WORKSPACE_LOW[:2] + 0.05, WORKSPACE_HIGH[:2] - 0.05


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Length of a clip.

    Attributes:
        before: Model steps up to the event.
        after: Model steps after it.
        action_block: Control steps in a model step.
        every: Control steps between two frames of a clip; divides `action_block`, None for one frame per model step.
    """

    before: int = 3
    after: int = 4
    action_block: int = 3
    every: int | None = None

    def __post_init__(self) -> None:
        for name in ("before", "after", "action_block"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be >= 1, got {getattr(self, name)}")
        if self.every is not None and (self.every < 1 or self.action_block % self.every):
            raise ConfigError(f"every must divide action_block={self.action_block}, got {self.every}")

    @property
    def frame_step(self) -> int:
        """Control steps between two frames."""
        return self.every or self.action_block

    @property
    def event(self) -> int:
        """Control steps up to the event."""
        return self.before * self.action_block

    @property
    def steps(self) -> int:
        """Control steps of a clip."""
        return (self.before + self.after) * self.action_block


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A start, what is done, and what goes wrong.

    Attributes:
        kind: One of `KINDS`.
        timing: Length of the clips.
        task: Where they start, and the look.
        actions: (steps, 4) float32, those of the possible twin.
        rgba: Colour of the object from the event on ("vanish", "recolour").
        place: (3,) where it is from the event on, metres ("teleport").
        slide: (3,) how far it moves by itself in a control step, metres ("no_contact").
    """

    kind: str
    timing: Timing
    task: Task
    actions: NDArray[np.float32]
    rgba: tuple[float, float, float, float] | None = None
    place: Array | None = None
    slide: Array | None = None


@dataclass(frozen=True, kw_only=True)
class Clip:
    """What a clip shows, and what really happened.

    Attributes:
        pixels: (steps // frame_step + 1, Y, X, 3) uint8; the event follows frame event // frame_step.
        actions: (steps, 4) float32.
        states: (steps // frame_step + 1, ...) simulator states of the frames (`GoalEnv.get_state`).
        gripper: (steps + 1, 3) its positions after every control step, metres.
        object: (steps + 1, 3) the object's, metres.
        contact: (steps + 1,) whether a finger touches the object.
    """

    pixels: NDArray[np.uint8]
    actions: NDArray[np.float32]
    states: Array
    gripper: Array
    object: Array
    contact: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Clips of one scene.

    Attributes:
        scene: What they show.
        clips: "possible" and "impossible", and the controls that the kind has (`CONTROLS`).
    """

    scene: Scene
    clips: Mapping[str, Clip]


def draw_pair(
    env: TabletopEnv, kind: str, rng: np.random.Generator, timing: Timing, look: Appearance | None = None
) -> Pair:
    """Draw scenes until one shows its violation.

    Args:
        env: Environment that draws pictures; it is left in an undefined state: reset it before further use.
        kind: One of `KINDS`.
        rng: Stream of this pair alone.
        timing: Length of the clips.
        look: Look of the scene; None means the trained one.

    Raises:
        ConfigError: Unknown kind.
        SimulationError: No scene showed the violation within the attempt limit.
    """
    if kind not in KINDS:
        raise ConfigError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    for _ in range(_MAX_ATTEMPTS):
        scene = draw_scene(env, kind, rng, timing, look or Appearance())
        if scene is None:
            continue
        names = ("possible", "impossible", *CONTROLS[kind])
        pair = Pair(scene=scene, clips={name: film(env, scene, name) for name in names})
        if shows_violation(pair):
            return pair
    raise SimulationError(
        f"no scene of {_MAX_ATTEMPTS} showed the violation {kind!r} with {timing.before} model steps before and "
        f"{timing.after} after it; try fewer"
    )


def film(env: TabletopEnv, scene: Scene, name: str) -> Clip:
    """Run a scene and take its pictures.

    Args:
        env: Environment.
        scene: What to run.
        name: "possible" leaves the simulation alone, "impossible" tampers with it at the event, "held" also lets the
            arm hold still after it, "always" tampers at the start.
    """
    timing = scene.timing
    actions = scene.actions.copy()
    if name == "held":
        actions[timing.event :] = 0
    begin = {"possible": timing.steps + 1, "always": 0}.get(name, timing.event)
    env.reset(options={"task": scene.task})
    pixels: list[NDArray[np.uint8]] = []
    states, gripper, objects = (list[Array]() for _ in range(3))
    contact: list[bool] = []
    for step in range(timing.steps + 1):
        if step > 0:
            env.simulate(actions[step - 1])
        if step > begin and scene.slide is not None:
            env.place_object(objects[begin] + (step - begin) * scene.slide)
        gripper.append(env.gripper_position())
        objects.append(env.object_pose()[0])
        contact.append(env.in_contact())
        if step == begin == 0:
            _tamper(env, scene)
        if step % timing.frame_step == 0:
            pixels.append(env.picture())
            states.append(env.get_state())
        if step == begin > 0:
            _tamper(env, scene)
    return Clip(
        pixels=np.stack(pixels),
        actions=actions,
        states=np.stack(states),
        gripper=np.stack(gripper),
        object=np.stack(objects),
        contact=np.array(contact),
    )


def _tamper(env: TabletopEnv, scene: Scene) -> None:
    """What happens at the event; a slide goes on after it."""
    if scene.kind == "pass_through":
        env.set_fingers_solid(False)
    if scene.rgba is not None:
        env.paint_object(scene.rgba)
    if scene.place is not None:
        env.place_object(scene.place)


def draw_scene(env: TabletopEnv, kind: str, rng: np.random.Generator, timing: Timing, look: Appearance) -> Scene | None:
    """Draw one scene; None when what was drawn does not fit. It need not show its violation."""
    if kind == "pass_through":
        return _push_scene(env, rng, timing, look)
    task = env.sample_task(rng, look)
    actions, gripper, position = _play(env, task, rng, timing)
    scene = Scene(kind=kind, timing=timing, task=task, actions=actions)
    if kind == "vanish":
        return replace(scene, rgba=(*look.object_rgb, 0.0))
    if kind == "recolour":
        return replace(scene, rgba=_other_colour(look, rng))
    later, since = gripper[timing.event + 1 :, :2], np.arange(1, timing.steps - timing.event + 1)[:, None]
    for _ in range(_PLACES):
        slide = np.zeros(3)
        place = np.append(rng.uniform(_OBJECT_LOW, _OBJECT_HIGH), OBJECT_HALF_M)
        if kind == "no_contact":
            angle, size = rng.uniform(0, 2 * np.pi), rng.uniform(*_SLIDE_M)
            slide, place = size * np.array([np.cos(angle), np.sin(angle), 0.0]), position
        path = place[:2] + since * slide[:2]
        is_inside = (path[-1] >= _OBJECT_LOW).all() and (path[-1] <= _OBJECT_HIGH).all()
        if is_inside and (np.linalg.norm(path - later, axis=1) > CLEARANCE_M).all():
            return replace(scene, slide=slide) if kind == "no_contact" else replace(scene, place=place)
    return None


def shows_violation(pair: Pair) -> bool:
    """Whether the clips differ visibly, and by the violation alone.

    What changes at once (vanish, teleport, recolour) must be seen one model step after the event, the rest in the last
    frame. An object that slides or arrives by itself is never near the gripper. One that the gripper goes through in
    the impossible twin is pushed in the possible one, from the event on.
    """
    scene, event = pair.scene, pair.scene.timing.event
    possible, impossible = pair.clips["possible"], pair.clips["impossible"]
    tampered = [clip for name, clip in pair.clips.items() if name in ("impossible", "held")]
    frame = (event + scene.timing.action_block) // scene.timing.frame_step if scene.slide is None else -1
    if scene.kind == "pass_through":
        frame = -1
        pushed = float(np.linalg.norm((possible.object[-1] - possible.object[event])[:2]))
        inside = np.abs(impossible.gripper[event:, :2] - impossible.object[event:, :2]).max(axis=1).min()
        if possible.contact[: event + 1].any() or pushed < MIN_PUSHED_M or inside > OBJECT_HALF_M / 2:
            return False
    enough = _MIN_PIXELS_SHARE * impossible.pixels[0, ..., 0].size
    if any(changed_pixels(possible.pixels[frame], clip.pixels[frame]) < enough for clip in tampered):
        return False
    if scene.slide is not None:
        return all(_keeps_clear(clip, event) for clip in (possible, *tampered))
    if scene.place is not None:
        jump = float(np.linalg.norm(scene.place - possible.object[event]))
        clear = [_keeps_clear(clip, event) for clip in tampered]
        return jump >= MIN_JUMP_M and all(clear) and _keeps_clear(pair.clips["always"], 0)
    return True


def changed_pixels(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> int:
    """Number of pixels in which two pictures (Y, X, 3) differ visibly."""
    difference = np.abs(first.astype(np.int16) - second.astype(np.int16)).max(axis=-1)
    return int((difference > _SEEN).sum())


def _keeps_clear(clip: Clip, event: int) -> bool:
    """Whether the gripper keeps away from the object after the event."""
    later = slice(event + 1, None)
    distance = np.linalg.norm((clip.gripper - clip.object)[later, :2], axis=1)
    return bool((distance > CLEARANCE_M).all()) and not clip.contact[later].any()


def _play(
    env: TabletopEnv, task: Task, rng: np.random.Generator, timing: Timing
) -> tuple[NDArray[np.float32], Array, Array]:
    """Exploratory play from the start of a task.

    Returns:
        actions (steps, 4), gripper positions (steps + 1, 3), and where the object is at the event (3,).
    """
    env.reset(options={"task": task})
    policy = play(env.env_id, rng)
    actions, gripper, objects = [], [env.gripper_position()], [env.object_pose()[0]]
    for _ in range(timing.steps):
        actions.append(policy.act(env))
        env.simulate(actions[-1])
        gripper.append(env.gripper_position())
        objects.append(env.object_pose()[0])
    return np.stack(actions), np.stack(gripper), objects[timing.event]


def _push_scene(env: TabletopEnv, rng: np.random.Generator, timing: Timing, look: Appearance) -> Scene | None:
    """The gripper comes up to the object before the event and pushes straight on after it."""
    block, angle = rng.uniform(_OBJECT_LOW, _OBJECT_HIGH), rng.uniform(0, 2 * np.pi)
    yaw = rng.uniform(-np.pi / 4, np.pi / 4)
    along = np.array([np.cos(angle), np.sin(angle)])
    across = np.array([-along[1], along[0]])
    step = rng.uniform(*_SLIDE_M) * along
    pushes = timing.steps - timing.event
    facing = abs((angle - yaw + np.pi / 4) % (np.pi / 2) - np.pi / 4)
    gap = CONTACT_GAP_M + OBJECT_HALF_M * (1 / np.cos(facing) - 1) + 0.006
    behind = np.append(block - gap * along, PUSH_HEIGHT_M)
    offset = -rng.uniform(0.03, 0.10) * along + rng.uniform(-0.06, 0.06) * across
    start = np.append(behind[:2] + offset, rng.uniform(0.03, 0.10))
    end = np.append(behind[:2] + pushes * step, PUSH_HEIGHT_M)
    inside = (end[:2] + gap * along >= _OBJECT_LOW).all() and (end[:2] + gap * along <= _OBJECT_HIGH).all()
    if not inside or any((place < WORKSPACE_LOW).any() or (place > WORKSPACE_HIGH).any() for place in (start, behind)):
        return None
    state = env.pose_state(start, np.append(block, OBJECT_HALF_M), yaw)
    goal = np.append(end[:2] + gap * along, OBJECT_HALF_M)
    task = Task(env_id=env.env_id, start=state, goal=goal, goal_state=state, appearance=look)
    env.reset(options={"task": task})
    approach = np.linspace(start, behind, timing.event + 1)[1:]
    push = np.linspace(behind, end, pushes + 1)[1:]
    actions = []
    for target in (*approach, *push):
        actions.append(move_towards(env, target))
        env.simulate(actions[-1])
    return Scene(kind="pass_through", timing=timing, task=task, actions=np.stack(actions))


def _other_colour(look: Appearance, rng: np.random.Generator) -> tuple[float, float, float, float]:
    """An opaque colour unlike the object's and the table's."""
    while True:
        rgb = rng.uniform(0.05, 0.95, 3)
        others = np.array([look.object_rgb, look.table_rgb])
        if np.linalg.norm(others - rgb, axis=1).min() > _NEW_COLOUR:
            return (float(rgb[0]), float(rgb[1]), float(rgb[2]), 1.0)
