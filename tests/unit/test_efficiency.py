"""Steps to reach a score, and the ratio of two pretrainings, on curves whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from worldmodel.errors import DataError
from worldmodel.evaluation.efficiency import (
    TrainingCurve,
    curves_of,
    mean_ratio,
    step_ratio,
    steps_to_reach,
)

STEPS = np.array([0, 100, 200, 400, 1000])


def rising(pace: int, seeds: int = 3, noise: float = 0.0, seed: int = 0) -> TrainingCurve:
    """Scores from .3 straight to .9 at step `pace`, the noise of a bootstrap sample the same all along."""
    rng = np.random.default_rng(seed)
    clean = 0.3 + 0.6 * np.minimum(STEPS / pace, 1)
    scores = clean + noise * rng.standard_normal((seeds, 1))
    draws = scores[:, :, None] + noise * rng.standard_normal((1, 1, 200))
    return TrainingCurve(steps=STEPS, scores=scores, draws=draws)


def test_steps_are_interpolated_between_snapshots() -> None:
    scores = np.array([0.2, 0.4, 0.6, 0.6, 0.8])
    assert steps_to_reach(STEPS, scores, 0.5) == pytest.approx(150)
    assert steps_to_reach(STEPS, scores, 0.8) == 1000
    assert steps_to_reach(STEPS, scores, 0.21) == pytest.approx(5)
    assert math.isnan(steps_to_reach(STEPS, scores, 0.2))  # there without training
    assert math.isnan(steps_to_reach(STEPS, scores, 0.81))  # never


def test_twice_as_fast_is_a_ratio_of_two() -> None:
    slow, fast = rising(400), rising(200)
    found = step_ratio(fast, slow)
    assert (found.candidate_steps, found.reference_steps) == (200, 400)
    assert found.score == pytest.approx(0.9)
    assert found.ratio == pytest.approx(2)
    assert found.interval == pytest.approx((2, 2))  # no noise
    assert step_ratio(slow, fast).ratio == pytest.approx(1 / 2)
    assert found.without == 0


def test_the_interval_holds_the_truth_and_tells_noise() -> None:
    quiet = step_ratio(rising(200, noise=0.002), rising(400, noise=0.002, seed=1))
    loud = step_ratio(rising(200, noise=0.02), rising(400, noise=0.02, seed=1))
    assert quiet.interval is not None
    assert loud.interval is not None
    assert quiet.interval[0] < 2 < quiet.interval[1]
    assert np.ptp(loud.interval) > 2 * np.ptp(quiet.interval)
    same = step_ratio(rising(200, noise=0.01), rising(200, noise=0.01, seed=1))
    assert same.interval is not None
    assert same.interval[0] < 1 < same.interval[1]


def test_nothing_to_learn_is_no_ratio() -> None:
    flat = TrainingCurve(steps=STEPS, scores=np.full((2, 5), 0.3), draws=np.full((2, 5, 10), 0.3))
    learned = rising(200, seeds=2)
    learned = TrainingCurve(steps=STEPS, scores=learned.scores, draws=learned.draws[:, :, :10])
    found = step_ratio(learned, flat)
    assert found.ratio is None
    assert found.interval is None
    assert found.without == 1
    assert mean_ratio([found]) is None


def test_mean_over_tasks_is_geometric_and_leaves_out_what_has_none() -> None:
    two, half = step_ratio(rising(200), rising(400)), step_ratio(rising(400), rising(200))
    mean = mean_ratio([two, half])
    assert mean is not None
    assert mean[1] is not None
    assert mean[0] == pytest.approx(1)
    assert mean[1] == pytest.approx((1, 1))


def test_curves_come_from_cells() -> None:
    draws = [[0.1, None, 0.3], [0.2, 0.2, 0.2]]
    curve = curves_of({100: [(0.5, draws[0]), (0.7, draws[1])], 0: [(0.1, draws[1]), (0.3, draws[1])]})
    assert curve.steps.tolist() == [0, 100]
    assert curve.mean == pytest.approx([0.2, 0.6])
    assert np.isnan(curve.draws[0, 1, 1])
    assert curve.draws[1, 1].tolist() == draws[1]
    with pytest.raises(DataError, match="the same seeds"):
        curves_of({0: [(0.1, draws[0])], 100: [(0.1, draws[0]), (0.2, draws[0])]})
    with pytest.raises(DataError, match="ascending steps from 0"):
        TrainingCurve(steps=STEPS[1:], scores=np.zeros((1, 4)), draws=np.zeros((1, 4, 3)))
    with pytest.raises(DataError, match="the same seeds and bootstrap samples"):
        step_ratio(rising(200, seeds=2), rising(200, seeds=3))
