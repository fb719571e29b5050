"""`worldmodel surprise` on a model that has learned nothing: every part runs, continues, and says what it did."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from worldmodel.cli import main

SMALL = ["env=reach", "pairs=1", "kinds=[vanish,pass_through]", "before=2", "after=2", "horizon=2"]


def test_pairs_are_judged_drawn_and_continued(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["surprise", *SMALL, f"checkpoints=[{tiny_checkpoint}]", f"run_dir={tmp_path}"]
    assert main([*argv, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["env"] == "worldmodel/Reach-v0"
    assert record["judges"] == ["tiny", "tiny: latent change", "frame difference"]
    assert record["timing"] == {"before": 2, "after": 2, "action_block": 3, "every": None}
    rates = record["accuracy"]["same_actions"]["tiny"]
    assert {kind: entry["pairs"] for kind, entry in rates.items()} == {"vanish": 1, "pass_through": 1, "overall": 2}
    assert list(record["accuracy"]) == ["same_actions", "arm_held", "same_pictures"]
    assert len(record["pairs"]) == 2
    assert all(len(values) == 4 for values in record["pairs"][0]["surprise"]["possible"].values())
    assert json.loads((tmp_path / "surprise.json").read_text()) == record
    for picture in ("surprise.png", "film_strip.png"):
        assert (tmp_path / picture).stat().st_size > 10_000
    kept = {path: path.read_bytes() for path in (tmp_path / "pairs").iterdir()}
    assert sorted(path.name for path in kept) == ["pass_through.json", "vanish.json"]
    assert main(argv) == 0
    shown = capsys.readouterr().out
    assert "impossible clip more surprising than its possible twin" in shown
    assert "frame difference" in shown
    assert {path: path.read_bytes() for path in (tmp_path / "pairs").iterdir()} == kept
    assert main([*argv, "seed=1"]) == 2
    assert "was made with seed=0, this run has 1; choose another run_dir" in capsys.readouterr().err


def test_mistakes_are_told_in_one_line(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*argv: str) -> str:
        assert main(["surprise", *argv, f"run_dir={tmp_path}"]) == 2
        message = capsys.readouterr().err
        assert message.count("\n") == 1
        return message

    assert "kinds must be among" in refused("kinds=[explode]")
    assert "checkpoints is empty" in refused("checkpoints=[]")
    assert "the checkpoints differ in image_size" in refused(*SMALL, f"checkpoints=[shipped,{tiny_checkpoint}]")
    assert "no checkpoint at" in refused("checkpoints=[nowhere]")
    assert "does not fit; trained for, against asked for: environment" in refused(
        "env=push", f"checkpoints=[{tiny_checkpoint}]"
    )


def test_the_masked_predictor_of_a_pretraining_run_is_asked_too(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = tmp_path / "reach.h5", tmp_path / "pretrain"
    argv = ["collect", "env=reach", "episodes=6", "steps=8", "image_size=32", "workers=1", f"out={data}"]
    assert main([*argv, f"run_dir={tmp_path / 'collect'}"]) == 0
    sizes = ["encoder.image_size=32", "encoder.embed_dim=24", "encoder.depth=1", "encoder.num_heads=2"]
    sizes += ["encoder.num_frames=4", "target.predictor.embed_dim=12", "target.predictor.depth=1"]
    sizes += ["target.predictor.num_heads=2", "target.mask.max_target_tokens=8"]
    argv = ["pretrain", f"data={data}", *sizes, "fit.steps=2", "fit.warmup_steps=1", "batch_size=4"]
    assert main([*argv, "validation_fraction=0.34", f"run_dir={run}"]) == 0
    capsys.readouterr()
    small = ["env=reach", "pairs=1", "kinds=[vanish]", "before=1", "after=1", f"checkpoints=[{tiny_checkpoint}]"]
    argv = ["surprise", *small, f"pretraining={run}", f"run_dir={tmp_path / 'surprise'}", "--json"]
    assert main(argv) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["judges"][-1] == "masked predictor"
    assert record["timing"]["every"] == 1
    assert all(value > 0 for value in record["pairs"][0]["surprise"]["impossible"]["masked predictor"])

    def refused(folder: Path) -> str:
        assert main(["surprise", *small, f"pretraining={folder}", f"run_dir={tmp_path / 'other'}"]) == 2
        return capsys.readouterr().err

    assert "is no run folder of `worldmodel pretrain`" in refused(tmp_path / "collect")
    facts = json.loads((run / "run.json").read_text())
    changed = ["encoder.embed_dim=48" if line == "encoder.embed_dim=24" else line for line in facts["overrides"]]
    (run / "run.json").write_text(json.dumps({**facts, "overrides": changed}))
    assert "was made with other settings" in refused(run)
    (run / "state.json").unlink()
    assert "cannot be read" in refused(run)
