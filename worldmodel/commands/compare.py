"""`worldmodel compare`: finished evaluations on the same tasks, side by side."""

from __future__ import annotations

import json
from dataclasses import dataclass

from rich.console import RenderableType

from worldmodel.analysis.figures import save_figure
from worldmodel.analysis.success_curves import runs_figure
from worldmodel.commands.run import Outcome, Run, RunSettings
from worldmodel.evaluation.runs_compared import compare_runs

RECORD, FIGURE = "compare.json", "compare.png"


@dataclass(kw_only=True)
class Settings(RunSettings):
    """What is compared.

    Attributes:
        runs: Run folders of `worldmodel evaluate`, or of its multirun over the checkpoints of several training seeds.
        reference: The run that the others are compared with: its name in the table, or its number from 0; None means
            the first.
    """

    runs: tuple[str, ...] = ()
    reference: str | None = None


def run(settings: Settings, run: Run) -> Outcome:
    """Compare, keep the record and the picture."""
    comparison = compare_runs(settings.runs, settings.reference)
    record = comparison.to_json()
    path = run.folder / RECORD
    path.write_text(json.dumps(record, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    picture = save_figure(runs_figure(comparison), run.folder / FIGURE)
    report: list[RenderableType] = [comparison.table()]
    settings_table = comparison.settings_table()
    if settings_table is not None:
        report.append(settings_table)
    report += [*comparison.verdicts(), *comparison.notes, f"plot: {picture}", f"record: {path}"]
    return Outcome(record=record, report=tuple(report))
