"""`worldmodel manifest`: freeze tasks and store beside them what depends on no checkpoint: two floors and a ceiling.

Separate from `manifest.py`, which is only a record: this module runs agents, through the same code path as the model.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from worldmodel.control.agents import Agent, NoopAgent, OracleAgent, RandomAgent
from worldmodel.data.episodes import EpisodeDataset
from worldmodel.envs import ENV_IDS, make_env, resolve_env_id
from worldmodel.errors import ConfigError, SimulationError
from worldmodel.evaluation.episodes import AgentFactory
from worldmodel.evaluation.manifest import Baseline, Manifest, build_manifest
from worldmodel.evaluation.manifest_checks import strata_of, training_overlap
from worldmodel.evaluation.runlog import RunLog, describe
from worldmodel.evaluation.runs import Schedule, identity_of, run_manifest
from worldmodel.evaluation.stats import success_interval, success_rate
from worldmodel.planners.base import Planner
from worldmodel.planners.cem import CEM
from worldmodel.planners.wider import enlarged

_ORACLE_RETRY = 8


@dataclass(kw_only=True)
class ManifestConfig:
    """What to freeze and what to run on it.

    Attributes:
        env: Environment, short name or id.
        episodes: Number of tasks.
        workers: Processes; outcomes do not depend on it.
        batch: Episodes a process runs in lockstep; outcomes do not depend on it.
        seed: Seed of the tasks.
        split: "test", "validation" or "demo"; streams of different splits never overlap.
        looks: "trained", or "new_colours" for colours drawn per task.
        out: Manifest file to write (.json or .json.gz); None means manifests/ENV-SPLIT.json.gz in `run_dir`.
        run_dir: Folder that records finished episodes of the baselines and continues from them.
        oracle: Planner of the oracle, the stated budget of the ceiling.
        oracle_action_block: Environment steps per model step of the oracle's plans.
        data: Episode file of models that will be judged on the tasks, which must not overlap it; None skips that check.
        min_distance_m: Smallest distance a task must keep from every recorded episode, metres.
        max_unreached: Tasks no oracle reaches that are let in; more are refused.
    """

    env: str = "push"
    episodes: int = 100
    workers: int = 1
    batch: int = 10
    seed: int = 0
    split: str = "test"
    looks: str = "trained"
    out: str | None = None
    run_dir: str = "outputs/manifest"
    oracle: Planner = field(
        default_factory=lambda: CEM(num_samples=16, num_elites=4, num_iterations=2, horizon=4, action_repeat=3)
    )
    oracle_action_block: int = 3
    data: str | None = None
    min_distance_m: float = 0.005
    max_unreached: int = 0


@dataclass(frozen=True, kw_only=True)
class RandomAgents:
    """Builds agents that draw every action uniformly."""

    env: str
    image_size: int = 64
    needs_pixels: bool = False

    def identity(self) -> dict[str, Any]:
        """Nothing to choose."""
        return {**describe(self), "action": "uniform"}

    def build(self) -> Agent:
        """Make an agent in this process."""
        return RandomAgent(self.env)


@dataclass(frozen=True, kw_only=True)
class NoopAgents:
    """Builds agents that never move."""

    env: str
    image_size: int = 64
    needs_pixels: bool = False

    def identity(self) -> dict[str, Any]:
        """Nothing to choose."""
        return dict(describe(self))

    def build(self) -> Agent:
        """Make an agent in this process."""
        return NoopAgent(self.env)


@dataclass(frozen=True, kw_only=True)
class OracleAgents:
    """Builds agents that plan on the simulator itself, with the true state and the true cost.

    Attributes:
        env: Environment.
        planner: The stated budget.
        action_block: Environment steps per model step.
    """

    env: str
    planner: Planner
    action_block: int
    image_size: int = 64
    needs_pixels: bool = False

    def identity(self) -> dict[str, Any]:
        """The budget."""
        return dict(describe(self))

    def build(self) -> Agent:
        """Make an agent in this process."""
        return OracleAgent(self.env, self.planner, action_block=self.action_block)


def make_manifest(config: ManifestConfig, progress: bool = True) -> Manifest:
    """Draw tasks, run the baselines on them, and write the manifest.

    Interrupting is safe: the same call continues after the last finished block.

    Args:
        config: What to freeze.
        progress: Show bars on stderr when that is a terminal.

    Raises:
        ConfigError: A value is out of range, or `run_dir` belongs to other settings.
        DataError: `data` is unreadable or of something else.
        SimulationError: A task starts solved, cannot be set up, overlaps `data`, or cannot be reached.
    """
    env_id = resolve_env_id(config.env)
    out = manifest_path(config, env_id)
    schedule = Schedule(episodes=config.episodes, workers=config.workers, batch=config.batch)
    dataset = None if config.data is None else EpisodeDataset.open(config.data)
    env = make_env(env_id, render=False)
    try:
        manifest = build_manifest(
            env, episodes=config.episodes, seed=config.seed, split=config.split, looks=config.looks
        )
        if dataset is not None:
            overlap = training_overlap(manifest, env, dataset, min_distance_m=config.min_distance_m)
            manifest = manifest.with_checks({"overlap": overlap})
    finally:
        env.close()
    factories: dict[str, AgentFactory] = {
        "random": RandomAgents(env=env_id),
        "noop": NoopAgents(env=env_id),
        "oracle": OracleAgents(env=env_id, planner=config.oracle, action_block=config.oracle_action_block),
    }
    baselines = {}
    for name, factory in factories.items():
        log = RunLog(
            Path(config.run_dir) / f"{out.name.split('.')[0]}-{name}", identity_of(manifest, factory, schedule)
        )
        runs = run_manifest(manifest, factory, schedule, log=log, label=name, progress=progress)
        baselines[name] = Baseline(rows=tuple(run.result for run in runs), budget=factory.identity())
    manifest = manifest.with_baselines(baselines)
    manifest = manifest.with_checks({"reachable": _check_reachable(config, manifest, schedule, progress)})
    manifest.save(out)
    return manifest


def _check_reachable(config: ManifestConfig, manifest: Manifest, schedule: Schedule, progress: bool) -> dict[str, Any]:
    """Refuse tasks that no oracle ever reaches: not the stored one, nor one with `_ORACLE_RETRY` times its budget.

    Raises:
        SimulationError: There are more of them than allowed.
    """
    left = [row.episode for row in manifest.baselines["oracle"].rows if not row.ever]
    record: dict[str, Any] = {"by": "oracle", "first_attempt": len(manifest) - len(left)}
    if left:
        stronger = enlarged(config.oracle, _ORACLE_RETRY)
        factory = OracleAgents(env=manifest.env_id, planner=stronger, action_block=config.oracle_action_block)
        runs = run_manifest(manifest, factory, schedule, only=left, label="oracle again", progress=progress)
        left = [run.result.episode for run in runs if not run.result.ever]
    if len(left) > config.max_unreached:
        listed = ", ".join(map(str, left[:10])) + (" and more" if len(left) > 10 else "")
        raise SimulationError(
            f"tasks {listed} of {manifest.env_id} cannot be reached within {manifest.max_steps} steps by an oracle "
            f"with {_ORACLE_RETRY} times the budget; sample_task must return reachable goals (or raise oracle.*, or "
            "max_unreached)"
        )
    return {**record, "second_attempt": len(manifest) - record["first_attempt"] - len(left), "unreached": left}


def manifest_path(config: ManifestConfig, env_id: str) -> Path:
    """Where `make_manifest` writes.

    Raises:
        ConfigError: `out` is not the name of a JSON file.
    """
    if config.out is None:
        names = {full: name for name, full in ENV_IDS.items()}
        name = names.get(env_id, env_id.replace("/", "-"))
        return Path(config.run_dir) / "manifests" / f"{name}-{config.split}.json.gz"
    if not config.out.endswith((".json", ".json.gz")):
        raise ConfigError(f"out must end in .json or .json.gz, got {config.out}")
    return Path(config.out)


def baseline_table(manifest: Manifest) -> Table:
    """The stored baselines for a terminal, by difficulty."""
    strata = strata_of(manifest.checks["start_distance_m"])
    table = Table(
        title=f"{manifest.env_id}, {len(manifest)} tasks, split {manifest.split}",
        caption=f"held at the end; 95 % Wilson intervals; manifest {manifest.hash[:12]}",
    )
    headings = [f"{part.name} ({100 * part.low_m:.0f}-{100 * part.high_m:.0f} cm)" for part in strata]
    for heading in ("agent", "held at end", "interval", "ever", *headings):
        table.add_column(heading)
    for name, baseline in manifest.baselines.items():
        held = [row.held for row in baseline.rows]
        low, high = success_interval(held)
        ever = success_rate([row.ever for row in baseline.rows])
        interval = f"{100 * low:.0f}-{100 * high:.0f} %"
        parts = [f"{100 * success_rate([held[index] for index in part.tasks]):.0f} %" for part in strata]
        table.add_row(name, f"{100 * success_rate(held):.0f} %", interval, f"{100 * ever:.0f} %", *parts)
    return table


def check_lines(manifest: Manifest) -> list[str]:
    """What was verified about the tasks, one sentence each."""
    reachable = manifest.checks["reachable"]
    again = reachable["second_attempt"]
    lines = [
        f"{len(manifest)} tasks start unsolved; the oracle reaches {reachable['first_attempt']}"
        + (f", with {_ORACLE_RETRY} times the budget {again} more" if again else "")
        + (f"; never reached: {', '.join(map(str, reachable['unreached']))}" if reachable["unreached"] else "")
    ]
    overlap = manifest.checks.get("overlap")
    if overlap is None:
        return [*lines, "overlap with training data: not checked (data=FILE checks it)"]
    nearest = overlap["start_and_goal_m"]
    return [
        *lines,
        f"no overlap with {overlap['episodes']} recorded episodes: start and goal state are both within "
        f"{100 * nearest['min']:.1f} cm of one episode at the closest task, {100 * nearest['median']:.1f} cm at the "
        "median one",
    ]
