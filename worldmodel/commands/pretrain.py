"""`worldmodel pretrain`: V-JEPA on video alone."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldmodel.commands.run import Outcome, Run, RunSettings
from worldmodel.data.clips import ClipBatch, ClipSampler
from worldmodel.data.episodes import EpisodeDataset
from worldmodel.doctor import hardware_facts
from worldmodel.errors import ConfigError
from worldmodel.learning.fit import FitReport, fit
from worldmodel.learning.fit_config import FitConfig
from worldmodel.learning.vjepa import VJEPAConfig, VJEPATask
from worldmodel.models.checkpoint import save_encoder
from worldmodel.models.encoders import TimmEncoderConfig
from worldmodel.models.vit import ViTConfig

LICENCE = "MIT"
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


def run(settings: Settings, run: Run) -> Outcome:
    """Pretrain and save the target encoder."""
    if not isinstance(settings.encoder, ViTConfig):
        raise ConfigError("pretrain needs encoder=vit: timm's backbones are frozen and come with their own weights")
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
        "metrics": {**report.metrics, **report.evaluation},
    }
    return Outcome(record=record, report=(f"encoder: {out} ({record['minutes']} minutes)",))


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
        "licence": LICENCE,
        "data": {"hash": dataset.content_hash, "episodes": len(dataset), "frames": dataset.num_frames},
        "objective": asdict(settings.target),
        "steps": report.step,
        "batch_size": settings.batch_size,
        "minutes": round(report.seconds / 60, 2),
        "seed": settings.fit.seed,
        "hardware": hardware_facts(),
        "metrics": {**report.metrics, **report.evaluation},
    }


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
    report = fit(task, ClipSource(sampler), config, progress=run.progress, title="pretraining")
    return task, report
