"""`worldmodel manifest`: freeze tasks and store beside them what depends on no checkpoint: two floors and a ceiling.

Separate from `manifest.py`, which is only a record: this module runs agents, through the same code path as the model.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from worldmodel.control.agents import Agent, NoopAgent, OracleAgent, RandomAgent
from worldmodel.envs import ENV_IDS, make_env, resolve_env_id
from worldmodel.errors import ConfigError
from worldmodel.evaluation.episodes import AgentFactory
from worldmodel.evaluation.manifest import Baseline, Manifest, build_manifest
from worldmodel.evaluation.runlog import RunLog, describe
from worldmodel.evaluation.runs import Schedule, identity_of, run_manifest
from worldmodel.evaluation.stats import success_interval, success_rate
from worldmodel.planners.base import Planner
from worldmodel.planners.cem import CEM


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
        SimulationError: A task starts solved or cannot be set up.
    """
    env_id = resolve_env_id(config.env)
    out = manifest_path(config, env_id)
    schedule = Schedule(episodes=config.episodes, workers=config.workers, batch=config.batch)
    env = make_env(env_id, render=False)
    try:
        manifest = build_manifest(
            env, episodes=config.episodes, seed=config.seed, split=config.split, looks=config.looks
        )
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
    manifest.save(out)
    return manifest


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
    """The stored baselines for a terminal."""
    table = Table(
        title=f"{manifest.env_id}, {len(manifest)} tasks, split {manifest.split}",
        caption=f"95 % Wilson intervals; manifest {manifest.hash[:12]}",
    )
    for heading in ("agent", "held at end", "interval", "ever"):
        table.add_column(heading)
    for name, baseline in manifest.baselines.items():
        held = [row.held for row in baseline.rows]
        low, high = success_interval(held)
        ever = success_rate([row.ever for row in baseline.rows])
        interval = f"{100 * low:.0f}-{100 * high:.0f} %"
        table.add_row(name, f"{100 * success_rate(held):.0f} %", interval, f"{100 * ever:.0f} %")
    return table
