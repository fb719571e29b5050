"""`worldmodel bench plan`: how long a plan takes, and how that compares."""

from __future__ import annotations

import json
from dataclasses import dataclass

from worldmodel.commands.run import Outcome, Run, RunSettings, counted
from worldmodel.evaluation.latency import LatencyConfig, measure, table_of
from worldmodel.hardware import hardware_facts

RECORD = "bench_plan.json"


@dataclass(kw_only=True)
class Settings(RunSettings, LatencyConfig):
    """`LatencyConfig`; the record is kept in the run folder."""


def run(settings: Settings, run: Run) -> Outcome:
    """Measure, keep the record, show the table."""
    sizes = settings.sizes()
    run.note(
        f"Planning with the {settings.model} model, {sizes.num_samples} candidates x {sizes.num_iterations} iterations "
        f"over {sizes.horizon} steps, {sizes.rounds} rounds; leave the machine alone meanwhile"
    )
    with counted("rounds", run.progress) as tell:
        record = {**measure(settings, tell=tell), "hardware": hardware_facts()}
    path = run.folder / RECORD
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return Outcome(record=record, report=(table_of(record), f"record: {path}"))
