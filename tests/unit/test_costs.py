import pytest
import torch

from worldmodel.control.costs import LatentCost
from worldmodel.control.objectives import ActionCost, GoalDistance
from worldmodel.errors import PlanningError
from worldmodel.testing import PointMassModel
from worldmodel.types import Context, Latent


def context(positions: torch.Tensor, action_dim: int = 4) -> Context:
    latent = Latent(visual=positions.view(-1, 1, 1, 2), proprio=positions.view(-1, 1, 2))
    return Context(latent=latent, actions=torch.zeros(len(positions), 0, action_dim))


def test_cost_is_the_objective_of_the_rollout() -> None:
    start = torch.tensor([[0.5, 0.5], [0.2, 0.8]])
    goal = torch.tensor([[0.6, 0.5], [0.2, 0.7]])
    model = PointMassModel(action_block=2)
    objective = GoalDistance(last_step_weight=1.0, step_weight=0.0, proprio_weight=3.0) + ActionCost(weight=0.1)
    goal_latent = Latent(visual=goal.view(2, 1, 1, 2), proprio=goal.view(2, 1, 2))
    cost_fn = LatentCost(model, objective, context(start), goal_latent)
    actions = torch.zeros(2, 3, 2, 4)
    actions[0, 1, :, 0] = 1.0  # two model steps, half a block each: 10 cm to the right, the goal of problem 0
    cost = cost_fn(actions)
    assert cost.shape == (2, 3)
    stay = (1 + 3) * 0.1**2 / 2
    expected = torch.tensor([[stay, 0.1 / 4, stay], [stay] * 3])
    torch.testing.assert_close(cost, expected)


def test_cost_is_differentiable_in_the_actions() -> None:
    model = PointMassModel(action_block=1)
    goal = Latent(visual=torch.tensor([[[[0.9, 0.5]]]]))
    cost_fn = LatentCost(model, GoalDistance(), context(torch.tensor([[0.5, 0.5]]), 2), goal)
    actions = torch.zeros(1, 1, 3, 2, requires_grad=True)
    cost_fn(actions).sum().backward()
    assert actions.grad is not None
    assert (actions.grad[..., 0] < 0).all()  # moving right helps
    assert (actions.grad[..., 1] == 0).all()


@pytest.mark.parametrize("shape", [(1, 1, 1, 2), (2, 2, 1, 2), (2, 1, 2)])
def test_goals_for_other_problems_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(PlanningError, match=r"\(B=2, 1, N, D\)"):
        LatentCost(PointMassModel(), GoalDistance(), context(torch.zeros(2, 2)), Latent(visual=torch.zeros(shape)))
