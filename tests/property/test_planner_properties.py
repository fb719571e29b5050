import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worldmodel.planners import (
    CEM,
    CMAES,
    ICEM,
    MPPI,
    CEMGradient,
    Gradient,
    Planner,
    PredictiveSampling,
    RandomShooting,
    SettlingCEM,
)
from worldmodel.planners.base import mean_over
from worldmodel.testing import quadratic

FAST = settings(max_examples=30, deadline=None)


@st.composite
def cems(draw: st.DrawFn) -> CEM:
    num_samples = draw(st.integers(1, 40))
    return CEM(
        num_samples=num_samples,
        num_elites=draw(st.integers(1, num_samples)),
        num_iterations=draw(st.integers(1, 4)),
        horizon=draw(st.integers(1, 4)),
        init_std=draw(st.floats(0.05, 3.0)),
        min_std=draw(st.floats(0.0, 0.3)),
        warm_start_std=draw(st.none() | st.floats(0.05, 1.0)),
        momentum=draw(st.floats(0.0, 0.9)),
        early_stop_std=draw(st.just(0.0) | st.floats(0.01, 0.4)),
        returns=draw(st.sampled_from(["best", "mean"])),
    )


@st.composite
def others(draw: st.DrawFn) -> Planner:
    """Any other planner at a small size."""
    cls = draw(
        st.sampled_from([SettlingCEM, ICEM, MPPI, PredictiveSampling, RandomShooting, CMAES, CEMGradient, Gradient])
    )
    sizes = {"horizon": draw(st.integers(1, 4)), "num_iterations": draw(st.integers(1, 3))}
    if cls is Gradient:
        return cls(**sizes, num_restarts=draw(st.integers(2, 5)), lr=draw(st.floats(0.01, 0.5)))
    sizes["num_samples"] = draw(st.integers(4, 24))
    if cls in (PredictiveSampling, RandomShooting, CMAES):
        return cls(**sizes)
    num_elites = draw(st.integers(1, sizes["num_samples"]))
    if cls is CEMGradient:
        return cls(**sizes, num_elites=num_elites, num_refined=draw(st.integers(1, num_elites)))
    return cls(**sizes, num_elites=num_elites)


@st.composite
def problems(
    draw: st.DrawFn, planner: Planner, max_problems: int = 6
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Targets (B, H, A) and bounds (A,); some targets lie outside."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    num_problems, action_dim = draw(st.integers(1, max_problems)), draw(st.integers(1, 7))
    targets = torch.randn(num_problems, planner.horizon, action_dim, generator=generator)
    low = torch.randn(action_dim, generator=generator)
    return targets, low, low + torch.rand(action_dim, generator=generator) * 3


def streams(rows: list[int]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(1000 + row) for row in rows]


@FAST
@given(data=st.data(), planner=cems() | others())
def test_plans_are_inside_the_bounds_and_no_worse_than_anything_scored(data: st.DataObject, planner: Planner) -> None:
    targets, low, high = data.draw(problems(planner))
    rows = list(range(len(targets)))
    lowest = torch.full((len(rows),), torch.inf)

    def cost(actions: torch.Tensor) -> torch.Tensor:
        assert ((actions >= low) & (actions <= high)).all()
        value = quadratic(targets)(actions)
        lowest.copy_(torch.minimum(lowest, value.detach().amin(dim=1)))
        return value

    plan = planner.plan(cost, low, high, rng=streams(rows))
    for sequences in (plan.actions, plan.mean, plan.elites):
        assert ((sequences >= low) & (sequences <= high)).all()
    if getattr(planner, "returns", "best") == "best":
        assert torch.equal(plan.cost, lowest)
    assert torch.equal(plan.cost, quadratic(targets)(plan.actions.unsqueeze(1))[:, 0])


@FAST
@given(data=st.data(), planner=cems() | others())
def test_a_plan_has_the_same_bits_in_any_company_and_order(data: st.DataObject, planner: Planner) -> None:
    targets, low, high = data.draw(problems(planner))
    rows = list(range(len(targets)))
    first = planner.plan(quadratic(targets), low, high, rng=streams(rows))
    warm = planner.plan(quadratic(targets), low, high, rng=streams(rows), warm_start=first.shifted(1))
    company = data.draw(st.permutations(rows)).copy()[: data.draw(st.integers(1, len(rows)))]
    few = planner.plan(quadratic(targets[company]), low, high, rng=streams(company))
    few_warm = planner.plan(quadratic(targets[company]), low, high, rng=streams(company), warm_start=few.shifted(1))
    for whole, part in ((first, few), (warm, few_warm)):
        same = whole.select(company)
        for name in ("actions", "cost", "mean", "std", "elites"):
            assert torch.equal(getattr(same, name), getattr(part, name)), name
        for name in ("best_cost", "elite_cost", "std"):
            left, right = getattr(same.trace, name), getattr(part.trace, name)
            assert torch.equal(left.nan_to_num(nan=-1.0), right.nan_to_num(nan=-1.0)), name


@FAST
@given(data=st.data(), planner=cems() | others())
def test_a_warm_start_is_never_lost(data: st.DataObject, planner: Planner) -> None:
    targets, low, high = data.draw(problems(planner))
    rows = list(range(len(targets)))
    first = planner.plan(quadratic(targets), low, high, rng=streams(rows))
    again = planner.plan(quadratic(targets), low, high, rng=streams(rows[::-1]), warm_start=first)
    if getattr(planner, "returns", "best") == "best" and getattr(planner, "num_samples", 2) > 1:
        assert (again.cost <= first.cost).all()


@FAST
@given(count=st.integers(1, 70), width=st.integers(1, 70), company=st.integers(1, 9), seed=st.integers(0, 2**32))
def test_averages_have_the_same_bits_in_any_company(count: int, width: int, company: int, seed: int) -> None:
    values = torch.randn(company, count, width, generator=torch.Generator().manual_seed(seed)) * 100
    together = mean_over(values)
    for row in range(company):
        assert torch.equal(together[row], mean_over(values[row : row + 1].clone())[0])
