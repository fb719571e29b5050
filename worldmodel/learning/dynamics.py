"""Learning what actions do: latent head and action predictor on top of frozen features.

The compact recipe (docs: learned.md) has no teacher and no labels: multi-step and one-step prediction, an inverse
model that keeps what actions change, SIGReg against collapse, and proprioception read from the image latent, which
every robot measures and which keeps the arm localised. The patch recipe trains the predictor alone, in a space that
is fixed. With `frozen=False` the encoder is trained as well, on raw frames (`end_to_end.py`).
"""

from __future__ import annotations

import copy
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from worldmodel.data.normalize import Normalizer
from worldmodel.errors import ConfigError
from worldmodel.learning.dynamics_config import DynamicsConfig
from worldmodel.learning.end_to_end import PixelHead
from worldmodel.learning.features import FrameStore, TrajectoryBatch, TrajectorySampler, head_input
from worldmodel.learning.fit import to_device
from worldmodel.learning.reconstruction import SketchDecoder
from worldmodel.learning.sigreg import sigreg
from worldmodel.models.action_transformer import build_predictor
from worldmodel.models.encoders import Encoder
from worldmodel.models.init import seeded_weights
from worldmodel.models.latent_head import (
    LatentHead,
    build_head,
)
from worldmodel.models.temporal_distance import TemporalDistance
from worldmodel.models.world_model import ModelSpec, WorldModel


class DynamicsTask(nn.Module):
    """Head, predictor and their losses, trained by `fit`.

    Args:
        config: Recipe.
        spec: What the model is for.
        num_tokens: Tokens per frame of the encoder.
        embed_dim: Their width.
        encoder: The encoder to train, for `frozen=False` alone; it is taken over, not copied.

    Raises:
        ConfigError: An encoder is missing or superfluous, or has no weights.
    """

    def __init__(
        self,
        config: DynamicsConfig,
        spec: ModelSpec,
        *,
        num_tokens: int,
        embed_dim: int,
        encoder: Encoder | None = None,
    ) -> None:
        super().__init__()
        if config.frozen == (encoder is not None):
            got = "none" if encoder is None else type(encoder).__name__
            raise ConfigError(f"the task needs an encoder exactly when frozen=False, got {got} and {config.frozen}")
        self.config = config
        self.spec = spec
        compact = config.latent == "compact"
        head = build_head(config.head, num_tokens=num_tokens, embed_dim=embed_dim, seed=config.seed)
        self.head: LatentHead | PixelHead = head if encoder is None else PixelHead(encoder, head)
        self.predictor = build_predictor(
            config.compact_predictor if compact else config.patch_predictor,
            num_tokens=self.head.num_tokens,
            latent_dim=self.head.latent_dim,
            action_dim=spec.flat_action_dim,
            seed=config.seed + 1,
        )
        self.action_normalizer = Normalizer(spec.flat_action_dim)
        self.proprio_normalizer = Normalizer(len(spec.proprio_names))
        self.inverse: nn.Module | None = None
        self.readout: nn.Module | None = None
        self.decoder: SketchDecoder | None = None
        width = self.head.latent_dim
        if compact and config.weights.inverse_dynamics > 0:
            layers = _linear(2 * width, 256, config.seed + 2), nn.GELU()
            self.inverse = nn.Sequential(*layers, _linear(256, spec.flat_action_dim, config.seed + 3))
        if compact and config.weights.proprio > 0:
            self.readout = _linear(width, len(spec.proprio_names), config.seed + 4)
        if compact and config.weights.reconstruction > 0:
            sizes = {"num_tokens": num_tokens, "embed_dim": embed_dim, "sketch_dim": config.sketch_dim}
            self.decoder = SketchDecoder(latent_dim=width, **sizes, seed=config.seed + 5)

    @property
    def num_frames(self) -> int:
        """Model-step frames of a training sub-trajectory: the longest context and the rollout after it."""
        return self.predictor.window + self.config.rollout_steps

    def fit_statistics(self, store: FrameStore, episode_ids: NDArray[np.int64]) -> None:
        """Set the standardisation of tokens, actions and proprioception from training episodes."""
        chosen = store.statistics_frames(episode_ids, self.config.seed)
        parts = np.array_split(chosen, min(32, len(chosen)))
        tokens = (torch.from_numpy(look[part]) for part in parts for look in store.looks)
        if isinstance(self.head, PixelHead):
            tokens = (self.head.tokens(block) for block in tokens)
        self.head.standardise.fit(tokens)
        if self.decoder is not None:
            self.decoder.fit(
                self.head.standardise, torch.from_numpy(store.features[chosen[:: len(chosen) // 1024 + 1]])
            )
        fit_normalizers(self.action_normalizer, self.proprio_normalizer, store, episode_ids)

    def sampler(self, store: FrameStore, episode_ids: NDArray[np.int64], *, seed: int) -> TrajectorySampler:
        """Batches of the shape this task trains on."""
        return TrajectorySampler(
            store,
            episode_ids,
            num_frames=self.num_frames,
            action_block=self.config.action_block,
            batch_size=self.config.batch_size,
            seed=seed,
        )

    def latents(self, features: Tensor) -> Tensor:
        """Planning latents (B, T, N', D') float32 of features (B, T, N, D), or of frames for an encoder in training."""
        latents: Tensor = self.head(head_input(features))
        return latents.float()

    def forward(self, batch: TrajectoryBatch, generator: torch.Generator) -> dict[str, Tensor]:
        """Losses of one batch.

        Args:
            batch: Sub-trajectories of `num_frames` frames.
            generator: Stream of SIGReg's directions and of the context length.

        Returns:
            "loss", and every term before weighting.
        """
        weights = self.config.weights
        z = self.latents(batch.features)
        target = z.detach().lerp(z, self.config.target_gradient)
        actions = self.action_normalizer(batch.actions)
        parts: dict[str, Tensor] = {}
        if weights.one_step > 0:
            parts["one_step"] = functional.mse_loss(self.predictor(z[:, :-1], actions).float(), target[:, 1:])
        if weights.rollout > 0:
            parts["rollout"] = self._rollout_loss(z, target, actions, generator)
        if self.config.latent == "compact":
            parts |= self._shaping_losses(z.squeeze(2), batch, actions, generator)
        total = sum((getattr(weights, name) * value for name, value in parts.items()), torch.zeros((), device=z.device))
        return {"loss": total, **parts}

    def _rollout_loss(self, z: Tensor, target: Tensor, actions: Tensor, generator: torch.Generator) -> Tensor:
        """Open-loop error after a context of random length, so that every length met in planning is trained."""
        steps, window = self.config.rollout_steps, self.predictor.window
        seen = 1
        if window > 1:
            seen = int(torch.randint(1, window + 1, (), generator=generator, device=generator.device))
        future = actions[:, None, seen - 1 : seen - 1 + steps]
        predicted = self.predictor.rollout(z[:, :seen], actions[:, : seen - 1], future)[:, 0]
        return functional.mse_loss(predicted.float(), target[:, seen : seen + steps])

    def _shaping_losses(
        self, z: Tensor, batch: TrajectoryBatch, actions: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """What gives the compact latent (B, T, D) its content."""
        weights = self.config.weights
        parts: dict[str, Tensor] = {}
        if self.inverse is not None:
            guess = self.inverse(torch.cat([z[:, :-1], z[:, 1:]], dim=-1))
            parts["inverse_dynamics"] = functional.mse_loss(guess.float(), actions)
        if self.readout is not None:
            parts["proprio"] = functional.mse_loss(self.readout(z).float(), self.proprio_normalizer(batch.proprio))
        if self.decoder is not None:
            ends = slice(None, None, z.shape[1] - 1)
            tokens = batch.features if batch.original is None else batch.original
            parts["reconstruction"] = self.decoder.loss(z[:, ends], self.head.standardise, tokens[:, ends])
        if weights.sigreg > 0:
            directions = self.config.sigreg_directions
            parts["sigreg"] = sigreg(z.transpose(0, 1), num_directions=directions, generator=generator)
        if weights.straightening > 0:
            move = z.diff(dim=1)
            parts["straightening"] = 1 - functional.cosine_similarity(move[:, :-1], move[:, 1:], dim=-1).mean()
        return parts

    def lr_scale(self, name: str) -> float:
        """Share of the learning rate that the parameter `name` gets; see `fit.Rates`."""
        return self.config.encoder_lr_scale if name.startswith("head.encoder.") else 1.0

    def world_model(
        self, encoder: Encoder | None = None, temporal_distance: TemporalDistance | None = None
    ) -> WorldModel:
        """World model of the present weights; a copy, so training may go on.

        Args:
            encoder: The frozen encoder that gave the features; None for the one in training.
            temporal_distance: Learned number of steps between two latents, or None.

        Raises:
            ConfigError: An encoder is missing, or given beside the one in training.
        """
        head = self.head
        if isinstance(head, PixelHead):
            if encoder is not None:
                raise ConfigError("the model holds the encoder that was trained; call world_model without one")
            encoder, head = head.encoder, head.head
        if encoder is None:
            raise ConfigError("frozen=True keeps no encoder; give world_model the one that gave the features")
        parts = (encoder, head, self.predictor, self.action_normalizer, self.proprio_normalizer)
        return WorldModel(*copy.deepcopy(parts), spec=self.spec, temporal_distance=copy.deepcopy(temporal_distance))


def fit_normalizers(
    actions: Normalizer, proprio: Normalizer, store: FrameStore, episode_ids: NDArray[np.int64]
) -> None:
    """Set the standardisation of flat model actions and of proprioception from training episodes."""
    # The last frame of an episode has no action; its zero row would shrink the deviation.
    acting = np.concatenate([np.arange(store.episode_len[i] - 1) + store.episode_start[i] for i in episode_ids])
    env_action = store.action[acting]
    blocks = np.tile(env_action, (1, len(actions.mean) // env_action.shape[1]))
    actions.load_state_dict(Normalizer.fit(blocks).state_dict())
    proprio.load_state_dict(Normalizer.fit(store.proprio[store.frames_of(episode_ids)]).state_dict())


class _Normalised(Protocol):
    """A task whose losses can be averaged."""

    config: DynamicsConfig
    action_normalizer: Normalizer

    def __call__(self, batch: TrajectoryBatch, generator: torch.Generator) -> dict[str, Tensor]: ...


def validation_losses(task: _Normalised, batches: list[TrajectoryBatch]) -> dict[str, float]:
    """Mean of every loss term over fixed held-out batches; call it in evaluation mode without gradients."""
    device = task.action_normalizer.mean.device
    generator = torch.Generator(device).manual_seed(task.config.seed)
    sums: dict[str, float] = {}
    for batch in batches:
        for name, value in task(to_device(batch, device), generator).items():
            sums[f"val_{name}"] = sums.get(f"val_{name}", 0.0) + float(value) / len(batches)
    return sums


def _linear(inputs: int, outputs: int, seed: int) -> nn.Linear:
    """Linear layer whose weights depend on the seed alone (torch's layers draw from the global stream)."""
    with seeded_weights(seed):
        return nn.Linear(inputs, outputs)
