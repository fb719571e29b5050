"""`worldmodel report`: finished evaluations as one HTML file that needs nothing but a browser.

Style, script, charts and videos are inside the file, and its content policy forbids everything else, so that it can be
mailed, archived and opened from disk. Names, settings and whatever else was written by somebody are escaped by the
template engine; should a hole ever be found, the policy still runs no script but the one whose hash it names.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

from worldmodel import __version__
from worldmodel.analysis import report_tables as tables
from worldmodel.analysis.charts import Bar, Curve, Gap, curve_plot, gap_plot, rate_bars
from worldmodel.analysis.filmed import FilmedEpisode, chosen_rows, film_episodes
from worldmodel.analysis.report_sources import Source, Sources, read_sources
from worldmodel.errors import ConfigError, WorldModelError
from worldmodel.evaluation.finished import read_subject
from worldmodel.evaluation.runs_compared import RunArm
from worldmodel.evaluation.stats import wilson_interval

_MOST_CURVES_WITH_BANDS = 3
_ALL = {"outcome": "all outcomes", "tasks": "all tasks", "run": "all runs", "runs": "agreed upon or not"}
_ALL |= {"verdict": "all verdicts"}
FILE = "report.html"


@dataclass(frozen=True, kw_only=True)
class Report:
    """What stands in the file.

    Attributes:
        sources: The evaluations.
        notes: What a reader must know.
    """

    sources: Sources
    notes: tuple[str, ...] = ()

    def html(self) -> str:
        """The page."""
        folder = files("worldmodel") / "assets" / "report"
        parts = {name: (folder / name).read_text(encoding="utf-8") for name in ("page.html", "style.css", "script.js")}
        engine = Environment(
            loader=DictLoader({"page.html": parts["page.html"]}),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        policy = (
            "default-src 'none'; img-src data:; media-src data:; "
            f"style-src '{_digest(parts['style.css'])}'; script-src '{_digest(parts['script.js'])}'"
        )
        own = {"policy": policy, "style": Markup(parts["style.css"]), "script": Markup(parts["script.js"])}
        return engine.get_template("page.html").render(**own, **self._content())

    def save(self, path: Path) -> Path:
        """Write the page; an interrupted run leaves no half file under this name.

        Raises:
            ConfigError: `path` does not end in .html.
        """
        if path.suffix != ".html":
            raise ConfigError(f"a report's name must end in .html, got {path}")
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        partial.write_text(self.html(), encoding="utf-8")
        os.replace(partial, path)
        return path

    def to_json(self) -> dict[str, Any]:
        """What the report is about, JSON-ready."""
        sources, runs = self.sources, self.sources.runs
        return {
            "env": sources.arms[0].results[0].env_id,
            "manifest_hash": sources.arms[0].results[0].manifest_hash,
            "reference": sources.reference.name,
            "runs": [arm.to_json(sources.reference) for arm in sources.arms],
            "videos": [{"run": run.name, "episode": film.recorded.episode} for run in runs for film in run.films],
            "explained": {run.name: str(run.explained.path) for run in runs if run.explained is not None},
            "notes": list(self.notes),
        }

    def _content(self) -> dict[str, Any]:
        sources, runs = self.sources, self.sources.runs
        episodes = tables.episodes_grid(sources)
        result = sources.arms[0].results[0]
        return {
            "title": f"{result.env_id}: {', '.join(arm.name for arm in sources.arms)}",
            "env": result.env_id,
            "manifest_hash": result.manifest_hash,
            "count": len(sources.arms[0].held[0]),
            "version": __version__,
            "notes": self.notes,
            "runs": tables.runs_grid(sources),
            "rates": _rates(sources),
            "gaps": _gaps(sources),
            "curves": _curves(sources.arms),
            "beside": [(source.name, grid) for source in runs if (grid := tables.beside_grid(source))],
            "strata": tables.strata_grid(runs),
            "strata_charts": [_strata_chart(source) for source in runs],
            "costs": tables.cost_grid(runs),
            "episodes": episodes,
            "filters": _filters(episodes),
            "films": [_film(number, source, film) for number, source in enumerate(runs) for film in source.films],
            "explained": [_explained(source) for source in runs if source.explained is not None],
            "settings": tables.settings_grid(runs),
            "configs": [(source.name, source.config) for source in runs if source.config],
        }


def build_report(folders: Sequence[str], *, reference: str | None = None, explain: Sequence[str] = ()) -> Report:
    """Read finished evaluations and make a report without films.

    Args:
        folders: Run folders of `worldmodel evaluate`, or of its multirun over checkpoints.
        reference: Name or number of the one the others are compared with; None means the first.
        explain: Folders of `worldmodel explain`; others are looked for where they usually lie.

    Raises:
        ConfigError: No folder, runs that cannot be compared, or an explanation that is about none of them.
        DataError: A folder holds no finished evaluation, or an explanation is damaged.
    """
    sources = read_sources(folders, reference, explain)
    notes = [] if sources.comparison is None else list(sources.comparison.notes)
    if any(not source.result.strata for source in sources.runs):
        notes.append("thirds by distance are those of the episodes that were run: the record does not say more")
    if len(sources.arms) == 1 and len(sources.runs) > 1:
        notes.append(f"{len(sources.runs)} training seeds; intervals are from a bootstrap over seeds and tasks")
    return Report(sources=sources, notes=tuple(notes))


def filmed(
    report: Report,
    count: int,
    episodes: Sequence[int] = (),
    *,
    manifest: str = "shipped",
    checkpoint: str | None = None,
    workers: int = 1,
) -> Report:
    """The same report with films of the first failures and successes of every run, and of episodes that are named.

    A run that cannot be repeated (its checkpoint is gone, it did not plan) stays without, and a note says why.

    Args:
        report: Without films.
        count: Failures, and successes, per run.
        episodes: Numbers of others.
        manifest: What the runs ran on: "shipped", "validation", or the path of a manifest.
        checkpoint: Where the runs' checkpoint lies now; None means where it lay.
        workers: Processes, one thread each.

    Raises:
        ConfigError: `count` is negative, or a run has no such episode.
    """
    runs, notes = [], list(report.notes)
    for source in report.sources.runs:
        rows = chosen_rows(source.result.rows, count, episodes)
        try:
            subject = read_subject(source.folder, manifest=manifest, checkpoint=checkpoint) if rows else None
            films = [] if subject is None else film_episodes(subject, rows, workers=workers)
        except WorldModelError as error:
            notes.append(f"no videos of {source.name}: {error}")
            films = []
        runs.append(replace(source, films=tuple(films)))
    return replace(report, sources=replace(report.sources, runs=tuple(runs)), notes=tuple(notes))


def _digest(text: str) -> str:
    """A part of the page as its content policy names it."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _rates(sources: Sources) -> Markup:
    """Every arm, and the agents beside the reference."""
    bars = []
    for series, arm in enumerate(sources.arms):
        low, high = arm.interval
        bars.append(Bar(name=arm.name, rate=arm.rate, low=low, high=high, series=series))
    for name, entry in sources.reference.results[0].baselines.items():
        if entry is not None:
            low, high = entry.score.success_interval
            bars.append(Bar(name=name, rate=entry.score.success_rate, low=low, high=high))
    return rate_bars(bars, "held at the end, % of the episodes (95 % interval)")


def _gaps(sources: Sources) -> Markup | None:
    """Every arm but the reference minus the reference."""
    gaps = []
    for series, arm in enumerate(sources.arms):
        if arm is not sources.reference:
            found = arm.difference(sources.reference)
            low, high = found.interval
            gaps.append(Gap(name=arm.name, rate=found.rate, low=low, high=high, series=series))
    if not gaps:
        return None
    return gap_plot(gaps, f"minus {sources.reference.name}, percentage points (paired, 95 % interval)")


def _curves(arms: Sequence[RunArm]) -> Markup:
    """Success at every step; where a record does not say, the share that had seen success by then."""
    is_known = all(arm.curve is not None for arm in arms)
    curves = []
    for series, arm in enumerate(arms):
        rate = arm.curve if is_known and arm.curve is not None else _seen_by(arm)
        episodes = len(arm.held[0])
        has_band = len(arm.results) == 1 and len(arms) <= _MOST_CURVES_WITH_BANDS
        band = tuple(wilson_interval(round(value * episodes), episodes) for value in rate) if has_band else None
        curves.append(Curve(name=arm.name, rate=tuple(rate), band=band, series=series))
    label = "success at this step, %" if is_known else "success seen by this step, %"
    return curve_plot(curves, label)


def _seen_by(arm: RunArm) -> tuple[float, ...]:
    rows = [row for result in arm.results for row in result.rows[: len(arm.held[0])]]
    first = np.array([np.inf if row.steps_to_success is None else row.steps_to_success for row in rows])
    return tuple(float(np.mean(first <= step)) for step in range(max(row.steps for row in rows) + 1))


def _strata_chart(source: Source) -> Markup:
    bars = []
    for entry in tables.strata_records(source):
        low, high = entry["success_interval"]
        name = f"{entry['name']}, {100 * entry['low_m']:.0f}-{100 * entry['high_m']:.0f} cm"
        bars.append(Bar(name=name, rate=entry["success_rate"], low=low, high=high))
    return rate_bars(bars, f"{source.name}: held at the end, % (95 % interval)")


def _filters(episodes: tables.Grid) -> list[tuple[str, str, list[str]]]:
    """(key, what "all" is called, values) of everything that episodes can be filtered by."""
    keys: Mapping[str, str] = episodes.rows[0].tags
    found = []
    for key in keys:
        values = list(dict.fromkeys(row.tags[key] for row in episodes.rows if row.tags[key]))
        if len(values) > 1 or key == "verdict":
            found.append((key, _ALL[key], values))
    return found


def _film(number: int, source: Source, film: FilmedEpisode) -> dict[str, Any]:
    row = film.recorded
    facts = f"{100 * row.start_distance_m:.1f} to {100 * row.final_distance_m:.1f} cm"
    return {
        "id": tables.film_id(number, row.episode),
        "run": source.name,
        "episode": row.episode,
        "outcome": tables.outcome_of(row),
        "facts": facts,
        "warning": "" if film.is_same else f"run again, it ended otherwise: {tables.outcome_of(film.again)}",
        "data": base64.b64encode(film.mp4).decode(),
    }


def _explained(source: Source) -> dict[str, Any]:
    assert source.explained is not None
    found = source.explained.explanation
    trials, again = len(found.verdicts), found.num_again
    content: dict[str, Any] = {"name": source.name, "path": str(source.explained.path), "trials": trials}
    content |= {"failures": found.num_failures, "again": again, "counts": None, "chart": None, "evidence": None}
    if not trials:
        return content
    bars = []
    for name, count in found.counts().items():
        low, high = wilson_interval(count, trials)
        bars.append(Bar(name=name, rate=count / trials, low=low, high=high))
    chart = rate_bars(bars, f"% of {trials} explained failures (95 % interval)")
    return content | {"counts": tables.verdicts_grid(found), "chart": chart, "evidence": tables.evidence_grid(found)}
