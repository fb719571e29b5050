"""`worldmodel bench planners`: every planner at equal model calls, on the same held-out tasks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from worldmodel.commands import evaluate
from worldmodel.commands.run import Outcome, Run, RunSettings
from worldmodel.config import load
from worldmodel.errors import ConfigError
from worldmodel.evaluation.comparison import SearchRow, search_table

RECORD = "bench_planners.json"


@dataclass(kw_only=True)
class TaskSettings(RunSettings):
    """What searches are compared on.

    Attributes:
        env: Environment, short name or id.
        episodes: The first so many tasks of the manifest.
        checkpoint: Trained model: "shipped" or a folder.
        manifest: "shipped", "validation", or the path of a manifest.
        workers: Processes, one thread each.
        seed: Seed of the planners' streams, mixed with every task's own.
    """

    env: str = "push"
    episodes: int = 100
    checkpoint: str = "shipped"
    manifest: str = "shipped"
    workers: int = 1
    seed: int = 0


@dataclass(kw_only=True)
class Settings(TaskSettings):
    """`TaskSettings`, and which searches.

    Attributes:
        planners: Overrides of `worldmodel evaluate` by the name in the table.
        names: Which of them, in this order; none means all.
        reference: The one the others are compared with.
    """

    planners: dict[str, Any] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    reference: str = "cem"

    def chosen(self) -> dict[str, list[str]]:
        """The searches asked for, the reference among them.

        Raises:
            ConfigError: One of them has no entry, or an entry is no list of overrides.
        """
        names = list(self.names or self.planners)
        names = names if self.reference in names else [self.reference, *names]
        for name in names:
            if not isinstance(self.planners.get(name), list | tuple):
                known = ", ".join(self.planners) or "none"
                raise ConfigError(f"{name!r} is none of the planners that have a list of overrides: {known}")
        return {name: [str(line) for line in self.planners[name]] for name in names}


def run(settings: Settings, run: Run) -> Outcome:
    """Evaluate one search after the other and put them side by side; all overrides are checked before the first."""
    shared = [f"{name}={getattr(settings, name)}" for name in TaskSettings.__dataclass_fields__ if name != "run_dir"]
    searches = {name: load("evaluate", [*lines, *shared]).settings for name, lines in settings.chosen().items()}
    rows = search_rows(searches, run)
    reference = next(row for row in rows if row.name == settings.reference)
    record = {
        "env": settings.env,
        "episodes": settings.episodes,
        "reference": reference.name,
        "rows": [row.to_json(reference) for row in rows],
    }
    path = run.folder / RECORD
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    caption = "Wilson intervals; differences paired over tasks, bootstrap; a gradient counts as two calls more"
    title = f"{settings.env}, {settings.episodes} held-out episodes"
    return Outcome(record=record, report=(search_table(title, rows, reference, caption), f"record: {path}"))


def search_rows(searches: Mapping[str, evaluate.Settings], run: Run) -> list[SearchRow]:
    """Evaluate every search in a folder of its own, where an interrupted one continues.

    Args:
        searches: Settings of `worldmodel evaluate` by name, each with a planner.
        run: Run folder.
    """
    run.kept = f"finished episodes are in {run.folder}; continue with run_dir={run.folder}"
    rows = []
    for number, (name, wanted) in enumerate(searches.items(), start=1):
        run.note(f"[{number}/{len(searches)}] {name}")
        folder = run.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        found = evaluate.run(replace(wanted, run_dir=str(folder)), replace(run, folder=folder)).record
        planner = wanted.planner
        assert planner is not None  # `evaluate` has one by default
        rows.append(
            SearchRow(
                name=name,
                held=(tuple(bool(row["held"]) for row in found["episodes_table"]),),
                ever=(tuple(bool(row["ever"]) for row in found["episodes_table"]),),
                replan_p50_s=float(found["replan_s"]["p50"]),
                replan_p95_s=float(found["replan_s"]["p95"]),
                num_calls=None if wanted.time_budget_s is not None else planner.num_calls,
                budget_s=wanted.time_budget_s,
                settings={"planner": type(planner).__name__, **asdict(planner)},
            )
        )
    return rows
