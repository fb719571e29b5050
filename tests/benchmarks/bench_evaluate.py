"""Where the time of `worldmodel evaluate` goes: model, simulator, search, and what is left.

    python tests/benchmarks/bench_evaluate.py 100 2

(episodes, workers). Every worker notes the seconds it spends inside the model (encoding, rollout, objective) and
inside the simulator (reset, step, pictures); the rest of all workers' time, process start included, is overhead.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from worldmodel.control.agents import MPCAgent
from worldmodel.control.costs import LatentCost
from worldmodel.envs.tabletop import TabletopEnv
from worldmodel.evaluation.evaluate import EvaluateConfig, ModelAgents, model_agents
from worldmodel.evaluation.manifest import load_manifest
from worldmodel.evaluation.runs import Schedule, run_manifest
from worldmodel.hardware import hardware_facts
from worldmodel.models.world_model import WorldModel

ENV = "worldmodel/Push-v0"
TIMED = {
    "model: encode": (WorldModel, "encode"),
    "model: rollout and objective": (LatentCost, "__call__"),
    "simulator: reset": (TabletopEnv, "reset"),
    "simulator: step and picture": (TabletopEnv, "step"),
    "simulator: goal picture": (TabletopEnv, "render_goal"),
    "act (model and search)": (MPCAgent, "act"),
}


class Timed:
    """A method that counts its own seconds, and stays the same one however often its agents reach a process."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.seconds = function, 0.0

    def __get__(self, owner: object, kind: type) -> Callable[..., Any]:
        return self if owner is None else partial(self, owner)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        try:
            return self.function(*args, **kwargs)
        finally:
            self.seconds += time.perf_counter() - started


@dataclass(frozen=True, kw_only=True)
class TimedAgents(ModelAgents):
    """Agents whose process notes where its time goes.

    Attributes:
        notes: Folder of the notes, one file a process.
    """

    notes: str

    def build(self) -> MPCAgent:
        """Put the clocks in, once a process, and hand out an agent that writes them down when it is done."""
        clocks = {}
        for name, (owner, method) in TIMED.items():
            found = getattr(owner, method)
            clocks[name] = found if hasattr(found, "seconds") else Timed(found)
            setattr(owner, method, clocks[name])
        agent = super().build()
        path = Path(self.notes) / f"{os.getpid()}.json"

        def note() -> None:
            path.write_text(json.dumps({name: clock.seconds for name, clock in clocks.items()}), encoding="utf-8")

        agent.close = note  # type: ignore[attr-defined]
        return agent


def main(episodes: int, workers: int) -> None:
    """Evaluate, add up, print."""
    plain = model_agents(EvaluateConfig(env=ENV), ENV)
    settings = {name: getattr(plain, name) for name in ModelAgents.__dataclass_fields__}
    with tempfile.TemporaryDirectory() as notes:
        started = time.perf_counter()
        factory = TimedAgents(**settings, notes=notes)
        runs = run_manifest(load_manifest("push"), factory, Schedule(episodes=episodes, workers=workers))
        total = workers * (time.perf_counter() - started)
        found = [json.loads(path.read_text(encoding="utf-8")) for path in Path(notes).glob("*.json")]
    spent = {name: sum(note.get(name, 0.0) for note in found) for name in TIMED}
    model = sum(seconds for name, seconds in spent.items() if name.startswith("model"))
    simulator = sum(seconds for name, seconds in spent.items() if name.startswith("simulator"))
    spent["search outside the model"] = spent.pop("act (model and search)") - model
    spent["everything else"] = total - model - simulator - spent["search outside the model"]
    table = Table(title=f"evaluate, {episodes} episodes, {workers} workers, {total / workers:.0f} s")
    table.add_column("part")
    table.add_column("seconds of all workers", justify="right")
    table.add_column("share", justify="right")
    for name, seconds in spent.items():
        table.add_row(name, f"{seconds:.1f}", f"{100 * seconds / total:.1f} %")
    table.add_row("model and simulator", f"{model + simulator:.1f}", f"{100 * (model + simulator) / total:.1f} %")
    Console().print(table)
    held = sum(run.result.held for run in runs)
    record = {"episodes": episodes, "workers": workers, "seconds": total / workers, "held": held, "spent_s": spent}
    sys.stdout.write(json.dumps({**record, "share": (model + simulator) / total, "hardware": hardware_facts()}) + "\n")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
