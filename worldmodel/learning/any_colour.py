"""A student that stands in for its teacher when colours change.

A pretrained encoder gives other features of the same scene in other colours, and whatever was learned on its features
is lost (docs/log.md). Here a copy of it learns to give the features of the frame as recorded while it sees the frame in
other colours, drawn for each frame by itself: nothing but video is needed, and a head trained on the colours of the
recording works on with the student. Separate from `teacher.py`, where what is hidden is predicted through a predictor:
here nothing is hidden, and the features themselves have to agree (docs/decisions/0020-any-colour.md).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from worldmodel.errors import ConfigError
from worldmodel.learning.masked import ClipLike, View
from worldmodel.learning.teacher import TeacherConfig, TeacherTask
from worldmodel.models.encoders import VideoViT
from worldmodel.models.latent_head import LatentHead
from worldmodel.models.vit import LAYER_NORM_EPS, ViTConfig


@dataclass(kw_only=True)
class AnyColourConfig(TeacherConfig):
    """Regression of a teacher's features of single frames from the same frames in other colours.

    `mask`, `predictor` and the loss on visible tokens are those of the first stage alone. Frames are single ones, as at
    planning time. `recolour`, `recolour_share` and `recolour_parts` say in which colours they are seen.

    Attributes:
        latent_weight: Weight of agreement in the planning latent of the world model that `path` names, beside that of
            the features: a planner sees nothing else. 0 leaves it out.
    """

    first_stage: str = "ema_repaired"
    steps_share: float = 0.45
    recolour: float = 1.0
    recolour_share: float = 0.75
    recolour_parts: float = 0.67
    motion_weight: float = 10.0
    single_frame_fraction: float = 1.0
    latent_weight: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.latent_weight < 0 or (self.latent_weight > 0 and self.path is None):
            raise ConfigError(
                "latent_weight must be >= 0, and needs the world model whose latent it is: set path, got "
                f"latent_weight={self.latent_weight}"
            )
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
        head: Makes planning latents of the teacher's features; needed with `latent_weight`.
        background: As for `MaskedTask`.
        seed: Of the predictor, which is not used.

    Raises:
        ConfigError: The teacher has another architecture or taps several blocks, or the head is missing.
    """

    config: AnyColourConfig

    def __init__(
        self,
        encoder: ViTConfig,
        config: AnyColourConfig,
        teacher: VideoViT,
        *,
        head: LatentHead | None = None,
        background: Tensor | None = None,
        seed: int = 0,
    ) -> None:
        if (config.latent_weight > 0) == (head is None):
            raise ConfigError("a head is needed for latent_weight > 0, and only then: an encoder has no latent")
        if teacher.config != encoder or encoder.taps:
            raise ConfigError(
                "the student starts as its teacher, so their architectures must agree, and its final features are what "
                f"it learns, so taps must be empty: {teacher.config} and {encoder}"
            )
        super().__init__(encoder, config, teacher, background=background, seed=seed)
        self.head = None if head is None else copy.deepcopy(head).requires_grad_(False).eval()
        self.predictor.requires_grad_(False)
        for network in (self.encoder, self.average):
            network.load_state_dict(teacher.state_dict())

    def forward(self, batch: ClipLike, generator: torch.Generator) -> dict[str, Tensor]:
        """Error of the student's features of single frames.

        Args:
            batch: Clips; one frame of every tubelet is used.
            generator: Stream of the colours.

        Returns:
            "loss", its terms, the positional share and the standard deviation of the targets.
        """
        view = self._take_apart(self._view(batch))
        with torch.no_grad():
            wanted = self.raw_targets(view)
            if self.training:
                view.statistics.update(wanted)
            targets = view.statistics.standardise(wanted, self.config.standardise_floor)
        everywhere = torch.arange(targets.shape[1], device=targets.device).expand(len(targets), -1)
        features = self._student(view, generator)
        standard = view.statistics.standardise(features, self.config.standardise_floor)
        terms = {"features": self._error(standard, targets, everywhere, view.motion, None)}
        if self.head is not None:
            terms["latent"] = 0.5 * (self._latent(features) - self._latent(wanted)).square().mean()
        return {
            "loss": terms["features"] + self.config.latent_weight * terms.get("latent", 0.0),
            **terms,
            "positional_share": view.statistics.positional_share(),
            "target_std": view.statistics.variance().mean().sqrt(),
        }

    def predict(self, batch: ClipLike, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """As `MaskedTask.predict`: the student's features of the first frame of every clip, in other colours."""
        view = self._take_apart(self._view(batch, with_motion=True))
        assert view.motion is not None
        first = slice(None, None, len(view.video) // len(batch.pixels))
        standard = view.statistics.standardise(self._student(view, generator), self.config.standardise_floor)
        return standard[first], self.targets(view)[first], view.motion[first]

    def _student(self, view: View, generator: torch.Generator) -> Tensor:
        """Features (B, N, D) of the student."""
        return self.encoder.forward_patches(self.encoder.patchify(self._disguised(view.video, generator))).float()

    def _latent(self, features: Tensor) -> Tensor:
        """Planning latents of the final features (B, N, D), normed as `VideoViT.encode_frames` does."""
        assert self.head is not None
        latent: Tensor = self.head(F.layer_norm(features, features.shape[-1:], eps=LAYER_NORM_EPS)).float()
        return latent
