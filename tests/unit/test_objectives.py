import pytest
import torch
from torch import Tensor

from worldmodel.control.objectives import ActionCost, GoalDistance, ObjectiveSum, step_weights
from worldmodel.errors import ConfigError, PlanningError
from worldmodel.types import Latent

GENERATOR_SEED = 5


def latents(*, has_proprio: bool = True) -> tuple[Latent, Latent, Tensor]:
    """B=2, S=3, H=4, N=5, D=6, P=2, A=7."""
    generator = torch.Generator().manual_seed(GENERATOR_SEED)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    latent = Latent(visual=draw(2, 3, 4, 5, 6), proprio=draw(2, 3, 4, 2) if has_proprio else None)
    goal = Latent(visual=draw(2, 1, 1, 5, 6), proprio=draw(2, 1, 1, 2) if has_proprio else None)
    return latent, goal, draw(2, 3, 4, 7)


@pytest.mark.parametrize("metric", ["l1", "l2"])
@pytest.mark.parametrize("proprio_weight", [0.0, 2.0])
def test_goal_distance_is_the_weighted_mean_over_steps(metric: str, proprio_weight: float) -> None:
    latent, goal, actions = latents()
    objective = GoalDistance(last_step_weight=2.0, step_weight=0.5, metric=metric, proprio_weight=proprio_weight)
    cost = objective(latent, goal, actions)
    assert cost.shape == (2, 3)
    power = 1 if metric == "l1" else 2
    assert latent.proprio is not None
    assert goal.proprio is not None
    for problem in range(2):
        for candidate in range(3):
            total = 0.0
            for step, weight in enumerate([0.5, 0.5, 0.5, 2.0]):
                visual = (latent.visual[problem, candidate, step] - goal.visual[problem, 0, 0]).abs() ** power
                proprio = (latent.proprio[problem, candidate, step] - goal.proprio[problem, 0, 0]).abs() ** power
                total += weight / 3.5 * (visual.mean() + proprio_weight * proprio.mean())
            torch.testing.assert_close(cost[problem, candidate], torch.as_tensor(total))


def test_distance_is_zero_only_at_the_goal_and_differentiable() -> None:
    latent, goal, actions = latents(has_proprio=False)
    there = Latent(visual=goal.visual.expand(2, 3, 4, 5, 6).clone())
    assert (GoalDistance()(there, goal, actions) == 0).all()
    visual = latent.visual.clone().requires_grad_()
    GoalDistance()(Latent(visual=visual), goal, actions).sum().backward()
    assert visual.grad is not None
    assert (visual.grad[:, :, -1].abs().sum() > visual.grad[:, :, 0].abs().sum()).item()


def test_half_precision_latents_are_compared_in_single_precision() -> None:
    latent, goal, actions = latents(has_proprio=False)
    half = Latent(visual=latent.visual.bfloat16())
    assert GoalDistance()(half, Latent(visual=goal.visual.bfloat16()), actions).dtype == torch.float32


def test_cost_of_a_problem_has_the_same_bits_alone() -> None:
    latent, goal, actions = latents()
    whole = GoalDistance(proprio_weight=0.3)(latent, goal, actions)
    assert latent.proprio is not None
    assert goal.proprio is not None
    one = Latent(visual=latent.visual[1:].clone(), proprio=latent.proprio[1:].clone())
    target = Latent(visual=goal.visual[1:].clone(), proprio=goal.proprio[1:].clone())
    assert torch.equal(GoalDistance(proprio_weight=0.3)(one, target, actions[1:])[0], whole[1])


def test_sums_add_their_terms() -> None:
    latent, goal, actions = latents()
    terms = GoalDistance(), ActionCost(weight=0.5), ActionCost(weight=0.25)
    total = (terms[0] + terms[1] + terms[2])(latent, goal, actions)
    torch.testing.assert_close(total, sum(term(latent, goal, actions) for term in terms))
    torch.testing.assert_close(ActionCost(weight=2.0)(latent, goal, actions), 2 * (actions**2).mean((-1, -2)))


@pytest.mark.parametrize("horizon", [1, 2, 9])
def test_step_weights_sum_to_one(horizon: int) -> None:
    weights = step_weights(horizon, 1.0, 0.3)
    torch.testing.assert_close(weights.sum(), torch.tensor(1.0))
    assert (weights[:-1] == weights[-1] * 0.3).all() or torch.allclose(weights[:-1], weights[-1] * 0.3)


def test_missing_proprioception_is_an_error_only_when_it_counts() -> None:
    latent, goal, actions = latents()
    blind = Latent(visual=latent.visual)
    GoalDistance()(blind, goal, actions)
    with pytest.raises(PlanningError, match="the model predicts none"):
        GoalDistance(proprio_weight=1.0)(blind, goal, actions)
    with pytest.raises(PlanningError, match="the goal has none"):
        GoalDistance(proprio_weight=1.0)(latent, Latent(visual=goal.visual), actions)


def test_goals_of_another_shape_are_refused_instead_of_broadcast() -> None:
    latent, goal, actions = latents()
    for visual in (goal.visual[:, 0], goal.visual[:1], goal.visual[..., :1, :], goal.visual[..., :1]):
        with pytest.raises(PlanningError, match="visual goal latent"):
            GoalDistance()(latent, Latent(visual=visual), actions)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"metric": "cosine"}, "'l1' or 'l2', got 'cosine'"),
        ({"last_step_weight": 0.0}, "last_step_weight"),
        ({"step_weight": -1.0}, "step_weight"),
        ({"proprio_weight": float("nan")}, "proprio_weight"),
    ],
)
def test_bad_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GoalDistance(**settings)  # type: ignore[arg-type]


def test_other_bad_settings() -> None:
    with pytest.raises(ConfigError, match="weight"):
        ActionCost(weight=-1.0)
    with pytest.raises(ConfigError, match="at least one"):
        ObjectiveSum(terms=())
