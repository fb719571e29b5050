"""What is true of every planner, and what each of them does differently; CEM's own tests are in test_cem.py."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from worldmodel.errors import ConfigError, PlanningError
from worldmodel.planners import (
    CEM,
    CMAES,
    ICEM,
    MPPI,
    CEMGradient,
    CostFn,
    Gradient,
    Plan,
    Planner,
    PredictiveSampling,
    RandomShooting,
    SettlingCEM,
)
from worldmodel.planners.icem import mix_steps, noise_mixture
from worldmodel.planners.mppi import path_weights
from worldmodel.testing import check_planner, quadratic

LOW, HIGH = torch.tensor([-1.0, -0.5]), torch.tensor([1.0, 2.0])
SMALL: dict[str, Planner] = {
    "cem": CEM(num_samples=24, num_elites=5, num_iterations=4, horizon=3),
    "settling_cem": SettlingCEM(num_samples=24, num_elites=5, num_iterations=4, horizon=3),
    "icem": ICEM(num_samples=24, num_elites=5, num_iterations=4, horizon=3),
    "mppi": MPPI(num_samples=24, num_elites=5, num_iterations=4, horizon=3),
    "predictive_sampling": PredictiveSampling(num_samples=24, num_iterations=4, horizon=3),
    "random_shooting": RandomShooting(num_samples=24, num_iterations=4, horizon=3),
    "gradient": Gradient(num_restarts=3, num_iterations=6, horizon=3),
    "cem_gradient": CEMGradient(
        num_samples=24, num_elites=5, num_iterations=3, num_refined=3, num_gradient_iterations=4, horizon=3
    ),
    "cmaes": CMAES(num_samples=12, num_iterations=5, horizon=3),
}
ALL = pytest.mark.parametrize("planner", SMALL.values(), ids=SMALL.keys())
BY_SPREAD = ["cem", "icem", "mppi", "cem_gradient", "cmaes"]


def streams(count: int, first: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(first + seed) for seed in range(count)]


def targets(num_problems: int, horizon: int = 3) -> Tensor:
    return torch.rand(num_problems, horizon, 2, generator=torch.Generator().manual_seed(7)) * 1.2 - 0.3


@ALL
def test_conformance(planner: Planner) -> None:
    check_planner(planner)


@ALL
@pytest.mark.parametrize("horizon", [1, 2])
def test_conformance_of_short_horizons_and_single_actions(planner: Planner, horizon: int) -> None:
    check_planner(replace(planner, horizon=horizon), action_dim=1, num_problems=2)


@ALL
def test_sixteen_problems_have_the_same_bits_as_one(planner: Planner) -> None:
    goal = targets(16)
    together = planner.plan(quadratic(goal), LOW, HIGH, rng=streams(16))
    warm = planner.plan(quadratic(goal), LOW, HIGH, rng=streams(16), warm_start=together.shifted(1))
    for row in (0, 7, 15):
        alone = planner.plan(quadratic(goal[row : row + 1]), LOW, HIGH, rng=streams(1, row))
        rest = planner.plan(quadratic(goal[row : row + 1]), LOW, HIGH, rng=streams(1, row), warm_start=alone.shifted(1))
        for name in ("actions", "cost", "mean", "std", "elites"):
            assert torch.equal(getattr(together, name)[row], getattr(alone, name)[0]), name
            assert torch.equal(getattr(warm, name)[row], getattr(rest, name)[0]), name


@ALL
def test_best_of_everything_scored_is_returned_and_all_of_it_is_inside(planner: Planner) -> None:
    goal = targets(2)
    lowest = torch.full((2,), math.inf)

    def cost(actions: Tensor) -> Tensor:
        assert ((actions >= LOW) & (actions <= HIGH)).all()
        value = quadratic(goal)(actions)
        lowest.copy_(torch.minimum(lowest, value.detach().amin(dim=1)))
        return value

    plan = planner.plan(cost, LOW, HIGH, rng=streams(2))
    assert torch.equal(plan.cost, lowest)
    assert torch.equal(quadratic(goal)(plan.actions.unsqueeze(1))[:, 0], lowest)
    best = plan.trace.best_cost
    assert all((late <= early).all() for early, late in pairwise(best.unbind(dim=1)))
    assert torch.equal(best[:, -1], lowest)
    idle = quadratic(goal)(torch.zeros(2, 1, 3, 2))[:, 0]
    assert (plan.cost < idle).all()


@ALL
def test_plans_are_recomputed_from_their_record(planner: Planner) -> None:
    rng = streams(2)
    for stream in rng:
        torch.rand(5, generator=stream)
    plan = planner.plan(quadratic(targets(2)), LOW, HIGH, rng=rng)
    again = streams(2, first=50)
    for stream, state in zip(again, plan.rng_state, strict=True):
        stream.set_state(state)
    assert torch.equal(planner.plan(quadratic(targets(2)), LOW, HIGH, rng=again).actions, plan.actions)


@ALL
def test_global_random_numbers_are_left_alone(planner: Planner) -> None:
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002  the global stream is what must not move
    before, state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    plan = planner.plan(quadratic(targets(1)), LOW, HIGH, rng=streams(1))
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == state).all()  # noqa: NPY002
    assert not plan.actions.requires_grad
    assert not plan.cost.requires_grad


@ALL
def test_a_tiny_budget_leaves_one_iteration_and_a_large_one_changes_nothing(planner: Planner) -> None:
    calls = 0

    def cost(actions: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return quadratic(targets(1))(actions)

    plan = planner.plan(cost, LOW, HIGH, rng=streams(1), time_budget_s=1e-9)
    assert calls == 1
    assert plan.trace.num_iterations.tolist() == [1]
    rich = planner.plan(cost, LOW, HIGH, rng=streams(1), time_budget_s=1e9)
    assert torch.equal(rich.actions, planner.plan(cost, LOW, HIGH, rng=streams(1)).actions)


@ALL
def test_the_deadline_is_passed_by_one_iteration_at_most(planner: Planner) -> None:
    """Every call of the cost takes 20 ms, so a budget of 70 ms has room for three."""
    calls = 0

    def cost(actions: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        time.sleep(0.02)
        return quadratic(targets(1))(actions)

    planner.plan(cost, LOW, HIGH, rng=streams(1), time_budget_s=0.07)
    assert 1 <= calls <= 4


@ALL
def test_parts_of_a_held_action_are_equal(planner: Planner) -> None:
    low, high = -torch.ones(6), torch.ones(6)
    goal = torch.tensor([0.3, -0.5]).repeat(3)
    seen: list[Tensor] = []

    def cost(actions: Tensor) -> Tensor:
        seen.append(actions.detach().clone())
        return (actions - goal).square().sum(dim=(-1, -2))

    held = replace(planner, action_repeat=3)  # type: ignore[call-arg]
    plan = held.plan(cost, low, high, rng=streams(1))
    for actions in [*seen, plan.actions, plan.mean]:
        parts = actions.unflatten(-1, (3, 2))
        torch.testing.assert_close(parts, parts[..., :1, :].expand_as(parts), rtol=0, atol=1e-7)
    with pytest.raises(PlanningError, match="action_repeat=4 must divide"):
        replace(planner, action_repeat=4).plan(cost, low, high, rng=streams(1))  # type: ignore[call-arg]


@ALL
def test_frozen_dimensions_stay_and_numbers_stay_finite(planner: Planner) -> None:
    low, high = torch.tensor([0.2, 0.5]), torch.tensor([0.6, 0.5])
    plan = planner.plan(quadratic(targets(1)), low, high, rng=streams(1))
    assert (plan.actions[..., 1] == 0.5).all()
    for values in (plan.std, plan.trace.std, plan.mean, plan.elites):
        assert values.isfinite().all()


@ALL
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_cost_that_is_not_finite_names_iteration_problem_and_candidate(planner: Planner, bad: float) -> None:
    calls = 0

    def cost(actions: Tensor) -> Tensor:
        nonlocal calls
        value = quadratic(targets(2))(actions)
        if calls == 2:
            mark = torch.zeros_like(value)
            mark[1, 2] = bad
            value = value + mark
        calls += 1
        return value

    with pytest.raises(PlanningError, match="iteration 2, problem 1, candidate 2"):
        planner.plan(cost, LOW, HIGH, rng=streams(2))


@ALL
def test_the_standard_deviation_handed_on_respects_the_floor(planner: Planner) -> None:
    plan = replace(planner, min_std=0.3).plan(quadratic(targets(1)), LOW, HIGH, rng=streams(1))  # type: ignore[call-arg]
    assert (plan.std >= 0.3 * (HIGH - LOW) / 2 - 1e-6).all()


@pytest.mark.parametrize("name", BY_SPREAD)
def test_a_problem_that_stopped_never_changes_again(name: str) -> None:
    goal = targets(2)
    scale = torch.tensor([1.0, 0.0]).view(2, 1)  # the second problem has nothing to converge to
    changes = {"num_samples": 40, "num_iterations": 20, "early_stop_std": 0.2}
    if name in ("cem", "icem", "cem_gradient"):
        changes["num_elites"] = 10
    planner = replace(SMALL[name], **changes)  # type: ignore[arg-type]
    both = planner.plan(lambda actions: scale * quadratic(goal)(actions), LOW, HIGH, rng=streams(2))
    alone = planner.plan(quadratic(goal[:1]), LOW, HIGH, rng=streams(1))
    assert (alone.trace.best_cost[0, :20].isfinite().sum()) < 20
    assert torch.equal(both.actions[0], alone.actions[0])
    assert torch.equal(both.mean[0], alone.mean[0])
    assert torch.equal(both.trace.std[0].nan_to_num(), alone.trace.std[0].nan_to_num())


def test_descent_stops_by_the_length_of_its_steps() -> None:
    planner = Gradient(num_restarts=2, num_iterations=200, horizon=3, early_stop_step=0.01)
    goal = targets(2)
    scale = torch.tensor([1.0, 1e-12]).view(2, 1)
    plan = planner.plan(lambda actions: scale * quadratic(goal)(actions), LOW, HIGH, rng=streams(2))
    alone = planner.plan(quadratic(goal[:1]), LOW, HIGH, rng=streams(1))
    assert int(plan.trace.num_iterations[0]) < 200
    assert torch.equal(plan.actions[0], alone.actions[0])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SettlingCEM(near_steps=0.0), "near_steps must be a positive number of model steps, got 0.0"),
        (lambda: ICEM(noise_beta=-1), "noise_beta"),
        (lambda: ICEM(keep_fraction=1.5), r"keep_fraction must be in \[0, 1\], got 1.5"),
        (lambda: ICEM(sample_decay=0.5), "sample_decay"),
        (lambda: MPPI(temperature=0), "temperature must be finite and > 0"),
        (lambda: MPPI(temperature_unit="joule"), "temperature_unit must be 'std' or 'cost'"),
        (lambda: MPPI(std_decay=0), "std_decay"),
        (lambda: MPPI(control_cost=True), "set temperature_unit=cost"),
        (lambda: MPPI(num_elites=300), "num_elites"),
        (lambda: PredictiveSampling(smallest_scale=0), "smallest_scale"),
        (lambda: RandomShooting(num_scales=0), "num_scales"),
        (lambda: Gradient(lr=0), "lr must be a positive share"),
        (lambda: Gradient(num_restarts=0), "num_restarts"),
        (lambda: Gradient(horizon=0), "horizon must be finite and >= 1, got 0"),
        (lambda: CEMGradient(num_refined=21), r"num_refined must be in \[1, num_elites=20\], got 21"),
        (lambda: CEMGradient(lr=-1), "lr"),
        (lambda: CMAES(num_samples=3), "num_samples must be >= 4 for CMA-ES, got 3"),
        (lambda: CMAES(init_std=float("nan")), "init_std"),
    ],
)
def test_bad_settings_name_themselves(build: Callable[[], Planner], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build()


@pytest.mark.parametrize("name", ["gradient", "cem_gradient"])
def test_descent_needs_a_gradient(name: str) -> None:
    def blind(actions: Tensor) -> Tensor:
        return quadratic(targets(1))(actions.detach())

    with pytest.raises(PlanningError, match="need a differentiable cost"):
        SMALL[name].plan(blind, LOW, HIGH, rng=streams(1))
    weight = torch.ones((), requires_grad=True)
    with pytest.raises(PlanningError, match="need a differentiable cost"):
        SMALL[name].plan(lambda actions: blind(actions) * weight, LOW, HIGH, rng=streams(1))


def test_a_gradient_that_is_not_finite_names_its_place() -> None:
    def kinked(actions: Tensor) -> Tensor:
        return (actions - actions.detach()).abs().sqrt().sum(dim=(-2, -1))

    with pytest.raises(PlanningError, match="gradient of the cost is nan at iteration 0, problem 0, candidate 0"):
        SMALL["gradient"].plan(kinked, LOW, HIGH, rng=streams(1))


def test_descent_is_adam() -> None:
    goal = targets(2)
    recorder: list[Tensor] = []

    def cost(actions: Tensor) -> Tensor:
        recorder.append(actions.detach().clone())
        return quadratic(goal)(actions)

    planner = Gradient(num_restarts=3, num_iterations=8, horizon=3, lr=0.05, init_std=0.1)
    planner.plan(cost, LOW, HIGH, rng=streams(2))
    half, middle = (HIGH - LOW) / 2, (HIGH + LOW) / 2
    shares = ((recorder[0] - middle) / half).requires_grad_()
    adam = torch.optim.Adam([shares], lr=0.05)
    for step, sequences in enumerate(recorder):
        torch.testing.assert_close(shares.detach() * half + middle, sequences, rtol=1e-5, atol=1e-6)
        adam.param_groups[0]["lr"] = 0.05 * (0.1 + 0.45 * (1 + math.cos(math.pi * step / 7)))
        adam.zero_grad()
        quadratic(goal)(shares * half + middle).sum().backward()
        adam.step()


def test_refinement_improves_on_the_search_alone() -> None:
    goal = targets(4)
    mixed = SMALL["cem_gradient"]
    assert isinstance(mixed, CEMGradient)
    search = CEM(num_samples=24, num_elites=5, num_iterations=3, horizon=3)
    alone = search.plan(quadratic(goal), LOW, HIGH, rng=streams(4))
    both = mixed.plan(quadratic(goal), LOW, HIGH, rng=streams(4))
    assert (both.cost < alone.cost).all()
    assert both.trace.best_cost.shape == (4, 7)
    assert torch.equal(both.trace.best_cost[:, :3], alone.trace.best_cost)


@pytest.mark.parametrize(("horizon", "beta"), [(1, 2.0), (6, 0.0), (6, 2.0), (12, 0.5)])
def test_coloured_noise_has_unit_variance_and_the_spectrum_asked_for(horizon: int, beta: float) -> None:
    white = torch.randn(20000, horizon, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise = mix_steps(white, noise_mixture(horizon, beta))[..., 0]
    covariance = noise.T @ noise / len(noise)
    period = 2 * horizon
    frequency = np.fft.rfftfreq(period)
    frequency[0] = frequency[1]
    expected = np.fft.irfft(frequency**-beta, n=period)[:horizon]
    torch.testing.assert_close(covariance[0], torch.from_numpy(expected / expected[0]), rtol=0, atol=0.04)
    torch.testing.assert_close(covariance.diagonal(), torch.ones(horizon, dtype=torch.float64), rtol=0, atol=0.05)


def test_icem_keeps_elites_and_shrinks_its_population() -> None:
    seen: list[Tensor] = []

    def cost(actions: Tensor) -> Tensor:
        seen.append(actions.clone())
        return quadratic(targets(1))(actions)

    planner = ICEM(num_samples=40, num_elites=10, num_iterations=4, horizon=3, keep_fraction=0.3, sample_decay=2.0)
    plan = planner.plan(cost, LOW, HIGH, rng=streams(1))
    assert [actions.shape[1] for actions in seen] == [40, 20, 20, 20]
    order = quadratic(targets(1))(seen[0])[0].argsort()
    assert torch.equal(seen[1][0, 1:4], seen[0][0, order[:3]])
    seen.clear()
    planner.plan(cost, LOW, HIGH, rng=streams(1), warm_start=plan.shifted(1))
    assert torch.equal(seen[0][0, 2:5], plan.shifted(1).elites[0, :3])


def test_a_lower_temperature_is_greedier() -> None:
    cost = torch.tensor([[0.0, 1.0, 3.0], [5.0, 2.0, 2.5]])
    torch.testing.assert_close(path_weights(cost, 0.5), torch.softmax(-cost / 0.5, dim=1))
    peak = [float(path_weights(cost, temperature)[0, 0]) for temperature in (0.1, 1.0, 10.0)]
    assert peak[0] > peak[1] > peak[2]
    # in units of the costs' own deviation the scale does not matter
    torch.testing.assert_close(path_weights(cost, 0.5, "std"), path_weights(cost * 1000 + 7, 0.5, "std"))
    assert torch.equal(path_weights(torch.ones(1, 4), 0.5, "std"), torch.full((1, 4), 0.25))


def test_mppi_returns_the_weighted_mean_when_asked() -> None:
    seen: list[Tensor] = []

    def cost(actions: Tensor) -> Tensor:
        seen.append(actions.clone())
        return quadratic(targets(1))(actions)

    planner = MPPI(
        num_samples=32, num_iterations=1, horizon=3, temperature=0.3, temperature_unit="cost", returns="mean"
    )
    plan = planner.plan(cost, LOW, HIGH, rng=streams(1))
    weights = torch.softmax(-quadratic(targets(1))(seen[0])[0] / 0.3, dim=0)
    torch.testing.assert_close(plan.actions[0], (weights[:, None, None] * seen[0][0]).sum(0))


def test_uniform_draws_cover_the_bounds() -> None:
    seen: list[Tensor] = []

    def cost(actions: Tensor) -> Tensor:
        seen.append(actions.clone())
        return quadratic(targets(1))(actions)

    RandomShooting(num_samples=4000, num_iterations=1, horizon=3, num_scales=1).plan(cost, LOW, HIGH, rng=streams(1))
    drawn = seen[0][0, 1:].flatten(0, 1)
    for dimension in range(2):
        share = (drawn[:, dimension] - LOW[dimension]) / (HIGH - LOW)[dimension]
        counts = torch.histc(share, bins=10, min=0, max=1) / len(share)
        assert (counts - 0.1).abs().max() < 0.015


def test_predictive_sampling_draws_around_the_best_so_far_at_every_scale() -> None:
    seen: list[Tensor] = []

    def cost(actions: Tensor) -> Tensor:
        seen.append(actions.clone())
        return quadratic(targets(1))(actions)

    planner = PredictiveSampling(num_samples=600, num_iterations=2, horizon=3, num_scales=3, smallest_scale=0.01)
    planner.plan(cost, 4 * LOW, 4 * HIGH, rng=streams(1))
    best = seen[0][0, quadratic(targets(1))(seen[0])[0].argmin()]
    assert torch.equal(seen[1][0, 0], best)
    spread = [float((seen[1][0, start::3] - best).std()) for start in range(3)]
    assert spread[0] > 5 * spread[1] > 25 * spread[2]


def test_plans_of_different_planners_carry_over() -> None:
    """A warm start is a plan, whoever made it."""
    goal = targets(2)
    cost: CostFn = quadratic(goal)
    plan: Plan | None = None
    for planner in SMALL.values():
        found = planner.plan(cost, LOW, HIGH, rng=streams(2), warm_start=plan)
        assert plan is None or (found.cost <= plan.cost).all()
        plan = found


@ALL
def test_calls_are_counted_as_they_are_announced(planner: Planner) -> None:
    scored = 0

    def cost(actions: Tensor) -> Tensor:
        nonlocal scored
        scored += actions.shape[1] * (3 if actions.requires_grad else 1)
        return quadratic(targets(1))(actions)

    cost.counts_steps = True  # type: ignore[attr-defined]  # a planner may want to know
    planner.plan(cost, LOW, HIGH, rng=streams(1))
    assert scored == planner.num_calls
