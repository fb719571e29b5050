"""Evaluation of a tiny model on real environments: same outcomes however it is run, and after being killed."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from multiprocessing.context import ForkServerContext
from pathlib import Path

import numpy as np
import pytest
import torch

from worldmodel.analysis.episode import watch
from worldmodel.data.distractor import DistractorConfig
from worldmodel.envs import ENV_IDS, make_env
from worldmodel.errors import CheckpointError, ConfigError
from worldmodel.evaluation.baselines import ManifestConfig, make_manifest, manifest_path
from worldmodel.evaluation.evaluate import EvaluateConfig, evaluate
from worldmodel.evaluation.finished import read_subject
from worldmodel.evaluation.manifest import load_manifest
from worldmodel.models.checkpoint import load_checkpoint, save_checkpoint
from worldmodel.models.runtime import RuntimeConfig
from worldmodel.planners.cem import CEM

PLANNER = CEM(num_samples=16, num_elites=4, num_iterations=2, horizon=3)
EPISODES = 4


@pytest.fixture(name="checkpoint", scope="module")
def _checkpoint(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    """The tiny model, for both environments, and with actions that matter: a fresh predictor predicts "no change"."""
    model = load_checkpoint(tiny_checkpoint)
    model.spec = replace(model.spec, env_ids=tuple(ENV_IDS.values()))
    env = make_env("push", image_size=model.spec.image_size)
    frames = torch.tensor(np.stack([env.reset(seed=seed)[0]["pixels"] for seed in range(8)]))
    env.close()
    model.head.standardise.fit([model.encoder.encode_frames(frames[:, None])[:, 0]])
    stream = torch.Generator().manual_seed(0)
    for weight in model.predictor.parameters():
        torch.nn.init.normal_(weight, std=0.1, generator=stream)
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint") / "both", model, {"licence": "MIT"})


@pytest.fixture(name="config", scope="module")
def _config(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> EvaluateConfig:
    budget = CEM(num_samples=2, num_elites=1, num_iterations=1, horizon=1)
    folder = tmp_path_factory.mktemp("manifest")
    settings = ManifestConfig(
        env="reach",
        episodes=EPISODES,
        run_dir=str(folder),
        oracle=budget,
        oracle_action_block=10,
        max_unreached=EPISODES,
    )
    make_manifest(settings, progress=False)
    return EvaluateConfig(
        env="reach",
        episodes=EPISODES,
        checkpoint=str(checkpoint),
        planner=PLANNER,
        manifest=str(manifest_path(settings, "worldmodel/Reach-v0")),
    )


@pytest.fixture(name="reference", scope="module")
def _reference(config: EvaluateConfig) -> list[dict[str, object]]:
    table = evaluate(replace(config, batch=1), progress=False).to_json()["episodes_table"]
    assert len({row["final_distance_m"] for row in table}) == EPISODES
    assert isinstance(table, list)
    return table


@pytest.mark.parametrize(("workers", "batch"), [(1, 16), (2, 16), (4, 1)])
def test_outcomes_do_not_depend_on_workers_or_batch(
    config: EvaluateConfig, reference: list[dict[str, object]], workers: int, batch: int
) -> None:
    result = evaluate(replace(config, workers=workers, batch=batch), progress=False)
    assert result.to_json()["episodes_table"] == reference


def test_the_seed_matters(config: EvaluateConfig, reference: list[dict[str, object]]) -> None:
    other = evaluate(replace(config, seed=1, episodes=1), progress=False).to_json()["episodes_table"]
    assert other[0]["final_distance_m"] != reference[0]["final_distance_m"]


def test_the_same_tasks_in_other_colours(
    config: EvaluateConfig, reference: list[dict[str, object]], tmp_path: Path
) -> None:
    plain = evaluate(replace(config, looks="trained"), progress=False).to_json()
    assert plain["episodes_table"] == reference
    dressed = evaluate(replace(config, looks="new_colours", run_dir=str(tmp_path)), progress=False).to_json()
    assert dressed["manifest_hash"] != plain["manifest_hash"]
    assert dressed["manifest_hash"] == load_manifest(config.manifest).with_looks("new_colours").hash
    starts = [[row["start_distance_m"] for row in record["episodes_table"]] for record in (plain, dressed)]
    assert starts[0] == starts[1]
    assert dressed["episodes_table"] != reference
    with pytest.raises(ConfigError, match="did you mean 'new_colours'"):
        evaluate(replace(config, looks="new_colors"), progress=False)


def test_the_same_tasks_under_a_distractor(
    config: EvaluateConfig, reference: list[dict[str, object]], tmp_path: Path
) -> None:
    flicker = replace(config, distractor=DistractorConfig(kind="flicker"), run_dir=str(tmp_path))
    found = evaluate(flicker, progress=False).to_json()
    starts = [[row["start_distance_m"] for row in table] for table in (found["episodes_table"], reference)]
    assert starts[0] == starts[1]
    assert found["episodes_table"] != reference
    assert found["agent"]["distractor"]["kind"] == "flicker"
    with pytest.raises(ConfigError, match="distractor"):
        evaluate(replace(config, run_dir=str(tmp_path)), progress=False)
    with pytest.raises(ConfigError, match="under a distractor"):
        read_subject(tmp_path, manifest=config.manifest)


@pytest.mark.parametrize("share", np.random.default_rng(8).uniform(0.1, 1.0, size=3))
def test_killed_at_a_random_moment_an_evaluation_continues_to_the_same_result(
    tmp_path: Path,
    config: EvaluateConfig,
    reference: list[dict[str, object]],
    share: float,
    fresh_processes: ForkServerContext,
) -> None:
    rows = tmp_path / "episodes.jsonl"
    wanted = int(share * EPISODES)  # episodes to wait for, and then a part of the next
    alone = replace(config, run_dir=str(tmp_path), batch=1)  # one episode after the other
    child = fresh_processes.Process(target=evaluate, args=(alone,), kwargs={"progress": False})
    child.start()
    while child.is_alive() and not (rows.exists() and rows.read_bytes().count(b"\n") >= wanted):
        time.sleep(0.02)
    time.sleep(share % 0.25)
    child.kill()
    child.join()
    before = rows.read_bytes() if rows.exists() else b""
    finished = before[: before.rfind(b"\n") + 1]
    assert finished.count(b"\n") >= wanted
    assert not (tmp_path / "result.json").exists() or finished.count(b"\n") == EPISODES

    result = evaluate(replace(config, run_dir=str(tmp_path)), progress=False)
    assert result.to_json()["episodes_table"] == reference
    assert rows.read_bytes().startswith(finished), "finished episodes are kept, not repeated"
    assert sorted(json.loads(line)["episode"] for line in rows.read_text().splitlines()) == list(range(EPISODES))
    assert json.loads((tmp_path / "result.json").read_text())["episodes_table"] == reference
    shorter = evaluate(replace(config, run_dir=str(tmp_path), episodes=2), progress=False)
    assert shorter.to_json()["episodes_table"] == reference[:2]


def test_a_run_folder_refuses_other_settings(tmp_path: Path, config: EvaluateConfig) -> None:
    first = replace(config, run_dir=str(tmp_path), episodes=1)
    evaluate(first, progress=False)
    for change, named in [
        ({"seed": 1}, "seed 0 there, 1 now"),
        ({"planner": replace(PLANNER, num_samples=17)}, "num_samples 16 there, 17 now"),
        ({"replan_every": 2}, "replan_every 1 there, 2 now"),
    ]:
        with pytest.raises(ConfigError, match=named):
            evaluate(replace(first, **change), progress=False)
    with pytest.raises(ConfigError, match=r"replan_every must be in \[1, planner.horizon=3\], got 4"):
        evaluate(replace(first, replan_every=4), progress=False)


def test_another_precision_is_another_run_and_is_read_back(
    tmp_path: Path, config: EvaluateConfig, reference: list[dict[str, object]]
) -> None:
    """`explain` must replay a run as it was computed; runs from before there was a choice stay as they are."""
    fast = replace(config, runtime=RuntimeConfig(precision="bfloat16"), run_dir=str(tmp_path / "fast"))
    table = evaluate(fast, progress=False).to_json()["episodes_table"]
    assert table != reference
    again = replace(fast, runtime=RuntimeConfig())
    with pytest.raises(ConfigError, match="runtime"):
        evaluate(again, progress=False)
    assert read_subject(tmp_path / "fast", manifest=config.manifest).factory.runtime == fast.runtime
    plain = replace(config, run_dir=str(tmp_path / "plain"))
    assert "runtime" not in evaluate(plain, progress=False).agent
    assert read_subject(tmp_path / "plain", manifest=config.manifest).factory.runtime == RuntimeConfig()


def test_a_checkpoint_made_for_another_environment_is_refused(
    tmp_path: Path, config: EvaluateConfig, checkpoint: Path
) -> None:
    for file in checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    card = json.loads((tmp_path / "card.json").read_text())
    card["spec"]["env_ids"] = ["worldmodel/Push-v0"]
    (tmp_path / "card.json").write_text(json.dumps(card))
    with pytest.raises(CheckpointError, match="worldmodel/Reach-v0"):
        evaluate(replace(config, checkpoint=str(tmp_path)), progress=False)


def test_watching_an_episode(tmp_path: Path, checkpoint: Path) -> None:
    episode = watch(checkpoint, "push", seed=3, planner=PLANNER, replan_every=2)
    assert episode.frames.shape == (61, 32, 32, 3)
    assert len(episode.plans) == 10
    assert [plan.step for plan in episode.plans] == list(range(0, 60, 6))
    assert len(episode.replan_s) == 10
    for plan in episode.plans:
        # what the model thinks of the frame it plans from is what the curve under the video shows for that frame
        assert plan.imagined_cost[0] == pytest.approx(episode.costs[plan.step], rel=1e-6)
        assert plan.imagined_cost.shape == (PLANNER.horizon + 1,)
        assert plan.best_cost.shape == (2,)
        assert np.abs(plan.actions).max() <= 1
    first = episode.plans[0]
    weights = np.array([0.3, 0.3, 1.0]) / 1.6
    assert first.best_cost[-1] == pytest.approx(weights @ first.imagined_cost[1:], rel=1e-5)
    assert episode.save_video(tmp_path / "a.mp4").stat().st_size > 1000
    assert episode.save_plan_figure(tmp_path / "a.png", index=-1).stat().st_size > 1000
    summary = json.loads(json.dumps(episode.summary(), allow_nan=False))
    assert summary["replans"] == 10
    assert "data:video/mp4;base64," in episode._repr_html_()
    with pytest.raises(ConfigError, match=r"index must be in \[0, 9\]"):
        episode.save_plan_figure(tmp_path / "a.png", index=10)
    again = watch(checkpoint, "push", seed=3, planner=PLANNER, replan_every=2)
    np.testing.assert_array_equal(again.frames, episode.frames)
    np.testing.assert_array_equal(again.costs, episode.costs)
    other = watch(checkpoint, "push", seed=4, planner=PLANNER, replan_every=3)
    assert (other.goal != episode.goal).any()


def test_a_delay_changes_outcomes_and_a_measured_one_is_kept(
    config: EvaluateConfig, reference: list[dict[str, object]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = evaluate(replace(config, delay="4", episodes=2), progress=False)
    table = late.to_json()["episodes_table"]
    assert [row["final_distance_m"] for row in table] != [row["final_distance_m"] for row in reference[:2]]
    assert table[0]["replans"] < reference[0]["replans"]  # two blocks of three control steps pass before a new plan
    assert late.agent["delay"] == 4

    run = replace(config, delay="measured", episodes=1, run_dir=str(tmp_path / "run"))
    first = evaluate(run, progress=False)
    assert first.agent["delay"] >= 1
    assert json.loads((tmp_path / "run" / "delay.json").read_text()) == {"delay": first.agent["delay"]}
    monkeypatch.setattr("worldmodel.evaluation.delay.measured_delay", lambda *_: 10**6)
    again = evaluate(run, progress=False)
    assert again.agent["delay"] == first.agent["delay"]
    with pytest.raises(ConfigError, match="does not fit into a plan of horizon=3"):
        evaluate(replace(run, run_dir=None), progress=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"delay": "soon"}, "delay must be 'measured' or a number of control steps >= 0, got 'soon'"),
        ({"delay": "-1"}, "delay must be"),
        ({"time_budget_s": 0.0}, "time_budget_s must be > 0"),
    ],
)
def test_delays_and_budgets_are_checked(config: EvaluateConfig, change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(config, **change)  # type: ignore[arg-type]


def test_a_budget_is_for_one_problem(config: EvaluateConfig) -> None:
    endless = replace(PLANNER, num_iterations=10_000)
    result = evaluate(replace(config, planner=endless, time_budget_s=0.01, episodes=1), progress=False)
    assert result.rows[0].replans > 0
    assert result.agent["time_budget_s"] == 0.01
    assert result.replan_p50_s is not None
    assert result.replan_p50_s < 1.0
