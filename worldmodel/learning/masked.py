"""What all masked pretraining shares: hide tokens of a clip, predict something about them, weigh by motion.

What is predicted differs (`vjepa.py`, `pixels.py`, `teacher.py`, `online.py`); masks, single frames, motion weights,
the loss on visible tokens and the colour jitter do not, so that arms of a comparison differ in their target alone.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from worldmodel.data.recolour import check_strength
from worldmodel.errors import ConfigError
from worldmodel.learning.disguise import in_other_colours, jittered
from worldmodel.learning.masking import MaskConfig, context_distance, sample_masks
from worldmodel.models.encoders import VideoViT
from worldmodel.models.masked_predictor import MaskedPredictor, MaskedPredictorConfig
from worldmodel.models.vit import ViTConfig, gather_tokens

MOTION_FLOOR = 8.0 / 255.0
"""Pixel difference (share of full scale) below which a clip counts as still: rendering noise is not motion."""
MOVING = 0.25
"""Share of the fastest token's motion from which a token counts as moving, in reports and auxiliary losses."""


class ClipLike(Protocol):
    """What a task reads of a batch.

    Attributes:
        pixels: (B, T, Y, X, 3) uint8.
        episode: (B,) long, row of the background table a clip belongs to.
    """

    pixels: Tensor
    episode: Tensor


@dataclass(kw_only=True)
class MaskedConfig:
    """What the objectives have in common; every cure for small data is off by default.

    Attributes:
        predictor: Sizes of the predictor.
        mask: Kinds of masks.
        loss_exp: 1 for L1 (published V-JEPA), 2 for squared error.
        motion_weight: Weight of a moving token above that of a still one; 0 weighs all alike.
        single_frame_fraction: Share of clips taken apart into single frames, each encoded as at planning time: one
            tubelet that repeats the frame.
        context_loss_weight: Weight of the loss on visible tokens, the dense loss of V-JEPA 2.1 (arXiv:2603.14482); 0
            leaves it out.
        context_loss_decays: The loss on a visible token falls with 1 / sqrt(distance to the nearest target).
        context_ramp_steps: Training steps over which that weight grows linearly from 0; None for all of it at once.
        jitter: Largest relative change of contrast and, over full scale, of brightness, drawn per frame and colour
            for the visible tokens only; the targets stay as they are.
        recolour: Strength, in [0, 1], of a random affine map of the colours, drawn per tubelet for the visible tokens
            only; the targets stay as they are.
        recolour_share: Share of the tubelets that are recoloured, in [0, 1]; the others are seen as they are.
        recolour_parts: Share, in [0, 1], of the recoloured tubelets in which a few colours move, each by itself, in
            place of one map of all; `recolour` is then the share of the way they go.
        checkpoint_activations: Compute the blocks again in the backward pass instead of keeping what they held.
    """

    predictor: MaskedPredictorConfig = field(default_factory=MaskedPredictorConfig)
    mask: MaskConfig = field(default_factory=MaskConfig)
    loss_exp: int = 1
    motion_weight: float = 0.0
    single_frame_fraction: float = 0.0
    context_loss_weight: float = 0.0
    context_loss_decays: bool = True
    context_ramp_steps: int | None = None
    jitter: float = 0.0
    recolour: float = 0.0
    recolour_share: float = 1.0
    recolour_parts: float = 0.0
    checkpoint_activations: bool = False

    def __post_init__(self) -> None:
        if self.loss_exp not in (1, 2):
            raise ConfigError(f"loss_exp must be 1 or 2, got {self.loss_exp}")
        if not 0 <= self.single_frame_fraction <= 1:
            raise ConfigError(f"single_frame_fraction must be in [0, 1], got {self.single_frame_fraction}")
        for name in ("motion_weight", "context_loss_weight", "jitter"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must be >= 0, got {getattr(self, name)}")
        check_strength("recolour", self.recolour)
        check_strength("recolour_share", self.recolour_share)
        check_strength("recolour_parts", self.recolour_parts)
        if self.context_ramp_steps is not None and self.context_ramp_steps < 1:
            raise ConfigError(f"context_ramp_steps must be >= 1 or None, got {self.context_ramp_steps}")
        if self.predictor.num_mask_tokens < len(self.mask.num_blocks):
            raise ConfigError(
                f"num_mask_tokens={self.predictor.num_mask_tokens} must cover the {len(self.mask.num_blocks)} kinds "
                "of masks"
            )


class TargetStatistics(nn.Module):
    """Running mean and second moment of the targets at each position and channel, over all processes.

    Args:
        num_tokens: Positions N.
        target_dim: Channels D.
        decay: Share of the old value kept per batch once enough batches were seen; before, the plain average.
    """

    mean: Tensor
    square: Tensor
    count: Tensor

    def __init__(self, num_tokens: int, target_dim: int, *, decay: float = 0.99) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("mean", torch.zeros(num_tokens, target_dim))
        self.register_buffer("square", torch.zeros(num_tokens, target_dim))
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


@dataclass(kw_only=True)
class View:
    """Clips of one length, ready to be masked.

    Attributes:
        video: (B, T, 3, Y, X) float in [0, 1].
        still: (B, 1, 3, Y, X) float, what does not move: the typical frame of the episode, or the mean of the clip.
        motion: (B, N) in [0, 1], 1 for the token that moves most, or None when nothing is weighed by it.
        statistics: Of the targets of clips of this length.
    """

    video: Tensor
    still: Tensor
    motion: Tensor | None
    statistics: TargetStatistics


class MaskedTask(nn.Module, ABC):
    """Encode what is visible, predict something about what is hidden.

    Deviations from the V-JEPA papers, beside the options: fixed token counts (`masking.py`), one mask token per kind
    of mask by its true index, no crops or flips (they would break left and right of a robot scene).

    Args:
        encoder: Config of the encoder.
        config: Objective.
        target_dim: Numbers per token that are predicted.
        background: (E, Y, X, 3) uint8 typical frame of each episode, to measure motion against; None measures it
            against the mean frame of the clip, which sees no motion in single frames.
        seed: Seed of the initial weights.
    """

    background: Tensor | None
    steps_seen: Tensor

    def __init__(
        self,
        encoder: ViTConfig,
        config: MaskedConfig,
        *,
        target_dim: int,
        background: Tensor | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.masking = config
        self.encoder = VideoViT(encoder, seed=seed)
        self.predictor = MaskedPredictor(config.predictor, encoder, target_dim=target_dim, seed=seed + 1)
        self.encoder.checkpoint_activations = config.checkpoint_activations
        self.predictor.checkpoint_activations = config.checkpoint_activations
        if config.context_ramp_steps is not None:  # part of the state, so that a resumed run goes on ramping
            self.register_buffer("steps_seen", torch.zeros(()))
        t, h, w = encoder.grid
        self.clip_statistics = TargetStatistics(t * h * w, target_dim)
        self.frame_statistics = TargetStatistics(h * w, target_dim)
        self.register_buffer("background", background, persistent=False)

    @property
    def result(self) -> VideoViT:
        """The encoder this training is for, as it stands: the trained one, unless a target keeps a slower copy."""
        return self.encoder

    @abstractmethod
    def targets(self, view: View) -> Tensor:
        """What is predicted for every token of a view, (B, N, target_dim)."""

    @abstractmethod
    def raw_targets(self, view: View) -> Tensor:
        """What the targets are made of, (B, N, K), before running statistics scale it; changes no state."""

    def auxiliary(self, view: View, context: Tensor, keep: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Further losses on the encoded visible tokens, already weighted; none by default.

        Args:
            view: The clips.
            context: (B, K, D) encoded visible tokens.
            keep: (B, K) their ids.
            targets: (B, N, target_dim) what `targets` gave.
        """
        return {}

    def regularisation(self, view: View, targets: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Further losses on whole views, already weighted; none by default."""
        return {}

    def after_step(self, step: int, total_steps: int) -> None:
        """What happens after the optimiser moved the weights; nothing by default."""

    def forward(self, batch: ClipLike, generator: torch.Generator) -> dict[str, Tensor]:
        """One masked-prediction loss.

        Args:
            batch: Clips; B times (1 - single_frame_fraction) of them are used whole.
            generator: Stream for masks and jitter.

        Returns:
            "loss" and, for the log, the losses of whole clips and of single frames, the terms beside them, the
            positional share and the standard deviation of the targets.
        """
        whole = self._view(batch)
        if self.training and self.masking.context_ramp_steps is not None:
            self.steps_seen += 1
        count = len(whole.video)
        singles = self._num_single(count)
        parts: dict[str, Tensor] = {}
        losses = []
        if singles < count:
            clips = _rows(whole, singles, count)
            losses.append(self._view_loss(clips, "clip", parts, generator) * (1 - singles / count))
        if singles:
            frames = self._take_apart(_rows(whole, 0, singles))
            losses.append(self._view_loss(frames, "frame", parts, generator) * (singles / count))
        statistics = self.clip_statistics if singles < count else self.frame_statistics
        parts["positional_share"] = statistics.positional_share()
        parts["target_std"] = statistics.variance().mean().sqrt()
        return {"loss": torch.stack(losses).sum(), **parts}

    def motion_of(self, batch: ClipLike) -> Tensor:
        """How much each token of whole clips moves, (B, N) in [0, 1]."""
        motion = self._view(batch, with_motion=True).motion
        assert motion is not None
        return motion

    def target_features(self, batch: ClipLike) -> Tensor:
        """What whole clips are predicted to hold, for `diagnostics.py`.

        Args:
            batch: Clips.

        Returns:
            Raw targets (B, T', N, K) float, T' tubelets of N places.
        """
        h = self.raw_targets(self._view(batch)).float()
        return h.view(len(h), -1, self.frame_statistics.mean.shape[0], h.shape[-1])

    def predict(self, batch: ClipLike, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Predictions and targets under masks shared by all clips, for `diagnostics.py`.

        Args:
            batch: Clips, used whole.
            generator: Stream for the masks.

        Returns:
            prediction, target, each (B, M, target_dim), of the first kind of mask, and the motion (B, M) there.
        """
        view = self._view(batch, with_motion=True)
        masks = copy.copy(self.masking.mask)
        masks.share = len(view.video)
        keep, target = sample_masks(masks, self.encoder.config.grid, len(view.video), generator, motion=view.motion)[0]
        h = self.targets(view)
        context = self.encoder.forward_patches(self.encoder.patchify(view.video), keep)
        assert view.motion is not None
        return self.predictor(context, keep, target), gather_tokens(h, target), view.motion.gather(1, target)

    def _view(self, batch: ClipLike, *, with_motion: bool = False) -> View:
        video = batch.pixels.permute(0, 1, 4, 2, 3).float() / 255.0  # (B, T, 3, Y, X)
        if self.background is None:
            still = video.mean(dim=1, keepdim=True)
        else:
            still = self.background[batch.episode].permute(0, 3, 1, 2).unsqueeze(1).float() / 255.0
        needed = with_motion or self.masking.motion_weight > 0 or self.masking.mask.kind == "motion"
        motion = self._motion(video, still) if needed else None
        return View(video=video, still=still, motion=motion, statistics=self.clip_statistics)

    def _num_single(self, batch: int) -> int:
        """Clips taken apart: a multiple of `share`, so that the shapes never change."""
        share = self.masking.mask.share
        return share * round(self.masking.single_frame_fraction * batch / share)

    def _take_apart(self, view: View) -> View:
        """Whole clips (B, T, ...) -> one-tubelet clips (B * T', tubelet, ...) that repeat one frame of each tubelet.

        The number of tokens stays the same, so a single frame costs no more than its share of a clip.
        """
        tubelet = self.encoder.config.tubelet_size
        chosen = view.video[:, ::tubelet]
        plane = self.frame_statistics.mean.shape[0]
        return View(
            video=chosen.flatten(0, 1).unsqueeze(1).expand(-1, tubelet, -1, -1, -1),
            still=view.still.expand(-1, chosen.shape[1], -1, -1, -1).flatten(0, 1).unsqueeze(1),
            motion=None if view.motion is None else view.motion.reshape(-1, plane),
            statistics=self.frame_statistics,
        )

    def _motion(self, video: Tensor, still: Tensor) -> Tensor:
        """How much each token differs from the background, (B, N) in [0, 1], 1 for the fastest of its clip."""
        config = self.encoder.config
        difference = (video - still).abs().amax(dim=2)  # (B, T, Y, X), the colour that changed most
        kernel = (config.tubelet_size, config.patch_size, config.patch_size)
        pooled = nn.functional.avg_pool3d(difference.unsqueeze(1), kernel).flatten(1)
        # The mean over a patch is small for a small mover: relate it to the largest of the clip.
        peak = pooled.amax(dim=1, keepdim=True).clamp(min=MOTION_FLOOR)
        return pooled / peak

    def _view_loss(self, view: View, name: str, parts: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        """Loss over all kinds of masks; writes its terms to `parts`."""
        config = self.masking
        grid = (view.video.shape[1] // self.encoder.config.tubelet_size, *self.encoder.config.grid[1:])
        patches = self.encoder.patchify(view.video)
        targets = self.targets(view)
        if config.jitter > 0 or config.recolour > 0:
            patches = self.encoder.patchify(self._disguised(view.video, generator))
        with_context = config.context_loss_weight > 0
        losses, extras = [], []
        masks = sample_masks(config.mask, grid, len(view.video), generator, motion=view.motion)
        for kind, (keep, target) in enumerate(masks):
            context = self.encoder.forward_patches(patches, keep)
            out = self.predictor(context, keep, target, mask_type=kind, with_context=with_context).float()
            hidden = out[:, keep.shape[1] :] if with_context else out
            losses.append(self._error(hidden, targets, target, view.motion, None))
            if with_context:
                weight = context_distance(keep, target, grid).rsqrt() if config.context_loss_decays else None
                seen = self._error(out[:, : keep.shape[1]], targets, keep, view.motion, weight)
                losses[-1] = losses[-1] + self._context_weight() * seen
            extras.append(self.auxiliary(view, context, keep, targets))
        parts[f"loss_{name}"] = torch.stack(losses).mean()
        terms = {key: torch.stack([extra[key] for extra in extras]).mean() for key in extras[0]}
        terms |= self.regularisation(view, targets, generator)
        parts |= {f"{key}_{name}": value for key, value in terms.items()}
        return torch.stack([parts[f"loss_{name}"], *terms.values()]).sum()

    def _context_weight(self) -> float | Tensor:
        """Weight of the loss on visible tokens at this step."""
        full, ramp = self.masking.context_loss_weight, self.masking.context_ramp_steps
        return full if ramp is None else full * (self.steps_seen / ramp).clamp(max=1)

    def _error(
        self, out: Tensor, targets: Tensor, index: Tensor, motion: Tensor | None, weight: Tensor | None
    ) -> Tensor:
        """Mean of |out - target|^p / p over the tokens `index` (B, K), weighted by motion (mean one) and `weight`."""
        difference = out - gather_tokens(targets, index)
        error = difference.abs() if self.masking.loss_exp == 1 else 0.5 * difference.square()
        token_error = error.mean(dim=-1)
        if motion is not None and self.masking.motion_weight > 0:
            emphasis = 1 + self.masking.motion_weight * motion.gather(1, index)
            token_error = token_error * (emphasis / emphasis.mean())
        if weight is not None:
            token_error = token_error * weight
        return token_error.mean()

    def _disguised(self, video: Tensor, generator: torch.Generator) -> Tensor:
        """What visible tokens are made of: recoloured, then jittered."""
        config, tubelet = self.masking, self.encoder.config.tubelet_size
        if config.recolour > 0:
            shares = {"share": config.recolour_share, "parts": config.recolour_parts}
            video = in_other_colours(video, config.recolour, tubelet, generator, **shares)
        return jittered(video, config.jitter, generator) if config.jitter > 0 else video


def _rows(view: View, first: int, last: int) -> View:
    part = slice(first, last)
    motion = None if view.motion is None else view.motion[part]
    return View(video=view.video[part], still=view.still[part], motion=motion, statistics=view.statistics)
