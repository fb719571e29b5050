"""Learning to draw the next frame under an action: the generative foil to `dynamics.py`.

The same frozen tokens, episodes, batches and steps, and a state and dynamics of the same sizes; what differs is what is
predicted. There is no loss in a representation: mean squared error of pixels alone, of single steps and along a rollout
through drawn frames.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from worldmodel.data.normalize import Normalizer
from worldmodel.errors import ConfigError
from worldmodel.learning.dynamics import fit_normalizers
from worldmodel.learning.dynamics_config import DynamicsConfig
from worldmodel.learning.features import FrameStore, TrajectoryBatch, TrajectorySampler
from worldmodel.models.encoders import Encoder, VideoViT
from worldmodel.models.frame_predictor import FramePredictor, FramePredictorConfig, frame_patches
from worldmodel.models.frozen_encoders import PatchEncoder, PatchEncoderConfig
from worldmodel.models.init import seeded_weights
from worldmodel.models.latent_head import IdentityHead, IdentityHeadConfig
from worldmodel.models.temporal_distance import TemporalDistance
from worldmodel.models.world_model import ModelSpec, WorldModel


class FrameHead(nn.Module):
    """Frames (B, T, Y, X, 3) uint8 to the latent of a `FramePredictor`, their patches (B, T, N, D) in [-1, 1].

    Args:
        num_tokens: N.
        patch_size: Side of a patch, pixels.
    """

    def __init__(self, num_tokens: int, patch_size: int) -> None:
        super().__init__()
        self.num_tokens, self.latent_dim, self.patch_size = num_tokens, 3 * patch_size**2, patch_size

    def forward(self, frames: Tensor) -> Tensor:
        """Cut frames."""
        return frame_patches(frames, self.patch_size)


class FrameTask(nn.Module):
    """Predictor of frames and its losses, trained by `fit`.

    Deviation from training through the whole rollout, as the latent predictors are: no gradient flows from a drawn
    frame into the step that drew it (the pushforward trick, arXiv:2202.03376), which would go back through the encoder
    and cost three times its forward pass.

    Args:
        config: Recipe; `compact_head`, `compact_predictor` and `frame_decoder` give the sizes, of the weights only
            `one_step` and `rollout` apply.
        spec: What the model is for.
        encoder: The frozen encoder whose tokens are read; copied.

    Raises:
        ConfigError: The encoder is no video transformer, or takes frames of another size.
    """

    def __init__(self, config: DynamicsConfig, spec: ModelSpec, *, encoder: Encoder) -> None:
        super().__init__()
        if not isinstance(encoder, VideoViT):
            raise ConfigError(
                f"latent=pixels encodes the frames it draws, which needs a ViT encoder, got {type(encoder).__name__}; "
                "use encoder=pretrained or encoder=vit"
            )
        if encoder.image_size != spec.image_size:
            raise ConfigError(
                f"the encoder takes frames of {encoder.image_size} pixels, the data has {spec.image_size}"
            )
        self.config = config
        self.spec = spec
        sizes = FramePredictorConfig(
            encoder=encoder.config,
            state=config.compact_head,
            dynamics=config.compact_predictor,
            decoder=config.frame_decoder,
        )
        self.head = FrameHead(encoder.num_tokens, encoder.config.patch_size)
        with seeded_weights(config.seed):
            self.predictor = FramePredictor(
                sizes,
                num_tokens=self.head.num_tokens,
                latent_dim=self.head.latent_dim,
                action_dim=spec.flat_action_dim,
            )
        self.predictor.encoder.load_state_dict(encoder.state_dict())
        self.action_normalizer = Normalizer(spec.flat_action_dim)
        self.proprio_normalizer = Normalizer(len(spec.proprio_names))

    @property
    def num_frames(self) -> int:
        """Model-step frames of a training sub-trajectory: one to start from, and the rollout."""
        return 1 + self.config.rollout_steps

    def fit_statistics(self, store: FrameStore, episode_ids: NDArray[np.int64]) -> None:
        """Set the standardisation of tokens, actions and proprioception from training episodes."""
        chosen = store.statistics_frames(episode_ids, self.config.seed)
        parts = np.array_split(chosen, min(32, len(chosen)))
        self.predictor.state.standardise.fit(torch.from_numpy(store.features[part]) for part in parts)
        fit_normalizers(self.action_normalizer, self.proprio_normalizer, store, episode_ids)

    def sampler(self, store: FrameStore, episode_ids: NDArray[np.int64], *, seed: int) -> TrajectorySampler:
        """Batches of the shape this task trains on, with frames beside the features.

        Raises:
            ConfigError: The store has no frames.
        """
        if store.pixels is None:
            raise ConfigError("a predictor of frames is trained on frames: the store needs pixels beside its features")
        return TrajectorySampler(
            store,
            episode_ids,
            num_frames=self.num_frames,
            action_block=self.config.action_block,
            batch_size=self.config.batch_size,
            seed=seed,
        )

    def forward(self, batch: TrajectoryBatch, generator: torch.Generator) -> dict[str, Tensor]:
        """Losses of one batch: squared errors of pixels in [-1, 1].

        Args:
            batch: Sub-trajectories of `num_frames` frames, with pixels.
            generator: Not drawn from.

        Returns:
            "loss", and every term before weighting.
        """
        assert batch.pixels is not None  # the sampler sees to it
        weights = self.config.weights
        z, tokens = self.head(batch.pixels), batch.features.float()
        actions = self.action_normalizer(batch.actions)
        parts: dict[str, Tensor] = {}
        if weights.one_step > 0:
            drawn = self.predictor.draw(z[:, :-1], tokens[:, :-1], actions)
            parts["one_step"] = functional.mse_loss(drawn.float(), z[:, 1:])
        if weights.rollout > 0:
            parts["rollout"] = self._rollout_loss(z, tokens[:, 0], actions)
        total = torch.stack([getattr(weights, name) * value for name, value in parts.items()]).sum()
        return {"loss": total, **parts}

    def _rollout_loss(self, z: Tensor, tokens: Tensor, actions: Tensor) -> Tensor:
        """Error along a rollout from the first of the frames z, whose tokens are (B, N, E)."""
        current, losses = z[:, 0], []
        for step in range(self.config.rollout_steps):
            if step > 0:
                with torch.no_grad():
                    tokens = self.predictor.tokens(current)
            drawn = self.predictor.draw(current, tokens, actions[:, step]).float()
            losses.append(functional.mse_loss(drawn, z[:, step + 1]))
            current = drawn.detach().clamp(-1, 1)
        return torch.stack(losses).mean()

    def world_model(
        self, encoder: Encoder | None = None, temporal_distance: TemporalDistance | None = None
    ) -> WorldModel:
        """World model of the present weights, whose latent is the frame; a copy, so training may go on.

        Args:
            encoder: Not needed: the predictor holds the one it reads.
            temporal_distance: Must be None: goals are compared as pictures.

        Raises:
            ConfigError: There is a temporal distance.
        """
        if temporal_distance is not None:
            raise ConfigError("a model that plans by comparing pictures takes no temporal distance")
        frames = PatchEncoder(PatchEncoderConfig(image_size=self.spec.image_size, patch_size=self.head.patch_size))
        sizes = {"num_tokens": frames.num_tokens, "embed_dim": frames.embed_dim}
        head = IdentityHead(IdentityHeadConfig(), **sizes)  # its statistics stay those of the identity
        parts = copy.deepcopy((self.predictor, self.action_normalizer, self.proprio_normalizer))
        return WorldModel(frames, head, *parts, spec=self.spec)
