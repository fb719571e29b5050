"""`worldmodel replay`: saved plans, computed again."""

from __future__ import annotations

from dataclasses import dataclass

from rich.table import Table

from worldmodel.commands.run import Outcome, Run, RunSettings
from worldmodel.errors import CheckpointError
from worldmodel.evaluation.evaluate import checkpoint_hash
from worldmodel.evaluation.plan_records import PlanLog, Replay, replay
from worldmodel.models.checkpoint import load_checkpoint, resolve_checkpoint


@dataclass(kw_only=True)
class Settings(RunSettings):
    """What to replay.

    Attributes:
        plans: File written by `worldmodel plan`.
        checkpoint: Model the plans were made with: "shipped", the name of a shipped one, or a folder.
    """

    plans: str
    checkpoint: str = "shipped"


def run(settings: Settings, run: Run) -> Outcome:
    """Plan again from every saved context; the exit status is 2 when a plan came out differently."""
    log = PlanLog.load(settings.plans)
    folder = resolve_checkpoint(settings.checkpoint)
    if (found := checkpoint_hash(folder)) != log.checkpoint:
        raise CheckpointError(
            f"{settings.plans} was made with another model (hash {log.checkpoint[:12]}, {folder} has {found[:12]}); "
            "give checkpoint="
        )
    run.note(f"Planning {len(log.records)} times again with {type(log.planner).__name__}, {log.threads} threads")
    replays = replay(log, load_checkpoint(folder))
    equal = sum(entry.is_equal for entry in replays)
    record = {
        "plans": len(replays),
        "equal": equal,
        "largest_difference": max((entry.difference for entry in replays), default=0.0),
        "steps_that_differ": [entry.step for entry in replays if not entry.is_equal],
    }
    verdict = f"{equal} of {len(replays)} plans have the same bits"
    return Outcome(record=record, report=(_table(replays), verdict), status=0 if equal == len(replays) else 2)


def _table(replays: list[Replay]) -> Table:
    table = Table(title="plans computed again")
    table.add_column("asked for at step", justify="right")
    table.add_column("same bits")
    table.add_column("largest difference", justify="right")
    for entry in replays:
        table.add_row(str(entry.step), "yes" if entry.is_equal else "no", f"{entry.difference:.1e}")
    return table
