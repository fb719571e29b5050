"""`worldmodel pretrain`: an encoder from video alone, by predicting what is hidden."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table
from torch import Tensor

from worldmodel.analysis.figures import health_figure, save_figure
from worldmodel.commands.run import (
    CHECKPOINT_LICENCE,
    Outcome,
    Run,
    RunSettings,
    check_sinks,
    listening,
    numbers_of,
)
from worldmodel.data.clips import ClipBatch, ClipSampler
from worldmodel.data.distractor import DistractorConfig
from worldmodel.data.episodes import EpisodeDataset
from worldmodel.errors import ConfigError
from worldmodel.hardware import hardware_facts
from worldmodel.learning.any_colour import AnyColourConfig
from worldmodel.learning.diagnostics import Health, diagnose, feature_drift, reference_health, task_health
from worldmodel.learning.features import encode_block
from worldmodel.learning.fit import FitReport, fit, to_device
from worldmodel.learning.fit_config import FitConfig
from worldmodel.learning.masked import MaskedTask
from worldmodel.learning.probes import probe
from worldmodel.learning.run_state import METRICS_NAME
from worldmodel.learning.targets import TargetConfig, build_task, first_stage
from worldmodel.learning.teacher import TeacherConfig
from worldmodel.learning.vjepa import VJEPAConfig
from worldmodel.models.checkpoint import (
    load_checkpoint,
    load_encoder,
    read_card,
    resolve_checkpoint,
    save_checkpoint,
    save_encoder,
)
from worldmodel.models.encoders import VideoViT
from worldmodel.models.frozen_encoders import TimmEncoderConfig
from worldmodel.models.vit import ViTConfig
from worldmodel.models.world_model import WorldModel

BACKGROUNDS = ("episode", "recording")
PROBE_FRAMES = 4000
_ENCODE_FRAMES = 128
_HEALTH_CLIPS = 64
_BACKGROUND_FRAMES = 2000  # of all episodes; more do not change their median visibly
_BACKGROUND_STRIDE = 4  # every fourth frame gives the same median as all of them, four times as fast


@dataclass(kw_only=True)
class Settings(RunSettings):
    """What to pretrain on, and how.

    Attributes:
        data: Episode file; actions in it are not looked at.
        encoder: Architecture.
        target: What is predicted.
        fit: Optimisation; `fit.eval_every` is the number of steps between health checks, 0 for 5 % of the run.
        probe_every: Steps between ridge probes of the true quantities, which cost more; 0 leaves those at the end.
        batch_size: Clips per step.
        frame_step: Env steps between the frames of a clip.
        validation_fraction: Share of episodes left out.
        background: What counts as moving is told by the difference to the median frame, of the "episode", or of all the
            "recording": then what stands still for an episode and is elsewhere in others, an object, counts too. That
            needs one camera and one look.
        distractor: Drawn over every frame: what an encoder has to learn to ignore.
        snapshots: Keep the encoder of every health check in `snapshots` of the run folder, named by the step.
        out: Folder of the encoder; None means `encoder` in the run folder.
        model_out: Folder of a copy of the world model `target.path` with the student of target=any_colour in the place
            of its encoder; None writes none.
        sinks: ("tensorboard",) also writes the metrics as TensorBoard events into the run folder.
    """

    data: str
    encoder: ViTConfig | TimmEncoderConfig = field(default_factory=ViTConfig)
    target: TargetConfig = field(default_factory=VJEPAConfig)
    fit: FitConfig = field(default_factory=FitConfig)
    probe_every: int = 0
    batch_size: int = 32
    frame_step: int = 1
    validation_fraction: float = 0.05
    background: str = "episode"
    distractor: DistractorConfig = field(default_factory=DistractorConfig)
    snapshots: bool = False
    out: str | None = None
    model_out: str | None = None
    sinks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.background not in BACKGROUNDS:
            raise ConfigError(f"background must be one of {', '.join(BACKGROUNDS)}, got {self.background!r}")
        is_student = isinstance(self.target, AnyColourConfig) and self.target.path is None
        if is_student and isinstance(self.encoder, ViTConfig) and self.encoder.taps:
            raise ConfigError(
                f"target=any_colour learns final features: encoder.taps must be empty, got {self.encoder.taps}"
            )
        if self.model_out is not None and not (isinstance(self.target, AnyColourConfig) and self.target.path):
            raise ConfigError(
                f"model_out={self.model_out} puts a student in the place of an encoder: it needs target=any_colour and "
                "target.path=CHECKPOINT, a world model"
            )


class ClipSource:
    """`ClipSampler` as the training loop wants it."""

    def __init__(self, sampler: ClipSampler) -> None:
        self._sampler = sampler

    def next_batch(self) -> ClipBatch:
        """Return the next batch."""
        return next(self._sampler)

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the stream."""
        return self._sampler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a position `state_dict` gave."""
        self._sampler.load_state_dict(state)


class Monitor:
    """What the encoder in training is worth: label-free health with a verdict, and ridge probes of the true quantities.

    Frames are encoded one by one, as at planning time; labels are read here and by no loss.

    Args:
        dataset: Episodes, of which up to `PROBE_FRAMES` frames are probed.
        held_out: Episodes that are not trained on; health is judged on them.
        task: The run before its first step, also of one that is resumed: `fit` restores its weights later.
        settings: Length of the run and spacing of the probes.
        snapshots: Folder in which the encoder of every check is kept; None keeps none.
    """

    def __init__(
        self,
        dataset: EpisodeDataset,
        held_out: NDArray[np.int64],
        task: MaskedTask,
        settings: Settings,
        snapshots: Path | None = None,
    ) -> None:
        self._task, self._dataset = task, dataset
        self._snapshots, self._batch_size = snapshots, settings.batch_size
        self._steps, self._probe_every = settings.fit.steps, settings.probe_every
        self._frames = probe_frames(dataset.num_frames)
        self._episodes = np.searchsorted(dataset.index.start, self._frames, side="right") - 1
        encoder = task.encoder.config
        sampler = ClipSampler(
            dataset, held_out, num_frames=encoder.num_frames, frame_step=settings.frame_step, batch_size=1
        )
        count = min(len(sampler), _HEALTH_CLIPS)
        self._clips = sampler.clips(np.linspace(0, len(sampler) - 1, count).astype(np.int64))
        self._moments = _moments(dataset, held_out, encoder)
        self._untrained = self._features()
        self.reference = reference_health(task, self._clips, self._moments)

    def __call__(self, step: int) -> dict[str, float | str]:
        """Named numbers for metrics.jsonl and the verdict; a quantity that never varies has no R2 and is left out."""
        if self._snapshots is not None:
            facts = {"step": step, "samples": step * self._batch_size}
            save_encoder(self._snapshots / f"{step:07d}", self._task.result, facts)
        device = next(self._task.parameters()).device
        clips, moments = to_device(self._clips, device), to_device(self._moments, device)
        health = task_health(self._task, clips, moments, torch.Generator(device).manual_seed(0))
        diagnosis = diagnose(health, self.reference, done=step / self._steps)
        numbers = health.to_dict("health_") | {"health_drift": feature_drift(self._untrained, self._features())}
        if step == self._steps or (self._probe_every and step % self._probe_every == 0):
            numbers |= self._probes()
        finite: dict[str, float | str] = {name: value for name, value in numbers.items() if math.isfinite(value)}
        return {**finite, "status": diagnosis.verdict.value, "diagnosis": diagnosis.line}

    def _features(self) -> Tensor:
        """Features (F, N, D) of frames of the held-out episodes."""
        encoder = self._task.result
        frames = self._moments.pixels[:, :: encoder.config.tubelet_size].to(next(encoder.parameters()).device)
        with torch.no_grad():
            return encoder.encode_frames(frames).flatten(0, 1).float().cpu()

    def _probes(self) -> dict[str, float]:
        if not self._dataset.spec.privileged_names:  # recordings of which nothing else is known
            return {}
        encoder, pixels = self._task.result, self._dataset.pixels[self._frames]
        blocks = np.array_split(pixels, max(1, len(pixels) // _ENCODE_FRAMES))
        features = np.concatenate([encode_block(encoder, block) for block in blocks])
        names = self._dataset.spec.privileged_names
        return probe(features, self._dataset.privileged[self._frames], self._episodes, names).to_dict()


@dataclass(kw_only=True)
class _Moments:
    """A few far apart frames of each episode, as clips in which each is repeated over a tubelet.

    Attributes:
        pixels: (B, T, Y, X, 3) uint8.
        episode: (B,) long.
    """

    pixels: Tensor
    episode: Tensor


def _moments(dataset: EpisodeDataset, ids: NDArray[np.int64], encoder: ViTConfig) -> _Moments:
    chosen = ids[np.linspace(0, len(ids) - 1, min(len(ids), _HEALTH_CLIPS)).astype(np.int64)]
    share = np.linspace(0, 1, encoder.num_frames // encoder.tubelet_size).repeat(encoder.tubelet_size)
    index = dataset.index
    frames = index.start[chosen, None] + (share * (index.length[chosen, None] - 1)).astype(np.int64)
    return _Moments(pixels=torch.from_numpy(dataset.pixels[frames]), episode=torch.from_numpy(chosen))


def run(settings: Settings, run: Run) -> Outcome:
    """Pretrain and save the encoder."""
    if not isinstance(settings.encoder, ViTConfig):
        raise ConfigError("pretrain needs encoder=vit: timm's backbones and pretrained encoders are frozen")
    if settings.fit.run_dir is not None:
        raise ConfigError("fit.run_dir is the folder of the run itself: set run_dir instead")
    check_sinks(settings.sinks, "tensorboard")
    if settings.model_out is not None:
        _host(settings.target)  # found out now, not after the training
    dataset = EpisodeDataset.open(settings.data, distractor=settings.distractor)
    kind = type(settings.target).__name__.removesuffix("Config")
    run.note(
        f"Pretraining an encoder ({kind}) on {len(dataset)} episodes of {', '.join(dataset.env_ids)} in "
        f"{settings.fit.steps} steps of {settings.batch_size} clips"
    )
    run.kept = f"the last saved step is in {run.folder}; continue with run_dir={run.folder}"
    background = backgrounds(dataset, settings.background)
    encoder = settings.encoder
    settings, teacher, minutes = _teacher(settings, encoder, dataset, background, run)
    if teacher is not None and isinstance(settings.target, AnyColourConfig):
        encoder = teacher.config  # a student that starts as its teacher
    task, report, monitor = _fit(settings, encoder, dataset, background, teacher, run)
    minutes = round(minutes + report.seconds / 60, 2)
    written = _save(settings, task.result.cpu(), card_of(settings, dataset, report, minutes), run)
    plot = health_figure(run.folder / METRICS_NAME, monitor.reference.to_dict("health_"))
    picture = save_figure(plot, run.folder / "health.png")
    record = {
        **written,
        "steps": report.step,
        "minutes": minutes,
        "diagnosis": report.evaluation["diagnosis"],
        "metrics": numbers_of(report),
    }
    places = (f"{what}: {folder}" for what, folder in written.items())
    lines = (report.evaluation["diagnosis"], f"health over training: {picture}", *places)
    return Outcome(record=record, report=(_table(report, monitor.reference), *lines))


def _host(target: TargetConfig) -> WorldModel:
    """The world model whose encoder the student stands in for."""
    assert isinstance(target, AnyColourConfig)  # `Settings` has checked it
    return load_checkpoint(str(target.path))


def _save(settings: Settings, encoder: VideoViT, card: dict[str, Any], run: Run) -> dict[str, str]:
    """Write the encoder, and the world model it goes into; where they are."""
    out = Path(settings.out) if settings.out is not None else run.folder / "encoder"
    save_encoder(out, encoder, card)
    if settings.model_out is None or not isinstance(settings.target, AnyColourConfig):
        return {"encoder": str(out)}
    model = _host(settings.target)
    model.encoder.load_state_dict(encoder.state_dict())
    trained = read_card(resolve_checkpoint(str(settings.target.path)))["training"]
    save_checkpoint(settings.model_out, model, {**trained, "student": card})
    return {"encoder": str(out), "checkpoint": settings.model_out}


def probe_frames(num_frames: int) -> NDArray[np.int64]:
    """Up to `PROBE_FRAMES` of the frames of a file, sorted.

    Drawn, not every k-th one: k may be the length of an episode, and then only first frames would be looked at.
    """
    return np.sort(np.random.default_rng(0).permutation(num_frames)[:PROBE_FRAMES])


def check_spacing(settings: Settings) -> int:
    """Steps from one health check, and snapshot, to the next; there is one after the last step as well."""
    return settings.fit.eval_every or max(1, settings.fit.steps // 20)


def backgrounds(dataset: EpisodeDataset, of: str = "episode") -> Tensor:
    """(E, Y, X, 3) uint8 median frame of every episode, or E times that of the recording: what does not move."""
    index = dataset.index
    if of == "recording":
        rows = np.linspace(0, dataset.num_frames - 1, min(dataset.num_frames, _BACKGROUND_FRAMES)).astype(np.int64)
        median = np.median(dataset.pixels[np.unique(rows)], axis=0).astype(np.uint8)
        return torch.from_numpy(median).expand(len(dataset), -1, -1, -1)
    frames = [
        np.median(dataset.pixels[start : start + length : _BACKGROUND_STRIDE], axis=0).astype(np.uint8)
        for start, length in zip(index.start, index.length, strict=True)
    ]
    return torch.from_numpy(np.stack(frames))


def card_of(settings: Settings, dataset: EpisodeDataset, report: FitReport, minutes: float) -> dict[str, Any]:
    """Facts that travel with the encoder; `minutes` include a teacher trained for it."""
    return {
        "licence": CHECKPOINT_LICENCE,
        "data": {"hash": dataset.content_hash, "episodes": len(dataset), "frames": dataset.num_frames},
        "objective": asdict(settings.target),
        "steps": report.step,
        "batch_size": settings.batch_size,
        "minutes": minutes,
        "seed": settings.fit.seed,
        "hardware": hardware_facts(),
        "metrics": numbers_of(report),
    }


def _table(report: FitReport, reference: Health) -> Table:
    table = Table(title="encoder, frames encoded one by one")
    table.add_column("what")
    table.add_column("value", justify="right")
    table.add_column("random init", justify="right")
    before = reference.to_dict("health_")
    for name, value in numbers_of(report).items():
        table.add_row(name, f"{value:.3f}", f"{before[name]:.3f}" if name in before else "")
    return table


def _teacher(
    settings: Settings, encoder: ViTConfig, dataset: EpisodeDataset, background: Tensor, run: Run
) -> tuple[Settings, VideoViT | None, float]:
    """The teacher a target asks for, what is left for the student, and the minutes that training the teacher took."""
    if not isinstance(settings.target, TeacherConfig):
        return settings, None, 0.0
    if settings.target.path is not None:
        teacher = load_encoder(settings.target.path)
        if not isinstance(teacher, VideoViT):
            raise ConfigError(f"the teacher must be a video encoder, {settings.target.path} holds another kind")
        return settings, teacher, 0.0
    steps = round(settings.target.steps_share * settings.fit.steps)
    if not 0 < steps < settings.fit.steps:
        raise ConfigError(f"target.steps_share leaves a stage without steps: {steps} of {settings.fit.steps}")
    run.note(f"First stage: a teacher ({settings.target.first_stage}), {steps} steps")
    first = replace(settings, target=first_stage(settings.target), fit=replace(settings.fit, steps=steps))
    task, report, _ = _fit(first, encoder, dataset, background, None, replace(run, folder=run.folder / "teacher"))
    run.note(f"Second stage: a student of the frozen teacher, {settings.fit.steps - steps} steps")
    second = replace(settings, fit=replace(settings.fit, steps=settings.fit.steps - steps))
    return second, task.result.cpu(), report.seconds / 60


def _fit(
    settings: Settings,
    encoder: ViTConfig,
    dataset: EpisodeDataset,
    background: Tensor,
    teacher: VideoViT | None,
    run: Run,
) -> tuple[MaskedTask, FitReport, Monitor]:
    seed = settings.fit.seed
    train_ids, held_out = dataset.split(settings.validation_fraction, seed)
    if len(held_out) < 2:
        raise ConfigError(
            f"health is judged on at least 2 held-out episodes, validation_fraction={settings.validation_fraction} of "
            f"{len(dataset)} holds out {len(held_out)}; raise it or record more"
        )
    sampler = ClipSampler(
        dataset,
        train_ids,
        num_frames=encoder.num_frames,
        frame_step=settings.frame_step,
        batch_size=settings.batch_size,
        seed=seed,
    )
    target = settings.target
    head = _host(target).head if isinstance(target, AnyColourConfig) and target.latent_weight > 0 else None
    task = build_task(encoder, target, background=background, teacher=teacher, head=head, seed=seed)
    config = replace(settings.fit, run_dir=str(run.folder), eval_every=check_spacing(settings))
    kept = run.folder / "snapshots" if settings.snapshots else None
    monitor = Monitor(dataset, held_out, task, settings, kept)
    with listening(settings.sinks, run.folder) as listener:
        report = fit(
            task,
            ClipSource(sampler),
            config,
            evaluate=monitor,
            listener=listener,
            progress=run.progress,
            title="pretraining",
        )
    return task, report, monitor
