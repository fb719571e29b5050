"""The comparison of searches: paired differences, and what the table says."""

from pathlib import Path

import pytest
from rich.console import Console

from worldmodel.analysis.success_curves import budget_figure
from worldmodel.cli import main
from worldmodel.commands import bench_budget
from worldmodel.commands.bench_planners import Settings
from worldmodel.commands.run import Run
from worldmodel.errors import ConfigError
from worldmodel.evaluation.comparison import SearchRow, search_table


def row(name: str, held: list[bool]) -> SearchRow:
    return SearchRow(
        name=name,
        held=tuple(held),
        ever=tuple(held),
        replan_p50_s=0.05,
        replan_p95_s=0.08,
        num_calls=12,
        budget_s=None,
        settings={},
    )


def test_differences_are_paired_over_tasks() -> None:
    first = row("a", [True] * 50 + [False] * 50)
    same = row("b", [True] * 50 + [False] * 50)
    opposite = row("c", [False] * 50 + [True] * 50)
    assert first.difference(same) == (0.0, (0.0, 0.0))  # the same tasks: nothing is left to chance
    difference, (low, high) = first.difference(opposite)
    assert difference == 0
    assert low < -0.15
    assert high > 0.15
    better = row("d", [True] * 70 + [False] * 30)
    difference, (low, high) = better.difference(first)
    assert difference == pytest.approx(0.2)
    assert 0.1 < low < 0.2 < high < 0.3
    record = better.to_json(first)
    assert record["difference"]["to"] == "a"
    assert record["difference"]["p"] == pytest.approx(2 * 0.5**20)  # twenty tasks that only one of them solves
    assert "difference" not in first.to_json(first)


def test_the_table_names_the_reference_once() -> None:
    table = search_table("t", [row("a", [True, False]), row("b", [True, True])], row("a", [True, False]), "c")
    assert table.row_count == 2
    assert any("minus a" in str(column.header) for column in table.columns)


def test_the_reference_always_takes_part() -> None:
    settings = Settings(planners={"cem": ["planner=cem"], "mppi": ["planner=mppi"]}, names=("mppi",))
    assert list(settings.chosen()) == ["cem", "mppi"]
    with pytest.raises(ConfigError, match="'x' is none of the planners"):
        Settings(planners={"cem": []}, names=("x",)).chosen()


def test_a_budget_figure_has_a_tick_for_every_budget() -> None:
    figure = budget_figure([0.025, 0.1, 2.0], [0.1, 0.5, 0.8], [(0, 0.2), (0.4, 0.6), (0.7, 0.9)], "push")
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["25", "100", "2000"]


def test_a_budget_needs_a_search_to_spend_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="name the search"):
        bench_budget.run(bench_budget.Settings(), Run(folder=tmp_path, console=Console()))


def test_a_group_set_to_nothing_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "planner=null"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
