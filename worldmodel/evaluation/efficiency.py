"""How much pretraining it takes to read equally much: scores over training, and the ratio of two objectives.

The claim under test is that predicting representations takes 1.5 to 6 times less training than generating pixels
(V-JEPA, arXiv:2404.08471). Pure functions of finished probe cells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from worldmodel.errors import DataError
from worldmodel.evaluation.probe_results import split_means
from worldmodel.evaluation.stats import Interval

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class TrainingCurve:
    """What one task reads from an objective's encoders as they learn.

    Attributes:
        steps: (P,) pretraining steps, ascending from 0, which is random weights.
        scores: (seeds, P) on all test clips.
        draws: (seeds, P, draws) on bootstrap samples of them, the same for every curve of a task; NaN for no score.
    """

    steps: NDArray[np.int64]
    scores: Floats
    draws: Floats

    def __post_init__(self) -> None:
        if len(self.steps) < 2 or self.steps[0] != 0 or (np.diff(self.steps) <= 0).any():
            raise DataError(f"a curve needs ascending steps from 0, at least two, got {self.steps.tolist()}")
        if self.scores.shape != self.draws.shape[:2] or self.scores.shape[1] != len(self.steps):
            raise DataError(
                f"a curve of {len(self.steps)} steps needs scores (seeds, steps) and draws (seeds, steps, draws), got "
                f"{self.scores.shape} and {self.draws.shape}"
            )

    @property
    def mean(self) -> Floats:
        """(P,) over seeds."""
        return np.asarray(self.scores.mean(axis=0))

    def intervals(self) -> list[Interval]:
        """95 % of each mean, over seeds and test episodes."""
        low, high = np.nanquantile(self.resampled(), [0.025, 0.975], axis=0)
        return list(zip(low.tolist(), high.tolist(), strict=True))

    def resampled(self) -> Floats:
        """(draws, P) means over the seeds of every draw, the same seeds for curves with as many."""
        return np.stack([split_means(self.draws[:, place]) for place in range(len(self.steps))], axis=1)


@dataclass(frozen=True, kw_only=True)
class StepRatio:
    """How many times the steps of the candidate the reference needs to read the same.

    Attributes:
        score: The best that both reach.
        candidate_steps: Steps after which the candidate reads it, interpolated between snapshots.
        reference_steps: The same of the reference.
        ratio: Of the two; None where random weights read as much, and there is nothing to be learned.
        interval: Its 95 % interval over seeds and test episodes, of the draws that have a ratio; None without a ratio.
        draws: (draws,) of the interval; NaN without one.
    """

    score: float
    candidate_steps: float | None
    reference_steps: float | None
    ratio: float | None
    interval: Interval | None
    draws: Floats

    @property
    def without(self) -> float:
        """Share of the draws in which random weights read as much as what was trained."""
        return float(np.isnan(self.draws).mean())


def steps_to_reach(steps: NDArray[np.int64], scores: Floats, score: float) -> float:
    """Steps after which a curve first is at `score`, linear between its points; NaN when it begins there or never is.

    Args:
        steps: (P,) ascending from 0.
        scores: (P,).
        score: To be reached.
    """
    there = np.flatnonzero(scores >= score)
    if not len(there) or there[0] == 0:
        return float("nan")
    i = int(there[0])
    share = (score - scores[i - 1]) / (scores[i] - scores[i - 1])
    return float(steps[i - 1] + share * (steps[i] - steps[i - 1]))


def step_ratio(candidate: TrainingCurve, reference: TrainingCurve) -> StepRatio:
    """Ratio of the steps to the best score that both reach, with its interval.

    The score is chosen anew in every bootstrap draw. Seeds are drawn in pairs, as both were given the same labels.

    Raises:
        DataError: The curves have different numbers of seeds or draws.
    """
    if candidate.draws.shape[0] != reference.draws.shape[0] or candidate.draws.shape[2] != reference.draws.shape[2]:
        raise DataError("both curves need the same seeds and bootstrap samples")
    score, mine, theirs = _both(candidate, reference, candidate.mean, reference.mean)
    pairs = zip(candidate.resampled(), reference.resampled(), strict=True)
    found = np.array([_both(candidate, reference, ours, others)[1:] for ours, others in pairs])
    draws = found[:, 1] / found[:, 0]
    ratio = theirs / mine
    return StepRatio(
        score=score,
        candidate_steps=None if np.isnan(mine) else mine,
        reference_steps=None if np.isnan(theirs) else theirs,
        ratio=None if np.isnan(ratio) else ratio,
        interval=None if np.isnan(ratio) else interval_of(draws),
        draws=draws,
    )


def interval_of(draws: Floats) -> Interval | None:
    """95 % interval of the draws that are numbers; None where none is."""
    finite = draws[np.isfinite(draws)]
    if not len(finite):
        return None
    low, high = np.quantile(finite, [0.025, 0.975])
    return float(low), float(high)


def mean_ratio(ratios: Sequence[StepRatio]) -> tuple[float, Interval | None] | None:
    """Geometric mean over tasks that have a ratio, with its interval; None where no task has one."""
    known = [entry for entry in ratios if entry.ratio is not None]
    if not known:
        return None
    logs = np.log(np.stack([entry.draws for entry in known]))
    counted = np.isfinite(logs).sum(axis=0)
    sums = np.nansum(logs, axis=0)
    draws = np.exp(np.divide(sums, counted, out=np.full(len(sums), np.nan), where=counted > 0))
    mean = float(np.exp(np.mean([np.log(entry.ratio) for entry in known if entry.ratio is not None])))
    return mean, interval_of(draws)


def curves_of(
    points: Mapping[int, Sequence[tuple[float, Sequence[float | None]]]],
) -> TrainingCurve:
    """A curve from the cells at each step.

    Args:
        points: Score and bootstrap draws of every seed, by step.

    Raises:
        DataError: Steps have different numbers of seeds.
    """
    steps = sorted(points)
    if len({len(points[step]) for step in steps}) > 1:
        raise DataError("every step of a curve needs the same seeds; run the cells that are missing")
    scores = np.array([[score for score, _ in points[step]] for step in steps], np.float64).T
    draws = np.array(
        [[[np.nan if value is None else value for value in found] for _, found in points[step]] for step in steps],
        np.float64,
    )
    return TrainingCurve(steps=np.array(steps), scores=scores, draws=draws.transpose(1, 0, 2))


def _both(
    candidate: TrainingCurve, reference: TrainingCurve, ours: Floats, others: Floats
) -> tuple[float, float, float]:
    """The best score that both curves reach, and the steps either takes."""
    score = float(min(ours.max(), others.max()))
    return (
        score,
        steps_to_reach(candidate.steps, ours, score),
        steps_to_reach(reference.steps, others, score),
    )
