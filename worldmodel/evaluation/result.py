"""What an evaluation found, as a record: numbers for machines, a table for people, read back from its run folder.

Separate from `evaluate.py`, which runs things: whoever compares or explains finished runs needs the record alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from worldmodel.display import html_of, sparkline
from worldmodel.errors import DataError
from worldmodel.evaluation.episodes import EpisodeResult, EpisodeRun
from worldmodel.evaluation.flops import ModelFlops
from worldmodel.evaluation.manifest import Baseline, Manifest
from worldmodel.evaluation.manifest_checks import Stratum, strata_of
from worldmodel.evaluation.runlog import IDENTITY, RESULT, describe
from worldmodel.evaluation.stats import Difference, Interval, difference_of, quantile, wilson_interval
from worldmodel.evaluation.stored_baselines import MODEL_BASELINES
from worldmodel.hardware import hardware_facts

BASELINES = ("random", "noop", "oracle", *MODEL_BASELINES)
"""Rows that stand beside the model in every result, null where they were not computed."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """Outcomes of one agent on the first tasks of a manifest, counted.

    Attributes:
        episodes: How many.
        held: In how many of them success held at the end.
        ever: In how many it was seen at any moment.
        at_step: In how many it held after each number of steps, the start first; None when a row does not say.
        steps_to_success: 25th, 50th and 75th percentile of the steps until it was first seen, over the episodes in
            which it was; None without one.
        final_distance_m: Mean and median distance to the goal at the end, metres; None when unknown.
    """

    episodes: int
    held: int
    ever: int
    at_step: tuple[int, ...] | None
    steps_to_success: tuple[float, ...] | None
    final_distance_m: tuple[float, float] | None

    @classmethod
    def of(cls, rows: Sequence[EpisodeResult]) -> Score:
        """Count the outcomes of at least one episode."""
        steps = [row.steps_to_success for row in rows if row.steps_to_success is not None]
        moments = [row.success for row in rows if row.success is not None]
        is_whole = len(moments) == len(rows) and len({len(text) for text in moments}) == 1
        distances = [row.final_distance_m for row in rows]
        return cls(
            episodes=len(rows),
            held=sum(row.held for row in rows),
            ever=sum(row.ever for row in rows),
            at_step=tuple(column.count("1") for column in zip(*moments, strict=True)) if is_whole else None,
            steps_to_success=tuple(float(np.quantile(steps, share)) for share in (0.25, 0.5, 0.75)) if steps else None,
            final_distance_m=(float(np.mean(distances)), float(np.median(distances))),
        )

    @property
    def success_rate(self) -> float:
        """Share of episodes with success held at the end."""
        return self.held / self.episodes

    @property
    def success_interval(self) -> Interval:
        """95 % Wilson interval of `success_rate`."""
        return wilson_interval(self.held, self.episodes)

    def to_json(self) -> dict[str, Any]:
        """JSON-ready form; every rate has its 95 % Wilson interval beside it."""
        curve = None if self.at_step is None else [count / self.episodes for count in self.at_step]
        around = None if self.at_step is None else [list(wilson_interval(k, self.episodes)) for k in self.at_step]
        low, middle, high = self.steps_to_success or (None, None, None)
        mean, median = self.final_distance_m or (None, None)
        return {
            "episodes": self.episodes,
            "success_rate": self.success_rate,
            "success_interval": list(self.success_interval),
            "success_ever": self.ever / self.episodes,
            "success_ever_interval": list(wilson_interval(self.ever, self.episodes)),
            "success_curve": curve,
            "success_curve_interval": around,
            "steps_to_success": {"median": middle, "p25": low, "p75": high, "episodes": self.ever},
            "final_distance_m": {"mean": mean, "median": median},
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any], episodes: int) -> Score:
        """Inverse of `to_json`.

        Args:
            record: What `to_json` made, or the rates alone, as results once held them.
            episodes: How many there were where the record does not say.
        """
        count = int(record.get("episodes", episodes))
        curve = record.get("success_curve")
        steps, distance = record.get("steps_to_success", {}), record.get("final_distance_m", {})
        quartiles = tuple(steps.get(key) for key in ("p25", "median", "p75"))
        return cls(
            episodes=count,
            held=round(record["success_rate"] * count),
            ever=round(record["success_ever"] * count),
            at_step=None if curve is None else tuple(round(share * count) for share in curve),
            steps_to_success=None if None in quartiles else quartiles,
            final_distance_m=(distance["mean"], distance["median"]) if distance.get("mean") is not None else None,
        )


@dataclass(frozen=True, kw_only=True)
class BaselineScore:
    """An agent that stands beside the model.

    Attributes:
        score: Its outcomes, on as many of the model's episodes as it was run on.
        difference: The model minus this agent on those episodes; None in results from before it was recorded.
    """

    score: Score
    difference: Difference | None


@dataclass(frozen=True, kw_only=True)
class EvalResult:
    """What was measured.

    Attributes:
        env_id: Environment.
        manifest_hash: Of the whole manifest, whatever part of it was run.
        rows: Outcome per episode, in the order of the manifest.
        replan_p50_s: Median seconds per plan of one problem, all episodes together; None for agents that do not plan.
        replan_p95_s: Their 95th percentile.
        model_calls_per_episode: Mean number of sequences scored, counted as `Planner.num_calls` does; 0 for agents that
            do not plan, None when an episode that planned was recorded without it.
        flops_per_episode: Mean operations in matrix products, see `ModelFlops`; None for agents without a world model.
        model_parameters: Numbers in the weights of the world model, the frozen encoder included; None without one.
        baselines: Other agents on the same episodes by name; None when they were not computed.
        budgets: What those agents were allowed.
        agent: Description of the evaluated agent: checkpoint hash, planner, objective, seed.
        hardware: Where it ran.
        strata: Thirds of the manifest by distance from start to goal; none where it does not say.
    """

    env_id: str
    manifest_hash: str
    rows: tuple[EpisodeResult, ...]
    replan_p50_s: float | None
    replan_p95_s: float | None
    model_calls_per_episode: float | None
    flops_per_episode: float | None
    baselines: Mapping[str, BaselineScore | None]
    budgets: Mapping[str, Mapping[str, Any]]
    agent: Mapping[str, Any]
    hardware: Mapping[str, Any]
    strata: tuple[Stratum, ...] = ()
    model_parameters: int | None = None

    @property
    def score(self) -> Score:
        """The outcomes, counted."""
        return Score.of(self.rows)

    @property
    def success_rate(self) -> float:
        """Share of episodes with success held at the end."""
        return self.score.success_rate

    @property
    def success_interval(self) -> Interval:
        """95 % Wilson interval of `success_rate`."""
        return self.score.success_interval

    def to_json(self) -> dict[str, Any]:
        """The machine-readable record; `episodes_table` holds no timings, so that reruns can be compared bit by bit."""
        return {
            "env": self.env_id,
            **self.score.to_json(),
            "manifest_hash": self.manifest_hash,
            "strata": [self._stratum_json(stratum) for stratum in self.strata],
            "replan_s": {"p50": self.replan_p50_s, "p95": self.replan_p95_s},
            "model_calls_per_episode": self.model_calls_per_episode,
            "flops_per_episode": self.flops_per_episode,
            "model_parameters": self.model_parameters,
            "baselines": {name: _baseline_json(entry) for name, entry in self.baselines.items()},
            "baseline_budgets": describe(self.budgets),
            "agent": describe(self.agent),
            "hardware": dict(self.hardware),
            "episodes_table": [row.to_dict() for row in self.rows],
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> EvalResult:
        """Inverse of `to_json`; records from before something was measured have None there.

        Raises:
            DataError: The record is not that of an evaluation.
        """
        try:
            rows = tuple(EpisodeResult.from_dict(row) for row in record["episodes_table"])
            return cls(
                env_id=record["env"],
                manifest_hash=record["manifest_hash"],
                rows=rows,
                replan_p50_s=record["replan_s"]["p50"],
                replan_p95_s=record["replan_s"]["p95"],
                model_calls_per_episode=record.get("model_calls_per_episode"),
                flops_per_episode=record.get("flops_per_episode"),
                model_parameters=record.get("model_parameters"),
                baselines={name: _baseline_of(entry, len(rows)) for name, entry in record["baselines"].items()},
                budgets=record["baseline_budgets"],
                agent=record["agent"],
                hardware=record["hardware"],
                strata=tuple(_stratum_of(entry) for entry in record.get("strata", ())),
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DataError(f"this is not the record of an evaluation: {type(error).__name__} {error}") from error

    @classmethod
    def load(cls, run_dir: Path) -> EvalResult:
        """Read the result of a finished evaluation from its run folder.

        Raises:
            DataError: The folder holds none, its evaluation is not finished, or the record is corrupt.
        """
        path = run_dir / RESULT
        if not path.is_file() and (run_dir / IDENTITY).is_file():
            raise DataError(f"the evaluation in {run_dir} is not finished: start it again with run_dir={run_dir}")
        if not path.is_file():
            raise DataError(f"{run_dir} holds no {RESULT}: give the run folder of a `worldmodel evaluate`")
        try:
            return cls.from_json(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read ({error}); start the evaluation again with its run_dir") from error

    def table(self) -> Table:
        """The result for a terminal: the model beside floors and ceilings on the same episodes."""
        table = Table(title=f"{self.env_id}, {len(self.rows)} held-out episodes", caption=self._caption())
        table.add_column("agent")
        headings = ("held at end", "interval", "model minus it", "ever", "median steps to success")
        for heading in (*headings, "mean final distance"):
            table.add_column(heading, justify="right")
        table.add_row("model", *_cells(self.score, "-"), style="bold")
        for name, entry in self.baselines.items():
            if entry is None:
                table.add_row(name, "not computed", *["-"] * 5)
                continue
            fewer = f" (first {entry.score.episodes})" if entry.score.episodes < len(self.rows) else ""
            table.add_row(f"{name}{fewer}", *_cells(entry.score, points_of(entry.difference)))
        return table

    def __rich__(self) -> Table:
        return self.table()

    def _repr_html_(self) -> str:
        curve = self.score.to_json()["success_curve"]
        label = "success at every step of the episode, 0 to 100 % of the episodes"
        return html_of(self.table(), sparkline(curve, label, high=1.0) if curve else "")

    def _stratum_json(self, stratum: Stratum) -> dict[str, Any]:
        held = sum(row.held for row in self.rows if row.episode in stratum.tasks)
        count = len(stratum.tasks)
        rates = {"success_rate": held / count, "success_interval": list(wilson_interval(held, count))}
        return {**asdict(stratum), "tasks": list(stratum.tasks), "episodes": count, **rates}

    def _caption(self) -> str:
        """Intervals, manifest, and what a plan and an episode cost."""
        parts = [f"95 % Wilson intervals, differences paired by bootstrap; manifest {self.manifest_hash[:12]}"]
        if self.replan_p50_s is not None and self.replan_p95_s is not None:
            parts.append(f"replan {self.replan_p50_s:.2f} s (p50) {self.replan_p95_s:.2f} s (p95)")
        if self.model_calls_per_episode:
            parts.append(f"{self.model_calls_per_episode:.0f} model calls an episode")
        if self.flops_per_episode:
            size = "" if self.model_parameters is None else f", {self.model_parameters / 1e6:.3g} M parameters"
            parts.append(f"{self.flops_per_episode / 1e9:.3g} GFLOP{size}")
        for entry in map(self._stratum_json, self.strata):
            place = f"{entry['name']} ({100 * entry['low_m']:.0f}-{100 * entry['high_m']:.0f} cm)"
            parts.append(f"{place} {100 * entry['success_rate']:.0f} % of {entry['episodes']}")
        return ", ".join(parts)


def summarise(
    manifest: Manifest,
    agent: Mapping[str, Any],
    runs: Sequence[EpisodeRun],
    *,
    extra: Mapping[str, Baseline] | None = None,
    flops: ModelFlops | None = None,
) -> EvalResult:
    """Put the outcomes of the first tasks of a manifest beside other agents on the same tasks.

    Args:
        manifest: The tasks, and the agents stored with them.
        agent: Description of the evaluated agent.
        runs: Its episodes, in the order of the manifest.
        extra: More agents, such as those that belong to the checkpoint; they may have been run on fewer tasks.
        flops: Arithmetic of the model, if there is one.
    """
    beside = {**manifest.baselines, **(extra or {})}
    names = [*BASELINES, *(name for name in beside if name not in BASELINES)]
    rows = tuple(run.result for run in runs)
    seconds = [second for run in runs for second in run.replan_s]
    is_counted = all(run.model_calls > 0 or run.result.replans == 0 for run in runs)
    return EvalResult(
        env_id=manifest.env_id,
        manifest_hash=manifest.hash,
        rows=rows,
        replan_p50_s=quantile(seconds, 0.5),
        replan_p95_s=quantile(seconds, 0.95),
        model_calls_per_episode=float(np.mean([run.model_calls for run in runs])) if is_counted else None,
        flops_per_episode=float(np.mean([flops.of_episode(run) for run in runs])) if flops and is_counted else None,
        model_parameters=None if flops is None else flops.parameters,
        baselines={name: _beside(rows, beside[name].rows) if name in beside else None for name in names},
        budgets={name: entry.budget for name, entry in beside.items()},
        agent=agent,
        hardware=hardware_facts(),
        strata=_strata_in(manifest, rows),
    )


def _strata_in(manifest: Manifest, rows: Sequence[EpisodeResult]) -> tuple[Stratum, ...]:
    """Strata of the whole manifest, each with those of its tasks that were run."""
    distances = manifest.checks.get("start_distance_m")
    if distances is None:
        return ()
    run = {row.episode for row in rows}
    parts = [replace(part, tasks=tuple(task for task in part.tasks if task in run)) for part in strata_of(distances)]
    return tuple(part for part in parts if part.tasks)


def _stratum_of(record: Mapping[str, Any]) -> Stratum:
    return Stratum(name=record["name"], low_m=record["low_m"], high_m=record["high_m"], tasks=tuple(record["tasks"]))


def held_of(rows: Sequence[EpisodeResult]) -> np.ndarray:
    """(1, T) outcomes at the end, as `stats` compares them."""
    return np.array([[row.held for row in rows]], dtype=np.bool_)


def points_of(difference: Difference | None) -> str:
    """A difference in percentage points with its interval, for a table."""
    if difference is None:
        return "-"
    low, high = difference.interval
    return f"{100 * difference.rate:+.0f} ({100 * low:+.0f} to {100 * high:+.0f})"


def _beside(rows: Sequence[EpisodeResult], stored: Sequence[EpisodeResult]) -> BaselineScore:
    """A baseline on the tasks that both have."""
    common = stored[: len(rows)]
    return BaselineScore(
        score=Score.of(common), difference=difference_of(held_of(rows[: len(common)]), held_of(common))
    )


def _baseline_json(entry: BaselineScore | None) -> dict[str, Any] | None:
    if entry is None:
        return None
    return {**entry.score.to_json(), "difference": entry.difference and entry.difference.to_json()}


def _baseline_of(record: Mapping[str, Any] | None, episodes: int) -> BaselineScore | None:
    if record is None:
        return None
    difference = record.get("difference")
    return BaselineScore(
        score=Score.from_json(record, episodes),
        difference=None if difference is None else Difference.from_json(difference),
    )


def _cells(score: Score, difference: str) -> list[str]:
    low, high = score.success_interval
    steps, distance = score.steps_to_success, score.final_distance_m
    return [
        f"{100 * score.success_rate:.0f} %",
        f"{100 * low:.0f}-{100 * high:.0f} %",
        difference,
        f"{100 * score.ever / score.episodes:.0f} %",
        "-" if steps is None else f"{steps[1]:.0f}",
        "-" if distance is None else f"{100 * distance[0]:.1f} cm",
    ]
