"""Training V-JEPA 2-AC's predictor on the tokens of a frozen encoder (arXiv:2506.09985, section 3.1).

Apart from `dynamics.py`: the space is fixed, so there is nothing to keep from collapsing; there are robot states beside
the actions, and the error is absolute.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from worldmodel.errors import ConfigError
from worldmodel.learning.fit_config import FitConfig
from worldmodel.models.ac_predictor import ACPredictor, ACPredictorConfig, normalise_tokens


class RobotClips(Protocol):
    """What the task reads of a batch.

    Attributes:
        tokens: (B, T, N, D) the frozen encoder's tokens of single frames.
        states: (B, T, 7) poses; see `models.pose`.
        actions: (B, T - 1, 7) changes of pose between them (`models.pose.pose_change`).
    """

    tokens: Tensor
    states: Tensor
    actions: Tensor


@dataclass(kw_only=True)
class VJEPA2ACConfig:
    """The objective; every default is the published one.

    Attributes:
        predictor: Sizes of the predictor.
        rollout_steps: Steps of the open-loop rollout from the first frame (published: 2).
        checkpoint_activations: Compute the blocks again in the backward pass (published: yes, at full size).
    """

    predictor: ACPredictorConfig = field(default_factory=ACPredictorConfig)
    rollout_steps: int = 2
    checkpoint_activations: bool = False

    def __post_init__(self) -> None:
        if self.rollout_steps < 1:
            raise ConfigError(f"rollout_steps must be >= 1, got {self.rollout_steps}")


def published_fit() -> FitConfig:
    """Optimisation of the released model: constant rate between a linear warm-up and a linear cool-down to 0.

    94,500 steps of 256 clips of 8 frames at 4 frames a second (vjepa2 `configs/train/vitg16/droid-256px-8f.yaml`).
    """
    return FitConfig(
        steps=94_500,
        lr=4.25e-4,
        start_lr=7.5e-5,
        final_lr=0.0,
        warmup_steps=4500,
        cooldown_steps=4500,
        weight_decay=0.04,
    )


class VJEPA2ACTask(nn.Module):
    """Teacher forcing on whole clips, and a short rollout with the recorded states; both weigh alike.

    The rollout feeds the first prediction back. The released weights were trained with the second one in its place, an
    error corrected upstream later (vjepa2 93366fe).

    Args:
        config: Objective.
        seed: Seed of the initial weights.
    """

    def __init__(self, config: VJEPA2ACConfig, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.predictor = ACPredictor(config.predictor, seed=seed)
        self.predictor.checkpoint_activations = config.checkpoint_activations

    def forward(self, batch: RobotClips, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Losses of one batch.

        Args:
            batch: Clips of more than `rollout_steps` frames.
            generator: Not used: nothing is drawn.

        Returns:
            "loss" = "teacher_forcing" + "rollout", each the mean absolute error of layer-normed tokens.

        Raises:
            ConfigError: The clips are too short.
        """
        steps, frames = self.config.rollout_steps, batch.tokens.shape[1]
        if frames <= steps:
            raise ConfigError(f"a rollout of {steps} steps needs clips of at least {steps + 1} frames, got {frames}")
        z = normalise_tokens(batch.tokens)
        actions, states = batch.actions, batch.states
        forced = normalise_tokens(self.predictor(z[:, :-1], actions, states[:, :-1]))
        teacher_forcing = (forced - z[:, 1:]).abs().mean()
        seen = torch.cat([z[:, :1], forced[:, :1]], dim=1)
        for step in range(2, steps + 1):
            following = normalise_tokens(self.predictor(seen, actions[:, :step], states[:, :step]))[:, -1:]
            seen = torch.cat([seen, following], dim=1)
        rollout = (seen[:, 1:] - z[:, 1 : steps + 1]).abs().mean()
        return {"loss": teacher_forcing + rollout, "teacher_forcing": teacher_forcing, "rollout": rollout}
