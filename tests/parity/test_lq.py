"""Planners against the closed form of linear-quadratic problems: 4-D state, 2-D action, horizon 5."""

import pytest
import torch
from torch import Tensor

from worldmodel.planners import (
    CEM,
    CMAES,
    ICEM,
    MPPI,
    CEMGradient,
    CostFn,
    Gradient,
    Planner,
    PredictiveSampling,
    RandomShooting,
)

HORIZON, STATE_DIM, ACTION_DIM, NUM_PROBLEMS = 5, 4, 2, 8
BOUND, CONTROL_WEIGHT = 1.0, 0.5
LARGEST = 0.8
"""Largest action of every optimum: the starts are scaled so, because cost and optimum are homogeneous in them."""


class LinearQuadratic:
    """x' = F x + G u; cost = sum of x'x after every step + 0.5 u'u. One random stable system per problem."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> Tensor:
            return torch.randn(NUM_PROBLEMS, *shape, generator=generator, dtype=torch.float64)

        self.transition = 0.45 * draw(STATE_DIM, STATE_DIM)
        self.effect = draw(STATE_DIM, ACTION_DIM)
        self.start = draw(STATE_DIM)
        self.start *= LARGEST / self.least_squares().abs().amax(dim=(1, 2)).unsqueeze(1)

    def cost(self, actions: Tensor) -> Tensor:
        state = self.start.unsqueeze(1).expand(-1, actions.shape[1], -1)
        total = CONTROL_WEIGHT * actions.square().sum(dim=(-2, -1))
        for step in range(actions.shape[2]):
            state = state @ self.transition.mT + actions[:, :, step] @ self.effect.mT
            total = total + state.square().sum(dim=-1)
        return total

    def least_squares(self) -> Tensor:
        """(B, H, A) optimum, by stacking all steps: states = offset + matrix @ actions."""
        size = HORIZON * ACTION_DIM
        zero = torch.zeros(NUM_PROBLEMS, size, dtype=torch.float64)
        state, jacobian = self.start, torch.zeros(NUM_PROBLEMS, STATE_DIM, size, dtype=torch.float64)
        rows, offsets = [], []
        for step in range(HORIZON):
            jacobian = self.transition @ jacobian
            jacobian[:, :, step * ACTION_DIM : (step + 1) * ACTION_DIM] += self.effect
            state = (self.transition @ state.unsqueeze(-1)).squeeze(-1)
            rows.append(jacobian)
            offsets.append(state)
        rows.append(CONTROL_WEIGHT**0.5 * torch.eye(size, dtype=torch.float64).expand(NUM_PROBLEMS, -1, -1))
        offsets.append(zero)
        matrix, offset = torch.cat(rows, dim=1), torch.cat(offsets, dim=1)
        solution = torch.linalg.lstsq(matrix, -offset.unsqueeze(-1)).solution
        return solution.view(NUM_PROBLEMS, HORIZON, ACTION_DIM)

    def riccati(self) -> Tensor:
        """(B,) optimal cost, by backward dynamic programming."""
        eye = torch.eye(STATE_DIM, dtype=torch.float64).expand(NUM_PROBLEMS, -1, -1)
        control = CONTROL_WEIGHT * torch.eye(ACTION_DIM, dtype=torch.float64)
        value = torch.zeros_like(eye)
        for _ in range(HORIZON):
            after = eye + value  # cost of the state reached, now and later
            gain = torch.linalg.solve(
                control + self.effect.mT @ after @ self.effect, self.effect.mT @ after @ self.transition
            )
            value = self.transition.mT @ after @ (self.transition - self.effect @ gain)
        return (self.start.unsqueeze(1) @ value @ self.start.unsqueeze(-1)).flatten()


def gaps(planner: Planner, seed: int) -> Tensor:
    """(B,) (cost found - optimum) / (cost of doing nothing - optimum)."""
    problem = LinearQuadratic(seed)
    optimum = problem.least_squares()
    assert optimum.abs().max() < BOUND, "the bounds must not bind, or the closed form is not the optimum"
    best = problem.cost(optimum.unsqueeze(1))[:, 0]
    torch.testing.assert_close(best, problem.riccati())
    idle = problem.cost(torch.zeros_like(optimum).unsqueeze(1))[:, 0]
    bound = torch.full((ACTION_DIM,), BOUND, dtype=torch.float64)
    rng = [torch.Generator().manual_seed(100 * seed + row) for row in range(NUM_PROBLEMS)]
    cost_fn: CostFn = problem.cost
    found = planner.plan(cost_fn, -bound, bound, rng=rng).cost
    assert (found >= best - 1e-9).all()
    return (found - best) / (idle - best)


LARGE = {"num_samples": 300, "num_iterations": 30, "horizon": HORIZON}
"""9,000 evaluations a problem, the budget DINO-WM and LeWM plan with."""


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "planner",
    [
        CEM(**LARGE, num_elites=30, init_std=0.5, min_std=0.02),
        ICEM(**LARGE, num_elites=30, init_std=0.5, min_std=0.02, noise_beta=0.5, sample_decay=1.0),
        MPPI(**LARGE, std_decay=0.85, min_std=0.02),
        PredictiveSampling(**LARGE),
        # 480 sequences scored and 472 differentiated
        Gradient(horizon=HORIZON, num_iterations=60),
        # 800 scored by the search, 160 by the descent
        CEMGradient(horizon=HORIZON, num_gradient_iterations=40, lr=0.1),
        # 2,400 evaluations
        CMAES(horizon=HORIZON, num_iterations=50),
    ],
    ids=lambda planner: type(planner).__name__,
)
def test_planners_come_within_one_percent_of_the_optimum(planner: Planner, seed: int) -> None:
    assert gaps(planner, seed).max() <= 0.01


@pytest.mark.parametrize("seed", range(3))
def test_shooting_comes_within_a_fifth_of_the_optimum(seed: int) -> None:
    """90,000 evaluations a problem in 10 dimensions; the mean over the problems, the worst of them is near 30 %."""
    planner = RandomShooting(num_samples=9000, num_iterations=10, horizon=HORIZON, num_scales=3, smallest_scale=0.3)
    assert gaps(planner, seed).mean() <= 0.2


def test_the_measure_tells_a_search_from_none() -> None:
    lazy = CEM(num_samples=2, num_elites=1, num_iterations=1, horizon=HORIZON)
    assert gaps(lazy, 0).max() > 0.5
