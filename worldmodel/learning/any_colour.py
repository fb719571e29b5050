"""A student that stands in for its teacher when colours change.

A pretrained encoder gives other features of the same scene in other colours, and whatever was learned on its features
is lost (docs/log.md). Here a copy of it learns to give the features of the frame as recorded while it sees the frame in
other colours, drawn for each frame by itself: nothing but video is needed, and a head trained on the colours of the
recording works on with the student. Separate from `teacher.py`, where what is hidden is predicted through a predictor:
here nothing is hidden, and the features themselves have to agree (docs/decisions/0020-any-colour.md).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from worldmodel.errors import ConfigError
from worldmodel.learning.masked import ClipLike, View
from worldmodel.learning.teacher import TeacherConfig, TeacherTask
from worldmodel.models.encoders import VideoViT
from worldmodel.models.vit import ViTConfig


@dataclass(kw_only=True)
class AnyColourConfig(TeacherConfig):
    """Regression of a teacher's features of single frames from the same frames in other colours.

    `mask`, `predictor` and the loss on visible tokens are those of the first stage alone. Frames are single ones, as at
    planning time. `recolour`, `recolour_share` and `recolour_parts` say in which colours they are seen.
    """

    first_stage: str = "ema_repaired"
    steps_share: float = 0.45
    recolour: float = 1.0
    recolour_share: float = 0.75
    recolour_parts: float = 0.67
    motion_weight: float = 10.0
    single_frame_fraction: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.single_frame_fraction != 1:
            raise ConfigError(
                f"this target is for single frames: single_frame_fraction must be 1, got {self.single_frame_fraction}"
            )


class AnyColourTask(TeacherTask):
    """Student, which starts as the teacher, and frozen teacher.

    Args:
        encoder: Config of the student.
        config: Objective.
        teacher: Gives the targets; must have the architecture of the student.
        background: As for `MaskedTask`.
        seed: Of the predictor, which is not used.

    Raises:
        ConfigError: The teacher has another architecture.
    """

    def __init__(
        self,
        encoder: ViTConfig,
        config: AnyColourConfig,
        teacher: VideoViT,
        *,
        background: Tensor | None = None,
        seed: int = 0,
    ) -> None:
        if replace(teacher.config, taps=()) != replace(encoder, taps=()):
            raise ConfigError(
                f"the student starts as its teacher, so their architectures must agree: {teacher.config} and {encoder}"
            )
        super().__init__(encoder, config, teacher, background=background, seed=seed)
        self.predictor.requires_grad_(False)
        for network in (self.encoder, self.average):
            network.load_state_dict(teacher.state_dict())

    def forward(self, batch: ClipLike, generator: torch.Generator) -> dict[str, Tensor]:
        """Error of the student's features of single frames.

        Args:
            batch: Clips; one frame of every tubelet is used.
            generator: Stream of the colours.

        Returns:
            "loss", the positional share and the standard deviation of the targets.
        """
        view = self._take_apart(self._view(batch))
        targets = self.targets(view)
        everywhere = torch.arange(targets.shape[1], device=targets.device).expand(len(targets), -1)
        loss = self._error(self._student(view, generator), targets, everywhere, view.motion, None)
        return {
            "loss": loss,
            "positional_share": view.statistics.positional_share(),
            "target_std": view.statistics.variance().mean().sqrt(),
        }

    def predict(self, batch: ClipLike, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """As `MaskedTask.predict`: the student's features of the first frame of every clip, in other colours."""
        view = self._take_apart(self._view(batch, with_motion=True))
        assert view.motion is not None
        first = slice(None, None, len(view.video) // len(batch.pixels))
        return self._student(view, generator)[first], self.targets(view)[first], view.motion[first]

    def _student(self, view: View, generator: torch.Generator) -> Tensor:
        """Features (B, N, D) of the student, standardised like the targets."""
        seen = self.encoder.patchify(self._disguised(view.video, generator))
        features = self.encoder.forward_patches(seen).float()
        return view.statistics.standardise(features, self.config.standardise_floor)
