"""`worldmodel efficiency`: how much pretraining two objectives need before probes read equally much from them.

Both are pretrained on the same clips with the same architecture, keep their encoders along the way, and every one of
these is probed like any other arm of `worldmodel probe`. The ratio at equal scores is told in clips seen, in arithmetic
and in time; the last two from steps of both that are measured in turns.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.table import Table

from worldmodel.analysis.figures import save_figure
from worldmodel.analysis.probe_curves import ProbePanel, probe_figure
from worldmodel.analysis.success_curves import LabelCurve
from worldmodel.commands import pretrain, probe
from worldmodel.commands.probe_arms import ProbeArm, parse_arms
from worldmodel.commands.run import Outcome, Run
from worldmodel.data.clips import ClipSampler
from worldmodel.data.episodes import EpisodeDataset
from worldmodel.errors import ConfigError
from worldmodel.evaluation.efficiency import StepRatio, TrainingCurve, curves_of, mean_ratio, step_ratio
from worldmodel.evaluation.probe_results import ProbeRow
from worldmodel.evaluation.products import matmul_flops
from worldmodel.hardware import hardware_facts
from worldmodel.learning.fit import fit
from worldmodel.learning.fit_config import FitConfig
from worldmodel.learning.masked import MaskedTask
from worldmodel.learning.targets import build_task
from worldmodel.learning.teacher import TeacherConfig
from worldmodel.models.vit import ViTConfig

RECORD, FIGURE = "efficiency.json", "efficiency.png"
_ROUNDS, _ROUND_STEPS = 5, 3
Curves = dict[str, dict[str, TrainingCurve]]


@dataclass(kw_only=True)
class Settings(probe.Settings):
    """The frozen evaluation, along two pretrainings.

    Attributes:
        reference: Arm whose steps are held against those of `candidate`.
        untrained: Arm of random weights, where both curves begin.
        steps: Pretraining steps after which encoders are probed, besides the last one; multiples of `fit.eval_every`.
    """

    reference: str = "pixels"
    untrained: str = "random"
    steps: tuple[int, ...] = (50, 100, 200, 400)
    labels: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        super().__post_init__()
        arms = parse_arms(self.arms, self.candidate)
        if len(self.labels) != 1:
            raise ConfigError(f"efficiency is told at one share of the labels, got labels={list(self.labels)}")
        if not self.steps or list(self.steps) != sorted(set(self.steps)):
            raise ConfigError(f"steps must be ascending, at least one, got {list(self.steps)}")
        if self.candidate == self.reference:
            raise ConfigError(f"candidate and reference are the same arm, {self.candidate!r}")
        for name in (self.candidate, self.reference):
            if name not in arms or arms[name].pretrain is None:
                raise ConfigError(f"{name!r} must be an arm that is pretrained here: give arms.{name}.pretrain=[...]")
        if self.untrained not in arms or not arms[self.untrained].fresh:
            raise ConfigError(f"untrained={self.untrained!r} must be an arm of random weights (fresh: true)")

    def grid(self) -> probe.Settings:
        """The frozen evaluation of every encoder along the way."""
        arms = parse_arms(self.arms, self.candidate)
        wanted: dict[str, ProbeArm] = {}
        for name in (self.candidate, self.reference):
            wanted[name] = arms[name]
            wanted |= {f"{name}.{step}": ProbeArm(like=name, step=step) for step in self.steps}
        wanted[self.untrained] = arms[self.untrained]
        return replace(self, arms=wanted)


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """What one pretraining step takes.

    Attributes:
        clips: Clips in it.
        flops: Floating-point operations of its matrix products, forwards and backwards.
        seconds: Median wall time on this machine, the loading of clips and the optimiser included.
    """

    clips: int
    flops: int
    seconds: float


def run(settings: Settings, run: Run) -> Outcome:
    """Pretrain, probe what is missing, and hold the two curves of every task against each other."""
    grid = settings.grid()
    evaluation = probe.Evaluation(grid, run)
    evaluation.fill()
    rows = evaluation.rows()
    missing = [cell.name for cell in evaluation.missing()]
    if missing:
        note = f"{len(missing)} of {len(evaluation.cells)} cells are left; the same command goes on"
        return Outcome(record={"missing": missing, "folder": str(evaluation.folder)}, report=(note,))
    names = (settings.candidate, settings.reference)
    pretrainings = {name: evaluation.encoders.settings(name) for name in names}
    curves = _curves(settings, rows, {name: entry.fit.steps for name, entry in pretrainings.items()})
    run.note("timing steps of both objectives in turns")
    costs = step_costs(pretrainings)
    ratios = {task: step_ratio(*(curves[task][name] for name in names)) for task in curves}
    record = _record(settings, curves, ratios, costs)
    record["folder"] = str(evaluation.folder)
    partial = run.folder / f"{RECORD}.partial"
    partial.write_text(json.dumps(record, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    partial.replace(run.folder / RECORD)
    metrics = {row.cell.task: (row.metric, row.chance) for row in rows}
    picture = save_figure(_figure(curves, metrics, costs[settings.candidate].clips), run.folder / FIGURE)
    return Outcome(
        record=record,
        report=(*_tables(settings, record), f"plot: {picture}", f"record: {run.folder / RECORD}"),
    )


def step_costs(pretrainings: Mapping[str, pretrain.Settings]) -> dict[str, StepCost]:
    """Measure steps of several pretrainings in turns, so that a busy machine slows all of them.

    Args:
        pretrainings: By name; the data must be there. A teacher's student is not measured.

    Raises:
        ConfigError: A target needs a teacher first.
    """
    trainings = {name: _Training(name, settings) for name, settings in pretrainings.items()}
    for _ in range(_ROUNDS + 1):  # the first round warms up
        for training in trainings.values():
            training.round()
    return {name: training.cost() for name, training in trainings.items()}


class _Training:
    """Steps of one pretraining, as the training loop runs them, timed round by round."""

    def __init__(self, name: str, settings: pretrain.Settings) -> None:
        if isinstance(settings.target, TeacherConfig):
            raise ConfigError(f"arm {name}: target=teacher has two stages, whose steps do not compare")
        if not isinstance(settings.encoder, ViTConfig):
            raise ConfigError(f"arm {name}: only encoder=vit is pretrained here")
        self._settings = settings
        dataset = EpisodeDataset.open(settings.data, distractor=settings.distractor)
        self._dataset = dataset
        self._task: MaskedTask = build_task(
            settings.encoder,
            settings.target,
            background=pretrain.backgrounds(dataset, settings.background),
            teacher=None,
            seed=0,
        )
        self._sampler = ClipSampler(
            dataset,
            np.arange(len(dataset)),
            num_frames=settings.encoder.num_frames,
            frame_step=settings.frame_step,
            batch_size=settings.batch_size,
            seed=0,
        )
        self._seconds: list[float] = []
        batch = next(self._sampler)

        def step() -> None:
            self._task(batch, torch.Generator().manual_seed(0))["loss"].backward()

        self._flops = matmul_flops(step)
        self._task.zero_grad(set_to_none=True)

    def round(self) -> None:
        """Time a few steps."""
        times: list[float] = []
        source = _Stopwatch(pretrain.ClipSource(self._sampler), lambda: times.append(time.perf_counter()))
        config = FitConfig(steps=_ROUND_STEPS + 1, warmup_steps=1, seed=0)
        fit(self._task, source, config, progress=False)
        self._seconds.append((times[-1] - times[0]) / _ROUND_STEPS)

    def cost(self) -> StepCost:
        """Of the rounds after the first."""
        return StepCost(
            clips=self._settings.batch_size,
            flops=self._flops,
            seconds=statistics.median(self._seconds[1:]),
        )


class _Stopwatch:
    """A source of batches that tells when one is asked for."""

    def __init__(self, source: pretrain.ClipSource, tell: Callable[[], None]) -> None:
        self._source, self._tell = source, tell

    def next_batch(self) -> Any:
        self._tell()
        return self._source.next_batch()

    def state_dict(self) -> dict[str, Any]:
        return self._source.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._source.load_state_dict(state)


def _curves(settings: Settings, rows: list[ProbeRow], last: Mapping[str, int]) -> Curves:
    """By task and objective."""
    found: Curves = {}
    for task in settings.tasks:
        found[task] = {}
        for name in (settings.candidate, settings.reference):
            arms = {0: settings.untrained, **{step: f"{name}.{step}" for step in settings.steps}, last[name]: name}
            points = {
                step: [
                    (row.score, row.draws)
                    for row in sorted(rows, key=lambda row: row.cell.split)
                    if (row.cell.task, row.cell.arm) == (task, arm)
                ]
                for step, arm in arms.items()
            }
            found[task][name] = curves_of(points)
    return found


def _record(
    settings: Settings, curves: Curves, ratios: Mapping[str, StepRatio], costs: Mapping[str, StepCost]
) -> dict[str, Any]:
    mine, theirs = costs[settings.candidate], costs[settings.reference]
    factors = {
        "clips": theirs.clips / mine.clips,
        "flops": theirs.flops / mine.flops,
        "seconds": theirs.seconds / mine.seconds,
    }
    tasks: dict[str, Any] = {}
    for task, found in ratios.items():
        tasks[task] = {
            "score": found.score,
            "steps": {settings.candidate: found.candidate_steps, settings.reference: found.reference_steps},
            "ratio": _scaled(found.ratio, found.interval, factors),
            "draws_without_ratio": found.without,
            "curves": {
                name: {
                    "steps": curve.steps.tolist(),
                    "mean": curve.mean.tolist(),
                    "interval": [list(entry) for entry in curve.intervals()],
                    "scores": curve.scores.tolist(),
                }
                for name, curve in curves[task].items()
            },
        }
    mean = mean_ratio(list(ratios.values()))
    return {
        "candidate": settings.candidate,
        "reference": settings.reference,
        "labels": settings.labels[0],
        "seeds": settings.splits,
        "step_cost": {
            name: {"clips": cost.clips, "flops": cost.flops, "seconds": cost.seconds} for name, cost in costs.items()
        },
        "tasks": tasks,
        "mean_ratio": None if mean is None else _scaled(*mean, factors),
        "hardware": hardware_facts(),
        "missing": [],
    }


def _scaled(
    ratio: float | None, interval: tuple[float, float] | None, factors: Mapping[str, float]
) -> dict[str, dict[str, Any]]:
    """A ratio of steps in every unit; a step's cost is taken as known."""
    return {
        unit: {
            "ratio": None if ratio is None else factor * ratio,
            "interval": None if interval is None else [factor * value for value in interval],
        }
        for unit, factor in factors.items()
    }


def _tables(settings: Settings, record: Mapping[str, Any]) -> list[Table]:
    mine, theirs = settings.candidate, settings.reference
    table = Table(
        title=f"pretraining of {theirs} over that of {mine}, for the best score that both reach",
        caption="95 % bootstrap over seeds and test episodes; - where random weights read as much",
    )
    for heading in ("task", "score", f"steps {mine}", f"steps {theirs}", "in clips", "in FLOPs", "in time"):
        table.add_column(heading, justify="left" if heading == "task" else "right")
    for task, found in record["tasks"].items():
        steps = [found["steps"][name] for name in (mine, theirs)]
        counts = ["-" if value is None else f"{value:.0f}" for value in steps]
        table.add_row(task, f"{100 * found['score']:.1f}", *counts, *map(_cell, found["ratio"].values()))
    if record["mean_ratio"] is not None:
        table.add_row("geometric mean", "", "", "", *map(_cell, record["mean_ratio"].values()), style="bold")
    costs = Table(title="one step, measured in turns")
    for heading in ("objective", "clips", "GFLOP", "seconds"):
        costs.add_column(heading, justify="left" if heading == "objective" else "right")
    for name, cost in record["step_cost"].items():
        costs.add_row(name, str(cost["clips"]), f"{cost['flops'] / 1e9:.1f}", f"{cost['seconds']:.3f}")
    return [table, costs]


def _cell(entry: Mapping[str, Any]) -> str:
    if entry["ratio"] is None or entry["interval"] is None:
        return "-"
    low, high = entry["interval"]
    return f"{entry['ratio']:.2f} [{low:.2f}, {high:.2f}]"


def _figure(curves: Curves, metrics: Mapping[str, tuple[str, float]], clips: int) -> Figure:
    steps = sorted({int(step) for found in curves.values() for curve in found.values() for step in curve.steps})
    panels = {}
    for task, found in curves.items():
        drawn = []
        for name, curve in found.items():
            intervals = curve.intervals()
            drawn.append(
                LabelCurve(
                    name=name,
                    places=[steps.index(int(step)) for step in curve.steps],
                    rate=curve.mean.tolist(),
                    low=[low for low, _ in intervals],
                    high=[high for _, high in intervals],
                )
            )
        metric, chance = metrics[task]
        panels[task] = ProbePanel(curves=drawn, metric=metric, chance=chance)
    return probe_figure(panels, [f"{step * clips / 1000:g}k" for step in steps], "clips seen in pretraining")
