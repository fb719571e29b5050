"""`worldmodel evaluate`: what a checkpoint achieves on held-out tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.console import RenderableType

from worldmodel.commands.run import Outcome, Run, RunSettings
from worldmodel.evaluation.evaluate import EvaluateConfig, evaluate
from worldmodel.evaluation.result import EvalResult
from worldmodel.evaluation.spread import SeedSpread, jobs_json, jobs_table
from worldmodel.evaluation.stored_baselines import MODEL_BASELINES


@dataclass(kw_only=True)
class Settings(RunSettings, EvaluateConfig):
    """`EvaluateConfig`; the run folder is the one it continues from."""


def run(settings: Settings, run: Run) -> Outcome:
    """Run the manifest and show the model beside floors and ceiling."""
    run.note(
        f"Evaluating {settings.checkpoint} on the first {settings.episodes} held-out tasks of {settings.env} "
        f"({settings.workers} workers)"
    )
    run.kept = f"finished episodes are in {run.folder}; continue with run_dir={run.folder}"
    result = evaluate(replace(settings, run_dir=str(run.folder)), progress=run.progress)
    report: list[RenderableType] = [result.table(), f"run folder: {run.folder}"]
    if missing := [name for name in MODEL_BASELINES if result.baselines[name] is None]:
        where = f"env={settings.env} checkpoint={settings.checkpoint} names=[{','.join(missing)}]"
        data = "" if missing == ["oracle_latent"] else " data=FILE"
        report.append(f"{', '.join(missing)}: `worldmodel baselines {where}{data}` computes and stores them")
    if failed := sum(not row.held for row in result.rows):
        report.append(f"why {failed} failed: `worldmodel explain {run.folder}`")
    return Outcome(record=result.to_json(), report=tuple(report))


def summary(records: Sequence[dict[str, Any]]) -> Outcome:
    """All jobs of a multirun: the spread over training seeds if only the checkpoint differs, else a list."""
    results = [EvalResult.from_json(record) for record in records]
    spread = SeedSpread.of(results)
    if spread is None:
        return Outcome(record=jobs_json(results), report=(jobs_table(results),))
    return Outcome(record=spread.to_json(), report=(spread.table(),))
