"""What a frozen evaluation amounts to, before it is run: cells, pretrainings, arithmetic, hours."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from worldmodel.commands.probe_arms import ArmEncoders, ProbeArm, parse_arms
from worldmodel.errors import CheckpointError, ConfigError
from worldmodel.evaluation.products import Products, matmul_flops
from worldmodel.learning.attentive_probe import AttentiveProbe, clip_tokens, token_grid
from worldmodel.learning.probe_training import ProbeFitConfig
from worldmodel.models.encoders import Encoder
from worldmodel.models.frozen_encoders import build_encoder
from worldmodel.models.runtime import default_device

if TYPE_CHECKING:
    from worldmodel.commands.probe import Settings

_REACHED_SHARE = 0.5  # of the best matrix product; what the cost estimate assumes
_TRAIN_FLOPS = 3  # a training step takes about three forward passes


def plan(settings: Settings) -> dict[str, Any]:
    """What a run would do and about how much arithmetic it takes; nothing is trained or written.

    Pretraining is named, not counted. Hours are at half of this machine's best rate for one matrix product.
    """
    arms = parse_arms(settings.arms, settings.candidate)
    folder = Path(settings.encoders or Path(settings.run_dir or "outputs/probe") / "encoders")
    encoders = ArmEncoders(arms, settings.pretraining, settings.data, folder)
    flops: dict[str, float | None] = {}
    for name, arm in arms.items():
        try:
            config = encoders.config(name)
        except (CheckpointError, ConfigError):
            flops[name] = None  # not there yet: nothing can be said about its size
            continue
        flops[name] = _arm_flops(settings, arm, build_encoder(config))
    total = sum(value for value in flops.values() if value is not None)
    products = Products([(1024, 96, 384)], torch.float32, default_device())
    rate = max(products.round() for _ in range(3))
    return {
        "cells": len(settings.cell_list()),
        "probes_trained": sum(_trainings(arms[cell.arm].fit(settings.fit)) for cell in settings.cell_list()),
        "pretrainings": encoders.pretrainings(),
        "teraflop": round(total / 1e12, 1),
        "teraflop_of_arms": {name: None if value is None else round(value / 1e12, 1) for name, value in flops.items()},
        "hours_without_pretraining": round(total / (_REACHED_SHARE * rate) / 3600, 2),
        "assumed_gigaflop_per_s": round(_REACHED_SHARE * rate / 1e9, 1),
    }


def _arm_flops(settings: Settings, arm: ProbeArm, encoder: Encoder) -> float:
    """Matrix products of all cells of an arm."""
    size, total = encoder.image_size, 0.0
    passes, cells = _clip_passes(settings, arm.fit(settings.fit)), settings.splits * len(settings.labels)
    encoded = (settings.clips + settings.test_clips) * (settings.splits if arm.fresh else arm.seeds)
    encodings: dict[int, int] = {}
    for task in settings.tasks:
        frames = 1 if task == "kind" else settings.num_frames
        grid = token_grid(encoder, frames)
        if frames not in encodings:
            clip = torch.zeros(1, frames, size, size, 3, dtype=torch.uint8)
            with torch.no_grad():
                encodings[frames] = matmul_flops(partial(clip_tokens, encoder, clip))
        probe = AttentiveProbe(
            settings.head,
            grid=grid,
            embed_dim=encoder.embed_dim,
            num_queries=frames if task == "contact" else 1,
            num_outputs=5,
            seed=0,
        )
        tokens = torch.zeros(1, math.prod(grid), encoder.embed_dim)
        with torch.no_grad():
            reading = matmul_flops(partial(probe, tokens))
        read = _TRAIN_FLOPS * passes + cells * settings.test_clips
        total += reading * read + encodings[frames] * (read if arm.finetune else encoded)
    return total


def _trainings(fit: ProbeFitConfig) -> int:
    """Probes trained for one cell: every candidate, and the best once more; a single one is not judged."""
    return len(fit.candidates) + 1 if len(fit.candidates) > 1 else 1


def _clip_passes(settings: Settings, fit: ProbeFitConfig) -> int:
    """Clips that the probes of an arm see in training in one task, sweeps included."""
    passes = 0
    for share in settings.labels:
        labelled = max(2, round(share * settings.clips))
        runs = [(labelled, 1)]
        if len(fit.candidates) > 1:
            runs.append((max(1, round(labelled * (1 - fit.validation_fraction))), len(fit.candidates)))
        passes += settings.splits * sum(n * fit.steps(clips) * min(fit.batch_size, clips) for clips, n in runs)
    return passes
