"""Intervals and quantiles of what was measured. Pure functions of numbers, so that references can check them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import binomtest, norm

from worldmodel.errors import ConfigError

Interval = tuple[float, float]
Outcomes = NDArray[np.bool_]
BOOTSTRAP_DRAWS = 10_000
SIGNIFICANCE = 0.05
"""Share of comparisons of equals in which a difference may be claimed."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How much more often one agent succeeds than another on the same tasks.

    Attributes:
        rate: Difference of their success rates.
        interval: Its 95 % interval, see `clustered_difference`.
        p: Two-sided p-value that they succeed equally often.
        test: Where `p` comes from: "mcnemar" (exact), or "bootstrap" (the draws of `interval`) where an agent stands
            for several training seeds.
        episodes: Tasks they were compared on.
        episodes_needed: About how many it takes to see a gap of this size, see `episodes_needed`; None where there is
            none, or where training seeds count, too.
    """

    rate: float
    interval: Interval
    p: float
    test: str
    episodes: int
    episodes_needed: int | None

    def to_json(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {
            "rate": self.rate,
            "interval": list(self.interval),
            "p": self.p,
            "test": self.test,
            "episodes": self.episodes,
            "episodes_needed": self.episodes_needed,
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Difference:
        """Inverse of `to_json`."""
        low, high = record["interval"]
        return cls(**{**record, "interval": (low, high)})


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


def mcnemar_p(first: Sequence[bool], second: Sequence[bool]) -> float:
    """Two-sided exact p-value of McNemar's test that two agents succeed equally often on the same tasks.

    The tasks that only one of them solves are coin flips if they are equally good (McNemar 1947, exact binomial form).

    Args:
        first: Outcome of one agent per task.
        second: Outcome of the other, same tasks in the same order.

    Raises:
        ConfigError: There are no outcomes, or not equally many.
    """
    only_first, only_second = _discordant(first, second)
    differing = only_first + only_second
    return 1.0 if differing == 0 else float(binomtest(only_first, differing).pvalue)


def episodes_needed(
    first: Sequence[bool], second: Sequence[bool], *, power: float = 0.8, alpha: float = SIGNIFICANCE
) -> int | None:
    """About how many tasks McNemar's test needs to see the gap between two agents, were it as large as it looks here.

    Connor (1987), with the shares of tasks that only one of them solves as they were observed. The formula is for the
    test without continuity correction; the exact one needs a little more, and never says "different" before a few
    tasks tell the two apart, which is the least that is returned.

    Args:
        first: Outcome of one agent per task.
        second: Outcome of the other, same tasks in the same order.
        power: Probability to see the gap, in (0, 1).
        alpha: Probability to see one where there is none, in (0, 1).

    Returns:
        Number of tasks, or None when both succeed equally often.

    Raises:
        ConfigError: There are no outcomes, not equally many, or a probability is out of range.
    """
    for name, share in (("power", power), ("alpha", alpha)):
        if not 0 < share < 1:
            raise ConfigError(f"{name} must be in (0, 1), got {share}")
    only_first, only_second = _discordant(first, second)
    if only_first == only_second:
        return None
    differing = (only_first + only_second) / len(first)
    gap = (only_first - only_second) / len(first)
    chance, wanted = float(norm.ppf(1 - alpha / 2)), float(norm.ppf(power))
    root = chance * math.sqrt(differing) + wanted * math.sqrt(max(differing - gap * gap, 0.0))
    fewest_differing = math.ceil(1 + math.log2(1 / alpha))  # all of them won by one: 2 / 2^n <= alpha
    return math.ceil(max(root * root / (gap * gap), fewest_differing / differing))


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


def bootstrap_rates(
    outcomes: Outcomes | NDArray[np.int64], *, tasks: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.float64]:
    """Success rates under resampled seeds, on given resampled tasks.

    Args:
        outcomes: (S, T) bool, one row per training seed, one column per task; or differences of two such.
        tasks: (R, T) how often each task was drawn, one row per draw; arms that share them are compared on the same
            tasks.
        rng: Stream of the resampled seeds, independent for every arm.

    Returns:
        (R,) rates.
    """
    seeds = resampled(len(outcomes), rng)
    rates: NDArray[np.float64] = np.einsum("rs,st,rt->r", seeds, outcomes, tasks, optimize=True) / outcomes.size
    return rates


def resampled(count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """How often each of `count` things is drawn when as many are drawn with replacement, (BOOTSTRAP_DRAWS, count)."""
    return rng.multinomial(count, np.full(count, 1 / count), size=BOOTSTRAP_DRAWS)


def clustered_interval(outcomes: Outcomes, *, confidence: float = 0.95, seed: int = 0) -> Interval:
    """Percentile interval of a success rate, resampling training seeds and tasks as whole clusters.

    With one seed, and at 0 and 1 where a bootstrap has no width, it is the Wilson interval over the tasks.

    Args:
        outcomes: (S, T) bool.
        confidence: Two-sided coverage, in (0, 1).
        seed: Of the resampling.

    Raises:
        ConfigError: There are no outcomes, or the confidence is out of range.
    """
    _check_outcomes(outcomes, confidence)
    trials = outcomes.shape[1]
    if len(outcomes) == 1 or outcomes.all() or not outcomes.any():
        return wilson_interval(int(outcomes[0].sum()), trials, confidence)
    rng = np.random.default_rng(seed)
    rates = bootstrap_rates(outcomes, tasks=resampled(trials, rng), rng=rng)
    return _percentiles(rates, confidence)


def clustered_difference(
    first: Outcomes, second: Outcomes, *, confidence: float = 0.95, seed: int = 0, paired_seeds: bool = False
) -> Interval:
    """Percentile interval of the difference of two success rates on the same tasks.

    Tasks are resampled together, training seeds of each arm on their own unless they are paired. With few seeds it is
    too narrow: three seeds hardly show how much seeds differ. Where every task went the same way a bootstrap has no
    width, and the score interval over the tasks stands in (`paired_score_interval`).

    Args:
        first: (S1, T) bool.
        second: (S2, T) bool, the same tasks in the same order.
        confidence: Two-sided coverage, in (0, 1).
        seed: Of the resampling.
        paired_seeds: Row s of both arms has something in common (the episodes it was trained on), so rows are
            resampled together as well.

    Returns:
        Interval of rate(first) - rate(second).

    Raises:
        ConfigError: There are no outcomes, the tasks differ in number, or paired seeds do, or the confidence is out of
            range.
    """
    _check_outcomes(first, confidence)
    _check_outcomes(second, confidence)
    draws = _bootstrap_differences(first, second, seed, paired_seeds=paired_seeds)
    return _difference_interval(first, second, draws, confidence)


def difference_of(first: Outcomes, second: Outcomes, *, seed: int = 0) -> Difference:
    """How much more often `first` succeeds than `second`.

    Args:
        first: (S1, T) bool, one row per training seed.
        second: (S2, T) bool, the same tasks in the same order.
        seed: Of the resampling.

    Raises:
        ConfigError: There are no outcomes, or the tasks differ in number.
    """
    _check_outcomes(first, 0.95)
    _check_outcomes(second, 0.95)
    draws = _bootstrap_differences(first, second, seed)
    is_single = len(first) == len(second) == 1
    ours, theirs = (list(map(bool, outcomes[0])) for outcomes in (first, second))
    tail = min(int((draws <= 0).sum()), int((draws >= 0).sum()))  # the draws on the other side of no difference
    return Difference(
        rate=float(first.mean() - second.mean()),
        interval=_difference_interval(first, second, draws, 0.95),
        p=mcnemar_p(ours, theirs) if is_single else min(1.0, 2 * (tail + 1) / (len(draws) + 1)),
        test="mcnemar" if is_single else "bootstrap",
        episodes=first.shape[1],
        episodes_needed=episodes_needed(ours, theirs) if is_single else None,
    )


def paired_score_interval(only_first: int, only_second: int, trials: int, confidence: float = 0.95) -> Interval:
    """Score interval of the difference of two success probabilities on the same tasks (Tango 1998, eq. 5 to 8).

    Args:
        only_first: Tasks that only the first agent solves.
        only_second: Tasks that only the second solves.
        trials: All tasks, at least as many as those two and at least 1.
        confidence: Two-sided coverage, in (0, 1).

    Raises:
        ConfigError: A count or the confidence is out of range.
    """
    if trials < 1 or min(only_first, only_second) < 0 or only_first + only_second > trials:
        raise ConfigError(f"counts must be >= 0 and fit into trials, got {only_first}, {only_second} of {trials}")
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence must be in (0, 1), got {confidence}")
    z = float(norm.ppf(0.5 + confidence / 2))

    def excess(gap: float, sign: int) -> float:
        """Distance of the observed gap from a true one, less z standard deviations under the latter."""
        linear = -only_first - only_second + (2 * trials - only_first + only_second) * gap
        root = math.sqrt(max(linear * linear + 8 * trials * only_second * gap * (1 - gap), 0.0))
        share = (root - linear) / (4 * trials)  # of tasks only the second solves, most likely under this gap
        spread = math.sqrt(max(trials * (2 * share + gap * (1 - gap)), 0.0))
        return sign * (only_first - only_second - trials * gap) - z * spread

    observed, aside = (only_first - only_second) / trials, 1e-9  # the gap observed may have no spread: not an end
    low = -1.0 if observed == -1 else float(brentq(excess, -1.0, observed - aside, args=(1,)))
    high = 1.0 if observed == 1 else float(brentq(excess, observed + aside, 1.0, args=(-1,)))
    return low, high


def _difference_interval(first: Outcomes, second: Outcomes, draws: NDArray[np.float64], confidence: float) -> Interval:
    if draws.min() < draws.max():
        return _percentiles(draws, confidence)
    only_first, only_second = _discordant(first[0].tolist(), second[0].tolist())
    return paired_score_interval(only_first, only_second, first.shape[1], confidence)


def _bootstrap_differences(
    first: Outcomes, second: Outcomes, seed: int, *, paired_seeds: bool = False
) -> NDArray[np.float64]:
    """(R,) differences of the rates; tasks are drawn together, the training seeds of each arm on their own or together.

    Raises:
        ConfigError: The tasks differ in number, or paired seeds do.
    """
    if paired_seeds and len(first) != len(second):
        raise ConfigError(f"paired arms must have the same seeds, got {len(first)} and {len(second)}")
    if first.shape[1] != second.shape[1]:
        raise ConfigError(f"arms must be judged on the same tasks, got {first.shape[1]} and {second.shape[1]}")
    rng = np.random.default_rng(seed)
    tasks = resampled(first.shape[1], rng)
    if paired_seeds:
        return bootstrap_rates(first.astype(np.int64) - second, tasks=tasks, rng=rng)
    return bootstrap_rates(first, tasks=tasks, rng=rng) - bootstrap_rates(second, tasks=tasks, rng=rng)


def _discordant(first: Sequence[bool], second: Sequence[bool]) -> tuple[int, int]:
    """How many tasks only the first solves, and how many only the second.

    Raises:
        ConfigError: There are no outcomes, or not equally many.
    """
    if not first or len(first) != len(second):
        raise ConfigError(f"McNemar's test needs the same tasks, at least one, got {len(first)} and {len(second)}")
    only_first = sum(a and not b for a, b in zip(first, second, strict=True))
    only_second = sum(b and not a for a, b in zip(first, second, strict=True))
    return only_first, only_second


def _check_outcomes(outcomes: Outcomes, confidence: float) -> None:
    if outcomes.ndim != 2 or outcomes.size == 0:
        raise ConfigError(f"outcomes must be (seeds, tasks) with at least one of each, got shape {outcomes.shape}")
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence must be in (0, 1), got {confidence}")


def _percentiles(values: NDArray[np.float64], confidence: float) -> Interval:
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
