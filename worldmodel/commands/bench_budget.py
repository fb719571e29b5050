"""`worldmodel bench budget`: success against the time a plan may take."""

from __future__ import annotations

import json
from dataclasses import dataclass

from worldmodel.analysis.figures import save_figure
from worldmodel.analysis.success_curves import budget_figure
from worldmodel.commands import evaluate
from worldmodel.commands.bench_planners import TaskSettings, search_rows
from worldmodel.commands.run import Outcome, Run
from worldmodel.control.objectives import Objective
from worldmodel.errors import ConfigError
from worldmodel.evaluation.comparison import search_table
from worldmodel.planners import Planner

RECORD, FIGURE = "bench_budget.json", "bench_budget.png"


@dataclass(kw_only=True)
class Settings(TaskSettings):
    """`TaskSettings`, and how much time.

    Attributes:
        budgets_s: Seconds from an observation to its plan; encoding the frame is part of it.
        planner: Search; its iterations should outlast the largest budget.
        objective: What the search minimises; None means the model's default.
    """

    budgets_s: tuple[float, ...] = (0.025, 0.05, 0.1, 0.5, 2.0)
    planner: Planner | None = None
    objective: Objective | None = None

    def __post_init__(self) -> None:
        if not self.budgets_s or not all(budget > 0 for budget in self.budgets_s):
            raise ConfigError(f"budgets_s must be seconds > 0, at least one, got {list(self.budgets_s)}")


def run(settings: Settings, run: Run) -> Outcome:
    """Evaluate under every budget, then draw the curve."""
    budgets = sorted(set(settings.budgets_s))
    planner = settings.planner
    if planner is None:
        raise ConfigError("planner is null: name the search that is to be given the time, such as planner=cem_anytime")
    shared = {name: getattr(settings, name) for name in TaskSettings.__dataclass_fields__ if name != "run_dir"}
    searches = {
        f"{1000 * budget:g} ms": evaluate.Settings(
            planner=planner, objective=settings.objective, time_budget_s=budget, **shared
        )
        for budget in budgets
    }
    rows = search_rows(searches, run)
    record = {"env": settings.env, "episodes": settings.episodes, "rows": [row.to_json(rows[-1]) for row in rows]}
    path = run.folder / RECORD
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    picture = save_figure(
        budget_figure(budgets, [row.rate for row in rows], [row.interval for row in rows], settings.env),
        run.folder / FIGURE,
    )
    title = f"{settings.env}, {settings.episodes} held-out episodes"
    caption = f"Wilson intervals; {type(planner).__name__}; {settings.workers} workers"
    table = search_table(title, rows, rows[-1], caption)
    return Outcome(record=record, report=(table, f"plot: {picture}", f"record: {path}"))
