"""The report as text: its numbers are those of the record, nothing in it is believed, nothing is fetched."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from worldmodel.analysis.charts import Bar, Curve, curve_plot, rate_bars
from worldmodel.analysis.filmed import FilmedEpisode, chosen_rows
from worldmodel.analysis.report import Report, build_report, filmed
from worldmodel.errors import ConfigError, DataError
from worldmodel.evaluation.stats import mcnemar_p, wilson_interval

ATTACK = "\"'></td></script><script>window.hacked = true</script><img src=x onerror=alert(1)>"
Write = Callable[..., Path]


def episode(number: int, success: str, start_m: float = 0.2) -> dict[str, Any]:
    first = success.find("1")
    return {
        "episode": number,
        "held": success.endswith("1"),
        "ever": "1" in success,
        "steps_to_success": None if first < 0 else first,
        "start_distance_m": start_m,
        "final_distance_m": 0.1 + number / 700,
        "min_distance_m": 0.09,
        "steps": len(success) - 1,
        "replans": 1,
        "success": success,
    }


ROWS = [episode(0, "001", 0.1), episode(1, "010", 0.3), episode(2, "000", 0.2), episode(3, "011", 0.25)]


@pytest.fixture(name="write")
def _write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write a run folder below an empty working directory."""
    monkeypatch.chdir(tmp_path)

    def write(name: str, rows: list[dict[str, Any]] = ROWS, *, config: str = "seed: 0\n", **change: Any) -> Path:
        folder = Path(name)
        folder.mkdir(parents=True)
        agent = {"type": "ModelAgents", "checkpoint": "/gone", "checkpoint_hash": "c0", "planner": {"type": "CEM"}}
        record = {
            "env": "worldmodel/Push-v0",
            "manifest_hash": "a" * 64,
            "replan_s": {"p50": 0.125, "p95": 0.25},
            "model_calls_per_episode": 400,
            "baselines": {},
            "baseline_budgets": {},
            "hardware": {"cores": 2},
            "episodes_table": rows,
            **change,
            "agent": agent | change.get("agent", {}),
        }
        (folder / "result.json").write_text(json.dumps(record))
        (folder / "config.yaml").write_text(config)
        facts = {"command": "evaluate", "overrides": ["env=push"], "versions": {"torch": "9.9"}}
        (folder / "run.json").write_text(json.dumps(facts))
        return folder

    return write


def explain(run: Path | str, failures: tuple[int, ...], folder: str, **change: Any) -> Path:
    """Write the record of an explanation."""
    costs = dict.fromkeys(("cost_at_goal", "cost_at_start", "cost_reached", "cost_min", "final_distance_m"), 0.5)
    evidence = {"open_loop": [0.5, 0.75], "rank_correlation": None, **costs}
    verdicts = [{"episode": n, "verdict": "cost error", "again": False, "evidence": evidence} for n in failures]
    record = {
        "run": str(run),
        "episodes": len(ROWS),
        "failures": sum(not row["held"] for row in ROWS),
        "sample_seed": None,
        "searches": {},
        "failures_table": verdicts,
        **change,
    }
    Path(folder).mkdir(parents=True)
    (Path(folder) / "explain.json").write_text(json.dumps(record))
    return Path(folder)


class Page(HTMLParser):
    """What a browser would make of the page: tags with their attributes, texts, and tables as rows of cells."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self._is_in_cell = False
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.tables: list[list[list[tuple[str, str | None]]]] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = {key: value or "" for key, value in attrs}
        self.tags.append((tag, named))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append(("", named.get("data-v")))
            self._is_in_cell = True

    def handle_endtag(self, tag: str) -> None:
        self._is_in_cell = self._is_in_cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if self._is_in_cell:
            text, value = self.tables[-1][-1].pop()
            self.tables[-1][-1].append((text + data.strip(), value))

    def table(self, heading: str) -> list[dict[str, tuple[str, str | None]]]:
        """Rows of the first table that has a heading, by heading."""
        for head, *rows in self.tables:
            names = [text for text, _ in head]
            if heading in names:
                return [dict(zip(names, row, strict=True)) for row in rows]
        raise AssertionError(f"no table has a column {heading!r}")


def page_of(*folders: Path, **options: Any) -> Page:
    return Page(build_report([str(folder) for folder in folders], **options).html())


def test_numbers_in_the_page_are_those_of_the_record(write: Write) -> None:
    page = page_of(write("only"))
    (run,) = page.table("held at end")
    low, high = wilson_interval(2, 4)
    assert run["held at end"] == ("50.0 %", "0.5")
    assert run["at any moment"] == ("75.0 %", "0.75")
    assert run["95 % interval"][0] == f"{100 * wilson_interval(3, 4)[0]:.1f} to {100 * wilson_interval(3, 4)[1]:.1f} %"
    assert f"50.0 % ({100 * low:.1f} to {100 * high:.1f})" in page.texts
    rows = page.table("outcome")
    assert [row["outcome"][0] for row in rows] == ["held", "reached, not held", "not reached", "held"]
    for row, told in zip(ROWS, rows, strict=True):
        assert told["episode"] == (str(row["episode"]), str(row["episode"]))
        assert float(told["end, cm"][1] or "nan") == row["final_distance_m"]
        assert told["end, cm"][0] == f"{100 * row['final_distance_m']:.1f}"
        first = row["steps_to_success"]
        assert told["first success, step"] == (("-", None) if first is None else (str(first), str(first)))
    assert [row["tasks"][0] for row in page.table("outcome")] == ["near", "far", "near", "middle"]
    strata = page.table("start to goal, cm")
    assert [(row["tasks"][0], row["episodes"][0], row["held at end"][1]) for row in strata] == [
        ("near", "2", "0.5"),
        ("middle", "1", "1.0"),
        ("far", "1", "0.0"),
    ]
    assert page.table("median plan, ms")[0]["median plan, ms"][0] == "125"
    settings = {row["setting"][0]: row["only"][0] for row in page.table("setting")}
    assert settings["command"] == "worldmodel evaluate env=push"
    assert settings["manifest hash"] == "a" * 64
    assert settings["agent.checkpoint_hash"] == "c0"
    assert settings["version.torch"] == "9.9"
    assert "seed: 0\n" in page.texts


def test_baselines_stand_beside_the_run(write: Write) -> None:
    interval = {"rate": 0.5, "interval": [0.25, 0.75], "p": 0.125, "test": "mcnemar", "episodes": 4}
    floor = {"success_rate": 0.25, "success_ever": 0.5, "difference": {**interval, "episodes_needed": 12}}
    page = page_of(write("run", baselines={"random": floor, "oracle": None}))
    ours, random = page.table("run minus it, points")
    assert (ours["agent"][0], ours["held at end"][0]) == ("run", "50.0 %")
    assert (random["agent"][0], random["held at end"][0]) == ("random", "25.0 %")
    assert random["run minus it, points"] == ("+50.0 (+25.0 to +75.0)", "0.5")
    assert random["p"][1] == "0.125"
    assert not [text for text in page.texts if text == "oracle"], "what was not computed has no row"


def test_several_runs_are_compared_on_what_they_share(write: Write) -> None:
    other = [episode(0, "000"), episode(1, "011"), episode(2, "000"), episode(3, "011")]
    page = page_of(write("a"), write("b", other), reference="b")
    ours, theirs = page.table("only this / only that")
    assert ours["only this / only that"][0] == "1 / 1"
    assert ours["minus b, points"][1] == "0.0"
    assert float(ours["p"][1] or "nan") == mcnemar_p([True, False, False, True], [False, True, False, True])
    assert theirs["minus b, points"] == ("-", None)
    rows = [attributes for tag, attributes in page.tags if tag == "tr" and "data-runs" in attributes]
    assert len(rows) == 8
    assert [row["data-runs"] for row in rows[:4]] == ["runs disagree", "runs disagree", "runs agree", "runs agree"]
    short = write("short", ROWS[:3])
    assert "compared on the first 3 episodes" in " ".join(page_of(Path("a"), short).texts)
    with pytest.raises(ConfigError, match="different manifests"):
        build_report(["a", str(write("elsewhere", manifest_hash="b" * 64))])


def test_training_seeds_are_one_run(write: Write) -> None:
    for seed in range(2):
        write(f"seeds/{seed}", ROWS, agent={"checkpoint_hash": f"c{seed}"})
    page = page_of(Path("seeds"))
    (run,) = page.table("held at end")
    assert run["episodes"][0] == "4 x 2 training seeds"
    assert {row["run"][0] for row in page.table("outcome")} == {"seeds/0", "seeds/1"}
    assert any("training seeds" in text for text in page.texts)


def test_nothing_that_was_written_by_somebody_is_believed(write: Write) -> None:
    """Names, goals and settings with tags in them arrive as text; the one script is the report's own."""
    name = ATTACK.replace("/", "")
    run = write(
        name, env=ATTACK, agent={"goal": ATTACK, ATTACK: 1}, config=f"goal: {ATTACK}\n", hardware={"cpu": ATTACK}
    )
    explained = explain(run, (1,), f"why{name}")
    report = build_report([str(run), str(write("other", env=ATTACK))], explain=[str(explained)])
    row = report.sources.runs[0].result.rows[0]
    runs = (replace(report.sources.runs[0], films=(FilmedEpisode(recorded=row, again=row, mp4=b"x"),)),)
    report = replace(report, sources=replace(report.sources, runs=runs), notes=(ATTACK,))
    html = report.html()
    page = Page(html)
    assert html.count("<script") == html.count("</script") == 1
    assert "<img" not in html
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    settings = {row["setting"][0]: row[name][0] for row in page.table("setting")}
    assert settings["agent.goal"] == ATTACK
    assert settings["environment"] == ATTACK
    assert settings[f"agent.{ATTACK}"] == "1"
    assert ATTACK in page.texts, "a note"
    assert f"goal: {ATTACK}\n" in page.texts
    assert any(name in text for text in page.texts)


def test_the_policy_allows_the_own_script_and_nothing_from_outside(write: Write) -> None:
    html = build_report([str(write("run"))]).html()
    (policy,) = [a["content"] for tag, a in Page(html).tags if tag == "meta" and "http-equiv" in a]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'"
    for kind, tag in (("script-src", "script"), ("style-src", "style")):
        (text,) = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert rules[kind] == f"'sha256-{digest}'"
    assert rules["img-src"] == rules["media-src"] == "data:"


def test_no_reference_leaves_the_file(write: Write) -> None:
    html = build_report([str(write("run"))]).html()
    links = [a[key] for _, a in Page(html).tags for key in ("src", "href", "data", "action") if key in a]
    assert links
    assert all(link.startswith(("data:", "#")) for link in links), links
    assert "http:" not in html
    assert "https:" not in html
    assert "url(" not in html
    assert "@import" not in html


def test_the_same_runs_give_the_same_page(write: Write) -> None:
    run = write("run")
    report = build_report([str(run)])
    path = report.save(Path("here/page.html"))
    assert path.read_text() == build_report([str(run)]).html()
    assert [file.name for file in path.parent.iterdir()] == ["page.html"]
    with pytest.raises(ConfigError, match=r"must end in \.html"):
        report.save(Path("page.txt"))


def test_films_are_in_the_file_and_linked_from_their_episodes(write: Write) -> None:
    report = build_report([str(write("run"))])
    (run,) = report.sources.runs
    first, second = run.result.rows[:2]
    films = (
        FilmedEpisode(recorded=first, again=first, mp4=b"one"),
        FilmedEpisode(recorded=second, again=replace(second, held=True), mp4=b"two"),
    )
    report = Report(sources=replace(report.sources, runs=(replace(run, films=films),)))
    page = Page(report.html())
    data = [a["src"].removeprefix("data:video/mp4;base64,") for tag, a in page.tags if tag == "video"]
    assert [base64.b64decode(text) for text in data] == [b"one", b"two"]
    places = {a["id"] for tag, a in page.tags if tag == "figure" and "id" in a}
    assert {a["href"].removeprefix("#") for tag, a in page.tags if a.get("href", "").startswith("#film-")} == places
    assert [row["film"][0] for row in page.table("film")] == ["video", "video", "", ""]
    warnings = [text for text in page.texts if "ended otherwise" in text]
    assert len(warnings) == 1
    assert "run again, it ended otherwise: held" in warnings[0]
    assert report.to_json()["videos"] == [{"run": "run", "episode": 0}, {"run": "run", "episode": 1}]


def test_the_first_failures_and_successes_are_filmed(write: Write) -> None:
    (run,) = build_report([str(write("run"))]).sources.runs
    assert [row.episode for row in chosen_rows(run.result.rows, 1)] == [1, 0]
    assert [row.episode for row in chosen_rows(run.result.rows, 9)] == [1, 2, 0, 3]
    assert chosen_rows(run.result.rows, 0) == []
    assert [row.episode for row in chosen_rows(run.result.rows, 1, (3, 1))] == [1, 0, 3], "and those that are named"
    with pytest.raises(ConfigError, match=r"among the 4 of the run, got \[4\]"):
        chosen_rows(run.result.rows, 0, (4,))
    with pytest.raises(ConfigError, match="videos must be >= 0, got -1"):
        chosen_rows(run.result.rows, -1)


def test_a_run_that_cannot_be_repeated_stays_without_films_and_says_why(write: Write) -> None:
    report = filmed(build_report([str(write("run"))]), 1)
    (note,) = [note for note in report.notes if note.startswith("no videos of run: ")]
    assert "is not the one of run" in note
    assert "give manifest=FILE" in note
    assert not report.sources.runs[0].films


def test_an_explanation_is_found_where_it_lies_or_taken_where_it_is_said_to_lie(write: Write) -> None:
    run = write("run")
    assert build_report([str(run)]).sources.runs[0].explained is None
    explain("another", (1,), "outputs/explain/1")
    explain(run, (1, 2), "outputs/explain/2")
    explain(run, (0,), "outputs/explain/3")  # episode 0 is no failure: of an earlier run in this folder
    page = page_of(run)
    counts = {row["verdict"][0]: row["failures"][0] for row in page.table("because")}
    assert counts == {"optimiser gap": "0", "model error": "0", "cost error": "2", "unreachable within budget": "0"}
    assert [row["verdict"][0] for row in page.table("outcome")] == ["", "cost error", "cost error", ""]
    named = explain("moved", (2,), "why")
    page = page_of(run, explain=[str(named)])
    assert [row["verdict"][0] for row in page.table("outcome")] == ["", "", "cost error", ""]
    assert page.table("rank correlation with true cost")[0]["error / standing still, 1 step"] == ("0.50", "0.5")


def test_explanations_of_something_else_are_refused(write: Write) -> None:
    runs = [str(write("a")), str(write("b", ROWS[::-1]))]
    with pytest.raises(ConfigError, match="is about moved, which is none of a, b"):
        build_report(runs, explain=[str(explain("moved", (1,), "1"))])
    with pytest.raises(ConfigError, match="does not fit the failures of a"):
        build_report(runs, explain=[str(explain("a", (1,), "2", episodes=7))])
    with pytest.raises(DataError, match=r"holds no explain\.json"):
        build_report(runs, explain=["a"])
    with pytest.raises(DataError, match="no record of an explanation"):
        build_report(runs, explain=[str(explain("a", (1,), "3", failures_table=[{"verdict": "bad luck"}]))])
    with pytest.raises(ConfigError, match="at least one run folder"):
        build_report([])


def test_a_record_without_moments_shows_when_success_was_first_seen(write: Write) -> None:
    rows = [{**row, "success": None} for row in ROWS]
    page = page_of(write("old", rows))
    assert "success seen by this step, %" in page.texts
    assert "success at this step, %" in page_of(write("new")).texts
    (line,) = [a["points"] for tag, a in page.tags if tag == "polyline"]
    heights = [float(corner.split(",")[1]) for corner in line.split()]
    bottom, top = 230.0, 10.0  # of the axis; no episode has seen success at the start, half after a step, then three
    assert [round((bottom - y) / (bottom - top), 3) for y in heights] == [0, 0.5, 0.75]


def test_bars_are_as_long_as_their_shares() -> None:
    bars = [Bar(name="x", rate=rate, low=0, high=1) for rate in (0.25, 0.5, 1.0)]
    page = Page(rate_bars(bars, "share"))
    widths = [float(a["width"]) for tag, a in page.tags if tag == "rect"]
    assert widths == pytest.approx([widths[2] / 4, widths[2] / 2, widths[2]], abs=0.1)
    assert {"25.0 % (0.0 to 100.0)", "100.0 % (0.0 to 100.0)", "share"} <= set(page.texts)


def test_names_at_the_ends_of_curves_do_not_overlap() -> None:
    curves = [Curve(name=f"{i}" * 60, rate=(0.0, rate), band=None, series=i) for i, rate in enumerate((0.9, 0.91, 1.0))]
    page = Page(curve_plot(curves, "y"))
    places = sorted(float(a["y"]) for tag, a in page.tags if tag == "text" and a.get("class") == "name")
    assert all(below - above >= 16.9 for above, below in pairwise(places))
    assert all(20 < len(text) < 40 for text in page.texts if "..." in text)
    assert "0" * 60 in page.texts, "the whole name is the tooltip"
