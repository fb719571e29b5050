"""`worldmodel pretrain`: V-JEPA on video alone."""

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

from worldmodel.commands.run import CHECKPOINT_LICENCE, Outcome, Run, RunSettings, numbers_of
from worldmodel.data.clips import ClipBatch, ClipSampler
from worldmodel.data.episodes import EpisodeDataset
from worldmodel.doctor import hardware_facts
from worldmodel.errors import ConfigError
from worldmodel.learning.diagnostics import frame_health
from worldmodel.learning.features import encode_block
from worldmodel.learning.fit import FitReport, fit
from worldmodel.learning.fit_config import FitConfig
from worldmodel.learning.probes import probe
from worldmodel.learning.vjepa import VJEPAConfig, VJEPATask
from worldmodel.models.checkpoint import save_encoder
from worldmodel.models.encoders import TimmEncoderConfig
from worldmodel.models.vit import ViTConfig

PROBE_FRAMES = 4000
_ENCODE_FRAMES = 128
_HEALTH_CLIPS, _HEALTH_FRAMES = 64, 4
_BACKGROUND_STRIDE = 4  # every fourth frame gives the same median as all of them, four times as fast


@dataclass(kw_only=True)
class Settings(RunSettings):
    """What to pretrain on, and how.

    Attributes:
        data: Episode file; actions in it are not looked at.
        encoder: Architecture.
        target: What is predicted: the V-JEPA objective.
        fit: Optimisation.
        batch_size: Clips per step.
        frame_step: Env steps between the frames of a clip.
        validation_fraction: Share of episodes left out.
        out: Folder of the encoder; None means `encoder` in the run folder.
    """

    data: str
    encoder: ViTConfig | TimmEncoderConfig = field(default_factory=ViTConfig)
    target: VJEPAConfig = field(default_factory=VJEPAConfig)
    fit: FitConfig = field(default_factory=FitConfig)
    batch_size: int = 32
    frame_step: int = 1
    validation_fraction: float = 0.05
    out: str | None = None


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
    """What the encoder in training is worth: label-free health, and ridge probes of the true quantities.

    Frames are encoded one by one, as at planning time; labels are read here and by no loss.

    Args:
        dataset: Episodes, of which up to `PROBE_FRAMES` frames are looked at.
        task: Its target encoder is judged.
    """

    def __init__(self, dataset: EpisodeDataset, task: VJEPATask) -> None:
        self._task = task
        self._frames = probe_frames(dataset.num_frames)
        self._episodes = np.searchsorted(dataset.index.start, self._frames, side="right") - 1
        index = dataset.index
        some = np.linspace(0, len(dataset) - 1, min(len(dataset), _HEALTH_CLIPS)).astype(np.int64)
        share = np.linspace(0, 1, _HEALTH_FRAMES)
        self._clips = index.start[some, None] + (share * (index.length[some, None] - 1)).astype(np.int64)
        self._dataset = dataset

    def __call__(self, step: int) -> dict[str, float]:
        """Named numbers for metrics.jsonl; a quantity that never varies has no R2 and is left out."""
        encoder, pixels = self._task.target_encoder, self._dataset.pixels[self._frames]
        blocks = np.array_split(pixels, max(1, len(pixels) // _ENCODE_FRAMES))
        features = np.concatenate([encode_block(encoder, block) for block in blocks])
        names = self._dataset.spec.privileged_names
        report = probe(features, self._dataset.privileged[self._frames], self._episodes, names)
        clips = torch.from_numpy(self._dataset.pixels[self._clips]).to(next(encoder.parameters()).device)
        numbers = {**frame_health(encoder, clips).to_dict("health_"), **report.to_dict()}
        return {name: value for name, value in numbers.items() if math.isfinite(value)}


def run(settings: Settings, run: Run) -> Outcome:
    """Pretrain and save the target encoder."""
    if not isinstance(settings.encoder, ViTConfig):
        raise ConfigError("pretrain needs encoder=vit: timm's backbones and pretrained encoders are frozen")
    if settings.fit.run_dir is not None:
        raise ConfigError("fit.run_dir is the folder of the run itself: set run_dir instead")
    dataset = EpisodeDataset.open(settings.data)
    run.note(
        f"Pretraining a V-JEPA encoder on {len(dataset)} episodes of {', '.join(dataset.env_ids)} in "
        f"{settings.fit.steps} steps of {settings.batch_size} clips"
    )
    run.kept = f"the last saved step is in {run.folder}; continue with run_dir={run.folder}"
    task, report = _fit(settings, settings.encoder, dataset, run)
    out = Path(settings.out) if settings.out is not None else run.folder / "encoder"
    save_encoder(out, task.target_encoder.cpu(), card_of(settings, dataset, report))
    record = {
        "encoder": str(out),
        "steps": report.step,
        "minutes": round(report.seconds / 60, 2),
        "metrics": numbers_of(report),
    }
    return Outcome(record=record, report=(_table(report), f"encoder: {out} ({record['minutes']} minutes)"))


def probe_frames(num_frames: int) -> NDArray[np.int64]:
    """Up to `PROBE_FRAMES` of the frames of a file, sorted.

    Drawn, not every k-th one: k may be the length of an episode, and then only first frames would be looked at.
    """
    return np.sort(np.random.default_rng(0).permutation(num_frames)[:PROBE_FRAMES])


def backgrounds(dataset: EpisodeDataset) -> Tensor:
    """(E, Y, X, 3) uint8 median frame of every episode: what does not move."""
    index = dataset.index
    frames = [
        np.median(dataset.pixels[start : start + length : _BACKGROUND_STRIDE], axis=0).astype(np.uint8)
        for start, length in zip(index.start, index.length, strict=True)
    ]
    return torch.from_numpy(np.stack(frames))


def card_of(settings: Settings, dataset: EpisodeDataset, report: FitReport) -> dict[str, Any]:
    """Facts that travel with the encoder."""
    return {
        "licence": CHECKPOINT_LICENCE,
        "data": {"hash": dataset.content_hash, "episodes": len(dataset), "frames": dataset.num_frames},
        "objective": asdict(settings.target),
        "steps": report.step,
        "batch_size": settings.batch_size,
        "minutes": round(report.seconds / 60, 2),
        "seed": settings.fit.seed,
        "hardware": hardware_facts(),
        "metrics": numbers_of(report),
    }


def _table(report: FitReport) -> Table:
    table = Table(title="encoder, frames encoded one by one")
    table.add_column("what")
    table.add_column("value", justify="right")
    for name, value in numbers_of(report).items():
        table.add_row(name, f"{value:.3f}")
    return table


def _fit(settings: Settings, encoder: ViTConfig, dataset: EpisodeDataset, run: Run) -> tuple[VJEPATask, FitReport]:
    seed = settings.fit.seed
    train_ids, _ = dataset.split(settings.validation_fraction, seed)
    sampler = ClipSampler(
        dataset,
        train_ids,
        num_frames=encoder.num_frames,
        frame_step=settings.frame_step,
        batch_size=settings.batch_size,
        seed=seed,
    )
    background = backgrounds(dataset) if settings.target.motion_weight > 0 else None
    task = VJEPATask(encoder, settings.target, background=background, seed=seed)
    config = replace(settings.fit, run_dir=str(run.folder))
    report = fit(
        task,
        ClipSource(sampler),
        config,
        evaluate=Monitor(dataset, task),
        progress=run.progress,
        title="pretraining",
    )
    return task, report
