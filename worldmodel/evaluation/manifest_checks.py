"""What is verified about the tasks of a manifest beyond each one's own start and goal.

How far the goals are (difficulty), and how close the tasks come to what a model was trained on. Each check returns a
JSON-ready record that is stored with the manifest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from worldmodel.data.episodes import EpisodeDataset
from worldmodel.envs.base import GoalEnv
from worldmodel.errors import DataError, SimulationError
from worldmodel.evaluation.manifest import Manifest

STRATA = ("near", "middle", "far")
_METRES = ("x", "y", "z")
_FRAMES_PER_CHUNK = 8192


@dataclass(frozen=True, kw_only=True)
class Stratum:
    """Tasks of similar difficulty.

    Attributes:
        name: One of `STRATA`.
        low_m: Smallest distance from start to goal, metres.
        high_m: Largest.
        tasks: Indices in the manifest.
    """

    name: str
    low_m: float
    high_m: float
    tasks: tuple[int, ...]


def strata_of(distances_m: Sequence[float]) -> tuple[Stratum, ...]:
    """Cut tasks into thirds by their distance from start to goal; fewer than three tasks are one stratum each.

    Args:
        distances_m: One per task, metres.
    """
    order = np.argsort(distances_m, kind="stable")
    parts = [part for part in np.array_split(order, len(STRATA)) if len(part)]
    return tuple(
        Stratum(
            name=name,
            low_m=float(distances_m[part[0]]),
            high_m=float(distances_m[part[-1]]),
            tasks=tuple(sorted(int(index) for index in part)),
        )
        for name, part in zip(STRATA, parts, strict=False)
    )


def training_overlap(
    manifest: Manifest, env: GoalEnv, dataset: EpisodeDataset, *, min_distance_m: float
) -> dict[str, Any]:
    """How close every task comes to the recorded episodes, in the space of true positions.

    Distances are Euclidean over all position entries of `GoalEnv.privileged` together (for the tabletop: gripper and
    object). A task overlaps an episode that comes close to its start and to its goal state.

    Args:
        manifest: The tasks.
        env: An environment of theirs; its state is overwritten.
        dataset: What models are trained on.
        min_distance_m: Refuse a task whose start and goal state both lie within this distance of one episode, metres.

    Returns:
        The data's hash and size, and smallest and median distance (metres) of starts, of goal states, and of the
        worse of both within one episode.

    Raises:
        DataError: The recording holds no episode of this environment, or other true quantities.
        SimulationError: A task overlaps.
    """
    names = tuple(dataset.spec.privileged_names)
    if names != env.privileged_names:
        raise DataError(
            f"{dataset.path} holds the true quantities {names}, {manifest.env_id} has {env.privileged_names}"
        )
    episodes = np.flatnonzero(dataset.index.env_id == manifest.env_id)
    if not len(episodes):
        raise DataError(f"{dataset.path} holds no episode of {manifest.env_id}, only of {', '.join(dataset.env_ids)}")
    columns = [i for i, name in enumerate(names) if name.rsplit("_", 1)[-1] in _METRES]
    starts, goals = _true_states(manifest, env, columns)
    to_start, to_goal = (_nearest(dataset, episodes, columns, states) for states in (starts, goals))
    both = np.maximum(to_start, to_goal)  # (tasks, episodes)
    nearest = both.min(axis=1)
    closest = int(nearest.argmin())
    if nearest[closest] < min_distance_m:
        raise SimulationError(
            f"task {closest} overlaps training episode {int(episodes[both[closest].argmin()])} of {dataset.path}: the "
            f"episode comes within {nearest[closest]:.4f} m of its start and its goal state (allowed: "
            f"{min_distance_m} m); draw the tasks with another seed, or from streams of their own"
        )
    return {
        "data_hash": dataset.content_hash,
        "episodes": len(episodes),
        "frames": int(dataset.index.length[episodes].sum()),
        "start_m": _summary(to_start.min(axis=1)),
        "goal_m": _summary(to_goal.min(axis=1)),
        "start_and_goal_m": _summary(nearest),
    }


def _true_states(manifest: Manifest, env: GoalEnv, columns: list[int]) -> tuple[NDArray[Any], NDArray[Any]]:
    """(tasks, C) positions at the start and in the goal state of every task."""
    starts, goals = [], []
    for task in manifest.tasks:
        env.reset(options={"task": task})
        starts.append(env.privileged()[columns])
        env.set_state(task.goal_state)
        goals.append(env.privileged()[columns])
    return np.array(starts), np.array(goals)


def _nearest(
    dataset: EpisodeDataset, episodes: NDArray[np.int64], columns: list[int], states: NDArray[Any]
) -> NDArray[np.float64]:
    """(tasks, episodes) smallest distance of any frame of the episode to the state, metres."""
    found = np.empty((len(states), len(episodes)))
    first = 0
    while first < len(episodes):  # whole episodes, about as many frames at once as fit into the cache
        length = np.cumsum(dataset.index.length[episodes[first:]])
        last = first + max(1, int(np.searchsorted(length, _FRAMES_PER_CHUNK, side="right")))
        chosen = episodes[first:last]
        rows = [dataset.privileged[s : s + n] for s, n in zip(*_spans(dataset, chosen), strict=True)]
        distance = cdist(states, np.concatenate(rows)[:, columns])
        begin = np.concatenate([[0], np.cumsum([len(part) for part in rows])[:-1]])
        found[:, first:last] = np.minimum.reduceat(distance, begin, axis=1)
        first = last
    return found


def _spans(dataset: EpisodeDataset, episodes: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return dataset.index.start[episodes], dataset.index.length[episodes]


def _summary(distances: NDArray[np.float64]) -> dict[str, float]:
    return {"min": float(distances.min()), "median": float(np.median(distances))}
