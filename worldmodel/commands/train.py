"""`worldmodel train`: latent head and action predictor on the features of a frozen encoder, or end to end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from worldmodel.commands.run import (
    CHECKPOINT_LICENCE,
    Outcome,
    Run,
    RunSettings,
    busy,
    check_sinks,
    counted,
    listening,
    numbers_of,
)
from worldmodel.data.episodes import EpisodeDataset
from worldmodel.doctor import hardware_facts
from worldmodel.errors import ConfigError
from worldmodel.learning import cloning
from worldmodel.learning.dynamics import DynamicsConfig, DynamicsTask, validation_losses
from worldmodel.learning.features import FrameStore, cached_features, encode_all, frame_store
from worldmodel.learning.fit import FitReport, fit
from worldmodel.learning.frames import FrameTask
from worldmodel.learning.open_loop import OpenLoopReport, open_loop_report
from worldmodel.learning.pseudo_labels import (
    PseudoLabelConfig,
    explained_variance,
    learn_inverse_dynamics,
    pseudo_labelled,
)
from worldmodel.learning.temporal_distance import (
    PairSampler,
    TemporalDistanceTask,
    TemporalDistanceTraining,
    all_latents,
)
from worldmodel.models.checkpoint import load_encoder, save_checkpoint
from worldmodel.models.encoders import Encoder
from worldmodel.models.frozen_encoders import EncoderConfig, build_encoder
from worldmodel.models.policy_checkpoint import save_policy
from worldmodel.models.pretrained import OfficialEncoderConfig, load_official_encoder
from worldmodel.models.temporal_distance import TemporalDistance
from worldmodel.models.vit import ViTConfig

_VALIDATION_BATCHES = 8


@dataclass(kw_only=True)
class PretrainedEncoder:
    """An encoder that was trained before.

    Attributes:
        path: Folder written by `worldmodel pretrain` or `worldmodel train`, or the name of a shipped checkpoint.
        taps: Blocks whose outputs are concatenated, instead of the ones the encoder was saved with; None keeps those.
    """

    path: str = "shipped"
    taps: tuple[int, ...] | None = None


@dataclass(kw_only=True)
class Settings(RunSettings, DynamicsConfig):
    """`DynamicsConfig`, and what it is applied to.

    Attributes:
        data: Episode file.
        encoder: Where the features come from: a pretrained encoder, released V-JEPA weights, or a fresh one (random
            weights, timm's, or raw patches).
        labelled_episodes: Training episodes whose actions are used, drawn by the seed; a smaller number gives a subset
            of a larger one's. None uses all.
        pseudo_labels: How the actions of the other training episodes are guessed from their video, so that the dynamics
            are learned on all of them; without steps (the default) they are left out.
        cache_dir: Folder of cached features, shared between runs.
        out: Folder of the checkpoint; None means `checkpoint` in the run folder.
        eval_every: Steps between validations; 0 leaves only the one at the end.
        horizon: Model steps of the open-loop report.
        precision: "auto", "32-true" or "bf16-mixed".
        temporal_distance: Recipe of the learned steps to a goal, trained after the dynamics of a compact latent.
        encoder_dtype: Storage of the encoder's weights, "float32" or "float16".
        sinks: ("tensorboard",) also writes the metrics as TensorBoard events into the run folder.
    """

    data: str
    encoder: PretrainedEncoder | OfficialEncoderConfig | EncoderConfig = field(default_factory=PretrainedEncoder)
    labelled_episodes: int | None = None
    pseudo_labels: PseudoLabelConfig = field(default_factory=PseudoLabelConfig)
    cache_dir: str = "outputs/features"
    out: str | None = None
    eval_every: int = 500
    horizon: int = 5
    precision: str = "auto"
    temporal_distance: TemporalDistanceTraining = field(default_factory=TemporalDistanceTraining)
    encoder_dtype: str = "float32"
    sinks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.is_guessing and (self.labelled_episodes is None or not self.frozen):
            raise ConfigError(
                "pseudo_labels.steps > 0 guesses the actions of episodes that count as unlabelled, from the features "
                f"of a frozen encoder: it needs labelled_episodes=N and frozen=true, got {self.labelled_episodes} and "
                f"frozen={str(self.frozen).lower()}"
            )

    @property
    def is_guessing(self) -> bool:
        """Whether unlabelled episodes get guessed actions."""
        return self.pseudo_labels.steps > 0


@dataclass(kw_only=True)
class _Material:
    """What the training works on; `guesses` says how good guessed labels are, where there are any."""

    encoder: Encoder
    store: FrameStore
    train_ids: NDArray[np.int64]
    val_ids: NDArray[np.int64]
    guesses: dict[str, float] = field(default_factory=dict)

    @property
    def measured(self) -> FrameStore:
        """What a task's head reads: the features, or the frames where these are what is predicted."""
        return self.store if self.store.pixels is None else replace(self.store, features=self.store.pixels)


def run(settings: Settings, run: Run) -> Outcome:
    """Cache features, train, measure open loop, save."""
    if settings.horizon < 1:
        raise ConfigError(f"horizon must be >= 1, got {settings.horizon}")
    check_sinks(settings.sinks, "tensorboard")
    dataset = EpisodeDataset.open(settings.data)
    what = "dynamics" if settings.frozen else "encoder and dynamics"
    subject = "to draw the frames" if settings.latent == "pixels" else f"the {settings.latent} {what}"
    run.note(
        f"Learning {subject} of {', '.join(dataset.env_ids)} from {len(dataset)} episodes in {settings.steps} steps"
    )
    run.kept = f"the last saved step is in {run.folder}; continue with run_dir={run.folder}"
    material = _material(settings, dataset, run)
    task, report = _fit(settings, dataset, material, run)
    open_loop = open_loop_report(
        task, material.measured, train_ids=material.train_ids, val_ids=material.val_ids, horizon=settings.horizon
    )
    distance = _fit_distance(settings, task, material, run)
    task.cpu()
    model = task.world_model(material.encoder.cpu() if settings.frozen else None, distance)
    out = Path(settings.out) if settings.out is not None else run.folder / "checkpoint"
    card = card_of(settings, dataset, report, open_loop, material.guesses)
    save_checkpoint(out, model, card, encoder_dtype=settings.encoder_dtype)
    (run.folder / "open_loop.json").write_text(open_loop.to_json() + "\n", encoding="utf-8")
    record = {
        "checkpoint": str(out),
        "steps": report.step,
        "minutes": round(report.seconds / 60, 2),
        "metrics": {**numbers_of(report), **material.guesses},
        "open_loop": asdict(open_loop),
    }
    return Outcome(record=record, report=(*open_loop.tables(), f"checkpoint: {out}"))


def clone(settings: Settings, run: Run) -> Outcome:
    """Clone behaviour instead of learning dynamics, on the same features, episodes and sizes; saves a policy.

    What has no meaning without a predictor (rollouts, loss weights, the temporal distance) is not looked at.

    Raises:
        ConfigError: The encoder is not frozen.
    """
    if not settings.frozen:
        raise ConfigError("behaviour is cloned on the features of a frozen encoder; set frozen=true")
    dataset = EpisodeDataset.open(settings.data)
    run.note(
        f"Cloning the behaviour in {len(dataset)} episodes of {', '.join(dataset.env_ids)}, {settings.steps} steps"
    )
    run.kept = f"the last saved step is in {run.folder}; continue with run_dir={run.folder}"
    material = _material(settings, dataset, run)
    shared = ("action_block", "batch_size", "steps", "lr", "weight_decay", "warmup_steps", "clip_norm", "seed")
    policy, report = cloning.clone(
        cloning.CloningConfig(head=settings.compact_head, **{name: getattr(settings, name) for name in shared}),
        cloning.CloningMaterial(
            dataset=dataset,
            encoder=material.encoder,
            store=material.store,
            train_ids=material.train_ids,
            val_ids=material.val_ids,
        ),
        run_dir=run.folder,
        eval_every=settings.eval_every,
        precision=settings.precision,
        progress=run.progress,
    )
    out = Path(settings.out) if settings.out is not None else run.folder / "checkpoint"
    card = card_of(settings, dataset, report, None, material.guesses)
    save_policy(out, policy, card, encoder_dtype=settings.encoder_dtype)
    record = {
        "checkpoint": str(out),
        "steps": report.step,
        "minutes": round(report.seconds / 60, 2),
        "metrics": {**numbers_of(report), **material.guesses},
    }
    return Outcome(record=record, report=(f"checkpoint: {out}",))


def labelled(train_ids: NDArray[np.int64], count: int | None, seed: int) -> NDArray[np.int64]:
    """The first `count` of the training episodes in an order drawn by the seed, sorted; all of them for None.

    Raises:
        ConfigError: There are not as many.
    """
    if count is None:
        return train_ids
    if not 1 <= count <= len(train_ids):
        raise ConfigError(f"labelled_episodes must be in [1, {len(train_ids)}], the training episodes, got {count}")
    return np.sort(np.random.default_rng(seed).permutation(train_ids)[:count])


def make_encoder(config: PretrainedEncoder | OfficialEncoderConfig | EncoderConfig, seed: int) -> Encoder:
    """The encoder a setting asks for, frozen.

    Raises:
        CheckpointError: The pretrained one, or the file of released weights, is missing or corrupt.
        ConfigError: Its taps name no block.
    """
    if isinstance(config, OfficialEncoderConfig):
        return load_official_encoder(config)
    if not isinstance(config, PretrainedEncoder):
        return build_encoder(config, seed=seed).requires_grad_(False).eval()
    encoder = load_encoder(config.path)
    if config.taps is not None:
        encoder = retap(encoder, config.taps)
    return encoder


def retap(encoder: Encoder, taps: tuple[int, ...]) -> Encoder:
    """The same encoder, giving the outputs of other blocks.

    Raises:
        ConfigError: The encoder has no blocks to tap, or not these.
    """
    config: Any = encoder.config
    if not isinstance(config, ViTConfig):
        raise ConfigError(f"encoder.taps needs a ViT encoder, this one is a {type(config).__name__}")
    tapped = build_encoder(replace(config, taps=taps))
    tapped.load_state_dict(encoder.state_dict())
    return tapped.requires_grad_(False).eval()


def card_of(
    settings: Settings,
    dataset: EpisodeDataset,
    report: FitReport,
    open_loop: OpenLoopReport | None,
    guesses: Mapping[str, float],
) -> dict[str, Any]:
    """Facts that travel with the checkpoint; a policy has no open-loop report."""
    return {
        "licence": CHECKPOINT_LICENCE,
        "data": {"hash": dataset.content_hash, "episodes": len(dataset), "frames": dataset.num_frames},
        "env_ids": list(dataset.env_ids),
        "encoder": asdict(settings.encoder),
        "frozen": settings.frozen,
        "labelled_episodes": settings.labelled_episodes,
        "steps": report.step,
        "minutes": round(report.seconds / 60, 2),
        "seed": settings.seed,
        "hardware": hardware_facts(),
        "metrics": {
            **numbers_of(report),
            **guesses,
            **({} if open_loop is None else open_loop.scalars()),
        },
    }


def _material(settings: Settings, dataset: EpisodeDataset, run: Run) -> _Material:
    encoder = make_encoder(settings.encoder, settings.seed).to(_device())
    train_ids, val_ids = dataset.split(settings.validation_fraction, settings.seed)
    labelled_ids = labelled(train_ids, settings.labelled_episodes, settings.seed)
    if settings.frozen and (settings.labelled_episodes is None or settings.is_guessing):
        with counted("encoding frames", run.progress) as progress:
            features = cached_features(dataset, encoder, settings.cache_dir, progress=progress)
        store = FrameStore.from_dataset(dataset, features)
        if settings.latent == "pixels":
            with busy("reading frames", run.progress):
                store = replace(store, pixels=dataset.load_pixels(0, dataset.num_frames))
        material = _Material(encoder=encoder, store=store, train_ids=train_ids, val_ids=val_ids)
        return _guessed(settings, dataset, material, labelled_ids, run) if settings.is_guessing else material
    train_ids = labelled_ids
    with busy("reading frames", run.progress):
        store = frame_store(dataset, np.concatenate([train_ids, val_ids]))
    if settings.frozen:  # a few episodes, encoded sooner than the whole file would be into the cache
        frames = np.asarray(store.features, np.uint8)
        with counted("encoding frames", run.progress) as progress:
            store = replace(store, features=encode_all(encoder, frames, progress=progress))
        if settings.latent == "pixels":
            store = replace(store, pixels=frames)
    train_ids, val_ids = np.split(np.arange(len(store.episode_len)), [len(train_ids)])
    return _Material(encoder=encoder, store=store, train_ids=train_ids, val_ids=val_ids)


def _guessed(
    settings: Settings, dataset: EpisodeDataset, material: _Material, labelled_ids: NDArray[np.int64], run: Run
) -> _Material:
    """The same with guesses in place of the labels of all other training episodes."""
    unlabelled = np.setdiff1d(material.train_ids, labelled_ids)
    if len(unlabelled) == 0:
        raise ConfigError(
            f"labelled_episodes={settings.labelled_episodes} are all there are to train on, so there is nothing to "
            "guess; lower it, or set pseudo_labels.steps=0"
        )
    model = learn_inverse_dynamics(
        settings.pseudo_labels,
        material.store,
        labelled_ids,
        seed=settings.seed,
        run_dir=run.folder / "pseudo_labels",
        precision=settings.precision,
        progress=run.progress,
    )
    bounds = (dataset.spec.action_low, dataset.spec.action_high)
    held_out = pseudo_labelled(material.store, model, material.val_ids, bounds)
    action_r2, proprio_r2 = explained_variance(material.store, held_out, material.val_ids)
    run.note(
        f"Guessed the actions of {len(unlabelled)} episodes: of held-out episodes guesses explain "
        f"{action_r2:.0%} of the actions' variance and {proprio_r2:.0%} of proprioception's"
    )
    store = pseudo_labelled(material.store, model, unlabelled, bounds)
    return replace(material, store=store, guesses={"guessed_action_r2": action_r2, "guessed_proprio_r2": proprio_r2})


def _task(settings: Settings, dataset: EpisodeDataset, encoder: Encoder) -> DynamicsTask | FrameTask:
    """What is trained."""
    spec = settings.model_spec(dataset)
    if settings.latent == "pixels":
        return FrameTask(settings, spec, encoder=encoder)
    return DynamicsTask(
        settings,
        spec,
        num_tokens=encoder.num_tokens,
        embed_dim=encoder.embed_dim,
        encoder=None if settings.frozen else encoder,
    )


def _fit(
    settings: Settings, dataset: EpisodeDataset, material: _Material, run: Run
) -> tuple[DynamicsTask | FrameTask, FitReport]:
    task = _task(settings, dataset, material.encoder)
    task.fit_statistics(material.store, material.train_ids)
    held_out = task.sampler(material.store, material.val_ids, seed=settings.seed + 1)
    batches = [held_out.next_batch() for _ in range(_VALIDATION_BATCHES)]

    def validate(step: int) -> dict[str, float | str]:
        report = open_loop_report(
            task,
            material.measured,
            train_ids=material.train_ids,
            val_ids=material.val_ids,
            horizon=settings.horizon,
            num_clips=256,
        )
        share = report.model[-1] / max(report.copy_last[-1], 1e-9)
        status = f"error after {settings.horizon} steps {share:.0%} of no prediction"
        return {**validation_losses(task, batches), **report.scalars(), "status": status}

    with listening(settings.sinks, run.folder) as listener:
        report = fit(
            task,
            task.sampler(material.store, material.train_ids, seed=settings.seed),
            settings.fit_config(run_dir=str(run.folder), eval_every=settings.eval_every, precision=settings.precision),
            evaluate=validate,
            listener=listener,
            progress=run.progress,
            title="training dynamics",
        )
    return task, report


def _fit_distance(
    settings: Settings, task: DynamicsTask | FrameTask, material: _Material, run: Run
) -> TemporalDistance | None:
    """Learn how far goals are, on the latents of the trained head."""
    if settings.temporal_distance.steps == 0 or isinstance(task, FrameTask) or settings.latent != "compact":
        return None
    with busy("computing latents", run.progress):
        latents = all_latents(task.head.eval(), material.store.features)
    pairs = PairSampler(
        latents,
        material.store,
        material.train_ids,
        action_block=settings.action_block,
        config=settings.temporal_distance,
        seed=settings.seed,
    )
    learner = TemporalDistanceTask(
        settings.temporal_distance, latent_dim=task.head.num_tokens * task.head.latent_dim, seed=settings.seed
    )
    folder = run.folder / "temporal_distance"
    with listening(settings.sinks, folder) as listener:
        fit(
            learner,
            pairs,
            settings.temporal_distance.fit_config(run_dir=str(folder), seed=settings.seed),
            listener=listener,
            progress=run.progress,
            title="training distance",
        )
    return learner.distance.cpu().eval()


def _device() -> torch.device:
    """The accelerator of this machine, else the CPU."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found if found is not None else torch.device("cpu")
