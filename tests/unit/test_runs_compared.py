"""`worldmodel compare` and the summary of a multirun, on result folders written by hand."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console, RenderableType

from worldmodel.analysis.success_curves import RunBar, comparison_figure
from worldmodel.cli import main
from worldmodel.commands.evaluate import summary
from worldmodel.errors import ConfigError, DataError
from worldmodel.evaluation.runs_compared import compare_runs, load_results
from worldmodel.evaluation.stats import clustered_interval, mcnemar_p, wilson_interval

Write = Callable[..., Path]


def outcomes(share: float, episodes: int = 60, seed: int = 0) -> list[bool]:
    return [bool(value) for value in np.random.default_rng(seed).random(episodes) < share]


def result(held: Sequence[bool], *, manifest: str = "a" * 64, moments: bool = True, **agent: Any) -> dict[str, Any]:
    """The record of an evaluation, as its run folder holds it."""
    rows = [
        {
            "episode": number,
            "held": success,
            "ever": success,
            "steps_to_success": 1 if success else None,
            "start_distance_m": 0.2,
            "final_distance_m": 0.1,
            "min_distance_m": 0.1,
            "steps": 2,
            "replans": 1,
            "success": ("011" if success else "000") if moments else None,
        }
        for number, success in enumerate(held)
    ]
    described = {"type": "ModelAgents", "checkpoint": "/runs/shipped", "checkpoint_hash": "c0", "planner": {}, **agent}
    return {
        "env": "worldmodel/Push-v0",
        "manifest_hash": manifest,
        "replan_s": {"p50": 0.1, "p95": 0.2},
        "baselines": {},
        "baseline_budgets": {},
        "agent": described,
        "hardware": {},
        "episodes_table": rows,
    }


@pytest.fixture(name="write")
def _write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write a run folder below the working directory and return its name."""
    monkeypatch.chdir(tmp_path)

    def write(name: str, held: Sequence[bool], **settings: Any) -> Path:
        folder = Path(name)
        folder.mkdir(parents=True)
        (folder / "evaluation.json").write_text("{}")
        (folder / "result.json").write_text(json.dumps(result(held, **settings)))
        return folder

    return write


def test_a_difference_that_shows_and_one_that_does_not(write: Write) -> None:
    base = outcomes(0.5)
    close = [not base[0], *base[1:]]
    write("base", base, planner={"type": "CEM", "num_samples": 100})
    write("close", close, planner={"type": "MPPI", "num_samples": 100})
    write("best", [True] * 60, planner={"type": "CEM", "num_samples": 900})
    compared = compare_runs(["base", "close", "best"])
    assert compared.reference.name == "base"
    record = json.loads(json.dumps(compared.to_json(), allow_nan=False))
    first, second, third = record["arms"]
    assert "difference" not in first
    assert first["success_interval"] == list(wilson_interval(sum(base), 60))
    assert second["difference"]["p"] == mcnemar_p(close, base) == 1.0
    assert second["verdict"].startswith("no difference shown (p = 1, n = 60; about ")
    assert third["verdict"] == "better"
    assert compare_runs(["base", "close", "best"], "best").to_json()["arms"][0]["verdict"] == "worse"
    assert compare_runs(["base", "close", "best"], "2").reference.name == "best"
    assert record["settings"] == {"planner.type": ["CEM", "MPPI", "CEM"], "planner.num_samples": [100, 100, 900]}
    assert record["notes"] == []
    assert first["success_curve"] == [0.0, first["success_rate"], first["success_rate"]]


def test_only_the_episodes_that_all_have_are_compared(write: Write) -> None:
    write("long", [True] * 30 + [False] * 30)
    write("short", [True] * 30, moments=False)
    compared = compare_runs(["long", "short"])
    assert compared.episodes == 30
    assert [arm.rate for arm in compared.arms] == [1.0, 1.0]
    assert compared.notes == ("compared on the first 30 episodes, which all runs have: long has 60, short has 30",)
    assert compared.arms[0].curve == (0.0, 1.0, 1.0)
    assert compared.arms[1].curve is None, "recorded before success was kept at every step"
    assert compared.settings_table() is None


def test_what_cannot_be_compared_is_refused(write: Write) -> None:
    write("a", [True, False])
    write("b", [True, False], manifest="b" * 64)
    with pytest.raises(ConfigError, match=r"a was evaluated on aaaaaaaaaaaa .*, b on bbbbbbbbbbbb"):
        compare_runs(["a", "b"])
    with pytest.raises(ConfigError, match="at least two run folders"):
        compare_runs(["a"])
    with pytest.raises(ConfigError, match="named twice"):
        compare_runs(["a", "./a"])
    write("c", [True, True])
    with pytest.raises(ConfigError, match=r"reference must be one of a, c or a number from 0 to 1, got '2'"):
        compare_runs(["a", "c"], "2")
    with pytest.raises(DataError, match="nowhere is no folder"):
        compare_runs(["a", "nowhere"])
    Path("c/result.json").unlink()
    with pytest.raises(DataError, match="the evaluation in c is not finished"):
        compare_runs(["a", "c"])


def test_a_multirun_over_checkpoints_is_one_arm(write: Write) -> None:
    shares = (0.9, 0.7, 0.8)
    seeds = [outcomes(share, seed=number) for number, share in enumerate(shares)]
    for number, held in enumerate(seeds):
        write(f"ours/{number}", held, checkpoint=f"/s{number}", checkpoint_hash=f"c{number}")
    write("theirs", outcomes(0.2, seed=9))
    compared = compare_runs(["theirs", "ours"])
    ours = compared.to_json()["arms"][1]
    assert ours["training_seeds"] == 3
    assert ours["seed_rates"] == [np.mean(held) for held in seeds]
    assert ours["success_rate"] == pytest.approx(np.mean(seeds))
    assert ours["success_interval"] == list(clustered_interval(np.array(seeds)))
    assert (ours["difference"]["test"], ours["difference"]["episodes_needed"]) == ("bootstrap", None)
    assert ours["verdict"] == "better"
    assert len(compared.notes) == 1
    assert "not from McNemar's test" in compared.notes[0]
    assert compared.settings["checkpoint_hash"] == ["c0", ["c0", "c1", "c2"]]


def test_a_multirun_over_anything_else_is_refused(write: Write) -> None:
    for number, samples in enumerate((10, 20)):
        write(f"sweep/{number}", [True], checkpoint_hash=f"c{number}", planner={"num_samples": samples})
        write(f"same/{number}", [True])
    with pytest.raises(ConfigError, match=r"differ in planner.num_samples: compare them by name, sweep/0 sweep/1"):
        load_results(Path("sweep"))
    with pytest.raises(ConfigError, match="a checkpoint occurs twice"):
        load_results(Path("same"))
    write("half/0", [True])
    Path("half/1").mkdir()
    with pytest.raises(DataError, match="half/1 holds no"):
        load_results(Path("half"))


def test_the_command_keeps_a_record_and_a_picture(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    write("a run", outcomes(0.5))
    write("b=0.1/run", outcomes(0.55, seed=3))
    assert main(["compare", "a run", "./b=0.1/run", "run_dir=out", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert [arm["name"] for arm in record["arms"]] == ["a run", "run"]
    assert json.loads(Path("out/compare.json").read_text()) == record
    assert Path("out/compare.png").stat().st_size > 5000
    assert main(["compare", "a run", "./b=0.1/run", "reference=1", "run_dir=out"]) == 0
    shown = capsys.readouterr().out
    assert "minus run" in shown
    assert "a run: no difference shown (p = " in shown.replace("\n", " ")
    assert main(["compare", "a run", "run_dir=out"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_figure_has_curves_where_they_are_known() -> None:
    bars = [
        RunBar(name="old", rate=0.5, low=0.4, high=0.6, curve=None),
        RunBar(name="new", rate=0.7, low=0.6, high=0.8, curve=[0.0, 0.5, 0.7]),
    ]
    rates, curves = comparison_figure(bars, "push").axes
    assert [label.get_text() for label in rates.get_yticklabels()] == ["old", "new"]
    assert len(curves.get_lines()) == 1
    assert curves.get_lines()[0].get_ydata()[-1] == pytest.approx(70)
    assert len(comparison_figure(bars[:1], "push").axes) == 1


def text_of(report: Sequence[RenderableType]) -> str:
    stream = io.StringIO()
    for part in report:
        Console(file=stream, width=160).print(part)
    return stream.getvalue()


def test_the_summary_of_training_seeds_says_how_much_they_differ() -> None:
    seeds = [outcomes(share, seed=number) for number, share in enumerate((0.9, 0.5, 0.7))]
    found = summary(
        [result(held, checkpoint=f"/s{n}/checkpoint", checkpoint_hash=f"c{n}") for n, held in enumerate(seeds)]
    )
    rates = [float(np.mean(held)) for held in seeds]
    spread = found.record["training_seeds"]
    assert spread["checkpoints"] == 3
    assert spread["success_rate"] == pytest.approx(np.mean(rates))
    assert spread["success_interval"] == list(clustered_interval(np.array(seeds)))
    assert spread["std"] == pytest.approx(np.std(rates, ddof=1))
    assert (spread["min"], spread["max"]) == (min(rates), max(rates))
    assert [job["success_interval"] for job in found.record["jobs"]] == [
        list(wilson_interval(sum(held), 60)) for held in seeds
    ]
    text = text_of(found.report)
    assert "s1/checkpoint" in text
    assert "between-seed std" in text
    assert f"{100 * np.mean(rates):.1f} %" in text


def test_other_jobs_are_listed_with_what_they_differ_in() -> None:
    records = [
        result([True, False], checkpoint_hash="c1", planner={"num_samples": 10}),
        result([True, True], checkpoint_hash="c2", planner={"num_samples": 20}),
    ]
    found = summary(records)
    assert found.record["training_seeds"] is None
    assert found.record["jobs"][1]["settings"] == {"checkpoint_hash": "c2", "planner.num_samples": 20}
    text = text_of(found.report)
    assert "planner.num_samples" in text
    assert "between-seed" not in text
    again = summary([records[0], records[0]])
    assert again.record["training_seeds"] is None, "the same checkpoint twice is no second training seed"
