"""Goal-conditioned behaviour cloning: act as the data did on the way to where it went.

The arm without a model. Every later frame of an episode is a goal that the actions in between reached (hindsight
goals), so play without rewards teaches a policy; GCSL (Ghosh et al., arXiv:1912.06088) without its own collection.
Deviations: blocks of actions instead of single ones, and regression (Huber) instead of a likelihood.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from worldmodel.data.episodes import EpisodeDataset
from worldmodel.data.normalize import Normalizer
from worldmodel.errors import ConfigError, DataError
from worldmodel.learning.dynamics_config import spec_of_data
from worldmodel.learning.features import FrameStore, SeededSampler
from worldmodel.learning.fit import Evaluate, FitReport, fit, to_device
from worldmodel.learning.fit_config import FitConfig
from worldmodel.learning.temporal_distance import all_latents
from worldmodel.models.encoders import Encoder
from worldmodel.models.latent_head import CompactHeadConfig, LatentHead, build_head
from worldmodel.models.policy import GoalMLP, GoalMLPConfig, GoalPolicy
from worldmodel.models.world_model import ModelSpec

GOALS = ("uniform", "geometric")
_VALIDATION_BATCHES = 8


@dataclass(kw_only=True)
class CloningConfig:
    """How the policy is learned.

    Attributes:
        action_block: Consecutive env actions in one decision.
        head: Latent head, trained with the policy.
        policy: Network.
        goals: Which later frame of the episode is the goal: "uniform" over the remaining model steps, or "geometric"
            with mean `mean_goal_steps`, the last frame at most.
        mean_goal_steps: Mean number of model steps to a geometric goal, >= 1.
        huber_delta: Error, in standard deviations of the action, beyond which the loss grows linearly.
        batch_size: Pairs of a frame and a goal per step.
        steps: Optimiser steps.
        lr: Peak learning rate.
        weight_decay: Of matrices.
        warmup_steps: Steps of linear warm-up.
        clip_norm: Largest gradient norm; 0 switches clipping off.
        seed: Of weights and batches.
    """

    action_block: int = 3
    head: CompactHeadConfig = field(default_factory=CompactHeadConfig)
    policy: GoalMLPConfig = field(default_factory=GoalMLPConfig)
    goals: str = "uniform"
    mean_goal_steps: float = 8.0
    huber_delta: float = 1.0
    batch_size: int = 256
    steps: int = 5000
    lr: float = 1e-3
    weight_decay: float = 0.01
    warmup_steps: int = 200
    clip_norm: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.goals not in GOALS:
            raise ConfigError(f"goals must be one of {', '.join(GOALS)}, got {self.goals!r}")
        for name in ("action_block", "mean_goal_steps", "batch_size", "steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be >= 1, got {getattr(self, name)}")
        if not self.huber_delta > 0:
            raise ConfigError(f"huber_delta must be > 0, got {self.huber_delta}")
        self.fit_config()  # refuses what the training loop would refuse

    def fit_config(
        self, *, run_dir: str | None = None, eval_every: int = 0, precision: str = "auto", accelerator: str = "auto"
    ) -> FitConfig:
        """Settings of the training loop."""
        return FitConfig(
            run_dir=run_dir,
            steps=self.steps,
            lr=self.lr,
            warmup_steps=self.warmup_steps,
            weight_decay=self.weight_decay,
            clip_norm=self.clip_norm,
            seed=self.seed,
            eval_every=eval_every,
            precision=precision,
            accelerator=accelerator,
            checkpoint_every=1000,
            log_every=50,
        )


@dataclass(kw_only=True)
class CloningBatch:
    """Frames, goals that were reached from them, and how.

    Attributes:
        features: (B, N, D) frozen features of now.
        goal_features: (B, N, D) of a later frame of the same episode.
        actions: (B, A) flat actions of the model step that follows, env units.
        frames: (B,) frame numbers of now in the data set.
        goal_frames: (B,) frame numbers of the goals.
    """

    features: Tensor
    goal_features: Tensor
    actions: Tensor
    frames: Tensor
    goal_frames: Tensor


class HindsightSampler(SeededSampler):
    """Draws frames uniformly, and for each a goal from the rest of its episode, with replacement.

    Args:
        store: Features and actions.
        episode_ids: Episodes to draw from.
        config: Kind of goals, batch size, env steps per model step.
        seed: Seed of the sampler's own stream.

    Raises:
        DataError: No episode is as long as one model step.
    """

    def __init__(self, store: FrameStore, episode_ids: NDArray[np.int64], *, config: CloningConfig, seed: int) -> None:
        super().__init__(seed)
        self._store, self._config = store, config
        self.starts = store.windows(episode_ids, config.action_block)
        if len(self.starts) == 0:
            raise DataError(f"no episode has more than {config.action_block} frames, one decision; record longer ones")
        episode = np.searchsorted(store.episode_start, self.starts, side="right") - 1
        last = store.episode_start[episode] + store.episode_len[episode] - 1
        self._num_left = (last - self.starts) // config.action_block

    def actions_at(self, frames: NDArray[np.int64]) -> NDArray[np.float32]:
        """Flat actions (B, A) of the model step that begins at frames (B,)."""
        within = frames[:, None] + np.arange(self._config.action_block)
        actions: NDArray[np.float32] = self._store.action[within].reshape(len(frames), -1)
        return actions

    def next_batch(self) -> CloningBatch:
        """Draw the next batch."""
        rng, config = self._rng, self._config
        chosen = rng.integers(len(self.starts), size=config.batch_size)
        frames, left = self.starts[chosen], self._num_left[chosen]
        if config.goals == "uniform":
            ahead = rng.integers(1, left + 1)
        else:
            ahead = np.minimum(rng.geometric(1 / config.mean_goal_steps, size=config.batch_size), left)
        goals = frames + config.action_block * ahead
        return CloningBatch(
            features=torch.from_numpy(np.asarray(self._store.features[frames])),
            goal_features=torch.from_numpy(np.asarray(self._store.features[goals])),
            actions=torch.from_numpy(self.actions_at(frames)),
            frames=torch.from_numpy(frames),
            goal_frames=torch.from_numpy(goals),
        )


@dataclass(frozen=True, kw_only=True)
class CloningMaterial:
    """What a policy is learned from.

    Attributes:
        dataset: Says what the policy is for.
        encoder: Frozen encoder that gave the features; becomes part of the policy.
        store: Features (F, N, D) and actions of the data set, or of some of its episodes.
        train_ids: Episodes whose actions are used.
        val_ids: Episodes for the validation loss; None leaves it out.
        head: Trained latent head, kept as it is: the policy then decides on the latents of a world model. None trains
            one with the policy.
    """

    dataset: EpisodeDataset
    encoder: Encoder
    store: FrameStore
    train_ids: NDArray[np.int64]
    val_ids: NDArray[np.int64] | None = None
    head: LatentHead | None = None


class CloningTask(nn.Module):
    """Head, policy network and their loss, trained by `fit`.

    Args:
        config: Recipe.
        spec: What the policy is for.
        num_tokens: Tokens per frame of the features.
        embed_dim: Their width.
        has_latents: The features are planning latents already, which no head has to make.
    """

    def __init__(
        self, config: CloningConfig, spec: ModelSpec, *, num_tokens: int, embed_dim: int, has_latents: bool = False
    ) -> None:
        super().__init__()
        self.config = config
        self.spec = spec
        self.head: LatentHead | None = None
        width = num_tokens * embed_dim
        if not has_latents:
            self.head = build_head(config.head, num_tokens=num_tokens, embed_dim=embed_dim, seed=config.seed)
            width = self.head.num_tokens * self.head.latent_dim
        self.net = GoalMLP(config.policy, latent_dim=width, action_dim=spec.flat_action_dim, seed=config.seed + 1)
        self.action_normalizer = Normalizer(spec.flat_action_dim)

    def fit_statistics(self, store: FrameStore, episode_ids: NDArray[np.int64]) -> None:
        """Set the standardisation of tokens and actions from training episodes."""
        if self.head is not None:
            chosen = store.statistics_frames(episode_ids, self.config.seed)
            parts = np.array_split(chosen, min(32, len(chosen)))
            self.head.standardise.fit(torch.from_numpy(store.features[part]) for part in parts)
        sampler = self.sampler(store, episode_ids, seed=self.config.seed)
        actions = sampler.actions_at(sampler.starts)
        self.action_normalizer.load_state_dict(Normalizer.fit(actions).state_dict())

    def sampler(self, store: FrameStore, episode_ids: NDArray[np.int64], *, seed: int) -> HindsightSampler:
        """Batches of the shape this task trains on."""
        return HindsightSampler(store, episode_ids, config=self.config, seed=seed)

    def forward(self, batch: CloningBatch, generator: torch.Generator) -> dict[str, Tensor]:
        """Loss of one batch; nothing in it is random beyond the batch.

        Returns:
            "loss", and "squared_error" of the standardised actions: 1 is as bad as the mean action.
        """
        # Single precision first: CPU autocast to bfloat16 cannot stack the float16 of the features.
        frames = torch.stack([batch.features.float(), batch.goal_features.float()], dim=1)  # (B, 2, N, D)
        latents = frames if self.head is None else self.head(frames).float()
        guess = self.net(latents[:, 0], latents[:, 1]).float()
        actions = self.action_normalizer(batch.actions)
        loss = functional.huber_loss(guess, actions, delta=self.config.huber_delta)
        return {"loss": loss, "squared_error": functional.mse_loss(guess.detach(), actions)}

    def policy(self, encoder: Encoder, head: LatentHead | None = None) -> GoalPolicy:
        """Policy of the present weights, a copy, so training may go on; `head` is what made latents of the features."""
        own = self.head if head is None else head
        if own is None:
            raise ConfigError("the policy was learned on latents: give the head that makes them")
        parts = (encoder, own, self.net, self.action_normalizer)
        return GoalPolicy(*copy.deepcopy(parts), spec=self.spec)


def clone(
    config: CloningConfig,
    material: CloningMaterial,
    *,
    run_dir: str | Path | None = None,
    eval_every: int = 0,
    precision: str = "auto",
    accelerator: str = "auto",
    progress: bool = True,
) -> tuple[GoalPolicy, FitReport]:
    """Learn a policy on the features of a frozen encoder, continuing from `run_dir` when it holds an unfinished run.

    Args:
        config: Recipe.
        material: Features, actions and episodes.
        run_dir: Folder of the run; None keeps nothing.
        eval_every: Steps between validations; 0 leaves only the one at the end.
        precision: "auto", "32-true" or "bf16-mixed".
        accelerator: Lightning Fabric's accelerator.
        progress: Show a bar on stderr when that is a terminal.

    Returns:
        The policy, on the CPU, and what the run did; `policy_checkpoint.save_policy` writes it.

    Raises:
        DataError: No episode is as long as one model step, or the features are not the encoder's.
        ConfigError: `run_dir` belongs to a run with other settings.
    """
    encoder, store, head = material.encoder, material.store, material.head
    expected = (encoder.num_tokens, encoder.embed_dim)
    if store.features.shape[1:] != expected:
        raise DataError(f"features of this encoder are (N, D) = {expected}, the store has {store.features.shape[1:]}")
    if head is not None:  # frozen: the latents of all frames at once, instead of batch after batch
        with torch.no_grad():
            store = replace(store, features=all_latents(head, store.features).numpy().astype(np.float16))
    spec = spec_of_data(material.dataset, action_block=config.action_block)
    num_tokens, width = store.features.shape[1:]
    task = CloningTask(config, spec, num_tokens=num_tokens, embed_dim=width, has_latents=head is not None)
    task.fit_statistics(store, material.train_ids)
    report = fit(
        task,
        task.sampler(store, material.train_ids, seed=config.seed),
        config.fit_config(
            run_dir=None if run_dir is None else str(run_dir),
            eval_every=eval_every,
            precision=precision,
            accelerator=accelerator,
        ),
        evaluate=None if material.val_ids is None else _validation(task, store, material.val_ids),
        progress=progress,
        title="cloning",
    )
    return task.policy(encoder, head).cpu(), report


def _validation(task: CloningTask, store: FrameStore, val_ids: NDArray[np.int64]) -> Evaluate:
    """Mean of every loss term over fixed held-out batches."""
    held_out = task.sampler(store, val_ids, seed=task.config.seed + 1)
    batches = [held_out.next_batch() for _ in range(_VALIDATION_BATCHES)]

    def validate(step: int) -> dict[str, float]:
        device = task.action_normalizer.mean.device
        rows = [task(to_device(batch, device), torch.Generator(device)) for batch in batches]
        return {f"val_{name}": float(torch.stack([row[name] for row in rows]).mean()) for name in rows[0]}

    return validate
