"""CEM that draws small motions near the goal: where they are drawn, what is remembered, whom it asks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from worldmodel.control.costs import LatentCost
from worldmodel.control.objectives import ActionCost, BoundStepsToGoal, GoalDistance, Objective, StepsToGoal
from worldmodel.control.receding import CountedCost
from worldmodel.planners import CEM, CostFn, SettlingCEM
from worldmodel.types import Context, Latent

LOW, HIGH = torch.full((2,), -9.0), torch.full((2,), 9.0)
SIZES: dict[str, Any] = {"num_samples": 300, "num_elites": 5, "num_iterations": 2, "horizon": 3, "init_std": 0.1}


class Steps:
    """Squared distance to targets (B, H, A), said to be model steps; keeps what it was asked."""

    def __init__(self, *costs_of_no_action: float, counts_steps: bool = True) -> None:
        self.counts_steps = counts_steps
        self.targets = torch.stack([torch.full((3, 2), (cost / 6) ** 0.5) for cost in costs_of_no_action])
        self.asked: list[Tensor] = []

    def __call__(self, actions: Tensor) -> Tensor:
        self.asked.append(actions.clone())
        return (actions - self.targets.unsqueeze(1)).square().sum(dim=(2, 3))


def streams(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


def test_near_the_goal_two_thirds_are_drawn_closer_and_far_from_it_nothing_changes() -> None:
    settling, plain = Steps(1.5, 10.0, 0.01), Steps(1.5, 10.0, 0.01)
    SettlingCEM(**SIZES).plan(settling, LOW, HIGH, rng=streams(3))
    CEM(**SIZES).plan(plain, LOW, HIGH, rng=streams(3))
    assert torch.equal(settling.asked[0], torch.zeros(3, 1, 3, 2))
    near, wide = settling.asked[1], plain.asked[0]
    assert torch.equal(near[1], wide[1])
    for problem, share in ((0, 0.5), (2, 0.2)):
        for rung in range(3):
            assert torch.allclose(near[problem, rung::3], wide[problem, rung::3] * share**rung, atol=1e-6)


def test_only_the_first_iteration_is_drawn_closer() -> None:
    cost = Steps(1.5)
    plan = SettlingCEM(**(SIZES | {"num_iterations": 1})).plan(cost, LOW, HIGH, rng=streams(1))
    cost = Steps(1.5)
    SettlingCEM(**SIZES).plan(cost, LOW, HIGH, rng=streams(1))
    offsets = (cost.asked[2] - plan.mean.unsqueeze(1)) / plan.std.unsqueeze(1)
    spread = [offsets[0, rung + 3 :: 3].std() for rung in range(3)]
    assert spread == pytest.approx([1.0, 1.0, 1.0], abs=0.15)


def test_a_cost_in_other_units_is_searched_as_cem_does() -> None:
    cost, plain = Steps(0.1, counts_steps=False), Steps(0.1)
    found = SettlingCEM(**SIZES).plan(cost, LOW, HIGH, rng=streams(1))
    expected = CEM(**SIZES).plan(plain, LOW, HIGH, rng=streams(1))
    assert len(cost.asked) == 2
    assert torch.equal(found.actions, expected.actions)


def test_no_action_is_the_plan_when_nothing_drawn_is_better() -> None:
    cost = Steps(0.0)
    plan = SettlingCEM(**(SIZES | {"num_samples": 8, "init_std": 1.0})).plan(cost, LOW, HIGH, rng=streams(1))
    assert torch.equal(plan.actions, torch.zeros(1, 3, 2))
    assert torch.equal(plan.cost, torch.zeros(1))


def test_plans_have_the_same_bits_in_company_and_calls_are_counted() -> None:
    costs = [0.01 * 1.7**number for number in range(16)]
    together = SettlingCEM(**SIZES).plan(Steps(*costs), LOW, HIGH, rng=streams(16))
    for number, cost in enumerate(costs):
        counted = CountedCost(Steps(cost))
        planner = SettlingCEM(**SIZES)
        alone = planner.plan(counted, LOW, HIGH, rng=[torch.Generator().manual_seed(number)])
        assert torch.equal(alone.actions[0], together.actions[number])
        assert torch.equal(alone.trace.best_cost[0], together.trace.best_cost[number])
        assert counted.num_calls == planner.num_calls == 601


def test_a_tiny_budget_leaves_one_iteration() -> None:
    cost = Steps(1.0)
    plan = SettlingCEM(**SIZES).plan(cost, LOW, HIGH, rng=streams(1), time_budget_s=1e-9)
    assert plan.trace.num_iterations.tolist() == [1]
    assert len(cost.asked) == 2


STEPS = BoundStepsToGoal(definition=StepsToGoal(), distance=torch.nn.Identity())


@pytest.mark.parametrize(
    ("objective", "counts"),
    [(STEPS, True), (STEPS + ActionCost(), True), (GoalDistance(), False), (GoalDistance() + ActionCost(), False)],
)
def test_a_cost_says_whether_it_counts_steps(objective: Objective, counts: bool) -> None:
    frame = torch.zeros(1, 1, 1, 4)
    context = Context(latent=Latent(visual=frame), actions=torch.zeros(1, 0, 2))
    cost: CostFn = LatentCost(None, objective, context, Latent(visual=frame))  # type: ignore[arg-type]
    assert CountedCost(cost).counts_steps == counts
