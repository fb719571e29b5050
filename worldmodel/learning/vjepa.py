"""V-JEPA: predict the representation of what is hidden in a clip (arXiv:2404.08471, 2506.09985).

The published recipe is the default of every field of `VJEPAConfig`. With a static camera and small movers it slides
into positional collapse (targets that follow from the place alone); `VJEPAConfig.repaired` switches on the cures, each
of which is a separate option, so that their worth can be measured one by one.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel.errors import ConfigError
from worldmodel.learning.masking import MaskConfig, context_distance, sample_masks
from worldmodel.models.encoders import VideoViT
from worldmodel.models.masked_predictor import MaskedPredictor, MaskedPredictorConfig
from worldmodel.models.vit import LAYER_NORM_EPS, ViTConfig, gather_tokens

MOTION_FLOOR = 8.0 / 255.0
"""Pixel difference (share of full scale) below which a clip counts as still: rendering noise is not motion."""


class ClipLike(Protocol):
    """What the task reads of a batch.

    Attributes:
        pixels: (B, T, Y, X, 3) uint8.
        episode: (B,) long, row of the background table a clip belongs to.
    """

    pixels: Tensor
    episode: Tensor


@dataclass(kw_only=True)
class VJEPAConfig:
    """The pretraining objective.

    Attributes:
        predictor: Sizes of the predictor.
        mask: Kinds of masks.
        ema_start: Momentum of the target encoder at the first step.
        ema_end: Momentum at the end of the (stretched) linear schedule.
        ema_stretch: The schedule is computed over this multiple of the run and cut.
        loss_exp: 1 for L1 (published), 2 for squared error.
        standardise_targets: Remove the running mean of the targets at each position and divide by their running
            standard deviation at each position and channel: what follows from the place alone earns nothing.
        standardise_floor: Variance added before dividing, as a share of the channel's mean over positions, so that
            places where nothing ever happens do not turn into amplified noise.
        motion_weight: Weight of a moving token above that of a still one; 0 weighs all alike.
        single_frame_fraction: Share of clips taken apart into single frames, each encoded as at planning time: one
            tubelet that repeats the frame.
        context_loss_weight: Weight of the loss on visible tokens, falling with 1 / sqrt(distance to the nearest
            target) (V-JEPA 2.1); 0 leaves it out.
        jitter: Largest relative change of contrast and, over full scale, of brightness, drawn per frame and colour
            for the visible tokens only; the targets stay as they are.
    """

    predictor: MaskedPredictorConfig = field(default_factory=MaskedPredictorConfig)
    mask: MaskConfig = field(default_factory=MaskConfig)
    ema_start: float = 0.998
    ema_end: float = 1.0
    ema_stretch: float = 1.25
    loss_exp: int = 1
    standardise_targets: bool = False
    standardise_floor: float = 0.1
    motion_weight: float = 0.0
    single_frame_fraction: float = 0.0
    context_loss_weight: float = 0.0
    jitter: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.ema_start <= self.ema_end <= 1:
            raise ConfigError(f"need 0 <= ema_start <= ema_end <= 1, got {self.ema_start} and {self.ema_end}")
        if self.ema_stretch < 1:
            raise ConfigError(f"ema_stretch must be >= 1, got {self.ema_stretch}")
        if self.loss_exp not in (1, 2):
            raise ConfigError(f"loss_exp must be 1 or 2, got {self.loss_exp}")
        if not 0 <= self.single_frame_fraction <= 1:
            raise ConfigError(f"single_frame_fraction must be in [0, 1], got {self.single_frame_fraction}")
        for name in ("standardise_floor", "motion_weight", "context_loss_weight", "jitter"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must be >= 0, got {getattr(self, name)}")
        if self.predictor.num_mask_tokens < len(self.mask.num_blocks):
            raise ConfigError(
                f"num_mask_tokens={self.predictor.num_mask_tokens} must cover the {len(self.mask.num_blocks)} kinds "
                "of masks"
            )

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


class TargetStatistics(nn.Module):
    """Running mean and second moment of the targets at each position and channel, over all processes.

    Args:
        num_tokens: Positions N.
        embed_dim: Channels D.
        decay: Share of the old value kept per batch once enough batches were seen; before, the plain average.
    """

    mean: Tensor
    square: Tensor
    count: Tensor

    def __init__(self, num_tokens: int, embed_dim: int, *, decay: float = 0.99) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("mean", torch.zeros(num_tokens, embed_dim))
        self.register_buffer("square", torch.zeros(num_tokens, embed_dim))
        self.register_buffer("count", torch.zeros(()))

    def update(self, h: Tensor) -> None:
        """Take in targets (B, N, D)."""
        moments = torch.stack((h.mean(dim=0), h.square().mean(dim=0)))
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(moments)
            moments /= torch.distributed.get_world_size()
        self.count += 1
        weight = (1 / self.count).clamp(min=1 - self.decay)
        self.mean.lerp_(moments[0], weight)
        self.square.lerp_(moments[1], weight)

    def variance(self) -> Tensor:
        """Variance over clips, (N, D)."""
        return (self.square - self.mean.square()).clamp(min=0)

    def standardise(self, h: Tensor, floor: float) -> Tensor:
        """(B, N, D) -> the same, mean 0 and variance at most 1 at each position and channel."""
        variance = self.variance()
        return (h - self.mean) * (variance + floor * variance.mean(dim=0) + 1e-6).rsqrt()

    def positional_share(self) -> Tensor:
        """Share of the total variance that the position alone explains, a scalar in [0, 1]."""
        between = self.mean.var(dim=0, correction=0).sum()
        return between / (between + self.variance().mean(dim=0).sum() + 1e-12)


class VJEPATask(nn.Module):
    """The training task: context encoder, predictor and EMA target encoder.

    Deviations from the papers, beside the options: fixed token counts (`masking.py`), one mask token per kind of mask
    by its true index, no crops or flips (they would break left and right of a robot scene).

    Args:
        encoder: Config of the encoder.
        config: Objective.
        background: (E, Y, X, 3) uint8 typical frame of each episode, to measure motion against; None measures it
            against the mean frame of the clip, which sees no motion in single frames.
        seed: Seed of the initial weights.
    """

    background: Tensor | None

    def __init__(
        self, encoder: ViTConfig, config: VJEPAConfig, *, background: Tensor | None = None, seed: int = 0
    ) -> None:
        super().__init__()
        self.config = config
        self.encoder = VideoViT(encoder, seed=seed)
        self.target_encoder = copy.deepcopy(self.encoder).requires_grad_(False)
        self.predictor = MaskedPredictor(config.predictor, encoder, seed=seed + 1)
        t, h, w = encoder.grid
        self.clip_statistics = TargetStatistics(t * h * w, encoder.embed_dim)
        self.frame_statistics = TargetStatistics(h * w, encoder.embed_dim)
        self.register_buffer("background", background, persistent=False)

    def forward(self, batch: ClipLike, generator: torch.Generator) -> dict[str, Tensor]:
        """One masked-prediction loss.

        Args:
            batch: Clips; B times (1 - single_frame_fraction) of them are used whole.
            generator: Stream for masks and jitter.

        Returns:
            "loss" and, for the log, the losses of whole clips and of single frames and the positional share and
            standard deviation of the targets.
        """
        video = batch.pixels.permute(0, 1, 4, 2, 3).float() / 255.0  # (B, T, 3, Y, X)
        motion = self._motion(video, batch.episode) if self.config.motion_weight > 0 else None
        singles = self._num_single(len(video))
        parts: dict[str, Tensor] = {}
        losses = []
        if singles < len(video):
            whole = None if motion is None else motion[singles:]
            parts["loss_clip"] = self._masked_loss(video[singles:], whole, self.clip_statistics, generator)
            losses.append(parts["loss_clip"] * (1 - singles / len(video)))
        if singles:
            frames, frame_motion = self._take_apart(video[:singles], None if motion is None else motion[:singles])
            parts["loss_frame"] = self._masked_loss(frames, frame_motion, self.frame_statistics, generator)
            losses.append(parts["loss_frame"] * (singles / len(video)))
        statistics = self.clip_statistics if singles < len(video) else self.frame_statistics
        parts["positional_share"] = statistics.positional_share()
        parts["target_std"] = statistics.variance().mean().sqrt()
        return {"loss": torch.stack(losses).sum(), **parts}

    def after_step(self, step: int, total_steps: int) -> None:
        """Move the target encoder toward the context encoder (parameters only, as published)."""
        config = self.config
        progress = min(1.0, (step - 1) / (config.ema_stretch * total_steps))
        momentum = config.ema_start + (config.ema_end - config.ema_start) * progress
        with torch.no_grad():
            for slow, fast in zip(self.target_encoder.parameters(), self.encoder.parameters(), strict=True):
                slow.lerp_(fast, 1 - momentum)

    def predict(self, video: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Predictions and targets under masks shared by all clips, for `diagnostics.py`.

        Args:
            video: (B, T, 3, Y, X) float in [0, 1], whole clips.
            generator: Stream for the masks.

        Returns:
            prediction, target, each (B, M, D), of the first kind of mask.
        """
        statistics = self.clip_statistics
        patches = self.encoder.patchify(video)
        h = self._targets(patches, statistics)
        shared = sample_masks(self._shared_masks(), self.encoder.config.grid, 1, generator)[0]
        keep, target = (index.expand(len(video), -1) for index in shared)
        context = self.encoder.forward_patches(patches, keep)
        return self.predictor(context, keep, target), gather_tokens(h, target)

    def _shared_masks(self) -> MaskConfig:
        masks = copy.copy(self.config.mask)
        masks.share = 1
        return masks

    def _num_single(self, batch: int) -> int:
        """Clips taken apart: a multiple of `share`, so that the shapes never change."""
        share = self.config.mask.share
        return share * round(self.config.single_frame_fraction * batch / share)

    def _take_apart(self, video: Tensor, motion: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Whole clips (B, T, ...) -> one-tubelet clips (B * T', tubelet, ...) that repeat one frame of each tubelet.

        The number of tokens stays the same, so a single frame costs no more than its share of a clip.
        """
        tubelet = self.encoder.config.tubelet_size
        frames = video[:, ::tubelet].flatten(0, 1).unsqueeze(1).expand(-1, tubelet, -1, -1, -1)
        plane = self.frame_statistics.mean.shape[0]
        return frames, None if motion is None else motion.reshape(-1, plane)

    def _motion(self, video: Tensor, episode: Tensor) -> Tensor:
        """How much each token differs from the background, (B, N) in [0, 1], 1 for the fastest of its clip."""
        config = self.encoder.config
        if self.background is None:
            still = video.mean(dim=1, keepdim=True)
        else:
            still = self.background[episode].permute(0, 3, 1, 2).unsqueeze(1).float() / 255.0
        difference = (video - still).abs().amax(dim=2)  # (B, T, Y, X), the colour that changed most
        kernel = (config.tubelet_size, config.patch_size, config.patch_size)
        pooled = F.avg_pool3d(difference.unsqueeze(1), kernel).flatten(1)
        # The mean over a patch is small for a small mover: relate it to the largest of the clip.
        peak = pooled.amax(dim=1, keepdim=True).clamp(min=MOTION_FLOOR)
        return pooled / peak

    def _targets(self, patches: Tensor, statistics: TargetStatistics) -> Tensor:
        with torch.no_grad():
            h = self.target_encoder.forward_patches(patches)
            h = F.layer_norm(h.float(), (h.shape[-1],), eps=LAYER_NORM_EPS)
            if self.training:
                statistics.update(h)
            if self.config.standardise_targets:
                h = statistics.standardise(h, self.config.standardise_floor)
        return h

    def _masked_loss(
        self, video: Tensor, motion: Tensor | None, statistics: TargetStatistics, generator: torch.Generator
    ) -> Tensor:
        """Loss over all kinds of masks for clips (B, T, 3, Y, X) that all have the same length."""
        config = self.config
        t, h, w = video.shape[1] // self.encoder.config.tubelet_size, *self.encoder.config.grid[1:]
        patches = self.encoder.patchify(video)
        targets = self._targets(patches, statistics)
        if config.jitter > 0:
            patches = self.encoder.patchify(self._jittered(video, generator))
        with_context = config.context_loss_weight > 0
        losses = []
        for kind, (keep, target) in enumerate(sample_masks(config.mask, (t, h, w), len(video), generator)):
            context = self.encoder.forward_patches(patches, keep)
            out = self.predictor(context, keep, target, mask_type=kind, with_context=with_context).float()
            hidden = out[:, keep.shape[1] :] if with_context else out
            losses.append(self._error(hidden, targets, target, motion, None))
            if with_context:
                weight = context_distance(keep, target, (t, h, w)).rsqrt()
                seen = self._error(out[:, : keep.shape[1]], targets, keep, motion, weight)
                losses[-1] = losses[-1] + config.context_loss_weight * seen
        return torch.stack(losses).mean()

    def _error(
        self, out: Tensor, targets: Tensor, index: Tensor, motion: Tensor | None, weight: Tensor | None
    ) -> Tensor:
        """Mean of |out - target|^p / p over the tokens `index` (B, K), weighted by motion (mean one) and `weight`."""
        difference = out - gather_tokens(targets, index)
        error = difference.abs() if self.config.loss_exp == 1 else 0.5 * difference.square()
        token_error = error.mean(dim=-1)
        if motion is not None:
            emphasis = 1 + self.config.motion_weight * motion.gather(1, index)
            token_error = token_error * (emphasis / emphasis.mean())
        if weight is not None:
            token_error = token_error * weight
        return token_error.mean()

    def _jittered(self, video: Tensor, generator: torch.Generator) -> Tensor:
        shape = (*video.shape[:3], 1, 1)
        draw = torch.rand((2, *shape), generator=generator, device=video.device) * 2 - 1
        contrast, brightness = 1 + self.config.jitter * draw[0], self.config.jitter * draw[1]
        middle = video.mean(dim=(-2, -1), keepdim=True)
        return ((video - middle) * contrast + middle + brightness).clamp(0, 1)
