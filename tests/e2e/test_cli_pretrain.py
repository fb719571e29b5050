"""`worldmodel pretrain`: every target from the command line, and a run that is killed again and again."""

from __future__ import annotations

import json
import random
import time
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

import pytest
import torch

from worldmodel.cli import main
from worldmodel.models.checkpoint import load_checkpoint, load_encoder, read_card

TINY = [
    "batch_size=4",
    "validation_fraction=0.34",
    "encoder.image_size=32",
    "encoder.embed_dim=48",
    "encoder.depth=2",
    "encoder.num_heads=2",
    "encoder.num_frames=4",
    "target.predictor.embed_dim=32",
    "target.predictor.depth=1",
    "target.predictor.num_heads=2",
    "target.mask.max_target_tokens=8",
    "fit.warmup_steps=1",
    "fit.log_every=2",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "push.h5"
    argv = ["collect", "env=push", "episodes=6", "steps=16", "image_size=32", "workers=1", f"out={out}"]
    assert main([*argv, f"run_dir={out.parent / 'run'}"]) == 0
    return out


@pytest.mark.parametrize("target", ["ema", "ema_repaired", "teacher", "any_colour", "online", "pixels"])
def test_every_target_trains_and_is_diagnosed(
    target: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    argv = ["pretrain", f"data={data}", f"target={target}", *TINY, "fit.steps=10", f"run_dir={run}", "--json"]
    assert main(argv) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["steps"] == {"teacher": 7, "any_colour": 6}.get(target, 10)
    assert (run / "teacher" / "metrics.jsonl").is_file() == (target in ("teacher", "any_colour"))
    assert (
        record["diagnosis"].split(":")[0] in json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["status"]
    )
    assert {"health_positional_share", "health_mover_loss", "object_x_rmse"} <= record["metrics"].keys()
    assert (run / "health.png").stat().st_size > 10_000
    assert load_encoder(run / "encoder").embed_dim == 48


def test_a_target_of_another_kind_of_mask(data: Path, tmp_path: Path) -> None:
    argv = ["pretrain", f"data={data}", *TINY, "fit.steps=4", "target.mask.kind=motion", f"run_dir={tmp_path}"]
    assert main(argv) == 0


def test_a_teacher_that_is_given_is_used(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = ["pretrain", f"data={data}", "target=pixels", *TINY, "fit.steps=4", f"run_dir={tmp_path / 'a'}"]
    assert main(first) == 0
    second = ["pretrain", f"data={data}", "target=teacher", *TINY, "fit.steps=4", f"run_dir={tmp_path / 'b'}"]
    assert main([*second, f"target.path={tmp_path / 'a' / 'encoder'}"]) == 0
    assert not (tmp_path / "b" / "teacher").exists()
    capsys.readouterr()
    assert main([*second, "target.path=nowhere", f"run_dir={tmp_path / 'c'}"]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_a_student_takes_the_place_of_the_encoder_of_a_model(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = tmp_path / "train" / "checkpoint", tmp_path / "model"
    small = ["encoder.image_size=32", "encoder.embed_dim=48", "encoder.depth=2", "encoder.num_heads=2"]
    small += [
        "encoder=vit",
        "encoder.num_frames=4",
        "temporal_distance.steps=2",
        "horizon=2",
        "validation_fraction=0.34",
    ]
    train = ["train", f"data={data}", *small, "steps=2", "warmup_steps=1", "batch_size=4", "eval_every=0"]
    train += ["validation_fraction=0.34"]
    assert main([*train, f"cache_dir={tmp_path / 'features'}", f"run_dir={model.parent}"]) == 0
    argv = ["pretrain", f"data={data}", "batch_size=4", "validation_fraction=0.34", f"run_dir={tmp_path / 'run'}"]
    argv += ["fit.steps=4", "fit.warmup_steps=1", f"target.path={model}"]
    student = ["target=any_colour", "target.latent_weight=1"]
    capsys.readouterr()
    assert main([*argv, *student, f"model_out={out}", "--json"]) == 0  # the architecture is that of the model's encoder
    record = json.loads(capsys.readouterr().out)
    assert record["checkpoint"] == str(out)
    before, after = load_checkpoint(model), load_checkpoint(out)
    assert torch.equal(before.head.out.weight, after.head.out.weight)
    weights = after.encoder.state_dict()
    assert any(not torch.equal(weight, weights[name]) for name, weight in before.encoder.state_dict().items())
    alone = load_encoder(record["encoder"]).state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in alone.items())
    assert read_card(out)["training"]["student"]["objective"]["recolour_parts"] == 0.67

    for wrong, message in (
        ([*argv, f"model_out={out}", "target=teacher"], "needs target=any_colour"),
        ([*argv, *student, f"model_out={out}", f"target.path={record['encoder']}"], "not a world model"),
    ):
        assert main([*wrong, f"run_dir={tmp_path / 'wrong'}"]) == 2
        assert message in capsys.readouterr().err


def test_too_few_held_out_episodes_are_found_before_training(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["pretrain", f"data={data}", *TINY, "fit.steps=4", "validation_fraction=0.05", f"run_dir={tmp_path / 'run'}"]
    assert main(argv) == 2
    assert "holds out 1; raise it or record more" in capsys.readouterr().err
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.slow
def test_a_run_killed_ten_times_ends_with_the_same_bits(
    data: Path, tmp_path: Path, fresh_processes: ForkServerContext
) -> None:
    settings = [f"data={data}", *TINY, "fit.steps=44", "fit.checkpoint_every=2", "fit.eval_every=11"]
    moments = random.Random(0)
    state = tmp_path / "killed" / "state.json"

    def step() -> int:
        return int(json.loads(state.read_text())["step"]) if state.is_file() else 0

    def start(name: str) -> ForkServerProcess:
        argv = ["pretrain", *settings, f"run_dir={tmp_path / name}"]
        process = fresh_processes.Process(target=main, args=(argv,))
        process.start()
        return process

    for _ in range(10):
        done = step()
        process = start("killed")
        while process.is_alive() and step() < done + 2:
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 0.05))
        assert process.is_alive(), "the run ended before it was killed ten times; make it longer"
        process.kill()
        process.join()
    for name in ("killed", "whole"):
        start(name).join()
    whole, killed = (load_encoder(tmp_path / name / "encoder").state_dict() for name in ("whole", "killed"))
    assert all(torch.equal(value, killed[name]) for name, value in whole.items())
    rows = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("whole", "killed")]
    assert [_timeless(row) for row in rows[0]] == [_timeless(row) for row in rows[1]]


def _timeless(row: str) -> dict[str, object]:
    return {name: value for name, value in json.loads(row).items() if name not in ("seconds", "loader_share")}
