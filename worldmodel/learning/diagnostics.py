"""Is a representation healthy? Numbers that need no labels, on clips that were not trained on.

The loss cannot tell: it falls in every kind of collapse. Three questions separate the kinds seen at small scale:
do features follow from the place alone (positional collapse), are they constant within an episode (slow trap), and
does the predictor recognise its own sample (cross-sample gap). Random-init features are the reference, not zero.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from worldmodel.errors import DataError
from worldmodel.learning.vjepa import VJEPATask
from worldmodel.models.encoders import Encoder


@dataclass(kw_only=True)
class Health:
    """Summary of features (B, T, N, D).

    Attributes:
        positional_share: Share of variance explained by the place alone, in [0, 1]; near 1 is positional collapse.
        temporal_share: Share of the remaining variance that is within clips, in [0, 1]; near 0 is the slow trap.
        effective_rank: exp(entropy) of the spectrum of what remains after the positional mean, in [1, D].
        channel_std: Mean standard deviation of a channel at a place.
        cross_sample_gap: cos(prediction, own target) minus cos(prediction, another clip's target at the same place);
            near 0 means predictions ignore the clip. None where there is no predictor.
    """

    positional_share: float
    temporal_share: float
    effective_rank: float
    channel_std: float
    cross_sample_gap: float | None = None

    def to_dict(self, prefix: str = "") -> dict[str, float]:
        """Flat JSON-ready form without missing values."""
        return {prefix + name: value for name, value in asdict(self).items() if value is not None}

    def warnings(self) -> list[str]:
        """What looks wrong, in plain words; empty when nothing does."""
        found = []
        if self.positional_share > 0.95:
            found.append(f"positional collapse: the place explains {self.positional_share:.0%} of the variance")
        if self.temporal_share < 0.05:
            found.append(f"slow features: only {self.temporal_share:.0%} of the variance is within clips")
        if self.effective_rank < 4:
            found.append(f"dimensional collapse: effective rank {self.effective_rank:.1f}")
        if self.cross_sample_gap is not None and self.cross_sample_gap < 0.1:
            found.append(f"predictions ignore the clip: cross-sample gap {self.cross_sample_gap:.2f}")
        return found


def positional_share(features: Tensor) -> float:
    """Share of the variance of features (B, T, N, D) that the mean at each position explains."""
    place = features.flatten(0, 1).mean(dim=0)  # (N, D)
    total = (features - place.mean(dim=0)).square().mean(dim=(0, 1, 2)).sum()
    between = (place - place.mean(dim=0)).square().mean(dim=0).sum()
    return float(between / total.clamp(min=1e-12))


def temporal_share(features: Tensor) -> float:
    """Within-clip over total variance of features (B, T, N, D), after the mean at each position is removed."""
    centred = features - features.flatten(0, 1).mean(dim=0)
    within = (centred - centred.mean(dim=1, keepdim=True)).square().mean()
    return float(within / centred.square().mean().clamp(min=1e-12))


def effective_rank(features: Tensor) -> float:
    """Exponential of the entropy of the normalised covariance spectrum of features (..., D), 1 to D."""
    flat = features.flatten(0, -2).double()
    centred = flat - flat.mean(dim=0)
    spectrum = torch.linalg.eigvalsh(centred.T @ centred).clamp(min=0)
    share = spectrum / spectrum.sum().clamp(min=1e-30)
    return float(torch.special.entr(share).sum().exp())


def channel_std(features: Tensor) -> float:
    """Mean over positions and channels of the standard deviation of features (B, T, N, D) over clips and time."""
    return float(features.flatten(0, 1).std(dim=0, correction=0).mean())


def cross_sample_gap(prediction: Tensor, target: Tensor) -> float:
    """How much better predictions fit their own clip than the next one's.

    Args:
        prediction: (B, M, D), the same positions in every clip.
        target: (B, M, D).
    """
    own = F.cosine_similarity(prediction, target, dim=-1)
    other = F.cosine_similarity(prediction, target.roll(1, dims=0), dim=-1)
    return float((own - other).mean())


def describe(features: Tensor) -> Health:
    """All label-free numbers of features (B, T, N, D) float.

    Raises:
        DataError: Fewer than two clips, or features that are not (B, T, N, D).
    """
    if features.ndim != 4 or len(features) < 2:
        raise DataError(f"health needs features (B >= 2, T, N, D), got {tuple(features.shape)}")
    features = features.float()
    return Health(
        positional_share=positional_share(features),
        temporal_share=temporal_share(features),
        effective_rank=effective_rank(features - features.flatten(0, 1).mean(dim=0)),
        channel_std=channel_std(features),
    )


def frame_health(encoder: Encoder, pixels: Tensor) -> Health:
    """Health in planning mode: every frame of pixels (B, T, Y, X, 3) uint8 encoded on its own."""
    with torch.no_grad():
        return describe(encoder.encode_frames(pixels))


def task_health(task: VJEPATask, pixels: Tensor, generator: torch.Generator) -> Health:
    """Health of a V-JEPA run on whole clips; the task is left as it was found.

    Args:
        task: The run.
        pixels: (B, T, Y, X, 3) uint8 clips of different episodes, not trained on.
        generator: Stream for the masks.

    Raises:
        DataError: Fewer than two clips.
    """
    training = task.training
    task.eval()
    with torch.no_grad():
        video = pixels.permute(0, 1, 4, 2, 3).float() / 255.0
        flat = task.target_encoder(video)
        features = flat.view(len(flat), -1, task.target_encoder.num_tokens, flat.shape[-1])
        health = describe(features)
        health.cross_sample_gap = cross_sample_gap(*task.predict(video, generator))
    task.train(training)
    return health


def health_check(task: VJEPATask, pixels: Tensor, *, seed: int = 0) -> Callable[[int], dict[str, float]]:
    """An evaluation for `fit`: health of whole clips ("clip_...") and of single frames ("frame_...").

    The masks are the same at every call, so that the numbers of a run can be compared.

    Args:
        task: The run.
        pixels: (B, T, Y, X, 3) uint8 held-out clips of different episodes.
        seed: Seed of the masks.
    """

    def evaluate(step: int) -> dict[str, float]:
        device = task.clip_statistics.mean.device
        held_out = pixels.to(device)
        clips = task_health(task, held_out, torch.Generator(device).manual_seed(seed))
        frames = frame_health(task.target_encoder, held_out)
        return {**clips.to_dict("clip_"), **frames.to_dict("frame_")}

    return evaluate
