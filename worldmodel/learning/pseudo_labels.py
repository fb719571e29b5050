"""Actions for video that has none: guessed from its frames by an inverse dynamics model learned on a few labels.

Which action led from one frame to the next is far easier to tell than what an action will do, because the inverse
model sees the outcome; so a few labelled episodes give usable actions to all the others, and the dynamics are learned
on all of them (Baker et al., "Video PreTraining", arXiv:2206.11795, who clone behaviour on such labels). A guess is
about the mean of the actions that fit the frames, so true actions scatter around guesses: such errors make dynamics
learned on guesses noisier, but do not shrink what an action does, as noise added to true actions would.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from worldmodel.data.normalize import Normalizer
from worldmodel.errors import ConfigError, DataError
from worldmodel.learning.features import FrameStore, SeededSampler
from worldmodel.learning.fit import fit
from worldmodel.learning.fit_config import FitConfig
from worldmodel.models.init import seeded_weights
from worldmodel.models.latent_head import TokenStandardiser

_BLOCK_FRAMES = 512


@dataclass(kw_only=True)
class PseudoLabelConfig:
    """How the inverse dynamics model is learned.

    Attributes:
        steps: Optimiser steps; 0 guesses nothing.
        offsets: Frames it sees, in env steps from the one where the action is taken; beyond the ends of an episode
            the last frame stands in.
        token_dim: Width of each token after the shared linear map, before flattening.
        hidden_dim: Width of the layers after that.
        dropout: Share of hidden units left out in training, in [0, 1).
        batch_size: Actions per step.
        lr: Peak learning rate.
        weight_decay: Of matrices.
    """

    steps: int = 0
    offsets: tuple[int, ...] = (-1, 0, 1, 2)
    token_dim: int = 32
    hidden_dim: int = 256
    dropout: float = 0.1
    batch_size: int = 256
    lr: float = 1e-3
    weight_decay: float = 0.05

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ConfigError(f"pseudo_labels.steps must be >= 0, got {self.steps}")
        for name in ("token_dim", "hidden_dim", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"pseudo_labels.{name} must be >= 1, got {getattr(self, name)}")
        if not {0, 1} <= set(self.offsets):
            raise ConfigError(f"pseudo_labels.offsets must hold 0 and 1, before and after, got {list(self.offsets)}")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"pseudo_labels.dropout must be in [0, 1), got {self.dropout}")

    def fit_config(self, *, run_dir: str | None, seed: int, precision: str = "auto") -> FitConfig:
        """Settings of the training loop."""
        return FitConfig(
            run_dir=run_dir,
            steps=self.steps,
            lr=self.lr,
            warmup_steps=min(100, self.steps),
            weight_decay=self.weight_decay,
            clip_norm=1.0,
            seed=seed,
            precision=precision,
            checkpoint_every=1000,
            log_every=50,
        )


@dataclass(kw_only=True)
class InverseBatch:
    """Frames around actions.

    Attributes:
        features: (B, K, N, D) frozen features of the frames at the offsets.
        action: (B, A) env units.
        proprio: (B, P) env units, where the action is taken.
    """

    features: Tensor
    action: Tensor
    proprio: Tensor


class InverseSampler(SeededSampler):
    """Draws actions uniformly from the given episodes, with replacement.

    Args:
        store: Features, actions and proprioception.
        episode_ids: Episodes to draw from.
        offsets: See `PseudoLabelConfig`.
        batch_size: B.
        seed: Seed of the sampler's own stream.

    Raises:
        DataError: There is no action.
    """

    def __init__(
        self, store: FrameStore, episode_ids: NDArray[np.int64], *, offsets: tuple[int, ...], batch_size: int, seed: int
    ) -> None:
        super().__init__(seed)
        self._store, self._offsets, self._batch_size = store, offsets, batch_size
        self.acting = store.windows(episode_ids, 1)
        if len(self.acting) == 0:
            raise DataError("no episode has two frames, so there is no action to learn from")

    def next_batch(self) -> InverseBatch:
        """Draw the next batch."""
        return self.batch_at(self.acting[self._rng.integers(len(self.acting), size=self._batch_size)])

    def batch_at(self, frames: NDArray[np.int64]) -> InverseBatch:
        """Batch of the actions taken at frames (B,)."""
        store = self._store
        return InverseBatch(
            features=torch.from_numpy(np.asarray(store.features[around(store, frames, self._offsets)])),
            action=torch.from_numpy(store.action[frames]),
            proprio=torch.from_numpy(store.proprio[frames]),
        )


def around(store: FrameStore, frames: NDArray[np.int64], offsets: tuple[int, ...]) -> NDArray[np.int64]:
    """Frame numbers (B, K) at offsets from frames (B,), inside their episodes."""
    episode = np.searchsorted(store.episode_start, frames, side="right") - 1
    first = store.episode_start[episode][:, None]
    last = first + store.episode_len[episode][:, None] - 1
    inside: NDArray[np.int64] = np.clip(frames[:, None] + np.array(offsets), first, last)
    return inside


class InverseDynamics(nn.Module):
    """Action and proprioception from the frozen features of the frames around it, and the loss to learn that.

    Args:
        config: Sizes.
        num_tokens: Tokens per frame of the features.
        embed_dim: Their width.
        action_dim: A, of one env step.
        proprio_dim: P.
        seed: Seed of the initial weights.
    """

    def __init__(
        self,
        config: PseudoLabelConfig,
        *,
        num_tokens: int,
        embed_dim: int,
        action_dim: int,
        proprio_dim: int,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_dim
        self.standardise = TokenStandardiser(num_tokens, embed_dim)
        self.action_normalizer = Normalizer(action_dim)
        self.proprio_normalizer = Normalizer(proprio_dim)
        with seeded_weights(seed):
            self.token = nn.Linear(embed_dim, config.token_dim)
            self.frame = nn.Sequential(nn.Linear(num_tokens * config.token_dim, width), nn.LayerNorm(width), nn.GELU())
            self.readout = nn.Linear(width, proprio_dim)
            self.between = nn.Sequential(nn.Linear(len(config.offsets) * width, width), nn.LayerNorm(width), nn.GELU())
            self.action = nn.Linear(width, action_dim)

    def fit_statistics(self, store: FrameStore, labelled: NDArray[np.int64], seed: int) -> None:
        """Set the standardisation of tokens, actions and proprioception from labelled episodes."""
        chosen = store.statistics_frames(labelled, seed)
        parts = np.array_split(chosen, min(32, len(chosen)))
        self.standardise.fit(torch.from_numpy(store.features[part]) for part in parts)
        acting = store.windows(labelled, 1)
        self.action_normalizer.load_state_dict(Normalizer.fit(store.action[acting]).state_dict())
        self.proprio_normalizer.load_state_dict(Normalizer.fit(store.proprio[store.frames_of(labelled)]).state_dict())

    def embed(self, features: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """One vector per frame (..., W) of features (..., N, D); with a generator, units are left out at random."""
        narrow = self.token(self.standardise(features.float())).flatten(-2)
        embedded: Tensor = self.frame(self._drop(narrow, generator))
        return embedded

    def guess(self, embedded: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Standardised action (B, A) and proprioception (B, P) from the vectors (B, K, W) of the frames around."""
        now = embedded[:, self.config.offsets.index(0)]
        moved = embedded - now[:, None]
        moved[:, self.config.offsets.index(0)] = now
        hidden = self.between(self._drop(moved.flatten(1), generator))
        return self.action(self._drop(hidden, generator)).float(), self.readout(now).float()

    def _drop(self, hidden: Tensor, generator: torch.Generator | None) -> Tensor:
        """Dropout that draws from the given stream (torch's draws from the global one)."""
        share = self.config.dropout
        if generator is None or share == 0:
            return hidden
        kept = torch.empty_like(hidden).bernoulli_(1 - share, generator=generator)
        return hidden * kept / (1 - share)

    def forward(self, batch: InverseBatch, generator: torch.Generator) -> dict[str, Tensor]:
        """Loss of one batch: mean squared errors of standardised actions and proprioception."""
        stream = generator if self.training else None
        action, proprio = self.guess(self.embed(batch.features, stream), stream)
        parts = {
            "action": functional.mse_loss(action, self.action_normalizer(batch.action)),
            "proprio": functional.mse_loss(proprio, self.proprio_normalizer(batch.proprio)),
        }
        return {"loss": parts["action"] + parts["proprio"], **parts}

    @torch.no_grad()
    def label(
        self, store: FrameStore, episode_ids: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Guesses for every frame of the episodes, in order: actions (F, A) and proprioception (F, P), env units.

        The row of an episode's last frame, which takes no action, is zero.
        """
        device = self.action_normalizer.mean.device
        frames = store.frames_of(episode_ids)
        embedded = torch.empty(len(store.features), self.config.hidden_dim)  # rows by frame number
        for start in range(0, len(frames), _BLOCK_FRAMES):
            block = frames[start : start + _BLOCK_FRAMES]
            embedded[block] = self.embed(torch.from_numpy(np.asarray(store.features[block])).to(device)).float().cpu()
        actions, proprio = [], []
        for start in range(0, len(frames), _BLOCK_FRAMES):
            block = frames[start : start + _BLOCK_FRAMES]
            found = self.guess(embedded[around(store, block, self.config.offsets)].to(device))
            actions.append(self.action_normalizer.inverse(found[0]).cpu())
            proprio.append(self.proprio_normalizer.inverse(found[1]).cpu())
        action = torch.cat(actions).numpy()
        ends = store.episode_start[episode_ids] + store.episode_len[episode_ids] - 1
        action[np.searchsorted(frames, ends)] = 0
        return action, torch.cat(proprio).numpy()


def learn_inverse_dynamics(
    config: PseudoLabelConfig,
    store: FrameStore,
    labelled: NDArray[np.int64],
    *,
    seed: int,
    run_dir: Path | None = None,
    precision: str = "auto",
    progress: bool = True,
) -> InverseDynamics:
    """Learn what led from frame to frame on the labelled episodes alone.

    Args:
        config: Recipe.
        store: Features, actions and proprioception.
        labelled: Episodes whose labels may be used.
        seed: Of weights and batches.
        run_dir: Folder in which an interrupted training goes on; None keeps nothing.
        precision: See `FitConfig`.
        progress: Show a bar.

    Raises:
        DataError: No labelled episode has an action.
    """
    sampler = InverseSampler(store, labelled, offsets=config.offsets, batch_size=config.batch_size, seed=seed)
    num_tokens, embed_dim = store.features.shape[1:3]
    model = InverseDynamics(
        config,
        num_tokens=num_tokens,
        embed_dim=embed_dim,
        action_dim=store.action.shape[1],
        proprio_dim=store.proprio.shape[1],
        seed=seed,
    )
    model.fit_statistics(store, labelled, seed)
    settings = config.fit_config(run_dir=None if run_dir is None else str(run_dir), seed=seed, precision=precision)
    fit(model, sampler, settings, progress=progress, title="inverse dynamics")
    return model


def pseudo_labelled(
    store: FrameStore,
    model: InverseDynamics,
    unlabelled: NDArray[np.int64],
    bounds: tuple[tuple[float, ...], tuple[float, ...]],
) -> FrameStore:
    """The same frames with guesses in place of the actions and the proprioception of some episodes.

    Args:
        store: Frames; actions and proprioception of the unlabelled episodes are not read.
        model: What guesses.
        unlabelled: Episodes that get guesses.
        bounds: Smallest and largest action (A), which guesses are clamped to.
    """
    low, high = (np.asarray(bound, np.float32) for bound in bounds)
    action, proprio = store.action.copy(), store.proprio.copy()
    frames = store.frames_of(unlabelled)
    guessed, proprio[frames] = model.label(store, unlabelled)
    action[frames] = guessed.clip(low, high)
    return replace(store, action=action, proprio=proprio)


def explained_variance(store: FrameStore, guesses: FrameStore, episode_ids: NDArray[np.int64]) -> tuple[float, float]:
    """Share of the variance of true actions and of true proprioception that guesses explain, means over dimensions.

    Args:
        store: The truth.
        guesses: The same frames, pseudo-labelled.
        episode_ids: Episodes to look at, best held-out ones.
    """
    acting, frames = store.windows(episode_ids, 1), store.frames_of(episode_ids)
    return _r2(guesses.action[acting], store.action[acting]), _r2(guesses.proprio[frames], store.proprio[frames])


def _r2(guess: NDArray[np.float32], truth: NDArray[np.float32]) -> float:
    """Share of variance explained, mean over columns that vary."""
    varies = truth.std(axis=0) > 0
    error = np.square(guess - truth).mean(axis=0)[varies] / truth.var(axis=0)[varies]
    return float(1 - error.mean())
