"""`worldmodel report RUN...`: finished evaluations as one HTML file."""

from __future__ import annotations

from dataclasses import dataclass

from worldmodel.analysis.report import FILE, build_report, filmed
from worldmodel.analysis.report_tables import outcome_of
from worldmodel.commands.run import Outcome, Run, RunSettings, busy
from worldmodel.errors import ConfigError


@dataclass(kw_only=True)
class Settings(RunSettings):
    """What is reported.

    Attributes:
        runs: Run folders of `worldmodel evaluate`, or of its multirun over the checkpoints of several training seeds.
        reference: The run that the others are compared with: its name, or its number from 0; None means the first.
        videos: Failures, and successes, of every run that are run again and filmed; 0 films none.
        episodes: Numbers of episodes that are filmed besides.
        explain: Folders of `worldmodel explain`; a run without one is looked up in its own folder and below
            outputs/explain.
        manifest: What the runs ran on: "shipped", "validation", or the path of a manifest. Only films need it.
        checkpoint: Where the runs' checkpoint lies now; null means where it lay. Only films need it.
        workers: Processes that film, one thread each.
    """

    runs: tuple[str, ...] = ()
    reference: str | None = None
    videos: int = 2
    episodes: tuple[int, ...] = ()
    explain: tuple[str, ...] = ()
    manifest: str = "shipped"
    checkpoint: str | None = None
    workers: int = 1


def run(settings: Settings, run: Run) -> Outcome:
    """Read the runs, film some of their episodes, write the page."""
    if settings.videos < 0:
        raise ConfigError(f"videos must be >= 0, got {settings.videos}")
    report = build_report(settings.runs, reference=settings.reference, explain=settings.explain)
    if settings.videos or settings.episodes:
        count = len(report.sources.runs)
        run.note(
            f"Filming up to {2 * settings.videos + len(settings.episodes)} episodes of {count} "
            f"run{'s' if count > 1 else ''}, run again as they were (videos=0 films no first failures and successes)"
        )
        with busy("filming", run.progress):
            report = filmed(
                report,
                settings.videos,
                settings.episodes,
                manifest=settings.manifest,
                checkpoint=settings.checkpoint,
                workers=settings.workers,
            )
    path = report.save(run.folder / FILE)
    lines = list(report.notes)
    for source in report.sources.runs:
        shown = [f"{film.recorded.episode} ({outcome_of(film.recorded)})" for film in source.films]
        lines += [f"{source.name}: filmed episode{'s' if len(shown) > 1 else ''} {', '.join(shown)}"] if shown else []
    size = path.stat().st_size / 2**20
    return Outcome(record={"path": str(path), **report.to_json()}, report=(*lines, f"report: {path} ({size:.1f} MiB)"))
