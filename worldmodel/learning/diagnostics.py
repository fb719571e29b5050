"""Is a representation healthy? Numbers that need no labels, on clips that were not trained on, and a verdict.

The loss cannot tell: it falls in every kind of collapse. Four questions separate the kinds seen at small scale: do
features or targets follow from the place alone (positional collapse), are features constant within an episode (slow
trap), have targets lost their directions (dimensional collapse), and does the predictor recognise its own sample
(cross-sample gap). Random init is the reference, not zero.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum

import torch
from torch import Tensor
from torch.nn import functional as F

from worldmodel.errors import DataError
from worldmodel.learning.masked import MOVING, ClipLike, MaskedTask
from worldmodel.models.encoders import VideoViT

TOO_EARLY = 0.2
"""Share of a run before which a predictor that knows nothing is no news."""
LOST_STD = 0.15
"""Share of the deviation at random init below which features or targets hardly vary."""
LOST_SHARE = 0.4
"""Share of what random init has left beyond the place, or within episodes, below which it counts as lost."""
LOST_RANK = 0.25
"""Share of the targets' effective rank at random init below which they have collapsed to few directions."""
ONE_DIRECTION = 1.5
"""Effective rank of features below which little more than one direction is left."""


@dataclass(kw_only=True)
class Health:
    """Summary of features (B, T, N, D), of the targets of a run and of the predictions of them.

    Attributes:
        positional_share: Share of variance explained by the place alone, in [0, 1]; near 1 is positional collapse.
        temporal_share: Share of the remaining variance that is within clips, in [0, 1]; near 0 is the slow trap.
        effective_rank: exp(entropy) of the spectrum of what remains after the positional mean, in [1, D].
        channel_std: Mean standard deviation of a channel at a place.
        mover_temporal_share: `temporal_share` of the tokens that move; None where motion is not known.
        cross_sample_gap: cos(prediction, own target) minus cos(prediction, another clip's target at the same place);
            near 0 means predictions ignore the clip. None where there is no predictor.
        mover_loss: Squared error of predictions over that of the mean over clips, on tokens that move; 1 means nothing
            was learned beyond the place. None where there is no predictor.
        static_loss: The same on the others.
        target_known_share: Share of the mean square of the targets on clips that follows from the place alone, the
            constant included, in [0, 1]. Of layer-normed targets that is how far the loss falls without a look at the
            clip; near 1 is positional collapse. The targets' numbers are those before running statistics scale them,
            and None where only features were judged.
        target_std: `channel_std` of these targets.
        target_effective_rank: `effective_rank` of these targets after the positional mean.
    """

    positional_share: float
    temporal_share: float
    effective_rank: float
    channel_std: float
    mover_temporal_share: float | None = None
    cross_sample_gap: float | None = None
    mover_loss: float | None = None
    static_loss: float | None = None
    target_known_share: float | None = None
    target_std: float | None = None
    target_effective_rank: float | None = None

    def to_dict(self, prefix: str = "") -> dict[str, float]:
        """Flat JSON-ready form without missing values."""
        return {prefix + name: value for name, value in asdict(self).items() if value is not None}


class Verdict(StrEnum):
    """What a run looks like."""

    HEALTHY = "healthy"
    POSITIONAL = "positional collapse"
    SLOW = "slow-feature trap"
    DIMENSIONAL = "dimensional collapse"
    UNDER_TRAINED = "under-trained"


ADVICE = {
    Verdict.HEALTHY: "go on",
    Verdict.POSITIONAL: "slow the target encoder, standardise targets per position, weigh motion (target=ema_repaired)",
    Verdict.SLOW: "take per-clip nuisances such as colour out of the targets, and centre them over the clip",
    Verdict.DIMENSIONAL: "lower the learning rate, or raise ema_start (target=online: raise target.sigreg_weight)",
    Verdict.UNDER_TRAINED: "train for more steps, or raise the learning rate",
}


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """A verdict and what speaks for it.

    Attributes:
        verdict: The kind.
        evidence: The number that decided, in plain words.
    """

    verdict: Verdict
    evidence: str

    @property
    def line(self) -> str:
        """One plain line: verdict, evidence and advice."""
        return f"{self.verdict.value}: {self.evidence}; {ADVICE[self.verdict]}"


def diagnose(health: Health, reference: Health, *, done: float) -> Diagnosis:
    """Say what a run looks like.

    Thresholds are relative to random init of the same network and clips: its features are far from isotropic. Targets
    are judged before features. Where the targets are fixed (pixels, a frozen teacher) they equal their reference and
    cannot collapse, so features that hold few directions there hold what was asked of them.

    Args:
        health: Of the encoder in training, with its predictor when that should be judged too.
        reference: Of the same run before its first step, from `reference_health`.
        done: Share of the run that is over, in [0, 1]; before `TOO_EARLY` it is never called under-trained.
    """
    for verdict, check in _CHECKS:
        found = check(health, reference)
        if found is not None:
            return Diagnosis(verdict=verdict, evidence=found)
    gap, mover = health.cross_sample_gap, health.mover_loss
    if done >= TOO_EARLY and gap is not None and mover is not None and (gap < 0.05 or mover > 1.0):
        evidence = f"predictions ignore the clip (gap {gap:.2f}, relative error on movers {mover:.2f})"
        return Diagnosis(verdict=Verdict.UNDER_TRAINED, evidence=evidence)
    seen = "" if gap is None or mover is None else f", gap {gap:.2f}, relative error on movers {mover:.2f}"
    evidence = (
        f"effective rank {health.effective_rank:.1f}, {health.temporal_share:.0%} of the variance within episodes{seen}"
    )
    return Diagnosis(verdict=Verdict.HEALTHY, evidence=evidence)


def _hardly_vary(health: Health, reference: Health) -> str | None:
    pairs = {
        "targets": (health.target_std, reference.target_std),
        "features": (health.channel_std, reference.channel_std),
    }
    for name, (now, before) in pairs.items():
        if now is not None and before is not None and now < LOST_STD * before:
            return f"{name} hardly vary, {now:.3f} against {before:.3f} at random init"
    return None


def _follow_from_place(health: Health, reference: Health) -> str | None:
    pairs = {
        "of the squared targets": (health.target_known_share, reference.target_known_share),
        "of the variance": (health.positional_share, reference.positional_share),
    }
    for name, (now, before) in pairs.items():
        if now is not None and before is not None and 1 - now < LOST_SHARE * (1 - before):
            return f"the place alone explains {now:.1%} {name}, {before:.1%} at random init"
    return None


def _stand_still(health: Health, reference: Health) -> str | None:
    pairs = {
        "": (health.temporal_share, reference.temporal_share),
        " of movers": (health.mover_temporal_share, reference.mover_temporal_share),
    }
    for name, (now, before) in pairs.items():
        if now is not None and before is not None and now < LOST_SHARE * before:
            return f"{now:.1%} of the variance{name} is within episodes, {before:.1%} at random init"
    return None


def _few_directions(health: Health, reference: Health) -> str | None:
    now, before = health.target_effective_rank, reference.target_effective_rank
    if now is not None and before is not None and now < LOST_RANK * before:
        return f"effective rank of the targets {now:.1f} against {before:.1f} at random init"
    if health.effective_rank < ONE_DIRECTION:
        return f"effective rank {health.effective_rank:.1f} against {reference.effective_rank:.1f} at random init"
    return None


_CHECKS = (
    (Verdict.DIMENSIONAL, _hardly_vary),
    (Verdict.POSITIONAL, _follow_from_place),
    (Verdict.SLOW, _stand_still),
    (Verdict.DIMENSIONAL, _few_directions),
)


def positional_share(features: Tensor) -> float:
    """Share of the variance of features (B, T, N, D) that the mean at each position explains."""
    place = features.flatten(0, 1).mean(dim=0)  # (N, D)
    total = (features - place.mean(dim=0)).square().mean(dim=(0, 1, 2)).sum()
    between = (place - place.mean(dim=0)).square().mean(dim=0).sum()
    return float(between / total.clamp(min=1e-12))


def known_share(features: Tensor) -> float:
    """Share of the mean square of features (B, T, N, D) that the mean at each position, constant included, explains."""
    place = features.flatten(0, 1).mean(dim=0)  # (N, D)
    return float(place.square().mean() / features.square().mean().clamp(min=1e-12))


def temporal_share(features: Tensor, moving: Tensor | None = None) -> float:
    """Within-clip over total variance of features (B, T, N, D), after the mean at each position is removed.

    Args:
        features: (B, T, N, D).
        moving: (B, T, N) bool, tokens to look at; None looks at all.
    """
    centred = features - features.flatten(0, 1).mean(dim=0)
    within = (centred - centred.mean(dim=1, keepdim=True)).square().mean(dim=-1)
    total = centred.square().mean(dim=-1)
    if moving is not None:
        within, total = within[moving], total[moving]
    return float(within.sum() / total.sum().clamp(min=1e-12))


def effective_rank(features: Tensor) -> float:
    """Exponential of the entropy of the normalised covariance spectrum of features (..., D), 1 to D."""
    flat = features.flatten(0, -2).double()
    centred = flat - flat.mean(dim=0)
    spectrum = torch.linalg.eigvalsh(centred.T @ centred).clamp(min=0)
    share = spectrum / spectrum.sum().clamp(min=1e-30)
    return float(torch.special.entr(share).sum().exp())


def feature_drift(before: Tensor, after: Tensor) -> float:
    """How far features have moved: 1 - linear CKA (Kornblith et al., arXiv:1905.00414), in [0, 1].

    What each place shows on average is removed first. Rotations and one common scale are no change.

    Args:
        before: (F, N, D) features of some frames.
        after: (F, N, E) features of the same frames.

    Raises:
        DataError: They are not of the same frames and places.
    """
    if before.ndim != 3 or before.shape[:2] != after.shape[:2]:
        raise DataError(f"drift needs features (F, N, D) of the same frames, got {(*before.shape,)}, {(*after.shape,)}")
    x, y = ((one - one.mean(dim=0)).flatten(0, 1).double() for one in (before, after))
    shared = (x.T @ y).square().sum()
    own = (x.T @ x).square().sum().sqrt() * (y.T @ y).square().sum().sqrt()
    return float((1 - shared / own.clamp(min=1e-30)).clamp(0, 1))


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


def describe(features: Tensor, moving: Tensor | None = None) -> Health:
    """All label-free numbers of features.

    Args:
        features: (B, T, N, D) float.
        moving: (B, T, N) bool, the tokens that move, or None.

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
        mover_temporal_share=temporal_share(features, moving) if moving is not None and moving.any() else None,
    )


def relative_error(prediction: Tensor, target: Tensor, chosen: Tensor) -> float | None:
    """Squared error of predictions over that of the mean over clips, both (B, M, D), on the chosen (B, M) tokens."""
    if not chosen.any():
        return None
    error = (prediction - target).square().mean(dim=-1)[chosen].sum()
    baseline = (target - target.mean(dim=0)).square().mean(dim=-1)[chosen].sum()
    return float(error / baseline.clamp(min=1e-12))


def task_health(task: MaskedTask, clips: ClipLike, moments: ClipLike, generator: torch.Generator) -> Health:
    """Health of a pretraining run: features of single frames as at planning time, targets and predictions on clips.

    The task is left as it was found.

    Args:
        task: The run.
        clips: Clips of different episodes, not trained on; targets and predictions are judged on them.
        moments: Still clips, every frame repeated over a tubelet; features are judged on them.
        generator: Stream for the masks.

    Raises:
        DataError: Fewer than two clips.
    """
    training = task.training
    task.eval()
    with torch.no_grad():
        health = moment_health(task, task.result, moments)
        _add_targets(health, task, clips)
        prediction, target, motion = task.predict(clips, generator)
        health.cross_sample_gap = cross_sample_gap(prediction, target)
        health.mover_loss = relative_error(prediction, target, motion > MOVING)
        health.static_loss = relative_error(prediction, target, motion <= MOVING)
    task.train(training)
    return health


def reference_health(task: MaskedTask, clips: ClipLike, moments: ClipLike) -> Health:
    """What later health of a run is compared with: features and targets before the first step, no predictions.

    Args:
        task: The run before its first step; it is left as it was found.
        clips: As for `task_health`.
        moments: As for `task_health`.
    """
    training = task.training
    task.eval()
    health = moment_health(task, task.result, moments)
    _add_targets(health, task, clips)
    task.train(training)
    return health


def _add_targets(health: Health, task: MaskedTask, clips: ClipLike) -> None:
    with torch.no_grad():
        targets = task.target_features(clips)
    health.target_known_share = known_share(targets)
    health.target_std = channel_std(targets)
    health.target_effective_rank = effective_rank(targets - targets.flatten(0, 1).mean(dim=0))


def moment_health(task: MaskedTask, encoder: VideoViT, moments: ClipLike) -> Health:
    """Health of the features of single frames, far apart in their episodes.

    Args:
        task: Knows what moves.
        encoder: Gives the features; of the same grid as the task's.
        moments: (B, T, ...) clips in which every frame is repeated over a tubelet.
    """
    with torch.no_grad():
        moving = task.motion_of(moments).unflatten(1, (-1, encoder.num_tokens)) > MOVING
        return describe(encoder.encode_frames(moments.pixels[:, :: encoder.config.tubelet_size]), moving)
