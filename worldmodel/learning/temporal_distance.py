"""Learning how far goals are, in steps, from play: implicit value learning on the latents of the frozen head.

No rewards and no labels: every later frame of an episode is a goal that was reached. Expectile regression
(Kostrikov et al., arXiv:2110.06169, eq. 5, without actions as in Park et al., arXiv:2307.11949) makes the estimate
lean towards the fastest continuations seen instead of the average ones.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from worldmodel.errors import ConfigError, DataError
from worldmodel.learning.features import FrameStore, SeededSampler, head_input
from worldmodel.learning.fit_config import FitConfig
from worldmodel.models.temporal_distance import TemporalDistance, TemporalDistanceConfig

_ENCODE_FRAMES = 512


@dataclass(kw_only=True)
class TemporalDistanceTraining:
    """How the distance is learned.

    Attributes:
        steps: Optimiser steps; 0 leaves the distance out of the model.
        head: Network.
        batch_size: Pairs per step.
        lr: Peak learning rate.
        discount: Per model step, in (0, 1); distances saturate at 1 / (1 - discount).
        expectile: In [0.5, 1): 0.5 gives the mean over continuations, towards 1 the fastest.
        target_rate: Share of the online weights taken into the target network per step, in (0, 1].
        same_fraction: Share of goals that are the frame itself.
        other_fraction: Share of goals from anywhere in the data.
        mean_goal_steps: Mean number of model steps (geometric) to the other goals, later in the same episode, >= 1.
    """

    steps: int = 3000
    head: TemporalDistanceConfig = field(default_factory=TemporalDistanceConfig)
    batch_size: int = 512
    lr: float = 5e-4
    discount: float = 0.95
    expectile: float = 0.8
    target_rate: float = 0.005
    same_fraction: float = 0.1
    other_fraction: float = 0.2
    mean_goal_steps: float = 8.0

    def __post_init__(self) -> None:
        if self.steps < 0 or self.batch_size < 1:
            raise ConfigError(f"need steps >= 0 and batch_size >= 1, got {self.steps} and {self.batch_size}")
        if not 0 < self.discount < 1:
            raise ConfigError(f"discount must be in (0, 1), got {self.discount}")
        if not 0.5 <= self.expectile < 1:
            raise ConfigError(f"expectile must be in [0.5, 1), got {self.expectile}")
        if not 0 < self.target_rate <= 1:
            raise ConfigError(f"target_rate must be in (0, 1], got {self.target_rate}")
        if min(self.same_fraction, self.other_fraction) < 0 or self.same_fraction + self.other_fraction > 1:
            raise ConfigError(
                f"same_fraction and other_fraction must be >= 0 with a sum <= 1, got {self.same_fraction} and "
                f"{self.other_fraction}"
            )
        if self.mean_goal_steps < 1:
            raise ConfigError(f"mean_goal_steps must be >= 1, got {self.mean_goal_steps}")

    def fit_config(self, *, run_dir: str | None, seed: int) -> FitConfig:
        """Settings of the training loop."""
        return FitConfig(
            run_dir=run_dir,
            steps=self.steps,
            lr=self.lr,
            final_lr=0.05 * self.lr,
            warmup_steps=min(100, self.steps),
            weight_decay=1e-4,
            seed=seed,
            checkpoint_every=1000,
            log_every=100,
        )


@dataclass(kw_only=True)
class PairBatch:
    """Transitions with a goal each.

    Attributes:
        latent: (B, N, D).
        successor: (B, N, D) one model step later.
        goal: (B, N, D).
        is_goal: (B,) bool, `latent` is the goal's own frame.
        successor_is_goal: (B,) bool.
    """

    latent: Tensor
    successor: Tensor
    goal: Tensor
    is_goal: Tensor
    successor_is_goal: Tensor


class PairSampler(SeededSampler):
    """Draws transitions and goals from the latents of whole episodes.

    Args:
        latents: (F, N, D) latent of every frame of the data set; or (V, F, N, D) in V colours, drawn for each frame.
        store: Tells which frames form an episode.
        episode_ids: Episodes to draw from.
        action_block: Env steps in one model step.
        config: Kinds of goals, and the batch size.
        seed: Seed of the sampler's own stream.

    Raises:
        DataError: No episode is as long as one model step.
    """

    def __init__(
        self,
        latents: Tensor,
        store: FrameStore,
        episode_ids: NDArray[np.int64],
        *,
        action_block: int,
        config: TemporalDistanceTraining,
        seed: int,
    ) -> None:
        super().__init__(seed)
        self._looks = latents if latents.dim() == 4 else latents[None]
        self._block = action_block
        self._config = config
        self._starts = store.windows(episode_ids, action_block)
        if len(self._starts) == 0:
            raise DataError(f"no episode has more than {action_block} frames, one model step; record longer ones")
        self._frames = store.frames_of(episode_ids)
        episode = np.searchsorted(store.episode_start, self._starts, side="right") - 1
        last = store.episode_start[episode] + store.episode_len[episode] - 1
        self._num_left = (last - self._starts) // action_block

    def next_batch(self) -> PairBatch:
        """Draw the next batch."""
        rng, config = self._rng, self._config
        chosen = rng.integers(len(self._starts), size=config.batch_size)
        frame = self._starts[chosen]
        ahead = np.minimum(rng.geometric(1 / config.mean_goal_steps, size=config.batch_size), self._num_left[chosen])
        goal = frame + self._block * ahead
        kind = rng.random(config.batch_size)
        goal = np.where(kind < config.same_fraction, frame, goal)
        goal = np.where(kind > 1 - config.other_fraction, rng.choice(self._frames, size=config.batch_size), goal)
        successor = frame + self._block
        return PairBatch(
            latent=self._seen(frame),
            successor=self._seen(successor),
            goal=self._seen(goal),
            is_goal=torch.from_numpy(goal == frame),
            successor_is_goal=torch.from_numpy(goal == successor),
        )

    def _seen(self, frames: NDArray[np.int64]) -> Tensor:
        """Latents (B, N, D) of frames (B,)."""
        count = len(self._looks)
        looks = np.zeros(len(frames), np.int64) if count == 1 else self._rng.integers(count, size=len(frames))
        return self._looks[torch.from_numpy(looks), torch.from_numpy(frames)]


class TemporalDistanceTask(nn.Module):
    """Expectile regression of the discounted number of steps, with a slowly moving target network.

    Args:
        config: Recipe.
        latent_dim: Numbers in a flattened latent.
        seed: Seed of the initial weights.
    """

    def __init__(self, config: TemporalDistanceTraining, *, latent_dim: int, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.distance = TemporalDistance(config.head, latent_dim=latent_dim, seed=seed)
        self.target = copy.deepcopy(self.distance).requires_grad_(False)

    def forward(self, batch: PairBatch, generator: torch.Generator) -> dict[str, Tensor]:
        """Loss of one batch; nothing in it is random beyond the batch."""
        with torch.no_grad():
            onward = self.target(batch.successor, batch.goal).masked_fill(batch.successor_is_goal, 0.0)
            bound = (1 + self.config.discount * onward).masked_fill(batch.is_goal, 0.0)
        estimate = self.distance(batch.latent, batch.goal)
        error = bound - estimate
        # Shorter than estimated is good news, which counts more.
        weight = torch.where(error < 0, self.config.expectile, 1 - self.config.expectile)
        return {"loss": (weight * error.square()).mean(), "mean_steps": estimate.detach().mean()}

    def after_step(self, step: int, total_steps: int) -> None:
        """Move the target network."""
        with torch.no_grad():
            for slow, fast in zip(self.target.parameters(), self.distance.parameters(), strict=True):
                slow.lerp_(fast, self.config.target_rate)


@torch.no_grad()
def all_latents(head: nn.Module, features: NDArray[np.float16] | NDArray[np.uint8]) -> Tensor:
    """Latents (F, N, D) float32 of the features (F, N', D') of every frame of a data set.

    Computed where the head is, handed back on the CPU.
    """
    device = next(chain(head.parameters(), head.buffers())).device
    blocks = []
    for start in range(0, len(features), _ENCODE_FRAMES):
        block = torch.from_numpy(np.array(features[start : start + _ENCODE_FRAMES])).to(device)
        blocks.append(head(head_input(block[:, None]))[:, 0].float().cpu())
    return torch.cat(blocks)
