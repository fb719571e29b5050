"""Push in pictures whose bytes are the true state, and the encoder that reads them: a perfect encoder, for comparison.

Importing this module registers both, the environment as `worldmodel/StatePush-v0`. Everything above the encoder
(recordings, training, planning, evaluation) then runs as on real pictures, and what it achieves is what no encoder of
pictures can be blamed for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worldmodel.data.episodes import EpisodeDataset, EpisodeWriter
from worldmodel.envs.base import Array
from worldmodel.envs.push import PushEnv
from worldmodel.evaluation.manifest import Manifest
from worldmodel.models.encoders import Encoder, check_frames
from worldmodel.models.frozen_encoders import register_encoder

STATE_PUSH_ID = "worldmodel/StatePush-v0"
NUMBERS = 9
"""Gripper x, y, z and opening, block x, y, z (metres), sine and cosine of the block's yaw."""


def pictures_of(privileged: Array, image_size: int) -> NDArray[np.uint8]:
    """Pictures (..., Y, X, 3) whose first bytes are the state (..., 8), yaw as sine and cosine, in float32."""
    yaw = privileged[..., -1:]
    state = np.concatenate([privileged[..., :-1], np.sin(yaw), np.cos(yaw)], axis=-1).astype("<f4")
    pictures = np.zeros((*state.shape[:-1], image_size * image_size * 3), np.uint8)
    pictures[..., : 4 * NUMBERS] = np.ascontiguousarray(state).view(np.uint8)
    return pictures.reshape(*state.shape[:-1], image_size, image_size, 3)


class StatePushEnv(PushEnv):
    """Push, seen through `pictures_of`."""

    env_id: ClassVar[str] = STATE_PUSH_ID

    def __init__(self, *, image_size: int = 64, render: bool = True, render_mode: str | None = None) -> None:
        super().__init__(image_size=image_size, render=False, render_mode=render_mode)

    def _picture(self) -> NDArray[np.uint8]:
        return pictures_of(self.privileged(), self.image_size)


@dataclass(kw_only=True)
class StateConfig:
    """Side of the pictures, pixels."""

    image_size: int = 64


class StateEncoder(Encoder):
    """One token per frame: the numbers its picture is made of."""

    def __init__(self, config: StateConfig) -> None:
        super().__init__()
        self.config, self.image_size, self.num_tokens, self.embed_dim = config, config.image_size, 1, NUMBERS

    def encode_frames(self, pixels: Tensor) -> Tensor:
        """See `Encoder.encode_frames`."""
        check_frames(pixels, self.image_size)
        numbers = pixels.flatten(2)[..., : 4 * NUMBERS].contiguous().view(torch.float32)
        return numbers.unsqueeze(2)


def state_recording(dataset: EpisodeDataset, path: str) -> None:
    """Write the episodes of a Push recording again, in pictures of their states."""
    with EpisodeWriter(path, replace(dataset.spec, env_id=STATE_PUSH_ID)) as writer:
        for number in range(len(dataset)):
            episode = dataset.episode(number)
            pictures = pictures_of(episode.privileged, dataset.spec.image_size)
            writer.append(replace(episode, pixels=pictures, env_id=STATE_PUSH_ID))


def state_manifest(manifest: Manifest) -> Manifest:
    """The same tasks, with their stored outcomes, of the environment that shows its state."""
    tasks = tuple(replace(task, env_id=STATE_PUSH_ID) for task in manifest.tasks)
    return replace(manifest, env_id=STATE_PUSH_ID, tasks=tasks)


register_encoder(StateConfig, StateEncoder)
if STATE_PUSH_ID not in gymnasium.registry:
    gymnasium.register(id=STATE_PUSH_ID, entry_point="state_pictures:StatePushEnv")
