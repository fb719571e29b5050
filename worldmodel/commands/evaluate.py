"""`worldmodel evaluate`: what a checkpoint achieves on held-out tasks."""

from __future__ import annotations

from dataclasses import dataclass, replace

from worldmodel.commands.run import Outcome, Run, RunSettings
from worldmodel.evaluation.evaluate import EvaluateConfig, evaluate


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
    return Outcome(record=result.to_json(), report=(result.table(), f"run folder: {run.folder}"))
