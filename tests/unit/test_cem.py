from dataclasses import asdict, replace

import pytest
import torch
from torch import Tensor

from worldmodel.errors import ConfigError, PlanningError, WorldModelError
from worldmodel.planners import CEM, Plan
from worldmodel.planners.base import mean_over
from worldmodel.testing import check_planner, quadratic

LOW, HIGH = torch.tensor([-1.0, -0.5]), torch.tensor([1.0, 2.0])
SMALL = CEM(num_samples=24, num_elites=5, num_iterations=4, horizon=3)


def streams(count: int, first: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(first + seed) for seed in range(count)]


def targets(num_problems: int, horizon: int = 3) -> Tensor:
    return torch.rand(num_problems, horizon, 2, generator=torch.Generator().manual_seed(7)) * 1.2 - 0.3


class Recorder:
    """A cost function that keeps what it was asked."""

    def __init__(self, goal: Tensor) -> None:
        self._cost = quadratic(goal)
        self.candidates: list[Tensor] = []
        self.costs: list[Tensor] = []

    def __call__(self, actions: Tensor) -> Tensor:
        self.candidates.append(actions.clone())
        self.costs.append(self._cost(actions))
        return self.costs[-1]


@pytest.mark.parametrize(
    "planner",
    [
        CEM(num_samples=64, num_elites=8, num_iterations=5, horizon=3),
        CEM(num_samples=16, num_elites=16, num_iterations=2, horizon=1, momentum=0.5),
        CEM(num_samples=32, num_elites=1, num_iterations=4, horizon=2, early_stop_std=0.3, warm_start_std=0.1),
    ],
    ids=["plain", "horizon-1", "one-elite"],
)
def test_conformance(planner: CEM) -> None:
    check_planner(planner)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"horizon": 0}, "horizon must be finite and >= 1, got 0"),
        ({"num_elites": 999, "num_samples": 64}, r"num_elites must be in \[1, num_samples=64\], got 999"),
        ({"num_elites": 0}, "num_elites"),
        ({"num_samples": 0}, "num_samples"),
        ({"num_iterations": 0}, "num_iterations"),
        ({"init_std": 0.0}, "init_std"),
        ({"init_std": float("nan")}, "init_std"),
        ({"warm_start_std": -1.0}, "warm_start_std"),
        ({"min_std": -0.1}, "min_std"),
        ({"early_stop_std": -0.1}, "early_stop_std"),
        ({"momentum": 1.0}, "momentum"),
        ({"returns": "median"}, "returns must be 'best' or 'mean', got 'median'"),
    ],
)
def test_bad_settings_name_themselves(changes: dict[str, float | str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CEM(**changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("low", "high", "message"),
    [
        (HIGH, LOW, "reversed"),
        (LOW, HIGH / 0, "high must be finite"),
        (LOW, HIGH[:1], "alike"),
        (LOW.double(), HIGH, "alike"),
        (LOW.int(), HIGH.int(), "floating-point"),
        ([-1.0], [1.0], "floating-point tensor, got list"),
        (LOW.repeat(3, 1), HIGH.repeat(3, 1), r"\(B=2, A\)"),
        (LOW[:0], HIGH[:0], "shape"),
    ],
)
def test_bad_bounds(low: Tensor, high: Tensor, message: str) -> None:
    with pytest.raises(PlanningError, match=message):
        SMALL.plan(quadratic(targets(2)), low, high, rng=streams(2))


def test_bad_streams() -> None:
    with pytest.raises(PlanningError, match="got none"):
        SMALL.plan(quadratic(targets(2)), LOW, HIGH, rng=[])
    with pytest.raises(PlanningError, match="same object"):
        SMALL.plan(quadratic(targets(2)), LOW, HIGH, rng=streams(1) * 2)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_cost_that_is_not_finite_names_iteration_problem_and_candidate(bad: float) -> None:
    calls = 0

    def cost(actions: Tensor) -> Tensor:
        nonlocal calls
        value = actions.square().sum(dim=(-2, -1))
        if calls == 2:
            value[1, 17] = bad
        calls += 1
        return value

    with pytest.raises(PlanningError, match="iteration 2, problem 1, candidate 17"):
        SMALL.plan(cost, LOW, HIGH, rng=streams(2))


def test_huge_costs_are_not_mistaken_for_infinite_ones() -> None:
    cost = quadratic(targets(1))
    plan = SMALL.plan(lambda actions: cost(actions) + 3e38, LOW, HIGH, rng=streams(1))
    assert plan.cost.isfinite().all()


@pytest.mark.parametrize(
    "cost",
    [
        lambda actions: torch.zeros(actions.shape[:3]),
        lambda actions: torch.zeros(actions.shape[0]),
        lambda actions: torch.zeros(actions.shape[:2], dtype=torch.long),
        lambda actions: 0.0,
    ],
    ids=["too-many", "too-few", "integers", "number"],
)
def test_a_cost_of_the_wrong_shape_or_type(cost: object) -> None:
    with pytest.raises(PlanningError, match=r"shape \(B, S\) = \(2, 24\)"):
        SMALL.plan(cost, LOW, HIGH, rng=streams(2))  # type: ignore[arg-type]


@pytest.mark.parametrize("budget", [0.0, -1.0, float("nan")])
def test_bad_time_budget(budget: float) -> None:
    with pytest.raises(PlanningError, match="time_budget_s"):
        SMALL.plan(quadratic(targets(1)), LOW, HIGH, rng=streams(1), time_budget_s=budget)


def test_bad_warm_starts() -> None:
    plan = SMALL.plan(quadratic(targets(2)), LOW, HIGH, rng=streams(2))
    for other in (plan.select([0]), replace(plan, actions=plan.actions[:, :1]), replace(plan, mean=plan.mean / 0)):
        with pytest.raises(PlanningError, match="warm_start"):
            SMALL.plan(quadratic(targets(2)), LOW, HIGH, rng=streams(2), warm_start=other)
    with pytest.raises(PlanningError, match="shifted forward"):
        plan.shifted(-1)
    with pytest.raises(PlanningError, match="join"):
        Plan.concat([])


def test_errors_are_one_line_and_of_the_library() -> None:
    with pytest.raises(WorldModelError) as caught:
        SMALL.plan(quadratic(targets(1)), HIGH, LOW, rng=streams(1))
    assert "\n" not in str(caught.value)


def test_best_of_everything_scored_is_returned() -> None:
    recorder = Recorder(targets(2))
    plan = SMALL.plan(recorder, LOW, HIGH, rng=streams(2))
    costs, candidates = torch.cat(recorder.costs, dim=1), torch.cat(recorder.candidates, dim=1)
    cost, index = costs.min(dim=1)
    assert torch.equal(plan.cost, cost)
    assert torch.equal(plan.actions, candidates[torch.arange(2), index])
    assert torch.equal(plan.trace.best_cost, torch.stack([c.amin(dim=1) for c in recorder.costs], 1).cummin(1).values)


def test_a_lucky_early_candidate_survives_later_iterations() -> None:
    goal, calls = targets(1), 0

    def cost(actions: Tensor) -> Tensor:
        nonlocal calls
        value = quadratic(goal)(actions)
        if calls == 0:
            value[:, 11] = -5.0
        calls += 1
        return value

    recorder = Recorder(goal)
    SMALL.plan(recorder, LOW, HIGH, rng=streams(1))
    plan = SMALL.plan(cost, LOW, HIGH, rng=streams(1))
    assert plan.cost.item() == -5.0
    assert torch.equal(plan.actions[0], recorder.candidates[0][0, 11])


@pytest.mark.parametrize("momentum", [0.0, 0.3])
def test_each_iteration_is_fitted_to_the_elites_of_the_last(momentum: float) -> None:
    recorder = Recorder(targets(2))
    planner = replace(SMALL, momentum=momentum)
    plan = planner.plan(recorder, LOW, HIGH, rng=streams(2))
    half = (HIGH - LOW) / 2
    mean, std = torch.zeros(2, 3, 2), (SMALL.init_std * half).expand(2, 3, 2)
    noise = [torch.Generator().manual_seed(seed) for seed in range(2)]
    for candidates, cost in zip(recorder.candidates, recorder.costs, strict=True):
        drawn = torch.stack([torch.empty(24, 3, 2).normal_(generator=stream) for stream in noise])
        expected = (mean[:, None] + std[:, None] * drawn).clamp(LOW, HIGH)
        expected[:, 0] = mean
        torch.testing.assert_close(candidates, expected)
        order = cost.topk(5, largest=False).indices
        elites = torch.stack([candidates[row, order[row]] for row in range(2)])
        mean = momentum * mean + (1 - momentum) * elites.mean(1)
        std = (momentum * std + (1 - momentum) * elites.std(1, correction=0)).clamp(min=0.05 * half)
    torch.testing.assert_close(plan.mean, mean)
    torch.testing.assert_close(plan.std, std)


def test_trace_records_elites_and_spread() -> None:
    recorder = Recorder(targets(1))
    plan = SMALL.plan(recorder, LOW, HIGH, rng=streams(1))
    for iteration, (candidates, cost) in enumerate(zip(recorder.candidates, recorder.costs, strict=True)):
        lowest, order = cost[0].topk(5, largest=False)
        share = candidates[0, order].std(0, correction=0) / ((HIGH - LOW) / 2)
        torch.testing.assert_close(plan.trace.elite_cost[0, iteration], lowest.mean())
        torch.testing.assert_close(plan.trace.std[0, iteration], share.mean())
    assert plan.trace.num_iterations.tolist() == [4]


def test_spread_never_falls_below_the_floor() -> None:
    planner = replace(SMALL, num_iterations=30, min_std=0.1)
    plan = planner.plan(quadratic(targets(1)), LOW, HIGH, rng=streams(1))
    floor = 0.1 * (HIGH - LOW) / 2
    assert (plan.std >= floor).all()
    assert plan.trace.std[0, -1] < 0.1


def test_bounds_without_zero_and_frozen_dimensions() -> None:
    low, high = torch.tensor([0.2, 0.5]), torch.tensor([0.6, 0.5])
    recorder = Recorder(targets(1))
    plan = SMALL.plan(recorder, low, high, rng=streams(1))
    assert all(((c >= low) & (c <= high)).all() for c in recorder.candidates)
    assert (plan.actions[..., 1] == 0.5).all()
    assert plan.trace.std.isfinite().all()


def test_bounds_per_problem() -> None:
    low, high = torch.stack([LOW, LOW * 0.1]), torch.stack([HIGH, HIGH * 0.1])
    plan = SMALL.plan(quadratic(targets(2)), low, high, rng=streams(2))
    alone = SMALL.plan(quadratic(targets(2)[1:]), low[1:], high[1:], rng=streams(1, first=1))
    assert torch.equal(plan.actions[1], alone.actions[0])
    assert (plan.actions[1] <= high[1]).all()


def test_warm_start_scores_the_old_mean_and_the_old_best_first() -> None:
    plan = SMALL.plan(quadratic(targets(2)), LOW, HIGH, rng=streams(2))
    recorder = Recorder(targets(2))
    warm = replace(SMALL, warm_start_std=0.01, min_std=0.0).plan(
        recorder, LOW, HIGH, rng=streams(2), warm_start=plan.shifted(1)
    )
    first = recorder.candidates[0]
    assert torch.equal(first[:, 0, :2], plan.mean[:, 1:])
    assert torch.equal(first[:, 1, :2], plan.actions[:, 1:])
    assert (first[:, :2, 2] == 0).all()
    assert (first[:, 2:] - first[:, :1]).abs().max() < 0.01 * 1.25 * 6
    assert (warm.cost <= recorder.costs[0][:, :2].amin(dim=1)).all()


def test_a_problem_that_stopped_never_changes_again_and_needs_no_company() -> None:
    goal = targets(2)
    scale = torch.tensor([1.0, 0.0]).view(2, 1)  # the second problem has nothing to converge to
    planner = replace(SMALL, num_samples=40, num_elites=20, num_iterations=12, early_stop_std=0.15)
    both = planner.plan(lambda actions: scale * quadratic(goal)(actions), LOW, HIGH, rng=streams(2))
    alone = planner.plan(quadratic(goal[:1]), LOW, HIGH, rng=streams(1))
    count = int(both.trace.num_iterations[0])
    assert count < 12 == int(both.trace.num_iterations[1])
    for name in ("actions", "cost", "mean", "std", "elites"):
        assert torch.equal(getattr(both, name)[0], getattr(alone, name)[0]), name
    assert torch.equal(both.trace.std[0, :count], alone.trace.std[0, :count])
    assert both.trace.best_cost[0, count:].isnan().all()
    # the recorded spread is what stopped it
    assert both.trace.std[0, count - 1] < 0.15 <= both.trace.std[0, : count - 1].min()


def test_time_budget_returns_the_best_so_far() -> None:
    recorder = Recorder(targets(1))
    plan = SMALL.plan(recorder, LOW, HIGH, rng=streams(1), time_budget_s=1e-9)
    assert len(recorder.costs) == 1
    assert plan.trace.num_iterations.tolist() == [1]
    assert torch.equal(plan.cost, recorder.costs[0].amin(dim=1))
    rich = SMALL.plan(quadratic(targets(1)), LOW, HIGH, rng=streams(1), time_budget_s=1e9)
    assert torch.equal(rich.actions, SMALL.plan(quadratic(targets(1)), LOW, HIGH, rng=streams(1)).actions)


def test_returning_the_mean() -> None:
    goal = targets(2)
    plan = replace(SMALL, returns="mean").plan(quadratic(goal), LOW, HIGH, rng=streams(2))
    assert torch.equal(plan.actions, plan.mean)
    assert torch.equal(plan.cost, quadratic(goal)(plan.mean.unsqueeze(1))[:, 0])


def test_ties_keep_the_order_of_candidates() -> None:
    recorder = Recorder(targets(1))
    plan = SMALL.plan(lambda actions: 0 * recorder(actions), LOW, HIGH, rng=streams(1))
    assert torch.equal(plan.elites[0], recorder.candidates[-1][0, :5])
    assert (plan.actions == 0).all()  # the first mean


def test_a_plan_can_be_recomputed_from_its_record() -> None:
    rng = streams(2)
    for stream in rng:
        torch.rand(5, generator=stream)
    plan = SMALL.plan(quadratic(targets(2)), LOW, HIGH, rng=rng)
    again = streams(2, first=50)
    for stream, state in zip(again, plan.rng_state, strict=True):
        stream.set_state(state)
    assert torch.equal(SMALL.plan(quadratic(targets(2)), LOW, HIGH, rng=again).actions, plan.actions)


def test_single_candidate_is_the_mean() -> None:
    planner = CEM(num_samples=1, num_elites=1, num_iterations=1, horizon=3)
    plan = SMALL.plan(quadratic(targets(1)), LOW, HIGH, rng=streams(1))
    assert torch.equal(
        planner.plan(quadratic(targets(1)), LOW, HIGH, rng=streams(1), warm_start=plan).actions, plan.mean
    )


def test_no_gradient_is_kept_and_the_streams_alone_decide() -> None:
    weight = torch.ones((), requires_grad=True)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    plan = SMALL.plan(lambda a: weight * quadratic(targets(1))(a), LOW, HIGH, rng=streams(1))
    assert not plan.actions.requires_grad
    assert not plan.cost.requires_grad
    assert torch.equal(torch.get_rng_state(), state)


def test_half_and_double_precision_follow_the_bounds() -> None:
    plan = SMALL.plan(quadratic(targets(1).double()), LOW.double(), HIGH.double(), rng=streams(1))
    assert plan.actions.dtype == plan.cost.dtype == torch.float64


def test_shifted_drops_what_was_done() -> None:
    plan = SMALL.plan(quadratic(targets(2)), LOW, HIGH, rng=streams(2))
    rest = plan.shifted(2)
    for name in ("actions", "mean"):
        assert torch.equal(getattr(rest, name)[:, 0], getattr(plan, name)[:, 2])
        assert (getattr(rest, name)[:, 1:] == 0).all()
    assert torch.equal(rest.elites[:, :, 0], plan.elites[:, :, 2])
    assert torch.equal(rest.std, plan.std[:, 2:].expand(-1, 3, -1))
    assert rest.cost.isnan().all()
    assert torch.equal(plan.shifted(0).actions, plan.actions)
    assert torch.equal(plan.shifted(0).cost, plan.cost)
    assert (plan.shifted(9).actions == 0).all()
    assert plan.shifted(9).actions.shape == plan.actions.shape


def test_select_and_concat_are_inverse() -> None:
    plan = SMALL.plan(quadratic(targets(3)), LOW, HIGH, rng=streams(3))
    joined = Plan.concat([plan.select([0]), plan.select([1, 2])])
    left, right = asdict(joined), asdict(plan)
    assert left.pop("seconds") == right.pop("seconds")
    trace, other = left.pop("trace"), right.pop("trace")
    assert all(torch.equal(*states) for states in zip(left.pop("rng_state"), right.pop("rng_state"), strict=True))
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert all(torch.equal(trace[name], other[name]) for name in trace)
    swapped = plan.select([2, 0])
    assert torch.equal(swapped.actions, plan.actions[[2, 0]])
    swapped.actions.zero_()
    assert plan.actions.abs().sum() > 0
    assert plan.num_problems == 3
    assert plan.horizon == 3


def test_mean_over_equals_the_mean() -> None:
    values = torch.randn(3, 31, 4, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(mean_over(values), values.mean(dim=1))


def test_action_repeat_holds_the_parts_of_a_model_action_equal() -> None:
    low, high = -torch.ones(6), torch.ones(6)
    target = torch.tensor([0.3, -0.5]).repeat(3)
    planner = CEM(num_samples=64, num_elites=8, num_iterations=12, horizon=2, action_repeat=3)
    seen: list[torch.Tensor] = []

    def cost(actions: torch.Tensor) -> torch.Tensor:
        seen.append(actions.clone())
        return (actions - target).square().sum(dim=(-1, -2))

    plan = planner.plan(cost, low, high, rng=[torch.Generator().manual_seed(0)])
    for actions in [*seen, plan.actions]:
        parts = actions.unflatten(-1, (3, 2))
        assert torch.equal(parts, parts[..., :1, :].expand_as(parts))
    assert (plan.actions[0] - target).abs().max() < 0.1


def test_action_repeat_that_does_not_divide_the_action_is_refused() -> None:
    planner = CEM(num_samples=8, num_elites=2, num_iterations=1, horizon=2, action_repeat=4)
    with pytest.raises(PlanningError, match="action_repeat=4 must divide"):
        planner.plan(lambda a: a.sum(dim=(-1, -2)), -torch.ones(6), torch.ones(6), rng=[torch.Generator()])
