"""Saved plans replay to the last bit, whichever search made them, and say so when they do not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from worldmodel.analysis.episode import watch
from worldmodel.cli import main
from worldmodel.control.objectives import ActionCost, GoalDistance
from worldmodel.errors import ConfigError, DataError
from worldmodel.evaluation.plan_records import PlanLog, rebuild, replay
from worldmodel.models.checkpoint import load_checkpoint
from worldmodel.planners import CEM, CMAES, ICEM, MPPI, Gradient, Planner

SIZES = {"num_samples": 8, "num_iterations": 2, "horizon": 2}
OBJECTIVE = GoalDistance() + ActionCost(weight=0.1)


@pytest.mark.parametrize(
    "planner",
    [
        CEM(**SIZES, num_elites=3),
        ICEM(**SIZES, num_elites=3),
        MPPI(**SIZES, num_elites=3),
        CMAES(**SIZES),
        Gradient(num_restarts=3, num_iterations=3, horizon=2),
    ],
    ids=lambda planner: type(planner).__name__,
)
def test_a_log_on_disk_gives_the_same_plans_again(planner: Planner, tiny_checkpoint: Path, tmp_path: Path) -> None:
    episode = watch(tiny_checkpoint, "reach", 0, planner=planner, objective=OBJECTIVE, replan_every=2)
    path = episode.log.save(tmp_path / "plans.safetensors")
    log = PlanLog.load(path)
    assert log.planner == planner
    assert log.objective == OBJECTIVE
    assert [record.step for record in log.records] == [plan.step for plan in episode.plans]
    found = replay(log, load_checkpoint(tiny_checkpoint))
    assert len(found) == episode.result.replans > 3
    assert all(entry.is_equal and entry.difference == 0 for entry in found)
    # a context that is a little different is found out
    moved = replace(log.records[0], context=replace(log.records[0].context))
    moved.context.latent = replace(moved.context.latent, visual=moved.context.latent.visual + 0.1)
    other = replace(log, records=(moved,), objective=GoalDistance())
    assert not replay(other, load_checkpoint(tiny_checkpoint))[0].is_equal


def test_plan_then_replay_from_the_command_line(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    sizes = ["planner.num_samples=8", "planner.num_elites=2", "planner.num_iterations=1", "planner.horizon=2"]
    argv = ["plan", "env=reach", "task=1", f"checkpoint={tiny_checkpoint}", *sizes, "run_dir=run", "--json"]
    assert main(argv) == 0
    plans = json.loads(capsys.readouterr().out)["plans"]
    again = ["replay", f"plans={plans}", f"checkpoint={tiny_checkpoint}", "--json"]
    assert main(again) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["equal"] == record["plans"] > 0
    assert record["largest_difference"] == 0
    assert main(["replay", f"plans={plans}", "checkpoint=shipped"]) == 2
    assert "made with another model" in capsys.readouterr().err

    log = PlanLog.load(plans)
    log.records[1].plan.actions.add_(1e-3)
    log.save(plans)
    assert main(again) == 2
    record = json.loads(capsys.readouterr().out)
    # the plan that was tampered with, and the next one, which started from it
    assert record["steps_that_differ"][0] == log.records[1].step
    assert record["largest_difference"] > 0


def test_files_that_are_no_logs(tmp_path: Path, tiny_checkpoint: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        PlanLog.load(tmp_path / "none.safetensors")
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(DataError, match="cannot be read"):
        PlanLog.load(tmp_path / "text.safetensors")
    weights = next(tiny_checkpoint.glob("*.safetensors"))
    with pytest.raises(DataError, match="is no plan log"):
        PlanLog.load(weights)
    with pytest.raises(DataError, match="'Popen' is no planner"):
        rebuild({"type": "Popen"})
    empty = PlanLog(
        checkpoint="x",
        planner=CEM(),
        objective=GoalDistance(),
        goal=load_checkpoint(tiny_checkpoint).encode(torch.zeros(1, 1, 32, 32, 3, dtype=torch.uint8)),
        interval=1,
        threads=1,
        records=(),
    )
    with pytest.raises(ConfigError, match=r"ends in \.safetensors"):
        empty.save(tmp_path / "plans.pt")
    assert PlanLog.load(empty.save(tmp_path / "plans.safetensors")).records == ()
