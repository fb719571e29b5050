"""Masked pixel prediction: the generative foil, and the first stage of a frozen teacher (SALT, arXiv:2509.24317).

Plain pixels reward the background, which never moves here. What differs from the typical frame of the episode is
predicted beside them, so that the foil is as strong as we can make it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from worldmodel.errors import ConfigError
from worldmodel.learning.masked import MaskedConfig, MaskedTask, View
from worldmodel.models.vit import ViTConfig, patchify


@dataclass(kw_only=True)
class PixelsConfig(MaskedConfig):
    """Masked prediction of pixels.

    Attributes:
        residual_weight: Weight of the difference to the background.
        full_weight: Weight of the pixels themselves.
    """

    loss_exp: int = 2
    residual_weight: float = 1.0
    full_weight: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.residual_weight, self.full_weight) < 0 or self.residual_weight + self.full_weight == 0:
            raise ConfigError(
                f"residual_weight and full_weight must be >= 0 and not both 0, got {self.residual_weight} and "
                f"{self.full_weight}"
            )


class PixelsTask(MaskedTask):
    """Encoder and pixel decoder.

    Both parts of the target are divided by one number each, their deviation over everything, not per patch: that would
    turn flat patches into amplified rendering noise.

    Args:
        encoder: Config of the encoder.
        config: Objective.
        background: As for `MaskedTask`.
        seed: Seed of the initial weights.
    """

    def __init__(
        self, encoder: ViTConfig, config: PixelsConfig, *, background: Tensor | None = None, seed: int = 0
    ) -> None:
        patch = encoder.tubelet_size * encoder.patch_size**2 * 3
        self._weights = tuple(weight for weight in (config.residual_weight, config.full_weight) if weight > 0)
        super().__init__(encoder, config, target_dim=patch * len(self._weights), background=background, seed=seed)
        self.config = config

    def targets(self, view: View) -> Tensor:
        """Pixels of every tubelet patch: difference to the background, then the pixels themselves."""
        with torch.no_grad():
            h = self.raw_targets(view)
            if self.training:
                view.statistics.update(h)
            # One deviation per part, over places, channels and clips; the weight of a squared error is its root.
            squares = view.statistics.square.mean(dim=0).chunk(len(self._weights))
            scale = [
                math.sqrt(weight * len(self._weights)) * (square.mean() + 1e-8).rsqrt().expand_as(square)
                for weight, square in zip(self._weights, squares, strict=True)
            ]
            return h * torch.cat(scale)

    def raw_targets(self, view: View) -> Tensor:
        """The two parts as they are: difference to the background, then pixels around mid-grey, full scale is 1."""
        kinds = []
        if self.config.residual_weight > 0:
            kinds.append(self._cut(view.video - view.still))
        if self.config.full_weight > 0:
            kinds.append(self._cut(view.video - 0.5))
        return torch.cat(kinds, dim=-1).float()

    def _cut(self, video: Tensor) -> Tensor:
        """Video (B, T, 3, Y, X) -> tubelet patches (B, N, P), in the units it came in."""
        config = self.encoder.config
        return patchify(video, tubelet_size=config.tubelet_size, patch_size=config.patch_size)
