"""Intervals and quantiles of what was measured. Pure functions of numbers, so that references can check them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.stats import norm

from worldmodel.errors import ConfigError

Interval = tuple[float, float]


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> Interval:
    """Wilson score interval of a success probability (Wilson 1927, eq. without continuity correction).

    Chosen over the normal approximation because it keeps its coverage near 0 and 1, where floors and ceilings live.

    Args:
        successes: Number of successes, in [0, trials].
        trials: Number of episodes, at least 1.
        confidence: Two-sided coverage, in (0, 1).

    Returns:
        (low, high), both in [0, 1].

    Raises:
        ConfigError: A count or the confidence is out of range.
    """
    if trials < 1:
        raise ConfigError(f"trials must be >= 1, got {trials}: an interval needs at least one episode")
    if not 0 <= successes <= trials:
        raise ConfigError(f"successes must be in [0, trials={trials}], got {successes}")
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence must be in (0, 1), got {confidence}")
    z = float(norm.ppf(0.5 + confidence / 2))
    rate = successes / trials
    scale = 1 + z * z / trials
    centre = (rate + z * z / (2 * trials)) / scale
    half = z * math.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials)) / scale
    # The exact bounds at the edges are 0 and 1; rounding must not leave 1e-17 there.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == trials else min(1.0, centre + half)
    return low, high


def success_rate(outcomes: Sequence[bool]) -> float:
    """Share of true outcomes.

    Raises:
        ConfigError: There are no outcomes.
    """
    if not outcomes:
        raise ConfigError("a success rate needs at least one episode, got none")
    return sum(outcomes) / len(outcomes)


def success_interval(outcomes: Sequence[bool], confidence: float = 0.95) -> Interval:
    """Wilson interval of the share of true outcomes.

    Raises:
        ConfigError: There are no outcomes, or the confidence is out of range.
    """
    return wilson_interval(sum(outcomes), len(outcomes), confidence)


def quantile(values: Sequence[float], share: float) -> float | None:
    """Linear-interpolation quantile, None for an empty sample.

    Args:
        values: Sample, any unit.
        share: Quantile in [0, 1], e.g. 0.95.

    Raises:
        ConfigError: `share` is out of range.
    """
    if not 0 <= share <= 1:
        raise ConfigError(f"share must be in [0, 1], got {share}")
    return float(np.quantile(np.asarray(values, dtype=np.float64), share)) if len(values) else None
