"""Which pretraining target: one union of configs, one function that builds the task of each.

Separate from the tasks so that none of them knows the others.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from worldmodel.errors import ConfigError
from worldmodel.learning.any_colour import AnyColourConfig, AnyColourTask
from worldmodel.learning.masked import MaskedTask
from worldmodel.learning.online import OnlineConfig, OnlineTask
from worldmodel.learning.pixels import PixelsConfig, PixelsTask
from worldmodel.learning.teacher import TeacherConfig, TeacherTask
from worldmodel.learning.vjepa import VJEPAConfig, VJEPATask
from worldmodel.models.encoders import VideoViT
from worldmodel.models.latent_head import LatentHead
from worldmodel.models.vit import ViTConfig

TargetConfig = VJEPAConfig | PixelsConfig | TeacherConfig | AnyColourConfig | OnlineConfig


def build_task(
    encoder: ViTConfig,
    config: TargetConfig,
    *,
    background: Tensor | None = None,
    teacher: VideoViT | None = None,
    head: LatentHead | None = None,
    seed: int = 0,
) -> MaskedTask:
    """Training task of a target.

    Args:
        encoder: Architecture of the encoder to train.
        config: The target.
        background: (E, Y, X, 3) uint8 typical frame of each episode; see `MaskedTask`.
        teacher: Needed by, and only by, `TeacherConfig`.
        head: Of the teacher's planning latent, for `AnyColourConfig` with a `latent_weight`.
        seed: Seed of the initial weights.

    Raises:
        ConfigError: The teacher is missing or does not fit.
    """
    match config:
        case VJEPAConfig():
            return VJEPATask(encoder, config, background=background, seed=seed)
        case PixelsConfig():
            return PixelsTask(encoder, config, background=background, seed=seed)
        case OnlineConfig():
            return OnlineTask(encoder, config, background=background, seed=seed)
        case TeacherConfig():
            if teacher is None:
                raise ConfigError("a target of kind teacher needs the trained teacher")
            if isinstance(config, AnyColourConfig):
                return AnyColourTask(encoder, config, teacher, head=head, background=background, seed=seed)
            return TeacherTask(encoder, config, teacher, background=background, seed=seed)


def first_stage(config: TeacherConfig) -> PixelsConfig | VJEPAConfig:
    """Target of the first stage, that makes the teacher: masks and predictor are those of the second.

    A teacher on pixels shares the weights of the loss as well; one that is a V-JEPA has those of its own recipe.
    """
    if config.first_stage == "ema_repaired":
        return replace(VJEPAConfig.repaired(), predictor=config.predictor, mask=config.mask)
    return PixelsConfig(
        predictor=config.predictor,
        mask=config.mask,
        motion_weight=config.motion_weight,
        single_frame_fraction=config.single_frame_fraction,
    )
