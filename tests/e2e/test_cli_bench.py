"""`worldmodel bench ...` at sizes that say nothing about speed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from worldmodel.cli import main

PLANNERS = (
    "planners={cem: ['planner=cem', 'planner.num_samples=6', 'planner.num_elites=2', 'planner.num_iterations=1'], "
    "mppi: ['planner=mppi', 'planner.num_samples=6', 'planner.num_elites=2', 'planner.num_iterations=1']}"
)


@pytest.fixture(name="folder")
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tasks(checkpoint: Path, manifest: Path) -> list[str]:
    return ["env=reach", f"checkpoint={checkpoint}", f"manifest={manifest}", "episodes=2", "run_dir=run"]


def test_bench_plan_prints_one_object_and_keeps_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["bench", "plan", "num_samples=8", "num_iterations=1", "horizon=2", "rounds=2", "run_dir=run", "--json"]
    assert main(argv) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["model"] == "shipped"
    assert record["replan_s"]["p50"] > 0
    assert record["hardware"]["cores"] >= 1
    assert {"ratio_recompute", "ratio_swm", "ratio_pytorch_mppi", "gemm_share", "overhead_share"} <= record.keys()
    assert json.loads((folder / "run" / "bench_plan.json").read_text()) == record
    assert (record["dtype"], record["compiled"], record["device"]) == ("float32", False, "cpu")
    assert main([*argv[:-2], "run_dir=half", "runtime.precision=bfloat16", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["dtype"] == "bfloat16"
    assert main(["bench", "plan", "model=giant"]) == 2
    assert "shipped, patch, wide" in capsys.readouterr().err


def test_searches_are_compared_on_the_same_tasks_and_continue(
    folder: Path, tiny_checkpoint: Path, small_manifest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["bench", "planners", *tasks(tiny_checkpoint, small_manifest), PLANNERS]
    assert main([*argv, "names=[cem,mppi]", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in record["rows"]] == ["cem", "mppi"]
    assert [row["num_calls"] for row in record["rows"]] == [6, 6]
    assert record["rows"][1]["difference"]["to"] == "cem"
    assert all(len(row["held"]) == 2 for row in record["rows"])
    before = (folder / "run" / "cem" / "episodes.jsonl").read_bytes()
    assert main([*argv, "names=[mppi]"]) == 0
    shown = capsys.readouterr().out
    assert "minus" in shown
    assert (folder / "run" / "cem" / "episodes.jsonl").read_bytes() == before
    assert main([*argv, "names=[nobody]"]) == 2
    assert "'nobody' is none of the planners" in capsys.readouterr().err
    assert main([*argv[:-1], "planners={cem: ['planner.horizont=2']}", "run_dir=other"]) == 2
    assert "planner.horizont" in capsys.readouterr().err


def test_success_against_budget_is_drawn(
    folder: Path, tiny_checkpoint: Path, small_manifest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    search = ["planner=cem", "planner.num_samples=6", "planner.num_elites=2"]
    argv = ["bench", "budget", *tasks(tiny_checkpoint, small_manifest), "budgets_s=[0.02, 0.01]", *search]
    assert main([*argv, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert [row["budget_s"] for row in record["rows"]] == [0.01, 0.02]
    assert [row["name"] for row in record["rows"]] == ["10 ms", "20 ms"]
    assert (folder / "run" / "bench_budget.png").stat().st_size > 5000
    assert main(["bench", "budget", "budgets_s=[0.1,-1]"]) == 2
    assert "budgets_s must be seconds > 0" in capsys.readouterr().err
