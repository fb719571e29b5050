"""`worldmodel explain RUN`: why the failures of an evaluation failed."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from rich.table import Table

from worldmodel.analysis.attribution import attribution_figure
from worldmodel.analysis.figures import save_figure
from worldmodel.commands.run import Outcome, Run, RunSettings
from worldmodel.errors import ConfigError
from worldmodel.evaluation.attribution import VERDICTS, Counterfactuals, Explanation, explain
from worldmodel.evaluation.baselines import ManifestConfig
from worldmodel.evaluation.finished import read_subject
from worldmodel.evaluation.model_baselines import ModelBaselinesConfig
from worldmodel.evaluation.stats import wilson_interval
from worldmodel.planners.base import Planner

RECORD, FIGURE = "explain.json", "explain.png"


@dataclass(kw_only=True)
class Settings(RunSettings):
    """Which run, and what its replays are allowed.

    Attributes:
        run: Folder of a finished `worldmodel evaluate`.
        max_failures: Failures looked at; more are sampled.
        sample_seed: Of that sample.
        factor: How many times the run's own search is enlarged.
        latent_oracle: Search on the true dynamics under the model's cost.
        latent_replan_every: Model steps it carries out between plans.
        oracle: Search on the true dynamics under the true cost.
        manifest: What the run ran on: "shipped", "validation", or the path of a manifest.
        checkpoint: Where the run's checkpoint lies now; null means where it lay.
        workers: Processes, one thread each; verdicts do not depend on it.
    """

    run: str
    max_failures: int = 20
    sample_seed: int = 0
    factor: int = 10
    latent_oracle: Planner = field(default_factory=lambda: ModelBaselinesConfig(names=("oracle_latent",)).oracle)
    latent_replan_every: int = 2
    oracle: Planner = field(default_factory=lambda: ManifestConfig().oracle)
    manifest: str = "shipped"
    checkpoint: str | None = None
    workers: int = 1


def run(settings: Settings, run: Run) -> Outcome:
    """Replay the failures, then show verdicts, evidence and a figure."""
    subject = read_subject(Path(settings.run), manifest=settings.manifest, checkpoint=settings.checkpoint)
    if not subject.failures:
        raise ConfigError(f"{settings.run} has no failure in {subject.num_episodes} episodes: nothing to explain")
    run.kept = f"finished replays are in {run.folder}; continue with run_dir={run.folder}"
    explanation = explain(
        subject,
        Counterfactuals(
            factor=settings.factor,
            latent_oracle=settings.latent_oracle,
            latent_replan_every=settings.latent_replan_every,
            oracle=settings.oracle,
        ),
        max_failures=settings.max_failures,
        sample_seed=settings.sample_seed,
        workers=settings.workers,
        run_dir=run.folder,
        note=run.note,
        progress=run.progress,
    )
    record = {"run": settings.run, "env": subject.manifest.env_id, **explanation.to_json()}
    path = run.folder / RECORD
    path.write_text(json.dumps(record, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    figure = save_figure(attribution_figure(explanation), run.folder / FIGURE)
    lines = [*_sentences(explanation), f"record: {path}", f"figure: {figure}"]
    return Outcome(record=record, report=(*_tables(explanation), *lines))


def _tables(explanation: Explanation) -> tuple[Table, Table]:
    trials = len(explanation.verdicts)
    counts = Table(title=f"{trials} of {explanation.num_failures} failures", caption="95 % Wilson intervals")
    for heading in ("verdict", "because the task", "failures", "share", "interval"):
        counts.add_column(heading)
    for name, count in explanation.counts().items():
        low, high = wilson_interval(count, trials)
        interval = f"{100 * low:.0f}-{100 * high:.0f} %"
        counts.add_row(name, VERDICTS[name], str(count), f"{100 * count / trials:.0f} %", interval)
    cases = Table(title="evidence, one failure a line", caption="costs are those of single frames")
    headings = ("episode", "verdict", "run again", "final distance", "open-loop error / standing still, 1 step, last")
    for heading in (*headings, "rank correlation with true cost", "cost at start, reached, at goal"):
        cases.add_column(heading)
    for entry in explanation.verdicts:
        seen = entry.evidence
        cases.add_row(
            str(entry.episode),
            entry.verdict,
            "succeeds" if entry.again else "fails",
            f"{100 * seen.final_distance_m:.1f} cm",
            f"{seen.open_loop[0]:.2f}, {seen.open_loop[-1]:.2f}",
            "-" if seen.rank_correlation is None else f"{seen.rank_correlation:.2f}",
            f"{seen.cost_at_start:.2f}, {seen.cost_reached:.2f}, {seen.cost_at_goal:.2f}",
        )
    return counts, cases


def _sentences(explanation: Explanation) -> list[str]:
    trials, again = len(explanation.verdicts), explanation.num_again
    low, high = wilson_interval(again, trials)
    lines = [
        f"{again} of {trials} ({100 * low:.0f}-{100 * high:.0f} %) succeed when they are merely run again with another "
        "random stream: about so many of the verdicts may be luck"
    ]
    if trials < explanation.num_failures:
        lines.append(f"sampled: {trials} of {explanation.num_failures} failures, drawn with seed {explanation.seed}")
    return lines
