"""V-JEPA: predict the representation of what is hidden in a clip (arXiv:2404.08471, 2506.09985).

The published recipe is the default of every field of `VJEPAConfig`. With a static camera and small movers it slides
into positional collapse (targets that follow from the place alone); `VJEPAConfig.repaired` switches on the cures, each
of which is a separate option, so that their worth can be measured one by one.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel.errors import ConfigError
from worldmodel.learning.masked import MOVING, MaskedConfig, MaskedTask, View
from worldmodel.learning.masking import MaskConfig
from worldmodel.models.encoders import VideoViT
from worldmodel.models.init import seeded_weights
from worldmodel.models.vit import LAYER_NORM_EPS, ViTConfig, gather_tokens, init_transformer


@dataclass(kw_only=True)
class VJEPAConfig(MaskedConfig):
    """The pretraining objective with a target encoder that follows slowly.

    Defaults are V-JEPA 1's (arXiv:2404.08471, appendix), but for the size of the predictor and the collation of the
    masks: configs/target/vjepa1.yaml has these as well.

    Attributes:
        ema_start: Momentum of the target encoder at the first step (V-JEPA 1: .998; V-JEPA 2: .99925 throughout).
        ema_end: Momentum at the end of the (stretched) linear schedule.
        ema_stretch: The schedule is computed over this multiple of the run and cut.
        standardise_targets: Remove the running mean of the targets at each position and divide by their running
            standard deviation at each position and channel: what follows from the place alone earns nothing.
        standardise_floor: Variance added before dividing, as a share of the channel's mean over positions, so that
            places where nothing ever happens do not turn into amplified noise.
        target_levels: Blocks (counted from 0) whose layer-normed outputs, side by side, are the targets (deep
            self-supervision of V-JEPA 2.1, arXiv:2603.14482: four levels); None for the final output alone.
        latent_dynamics_weight: Weight of predicting, from a visible moving token alone, how the targets change at its
            place one tubelet later; 0 leaves it out.
    """

    ema_start: float = 0.998
    ema_end: float = 1.0
    ema_stretch: float = 1.25
    standardise_targets: bool = False
    standardise_floor: float = 0.1
    target_levels: tuple[int, ...] | None = None
    latent_dynamics_weight: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target_levels is not None:
            self.target_levels = tuple(self.target_levels)  # OmegaConf hands over a list
        if not 0 <= self.ema_start <= self.ema_end <= 1:
            raise ConfigError(f"need 0 <= ema_start <= ema_end <= 1, got {self.ema_start} and {self.ema_end}")
        if self.ema_stretch < 1:
            raise ConfigError(f"ema_stretch must be >= 1, got {self.ema_stretch}")
        for name in ("standardise_floor", "latent_dynamics_weight"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must be >= 0, got {getattr(self, name)}")

    @classmethod
    def repaired(cls) -> VJEPAConfig:
        """The recipe of the shipped encoder: static camera, small movers, two CPU cores (see docs/log.md)."""
        return cls(
            mask=MaskConfig(future_fraction=0.3, max_target_tokens=64, share=2),
            ema_start=0.996,
            ema_end=1.0,
            loss_exp=2,
            standardise_targets=True,
            motion_weight=10.0,
            single_frame_fraction=0.375,
            context_loss_weight=0.5,
        )


class VJEPATask(MaskedTask):
    """Context encoder, predictor and EMA target encoder.

    Args:
        encoder: Config of the encoder.
        config: Objective.
        background: As for `MaskedTask`.
        seed: Seed of the initial weights.

    Raises:
        ConfigError: A target level is no block of the encoder.
    """

    def __init__(
        self, encoder: ViTConfig, config: VJEPAConfig, *, background: Tensor | None = None, seed: int = 0
    ) -> None:
        levels = config.target_levels or ()
        if any(not 0 <= level < encoder.depth for level in levels):
            raise ConfigError(f"target_levels must lie in [0, depth={encoder.depth}), got {levels}")
        target_dim = encoder.embed_dim * max(1, len(levels))
        super().__init__(encoder, config, target_dim=target_dim, background=background, seed=seed)
        self.config = config
        self.target_encoder = copy.deepcopy(self.encoder).requires_grad_(False)
        self.dynamics: nn.Module | None = None
        if config.latent_dynamics_weight > 0:
            width = encoder.embed_dim
            layers = (width, 2 * width), (2 * width, target_dim)
            with seeded_weights(seed):
                self.dynamics = nn.Sequential(nn.Linear(*layers[0]), nn.GELU(), nn.Linear(*layers[1]))
            init_transformer(self.dynamics, torch.Generator().manual_seed(seed + 2))

    @property
    def result(self) -> VideoViT:
        """The target encoder."""
        return self.target_encoder

    def after_step(self, step: int, total_steps: int) -> None:
        """Move the target encoder toward the context encoder (parameters only, as published)."""
        config = self.config
        progress = min(1.0, (step - 1) / (config.ema_stretch * total_steps))
        follow(self.target_encoder, self.encoder, config.ema_start + (config.ema_end - config.ema_start) * progress)

    def targets(self, view: View) -> Tensor:
        """Layer-normed output of the target encoder, standardised when the config asks for it."""
        with torch.no_grad():
            h = self.raw_targets(view)
            if self.training:
                view.statistics.update(h)
            if self.config.standardise_targets:
                h = view.statistics.standardise(h, self.config.standardise_floor)
        return h

    def raw_targets(self, view: View) -> Tensor:
        """Layer-normed output of the target encoder: its scale is fixed, so what varies is what is not constant."""
        patches = self.target_encoder.patchify(view.video)
        if self.config.target_levels:
            return self.target_encoder.forward_levels(patches, self.config.target_levels).float()
        h = self.target_encoder.forward_patches(patches)
        return F.layer_norm(h.float(), (h.shape[-1],), eps=LAYER_NORM_EPS)

    def auxiliary(self, view: View, context: Tensor, keep: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Latent dynamics: the change of the targets at the place of a visible token, one tubelet later."""
        plane = self.frame_statistics.mean.shape[0]
        tokens = targets.shape[1]
        if self.dynamics is None or tokens == plane:  # a single frame has no later one
            return {}
        later = keep + plane
        change = gather_tokens(targets, later.clamp(max=tokens - 1)) - gather_tokens(targets, keep)
        weight = (later < tokens).float()
        if view.motion is not None:
            weight = weight * (view.motion.gather(1, keep) > MOVING)
        error = (self.dynamics(context).float() - change).square().mean(dim=-1)
        mean = (error * weight).sum() / weight.sum().clamp(min=1)
        return {"latent_dynamics": self.config.latent_dynamics_weight * mean}


def follow(slow: nn.Module, fast: nn.Module, momentum: float) -> None:
    """Move the parameters of `slow` towards those of `fast`, keeping the share `momentum` of the old ones."""
    with torch.no_grad():
        for old, new in zip(slow.parameters(), fast.parameters(), strict=True):
            old.lerp_(new, 1 - momentum)
