"""How dynamics in a latent space are learned: the recipe that `dynamics.py` and `frames.py` carry out."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from worldmodel.data.episodes import EpisodeDataset
from worldmodel.errors import ConfigError
from worldmodel.learning.fit_config import FitConfig
from worldmodel.models.action_predictor import ResidualMLPConfig
from worldmodel.models.action_transformer import TransformerPredictorConfig
from worldmodel.models.frame_predictor import FrameDecoderConfig
from worldmodel.models.latent_head import CompactHeadConfig, GridHeadConfig, HeadConfig, IdentityHeadConfig
from worldmodel.models.world_model import LATENTS, ModelSpec


@dataclass(kw_only=True)
class LossWeights:
    """Weight of each term; 0 leaves it out. The patch latent is fixed, so only the first two apply to it.

    Attributes:
        rollout: Mean squared error of the latents along an open-loop rollout.
        one_step: The same for single steps from true latents.
        inverse_dynamics: Error of the (standardised) action recovered from two consecutive latents.
        sigreg: SIGReg on the latents.
        proprio: Error of the (standardised) proprioception read linearly from the latent.
        reconstruction: Error of a random sketch of the tokens decoded from the latent, at the first and the last frame
            of the sub-trajectory; keeps objects that are small and seldom moved. Of frames in other colours the tokens
            of the original are asked for.
        straightening: One minus the cosine between consecutive latent displacements.
    """

    rollout: float = 4.0
    one_step: float = 2.0
    inverse_dynamics: float = 1.0
    sigreg: float = 0.1
    proprio: float = 0.5
    reconstruction: float = 1.0
    straightening: float = 0.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < 0:
                raise ConfigError(f"weight {name} must be >= 0, got {value}")
        if self.rollout == 0 and self.one_step == 0:
            raise ConfigError("weights rollout and one_step are both 0: the predictor would not be trained")


@dataclass(kw_only=True)
class DynamicsConfig:
    """How the dynamics are learned.

    Attributes:
        latent: "compact" (one vector per frame), "patch" (one per patch), or "pixels": no latent at all, the next frame
            itself is drawn (`frames.py`), by a predictor with the sizes of the compact one.
        frozen: Keep the encoder as it is. False trains it together with the compact latent, from raw frames; the tokens
            then move, so `weights.reconstruction` must be 0.
        encoder_lr_scale: Learning rate of an encoder in training over that of the rest, > 0.
        action_block: Consecutive env actions in one model step.
        rollout_steps: Model steps of the open-loop rollout in the loss.
        weights: Weight of each loss term.
        target_gradient: Share of the prediction error's gradient that reaches the predicted latents themselves, in
            [0, 1]; 0 is a stop-gradient. With all of it the latent drops what is hard to predict, a pushed object
            first; without it, small moves of the gripper blur (docs/log.md).
        sigreg_directions: Random directions SIGReg looks along, per step.
        sketch_dim: Numbers per token that the reconstruction term asks for.
        compact_head: Head of the compact latent.
        grid_blocks: Residual 3 x 3 convolutions over the grid of tokens in that head; 0 is none.
        compact_predictor: Predictor in the compact latent.
        patch_head: Head of the patch latent.
        patch_predictor: Predictor in the patch latent.
        frame_decoder: What draws the frames of latent="pixels".
        batch_size: Sub-trajectories per step.
        steps: Optimiser steps.
        lr: Peak learning rate.
        weight_decay: Of matrices.
        warmup_steps: Steps of linear warm-up.
        clip_norm: Largest gradient norm; 0 switches clipping off.
        validation_fraction: Share of episodes held out.
        seed: Of weights, batches and loss randomness.
    """

    latent: str = "compact"
    frozen: bool = True
    encoder_lr_scale: float = 1.0
    action_block: int = 3
    rollout_steps: int = 4
    weights: LossWeights = field(default_factory=LossWeights)
    target_gradient: float = 0.3
    sigreg_directions: int = 256
    sketch_dim: int = 8
    compact_head: CompactHeadConfig = field(default_factory=CompactHeadConfig)
    grid_blocks: int = 0
    compact_predictor: ResidualMLPConfig = field(default_factory=ResidualMLPConfig)
    patch_head: IdentityHeadConfig = field(default_factory=IdentityHeadConfig)
    patch_predictor: TransformerPredictorConfig = field(default_factory=TransformerPredictorConfig)
    frame_decoder: FrameDecoderConfig = field(default_factory=FrameDecoderConfig)
    batch_size: int = 128
    steps: int = 5000
    lr: float = 1e-3
    weight_decay: float = 0.01
    warmup_steps: int = 200
    clip_norm: float = 1.0
    validation_fraction: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        if self.latent not in LATENTS:
            raise ConfigError(f"latent must be one of {', '.join(LATENTS)}, got {self.latent!r}")
        for name in ("action_block", "rollout_steps", "sigreg_directions", "sketch_dim", "batch_size", "steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be >= 1, got {getattr(self, name)}")
        if self.grid_blocks < 0 or (self.grid_blocks > 0 and self.latent != "compact"):
            raise ConfigError(
                f"grid_blocks must be >= 0, and 0 but for latent=compact, got {self.grid_blocks} with {self.latent}"
            )
        if not 0 <= self.target_gradient <= 1:
            raise ConfigError(f"target_gradient must be in [0, 1], got {self.target_gradient}")
        if not 0 < self.validation_fraction < 1:
            raise ConfigError(f"validation_fraction must be in (0, 1), got {self.validation_fraction}")
        if self.encoder_lr_scale <= 0:
            raise ConfigError(f"encoder_lr_scale must be > 0, got {self.encoder_lr_scale}; frozen=true trains nothing")
        if not self.frozen and self.latent != "compact":
            raise ConfigError(
                f"frozen=false needs latent=compact, got {self.latent}: no loss keeps the patch latent of a moving "
                "encoder from collapsing"
            )
        if not self.frozen and self.weights.reconstruction > 0:
            raise ConfigError(
                f"weights.reconstruction={self.weights.reconstruction} asks for fixed tokens, but frozen=false lets "
                "them move; set weights.reconstruction=0"
            )

    @property
    def compact(self) -> CompactHeadConfig:
        """Head of the compact latent, with the convolutions that are asked for."""
        if self.grid_blocks == 0:
            return self.compact_head
        return GridHeadConfig(**asdict(self.compact_head), blocks=self.grid_blocks)

    @property
    def head(self) -> HeadConfig:
        """Head of the latent that is asked for."""
        return self.compact if self.latent == "compact" else self.patch_head

    def fit_config(self, *, run_dir: str | None = None, eval_every: int = 0, precision: str = "auto") -> FitConfig:
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
            checkpoint_every=1000,
            log_every=50,
        )

    def model_spec(self, dataset: EpisodeDataset) -> ModelSpec:
        """What a model trained on `dataset` under this config is for."""
        return spec_of_data(dataset, action_block=self.action_block, latent=self.latent)


def spec_of_data(dataset: EpisodeDataset, *, action_block: int, latent: str = "compact") -> ModelSpec:
    """What a model trained on `dataset` is for."""
    return ModelSpec(
        env_ids=dataset.env_ids,
        action_dim=dataset.spec.action_dim,
        action_low=dataset.spec.action_low,
        action_high=dataset.spec.action_high,
        action_block=action_block,
        image_size=dataset.spec.image_size,
        proprio_names=dataset.spec.proprio_names,
        latent=latent,
    )
