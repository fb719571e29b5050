"""Plans on disk, and replaying them: the same search from the same context must find the same plan again.

One safetensors file holds the replans of one episode: what was seen, the goal, the state of the random stream, and what
was found. Its header names model, search and objective. Nothing in it can run code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from worldmodel import planners
from worldmodel.control import objectives
from worldmodel.control.costs import LatentCost, PlanningModel
from worldmodel.control.objectives import Objective
from worldmodel.control.threads import torch_threads
from worldmodel.errors import ConfigError, DataError
from worldmodel.evaluation.runlog import describe
from worldmodel.planners import Plan, Planner, PlanTrace
from worldmodel.types import Context, Latent

FORMAT = "worldmodel-plans/1"
_PLAN = ("actions", "cost", "mean", "std", "elites")
_TRACE = ("best_cost", "elite_cost", "std")


@dataclass(frozen=True, kw_only=True)
class PlanRecord:
    """One replan of one problem.

    Attributes:
        step: Environment steps taken when it was asked for.
        context: What it started from, B = 1.
        plan: What was found.
    """

    step: int
    context: Context
    plan: Plan


@dataclass(frozen=True, kw_only=True)
class PlanLog:
    """The replans of one episode, in order.

    Attributes:
        checkpoint: Hash of the model's settings and weights.
        planner: Search.
        objective: What it minimised, not bound to a model.
        goal: Latent (1, 1, ...) of the goal frame.
        interval: Model steps between two plans; each started from the one before it, shifted by so many.
        threads: CPU threads it was computed with.
        records: The replans.
    """

    checkpoint: str
    planner: Planner
    objective: Objective
    goal: Latent
    interval: int
    threads: int
    records: Sequence[PlanRecord]

    def save(self, path: str | Path) -> Path:
        """Write the log.

        Args:
            path: File ending in .safetensors.

        Raises:
            ConfigError: It ends in something else.
        """
        target = Path(path)
        if target.suffix != ".safetensors":
            raise ConfigError(f"a plan log ends in .safetensors, got {target.name}")
        tensors = {"goal": self.goal.visual}
        for number, record in enumerate(self.records):
            tensors |= {f"{number}.{name}": value for name, value in _tensors_of(record).items()}
        header = {
            "checkpoint": self.checkpoint,
            "planner": describe(self.planner),
            "objective": describe(self.objective),
            "interval": self.interval,
            "threads": self.threads,
            "steps": [record.step for record in self.records],
            "seconds": [record.plan.seconds for record in self.records],
        }
        target.parent.mkdir(parents=True, exist_ok=True)
        save_file(
            {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()},
            target,
            metadata={"format": FORMAT, "header": json.dumps(header)},
        )
        return target

    @classmethod
    def load(cls, path: str | Path) -> PlanLog:
        """Read a log.

        Raises:
            DataError: There is none, or the file is something else.
        """
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != FORMAT:
                    raise DataError(f"{path} is no plan log ({FORMAT}); `worldmodel plan` writes them")
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a mapping
            header = json.loads(metadata["header"])
            records = tuple(
                _record_of(number, step, seconds, tensors)
                for number, (step, seconds) in enumerate(zip(header["steps"], header["seconds"], strict=True))
            )
            return cls(
                checkpoint=header["checkpoint"],
                planner=rebuild(header["planner"]),
                objective=rebuild(header["objective"]),
                goal=Latent(visual=tensors["goal"]),
                interval=int(header["interval"]),
                threads=int(header["threads"]),
                records=records,
            )
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} cannot be read as a plan log: {error}") from error


@dataclass(frozen=True, kw_only=True)
class Replay:
    """A replan computed again.

    Attributes:
        step: Environment steps taken when it was asked for.
        is_equal: Whether actions and cost have the same bits.
        difference: Largest difference of the actions, env units.
    """

    step: int
    is_equal: bool
    difference: float


def replay(log: PlanLog, world_model: PlanningModel) -> list[Replay]:
    """Compute every plan of a log again and compare.

    Args:
        log: What was planned.
        world_model: The model it was planned with; the caller has checked the hash.
    """
    objective = log.objective.bind(world_model)
    low, high = world_model.spec.flat_bounds(world_model.device)
    replays: list[Replay] = []
    before: Plan | None = None
    with torch_threads(log.threads):
        for record in log.records:
            stream = torch.Generator()
            stream.set_state(record.plan.rng_state[0])
            found = log.planner.plan(
                LatentCost(world_model, objective, record.context, log.goal),
                low,
                high,
                rng=[stream],
                warm_start=None if before is None else before.shifted(log.interval),
            )
            same = torch.equal(found.actions, record.plan.actions) and torch.equal(found.cost, record.plan.cost)
            difference = float((found.actions - record.plan.actions).abs().max())
            replays.append(Replay(step=record.step, is_equal=same, difference=difference))
            before = record.plan
    return replays


def rebuild(record: Any) -> Any:
    """Planner or objective of a description (`describe`).

    Raises:
        DataError: It names no planner and no objective.
    """
    if isinstance(record, list):
        return tuple(rebuild(entry) for entry in record)
    if not isinstance(record, Mapping):
        return record
    kind = getattr(planners, str(record.get("type")), None) or getattr(objectives, str(record.get("type")), None)
    if not (isinstance(kind, type) and issubclass(kind, Planner | Objective) and is_dataclass(kind)):
        raise DataError(f"{record.get('type')!r} is no planner and no objective of this version")
    known = {entry.name for entry in fields(kind)}
    return kind(**{name: rebuild(value) for name, value in record.items() if name in known})


def _tensors_of(record: PlanRecord) -> dict[str, Tensor]:
    plan, body = record.plan, record.context.latent.proprio
    return {
        "context": record.context.latent.visual,
        **({} if body is None else {"proprio": body}),
        "past": record.context.actions,
        "rng_state": plan.rng_state[0],
        **{name: getattr(plan, name) for name in _PLAN},
        **{f"trace.{name}": getattr(plan.trace, name) for name in _TRACE},
    }


def _record_of(number: int, step: int, seconds: float, tensors: Mapping[str, Tensor]) -> PlanRecord:
    own = {name.removeprefix(f"{number}."): value for name, value in tensors.items() if name.startswith(f"{number}.")}
    plan = Plan(
        **{name: own[name] for name in _PLAN},
        trace=PlanTrace(**{name: own[f"trace.{name}"] for name in _TRACE}),
        rng_state=(own["rng_state"],),
        seconds=seconds,
    )
    context = Context(latent=Latent(visual=own["context"], proprio=own.get("proprio")), actions=own["past"])
    return PlanRecord(step=step, context=context, plan=plan)
