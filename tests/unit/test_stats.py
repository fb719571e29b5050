from __future__ import annotations

from math import comb

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from worldmodel.errors import ConfigError
from worldmodel.evaluation.stats import (
    Outcomes,
    clustered_difference,
    clustered_interval,
    mcnemar_p,
    quantile,
    success_interval,
    success_rate,
    wilson_interval,
)


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
@pytest.mark.parametrize(("successes", "trials"), [(0, 1), (1, 1), (0, 20), (3, 20), (50, 100), (97, 100), (400, 400)])
def test_wilson_agrees_with_scipy(successes: int, trials: int, confidence: float) -> None:
    reference = binomtest(successes, trials).proportion_ci(confidence, method="wilson")
    assert wilson_interval(successes, trials, confidence) == pytest.approx((reference.low, reference.high), abs=1e-12)


def test_edges_are_exact() -> None:
    assert wilson_interval(0, 30)[0] == 0.0
    assert wilson_interval(30, 30)[1] == 1.0


@pytest.mark.parametrize("rate", [0.05, 0.3, 0.65, 0.9])
def test_wilson_covers_about_as_often_as_it_says(rate: float) -> None:
    """Exact coverage at n = 100: the sum of the probabilities of all counts whose interval holds the truth."""
    trials = 100
    covered = [low <= rate <= high for low, high in (wilson_interval(k, trials) for k in range(trials + 1))]
    coverage = binom.pmf(np.arange(trials + 1), trials, rate)[covered].sum()
    assert 0.92 < coverage < 0.99


@pytest.mark.parametrize(
    ("successes", "trials", "confidence", "named"),
    [(0, 0, 0.95, "trials"), (5, 4, 0.95, "successes"), (-1, 4, 0.95, "successes"), (1, 4, 1.0, "confidence")],
)
def test_wilson_refuses_impossible_counts(successes: int, trials: int, confidence: float, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        wilson_interval(successes, trials, confidence)


def test_rate_and_interval_of_outcomes() -> None:
    outcomes = [True, False, True, True]
    assert success_rate(outcomes) == 0.75
    assert success_interval(outcomes) == wilson_interval(3, 4)
    with pytest.raises(ConfigError, match="at least one episode"):
        success_rate([])


def test_quantile() -> None:
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert quantile([], 0.5) is None
    with pytest.raises(ConfigError, match="share"):
        quantile([1.0], 1.5)


def arm(rates: list[float], tasks: int = 200, seed: int = 0) -> Outcomes:
    rng = np.random.default_rng(seed)
    return np.stack([rng.random(tasks) < rate for rate in rates])


def test_clustered_interval_is_wilson_for_one_seed_and_at_the_edges() -> None:
    one = arm([0.4])
    assert clustered_interval(one) == wilson_interval(int(one.sum()), 200)
    assert clustered_interval(np.zeros((3, 50), np.bool_)) == wilson_interval(0, 50)
    assert clustered_interval(np.ones((3, 50), np.bool_)) == wilson_interval(50, 50)


def test_seeds_that_differ_widen_the_interval() -> None:
    alike, apart = arm([0.5, 0.5, 0.5]), arm([0.2, 0.5, 0.8])
    width = [high - low for low, high in (clustered_interval(alike), clustered_interval(apart))]
    assert width[1] > 2 * width[0]


def test_the_difference_of_shared_tasks_is_sharper_than_that_of_different_ones() -> None:
    hard = np.random.default_rng(1).random(300)  # the same tasks are hard for both
    first, second = (hard < 0.6)[None], (hard < 0.5)[None]
    low, high = clustered_difference(first, second)
    assert low > 0
    shuffled = second[:, np.random.default_rng(2).permutation(300)]
    loose = clustered_difference(first, shuffled)
    assert loose[1] - loose[0] > 1.5 * (high - low)


def test_the_difference_covers_the_truth_about_as_often_as_it_says() -> None:
    """100 experiments with two arms of equal success: the interval should hold 0 in about 95 of them."""
    hits = 0
    for trial in range(100):
        low, high = clustered_difference(arm([0.5], 80, 2 * trial), arm([0.5], 80, 2 * trial + 1), seed=trial)
        hits += low <= 0 <= high
    assert 88 <= hits <= 100


def test_differences_are_reproducible_and_antisymmetric_in_sign() -> None:
    first, second = arm([0.7, 0.6], seed=3), arm([0.3, 0.4], seed=4)
    assert clustered_difference(first, second) == clustered_difference(first, second)
    assert clustered_difference(first, second)[0] > 0 > clustered_difference(second, first)[1]


@pytest.mark.parametrize(
    ("first", "second", "named"),
    [
        (np.zeros((0, 5), np.bool_), np.zeros((1, 5), np.bool_), "at least one"),
        (np.zeros(5, np.bool_), np.zeros((1, 5), np.bool_), "seeds, tasks"),
        (np.zeros((1, 5), np.bool_), np.zeros((1, 6), np.bool_), "same tasks"),
    ],
)
def test_outcomes_that_cannot_be_compared_are_refused(first: Outcomes, second: Outcomes, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        clustered_difference(first, second)


@pytest.mark.parametrize(
    ("only_first", "only_second", "both"), [(0, 0, 5), (1, 0, 0), (8, 1, 30), (14, 9, 65), (3, 3, 0)]
)
def test_mcnemar_is_twice_the_smaller_binomial_tail(only_first: int, only_second: int, both: int) -> None:
    first = [True] * only_first + [False] * only_second + [True] * both
    second = [False] * only_first + [True] * only_second + [True] * both
    count = only_first + only_second
    tail = sum(comb(count, k) for k in range(min(only_first, only_second) + 1)) / 2**count
    assert mcnemar_p(first, second) == pytest.approx(min(1.0, 2 * tail))
    assert mcnemar_p(second, first) == mcnemar_p(first, second)


def test_mcnemar_rejects_equal_agents_no_more_often_than_it_says() -> None:
    rng = np.random.default_rng(0)
    solved = rng.random((2, 1000, 60)) < 0.5
    p = [mcnemar_p(list(map(bool, a)), list(map(bool, b))) for a, b in zip(*solved, strict=True)]
    assert 0.01 < np.mean(np.array(p) < 0.05) <= 0.06  # an exact test is conservative


@pytest.mark.parametrize(("first", "second"), [([], []), ([True], [True, False])])
def test_mcnemar_needs_the_same_tasks(first: list[bool], second: list[bool]) -> None:
    with pytest.raises(ConfigError, match="same tasks"):
        mcnemar_p(first, second)
