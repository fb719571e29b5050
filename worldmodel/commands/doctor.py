"""`worldmodel doctor`: what is here and what is missing."""

from __future__ import annotations

from dataclasses import dataclass

from rich.table import Table

from worldmodel.commands.run import Outcome, Run, RunSettings
from worldmodel.doctor import Report, diagnose


@dataclass(kw_only=True)
class Settings(RunSettings):
    """Only the run folder."""


def run(settings: Settings, run: Run) -> Outcome:
    """Inspect the installation; the exit status is 2 when something is missing."""
    report = diagnose()
    advice = [f"problem: {problem}" for problem in report.problems] or ["all is well"]
    return Outcome(record=report.to_json(), report=(_table(report), *advice), status=2 if report.problems else 0)


def _table(report: Report) -> Table:
    table = Table(title="worldmodel doctor", show_header=False)
    table.add_column("what")
    table.add_column("found", overflow="fold")
    table.add_row("python", report.python)
    table.add_row("machine", report.machine)
    table.add_row("device", report.device)
    table.add_row("cores / threads", f"{report.cores} / {report.threads}")
    table.add_row("fast bfloat16", "yes" if report.has_bf16 else "no")
    table.add_row("OpenGL backend", report.gl_backend or "none")
    table.add_row("free disk", f"{report.free_gib} GiB")
    for name, version in report.versions.items():
        table.add_row(name, version or "missing")
    return table
