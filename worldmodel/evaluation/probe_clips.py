"""From recorded episodes to probe tasks: choose clips, label them by the true states, read or draw their pixels.

Separate from `probe_tasks.py`, which says how a task is judged: here are files, the camera and the renderer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from worldmodel.data.distractor import distract
from worldmodel.data.episodes import EpisodeDataset
from worldmodel.envs import make_env
from worldmodel.envs.base import Appearance, Task
from worldmodel.envs.tabletop import OBJECT_HALF_M, TabletopEnv
from worldmodel.errors import ConfigError, DataError
from worldmodel.evaluation.clip_choice import NO_CLASS, ClipChoice, Ints, Windows, balanced, windows_of
from worldmodel.evaluation.clip_labels import ACTIONS, action_labels, frame_contacts, object_boxes, pose_targets
from worldmodel.evaluation.probe_tasks import KINDS, TASKS, ActionTask, ContactTask, KindTask, PoseTask, ProbeTask

NEAR_M = 0.12
"""Clips without contact that the `contact` task takes come at least this near: far ones are told from any frame."""
MAX_TIP_M = 0.01
"""An object whose centre leaves its height on the table by more has tipped or fallen; such clips are left out."""
_NEEDED = ("gripper_x", "gripper_y", "gripper_z", "opening", "object_x", "object_y", "object_z", "object_yaw")
Progress = Callable[[int, int], None]
Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Clips:
    """Chosen clips of one file.

    Attributes:
        dataset: The file.
        windows: Where they are.
        classes: (C,) what they are balanced by.
    """

    dataset: EpisodeDataset
    windows: Windows
    classes: Ints

    def states(self, reach: int) -> dict[str, Array]:
        """True quantities (C, reach) of every env step by name, "gripper" and "object" (C, reach, 3) among them."""
        return states_of(self.dataset, self.windows.steps(reach))


def states_of(dataset: EpisodeDataset, rows: Ints) -> dict[str, Array]:
    """True quantities of some rows by name, the positions also as vectors "gripper" and "object" (..., 3)."""
    names = dataset.spec.privileged_names
    found = {name: dataset.privileged[rows, names.index(name)].astype(np.float64) for name in _NEEDED}
    for body in ("gripper", "object"):
        found[body] = np.stack([found[f"{body}_{axis}"] for axis in "xyz"], axis=-1)
    return found


def build_task(
    name: str,
    dataset: EpisodeDataset,
    choice: ClipChoice,
    *,
    test_dataset: EpisodeDataset | None = None,
    overlap: float = 0.5,
    progress: Progress | None = None,
) -> ProbeTask:
    """Make one task.

    Args:
        name: One of `TASKS`.
        dataset: Recorded episodes of the tabletop environments.
        choice: How many clips, and of what length.
        test_dataset: Episodes of the clips that test; None keeps `choice.test_fraction` of `dataset` for that.
        overlap: For `contact`: least intersection over union of a detection that counts.
        progress: Told the clips read and in total.

    Raises:
        ConfigError: No such task.
        DataError: The files do not hold what the task needs, or too few clips of some class.
    """
    if name not in TASKS:
        raise ConfigError(f"unknown task {name!r}; valid: {', '.join(TASKS)}")
    sides = _sides(dataset, test_dataset, choice)
    with closing(_scene(dataset.spec.image_size, render=name == "kind")) as scene:
        rng = np.random.default_rng([choice.seed, TASKS.index(name)])
        chosen = [
            _choose(name, part, ids, count, choice, scene, rng)
            for (part, ids), count in zip(sides, (choice.clips, choice.test_clips), strict=True)
        ]
        total, done = choice.clips + choice.test_clips, 0

        def tick() -> None:
            nonlocal done
            done += 1
            if progress is not None:
                progress(done, total)

        pixels = [_stills(clips, scene, tick) if name == "kind" else _films(clips, choice, tick) for clips in chosen]
        labels = [_labels(name, clips, choice, scene) for clips in chosen]
    common: dict[str, Any] = {
        "pixels": np.concatenate(pixels),
        "episode": np.concatenate([clips.windows.episode for clips in chosen]),
        "classes": np.concatenate([clips.classes for clips in chosen]),
        "num_pool": choice.clips,
        **{key: np.concatenate([part[key] for part in labels]) for key in labels[0]},
    }
    match name:
        case "kind":
            return KindTask(**common)
        case "action":
            return ActionTask(**common)
        case "pose":
            return PoseTask(**common)
        case _:
            return ContactTask(**common, overlap=overlap)


def check_data(dataset: EpisodeDataset, test_dataset: EpisodeDataset | None) -> None:
    """Raise DataError unless the files hold what the labels are computed from, and are two files of one kind."""
    for part in (dataset, test_dataset):
        if part is not None and (missing := sorted(set(_NEEDED) - set(part.spec.privileged_names))):
            raise DataError(f"{part.path} lacks the true quantities {', '.join(missing)}; record it with this package")
    if test_dataset is None:
        return
    if test_dataset.content_hash == dataset.content_hash:
        raise DataError(f"{test_dataset.path} holds the episodes of {dataset.path}; test on others (collect seed=...)")
    if differences := dataset.spec.differences(test_dataset.spec):
        raise DataError(f"{dataset.path} and {test_dataset.path} differ: {'; '.join(differences)}")
    shared = set(map(bytes, dataset.index.digest)) & set(map(bytes, test_dataset.index.digest))
    if shared:
        raise DataError(f"{len(shared)} episodes of {test_dataset.path} are in {dataset.path} as well; test on others")


def _sides(
    dataset: EpisodeDataset, test_dataset: EpisodeDataset | None, choice: ClipChoice
) -> list[tuple[EpisodeDataset, Ints]]:
    check_data(dataset, test_dataset)
    if test_dataset is not None:
        return [(part, np.arange(len(part), dtype=np.int64)) for part in (dataset, test_dataset)]
    pool, held_out = dataset.split(choice.test_fraction, choice.seed)
    return [(dataset, pool), (dataset, held_out)]


def _scene(image_size: int, *, render: bool) -> TabletopEnv:
    """The table and its camera, which all tasks on it share."""
    env = make_env("push", image_size=image_size, render=render)
    assert isinstance(env, TabletopEnv)
    env.reset(seed=0)  # before that the camera has no place
    return env


def _choose(
    name: str,
    dataset: EpisodeDataset,
    episodes: Ints,
    count: int,
    choice: ClipChoice,
    scene: TabletopEnv,
    rng: np.random.Generator,
) -> Clips:
    windows = windows_of(dataset, episodes, choice)
    windows = windows[_is_shown(states_of(dataset, windows.steps(choice.reach)), scene)]
    classes, names = _classes(name, Clips(dataset=dataset, windows=windows, classes=np.empty(0, np.int64)), choice, rng)
    where = f"task {name}: {dataset.path} ({len(episodes)} episodes)"
    rows = balanced(classes, count, names, rng, where)
    return Clips(dataset=dataset, windows=windows[rows], classes=classes[rows])


def _is_shown(states: dict[str, Array], scene: TabletopEnv) -> NDArray[np.bool_]:
    """(C,) whether the object stands on the table, in the picture, all the time."""
    stands = np.abs(states["object_z"] - OBJECT_HALF_M) <= MAX_TIP_M
    pixels = scene.project(states["object"])
    inside = ((pixels >= 0) & (pixels <= scene.image_size)).all(axis=-1)
    return np.asarray((stands & inside).all(axis=1))


def _classes(name: str, clips: Clips, choice: ClipChoice, rng: np.random.Generator) -> tuple[Ints, Sequence[str]]:
    """What the clips of a task are balanced by: class of each, and the names."""
    if name == "kind":
        return rng.permutation(len(clips.windows)) % len(KINDS), KINDS
    if name == "pose":
        return np.zeros(len(clips.windows), np.int64), ("any",)
    if name == "action":
        span = choice.reach - choice.frame_step + 1  # what happens after the last frame is not seen
        states = clips.states(span)
        contact = clips.dataset.contact[clips.windows.steps(span)]
        return action_labels(states["gripper"], states["object"], contact), ACTIONS
    states = clips.states(choice.reach)
    near = (np.linalg.norm(states["gripper"] - states["object"], axis=-1) <= NEAR_M).any(axis=1)
    touches = clips.dataset.contact[clips.windows.steps(choice.reach)].any(axis=1)
    return np.where(touches, 1, np.where(near, 0, NO_CLASS)).astype(np.int64), ("near", "touching")


def _labels(name: str, clips: Clips, choice: ClipChoice, scene: TabletopEnv) -> dict[str, NDArray[Any]]:
    """Labels of a task beyond the class of a clip, as its fields."""
    if name in ("kind", "action"):
        return {}
    frames = slice(0, None, choice.frame_step)
    states = clips.states(choice.reach)
    if name == "pose":
        step_s = choice.frame_step * clips.dataset.spec.control_dt_s
        seen = {key: states[key][:, frames] for key in ("gripper", "object", "object_yaw")}
        return {"values": pose_targets(seen["gripper"], seen["object"], seen["object_yaw"], step_s)}
    contact = clips.dataset.contact[clips.windows.steps(choice.reach)]
    position, yaw = states["object"][:, frames], states["object_yaw"][:, frames]
    boxes = object_boxes(scene.project, position, yaw, OBJECT_HALF_M, scene.image_size)
    return {"present": frame_contacts(contact, choice.frame_step), "boxes": boxes.astype(np.float32)}


def _films(clips: Clips, choice: ClipChoice, tick: Callable[[], None]) -> NDArray[np.uint8]:
    """(C, T, Y, X, 3) recorded frames."""
    size = clips.dataset.spec.image_size
    pixels = np.empty((len(clips.windows), choice.num_frames, size, size, 3), np.uint8)
    last = choice.reach - choice.frame_step + 1
    for row in np.argsort(clips.windows.first):  # in the order in which the file holds them
        first = int(clips.windows.first[row])
        pixels[row] = clips.dataset.load_pixels(first, first + last)[:: choice.frame_step]
        tick()
    return pixels


def _stills(clips: Clips, scene: TabletopEnv, tick: Callable[[], None]) -> NDArray[np.uint8]:
    """(C, 1, Y, X, 3) first frames, drawn again with the object that the class names."""
    states = states_of(clips.dataset, clips.windows.first)
    pixels = np.empty((len(clips.windows), 1, scene.image_size, scene.image_size, 3), np.uint8)
    for row, kind in enumerate(clips.classes):
        gripper, thing = states["gripper"][row], states["object"][row]
        start = scene.pose_state(gripper, thing, float(states["object_yaw"][row]), float(states["opening"][row]))
        look = Appearance(object_shape=KINDS[kind])
        task = Task(env_id=scene.env_id, start=start, goal=thing, goal_state=start, appearance=look)
        pixels[row, 0] = scene.reset(options={"task": task})[0]["pixels"]
        if (look_over := clips.dataset.distractor) is not None:
            owner = int(clips.windows.episode[row])
            step = clips.windows.first[row : row + 1] - clips.dataset.index.start[owner]
            pixels[row] = distract(pixels[row], look_over, episode=owner, steps=step)
        tick()
    return pixels
