from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from worldmodel.analysis.success_curves import LabelCurve, label_figure, low_label_figure
from worldmodel.commands.low_label_grid import Arm, LowLabelConfig
from worldmodel.errors import ConfigError, DataError
from worldmodel.evaluation.low_label import Cell, Results, Row, read_rows


def row(
    arm: str, rate: float, *, seed: int = 0, labels: int | None = 50, look: str = "trained", tasks: str = "t"
) -> Row:
    held = [bool(value) for value in np.random.default_rng([seed, len(arm)]).random(100) < rate]
    return Row(
        cell=Cell(arm=arm, seed=seed, labels=labels),
        variant=None,
        commands={"train": [f"seed={seed}"]},
        train_minutes=1.0,
        held={look: held},
        ever={look: held},
        manifests={look: tasks},
    )


def test_rows_survive_the_disk(tmp_path: Path) -> None:
    rows = [row("ours", 0.8), row("theirs", 0.2, labels=None)]
    for entry in rows:
        entry.save(tmp_path / "cells")
    assert read_rows(tmp_path / "cells") == rows
    assert read_rows(tmp_path / "nothing") == []
    assert {path.name for path in (tmp_path / "cells").iterdir()} == {"ours-50-s0.json", "theirs-all-s0.json"}


@pytest.mark.parametrize("text", ["{", "{}", '{"cell": {"arm": "a"}}', "[]"])
def test_a_damaged_cell_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "a-50-s0.json").write_text(text)
    with pytest.raises(DataError, match=r"a-50-s0\.json is not a finished cell"):
        read_rows(tmp_path)


def test_contrasts_say_what_is_shown() -> None:
    rates = {"ours": 0.8, "weak": 0.3, "other": 0.8, "best": 1.0}
    rows = [row(arm, rate, seed=seed) for arm, rate in rates.items() for seed in (0, 1)] + [row("single", 0.1)]
    results = Results(rows=rows, floors={"random": [False] * 100}, candidate="ours")
    shown = {entry["against"]: entry for entry in results.contrasts()}
    assert shown["weak"]["shown"] == "better"
    assert shown["other"]["shown"] == "no difference shown"
    assert shown["best"]["shown"] == "worse"
    assert shown["single"]["shown"] == "nothing: one seed"
    assert (shown["weak"]["seeds"], shown["single"]["seeds"]) == ([0, 1], [0])
    assert shown["weak"]["interval"][0] < shown["weak"]["difference"] < shown["weak"]["interval"][1]
    assert results.arms[0] == "ours"
    record = json.loads(json.dumps(results.to_json()))
    assert record["floors"]["random"]["held"] == 0
    assert {entry["arm"] for entry in record["rates"]} == {"ours", "weak", "other", "best", "single"}


def test_contrasts_name_their_arms_in_80_columns() -> None:
    name = "an_arm_with_quite_a_long_name"
    results = Results(rows=[row("ours", 0.8), row(name, 0.3)], floors={}, candidate="ours")
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(results.tables()[-1])
    text = console.export_text()
    assert "ours minus the other arm, trained, 50 labels" in text
    assert name in text
    assert "nothing: one seed" in text


def test_seeds_are_compared_in_pairs() -> None:
    """Both arms are far better on one seed: how much seeds differ says nothing about the arms."""
    rows = [row("ours", 0.9), row("ours", 0.5, seed=1), row("ours", 0.1, seed=2), row("weak", 0.8)]
    results = Results(rows=[*rows, row("weak", 0.4, seed=1)], floors={}, candidate="ours")
    (entry,) = results.contrasts()
    assert entry["seeds"] == [0, 1]  # the seed that one of them lacks would spoil the comparison
    assert entry["difference"] == pytest.approx(0.1, abs=0.1)
    low, high = entry["interval"]
    assert high - low < 0.4


def test_holes_are_left_open() -> None:
    rows = [row("ours", 0.8), row("weak", 0.3, labels=None), row("weak", 0.3, look="new_colours", labels=200)]
    results = Results(rows=rows, floors={}, candidate="ours")
    assert results.labels == [50, 200, None]
    assert results.contrasts() == []
    assert results.rate("ours", None, "trained") is None
    first, second = results.tables()
    assert (first.row_count, second.row_count) == (2, 2)
    assert [axes.get_title() for axes in low_label_figure(results).axes] == ["trained", "new colours"]


def test_cells_of_different_tasks_are_not_mixed() -> None:
    with pytest.raises(DataError, match="different tasks"):
        Results(rows=[row("ours", 0.8), row("weak", 0.3, tasks="u")], floors={}, candidate="ours")


def test_the_figure_holds_every_point() -> None:
    curve = LabelCurve(name="a", places=[0, 2], rate=[0.1, 0.9], low=[0.0, 0.8], high=[0.2, 1.0])
    figure = label_figure({"trained": [curve]}, {"oracle": 1.0, "random": 0.0, "noop": 0.0}, ["50", "200", "all"])
    (axes,) = figure.axes
    line = axes.containers[0][0]
    assert list(line.get_ydata()) == pytest.approx([10.0, 90.0])
    assert [text.get_text() for text in axes.texts] == ["oracle", "random, noop"]


ARMS = {"ema_repaired": {"pretrain": ["target=ema_repaired"], "seeds": 2}, "random_vit": {"train": ["encoder=vit"]}}


def test_arms_are_parsed() -> None:
    arms = LowLabelConfig(arms=ARMS).parsed()
    assert arms["ema_repaired"] == Arm(pretrain=["target=ema_repaired"], seeds=2)
    assert arms["random_vit"].pretrain is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"candidate": "emma"}, "candidate='emma' is none of the arms"),
        ({"labels": ()}, "labels is empty"),
        ({"looks": ("bright",)}, "looks must be among"),
        ({"only": ("emma",)}, "only must be among"),
        ({"episodes": 0}, "episodes must be >= 1"),
        ({"arms": {**ARMS, "x": {"sedes": 2}}}, "arm x must be a mapping with some of the keys"),
        ({"arms": {**ARMS, "x": {"seeds": 0}}}, "arm x: seeds must be >= 1"),
        ({"arms": {**ARMS, "x": {"like": "random_vit"}}}, "arm x: like=random_vit is no pretrained arm"),
        ({"arms": {**ARMS, "x": {"like": "ema_repaired", "seeds": 3}}}, "at least 3 seeds"),
        ({"arms": {**ARMS, "x": {"clone": True, "student": []}}}, "arm x: a clone has no world model"),
    ],
)
def test_a_grid_that_makes_no_sense_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LowLabelConfig(**{"arms": ARMS, **change})  # type: ignore[arg-type]
