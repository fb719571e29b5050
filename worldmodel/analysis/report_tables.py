"""The tables of a report: every number of the record as text, with its exact value beside it for sorting.

The page's template only lays these out; nothing is computed or formatted there.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from worldmodel.analysis.charts import percent, points
from worldmodel.analysis.report_sources import Source, Sources
from worldmodel.evaluation.attribution import VERDICTS, Explanation
from worldmodel.evaluation.comparison import p_text, verdict
from worldmodel.evaluation.episodes import EpisodeResult
from worldmodel.evaluation.manifest_checks import strata_of
from worldmodel.evaluation.result import Score
from worldmodel.evaluation.runlog import flatten
from worldmodel.evaluation.runs_compared import RunArm
from worldmodel.evaluation.stats import Difference, Interval, wilson_interval

_OWN = frozenset({"folder", "command"})
"""What every run has of its own, whatever it is a run of."""
HELD, REACHED, MISSED = "held", "reached, not held", "not reached"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One entry of a table.

    Attributes:
        text: As it is read.
        value: As it is sorted; None is unknown and comes last.
        link: Name of a place on the page that it leads to, "" for none.
    """

    text: str
    value: float | str | None
    link: str = ""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a table.

    Attributes:
        cells: Its entries.
        tags: What it can be filtered by.
        is_strong: Whether it stands out.
    """

    cells: tuple[Cell, ...]
    tags: Mapping[str, str] = field(default_factory=dict)
    is_strong: bool = False


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A table.

    Attributes:
        headings: Of its columns, with units.
        rows: Its lines.
        numeric: Whether a column holds numbers, one entry per column.
        is_sortable: Whether a click on a heading sorts it.
    """

    headings: tuple[str, ...]
    rows: tuple[Row, ...]
    is_sortable: bool = False

    @property
    def numeric(self) -> tuple[bool, ...]:
        """Columns whose known values are numbers."""
        columns = zip(*(row.cells for row in self.rows), strict=True) if self.rows else [() for _ in self.headings]
        known = [[cell.value for cell in column if cell.value is not None] for column in columns]
        return tuple(bool(values) and not any(isinstance(value, str) for value in values) for values in known)


def word(text: object) -> Cell:
    """An entry that is sorted as it is read."""
    return Cell(text=str(text), value=str(text))


def number(value: float | None, text: str, unknown: str = "-") -> Cell:
    """An entry that is sorted by a number: `text` is a format, such as "{:.1f}"."""
    return Cell(text=unknown if value is None else text.format(value), value=value)


def share(value: float) -> Cell:
    """A share, in per cent."""
    return Cell(text=f"{percent(value)} %", value=value)


def span(interval: Interval) -> Cell:
    """An interval of shares, in per cent; sorted by its lower end."""
    return Cell(text=f"{percent(interval[0])} to {percent(interval[1])} %", value=interval[0])


def gap(difference: Difference | None) -> Cell:
    """A paired difference in percentage points, with its interval."""
    if difference is None:
        return Cell(text="-", value=None)
    low, high = difference.interval
    return Cell(text=f"{points(difference.rate)} ({points(low)} to {points(high)})", value=difference.rate)


def outcome_of(row: EpisodeResult) -> str:
    """How an episode ended, in words."""
    return HELD if row.held else REACHED if row.ever else MISSED


def runs_grid(sources: Sources) -> Grid:
    """Success of every arm, beside the reference where there are several."""
    reference = sources.reference
    several = sources.comparison is not None
    minus = (f"minus {reference.name}, points", "p", "only this / only that", "what may be said") if several else ()
    return Grid(
        headings=("run", "episodes", "held at end", "95 % interval", *minus, "at any moment", "95 % interval"),
        rows=tuple(_run_row(arm, reference, several) for arm in sources.arms),
    )


def _run_row(arm: RunArm, reference: RunArm, several: bool) -> Row:
    seeds = len(arm.results)
    counts = f"{len(arm.held[0])}" if seeds == 1 else f"{len(arm.held[0])} x {seeds} training seeds"
    cells = [word(arm.name), Cell(text=counts, value=len(arm.held[0])), share(arm.rate), span(arm.interval)]
    if several:
        cells += _paired_cells(arm, reference)
    return Row(cells=(*cells, share(arm.rate_ever), span(arm.interval_ever)), is_strong=arm is reference)


def _paired_cells(arm: RunArm, reference: RunArm) -> list[Cell]:
    if arm is reference:
        return [Cell(text="-", value=None)] * 3 + [word("reference")]
    found = arm.difference(reference)
    split = Cell(text="-", value=None)
    if len(arm.held) == len(reference.held) == 1:
        pairs = list(zip(arm.held[0], reference.held[0], strict=True))
        ours, theirs = (sum(pair == only for pair in pairs) for only in ((True, False), (False, True)))
        split = Cell(text=f"{ours} / {theirs}", value=ours - theirs)
    return [gap(found), Cell(text=p_text(found.p), value=found.p), split, word(verdict(found))]


def beside_grid(source: Source) -> Grid | None:
    """A run beside other agents on the same episodes; None where none was computed."""
    result = source.result
    found = {name: entry for name, entry in result.baselines.items() if entry is not None}
    if not found:
        return None
    rows = [_agent_row(source.name, result.score, None, is_strong=True)]
    rows += [_agent_row(name, entry.score, entry.difference) for name, entry in found.items()]
    headings = ("agent", "episodes", "held at end", "95 % interval", "run minus it, points", "p", "at any moment")
    return Grid(headings=(*headings, "median steps to success", "mean final distance, cm"), rows=tuple(rows))


def _agent_row(name: str, score: Score, difference: Difference | None, *, is_strong: bool = False) -> Row:
    steps, distance = score.steps_to_success, score.final_distance_m
    cells = (
        word(name),
        number(score.episodes, "{}"),
        share(score.success_rate),
        span(score.success_interval),
        gap(difference),
        Cell(text="-", value=None) if difference is None else Cell(text=p_text(difference.p), value=difference.p),
        share(score.ever / score.episodes),
        number(None if steps is None else steps[1], "{:.0f}"),
        number(None if distance is None else 100 * distance[0], "{:.1f}"),
    )
    return Row(cells=cells, is_strong=is_strong)


def strata_records(source: Source) -> list[dict[str, Any]]:
    """Success by distance from start to goal: in the thirds of the record, else in thirds of what was run."""
    result = source.result
    if not result.strata:
        parts = strata_of([row.start_distance_m for row in result.rows])
        episodes = [row.episode for row in result.rows]
        named = tuple(replace(part, tasks=tuple(episodes[index] for index in part.tasks)) for part in parts)
        result = replace(result, strata=named)
    found: list[dict[str, Any]] = result.to_json()["strata"]
    return found


def strata_grid(runs: Sequence[Source]) -> Grid:
    """Success of every run by distance from start to goal."""
    rows = []
    for source in runs:
        for entry in strata_records(source):
            distance = f"{100 * entry['low_m']:.1f} to {100 * entry['high_m']:.1f}"
            cells = (word(entry["name"]), Cell(text=distance, value=entry["low_m"]), number(entry["episodes"], "{}"))
            rates = (share(entry["success_rate"]), span(entry["success_interval"]))
            rows.append(Row(cells=(word(source.name), *cells, *rates)))
    headings = ("run", "tasks", "start to goal, cm", "episodes", "held at end", "95 % interval")
    return Grid(headings=headings, rows=tuple(rows))


def cost_grid(runs: Sequence[Source]) -> Grid:
    """What plans and episodes cost."""
    rows = []
    for source in runs:
        result = source.result
        flops = result.flops_per_episode
        cells = (
            word(source.name),
            number(None if result.replan_p50_s is None else 1000 * result.replan_p50_s, "{:.0f}"),
            number(None if result.replan_p95_s is None else 1000 * result.replan_p95_s, "{:.0f}"),
            number(result.model_calls_per_episode, "{:.0f}"),
            number(None if flops is None else flops / 1e9, "{:.3g}"),
            word(
                ", ".join(f"{key} {value}" for key, value in result.hardware.items() if not isinstance(value, Mapping))
            ),
        )
        rows.append(Row(cells=cells))
    headings = ("run", "median plan, ms", "95th percentile, ms", "model calls an episode", "GFLOP an episode")
    return Grid(headings=(*headings, "where"), rows=tuple(rows))


def episodes_grid(sources: Sources) -> Grid:
    """Every episode of every run, to be sorted and filtered."""
    disputed = _disputed(sources.runs)
    several = len(sources.runs) > 1
    has_why = any(source.explained for source in sources.runs)
    has_films = any(source.films for source in sources.runs)
    rows = []
    for index, source in enumerate(sources.runs):
        place = {task: part["name"] for part in strata_records(source) for task in part["tasks"]}
        why = source.explained
        verdicts = {entry.episode: entry.verdict for entry in why.explanation.verdicts} if why else {}
        filmed = {film.recorded.episode for film in source.films}
        for row in source.result.rows:
            tags = {"outcome": outcome_of(row), "tasks": place.get(row.episode, "")}
            agreed = "runs disagree" if row.episode in disputed else "runs agree"
            tags |= {"run": source.name, "runs": agreed} if several else {}
            tags |= {"verdict": verdicts.get(row.episode, "")} if has_why else {}
            cells = [word(source.name)] if several else []
            cells += _episode_cells(row, place.get(row.episode, "-"))
            cells += [_optional(verdicts.get(row.episode))] if has_why else []
            link = film_id(index, row.episode) if row.episode in filmed else ""
            cells += (
                [Cell(text="video" if link else "", value="video" if link else None, link=link)] if has_films else []
            )
            rows.append(Row(cells=tuple(cells), tags=tags))
    headings = ("episode", "outcome", "first success, step", "start, cm", "end, cm", "nearest, cm", "plans", "tasks")
    more = (*(("verdict",) if has_why else ()), *(("film",) if has_films else ()))
    return Grid(headings=(*(("run",) if several else ()), *headings, *more), rows=tuple(rows), is_sortable=True)


def film_id(source: int, episode: int) -> str:
    """Name of the place of a film on the page."""
    return f"film-{source}-{episode}"


def _episode_cells(row: EpisodeResult, stratum: str) -> list[Cell]:
    metres = (row.start_distance_m, row.final_distance_m, row.min_distance_m)
    return [
        number(row.episode, "{}"),
        word(outcome_of(row)),
        number(row.steps_to_success, "{}"),
        *(Cell(text=f"{100 * value:.1f}", value=value) for value in metres),
        number(row.replans, "{}"),
        word(stratum),
    ]


def _optional(text: str | None) -> Cell:
    return Cell(text=text or "", value=text)


def _film_cell(link: str) -> Cell:
    return Cell(text="video", value="video", link=link) if link else Cell(text="", value=None)


def _disputed(runs: Sequence[Source]) -> set[int]:
    """Episodes that some runs held and others did not."""
    seen: dict[int, set[bool]] = {}
    for source in runs:
        for row in source.result.rows:
            seen.setdefault(row.episode, set()).add(row.held)
    return {episode for episode, outcomes in seen.items() if len(outcomes) > 1}


def verdicts_grid(explanation: Explanation) -> Grid:
    """Failures per verdict."""
    trials = len(explanation.verdicts)
    rows = []
    for name, count in explanation.counts().items():
        rates = (share(count / trials), span(wilson_interval(count, trials)))
        reason = re.sub("^succeeds", "it succeeds", VERDICTS[name])
        rows.append(Row(cells=(word(name), word(reason), number(count, "{}"), *rates)))
    return Grid(headings=("verdict", "because", "failures", "share", "95 % interval"), rows=tuple(rows))


def evidence_grid(explanation: Explanation) -> Grid:
    """What every explained failure shows."""
    rows = []
    for entry in explanation.verdicts:
        seen = entry.evidence
        cells = (
            number(entry.episode, "{}"),
            word(entry.verdict),
            word("succeeds" if entry.again else "fails"),
            number(100 * seen.final_distance_m, "{:.1f}"),
            number(seen.open_loop[0], "{:.2f}"),
            number(seen.open_loop[-1], "{:.2f}"),
            number(seen.rank_correlation, "{:.2f}"),
            number(seen.cost_at_start, "{:.2f}"),
            number(seen.cost_reached, "{:.2f}"),
            number(seen.cost_at_goal, "{:.2f}"),
        )
        rows.append(Row(cells=cells))
    errors = ("error / standing still, 1 step", "same, last step", "rank correlation with true cost")
    costs = ("cost at start", "cost reached", "cost of the goal picture")
    headings = ("episode", "verdict", "run again", "end, cm", *errors, *costs)
    return Grid(headings=headings, rows=tuple(rows), is_sortable=True)


def settings_grid(runs: Sequence[Source]) -> Grid:
    """Everything that was chosen for every run, and where it comes from; lines that differ stand out."""
    columns = [_provenance(source) for source in runs]
    keys = list(dict.fromkeys(key for column in columns for key in column))
    rows = []
    for key in keys:
        values = [column.get(key) for column in columns]
        cells = [word(key), *(word("-" if value is None else value) for value in values)]
        differs = key not in _OWN and len(set(map(str, values))) > 1
        if len(runs) > 1:
            cells.append(word("differs" if differs else ""))
        rows.append(Row(cells=tuple(cells), is_strong=differs))
    last = ("",) if len(runs) > 1 else ()
    return Grid(headings=("setting", *(source.name for source in runs), *last), rows=tuple(rows))


def _provenance(source: Source) -> dict[str, Any]:
    result, facts = source.result, source.facts
    known: dict[str, Any] = {"folder": str(source.folder)}
    overrides = facts.get("overrides")
    if isinstance(overrides, list):
        known["command"] = shlex.join(["worldmodel", str(facts.get("command")), *map(str, overrides)])
    known |= {"environment": result.env_id, "manifest hash": result.manifest_hash, "episodes": len(result.rows)}
    known |= flatten(dict(result.agent), "agent")
    known |= flatten(dict(result.hardware), "hardware")
    known |= {key: facts[key] for key in ("seed", "device", "python") if key in facts}
    versions = facts.get("versions")
    return known | (flatten(versions, "version") if isinstance(versions, dict) else {})
