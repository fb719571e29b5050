"""`worldmodel collect`: record episodes."""

from __future__ import annotations

from dataclasses import dataclass

from rich.table import Table

from worldmodel.commands.run import Outcome, Run, RunSettings
from worldmodel.control.collect import CollectConfig, CollectReport, collect


@dataclass(kw_only=True)
class Settings(RunSettings, CollectConfig):
    """`CollectConfig` and the run folder."""


def run(settings: Settings, run: Run) -> Outcome:
    """Record and say how fast."""
    planned = f", {settings.planned_fraction:.0%} planned" if settings.planned_fraction else ""
    run.note(
        f"Recording {settings.episodes} episodes of {settings.env} ({settings.expert_fraction:.0%} expert{planned}, "
        f"the rest play) with {settings.workers} workers into {settings.out}"
    )
    run.kept = f"the episodes recorded so far are in {settings.out}; continue with append=true"
    report = collect(settings, progress=run.progress)
    return Outcome(record=record_of(report), report=(_table(report), f"data: {report.path}"))


def record_of(report: CollectReport) -> dict[str, object]:
    """JSON-ready form of a report."""
    return {
        "path": str(report.path),
        "episodes": report.episodes,
        "total_episodes": report.total_episodes,
        "frames": report.frames,
        "seconds": round(report.seconds, 3),
        "frames_per_s": round(report.frames_per_s, 1),
        "content_hash": report.content_hash,
    }


def _table(report: CollectReport) -> Table:
    table = Table(title="collected")
    for name in ("episodes", "in the file", "frames", "frames/s", "content hash"):
        table.add_column(name, justify="right")
    table.add_row(
        str(report.episodes),
        str(report.total_episodes),
        str(report.frames),
        f"{report.frames_per_s:.0f}",
        report.content_hash[:12],
    )
    return table
