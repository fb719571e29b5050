"""Difficulty, overlap with training data, goals out of reach, and floors that expose a biased manifest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from worldmodel.data.episodes import Episode, EpisodeDataset, EpisodeSpec, write_episodes
from worldmodel.envs.base import Appearance, Task
from worldmodel.errors import ConfigError, DataError, SimulationError
from worldmodel.evaluation import baselines
from worldmodel.evaluation.baselines import (
    ManifestConfig,
    NoopAgents,
    RandomAgents,
    baseline_table,
    check_lines,
    make_manifest,
)
from worldmodel.evaluation.manifest import Manifest, build_manifest, load_manifest
from worldmodel.evaluation.manifest_checks import strata_of, training_overlap
from worldmodel.evaluation.runs import Schedule, run_manifest
from worldmodel.planners.cem import CEM
from worldmodel.testing import POINT_MASS_ID, PointMassEnv

ORACLE = CEM(num_samples=16, num_elites=4, num_iterations=2, horizon=4)


@pytest.fixture(name="env", scope="module")
def _env() -> PointMassEnv:
    return PointMassEnv(render=False)


@pytest.fixture(name="manifest", scope="module")
def _manifest(env: PointMassEnv) -> Manifest:
    return build_manifest(env, episodes=10, seed=1)


def recording(
    path: Path, tracks: list[np.ndarray], names: tuple[str, ...] = ("x", "y"), env_id: str = POINT_MASS_ID
) -> EpisodeDataset:
    """Episodes in which the dot was at the given places (T, 2)."""
    spec = EpisodeSpec(
        env_id=env_id,
        image_size=16,
        action_low=(-1.0, -1.0),
        action_high=(1.0, 1.0),
        proprio_names=("x", "y"),
        privileged_names=names,
        control_dt_s=0.1,
    )
    episodes = [
        Episode(
            pixels=np.zeros((len(track), 16, 16, 3), np.uint8),
            proprio=track.astype(np.float32),
            action=np.zeros((len(track) - 1, 2), np.float32),
            privileged=track.astype(np.float32),
            contact=np.zeros(len(track), np.bool_),
            policy="test",
            seed=number,
            success=False,
            env_id=env_id,
        )
        for number, track in enumerate(tracks)
    ]
    return write_episodes(path, spec, episodes)


def ends(manifest: Manifest, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Start and goal of a task."""
    return manifest.tasks[index].start, manifest.tasks[index].goal_state


def test_strata_are_thirds_by_distance() -> None:
    strata = strata_of([0.5, 0.1, 0.3, 0.2, 0.4, 0.6])
    assert [part.name for part in strata] == ["near", "middle", "far"]
    assert [part.tasks for part in strata] == [(1, 3), (2, 4), (0, 5)]
    assert [(part.low_m, part.high_m) for part in strata] == [(0.1, 0.2), (0.3, 0.4), (0.5, 0.6)]
    assert [part.tasks for part in strata_of([0.2, 0.1])] == [(1,), (0,)]


def test_overlap_is_the_worse_of_start_and_goal_within_one_episode(
    tmp_path: Path, env: PointMassEnv, manifest: Manifest
) -> None:
    rng = np.random.default_rng(0)
    tracks = [rng.uniform(0, 1, (length, 2)) for length in (30, 7, 50, 2)]
    report = training_overlap(manifest, env, recording(tmp_path / "a.h5", tracks), min_distance_m=0.0)
    pairs = []
    for index in range(len(manifest)):
        start, goal = ends(manifest, index)
        by_episode = [
            max(np.linalg.norm(track - start, axis=1).min(), np.linalg.norm(track - goal, axis=1).min())
            for track in tracks
        ]
        pairs.append(min(by_episode))
    assert report["start_and_goal_m"]["min"] == pytest.approx(min(pairs), abs=1e-6)
    assert report["start_and_goal_m"]["median"] == pytest.approx(np.median(pairs), abs=1e-6)
    starts = [min(np.linalg.norm(track - ends(manifest, i)[0], axis=1).min() for track in tracks) for i in range(10)]
    assert report["start_m"]["median"] == pytest.approx(np.median(starts), abs=1e-6)
    assert (report["episodes"], report["frames"]) == (4, 89)


def test_a_task_taken_from_the_training_data_is_refused(tmp_path: Path, env: PointMassEnv, manifest: Manifest) -> None:
    far = np.random.default_rng(0).uniform(0, 1, (20, 2))
    start, goal = ends(manifest, 7)
    halves = [np.vstack([far, start]), np.vstack([goal, far])]
    training_overlap(manifest, env, recording(tmp_path / "halves.h5", halves), min_distance_m=1e-4)
    leaked = recording(tmp_path / "leak.h5", [far, np.vstack([start, far, goal])])
    with pytest.raises(SimulationError, match="task 7 overlaps training episode 1"):
        training_overlap(manifest, env, leaked, min_distance_m=1e-4)
    other = recording(tmp_path / "other.h5", [far], names=("a", "b"))
    with pytest.raises(DataError, match="holds the true quantities"):
        training_overlap(manifest, env, other, min_distance_m=1e-4)
    elsewhere = recording(tmp_path / "elsewhere.h5", [far], env_id="worldmodel/Reach-v0")
    with pytest.raises(DataError, match="no episode of"):
        training_overlap(manifest, env, elsewhere, min_distance_m=0.0)


def config(tmp_path: Path, **changes: object) -> ManifestConfig:
    """A manifest of the point mass."""
    values: dict[str, object] = {
        "env": POINT_MASS_ID,
        "episodes": 6,
        "oracle": ORACLE,
        "oracle_action_block": 1,
        "out": str(tmp_path / "m.json.gz"),
        "run_dir": str(tmp_path / "run"),
    }
    return ManifestConfig(**{**values, **changes})  # type: ignore[arg-type]


def test_what_was_checked_is_kept_and_told(tmp_path: Path) -> None:
    recorded = recording(tmp_path / "a.h5", [np.random.default_rng(0).uniform(0, 1, (30, 2))])
    made = make_manifest(config(tmp_path, data=str(recorded.path)), progress=False)
    loaded = load_manifest(tmp_path / "m.json.gz")
    assert loaded.checks == made.checks
    assert loaded.checks["reachable"] == {"by": "oracle", "first_attempt": 6, "second_attempt": 0, "unreached": []}
    assert loaded.checks["overlap"]["data_hash"] == recorded.content_hash
    distances = [np.linalg.norm(task.start - task.goal_state) for task in made.tasks]
    np.testing.assert_allclose(loaded.checks["start_distance_m"], distances)
    lines = check_lines(loaded)
    assert "the oracle reaches 6" in lines[0]
    assert "no overlap with 1 recorded episodes" in lines[1]
    assert "not checked" in check_lines(make_manifest(config(tmp_path / "plain"), progress=False))[1]
    assert [column.header for column in baseline_table(loaded).columns][4].startswith("near (")


def test_goals_out_of_reach_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = PointMassEnv.sample_task

    def beyond(self: PointMassEnv, rng: np.random.Generator, appearance: Appearance | None = None) -> Task:
        task = sample(self, rng, appearance)
        outside = np.array([1.3, task.goal_state[1]])
        return replace(task, goal=np.append(outside, 0.0), goal_state=outside)

    monkeypatch.setattr(PointMassEnv, "sample_task", beyond)
    with pytest.raises(SimulationError, match=r"tasks 0, 1, 2 .* cannot be reached within 20 steps"):
        make_manifest(config(tmp_path, episodes=3), progress=False)
    assert not (tmp_path / "m.json.gz").exists()
    made = make_manifest(config(tmp_path, episodes=3, max_unreached=3), progress=False)
    assert made.checks["reachable"]["unreached"] == [0, 1, 2]
    assert "never reached: 0, 1, 2" in check_lines(made)[0]


def test_a_task_the_small_oracle_misses_is_tried_with_a_larger_one(tmp_path: Path) -> None:
    weak = CEM(num_samples=1, num_elites=1, num_iterations=1, horizon=1, init_std=0.5)
    made = make_manifest(config(tmp_path, oracle=weak, max_unreached=5), progress=False)
    reachable = made.checks["reachable"]
    assert reachable["second_attempt"] > 0
    assert reachable["first_attempt"] + reachable["second_attempt"] + len(reachable["unreached"]) == 6
    assert f"{baselines._ORACLE_RETRY} times the budget" in check_lines(made)[0]


def test_floors_expose_a_biased_manifest_that_the_builder_refuses(env: PointMassEnv, manifest: Manifest) -> None:
    def solved(task: Task) -> Task:
        return replace(task, start=task.goal_state + 0.001)

    biased = replace(manifest, tasks=tuple(solved(t) if i < 6 else t for i, t in enumerate(manifest.tasks)))
    schedule = Schedule(episodes=len(manifest))
    rates = {}
    for name, tasks in (("fair", manifest), ("biased", biased)):
        for agents in (NoopAgents(env=POINT_MASS_ID), RandomAgents(env=POINT_MASS_ID)):
            runs = run_manifest(tasks, agents, schedule, progress=False)
            rates[name, type(agents).__name__] = [run.result for run in runs]
    assert sum(row.held for row in rates["biased", "NoopAgents"]) == 6
    assert sum(row.held for row in rates["fair", "NoopAgents"]) == 0
    assert sum(row.ever for row in rates["biased", "RandomAgents"]) >= 6
    assert sum(row.ever for row in rates["fair", "RandomAgents"]) <= 2

    class Biased(PointMassEnv):
        def sample_task(self, rng: np.random.Generator, appearance: Appearance | None = None) -> Task:
            task = super().sample_task(rng, appearance)
            return solved(task) if rng.random() < 0.5 else task

    with pytest.raises(SimulationError, match="starts solved"):
        build_manifest(Biased(render=False), episodes=10, seed=1)


def test_running_chosen_tasks_gives_the_same_outcomes(manifest: Manifest) -> None:
    agents = RandomAgents(env=POINT_MASS_ID)
    every = run_manifest(manifest, agents, Schedule(episodes=10), progress=False)
    some = run_manifest(manifest, agents, Schedule(episodes=1), only=[7, 2], progress=False)
    assert [run.result for run in some] == [every[7].result, every[2].result]
    with pytest.raises(ConfigError, match="got 11"):
        run_manifest(manifest, agents, Schedule(episodes=1), only=[10], progress=False)
