"""`worldmodel reproduce`: a whole chain, from data collection to the table, continued where it stopped."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from rich.table import Table

from worldmodel.commands import collect, evaluate, low_label, pretrain, train
from worldmodel.commands.low_label_grid import LowLabelConfig
from worldmodel.commands.run import Outcome, Run, RunSettings
from worldmodel.commands.stages import StageBook
from worldmodel.envs import resolve_env_id
from worldmodel.errors import ConfigError
from worldmodel.evaluation.manifest import find_manifest

STAGES_FILE = "stages.json"


@dataclass(kw_only=True)
class Settings(RunSettings):
    """The stages, in order; each has the settings of its command.

    Attributes:
        name: Name of the experiment.
        data: Episode file that all stages share.
        workers: Processes for collecting and evaluating.
        collect_reach: First stage.
        collect_push: Second stage; into the same file.
        pretrain: Third stage.
        train: Fourth stage.
        evaluate_reach: Fifth stage.
        evaluate_push: Last stage.
        low_label: A comparison to run on the recording of `collect_push` instead of the other stages.
    """

    name: str
    data: str
    workers: int = 2
    collect_reach: collect.Settings = field(default_factory=collect.Settings)
    collect_push: collect.Settings = field(default_factory=collect.Settings)
    pretrain: pretrain.Settings
    train: train.Settings
    evaluate_reach: evaluate.Settings
    evaluate_push: evaluate.Settings
    low_label: LowLabelConfig = field(default_factory=LowLabelConfig)


STAGES: dict[str, Callable[[Any, Run], Outcome]] = {
    "collect_reach": collect.run,
    "collect_push": collect.run,
    "pretrain": pretrain.run,
    "train": train.run,
    "evaluate_reach": evaluate.run,
    "evaluate_push": evaluate.run,
}


def run(settings: Settings, run: Run) -> Outcome:
    """Run the stages that are not done yet, then show minutes and results."""
    if settings.low_label.arms:
        return _compare(settings, run)
    for evaluation in (settings.evaluate_reach, settings.evaluate_push):
        _check_manifest(evaluation)
    book = StageBook(run.folder / STAGES_FILE)
    for name in STAGES:
        book.check(name, getattr(settings, name))
    for number, (name, function) in enumerate(STAGES.items(), start=1):
        stage_settings = getattr(settings, name)
        if book.has(name):
            run.note(f"[{number}/{len(STAGES)}] {name}: done before, in {book.minutes(name):.1f} minutes")
            continue
        run.note(f"[{number}/{len(STAGES)}] {name}")
        stage = replace(run, folder=run.folder / name)
        stage.folder.mkdir(parents=True, exist_ok=True)
        run.kept = f"stages done so far are in {run.folder}; continue with the same command and run_dir={run.folder}"
        begin = time.perf_counter()
        outcome = function(stage_settings, stage)
        book.add(name, stage_settings, time.perf_counter() - begin, outcome.record)
        run.note(f"      {name} took {book.minutes(name):.1f} minutes")
    record = {
        "name": settings.name,
        "minutes": round(sum(book.minutes(name) for name in STAGES), 2),
        "stage_minutes": {name: round(book.minutes(name), 2) for name in STAGES},
        "checkpoint": settings.train.out,
        "stages": {name: book.record(name) for name in STAGES},
    }
    report = (_minutes_table(book), _results_table(book), f"checkpoint: {settings.train.out}")
    return Outcome(record=record, report=report)


def _compare(settings: Settings, run: Run) -> Outcome:
    """Record once, then run the cells of the comparison that are missing."""
    comparison = low_label.Comparison(settings.low_label, settings.data, settings.workers, run)
    comparison.check()
    stage = replace(run, folder=run.folder / "collect")
    stage.folder.mkdir(parents=True, exist_ok=True)
    collect.run(replace(settings.collect_push, env=settings.low_label.env), stage)
    return comparison.run()


def _check_manifest(settings: evaluate.Settings) -> None:
    """Find out now, and not after an hour, that an evaluation lacks its manifest or asks for too many tasks.

    Raises:
        ConfigError: Fewer tasks than episodes.
        DataError: The manifest is missing or corrupt.
    """
    manifest = find_manifest(settings.manifest, resolve_env_id(settings.env))
    if not 1 <= settings.episodes <= len(manifest):
        raise ConfigError(
            f"episodes of {settings.env} must be in [1, {len(manifest)}], the size of its manifest, "
            f"got {settings.episodes}"
        )


def _minutes_table(book: StageBook) -> Table:
    table = Table(title="minutes per stage")
    table.add_column("stage")
    table.add_column("minutes", justify="right")
    for name in STAGES:
        table.add_row(name, f"{book.minutes(name):.1f}")
    table.add_row("total", f"{sum(book.minutes(name) for name in STAGES):.1f}", style="bold")
    return table


def _results_table(book: StageBook) -> Table:
    table = Table(title="held at the end, 95 % Wilson interval")
    for heading in ("task", "model", "random", "no-op", "oracle", "replan p50"):
        table.add_column(heading, justify="left" if heading == "task" else "right")
    for task in ("reach", "push"):
        record = book.record(f"evaluate_{task}")
        rows = [record, *(record["baselines"].get(name) for name in ("random", "noop", "oracle"))]
        latency = record["replan_s"]["p50"]
        table.add_row(task, *map(_rate, rows), "-" if latency is None else f"{latency:.2f} s")
    return table


def _rate(row: dict[str, Any] | None) -> str:
    if row is None:
        return "-"
    low, high = row["success_interval"]
    return f"{row['success_rate']:.0%} [{low:.0%}, {high:.0%}]"
