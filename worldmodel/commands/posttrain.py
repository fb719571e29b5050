"""`worldmodel posttrain`: V-JEPA 2-AC, the action-conditioned predictor on the tokens of a frozen video encoder."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from worldmodel.commands.material import PretrainedEncoder, labelled, make_encoder
from worldmodel.commands.run import CHECKPOINT_LICENCE, Outcome, Run, RunSettings, counted, numbers_of
from worldmodel.data.episodes import EpisodeDataset
from worldmodel.data.normalize import Normalizer
from worldmodel.errors import ConfigError
from worldmodel.hardware import hardware_facts
from worldmodel.learning.dynamics_config import spec_of_data
from worldmodel.learning.features import FrameStore, TrajectorySampler, cached_features
from worldmodel.learning.fit import FitReport, fit
from worldmodel.learning.fit_config import FitConfig
from worldmodel.learning.vjepa2_ac import RobotClipSampler, VJEPA2ACConfig, VJEPA2ACTask, held_out_errors
from worldmodel.models.ac_dynamics import ACDynamics, ACDynamicsConfig, PoseMap
from worldmodel.models.ac_predictor import ACPredictorConfig
from worldmodel.models.checkpoint import save_checkpoint
from worldmodel.models.encoders import Encoder
from worldmodel.models.frozen_encoders import EncoderConfig
from worldmodel.models.latent_head import NormHead, NormHeadConfig
from worldmodel.models.pretrained import OfficialEncoderConfig
from worldmodel.models.world_model import WorldModel

_VALIDATION_BATCHES = 8


@dataclass(kw_only=True)
class Settings(RunSettings):
    """What to train, on what.

    Attributes:
        data: Episode file.
        encoder: Where the tokens come from: a pretrained encoder, released V-JEPA weights, or a fresh one.
        predictor: Sizes of the predictor; its `latent_dim` is the encoder's width, whatever is given.
        pose: How proprioception and actions of the environment read as poses.
        rollout_steps: Steps of the open-loop rollout in the loss.
        checkpoint_activations: Compute the blocks again in the backward pass, for memory.
        action_block: Env steps between two frames.
        clip_frames: Frames of a training clip, action_block env steps apart.
        window: Frames a plan starts from, fewer than `clip_frames`.
        batch_size: Clips per step.
        labelled_episodes: Training episodes that are used, drawn by the seed; None uses all.
        fit: Optimisation.
        validation_fraction: Share of episodes held out.
        cache_dir: Folder of cached features, shared between runs.
        out: Folder of the checkpoint; None means `checkpoint` in the run folder.
        encoder_dtype: Storage of the encoder's weights, "float32" or "float16".
    """

    data: str
    encoder: PretrainedEncoder | OfficialEncoderConfig | EncoderConfig = field(default_factory=PretrainedEncoder)
    predictor: ACPredictorConfig = field(default_factory=ACPredictorConfig)
    pose: PoseMap = field(default_factory=PoseMap)
    rollout_steps: int = 2
    checkpoint_activations: bool = False
    action_block: int = 3
    clip_frames: int = 8
    window: int = 1
    batch_size: int = 32
    labelled_episodes: int | None = None
    fit: FitConfig = field(default_factory=FitConfig)
    validation_fraction: float = 0.05
    cache_dir: str = "outputs/features"
    out: str | None = None
    encoder_dtype: str = "float32"

    def __post_init__(self) -> None:
        VJEPA2ACConfig(rollout_steps=self.rollout_steps)  # refuses what the task would refuse
        check_lengths(self.clip_frames, self.rollout_steps, self.window)


def check_lengths(clip_frames: int, rollout_steps: int, window: int) -> None:
    """Refuse clips too short for the loss, and plans that start from more frames than a clip shows.

    Raises:
        ConfigError: They are.
    """
    if clip_frames <= rollout_steps:
        raise ConfigError(f"clip_frames={clip_frames} must exceed rollout_steps={rollout_steps}")
    if not 1 <= window < clip_frames:
        raise ConfigError(f"window must be in [1, clip_frames={clip_frames}), got {window}")


def run(settings: Settings, run: Run) -> Outcome:
    """Cache tokens, train, save a world model."""
    dataset = EpisodeDataset.open(settings.data)
    spec = spec_of_data(dataset, action_block=settings.action_block, latent="patch")
    settings.pose.check(len(spec.proprio_names), spec.action_dim)
    encoder = make_encoder(settings.encoder, settings.fit.seed)
    config = replace(settings.predictor, latent_dim=encoder.embed_dim)
    own = {part.name: getattr(source, part.name) for source in (config, settings.pose) for part in fields(source)}
    dynamics = ACDynamics(
        ACDynamicsConfig(**own, window=settings.window, env_action_dim=spec.action_dim),
        num_tokens=encoder.num_tokens,
        latent_dim=encoder.embed_dim,
        action_dim=spec.flat_action_dim,
        seed=settings.fit.seed,
    )
    run.note(
        f"Post-training V-JEPA 2-AC ({sum(w.numel() for w in dynamics.parameters()):,} weights) on "
        f"{', '.join(dataset.env_ids)}, {len(dataset)} episodes, {settings.fit.steps} steps"
    )
    run.kept = f"the last saved step is in {run.folder}; continue with run_dir={run.folder}"
    task, report = _fit(settings, dataset, encoder, config, run)
    dynamics.network.load_state_dict(task.cpu().predictor.state_dict())
    model = WorldModel(
        encoder.cpu(),
        NormHead(NormHeadConfig(), num_tokens=encoder.num_tokens, embed_dim=encoder.embed_dim),
        dynamics,
        Normalizer(spec.flat_action_dim),  # identity: the pose map does the units
        Normalizer(len(spec.proprio_names)),
        spec,
    )
    out = Path(settings.out) if settings.out is not None else run.folder / "checkpoint"
    save_checkpoint(out, model, _card(settings, dataset, report), encoder_dtype=settings.encoder_dtype)
    metrics = numbers_of(report)
    record = {
        "checkpoint": str(out),
        "steps": report.step,
        "minutes": round(report.seconds / 60, 2),
        "metrics": metrics,
    }
    return Outcome(record=record, report=(_errors_table(metrics), f"checkpoint: {out}"))


def _fit(
    settings: Settings, dataset: EpisodeDataset, encoder: Encoder, config: ACPredictorConfig, run: Run
) -> tuple[VJEPA2ACTask, FitReport]:
    train_ids, val_ids = dataset.split(settings.validation_fraction, settings.fit.seed)
    train_ids = labelled(train_ids, settings.labelled_episodes, settings.fit.seed)
    with counted("encoding frames", run.progress) as progress:
        features = cached_features(dataset, encoder, settings.cache_dir, progress=progress)
    store = FrameStore.from_dataset(dataset, features)

    def clips(ids: Any, seed: int) -> RobotClipSampler:
        sampler = TrajectorySampler(
            store,
            ids,
            num_frames=settings.clip_frames,
            action_block=settings.action_block,
            batch_size=settings.batch_size,
            seed=seed,
        )
        return RobotClipSampler(sampler, settings.pose)

    held_out = clips(val_ids, settings.fit.seed + 1)
    batches = [held_out.next_batch() for _ in range(_VALIDATION_BATCHES)]
    task = VJEPA2ACTask(
        VJEPA2ACConfig(
            predictor=config,
            rollout_steps=settings.rollout_steps,
            checkpoint_activations=settings.checkpoint_activations,
        ),
        seed=settings.fit.seed,
    )
    report = fit(
        task,
        clips(train_ids, settings.fit.seed),
        replace(settings.fit, run_dir=str(run.folder)),
        evaluate=lambda _step: held_out_errors(task, batches),
        progress=run.progress,
        title="post-training",
    )
    return task, report


def _card(settings: Settings, dataset: EpisodeDataset, report: FitReport) -> dict[str, Any]:
    return {
        "licence": CHECKPOINT_LICENCE,
        "data": {"hash": dataset.content_hash, "episodes": len(dataset), "frames": dataset.num_frames},
        "env_ids": list(dataset.env_ids),
        "encoder": asdict(settings.encoder),
        "recipe": "V-JEPA 2-AC",
        "steps": report.step,
        "minutes": round(report.seconds / 60, 2),
        "seed": settings.fit.seed,
        "hardware": hardware_facts(),
        "metrics": numbers_of(report),
    }


def _errors_table(metrics: dict[str, float]) -> Table:
    table = Table(title="held-out error of layer-normed tokens (mean absolute)")
    for name in ("prediction", "error", "of a still world"):
        table.add_column(name, justify="left" if name == "prediction" else "right")
    still = metrics["val_still"]
    for name, key in (
        ("one step", "val_teacher_forcing"),
        ("rollout", "val_rollout"),
        ("one step, another clip's actions", "val_foreign_actions"),
        ("still world (last frame repeated)", "val_still"),
    ):
        table.add_row(name, f"{metrics[key]:.4f}", f"{metrics[key] / still:.2f}" if still > 0 else "")
    return table
