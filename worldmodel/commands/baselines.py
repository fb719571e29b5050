"""`worldmodel baselines`: floors and a ceiling that depend on a checkpoint, stored beside it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from rich.table import Table

from worldmodel.commands.run import Outcome, Run, RunSettings, counted
from worldmodel.evaluation.model_baselines import ModelBaselinesConfig, make_model_baselines
from worldmodel.evaluation.result import Score


@dataclass(kw_only=True)
class Settings(RunSettings, ModelBaselinesConfig):
    """`ModelBaselinesConfig`; the run folder is the one it continues from."""

    run_dir: str | None = None  # type: ignore[assignment]  # None here means a folder named by the time


def run(settings: Settings, run: Run) -> Outcome:
    """Train the policies, run policies and oracle on the manifest, store the outcomes."""
    config = replace(settings, run_dir=str(run.folder))
    run.note(f"Running {', '.join(config.names)} for {config.checkpoint} on held-out tasks of {config.env}")
    run.kept = f"trainings and finished episodes are in {run.folder}; continue with run_dir={run.folder}"
    with counted("encoding frames", run.progress) as encoding:
        manifest, found, path = make_model_baselines(config, progress=run.progress, encoding=encoding)
    table = Table(
        title=f"{manifest.env_id}, baselines of {config.checkpoint}",
        caption=f"95 % Wilson intervals; manifest {manifest.hash[:12]}",
    )
    for heading in ("agent", "tasks", "held at end", "interval", "ever"):
        table.add_column(heading, justify="left" if heading == "agent" else "right")
    record = {}
    for name, baseline in found.items():
        score = Score.of(baseline.rows)
        low, high = score.success_interval
        ever = f"{100 * score.ever / score.episodes:.0f} %"
        rate = f"{100 * score.success_rate:.0f} %"
        table.add_row(name, str(score.episodes), rate, f"{100 * low:.0f}-{100 * high:.0f} %", ever)
        record[name] = {**score.to_json(), "budget": dict(baseline.budget)}
    return Outcome(
        record={"path": str(path), "manifest_hash": manifest.hash, "baselines": record},
        report=(table, f"stored beside the checkpoint: {path}"),
    )
