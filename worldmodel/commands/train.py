"""`worldmodel train`: latent head and action predictor on the features of a frozen encoder, or end to end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from worldmodel.commands.material import Material, PretrainedEncoder, RecolourConfig, material_of
from worldmodel.commands.run import (
    CHECKPOINT_LICENCE,
    Outcome,
    Run,
    RunSettings,
    busy,
    check_sinks,
    listening,
    numbers_of,
)
from worldmodel.data.distractor import DistractorConfig
from worldmodel.data.episodes import EpisodeDataset
from worldmodel.errors import ConfigError
from worldmodel.hardware import hardware_facts
from worldmodel.learning import cloning
from worldmodel.learning.dynamics import DynamicsTask, validation_losses
from worldmodel.learning.dynamics_config import DynamicsConfig
from worldmodel.learning.fit import FitReport, fit
from worldmodel.learning.frames import FrameTask
from worldmodel.learning.open_loop import OpenLoopReport, open_loop_report
from worldmodel.learning.pseudo_labels import PseudoLabelConfig
from worldmodel.learning.temporal_distance import (
    PairSampler,
    TemporalDistanceTask,
    TemporalDistanceTraining,
    all_latents,
)
from worldmodel.models.checkpoint import save_checkpoint
from worldmodel.models.encoders import Encoder
from worldmodel.models.frozen_encoders import EncoderConfig
from worldmodel.models.policy_checkpoint import save_policy
from worldmodel.models.pretrained import OfficialEncoderConfig
from worldmodel.models.temporal_distance import TemporalDistance

_VALIDATION_BATCHES = 8


@dataclass(kw_only=True)
class Settings(RunSettings, DynamicsConfig):
    """`DynamicsConfig`, and what it is applied to.

    Attributes:
        data: Episode file.
        distractor: Drawn over every frame (`evaluate` draws the like over what the model then sees).
        encoder: Where the features come from: a pretrained encoder, released V-JEPA weights, or a fresh one (random
            weights, timm's, or raw patches).
        labelled_episodes: Training episodes whose actions are used, drawn by the seed; a smaller number gives a subset
            of a larger one's. None uses all.
        recolour: Other colours the training frames are seen in as well, each frame by itself.
        pseudo_labels: How the actions of the other training episodes are guessed from their video, so that the dynamics
            are learned on all of them; without steps (the default) they are left out. An encoder that is trained too
            (frozen=false) guesses with the weights it starts from.
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
    distractor: DistractorConfig = field(default_factory=DistractorConfig)
    encoder: PretrainedEncoder | OfficialEncoderConfig | EncoderConfig = field(default_factory=PretrainedEncoder)
    labelled_episodes: int | None = None
    recolour: RecolourConfig = field(default_factory=RecolourConfig)
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
        if self.is_guessing and self.labelled_episodes is None:
            raise ConfigError(
                "pseudo_labels.steps > 0 guesses the actions of episodes that count as unlabelled; say how many are "
                "labelled with labelled_episodes=N"
            )
        if self.recolour.copies > 0 and self.latent == "pixels":
            raise ConfigError("latent=pixels draws the frames themselves, in their own colours; set recolour.copies=0")

    @property
    def is_guessing(self) -> bool:
        """Whether unlabelled episodes get guessed actions."""
        return self.pseudo_labels.steps > 0


def run(settings: Settings, run: Run) -> Outcome:
    """Cache features, train, measure open loop, save."""
    if settings.horizon < 1:
        raise ConfigError(f"horizon must be >= 1, got {settings.horizon}")
    check_sinks(settings.sinks, "tensorboard")
    dataset = EpisodeDataset.open(settings.data, distractor=settings.distractor)
    what = "dynamics" if settings.frozen else "encoder and dynamics"
    subject = "to draw the frames" if settings.latent == "pixels" else f"the {settings.latent} {what}"
    run.note(
        f"Learning {subject} of {', '.join(dataset.env_ids)} from {len(dataset)} episodes in {settings.steps} steps"
    )
    run.kept = f"the last saved step is in {run.folder}; continue with run_dir={run.folder}"
    material = material_of(settings, dataset, run)
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
        ConfigError: The encoder is not frozen, or frames are to be recoloured.
    """
    if not settings.frozen or settings.recolour.copies > 0:
        raise ConfigError(
            "behaviour is cloned on the features of a frozen encoder, in the colours of the file; set frozen=true and "
            "recolour.copies=0"
        )
    dataset = EpisodeDataset.open(settings.data, distractor=settings.distractor)
    run.note(
        f"Cloning the behaviour in {len(dataset)} episodes of {', '.join(dataset.env_ids)}, {settings.steps} steps"
    )
    run.kept = f"the last saved step is in {run.folder}; continue with run_dir={run.folder}"
    material = material_of(settings, dataset, run)
    shared = ("action_block", "batch_size", "steps", "lr", "weight_decay", "warmup_steps", "clip_norm", "seed")
    policy, report = cloning.clone(
        cloning.CloningConfig(head=settings.compact, **{name: getattr(settings, name) for name in shared}),
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
        "recolour": asdict(settings.recolour),
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
    settings: Settings, dataset: EpisodeDataset, material: Material, run: Run
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
    settings: Settings, task: DynamicsTask | FrameTask, material: Material, run: Run
) -> TemporalDistance | None:
    """Learn how far goals are, on the latents of the trained head."""
    if settings.temporal_distance.steps == 0 or isinstance(task, FrameTask) or settings.latent != "compact":
        return None
    with busy("computing latents", run.progress):
        head = task.head.eval()
        latents = torch.stack([all_latents(head, look) for look in material.store.looks])
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
