"""Settings of a training run and what follows from them alone: precision, schedules and random streams.

Kept apart from `fit.py` so that the loop can be read on one page.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from worldmodel.errors import ConfigError

PRECISIONS = ("auto", "32-true", "bf16-mixed")


@dataclass(kw_only=True)
class FitConfig:
    """Optimisation and bookkeeping of one run.

    Defaults: betas, weight decay, final rate and the tenfold warm-up range are V-JEPA's order of magnitude
    (arXiv:2404.08471, appendix); length, peak and warm-up suit small encoders on two cores (docs/log.md). The published
    values are the presets configs/fit/vjepa1.yaml and vjepa2.yaml.

    Attributes:
        run_dir: Folder for checkpoints and metrics; None keeps nothing.
        steps: Optimiser steps.
        lr: Peak learning rate of AdamW.
        final_lr: Learning rate at the end of the cosine.
        warmup_steps: Steps of linear warm-up.
        start_lr: Rate that the warm-up starts from; None for lr / 10.
        cooldown_steps: None for a cosine after the warm-up (V-JEPA, arXiv:2404.08471, appendix). A number holds the
            peak and falls linearly to `final_lr` over that many last steps (V-JEPA 2, arXiv:2506.09985, section 2.4).
        stretch: The cosines are computed over this multiple of `steps` and cut (V-JEPA: 1.25).
        weight_decay: Weight decay of parameters with at least two dimensions; the others have none.
        final_weight_decay: Value at the end of a cosine from `weight_decay`; None keeps it constant.
        beta1: AdamW's first moment decay.
        beta2: AdamW's second moment decay.
        clip_norm: Largest gradient norm; 0 switches clipping off.
        seed: Seed of the per-step random streams the task draws from.
        precision: "auto" (bf16 where the device computes in it natively), "32-true" or "bf16-mixed".
        accelerator: Lightning Fabric's accelerator: "auto", "cpu", "cuda", ...
        devices: Processes or devices to use.
        log_every: Steps per row of metrics.
        eval_every: Steps between calls of the evaluation; 0 leaves only the one at the end.
        checkpoint_every: Steps between saves; the last step always saves.
    """

    run_dir: str | None = None
    steps: int = 1000
    lr: float = 1e-3
    final_lr: float = 1e-6
    warmup_steps: int = 100
    start_lr: float | None = None
    cooldown_steps: int | None = None
    stretch: float = 1.0
    weight_decay: float = 0.04
    final_weight_decay: float | None = None
    beta1: float = 0.9
    beta2: float = 0.999
    clip_norm: float = 0.0
    seed: int = 0
    precision: str = "auto"
    accelerator: str = "auto"
    devices: int = 1
    log_every: int = 20
    eval_every: int = 0
    checkpoint_every: int = 200

    def __post_init__(self) -> None:
        for name in ("steps", "devices", "log_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be >= 1, got {getattr(self, name)}")
        for name in ("final_lr", "warmup_steps", "weight_decay", "clip_norm", "seed", "eval_every"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must be >= 0, got {getattr(self, name)}")
        if not self.lr > 0:
            raise ConfigError(f"lr must be > 0, got {self.lr}")
        if self.start_lr is not None and not 0 <= self.start_lr <= self.lr:
            raise ConfigError(f"start_lr must be in [0, lr={self.lr}], got {self.start_lr}")
        if self.cooldown_steps is not None and not 0 <= self.cooldown_steps <= self.steps - self.warmup_steps:
            raise ConfigError(
                f"cooldown_steps must be in [0, steps - warmup_steps = {self.steps - self.warmup_steps}], got "
                f"{self.cooldown_steps}"
            )
        if self.stretch < 1:
            raise ConfigError(f"stretch must be >= 1, got {self.stretch}")
        if self.precision not in PRECISIONS:
            raise ConfigError(f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}")

    def fingerprint(self) -> dict[str, Any]:
        """Settings that change the numbers of a run: a resumed run must share them."""
        bookkeeping = ("run_dir", "eval_every", "checkpoint_every", "devices", "accelerator")
        later = ("start_lr", "cooldown_steps")  # younger than some unfinished runs, which have the default
        settings = {name: value for name, value in dataclasses.asdict(self).items() if name not in bookkeeping}
        return {name: value for name, value in settings.items() if value is not None or name not in later}


def has_native_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 matrices faster than fp32 (emulation on a CPU is slower)."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # private, so absence means no
        return any(getattr(torch.cpu, probe, bool)() for probe in probes)
    return False


def cosine(start: float, end: float, progress: float) -> float:
    """Half a cosine from `start` (progress 0) to `end` (progress 1)."""
    return end + 0.5 * (start - end) * (1.0 + math.cos(math.pi * min(1.0, progress)))


def learning_rate(config: FitConfig, step: int) -> float:
    """Rate of step `step` (0-based): linear warm-up, then the possibly stretched cosine, or constant and cool-down."""
    warmup, final = min(config.warmup_steps, config.steps), min(config.final_lr, config.lr)
    if step < warmup:
        if config.start_lr is None:
            return config.lr * (0.1 + 0.9 * (step + 1) / warmup)
        return config.start_lr + (config.lr - config.start_lr) * (step + 1) / warmup
    if config.cooldown_steps is not None:
        cooled = step + 1 - (config.steps - config.cooldown_steps)
        return config.lr if cooled <= 0 else config.lr + (final - config.lr) * cooled / config.cooldown_steps
    span = max(1.0, config.stretch * config.steps - warmup)
    return cosine(config.lr, final, (step - warmup) / span)


def weight_decay(config: FitConfig, step: int) -> float:
    """Weight decay of matrices at step `step` (0-based): constant, or a possibly stretched cosine without warm-up."""
    if config.final_weight_decay is None:
        return config.weight_decay
    return cosine(config.weight_decay, config.final_weight_decay, step / (config.stretch * config.steps))


def step_generator(seed: int, step: int, device: torch.device, rank: int = 0) -> torch.Generator:
    """Random stream of one step of one process: it depends on the arguments only, so resuming needs no state."""
    words = np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(words[0]) >> 1)
