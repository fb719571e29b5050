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
from worldmodel.evaluation.comparison import (
    SearchRow,
    differing_settings,
    p_text,
    search_table,
    short_names,
    verdict,
)


def row(name: str, held: list[bool]) -> SearchRow:
    return SearchRow(
        name=name,
        held=(tuple(held),),
        ever=(tuple(held),),
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
    nothing = first.difference(same)
    assert (nothing.rate, nothing.p, nothing.episodes_needed) == (0.0, 1.0, None)
    assert nothing.interval == pytest.approx((-0.037, 0.037), abs=1e-3), "a hundred equal tasks leave room for some"
    none = first.difference(opposite)
    assert none.rate == 0
    assert none.interval[0] < -0.15
    assert none.interval[1] > 0.15
    better = row("d", [True] * 70 + [False] * 30)
    gap = better.difference(first)
    assert gap.rate == pytest.approx(0.2)
    assert 0.1 < gap.interval[0] < 0.2 < gap.interval[1] < 0.3
    record = better.to_json(first)
    assert record["difference"]["to"] == "a"
    assert record["difference"]["p"] == pytest.approx(2 * 0.5**20)  # twenty tasks that only one of them solves
    assert record["difference"]["test"] == "mcnemar"
    assert record["held"] == [True] * 70 + [False] * 30
    assert "difference" not in first.to_json(first)


def test_a_verdict_says_no_more_than_the_test_shows() -> None:
    first = row("a", [True] * 50 + [False] * 50)
    assert verdict(row("b", [True] * 70 + [False] * 30).difference(first)) == "better"
    assert verdict(row("c", [True] * 30 + [False] * 70).difference(first)) == "worse"
    close = row("d", [True] * 53 + [False] * 47).difference(first)
    assert verdict(close) == (
        f"no difference shown (p = .25, n = 100; about {close.episodes_needed} episodes would be needed to see a gap "
        "of this size)"
    )
    assert verdict(first.difference(row("e", [True] * 50 + [False] * 50))) == "no difference shown (p = 1, n = 100)"


@pytest.mark.parametrize(
    ("p", "text"), [(1.0, "1"), (0.999, "1"), (0.41, ".41"), (0.052, ".052"), (0.0021, ".0021"), (1e-9, "< .0001")]
)
def test_p_values_are_short(p: float, text: str) -> None:
    assert p_text(p) == text


def test_names_are_as_short_as_they_can_be() -> None:
    assert short_names(["outputs/a", "outputs/b/"]) == ["a", "b"]
    assert short_names(["x/seed0/run", "x/seed1/run", "/y"]) == ["seed0/run", "seed1/run", "y"]
    assert short_names(["a/run", "run"]) == ["a/run", "run"]
    assert short_names(["sweep/0", "sweep/1", "3"]) == ["sweep/0", "sweep/1", "3"]


def test_settings_that_differ_are_named_and_their_consequences_are_not() -> None:
    cem = {"checkpoint": "/here", "checkpoint_hash": "1", "planner": {"type": "CEM", "num_elites": 4}, "delay": 0}
    mppi = {"checkpoint": "/there", "checkpoint_hash": "1", "planner": {"type": "MPPI", "temperature": 1}, "delay": 0}
    assert differing_settings([cem, mppi]) == {"planner.type": ["CEM", "MPPI"]}
    assert differing_settings([cem, cem]) == {}


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
