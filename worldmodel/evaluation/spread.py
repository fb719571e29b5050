"""The jobs of one multirun together: the spread between training seeds, or a plain list when they differ otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.table import Table

from worldmodel.evaluation.comparison import differing_settings, short_names
from worldmodel.evaluation.result import EvalResult
from worldmodel.evaluation.runs_compared import CHECKPOINT, RunArm, describe_run, setting_text


@dataclass(frozen=True, kw_only=True)
class SeedSpread:
    """Evaluations that differ in nothing but the checkpoint: one per training seed.

    Attributes:
        arm: All of them, on the episodes they share.
    """

    arm: RunArm

    @classmethod
    def of(cls, results: Sequence[EvalResult]) -> SeedSpread | None:
        """Put evaluations together; None when they are not of different checkpoints, alike in everything else."""
        hashes = [result.agent.get(CHECKPOINT) for result in results]
        is_alike = set(differing_settings([describe_run(result) for result in results])) == {CHECKPOINT}
        if not is_alike or len(set(hashes)) < len(hashes):
            return None
        episodes = min(len(result.rows) for result in results)
        return cls(arm=RunArm.of("all", "", results, episodes))

    @property
    def rates(self) -> list[float]:
        """Success held at the end, per training seed."""
        return [float(np.mean(seed)) for seed in self.arm.held]

    @property
    def std(self) -> float:
        """Standard deviation between training seeds (of the sample: n - 1)."""
        return float(np.std(self.rates, ddof=1))

    def to_json(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {
            **_job_json(self.arm.results, [CHECKPOINT]),
            "training_seeds": {
                "checkpoints": len(self.rates),
                "episodes": len(self.arm.held[0]),
                "success_rate": self.arm.rate,
                "success_interval": list(self.arm.interval),
                "success_ever": self.arm.rate_ever,
                "success_ever_interval": list(self.arm.interval_ever),
                "std": self.std,
                "min": min(self.rates),
                "max": max(self.rates),
            },
        }

    def table(self) -> Table:
        """One row per checkpoint, then all of them."""
        first, (low, high) = self.arm.results[0], self.arm.interval
        table = Table(
            title=f"{first.env_id}, {len(self.rates)} checkpoints, {len(self.arm.held[0])} held-out episodes",
            caption="95 % intervals: Wilson for a checkpoint; for the mean a bootstrap over checkpoints and episodes, "
            f"too narrow with few checkpoints; manifest {first.manifest_hash[:12]}",
        )
        table.add_column("checkpoint")
        for heading in ("held at end", "interval", "ever"):
            table.add_column(heading, justify="right")
        names = _checkpoint_names(self.arm.results)
        for name, result, held in zip(names, self.arm.results, self.arm.held, strict=True):
            table.add_row(name, *_rate_cells(RunArm.of(name, "", [result], len(held))))
        table.add_section()
        mean = [f"{100 * self.arm.rate:.1f} %", f"{100 * low:.0f}-{100 * high:.0f} %"]
        table.add_row("mean", *mean, f"{100 * self.arm.rate_ever:.1f} %", style="bold")
        table.add_row("between-seed std", f"{100 * self.std:.1f} %", "", "")
        table.add_row("min to max", f"{100 * min(self.rates):.0f}-{100 * max(self.rates):.0f} %", "", "")
        return table


def jobs_json(results: Sequence[EvalResult]) -> dict[str, Any]:
    """JSON-ready list of jobs with the settings in which they differ."""
    return _job_json(results, list(differing_settings([describe_run(result) for result in results])))


def jobs_table(results: Sequence[EvalResult]) -> Table:
    """One row per job with the settings in which they differ."""
    settings = differing_settings([describe_run(result) for result in results])
    table = Table(title=f"{len(results)} evaluations", caption="95 % Wilson intervals")
    for heading in ("job", *settings):
        table.add_column(heading)
    for heading in ("episodes", "held at end", "interval", "ever"):
        table.add_column(heading, justify="right")
    for number, result in enumerate(results):
        values = (setting_text(key, column[number]) for key, column in settings.items())
        arm = RunArm.of(str(number), "", [result], len(result.rows))
        table.add_row(str(number), *values, str(len(result.rows)), *_rate_cells(arm))
    return table


def _job_json(results: Sequence[EvalResult], keys: Sequence[str]) -> dict[str, Any]:
    """The jobs, each with its checkpoint, its settings of these names, and its rates."""
    settings = differing_settings([describe_run(result) for result in results])
    jobs = []
    for number, result in enumerate(results):
        arm = RunArm.of(str(number), "", [result], len(result.rows))
        jobs.append(
            {
                "job": number,
                "checkpoint": result.agent.get("checkpoint"),
                "settings": {key: settings[key][number] for key in keys},
                "episodes": len(result.rows),
                "success_rate": arm.rate,
                "success_interval": list(arm.interval),
                "success_ever": arm.rate_ever,
                "success_ever_interval": list(arm.interval_ever),
            }
        )
    return {"jobs": jobs, "training_seeds": None}


def _checkpoint_names(results: Sequence[EvalResult]) -> list[str]:
    return short_names([str(result.agent.get("checkpoint", result.agent[CHECKPOINT])) for result in results])


def _rate_cells(arm: RunArm) -> tuple[str, str, str]:
    low, high = arm.interval
    return f"{100 * arm.rate:.0f} %", f"{100 * low:.0f}-{100 * high:.0f} %", f"{100 * arm.rate_ever:.0f} %"
