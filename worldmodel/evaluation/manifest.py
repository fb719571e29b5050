"""Frozen lists of held-out tasks: what every agent is judged on, with the floors and the ceiling stored beside them.

The hash covers the problem (environment, episode length, tasks, seeds) and nothing that was measured on it.
"""

from __future__ import annotations

import difflib
import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np

from worldmodel.envs import ENV_IDS, resolve_env_id
from worldmodel.envs.base import Appearance, GoalEnv, Task
from worldmodel.errors import ConfigError, DataError, SimulationError, WorldModelError
from worldmodel.evaluation.episodes import EpisodeResult

FORMAT = 1
SPLITS = ("test", "validation", "demo")
LOOKS = ("trained", "new_colours")
# Streams of manifests carry a spawn key, which plain SeedSequence([seed, episode]) (data collection) never does: numpy
# pads the entropy before a spawn key, so no choice of seed makes a collected episode share a manifest's stream.
_SPAWN_NAMESPACE = 0x6D61


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """Outcomes of an agent that depends on no checkpoint.

    Attributes:
        rows: One per task of the manifest, in order.
        budget: What the agent was allowed (JSON-ready), e.g. candidates, iterations and horizon of the oracle.
    """

    rows: tuple[EpisodeResult, ...]
    budget: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {"budget": dict(self.budget), "rows": [row.to_dict() for row in self.rows]}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Baseline:
        """Inverse of `to_dict`."""
        return cls(rows=tuple(EpisodeResult.from_dict(row) for row in record["rows"]), budget=record["budget"])


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A frozen list of tasks of one environment.

    Attributes:
        env_id: Registered id of the environment.
        split: One of `SPLITS`; streams of different splits never overlap.
        seed: Seed the tasks were drawn with.
        max_steps: Length of every episode, environment steps.
        success_radius_m: Radius of the success predicate when the manifest was made, metres.
        tasks: Starts (full physics), goals and looks.
        seeds: One seed per task, from which agents derive their streams.
        baselines: Stored outcomes by agent name; not part of the hash.
        checks: What was verified when the manifest was made (JSON-ready, see `manifest_checks`); not part of the hash.
    """

    env_id: str
    split: str
    seed: int
    max_steps: int
    success_radius_m: float
    tasks: tuple[Task, ...]
    seeds: tuple[int, ...]
    baselines: Mapping[str, Baseline] = field(default_factory=dict)
    checks: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.tasks or len(self.tasks) != len(self.seeds):
            raise DataError(f"a manifest needs one seed per task, got {len(self.tasks)} tasks, {len(self.seeds)} seeds")
        foreign = sorted({task.env_id for task in self.tasks} - {self.env_id})
        if foreign:
            raise DataError(f"manifest of {self.env_id} holds tasks of {foreign}")
        for index, task in enumerate(self.tasks):
            if not all(np.isfinite(part).all() for part in (task.start, task.goal, task.goal_state)):
                raise DataError(f"task {index} of the manifest of {self.env_id} holds non-finite numbers; rebuild it")
        for name, baseline in self.baselines.items():
            if [row.episode for row in baseline.rows] != list(range(len(self.tasks))):
                raise DataError(f"baseline {name!r} must hold one row per task, in order; rebuild the manifest")

    def __len__(self) -> int:
        return len(self.tasks)

    @property
    def hash(self) -> str:
        """Sha256 (hex) of the canonical JSON of the problem."""
        text = json.dumps(self._problem(), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def with_baselines(self, baselines: Mapping[str, Baseline]) -> Manifest:
        """The same tasks with outcomes stored beside them."""
        return replace(self, baselines=baselines)

    def with_looks(self, looks: str) -> Manifest:
        """The same tasks and outcomes in other looks, those that `build_manifest` would give them, bit for bit.

        Args:
            looks: One of `LOOKS`.

        Raises:
            ConfigError: Unknown looks.
        """
        dressed = [
            replace(task, appearance=draw_look(self.split, self.seed, episode, looks) or Appearance())
            for episode, task in enumerate(self.tasks)
        ]
        return replace(self, tasks=tuple(dressed))

    def with_checks(self, checks: Mapping[str, Any]) -> Manifest:
        """The same tasks with what was verified about them."""
        return replace(self, checks={**self.checks, **checks})

    def save(self, path: Path) -> None:
        """Write JSON, gzip-compressed when the name ends in .gz; same manifest, same bytes; never a half file."""
        record = {
            "format": FORMAT,
            "hash": self.hash,
            **self._problem(),
            "split": self.split,
            "seed": self.seed,
            "baselines": {name: baseline.to_dict() for name, baseline in self.baselines.items()},
            "checks": dict(self.checks),
        }
        data = json.dumps(record, allow_nan=False).encode()
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        partial.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
        os.replace(partial, path)

    def _problem(self) -> dict[str, Any]:
        return {
            "env_id": self.env_id,
            "max_steps": self.max_steps,
            "success_radius_m": self.success_radius_m,
            "tasks": [task.to_dict() for task in self.tasks],
            "seeds": list(self.seeds),
        }


def task_stream(split: str, seed: int, episode: int) -> np.random.SeedSequence:
    """Stream of one held-out task, disjoint from every stream of data collection.

    Args:
        split: One of `SPLITS`.
        seed: Seed of the manifest, >= 0.
        episode: Index of the task, >= 0.

    Raises:
        ConfigError: Unknown split, or a negative number.
    """
    if split not in SPLITS:
        raise ConfigError(f"split must be one of {', '.join(SPLITS)}, got {split!r}{_nearest(split, SPLITS)}")
    if seed < 0 or episode < 0:
        raise ConfigError(f"seed and episode must be >= 0, got seed={seed}, episode={episode}")
    return np.random.SeedSequence([seed, episode], spawn_key=(_SPAWN_NAMESPACE, SPLITS.index(split)))


def draw_task(env: GoalEnv, split: str, seed: int, episode: int, *, looks: str = "trained") -> tuple[Task, int]:
    """Sample one held-out task and the seed agents use on it.

    Args:
        env: Environment to draw from.
        split: One of `SPLITS`.
        seed: Seed of the manifest.
        episode: Index of the task.
        looks: "trained" for the default look, "new_colours" for colours drawn per task; start and goal are the same.

    Raises:
        ConfigError: As `task_stream`, or unknown looks.
        SimulationError: No valid task was found.
    """
    look = draw_look(split, seed, episode, looks)
    tasks, agents, _ = task_stream(split, seed, episode).spawn(3)
    return env.sample_task(np.random.default_rng(tasks), look), int(agents.generate_state(1)[0])


def draw_look(split: str, seed: int, episode: int, looks: str) -> Appearance | None:
    """Look of one held-out task, None for the default one; arguments and errors as `draw_task`."""
    if looks not in LOOKS:
        raise ConfigError(f"looks must be one of {', '.join(LOOKS)}, got {looks!r}{_nearest(looks, LOOKS)}")
    _, _, colours = task_stream(split, seed, episode).spawn(3)
    return Appearance.new_colours(np.random.default_rng(colours)) if looks == "new_colours" else None


def build_manifest(
    env: GoalEnv, *, episodes: int, seed: int = 0, split: str = "test", looks: str = "trained"
) -> Manifest:
    """Draw a manifest without baselines, and refuse tasks that prove nothing.

    Args:
        env: Environment to draw from; its state is overwritten.
        episodes: Number of tasks, >= 1.
        seed: Seed of the manifest; a longer manifest of the same seed starts with the same tasks.
        split: One of `SPLITS`.
        looks: One of `LOOKS`.

    Raises:
        ConfigError: `episodes` is not positive, or the split or the looks are unknown.
        SimulationError: A task starts solved, its goal state does not solve it, or it repeats an earlier one.
    """
    if episodes < 1:
        raise ConfigError(f"episodes must be >= 1, got {episodes}")
    tasks, seeds, seen, distances = [], [], set(), []
    for episode in range(episodes):
        task, agent = draw_task(env, split, seed, episode, looks=looks)
        distances.append(_check_task(env, task, episode))
        key = (task.start.tobytes(), task.goal.tobytes())
        if key in seen:
            raise SimulationError(f"task {episode} repeats an earlier one: {task.env_id} ignores its random stream")
        seen.add(key)
        tasks.append(task)
        seeds.append(agent)
    return Manifest(
        env_id=tasks[0].env_id,
        split=split,
        seed=seed,
        max_steps=env.max_steps,
        success_radius_m=env.success_radius_m,
        tasks=tuple(tasks),
        seeds=tuple(seeds),
        checks={"start_distance_m": distances},
    )


def find_manifest(source: str, env_id: str) -> Manifest:
    """The manifest a setting means.

    Args:
        source: "shipped" for the test tasks in the package, "validation" for the validation tasks there, or the path
            of a file.
        env_id: Environment it must be for.

    Raises:
        ConfigError: It is for another environment, or none is shipped for this one.
        DataError: The file is missing, unreadable or corrupt.
    """
    if source == "shipped":
        return load_manifest(env_id)
    found = _shipped(env_id, "validation") if source == "validation" else load_manifest(source)
    if found.env_id != env_id:
        raise ConfigError(f"manifest {source} is for {found.env_id}, not for {env_id}")
    return found


def load_manifest(source: str | Path) -> Manifest:
    """Load a manifest from a file, or the test tasks shipped for an environment.

    Args:
        source: Path ending in .json or .json.gz, or a name or id of `worldmodel.envs.ENV_IDS`.

    Raises:
        ConfigError: Neither a manifest file nor a known environment.
        DataError: The file is missing, unreadable or corrupt, or its content does not match its hash.
    """
    if str(source).endswith((".json", ".json.gz")):
        return _read(Path(source))
    return _shipped(resolve_env_id(str(source)), "test")


def _shipped(env_id: str, split: str) -> Manifest:
    names = {full: name for name, full in ENV_IDS.items()}
    if env_id not in names:
        shipped_for = ", ".join(ENV_IDS)
        raise ConfigError(f"no manifest is shipped for {env_id!r} (only for {shipped_for}); give the path of one")
    name = names[env_id] if split == "test" else f"{names[env_id]}-{split}"
    with as_file(files("worldmodel") / "assets" / "manifests" / f"{name}.json.gz") as path:
        return _read(path)


def _check_task(env: GoalEnv, task: Task, episode: int) -> float:
    """Refuse starts that are solved already and goal states that are not; the distance from start to goal, metres."""
    env.reset(options={"task": task})
    distance = env.goal_distance()
    if env.is_success():
        raise SimulationError(
            f"task {episode} of {task.env_id} starts solved: {distance:.4f} m from its goal, "
            f"within the radius of {env.success_radius_m} m; sample_task must return unsolved starts"
        )
    env.set_state(task.goal_state)
    if not env.is_success():
        raise SimulationError(
            f"the goal state of task {episode} of {task.env_id} is {env.goal_distance():.4f} m from the goal, "
            f"outside the radius of {env.success_radius_m} m: its goal image would show another task"
        )
    return distance


def _read(path: Path) -> Manifest:
    try:
        data = path.read_bytes()
        record = json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)
    except FileNotFoundError as error:
        raise DataError(
            f"manifest {path} does not exist; build it: worldmodel manifest env=NAME episodes=100"
        ) from error
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise DataError(f"manifest {path} is corrupt or not a manifest ({error}); build it again") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        found = record.get("format") if isinstance(record, dict) else type(record).__name__
        raise DataError(f"manifest {path} has format {found!r}, this version reads format {FORMAT}; build it again")
    try:
        manifest = Manifest(
            env_id=record["env_id"],
            split=record["split"],
            seed=record["seed"],
            max_steps=record["max_steps"],
            success_radius_m=record["success_radius_m"],
            tasks=tuple(Task.from_dict(task) for task in record["tasks"]),
            seeds=tuple(record["seeds"]),
            baselines={name: Baseline.from_dict(entry) for name, entry in record["baselines"].items()},
            checks=record.get("checks", {}),
        )
        stored = record["hash"]
    except WorldModelError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(f"manifest {path} lacks or garbles a field ({error}); build it again") from error
    if manifest.hash != stored:
        raise DataError(f"manifest {path} was edited: its tasks hash to {manifest.hash[:12]}, it claims {stored[:12]}")
    return manifest


def _nearest(name: str, valid: Any) -> str:
    close = difflib.get_close_matches(name, valid, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
