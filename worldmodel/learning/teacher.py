"""A frozen teacher instead of one that follows: predict its features of what is hidden (SALT, arXiv:2509.24317).

The teacher is an encoder trained before, by default on pixels (`pixels.py`). It never moves, so nothing can collapse,
and the loss on held-out clips tells how training goes.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from worldmodel.errors import ConfigError
from worldmodel.learning.masked import MaskedConfig, MaskedTask, View
from worldmodel.learning.vjepa import follow
from worldmodel.models.encoders import VideoViT
from worldmodel.models.vit import ViTConfig

FIRST_STAGES = ("pixels", "ema_repaired")


@dataclass(kw_only=True)
class TeacherConfig(MaskedConfig):
    """Masked prediction of a frozen teacher's features, standardised at each position and channel.

    Attributes:
        path: Folder of the teacher; None trains one first, with the same masks and encoder.
        first_stage: How that is done: "pixels" (SALT), or "ema_repaired" (V-JEPA, `VJEPAConfig.repaired`).
        steps_share: Share of the optimiser steps that such a teacher gets, in (0, 1).
        standardise_floor: As for `VJEPAConfig`.
        polyak: Momentum of the averaged student that is kept.
    """

    path: str | None = None
    first_stage: str = "pixels"
    steps_share: float = 0.3
    standardise_floor: float = 0.1
    polyak: float = 0.999
    loss_exp: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.first_stage not in FIRST_STAGES:
            raise ConfigError(f"first_stage must be one of {', '.join(FIRST_STAGES)}, got {self.first_stage!r}")
        if not 0 < self.steps_share < 1:
            raise ConfigError(f"steps_share must be in (0, 1), got {self.steps_share}")
        if self.standardise_floor < 0 or not 0 <= self.polyak < 1:
            raise ConfigError(
                f"need standardise_floor >= 0 and polyak in [0, 1), got {self.standardise_floor} and {self.polyak}"
            )


class TeacherTask(MaskedTask):
    """Student, predictor and frozen teacher.

    Args:
        encoder: Config of the student.
        config: Objective.
        teacher: Gives the targets; its tokens must lie on the student's grid.
        background: As for `MaskedTask`.
        seed: Seed of the initial weights.

    Raises:
        ConfigError: The teacher's grid differs from the student's.
    """

    def __init__(
        self,
        encoder: ViTConfig,
        config: TeacherConfig,
        teacher: VideoViT,
        *,
        background: Tensor | None = None,
        seed: int = 0,
    ) -> None:
        if teacher.config.grid != encoder.grid:
            raise ConfigError(f"the teacher's grid is {teacher.config.grid}, the student's {encoder.grid}")
        super().__init__(encoder, config, target_dim=teacher.config.embed_dim, background=background, seed=seed)
        self.config = config
        self.teacher = copy.deepcopy(teacher).requires_grad_(False).eval()
        self.average = copy.deepcopy(self.encoder).requires_grad_(False)

    @property
    def result(self) -> VideoViT:
        """The averaged student."""
        return self.average

    def after_step(self, step: int, total_steps: int) -> None:
        """Average the student; quickly at first, when there is little to average."""
        follow(self.average, self.encoder, min(self.config.polyak, step / (step + 10)))

    def targets(self, view: View) -> Tensor:
        """Standardised features of the teacher."""
        with torch.no_grad():
            h = self.raw_targets(view)
            if self.training:
                view.statistics.update(h)
            return view.statistics.standardise(h, self.config.standardise_floor)

    def raw_targets(self, view: View) -> Tensor:
        """Features of the teacher."""
        return self.teacher.forward_patches(self.teacher.patchify(view.video)).float()
