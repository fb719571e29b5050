from __future__ import annotations

from math import comb

import numpy as np
import pytest
from scipy.stats import binom, binomtest
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

from worldmodel.errors import ConfigError
from worldmodel.evaluation import stats
from worldmodel.evaluation.stats import (
    Difference,
    Outcomes,
    clustered_difference,
    clustered_interval,
    difference_of,
    episodes_needed,
    mcnemar_p,
    paired_score_interval,
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


@pytest.mark.parametrize(("successes", "trials"), [(0, 20), (3, 20), (50, 100), (200, 200)])
def test_wilson_agrees_with_statsmodels(successes: int, trials: int) -> None:
    reference = proportion_confint(successes, trials, method="wilson")
    assert wilson_interval(successes, trials) == pytest.approx(reference, abs=1e-12)


@pytest.mark.parametrize(("only_first", "only_second", "both"), [(0, 1, 5), (8, 1, 30), (14, 9, 65), (3, 3, 0)])
def test_mcnemar_agrees_with_statsmodels(only_first: int, only_second: int, both: int) -> None:
    first = [True] * only_first + [False] * only_second + [True] * both
    second = [False] * only_first + [True] * only_second + [True] * both
    assert mcnemar_p(first, second) == pytest.approx(mcnemar([[both, only_first], [only_second, 0]], exact=True).pvalue)


def pair(only_first: int, only_second: int, alike: int) -> tuple[list[bool], list[bool]]:
    """Outcomes of two agents on the same tasks."""
    first = [True] * only_first + [False] * only_second + [True] * alike
    return first, [False] * only_first + [True] * only_second + [True] * alike


@pytest.mark.parametrize(("only_first", "only_second"), [(30, 10), (20, 10), (5, 25), (15, 2), (50, 30)])
def test_so_many_episodes_show_the_gap_about_as_often_as_asked(only_first: int, only_second: int) -> None:
    """Simulated experiments of the size recommended, judged by an exact test written down a second time."""
    needed = episodes_needed(*pair(only_first, only_second, 100 - only_first - only_second))
    assert needed is not None
    power = []
    for size in (needed, needed // 3):
        shares = [only_first / 100, only_second / 100, 1 - (only_first + only_second) / 100]
        one, other, _ = np.random.default_rng(0).multinomial(size, shares, size=20_000).T
        p = 2 * binom.cdf(np.minimum(one, other), one + other, 0.5)
        power.append(np.mean(p < 0.05))
    assert 0.73 < power[0] < 0.85, "the exact test needs a little more than the formula says"
    assert power[1] < 0.5


def test_more_power_and_smaller_gaps_need_more_episodes() -> None:
    needed = [episodes_needed(*pair(20 + gap, 20 - gap, 60)) for gap in (10, 5, 2)]
    assert needed == sorted(needed, key=lambda count: count or 0)
    first, second = pair(25, 15, 60)
    assert (episodes_needed(first, second, power=0.9) or 0) > (episodes_needed(first, second) or 0)
    assert (episodes_needed(first, second, alpha=0.01) or 0) > (episodes_needed(first, second) or 0)
    assert episodes_needed(second, first) == episodes_needed(first, second)
    # Connor's formula by hand: differing 0.4, gap 0.1, quantiles of the normal distribution from a table
    assert episodes_needed(first, second) == 312
    assert np.ceil((1.959964 * 0.4**0.5 + 0.841621 * (0.4 - 0.01) ** 0.5) ** 2 / 0.01) == 312


def test_no_gap_needs_no_number_and_few_tasks_never_suffice() -> None:
    assert episodes_needed(*pair(5, 5, 90)) is None
    assert episodes_needed(*pair(0, 0, 10)) is None
    few = episodes_needed(*pair(4, 0, 0))
    assert few == 6, "five tasks won by one agent are not significant, six are"
    assert mcnemar_p(*pair(5, 0, 0)) > 0.05 > mcnemar_p(*pair(6, 0, 0))


def test_impossible_questions_about_episodes_are_refused() -> None:
    first, second = pair(3, 1, 6)
    with pytest.raises(ConfigError, match="power must be in"):
        episodes_needed(first, second, power=1.0)
    with pytest.raises(ConfigError, match="alpha must be in"):
        episodes_needed(first, second, alpha=0.0)
    with pytest.raises(ConfigError, match="same tasks"):
        episodes_needed(first, second[:-1])


def test_a_difference_holds_what_its_parts_say() -> None:
    first, second = pair(30, 12, 58)
    found = difference_of(np.array([first]), np.array([second]))
    assert found.rate == pytest.approx(0.18)
    assert found.interval == clustered_difference(np.array([first]), np.array([second]))
    assert (found.p, found.test, found.episodes) == (mcnemar_p(first, second), "mcnemar", 100)
    assert found.episodes_needed == episodes_needed(first, second)
    assert Difference.from_json(found.to_json()) == found
    with pytest.raises(ConfigError, match="same tasks"):
        difference_of(np.array([first]), np.array([second[:-1]]))


def test_training_seeds_are_tested_by_bootstrap() -> None:
    strong, weak = arm([0.8, 0.85, 0.8], seed=1), arm([0.3, 0.35, 0.25], seed=2)
    found = difference_of(strong, weak)
    assert (found.test, found.episodes_needed) == ("bootstrap", None)
    assert 0 < found.p < 0.01
    same = difference_of(strong, strong)
    assert same.p > 0.5
    assert difference_of(weak, strong).rate == -found.rate


def crossed(rates: tuple[float, ...], seed: int, tasks: int = 40) -> Outcomes:
    """Outcomes whose success depends on how hard the task is and on how well the training run went."""
    rng = np.random.default_rng([7, seed])
    hard = rng.uniform(-0.3, 0.3, tasks)
    return np.stack([rng.random(tasks) < np.clip(rate + hard, 0, 1) for rate in rates])


@pytest.mark.parametrize(("seeds", "lowest", "highest"), [(1, 0.88, 0.99), (8, 0.88, 0.99)])
def test_clustered_intervals_cover_the_truth(
    seeds: int, lowest: float, highest: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seeds and tasks are drawn anew in every experiment: the truth is the rate over all of both."""
    monkeypatch.setattr(stats, "BOOTSTRAP_DRAWS", 400)
    hits = 0
    for trial in range(200):
        rng = np.random.default_rng([1, trial])
        rates = tuple(np.full(1, 0.5) if seeds == 1 else rng.normal(0.5, 0.1, seeds))
        low, high = clustered_interval(crossed(rates, trial), seed=trial)
        hits += low <= 0.5 <= high
    assert lowest < hits / 200 < highest


def test_paired_seeds_are_drawn_together() -> None:
    rng = np.random.default_rng(0)
    luck = np.array([0.2, 0.5, 0.8])[:, None]  # of the seed, shared by both arms
    first, second = rng.random((3, 200)) < luck + 0.1, rng.random((3, 200)) < luck
    paired, alone = clustered_difference(first, second, paired_seeds=True), clustered_difference(first, second)
    assert alone[0] < paired[0] < paired[1] < alone[1]
    assert paired[0] > 0 > alone[0]
    with pytest.raises(ConfigError, match="same seeds, got 3 and 2"):
        clustered_difference(first, second[:2], paired_seeds=True)


@pytest.mark.parametrize("seeds", [1, 8])
def test_clustered_differences_cover_a_true_gap(seeds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both arms meet the same tasks; with several seeds the bootstrap is on the safe side."""
    monkeypatch.setattr(stats, "BOOTSTRAP_DRAWS", 400)
    hits, excluded = 0, 0
    for trial in range(200):
        rng = np.random.default_rng([2, trial])
        spread = 0.0 if seeds == 1 else 0.08
        rates = tuple(rng.normal(0.6, spread, seeds)) + tuple(rng.normal(0.45, spread, seeds))
        both = crossed(rates, trial)
        low, high = clustered_difference(both[:seeds], both[seeds:], seed=trial)
        hits += low <= 0.15 <= high
        excluded += low > 0
    assert hits / 200 > 0.88
    assert excluded / 200 > 0.1, "an interval that always holds zero would cover, too"


@pytest.mark.parametrize("trials", [8, 30, 100])
def test_the_paired_score_interval_has_its_closed_forms_where_all_tasks_agree(trials: int) -> None:
    width = 1.959964**2 / (trials + 1.959964**2)
    assert paired_score_interval(0, 0, trials) == pytest.approx((-width, width), abs=1e-6)
    assert paired_score_interval(trials, 0, trials) == pytest.approx((1 - 2 * width, 1.0), abs=1e-6)
    assert paired_score_interval(0, trials, trials) == pytest.approx((-1.0, 2 * width - 1), abs=1e-6)


def test_the_paired_score_interval_is_the_inverse_of_its_test() -> None:
    """It leaves zero out exactly when McNemar's statistic without correction is significant (statsmodels)."""
    for only_first in range(12):
        for only_second in range(12):
            low, high = paired_score_interval(only_first, only_second, 40)
            assert low < (only_first - only_second) / 40 < high
            table = [[0, only_first], [only_second, 0]]
            differs = only_first != only_second and mcnemar(table, exact=False, correction=False).pvalue < 0.05
            assert (low > 0 or high < 0) == differs


def test_the_paired_score_interval_covers_a_true_gap() -> None:
    counts = np.random.default_rng(0).multinomial(30, [0.2, 0.05, 0.75], size=1000)
    held = [low <= 0.15 <= high for low, high in (paired_score_interval(int(b), int(c), 30) for b, c, _ in counts)]
    assert 0.92 < np.mean(held) < 0.975


def test_where_a_bootstrap_has_no_width_the_score_interval_stands_in() -> None:
    solved = np.ones((1, 20), np.bool_)
    assert clustered_difference(solved, solved) == paired_score_interval(0, 0, 20)
    assert clustered_difference(solved, ~solved) == paired_score_interval(20, 0, 20)
    assert clustered_difference(np.repeat(~solved, 3, axis=0), solved) == paired_score_interval(0, 20, 20)


@pytest.mark.parametrize(
    ("first", "second", "trials", "confidence"), [(3, 3, 5, 0.95), (-1, 0, 5, 0.95), (1, 1, 5, 1.0)]
)
def test_the_paired_score_interval_refuses_impossible_counts(
    first: int, second: int, trials: int, confidence: float
) -> None:
    with pytest.raises(ConfigError, match="must be"):
        paired_score_interval(first, second, trials, confidence)
