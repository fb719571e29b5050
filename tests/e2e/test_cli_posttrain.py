"""`worldmodel posttrain`: the V-JEPA 2-AC recipe from episodes to an agent that plans, continues and replays."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from worldmodel.cli import main
from worldmodel.config import load
from worldmodel.control.collect import CollectConfig, collect
from worldmodel.errors import ConfigError
from worldmodel.models.ac_dynamics import ACDynamics
from worldmodel.models.checkpoint import load_checkpoint
from worldmodel.models.latent_head import NormHead

TINY = [
    "encoder=vit",
    "encoder.image_size=32",
    "encoder.embed_dim=24",
    "encoder.depth=1",
    "encoder.num_heads=2",
    "encoder.num_frames=2",
    "predictor.embed_dim=24",
    "predictor.depth=1",
    "predictor.num_heads=2",
    "predictor.grid_size=4",
    "clip_frames=4",
    "batch_size=4",
    "fit.steps=6",
    "fit.warmup_steps=1",
    "validation_fraction=0.34",
]
SEARCH = ["planner=vjepa2_ac", "planner.num_samples=8", "planner.num_elites=2", "planner.num_iterations=2"]
ENERGY = ["objective=goal_distance", "objective.metric=l1", "objective.step_weight=0"]


@pytest.fixture(name="data", scope="module")
def _data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "reach.h5"
    collect(CollectConfig(env="reach", episodes=4, steps=14, image_size=32, workers=1, out=str(out)), progress=False)
    return out


@pytest.fixture(name="checkpoint", scope="module")
def _checkpoint(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    cache = f"cache_dir={folder / 'features'}"
    assert main(["posttrain", f"data={data}", *TINY, cache, f"run_dir={folder / 'run'}"]) == 0
    return folder / "run" / "checkpoint"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_world_model_is_saved_and_its_errors_are_told(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["posttrain", f"data={data}", *TINY, "window=3", "run_dir=run", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    metrics = record["metrics"]
    assert record["steps"] == 6
    assert {"val_teacher_forcing", "val_rollout", "val_still", "val_foreign_actions"} <= set(metrics)
    assert metrics["loss"] == pytest.approx(metrics["teacher_forcing"] + metrics["rollout"], rel=1e-5)
    model = load_checkpoint(record["checkpoint"])
    assert isinstance(model.predictor, ACDynamics)
    assert isinstance(model.head, NormHead)
    assert model.window == 3
    assert model.predictor.config.latent_dim == 24
    assert torch.equal(model.action_normalizer.std, torch.ones(12))


@pytest.mark.parametrize("delay", [0, 3])
def test_the_agent_plans_the_published_way(
    checkpoint: Path, small_manifest: Path, delay: int, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["evaluate", "env=reach", "episodes=1", f"checkpoint={checkpoint}", f"manifest={small_manifest}"]
    assert main([*argv, *SEARCH, *ENERGY, f"delay={delay}", "run_dir=evaluation", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["episodes"] == 1
    assert record["flops_per_episode"] > 0
    assert "horizon: 1\n" in Path("evaluation", "config.yaml").read_text(encoding="utf-8")


def test_a_plan_is_kept_and_computed_again_to_the_bit(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["plan", "env=reach", "task=1", f"checkpoint={checkpoint}", *SEARCH, *ENERGY, "run_dir=plan", "--json"]
    assert main(argv) == 0
    plans = json.loads(capsys.readouterr().out)["plans"]
    assert main(["replay", f"plans={plans}", f"checkpoint={checkpoint}", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["equal"] == record["plans"] > 1


def test_an_interrupted_run_ends_at_the_same_weights(data: Path) -> None:
    whole = [*TINY, "fit.checkpoint_every=3", "cache_dir=features"]
    assert main(["posttrain", f"data={data}", *whole, "run_dir=a"]) == 0
    assert main(["posttrain", f"data={data}", *whole, "run_dir=b"]) == 0
    (Path("b") / "checkpoint" / "card.json").unlink()
    assert main(["posttrain", f"data={data}", *whole, "run_dir=b"]) == 0  # finds its last step, saves again
    first, second = (load_checkpoint(Path(name) / "checkpoint").state_dict() for name in ("a", "b"))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("window=4", ["window", "clip_frames=4"]),
        ("rollout_steps=4", ["clip_frames=4", "rollout_steps=4"]),
        ("pose.opening=9", ["9", "proprioception", "4 numbers"]),
        ("pose.position=[0,1]", ["position", "three"]),
        ("predictor.uses_extrinsics=true", ["uses_extrinsics", "camera"]),
        ("labelled_episodes=99", ["labelled_episodes", "99"]),
        ("encoder.image_size=64", ["64", "32"]),
    ],
)
def test_bad_input_is_one_line(data: Path, override: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["posttrain", f"data={data}", *TINY, override, "run_dir=run"]) == 2
    said = capsys.readouterr().err.strip()
    assert len(said.splitlines()) == 1
    assert all(word in said for word in words), said


def test_the_published_preset_is_the_released_model() -> None:
    settings = load("posttrain", ["data=x.h5", "predictor=vjepa2_ac", "fit=vjepa2_ac"]).settings
    assert settings.predictor.depth == 24
    assert settings.fit.steps == 4500 + 85_500 + 4500
    with pytest.raises(ConfigError, match="window"):
        load("posttrain", ["data=x.h5", "window=0"])
