"""One agent on one manifest: schedule, resume, progress. Model, floors and ceiling all come through `run_manifest`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from worldmodel.data.distractor import NO_DISTRACTOR, DistractorConfig
from worldmodel.errors import ConfigError
from worldmodel.evaluation.episodes import AgentFactory, EpisodeRun, agent_seed, make_blocks, run_episodes
from worldmodel.evaluation.manifest import Manifest
from worldmodel.evaluation.runlog import RunLog
from worldmodel.evaluation.stats import success_interval, success_rate


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How episodes are run; only `seed` can change an outcome.

    Attributes:
        episodes: The first so many tasks of the manifest.
        workers: Processes.
        batch: Episodes a process runs in lockstep.
        seed: Seed of the agents' streams, mixed with every task's own.
    """

    episodes: int
    workers: int = 1
    batch: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("episodes", "workers", "batch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be >= 1, got {getattr(self, name)}")
        if self.seed < 0:
            raise ConfigError(f"seed must be >= 0, got {self.seed}")


def identity_of(
    manifest: Manifest, factory: AgentFactory, schedule: Schedule, distractor: DistractorConfig = NO_DISTRACTOR
) -> dict[str, Any]:
    """Everything an outcome depends on, JSON-ready."""
    return {
        "env": manifest.env_id,
        "manifest_hash": manifest.hash,
        "seed": schedule.seed,
        "agent": factory.identity(),
        **({} if distractor.facts is None else {"distractor": distractor.facts}),
    }


def run_manifest(
    manifest: Manifest,
    factory: AgentFactory,
    schedule: Schedule,
    *,
    log: RunLog | None = None,
    only: Sequence[int] | None = None,
    distractor: DistractorConfig = NO_DISTRACTOR,
    label: str = "model",
    progress: bool = True,
) -> list[EpisodeRun]:
    """Run an agent on tasks of a manifest, skipping what the log holds already.

    Args:
        manifest: The tasks.
        factory: Builds the agent in each process.
        schedule: How many, how parallel, which seed.
        log: Record to continue and to append every finished block to; None keeps everything in memory.
        only: Indices of the tasks to run; None means the first `schedule.episodes`.
        distractor: Drawn over what the agent sees.
        label: Name in the progress bar.
        progress: Show a bar on stderr when that is a terminal.

    Returns:
        One run per task, in the order of the manifest or of `only`.

    Raises:
        ConfigError: The manifest holds fewer tasks than asked for.
    """
    wanted = range(schedule.episodes) if only is None else only
    if max(wanted, default=-1) >= len(manifest):
        held = f"the manifest of {manifest.env_id} holds {len(manifest)}"
        raise ConfigError(f"episodes must be in [1, {len(manifest)}], got {max(wanted) + 1}: {held}")
    finished = {} if log is None else {i: run for i, run in log.finished.items() if i in wanted}
    tasks = [(i, manifest.tasks[i], agent_seed(manifest.seeds[i], schedule.seed)) for i in wanted if i not in finished]
    blocks = make_blocks(
        manifest.env_id,
        factory.image_size,
        tasks,
        batch=schedule.batch,
        workers=schedule.workers,
        distractor=distractor,
    )
    with _Bar(label, len(wanted), progress) as bar:
        bar.show(list(finished.values()))
        for runs in run_episodes(blocks, factory, workers=schedule.workers):
            if log is not None:
                log.append(runs)
            finished |= {run.result.episode: run for run in runs}
            bar.show(list(finished.values()))
    return [finished[i] for i in wanted]


class _Bar:
    """Progress with the success so far and its interval; silent when stderr is not a terminal."""

    def __init__(self, label: str, total: int, wanted: bool) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("episodes  {task.fields[so_far]}"),
            TextColumn("ETA"),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=Console(stderr=True), disable=not (wanted and sys.stderr.isatty()))
        self._task = self._bar.add_task(label, total=total, so_far="")

    def __enter__(self) -> _Bar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, runs: Sequence[EpisodeRun]) -> None:
        self._bar.update(self._task, completed=len(runs), so_far=so_far(runs))


def so_far(runs: Sequence[EpisodeRun]) -> str:
    """One-line summary of the success held at the end, for a progress bar."""
    if not runs:
        return ""
    held = [run.result.held for run in runs]
    low, high = success_interval(held)
    return f"held {100 * success_rate(held):.0f} % [{100 * low:.0f}, {100 * high:.0f}]"
