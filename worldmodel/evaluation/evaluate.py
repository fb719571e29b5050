"""`worldmodel evaluate`: a checkpoint on a frozen manifest, beside the floors and the ceiling stored with it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import astuple, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from worldmodel.control.agents import MPCAgent
from worldmodel.control.collect import spec_of
from worldmodel.control.objectives import Objective, default_objective
from worldmodel.control.policy_agent import PolicyAgent
from worldmodel.data.distractor import DistractorConfig
from worldmodel.envs import make_env, resolve_env_id
from worldmodel.errors import CheckpointError, ConfigError
from worldmodel.evaluation.delay import kept_delay
from worldmodel.evaluation.flops import measure_flops
from worldmodel.evaluation.manifest import find_manifest
from worldmodel.evaluation.result import EvalResult, summarise
from worldmodel.evaluation.runlog import RunLog, describe
from worldmodel.evaluation.runs import Schedule, identity_of, run_manifest
from worldmodel.evaluation.stored_baselines import load_model_baselines
from worldmodel.models.checkpoint import EnvSpec, load_checkpoint, read_card, resolve_checkpoint
from worldmodel.models.policy_checkpoint import is_policy, load_policy
from worldmodel.models.runtime import RuntimeConfig, equipped
from worldmodel.models.world_model import WorldModel
from worldmodel.planners.base import Planner
from worldmodel.planners.settling import SettlingCEM

MEASURED = "measured"


@dataclass(kw_only=True)
class EvaluateConfig:
    """What to evaluate.

    Attributes:
        env: Environment, short name or id.
        episodes: The first so many tasks of the manifest.
        checkpoint: Folder of a checkpoint (world model or policy), the name of a shipped one, or "shipped". A policy
            does not plan: planner, objective, replan_every and runtime are of no consequence to it.
        workers: Processes, one thread each; outcomes do not depend on it.
        planner: Search in latent space; None means `SettlingCEM` over actions held for a model step.
        objective: What the search minimises; None means the model's default (`default_objective`).
        replan_every: Model steps carried out between plans.
        batch: Episodes a process runs in lockstep; outcomes do not depend on it.
        manifest: "shipped" for the environment's own test tasks, "validation" for its validation tasks, or a path.
        looks: "trained", or "new_colours" for the same tasks in colours drawn for each; None leaves them as they are.
        distractor: Drawn over everything the agent sees, the goal picture included; the tasks are the same.
        run_dir: Folder that records finished episodes and continues from them; None keeps nothing.
        seed: Seed of the planners' streams, mixed with every task's own.
        delay: Control steps that pass before a plan takes over, while the robot goes on with the last one; "measured"
            takes the time of a replan on this machine (95th percentile of ten, one thread), rounded up.
        time_budget_s: Seconds from an observation to its plan; None for no limit. Episodes then run one by one, and
            outcomes depend on the machine.
        warm_start: Start every search from the rest of the last plan; false is for comparisons.
        runtime: Device, precision and compilation of the model. Outcomes are bit-equal from run to run with the
            defaults only.
    """

    env: str = "push"
    episodes: int = 100
    checkpoint: str = "shipped"
    workers: int = 1
    planner: Planner | None = None
    objective: Objective | None = None
    replan_every: int = 1
    batch: int = 10
    manifest: str = "shipped"
    looks: str | None = None
    distractor: DistractorConfig = field(default_factory=DistractorConfig)
    run_dir: str | None = None
    seed: int = 0
    delay: str = "0"
    time_budget_s: float | None = None
    warm_start: bool = True
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def __post_init__(self) -> None:
        if self.delay != MEASURED and not self.delay.isdecimal():
            raise ConfigError(f"delay must be {MEASURED!r} or a number of control steps >= 0, got {self.delay!r}")
        if self.time_budget_s is not None and not self.time_budget_s > 0:
            raise ConfigError(f"time_budget_s must be > 0 seconds or null, got {self.time_budget_s}")


@dataclass(frozen=True, kw_only=True)
class ModelAgents:
    """Builds planning agents around one checkpoint; the weights are loaded once per process.

    Attributes:
        checkpoint: Folder.
        checkpoint_hash: Of weights and settings; a folder that was overwritten meanwhile is refused.
        planner: Search in latent space.
        objective: What the search minimises.
        replan_every: Model steps carried out between plans.
        image_size: Side of the frames the model takes, pixels.
        delay: Control steps before a plan takes over.
        time_budget_s: Seconds from an observation to its plan, or None.
        warm_start: Start every search from the rest of the last plan.
        needs_pixels: Always True.
        runtime: How the model computes.
    """

    checkpoint: Path
    checkpoint_hash: str
    planner: Planner
    objective: Objective
    replan_every: int
    image_size: int
    delay: int = 0
    time_budget_s: float | None = None
    warm_start: bool = True
    needs_pixels: bool = True
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def identity(self) -> dict[str, Any]:
        """Settings and the hash of the weights; where the folder lies does not matter, nor the default runtime."""
        hidden = {"checkpoint", "runtime"} if self.runtime == RuntimeConfig() else {"checkpoint"}
        return {key: value for key, value in describe(self).items() if key not in hidden}

    def world_model(self) -> WorldModel:
        """The model, loaded once per process.

        Raises:
            CheckpointError: The folder no longer holds the checkpoint that was asked for.
            ConfigError: The device of `runtime` is not there.
        """
        return _load_once(self.checkpoint, self.checkpoint_hash, *astuple(self.runtime))

    def build(self) -> MPCAgent:
        """Make an agent in this process.

        Raises:
            CheckpointError: As `world_model`.
            ConfigError: As `world_model`.
        """
        return MPCAgent(
            self.world_model(),
            self.planner,
            self.objective,
            replan_every=self.replan_every,
            delay=self.delay,
            time_budget_s=self.time_budget_s,
            warm_start=self.warm_start,
        )


@dataclass(frozen=True, kw_only=True)
class PolicyAgents:
    """Builds agents that follow a policy checkpoint; `policy_agents` makes one.

    Attributes:
        checkpoint: Folder.
        checkpoint_hash: Of weights and settings; a folder that was overwritten meanwhile is refused.
        image_size: Side of the frames the policy takes, pixels.
        needs_pixels: Always True.
    """

    checkpoint: Path
    checkpoint_hash: str
    image_size: int
    needs_pixels: bool = True

    def identity(self) -> dict[str, Any]:
        """The hash of the weights; where the folder lies does not matter."""
        return {key: value for key, value in describe(self).items() if key != "checkpoint"}

    def build(self) -> PolicyAgent:
        """Make an agent in this process.

        Raises:
            CheckpointError: The folder no longer holds the checkpoint that was asked for.
        """
        _check_hash(self.checkpoint, self.checkpoint_hash)
        return PolicyAgent(load_policy(self.checkpoint))


def evaluate(config: EvaluateConfig, progress: bool = True) -> EvalResult:
    """Evaluate a checkpoint on the first tasks of a frozen manifest.

    Interrupting is safe when `run_dir` is given: the same call continues after the last finished block.

    Args:
        config: What to evaluate.
        progress: Show a bar on stderr when that is a terminal.

    Raises:
        ConfigError: A value is out of range, unknown, or differs from what `run_dir` was started with.
        CheckpointError: The checkpoint is missing, corrupt, or not made for the environment.
        DataError: The manifest is missing or corrupt.
    """
    batch = config.batch if config.time_budget_s is None else 1  # a budget is for one problem
    schedule = Schedule(episodes=config.episodes, workers=config.workers, batch=batch, seed=config.seed)
    env_id = resolve_env_id(config.env)
    manifest = find_manifest(config.manifest, env_id)
    if config.looks is not None:
        manifest = manifest.with_looks(config.looks)
    folder = resolve_checkpoint(config.checkpoint, env_id)
    factory: ModelAgents | PolicyAgents
    if is_policy(folder):
        factory = policy_agents(folder, env_id)
    else:
        factory = model_agents(config, env_id)
        if config.delay == MEASURED:
            factory = replace(factory, delay=kept_delay(factory, manifest, config.run_dir))
        factory.build()  # a delay that no plan is long enough for is refused here
    flops, extra = None, None
    if isinstance(factory, ModelAgents):
        extra = load_model_baselines(factory.checkpoint, factory.checkpoint_hash, manifest)
        flops = measure_flops(factory.world_model(), factory.objective, factory.planner.horizon)
    log = None
    if config.run_dir is not None:
        log = RunLog(Path(config.run_dir), identity_of(manifest, factory, schedule, config.distractor))
    runs = run_manifest(manifest, factory, schedule, log=log, distractor=config.distractor, progress=progress)
    agent = {"checkpoint": str(factory.checkpoint), "seed": config.seed, **factory.identity()}
    if config.distractor.facts is not None:
        agent["distractor"] = config.distractor.facts
    result = summarise(manifest, agent, runs, flops=flops, extra=extra)
    if log is not None:
        log.finish(result.to_json(), runs)
    return result


def model_agents(config: EvaluateConfig, env_id: str) -> ModelAgents:
    """Resolve and check the checkpoint of a config against an environment.

    Raises:
        CheckpointError: Missing, corrupt, or not made for the environment.
        ConfigError: `replan_every` is out of range, or the device is not there.
    """
    folder = resolve_checkpoint(config.checkpoint, env_id).resolve()
    identity = checkpoint_hash(folder)
    world_model = _load_once(folder, identity, *astuple(config.runtime))
    planner = SettlingCEM(action_repeat=world_model.spec.action_block) if config.planner is None else config.planner
    if not 1 <= config.replan_every <= planner.horizon:
        raise ConfigError(f"replan_every must be in [1, planner.horizon={planner.horizon}], got {config.replan_every}")
    image_size = world_model.spec.image_size
    load_checkpoint(folder, env_spec=_env_spec(env_id, image_size))
    return ModelAgents(
        checkpoint=folder,
        checkpoint_hash=identity,
        planner=planner,
        objective=default_objective(world_model) if config.objective is None else config.objective,
        replan_every=config.replan_every,
        image_size=image_size,
        delay=0 if config.delay == MEASURED else int(config.delay),
        time_budget_s=config.time_budget_s,
        warm_start=config.warm_start,
        runtime=config.runtime,
    )


def policy_agents(checkpoint: str | Path, env_id: str) -> PolicyAgents:
    """Resolve and check a policy checkpoint against an environment.

    Args:
        checkpoint: Its folder.
        env_id: Environment it is to serve.

    Raises:
        CheckpointError: Missing, corrupt, no policy, or not made for the environment.
    """
    folder = resolve_checkpoint(checkpoint).resolve()
    image_size = load_policy(folder).spec.image_size
    load_policy(folder, env_spec=_env_spec(env_id, image_size))
    return PolicyAgents(checkpoint=folder, checkpoint_hash=checkpoint_hash(folder), image_size=image_size)


def checkpoint_hash(folder: Path) -> str:
    """Sha256 (hex) of everything in a checkpoint that shapes its outputs: settings and weights, not the training notes.

    Raises:
        CheckpointError: The card is unreadable.
    """
    card = {key: value for key, value in read_card(folder).items() if key != "training"}
    return hashlib.sha256(json.dumps(card, sort_keys=True).encode()).hexdigest()


@lru_cache(maxsize=2)
def _load_once(folder: Path, expected_hash: str, device: str | None, precision: str, compiled: bool) -> WorldModel:
    """A checkpoint that computes as `RuntimeConfig` says, kept for the blocks that follow in this process."""
    _check_hash(folder, expected_hash)
    runtime = RuntimeConfig(device=device, precision=precision, compiled=compiled)
    return equipped(load_checkpoint(folder), runtime)


def _check_hash(folder: Path, expected_hash: str) -> None:
    found = checkpoint_hash(folder)
    if found != expected_hash:
        raise CheckpointError(f"{folder} changed during the run: hash {found[:12]}, started with {expected_hash[:12]}")


def _env_spec(env_id: str, image_size: int) -> EnvSpec:
    """What a checkpoint has to fit to serve an environment."""
    env = make_env(env_id, image_size=image_size, render=False)
    try:
        return spec_of(env, env_id, image_size)
    finally:
        env.close()
