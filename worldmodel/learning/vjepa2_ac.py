"""Training V-JEPA 2-AC's predictor on the tokens of a frozen encoder (arXiv:2506.09985, section 3.1).

Apart from `dynamics.py`: the space is fixed, so there is nothing to keep from collapsing; there are robot states beside
the actions, and the error is absolute.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from worldmodel.errors import ConfigError
from worldmodel.learning.features import TrajectorySampler
from worldmodel.learning.fit import to_device
from worldmodel.models.ac_dynamics import PoseMap
from worldmodel.models.ac_predictor import ACPredictor, ACPredictorConfig, normalise_tokens
from worldmodel.models.pose import pose_change


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


@dataclass(frozen=True, kw_only=True)
class RobotBatch:
    """`RobotClips` in memory.

    Attributes:
        tokens: (B, T, N, D).
        states: (B, T, 7).
        actions: (B, T - 1, 7).
    """

    tokens: Tensor
    states: Tensor
    actions: Tensor


class RobotClipSampler:
    """Sub-trajectories of a data set as the predictor reads them.

    Actions are the changes between recorded poses, as in the published data, not the commands that caused them.

    Args:
        sampler: Draws the sub-trajectories.
        pose: Reads proprioception as poses.
    """

    def __init__(self, sampler: TrajectorySampler, pose: PoseMap) -> None:
        self._sampler, self._pose = sampler, pose

    def next_batch(self) -> RobotBatch:
        """Draw the next batch."""
        drawn = self._sampler.next_batch()
        states = self._pose.poses(drawn.proprio.float())
        return RobotBatch(
            tokens=drawn.features.float(), states=states, actions=pose_change(states[:, :-1], states[:, 1:])
        )

    def state_dict(self) -> dict[str, Any]:
        """Position in the stream, JSON-able."""
        return self._sampler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue a stream."""
        self._sampler.load_state_dict(state)


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


@torch.no_grad()
def held_out_errors(task: VJEPA2ACTask, batches: Sequence[RobotBatch]) -> dict[str, float]:
    """Mean absolute error on held-out clips, beside what repeating the last frame and foreign actions give.

    Args:
        task: Being trained.
        batches: Held-out clips.

    Returns:
        "val_teacher_forcing", "val_rollout", "val_still" (every next frame taken to be the last one seen) and
        "val_foreign_actions" (teacher forcing with the actions of the next clip of the batch): a model that reads its
        actions errs less than with foreign ones, a model that predicts motion less than a still world.
    """
    device = next(task.parameters()).device
    sums: dict[str, float] = {}
    for batch in batches:
        moved = to_device(batch, device)
        z = normalise_tokens(moved.tokens)
        losses = task(moved)
        foreign = task(replace(moved, actions=moved.actions.roll(1, dims=0)))
        for name, value in (
            ("val_teacher_forcing", losses["teacher_forcing"]),
            ("val_rollout", losses["rollout"]),
            ("val_still", (z[:, 1:] - z[:, :-1]).abs().mean()),
            ("val_foreign_actions", foreign["teacher_forcing"]),
        ):
            sums[name] = sums.get(name, 0.0) + float(value) / len(batches)
    return sums
