"""Surprise of V-JEPA itself: the error of its masked predictor about frames that are hidden because they come last.

No actions: the predictor of pretraining sees the early frames of a short clip and fills in the late ones (Garrido et
al., arXiv:2502.11831). Any masked task can be asked, one that predicts pixels too.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worldmodel.envs.violations import Clip, Timing
from worldmodel.errors import ConfigError
from worldmodel.learning.masked import MaskedTask
from worldmodel.learning.masking import MaskConfig


@dataclass(kw_only=True)
class _Windows:
    """Short clips, one per model step.

    Attributes:
        pixels: (B, T, Y, X, 3) uint8.
        episode: (B,) long; there is no table of backgrounds.
    """

    pixels: Tensor
    episode: Tensor


class MaskedSurprise:
    """Error of a masked predictor at every model step, for the late half of the clip that ends there.

    Frames before the start repeat the first one.

    Args:
        task: A pretraining run; copied, put into evaluation mode, and asked with masks that hide the future.
        frame_step: Control steps between the frames of its clips, as it was trained.

    Raises:
        ConfigError: Its clips are too short to have a future, or it measures motion against backgrounds.
    """

    def __init__(self, task: MaskedTask, frame_step: int) -> None:
        frames, tubelet = task.encoder.config.num_frames, task.encoder.config.tubelet_size
        if frames < 2 * tubelet:
            raise ConfigError(f"clips of {frames} frames and tubelets of {tubelet} have no future to predict")
        if task.background is not None:
            raise ConfigError("build the task without backgrounds: these clips belong to no recorded episode")
        self._task = copy.deepcopy(task).eval()
        kinds = len(task.masking.mask.num_blocks)
        self._task.masking = copy.copy(task.masking)
        self._task.masking.mask = MaskConfig(kind="future", num_blocks=(1,) * kinds, spatial_scale=(0.5,) * kinds)
        self._num_frames, self._frame_step = frames, frame_step

    @torch.no_grad()
    def __call__(self, clip: Clip, timing: Timing) -> NDArray[np.float64]:
        """See `Judge`.

        Raises:
            ConfigError: The clip has not enough frames.
        """
        if self._frame_step % timing.frame_step:
            raise ConfigError(
                f"the task was trained on every {self._frame_step}. control step, the clip shows every "
                f"{timing.frame_step}.; film with every=1"
            )
        ends = np.arange(1, timing.before + timing.after + 1) * (timing.action_block // timing.frame_step)
        ages = np.arange(self._num_frames)[::-1] * (self._frame_step // timing.frame_step)
        windows = clip.pixels[np.maximum(ends[:, None] - ages, 0)]
        device = next(self._task.parameters()).device
        batch = _Windows(
            pixels=torch.from_numpy(windows).to(device),
            episode=torch.zeros(len(windows), dtype=torch.long, device=device),
        )
        predicted, target, _ = self._task.predict(batch, torch.Generator(device).manual_seed(0))
        error = (predicted.float() - target.float()).abs() ** self._task.masking.loss_exp
        surprise: NDArray[np.float64] = error.mean(dim=(1, 2)).double().cpu().numpy()
        return surprise
