from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from worldmodel.control.collect import episode_seed
from worldmodel.envs.base import Appearance, Task
from worldmodel.envs.push import PushEnv
from worldmodel.errors import ConfigError, DataError, SimulationError
from worldmodel.evaluation.episodes import EpisodeResult
from worldmodel.evaluation.manifest import (
    SPLITS,
    Baseline,
    Manifest,
    build_manifest,
    find_manifest,
    load_manifest,
    task_stream,
)


def _row(episode: int) -> EpisodeResult:
    return EpisodeResult(
        episode=episode,
        held=episode % 2 == 0,
        ever=True,
        steps_to_success=7,
        start_distance_m=0.2,
        final_distance_m=0.01,
        min_distance_m=0.005,
        steps=60,
        replans=0,
    )


@pytest.fixture(name="env", scope="module")
def _env() -> Iterator[PushEnv]:
    env = PushEnv(render=False)
    yield env
    env.close()


@pytest.fixture(name="manifest", scope="module")
def _manifest(env: PushEnv) -> Manifest:
    return build_manifest(env, episodes=4, seed=3)


def test_building_twice_gives_the_same_bytes(tmp_path: Path, env: PushEnv, manifest: Manifest) -> None:
    manifest.save(tmp_path / "a.json.gz")
    build_manifest(env, episodes=4, seed=3).save(tmp_path / "b.json.gz")
    assert (tmp_path / "a.json.gz").read_bytes() == (tmp_path / "b.json.gz").read_bytes()


def test_a_longer_manifest_starts_with_the_same_tasks(env: PushEnv, manifest: Manifest) -> None:
    longer = build_manifest(env, episodes=6, seed=3)
    assert longer.seeds[:4] == manifest.seeds
    assert [t.to_dict() for t in longer.tasks[:4]] == [t.to_dict() for t in manifest.tasks]
    assert longer.hash != manifest.hash


def test_new_colours_change_the_look_and_nothing_else(env: PushEnv, manifest: Manifest) -> None:
    recoloured = build_manifest(env, episodes=4, seed=3, looks="new_colours")
    assert recoloured.seeds == manifest.seeds
    assert recoloured.hash != manifest.hash
    assert manifest.with_looks("new_colours").hash == recoloured.hash
    assert recoloured.with_looks("trained").hash == manifest.hash
    looks = [task.appearance for task in recoloured.tasks]
    assert len({look.object_rgb for look in looks}) == 4
    trained = Appearance()
    for look, task, original in zip(looks, recoloured.tasks, manifest.tasks, strict=True):
        np.testing.assert_array_equal(task.start, original.start)
        np.testing.assert_array_equal(task.goal, original.goal)
        for name in ("object_rgb", "table_rgb", "arm_rgb"):
            assert np.linalg.norm(np.subtract(getattr(look, name), getattr(trained, name))) > 0.3
    with pytest.raises(ConfigError, match="did you mean 'new_colours'"):
        build_manifest(env, episodes=1, looks="new_colors")


@pytest.mark.parametrize("suffix", [".json", ".json.gz"])
def test_saving_and_loading_keeps_everything(tmp_path: Path, manifest: Manifest, suffix: str) -> None:
    full = manifest.with_baselines({"noop": Baseline(rows=tuple(map(_row, range(4))), budget={"horizon": 5})})
    full.save(tmp_path / f"m{suffix}")
    loaded = load_manifest(tmp_path / f"m{suffix}")
    assert loaded.hash == full.hash == manifest.hash, "baselines are not part of the hash"
    assert loaded.baselines == full.baselines
    for task, original in zip(loaded.tasks, full.tasks, strict=True):
        np.testing.assert_array_equal(task.start, original.start)
        np.testing.assert_array_equal(task.goal_state, original.goal_state)
    assert (loaded.split, loaded.seed, loaded.max_steps, loaded.seeds) == ("test", 3, 60, manifest.seeds)


@pytest.mark.parametrize("change", ["start", "goal", "seeds", "max_steps", "success_radius_m"])
def test_the_hash_covers_the_problem(manifest: Manifest, change: str) -> None:
    if change in ("start", "goal"):
        first = replace(manifest.tasks[0], **{change: getattr(manifest.tasks[0], change) + 1e-12})
        other = replace(manifest, tasks=(first, *manifest.tasks[1:]))
    else:
        new = {"seeds": (1, *manifest.seeds[1:]), "max_steps": 61, "success_radius_m": 0.05}[change]
        other = replace(manifest, **{change: new})
    assert other.hash != manifest.hash


def test_splits_and_data_collection_never_share_a_stream(env: PushEnv) -> None:
    words = {split: tuple(task_stream(split, 0, 0).generate_state(4)) for split in SPLITS}
    collected = [tuple(np.random.SeedSequence([0, 0]).generate_state(4))]
    collected.append(tuple(np.random.SeedSequence(episode_seed(0, 0)).generate_state(4)))
    # zero padding is where numpy's entropy could collide: [0, 0] and [0, 0, 0, 0] are the same stream
    collected += [tuple(np.random.SeedSequence([0, 0, 0x6D61, i]).generate_state(4)) for i in range(len(SPLITS))]
    assert len({*words.values(), *collected}) == len(SPLITS) + len(set(collected))
    starts = [build_manifest(env, episodes=1, split=split).tasks[0].start.tobytes() for split in SPLITS]
    assert len(set(starts)) == len(SPLITS)


class _SolvedStarts(PushEnv):
    def sample_task(self, rng: np.random.Generator, appearance: Appearance | None = None) -> Task:
        task = super().sample_task(rng, appearance)
        return replace(task, start=task.goal_state)


class _WrongGoalPicture(PushEnv):
    def sample_task(self, rng: np.random.Generator, appearance: Appearance | None = None) -> Task:
        task = super().sample_task(rng, appearance)
        return replace(task, goal_state=task.start)


class _OneTask(PushEnv):
    def sample_task(self, rng: np.random.Generator, appearance: Appearance | None = None) -> Task:
        return super().sample_task(np.random.default_rng(0), appearance)


@pytest.mark.parametrize(
    ("broken", "message"),
    [(_SolvedStarts, "starts solved"), (_WrongGoalPicture, "goal state of task 0"), (_OneTask, "repeats")],
)
def test_tasks_that_prove_nothing_are_refused(broken: type[PushEnv], message: str) -> None:
    env = broken(render=False)
    with pytest.raises(SimulationError, match=message):
        build_manifest(env, episodes=2)
    env.close()


def test_bad_arguments_are_named(env: PushEnv) -> None:
    with pytest.raises(ConfigError, match="episodes must be >= 1, got -3"):
        build_manifest(env, episodes=-3)
    with pytest.raises(ConfigError, match="did you mean 'test'"):
        build_manifest(env, episodes=1, split="tset")
    with pytest.raises(ConfigError, match="seed=-1"):
        build_manifest(env, episodes=1, seed=-1)
    with pytest.raises(ConfigError, match="did you mean 'push'"):
        load_manifest("psh")
    with pytest.raises(DataError, match="worldmodel manifest"):
        load_manifest("nowhere/push.json.gz")


def test_damaged_files_are_refused(tmp_path: Path, manifest: Manifest) -> None:
    path = tmp_path / "m.json.gz"
    manifest.save(path)
    data = path.read_bytes()
    record = json.loads(gzip.decompress(data))

    def check(content: bytes, message: str) -> None:
        path.write_bytes(content)
        with pytest.raises(DataError, match=message):
            load_manifest(path)

    def check_record(change: dict[str, object], message: str) -> None:
        check(gzip.compress(json.dumps(record | change).encode()), message)

    check(data[: len(data) // 2], "corrupt")
    check(b"not gzip", "corrupt")
    check(gzip.compress(b"[1, 2]"), "format")
    check_record({"format": 99}, "format 99")
    check_record({"max_steps": 61}, "edited")
    check_record({"seeds": record["seeds"][:-1]}, "one seed per task")
    check_record({"tasks": [{"env_id": "x"}] * 4}, "lacks or garbles")
    nan_task = record["tasks"][0] | {"goal": [float("nan"), 0.0, 0.0]}
    check_record({"tasks": [nan_task, *record["tasks"][1:]]}, "non-finite")
    check_record({"env_id": "worldmodel/Reach-v0"}, "holds tasks of")
    check_record({"baselines": {"noop": {"budget": {}, "rows": [_row(1).to_dict()]}}}, "one row per task")
    check_record({"baselines": {"noop": {"budget": {}, "rows": [{"episode": 0}]}}}, "lacks")


@pytest.mark.parametrize("env_id", ["worldmodel/Reach-v0", "worldmodel/Push-v0"])
def test_test_and_validation_tasks_are_shipped_checked_and_different(env_id: str, tmp_path: Path) -> None:
    test, validation = (find_manifest(source, env_id) for source in ("shipped", "validation"))
    assert (test.split, validation.split) == ("test", "validation")
    starts = [{task.start.tobytes() for task in part.tasks} for part in (test, validation)]
    assert not starts[0] & starts[1]
    for part in (test, validation):
        assert part.checks["reachable"]["unreached"] == []
        assert part.checks["overlap"]["start_and_goal_m"]["min"] > 0.005
        assert {"random", "noop", "oracle"} <= part.baselines.keys()
    other = "worldmodel/Push-v0" if "Reach" in env_id else "worldmodel/Reach-v0"
    validation.save(tmp_path / "own.json")
    with pytest.raises(ConfigError, match="is for"):
        find_manifest(str(tmp_path / "own.json"), other)
