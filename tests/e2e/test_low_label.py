"""The low-label comparison at a tiny size: every kind of arm, stopped, continued, refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from worldmodel.cli import main
from worldmodel.commands.low_label import Comparison
from worldmodel.commands.low_label_grid import LowLabelConfig
from worldmodel.commands.run import Run
from worldmodel.data.episodes import EpisodeDataset
from worldmodel.errors import ConfigError, DataError
from worldmodel.evaluation import baselines
from worldmodel.evaluation.low_label import read_rows
from worldmodel.evaluation.manifest import load_manifest
from worldmodel.models.checkpoint import load_checkpoint

ENCODER = ["encoder.embed_dim=48", "encoder.depth=1", "encoder.num_heads=2", "encoder.num_frames=4"]
CONFIG = LowLabelConfig(
    labels=(3, None),
    episodes=2,
    validation_episodes=1,
    validation_labels=3,
    pretrain=[
        "batch_size=4",
        "validation_fraction=0.34",
        *ENCODER,
        "encoder.image_size=32",
        "target.predictor.embed_dim=32",
        "target.predictor.depth=1",
        "target.predictor.num_heads=2",
        "target.mask.max_target_tokens=8",
        "fit.steps=2",
        "fit.warmup_steps=1",
    ],
    train=[
        "batch_size=4",
        "steps=2",
        "warmup_steps=1",
        "eval_every=0",
        "validation_fraction=0.34",
        "horizon=2",
        "compact_head.token_dim=8",
        "compact_head.hidden_dim=32",
        "compact_head.latent_dim=16",
        "compact_predictor.hidden_dim=32",
        "temporal_distance.steps=2",
        "temporal_distance.batch_size=8",
    ],
    evaluate=["planner.num_samples=4", "planner.num_elites=2", "planner.num_iterations=1", "planner.horizon=2"],
    arms={
        "ema_repaired": {"pretrain": ["target=ema_repaired"]},
        "random_vit": {"train": ["encoder=vit", *ENCODER, "encoder.image_size=32"]},
        "end_to_end": {"train": ["encoder=conv", "encoder.image_size=32", "frozen=false", "weights.reconstruction=0"]},
        "cloning": {"like": "ema_repaired", "clone": True},
        "student": {
            "like": "ema_repaired",
            "student": ["target.latent_weight=1", "batch_size=4", "validation_fraction=0.34", "fit.steps=2"],
        },
    },
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "push.h5"
    argv = ["collect", "env=push", "episodes=9", "steps=16", "image_size=32", "workers=1", f"out={out}"]
    assert main([*argv, f"run_dir={out.parent / 'run'}"]) == 0
    return out


@pytest.fixture
def quick_oracle(monkeypatch: pytest.MonkeyPatch) -> None:
    """An oracle of almost no budget; floors are not what is tested here."""
    planner = baselines.CEM(num_samples=2, num_elites=1, num_iterations=1, horizon=1, action_repeat=3)
    monkeypatch.setattr("worldmodel.commands.low_label.ORACLE", planner)


def comparison(config: LowLabelConfig, data: Path, folder: Path) -> Comparison:
    folder.mkdir(exist_ok=True)
    return Comparison(config, str(data), 1, Run(folder=folder, console=Console(quiet=True), progress=False))


@pytest.mark.slow
def test_all_arms_run_and_an_interrupted_comparison_goes_on(data: Path, tmp_path: Path, quick_oracle: None) -> None:
    short = replace(CONFIG, labels=(3,))
    grid = comparison(replace(short, looks=("trained",)), data, tmp_path / "run")
    grid.check()
    grid.make(grid.cells[0])
    assert grid.cells[0] not in grid.missing()
    grid = comparison(short, data, tmp_path / "run")
    assert grid.cells[0] in grid.missing()  # a look was added
    grid.make(grid.cells[0])
    before = (tmp_path / "run" / "cells" / "ema_repaired-3-s0.json").stat().st_mtime_ns
    outcome = comparison(short, data, tmp_path / "run").run()
    assert (tmp_path / "run" / "cells" / "ema_repaired-3-s0.json").stat().st_mtime_ns == before
    assert outcome.record["missing"] == []
    rates = {(entry["arm"], entry["look"]) for entry in outcome.record["rates"]}
    assert rates == {(arm, look) for arm in CONFIG.arms for look in ("trained", "new_colours")}
    against = {entry["against"] for entry in outcome.record["contrasts"]}
    assert against == {"random_vit", "end_to_end", "cloning", "student"}
    assert set(outcome.record["floors"]) == {"random", "noop", "oracle"}
    assert (tmp_path / "run" / "low_label.png").stat().st_size > 10_000
    assert json.loads((tmp_path / "run" / "low_label.json").read_text())["rates"] == outcome.record["rates"]
    encoders = sorted(path.name for path in (tmp_path / "run" / "encoders").iterdir())
    assert encoders == ["ema_repaired-s0"]  # cloning and the student use that of their model
    host, model = (load_checkpoint(tmp_path / "run" / "runs" / "student-3-s0" / name) for name in ("host", "model"))
    changed = [name for name, weight in host.state_dict().items() if not torch.equal(weight, model.state_dict()[name])]
    assert changed
    assert all(name.startswith("encoder.") for name in changed)

    first, *others = CONFIG.train
    moved = {name: {**arm, "train": [*arm.get("train", []), first]} for name, arm in CONFIG.arms.items()}
    comparison(replace(short, train=others, arms=moved), data, tmp_path / "run").check()  # the same, said elsewhere
    changed = replace(short, train=[*CONFIG.train, "lr=0.5"])
    with pytest.raises(ConfigError, match="was made with other settings"):
        comparison(changed, data, tmp_path / "run").check()


@pytest.mark.slow
def test_every_arm_takes_the_recipe_that_is_best_for_it(
    data: Path, tmp_path: Path, quick_oracle: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    arms = {name: CONFIG.arms[name] for name in ("random_vit", "end_to_end")}
    config = replace(
        CONFIG, arms=arms, candidate="random_vit", labels=(3,), variants={"slow": ["lr=1e-5"], "fast": ["lr=1e-2"]}
    )
    grid = comparison(config, data, tmp_path / "run")
    scores = {"random_vit-slow": 0.0, "random_vit-fast": 0.5, "end_to_end-slow": 0.5, "end_to_end-fast": 0.5}
    real = Comparison._evaluate

    def judged(self: Comparison, folder: Path, manifest: str, episodes: int) -> dict[str, object]:
        found = real(self, folder, manifest, episodes)
        return {**found, "success_rate": scores[folder.name]} if manifest == "validation" else found

    monkeypatch.setattr(Comparison, "_evaluate", judged)
    grid.run()
    chosen = {row.cell.arm: row for row in read_rows(grid.folder)}
    assert {name: row.variant for name, row in chosen.items()} == {"random_vit": "fast", "end_to_end": "slow"}
    assert "lr=1e-2" in chosen["random_vit"].commands["train"]


def test_an_arm_may_be_run_at_some_numbers_of_labels_only(data: Path, tmp_path: Path) -> None:
    arms = {"random_vit": {"train": []}, "guessed": {"labels": [3], "seeds": 2}}
    config = replace(CONFIG, arms=arms, candidate="random_vit", labels=(3, None))
    names = [cell.name for cell in comparison(config, data, tmp_path / "run").cells]
    assert names == ["random_vit-3-s0", "guessed-3-s0", "guessed-3-s1", "random_vit-all-s0"]


def test_numbers_of_labels_may_have_the_first_seed_or_the_first_look_alone(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arms = {"random_vit": {"train": [], "seeds": 2}}
    config = replace(
        CONFIG, arms=arms, candidate="random_vit", labels=(3, 2, None), first_look=(2, None), first_seed=(None,)
    )
    monkeypatch.setattr(Comparison, "_train", lambda *_: {"minutes": 1.0})
    found = {"episodes_table": [{"held": True, "ever": True}], "manifest_hash": "aa"}
    monkeypatch.setattr(Comparison, "_evaluate", lambda *_: found)
    grid = comparison(config, data, tmp_path / "run")
    names = [cell.name for cell in grid.cells]
    assert names == [f"random_vit-{cell}" for cell in ("3-s0", "3-s1", "2-s0", "2-s1", "all-s0")]
    for cell in grid.cells:
        grid.make(cell)
    looks = {row.cell.name: list(row.held) for row in read_rows(grid.folder)}
    both = ["trained", "new_colours"]
    assert looks == {name: both if "-3-" in name else ["trained"] for name in names}
    assert grid.missing() == []


def test_a_student_of_what_is_no_vit_is_refused_before_anything_runs(data: Path, tmp_path: Path) -> None:
    arms = {"wrong": {"train": ["encoder=conv"], "student": ["target.latent_weight=1"]}}
    config = replace(CONFIG, arms=arms, candidate="wrong")
    with pytest.raises(ConfigError, match="arm wrong: a student takes the place of a ViT"):
        comparison(config, data, tmp_path / "run").check()


def test_calls_share_the_work_by_arms(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"episodes_table": [{"held": True, "ever": True}], "manifest_hash": "aa"}
    monkeypatch.setattr(Comparison, "_train", lambda *_: {"minutes": 1.0})
    monkeypatch.setattr(Comparison, "_evaluate", lambda *_: found)
    monkeypatch.setattr(Comparison, "_pretrain", lambda *_: None)
    config = replace(CONFIG, labels=(3,), looks=("trained",), cells=str(tmp_path / "cells"))
    first = comparison(replace(config, only=("random_vit",)), data, tmp_path / "first")
    assert {cell.arm for cell in first.missing()} == set(CONFIG.arms)
    monkeypatch.setattr(Comparison, "floors", lambda _: {})
    assert len(first.run().record["missing"]) == len(CONFIG.arms) - 1
    others = tuple(name for name in CONFIG.arms if name != "random_vit")
    second = comparison(replace(config, only=others), data, tmp_path / "second").run()
    assert second.record["missing"] == []
    assert {entry["arm"] for entry in second.record["rates"]} == set(CONFIG.arms)  # all that are in the folder


def test_tasks_and_floors_are_the_shipped_ones(data: Path, tmp_path: Path) -> None:
    shipped = load_manifest("push")
    grid = comparison(replace(CONFIG, episodes=len(shipped)), data, tmp_path / "run")
    assert grid.floors() == {name: [row.held for row in found.rows] for name, found in shipped.baselines.items()}
    kept = Path(__file__).parents[2] / "docs" / "results" / "low_label" / "first_recipe" / "ema_repaired-200-s0.json"
    for look, tasks in json.loads(kept.read_text())["manifests"].items():  # recorded on another machine
        assert load_manifest(grid._manifest(look)).hash == tasks


def test_a_wrong_override_is_found_before_anything_runs(data: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, arms={**CONFIG.arms, "odd": {"train": ["encodr=vit"]}})
    with pytest.raises(ConfigError, match="encodr"):
        comparison(config, data, tmp_path / "run").check()
    assert not (tmp_path / "run" / "encoders").exists()


def test_cells_of_two_recordings_are_not_mixed(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = comparison(replace(CONFIG, labels=(3,), looks=("trained",)), data, tmp_path / "run")
    found = {"episodes_table": [{"held": True, "ever": True}], "manifest_hash": "aa"}
    monkeypatch.setattr(Comparison, "_train", lambda *_: {"minutes": 1.0})
    monkeypatch.setattr(Comparison, "_evaluate", lambda *_: found)
    grid.make(next(cell for cell in grid.cells if cell.arm == "random_vit"))
    (row,) = read_rows(grid.folder)
    assert row.data == EpisodeDataset.open(data).content_hash
    replace(row, data="0123456789abcdef").save(grid.folder)
    with pytest.raises(DataError, match="was made from recording 0123456789ab"):
        grid.run()


def test_no_time_for_a_cell_is_said(data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"raise low_label\.max_minutes"):
        comparison(replace(CONFIG, max_minutes=0.0), data, tmp_path / "run").run()


@pytest.mark.parametrize("keep", [False, True])
def test_encoded_frames_are_kept_for_other_cells_when_asked_to(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: bool
) -> None:
    grid = comparison(replace(CONFIG, labels=(None,), looks=("trained",), keep_features=keep), data, tmp_path / "run")
    features = tmp_path / "run" / "features" / "encoder-data.npy"

    def encodes(self: Comparison, *_: object) -> dict[str, object]:
        features.parent.mkdir()
        features.touch()
        return {"minutes": 1.0}

    found = {"episodes_table": [{"held": True, "ever": True}], "manifest_hash": "aa"}
    monkeypatch.setattr(Comparison, "_train", encodes)
    monkeypatch.setattr(Comparison, "_evaluate", lambda *_: found)
    grid.make(next(cell for cell in grid.cells if cell.arm == "random_vit"))
    assert features.exists() == keep
    assert len(read_rows(grid.folder)) == 1
