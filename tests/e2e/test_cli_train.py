"""`worldmodel train` end to end, and cloning beside it: from episodes to an evaluated checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from worldmodel.cli import main
from worldmodel.commands import train
from worldmodel.commands.material import labelled, material_of
from worldmodel.commands.run import Run
from worldmodel.config import load
from worldmodel.control.collect import CollectConfig, collect
from worldmodel.data.episodes import EpisodeDataset, write_episodes
from worldmodel.errors import CheckpointError, ConfigError
from worldmodel.evaluation.evaluate import policy_agents
from worldmodel.models.checkpoint import load_checkpoint, read_card
from worldmodel.models.frozen_encoders import ConvEncoderConfig, build_encoder

TINY = [
    "encoder=conv",
    "encoder.image_size=32",
    "encoder.widths=[4,8]",
    "batch_size=4",
    "steps=6",
    "warmup_steps=1",
    "eval_every=0",
    "validation_fraction=0.34",
    "horizon=2",
    "rollout_steps=2",
    "compact_head.token_dim=4",
    "compact_head.hidden_dim=16",
    "compact_head.latent_dim=8",
    "compact_predictor.hidden_dim=16",
    "compact_predictor.num_blocks=1",
    "temporal_distance.steps=4",
    "temporal_distance.batch_size=8",
]
END_TO_END = ["frozen=false", "weights.reconstruction=0", "labelled_episodes=2"]


@pytest.fixture(name="data", scope="module")
def _data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "reach.h5"
    collect(CollectConfig(env="reach", episodes=4, steps=12, image_size=32, workers=1, out=str(out)), progress=False)
    return out


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def evaluated(checkpoint: Path, manifest: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    small = ["planner.num_samples=4", "planner.num_elites=2", "planner.num_iterations=1", "planner.horizon=1"]
    argv = ["evaluate", "env=reach", "episodes=1", f"checkpoint={checkpoint}", f"manifest={manifest}", *small]
    capsys.readouterr()
    assert main([*argv, "run_dir=evaluation", "--json"]) == 0
    record: dict[str, object] = json.loads(capsys.readouterr().out)
    return record


def test_an_encoder_trained_end_to_end_is_saved_and_plans(
    data: Path, small_manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", f"data={data}", *TINY, *END_TO_END, "run_dir=run", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["steps"] == 6
    assert {"rollout", "sigreg", "val_one_step", "probe_gripper_x"} <= record["metrics"].keys()
    assert "reconstruction" not in record["metrics"]
    assert not (tmp_path / "outputs").exists()  # nothing is cached: the features move
    model = load_checkpoint(tmp_path / "run" / "checkpoint")
    assert model.temporal_distance is not None
    assert read_card(tmp_path / "run" / "checkpoint")["training"]["frozen"] is False
    initial = build_encoder(ConvEncoderConfig(image_size=32, widths=(4, 8)), seed=0).state_dict()
    assert not any(torch.equal(value, initial[name]) for name, value in model.encoder.state_dict().items())
    result = evaluated(tmp_path / "run" / "checkpoint", small_manifest, capsys)
    assert result["agent"]["type"] == "ModelAgents"  # type: ignore[index]


def test_reconstruction_of_moving_tokens_is_refused_in_one_line(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", f"data={data}", *TINY, "frozen=false", "run_dir=run"]) == 2
    error = capsys.readouterr().err
    assert "set weights.reconstruction=0" in error
    assert error.count("\n") == 1


def test_a_cloned_policy_is_evaluated_like_a_model(
    data: Path, small_manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(name: str, *more: str) -> dict[str, object]:
        settings = load("train", [f"data={data}", *TINY, "cache_dir=features", "out=policy", *more]).settings
        return train.clone(settings, Run(folder=tmp_path / name, console=Console(quiet=True), progress=False)).record

    record = run("run", "labelled_episodes=2")
    assert record["steps"] == 6
    assert {"loss", "val_squared_error"} <= record["metrics"].keys()  # type: ignore[attr-defined]
    result = evaluated(Path("policy"), small_manifest, capsys)
    assert result["agent"]["type"] == "PolicyAgents"  # type: ignore[index]
    assert result["replan_s"] == {"p50": None, "p95": None}
    factory = policy_agents("policy", "worldmodel/Reach-v0")
    assert factory.identity()["checkpoint_hash"] == result["agent"]["checkpoint_hash"]  # type: ignore[index]
    with pytest.raises(CheckpointError, match="worldmodel/Push-v0"):
        policy_agents("policy", "worldmodel/Push-v0")
    run("other", "seed=1")
    with pytest.raises(CheckpointError, match="changed during the run"):
        factory.build()
    with pytest.raises(ConfigError, match="set frozen=true"):
        run("third", *END_TO_END)


@pytest.mark.parametrize("copies", [0, 2])
def test_encoding_a_few_episodes_gives_what_the_cache_gives(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], copies: int
) -> None:
    metrics = []
    for name, labels in (("cache", "null"), ("few", "3")):  # of four episodes one is held out
        argv = ["train", f"data={data}", *TINY, "validation_fraction=0.25", f"labelled_episodes={labels}"]
        argv.append(f"recolour.copies={copies}")
        assert main([*argv, f"run_dir={name}", f"cache_dir={tmp_path / name / 'features'}", "--json"]) == 0
        metrics.append(json.loads(capsys.readouterr().out)["metrics"])
        assert len(list((tmp_path / name / "features").glob("*.npy"))) == (1 + copies) * (name == "cache")
        assert read_card(tmp_path / name / "checkpoint")["training"]["recolour"]["copies"] == copies
    assert {k: v for k, v in metrics[0].items() if k != "loader_share"} == {
        k: v for k, v in metrics[1].items() if k != "loader_share"
    }


def test_an_encoder_in_training_sees_other_colours_too(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    losses = []
    for copies in (0, 2):
        argv = ["train", f"data={data}", *TINY, *END_TO_END, f"recolour.copies={copies}", f"run_dir={copies}", "--json"]
        assert main(argv) == 0
        losses.append(json.loads(capsys.readouterr().out)["metrics"]["val_rollout"])
    assert losses[0] != losses[1]


def test_frames_in_other_colours_are_refused_where_they_mean_nothing(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["train", f"data={data}", *TINY, "recolour.copies=1"]
    assert main([*argv, "latent=pixels"]) == 2
    assert "set recolour.copies=0" in capsys.readouterr().err
    assert main([*argv, "recolour.strength=2"]) == 2
    assert "recolour.strength must be in [0, 1]" in capsys.readouterr().err
    run = Run(folder=tmp_path, console=Console(quiet=True), progress=False)
    with pytest.raises(ConfigError, match=r"recolour.copies=0"):
        train.clone(load("train", argv[1:]).settings, run)


def test_actions_are_guessed_for_the_episodes_that_do_not_count_as_labelled(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    guessing = ["validation_fraction=0.25", "labelled_episodes=2", "pseudo_labels.steps=4", "cache_dir=features"]
    assert main(["train", f"data={data}", *TINY, *guessing, "run_dir=run", "--json"]) == 0
    metrics = json.loads(capsys.readouterr().out)["metrics"]
    training = read_card(tmp_path / "run" / "checkpoint")["training"]
    assert training["labelled_episodes"] == 2
    for name in ("guessed_action_r2", "guessed_proprio_r2"):
        assert metrics[name] == training["metrics"][name] <= 1
    settings = load("train", [f"data={data}", *TINY, *guessing, "out=policy"]).settings
    record = train.clone(settings, Run(folder=tmp_path / "policy_run", console=Console(quiet=True), progress=False))
    assert record.record["metrics"]["guessed_action_r2"] == metrics["guessed_action_r2"]  # video pretraining's use
    for bad, message in (
        (["labelled_episodes=null"], "say how many are labelled with labelled_episodes=N"),
        (["labelled_episodes=3"], "there is nothing to guess"),
    ):
        assert main(["train", f"data={data}", *TINY, *guessing, *bad, "run_dir=bad"]) == 2
        assert message in capsys.readouterr().err


def test_an_encoder_in_training_learns_from_the_frames_of_all_episodes_with_what_its_first_weights_guessed(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    guessing = ["validation_fraction=0.25", "labelled_episodes=2", "pseudo_labels.steps=4", "cache_dir=features"]
    metrics = {}
    for name, more in {"frozen": [], "end_to_end": END_TO_END}.items():
        assert main(["train", f"data={data}", *TINY, *guessing, *more, f"run_dir={name}", "--json"]) == 0
        metrics[name] = json.loads(capsys.readouterr().out)["metrics"]
    assert metrics["frozen"]["guessed_action_r2"] == metrics["end_to_end"]["guessed_action_r2"]
    initial = build_encoder(ConvEncoderConfig(image_size=32, widths=(4, 8)), seed=0).state_dict()
    trained = load_checkpoint(tmp_path / "end_to_end" / "checkpoint").encoder.state_dict()
    assert not any(torch.equal(value, initial[name]) for name, value in trained.items())
    settings = load("train", [f"data={data}", *TINY, *guessing, *END_TO_END, "recolour.copies=1"]).settings
    run = Run(folder=tmp_path / "material", console=Console(quiet=True), progress=False)
    material = material_of(settings, EpisodeDataset.open(data), run)
    assert len(material.train_ids) == 3
    assert [look.dtype for look in material.store.looks] == [np.uint8, np.uint8]
    truth = EpisodeDataset.open(data)
    known = labelled(material.train_ids, 2, settings.seed)
    frames = material.store.frames_of(known)
    np.testing.assert_array_equal(material.store.action[frames], truth.action[frames])
    others = material.store.frames_of(np.setdiff1d(material.train_ids, known))
    assert np.any(material.store.action[others] != truth.action[others])


def test_a_distractor_is_drawn_over_the_frames_of_every_look(data: Path, tmp_path: Path) -> None:
    flicker = ["distractor.kind=flicker", "recolour.copies=1", "cache_dir=features"]
    settings = load("train", [f"data={data}", *TINY, *flicker]).settings
    run = Run(folder=tmp_path / "material", console=Console(quiet=True), progress=False)
    plain = EpisodeDataset.open(data)
    dataset = EpisodeDataset.open(data, distractor=settings.distractor)
    views = settings.recolour.views(dataset)
    assert [view.distractor for view in views] == [settings.distractor]
    looks = [material_of(settings, each, run).store.looks for each in (plain, dataset)]
    for before, after in zip(*looks, strict=True):
        assert not np.array_equal(before, after)
    assert main(["train", f"data={data}", *TINY, *flicker, "run_dir=run"]) == 0
    card = read_card(tmp_path / "run" / "checkpoint")
    assert card["training"]["data"]["hash"] == dataset.content_hash != plain.content_hash


def test_baselines_learn_from_the_models_data_and_stand_beside_it_from_then_on(
    data: Path, small_manifest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", f"data={data}", *TINY, "run_dir=run", "cache_dir=features", "--json"]) == 0
    capsys.readouterr()
    where = ["env=reach", "checkpoint=run/checkpoint", f"manifest={small_manifest}"]
    tiny = [
        "bc.steps=6",
        "bc.batch_size=8",
        "bc.warmup_steps=1",
        "idm.steps=6",
        "idm.batch_size=8",
        "idm.warmup_steps=1",
    ]
    oracle = ["oracle.num_samples=2", "oracle.num_elites=1", "oracle.num_iterations=1", "oracle.horizon=2"]
    argv = ["baselines", *where, f"data={data}", *tiny, *oracle, "oracle_episodes=1", "cache_dir=features"]
    argv += ["validation_fraction=0.25", "run_dir=floors", "--json"]
    assert main(argv) == 0
    first = capsys.readouterr().out
    record = json.loads(first)["baselines"]
    assert {name: entry["episodes"] for name, entry in record.items()} == {"bc": 2, "idm": 2, "oracle_latent": 1}
    assert record["bc"]["budget"]["recipe"]["goals"] == "uniform"
    assert record["idm"]["budget"]["recipe"]["mean_goal_steps"] == 1.0
    assert record["oracle_latent"]["budget"]["planner"]["num_samples"] == 2
    assert main(argv) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["baselines"]["oracle_latent"] == record["oracle_latent"], "continued, not repeated"

    planner = ["planner.num_samples=4", "planner.num_elites=2", "planner.num_iterations=1"]
    assert main(["evaluate", *where, *planner, "episodes=2", "run_dir=evaluation", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)["baselines"]
    assert list(result) == ["random", "noop", "oracle", "bc", "idm", "oracle_latent"]
    assert (result["bc"]["episodes"], result["oracle_latent"]["episodes"]) == (2, 1)
    assert result["bc"]["success_rate"] == record["bc"]["success_rate"]

    assert main([*argv[:-1], "names=[bc]", f"data={tampered(data)}"]) == 2
    assert "is not what run/checkpoint was trained on" in capsys.readouterr().err


def tampered(data: Path) -> Path:
    """The same episodes but for the last one."""
    dataset = EpisodeDataset.open(data)
    episodes = [dataset.episode(i) for i in range(len(dataset) - 1)]
    return write_episodes(Path("other.h5"), dataset.spec, episodes).path


def test_the_foil_draws_frames_and_plans_with_them(
    data: Path, small_manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vit = ["encoder=vit", "encoder.image_size=32", "encoder.embed_dim=24", "encoder.depth=1", "encoder.num_heads=2"]
    small = [line for line in TINY if not line.startswith("encoder")]
    argv = ["train", f"data={data}", *vit, *small, "latent=pixels", "labelled_episodes=2", "run_dir=run"]
    assert main([*argv, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert {"one_step", "rollout", "val_one_step", "open_loop", "copy_last"} <= record["metrics"].keys()
    assert "sigreg" not in record["metrics"]
    model = load_checkpoint(tmp_path / "run" / "checkpoint")
    assert (model.spec.latent, model.temporal_distance, model.predictor.latent_dim) == ("pixels", None, 192)
    result = evaluated(tmp_path / "run" / "checkpoint", small_manifest, capsys)
    assert result["model_parameters"] == sum(weight.numel() for weight in model.parameters())
    assert result["flops_per_episode"] > 0  # type: ignore[operator]
    assert main(["train", f"data={data}", *TINY, "latent=pixels", "labelled_episodes=2", "run_dir=third"]) == 2
    assert "needs a ViT encoder, got ConvEncoder" in capsys.readouterr().err
