from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from worldmodel.config import load
from worldmodel.envs import make_env
from worldmodel.errors import CheckpointError, ConfigError, DataError
from worldmodel.evaluation.baselines import ManifestConfig, RandomAgents, baseline_table, make_manifest, manifest_path
from worldmodel.evaluation.episodes import EpisodeResult, EpisodeRun
from worldmodel.evaluation.evaluate import EvaluateConfig, evaluate
from worldmodel.evaluation.manifest import Baseline, Manifest, build_manifest, load_manifest
from worldmodel.evaluation.result import BASELINES, EvalResult, summarise
from worldmodel.evaluation.stats import wilson_interval
from worldmodel.planners import CEM, SettlingCEM


def _row(episode: int, held: bool) -> EpisodeResult:
    return EpisodeResult(
        episode=episode,
        held=held,
        ever=held or episode == 0,
        steps_to_success=10 + episode if held else None,
        start_distance_m=0.2,
        final_distance_m=0.01 if held else 0.3,
        min_distance_m=0.01,
        steps=60,
        replans=2,
    )


@pytest.fixture(name="manifest", scope="module")
def _manifest() -> Manifest:
    env = make_env("push", render=False)
    manifest = build_manifest(env, episodes=6)
    env.close()
    floors = Baseline(rows=tuple(_row(i, i == 5) for i in range(6)))
    ceiling = Baseline(rows=tuple(_row(i, True) for i in range(6)), budget={"num_samples": 64})
    return manifest.with_baselines({"random": floors, "oracle": ceiling})


@pytest.fixture(name="result")
def _result(manifest: Manifest) -> EvalResult:
    runs = [EpisodeRun(result=_row(i, i in (1, 3)), replan_s=(0.1 * i, 0.2)) for i in range(4)]
    return summarise(manifest, {"checkpoint": "tiny", "planner": {"type": "CEM"}}, runs)


def test_the_machine_readable_contract(manifest: Manifest, result: EvalResult) -> None:
    record = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert record["success_rate"] == 0.5
    assert record["success_interval"] == list(wilson_interval(2, 4))
    assert record["success_ever"] == 0.75
    assert record["success_ever_interval"] == list(wilson_interval(3, 4))
    assert record["manifest_hash"] == manifest.hash
    assert record["replan_s"] == {"p50": pytest.approx(0.2), "p95": pytest.approx(0.265)}
    assert list(record["baselines"]) == ["random", "noop", "oracle", "bc", "idm", "oracle_latent"]
    assert record["baselines"]["noop"] is None, "not stored in this manifest"
    assert record["baselines"]["random"]["success_rate"] == 0.0, "only the first four episodes, the fifth is not run"
    assert record["baselines"]["random"]["success_interval"] == list(wilson_interval(0, 4))
    assert record["baselines"]["oracle"]["success_rate"] == 1.0
    assert record["baseline_budgets"]["oracle"] == {"num_samples": 64}
    table = record["episodes_table"]
    assert [row["episode"] for row in table] == [0, 1, 2, 3]
    assert [row["steps_to_success"] for row in table] == [None, 11, None, 13]
    assert not any("_s" in key.removesuffix("steps_to_success") for key in table[0]), "no timings in the table"


def test_agents_that_do_not_plan_have_no_latency(manifest: Manifest) -> None:
    runs = [EpisodeRun(result=_row(i, True), replan_s=()) for i in range(2)]
    record = summarise(manifest, {}, runs).to_json()
    assert record["replan_s"] == {"p50": None, "p95": None}


def _print(table: object) -> str:
    stream = io.StringIO()
    Console(file=stream, width=140).print(table)
    return stream.getvalue()


def test_tables_show_the_model_beside_floors_and_ceiling(manifest: Manifest, result: EvalResult) -> None:
    text = _print(result.table())
    lines = {line.split("│")[1].strip(): line for line in text.splitlines() if line.startswith("│")}
    assert list(lines) == ["model", *BASELINES]
    assert "50 %" in lines["model"]
    assert "15-85 %" in lines["model"]
    assert "not computed" in lines["noop"]
    assert "+50 (+0 to +100)" in lines["random"]
    assert manifest.hash[:12] in text
    assert "0.20 s (p50)" in text
    stored = _print(baseline_table(manifest))
    assert "17 %" in stored
    assert "100 %" in stored


def test_bad_settings_are_named_before_anything_runs(tmp_path: Path, manifest: Manifest) -> None:
    path = str(tmp_path / "m.json.gz")
    manifest.save(Path(path))
    good = EvaluateConfig(env="push", episodes=2, manifest=path, checkpoint=str(tmp_path / "none"))
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        evaluate(good)
    for change, error, message in [
        ({"episodes": -1}, ConfigError, "episodes must be >= 1, got -1"),
        ({"workers": 0}, ConfigError, "workers must be >= 1, got 0"),
        ({"batch": 0}, ConfigError, "batch must be >= 1, got 0"),
        ({"env": "pussh"}, ConfigError, "did you mean 'push'"),
        ({"env": "reach"}, ConfigError, "is for worldmodel/Push-v0"),
        ({"manifest": str(tmp_path / "absent.json")}, DataError, "does not exist"),
        ({"manifest": "psh"}, ConfigError, "unknown environment"),
    ]:
        with pytest.raises(error, match=message):
            evaluate(replace(good, **change))


def test_manifest_command_stores_floors_and_ceiling_with_the_budget(tmp_path: Path) -> None:
    oracle = CEM(num_samples=12, num_elites=3, num_iterations=2, horizon=1)
    config = ManifestConfig(env="reach", episodes=2, run_dir=str(tmp_path), oracle=oracle, oracle_action_block=6)
    manifest = make_manifest(config, progress=False)
    assert list(manifest.baselines) == ["random", "noop", "oracle"]
    noop = manifest.baselines["noop"].rows
    assert not any(row.ever for row in noop), "starts are unsolved, so doing nothing never succeeds"
    assert all(abs(row.final_distance_m - row.start_distance_m) < 0.01 for row in noop)
    ceiling = manifest.baselines["oracle"].rows
    assert [row.replans for row in ceiling] == [10, 10]
    assert all(row.final_distance_m < 0.5 * row.start_distance_m for row in ceiling), "true dynamics, true cost"
    budget = manifest.baselines["oracle"].budget
    assert (budget["planner"]["num_samples"], budget["action_block"]) == (12, 6)
    path = manifest_path(config, "worldmodel/Reach-v0")
    assert path == tmp_path / "manifests" / "reach-test.json.gz"
    loaded = load_manifest(path)
    assert loaded.hash == manifest.hash
    assert loaded.baselines == manifest.baselines

    seen = {log: log.read_bytes() for log in tmp_path.glob("*/episodes.jsonl")}
    assert len(seen) == 3
    assert make_manifest(config, progress=False).baselines == manifest.baselines
    assert {log: log.read_bytes() for log in seen} == seen, "finished episodes are not repeated"
    with pytest.raises(ConfigError, match="holds another run"):
        make_manifest(replace(config, oracle=replace(oracle, num_samples=13)), progress=False)
    with pytest.raises(ConfigError, match=r"\.json"):
        make_manifest(replace(config, out=str(tmp_path / "m.txt")))


def test_the_command_line_and_the_library_have_the_same_defaults() -> None:
    assert load("manifest").settings.oracle == ManifestConfig().oracle
    settings = load("evaluate").settings
    assert settings.planner == SettlingCEM(action_repeat=3), "what planner=None means for a model with action_block=3"
    assert settings.objective is None


def test_descriptions_name_the_agent() -> None:
    assert RandomAgents(env="worldmodel/Push-v0").identity()["type"] == "RandomAgents"
