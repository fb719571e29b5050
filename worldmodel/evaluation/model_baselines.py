"""`worldmodel baselines`: floors and a ceiling that depend on a checkpoint, run on a manifest and stored beside it.

Two policies learn from the data the model learned from, on its own frozen encoder: behaviour cloning with a head of
its own, and inverse dynamics on the model's planning latent, which is asked to reach the goal as if it were the next
frame. The oracle plans with the true dynamics and the model's cost: what a perfect predictor would achieve.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from worldmodel.control.agents import Agent, OracleAgent
from worldmodel.data.episodes import EpisodeDataset
from worldmodel.envs import resolve_env_id
from worldmodel.errors import ConfigError
from worldmodel.evaluation.episodes import AgentFactory
from worldmodel.evaluation.evaluate import EvaluateConfig, ModelAgents, model_agents, policy_agents
from worldmodel.evaluation.manifest import Baseline, Manifest, find_manifest
from worldmodel.evaluation.runlog import RunLog, describe
from worldmodel.evaluation.runs import Schedule, identity_of, run_manifest
from worldmodel.evaluation.stored_baselines import MODEL_BASELINES, check_storable, save_model_baselines
from worldmodel.learning.cloning import CloningConfig, CloningMaterial, clone
from worldmodel.learning.features import FrameStore, Progress, cached_features
from worldmodel.models.checkpoint import read_card
from worldmodel.models.policy_checkpoint import save_policy
from worldmodel.planners.base import Planner
from worldmodel.planners.cem import CEM

_TRAINED = ("bc", "idm")


@dataclass(kw_only=True)
class ModelBaselinesConfig:
    """Which baselines to run, on what.

    Attributes:
        env: Environment, short name or id.
        checkpoint: World model the baselines belong to: "shipped" or a folder, to which the outcomes are added.
        data: Episode file the model was trained on; the policies learn from it. Not needed for the oracle alone.
        manifest: "shipped", "validation", or the path of a manifest.
        episodes: First tasks the policies run on; None means all.
        oracle_episodes: First tasks the oracle runs on, which is slow: it draws every step it scores.
        names: Which of bc, idm, oracle_latent.
        workers: Processes, one thread each; outcomes do not depend on it.
        batch: Episodes a process runs in lockstep; outcomes do not depend on it.
        seed: Seed of the oracle's streams, mixed with every task's own.
        bc: Recipe of behaviour cloning; goals are any later frames of an episode.
        idm: Recipe of inverse dynamics; goals are one model step ahead.
        oracle: Planner of the oracle, its stated budget.
        oracle_replan_every: Model steps it carries out between plans: the dynamics it plans with are exact.
        validation_fraction: Share of the episodes held out from the policies' training, those `worldmodel train` holds
            out.
        cache_dir: Where features of the frozen encoder are kept.
        run_dir: Folder that records trainings and finished episodes and continues from them.
    """

    env: str = "push"
    checkpoint: str = "shipped"
    data: str | None = None
    manifest: str = "shipped"
    episodes: int | None = None
    oracle_episodes: int = 100
    names: tuple[str, ...] = MODEL_BASELINES
    workers: int = 1
    batch: int = 10
    seed: int = 0
    bc: CloningConfig = field(default_factory=CloningConfig)
    idm: CloningConfig = field(default_factory=lambda: CloningConfig(goals="geometric", mean_goal_steps=1.0))
    oracle: Planner = field(
        default_factory=lambda: CEM(num_samples=64, num_elites=8, num_iterations=3, horizon=5, action_repeat=3)
    )
    oracle_replan_every: int = 2
    validation_fraction: float = 0.05
    cache_dir: str = "outputs/features"
    run_dir: str = "outputs/baselines"

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.names) - set(MODEL_BASELINES)):
            raise ConfigError(f"names must be among {', '.join(MODEL_BASELINES)}, got {', '.join(unknown)}")
        if not self.names:
            raise ConfigError(f"names is empty: choose among {', '.join(MODEL_BASELINES)}")
        if self.data is None and (trained := [name for name in self.names if name in _TRAINED]):
            raise ConfigError(f"{' and '.join(trained)} learn from episodes: give data=FILE, or names=[oracle_latent]")


@dataclass(frozen=True, kw_only=True)
class LatentOracleAgents:
    """Builds agents that plan with the true dynamics and a model's cost.

    Attributes:
        env: Environment.
        model: Brings checkpoint and objective; its planner does not matter.
        planner: The stated budget.
        replan_every: Model steps carried out between plans.
        needs_pixels: Always True.
    """

    env: str
    model: ModelAgents
    planner: Planner
    replan_every: int = 1
    needs_pixels: bool = True

    @property
    def image_size(self) -> int:
        """Side of the frames the model takes, pixels."""
        return self.model.image_size

    def identity(self) -> dict[str, Any]:
        """Budget, objective and weights."""
        return {
            "type": type(self).__name__,
            "env": self.env,
            "planner": describe(self.planner),
            "replan_every": self.replan_every,
            "objective": describe(self.model.objective),
            "checkpoint_hash": self.model.checkpoint_hash,
        }

    def build(self) -> Agent:
        """Make an agent in this process.

        Raises:
            CheckpointError: The folder no longer holds the checkpoint that was asked for.
        """
        return OracleAgent(
            self.env,
            self.planner,
            replan_every=self.replan_every,
            world_model=self.model.world_model(),
            objective=self.model.objective,
        )


def make_model_baselines(
    config: ModelBaselinesConfig, *, progress: bool = True, encoding: Progress | None = None
) -> tuple[Manifest, dict[str, Baseline], Path]:
    """Train the policies, run everything on the manifest, and store the outcomes beside the checkpoint.

    Interrupting is safe: the same call continues.

    Args:
        config: What to run.
        progress: Show bars on stderr when that is a terminal.
        encoding: Told how far the encoding of the data is.

    Returns:
        The manifest, the outcomes by name, and the file they were stored in.

    Raises:
        ConfigError: A value is out of range, the data is not the model's, or its checkpoint's folder cannot be written.
        CheckpointError: The checkpoint is missing, corrupt, or not made for the environment.
        DataError: Manifest or data are missing or corrupt.
    """
    env_id = resolve_env_id(config.env)
    manifest = find_manifest(config.manifest, env_id)
    model = model_agents(EvaluateConfig(env=config.env, checkpoint=config.checkpoint), env_id)
    check_storable(model.checkpoint, manifest)
    trained = [name for name in config.names if name in _TRAINED]
    material = None if not trained else _material(config, model, encoding)
    found = {}
    for name in config.names:
        count = len(manifest) if config.episodes is None else config.episodes
        budget: dict[str, Any]
        factory: AgentFactory
        if name == "oracle_latent":
            count = min(config.oracle_episodes, len(manifest))
            factory = LatentOracleAgents(
                env=env_id, model=model, planner=config.oracle, replan_every=config.oracle_replan_every
            )
            budget = factory.identity()
        else:
            assert material is not None
            folder, budget = _train(name, config, material, progress)
            factory = policy_agents(folder, env_id)
        schedule = Schedule(episodes=count, workers=config.workers, batch=config.batch, seed=config.seed)
        log = RunLog(Path(config.run_dir) / name / manifest.hash[:12], identity_of(manifest, factory, schedule))
        runs = run_manifest(manifest, factory, schedule, log=log, label=name, progress=progress)
        found[name] = Baseline(rows=tuple(run.result for run in runs), budget=budget)
        path = save_model_baselines(model.checkpoint, model.checkpoint_hash, manifest, found)
    return manifest, found, path


def _material(config: ModelBaselinesConfig, model: ModelAgents, encoding: Progress | None) -> CloningMaterial:
    """Features of the model's own data under its own encoder.

    Raises:
        ConfigError: The data is not what the model was trained on.
    """
    assert config.data is not None
    dataset = EpisodeDataset.open(config.data)
    theirs = read_card(model.checkpoint).get("training", {}).get("data", {}).get("hash")
    if theirs is not None and theirs != dataset.content_hash:
        raise ConfigError(
            f"{config.data} (hash {dataset.content_hash[:12]}) is not what {config.checkpoint} was trained on "
            f"({theirs[:12]}): baselines must learn from the model's data"
        )
    world_model = model.world_model()
    features = cached_features(dataset, world_model.encoder, config.cache_dir, progress=encoding)
    train_ids, val_ids = dataset.split(config.validation_fraction, 0)
    store = FrameStore.from_dataset(dataset, features)
    return CloningMaterial(
        dataset=dataset,
        encoder=world_model.encoder,
        store=store,
        train_ids=train_ids,
        val_ids=val_ids,
        head=world_model.head,
    )


def _train(
    name: str, config: ModelBaselinesConfig, material: CloningMaterial, progress: bool
) -> tuple[Path, dict[str, Any]]:
    """Train one policy, or finish its training; its checkpoint and what it was allowed."""
    recipe: CloningConfig = getattr(config, name)
    folder = Path(config.run_dir) / name
    if name == "bc":
        material = replace(material, head=None)
    policy, report = clone(recipe, material, run_dir=folder, progress=progress)
    budget = {
        "recipe": describe(recipe),
        "data_hash": material.dataset.content_hash,
        "episodes": len(material.train_ids),
        "steps": report.step,
        "minutes": round(report.seconds / 60, 2),
        "evaluation": {key: float(value) for key, value in report.evaluation.items() if key.startswith("val_")},
    }
    save_policy(folder / "checkpoint", policy, budget)
    return folder / "checkpoint", budget
