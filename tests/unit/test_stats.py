from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from worldmodel.errors import ConfigError
from worldmodel.evaluation.stats import quantile, success_interval, success_rate, wilson_interval


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
