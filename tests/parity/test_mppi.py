"""MPPI against pytorch-mppi: the same noise gives the same weights and the same nominal sequence."""

import pytest
import torch
from torch import Tensor

from worldmodel.planners import MPPI

pytorch_mppi = pytest.importorskip("pytorch_mppi")

HORIZON, SAMPLES, LAMBDA = 6, 200, 0.7
LOW, HIGH = torch.tensor([-1.0, -0.6]), torch.tensor([0.8, 1.0])
START, GOAL = torch.tensor([0.3, -0.2]), torch.tensor([1.5, 0.4])


def dynamics(state: Tensor, action: Tensor) -> Tensor:
    return 0.9 * state + 0.5 * action.tanh()


def running_cost(state: Tensor, action: Tensor) -> Tensor:
    return (state - GOAL).square().sum(dim=-1) + 0.1 * action.square().sum(dim=-1)


def cost_fn(actions: Tensor) -> Tensor:
    state = START.expand(*actions.shape[:2], 2)
    total = torch.zeros(actions.shape[:2])
    for step in range(actions.shape[2]):
        # pytorch-mppi charges the state that a step leads to
        state = dynamics(state, actions[:, :, step])
        total = total + running_cost(state, actions[:, :, step])
    return total


class Given(pytorch_mppi.MPPI):  # type: ignore[misc]
    """pytorch-mppi with the noise handed to it."""

    noise_given: Tensor

    def _sample_noise(self, shape: tuple[int, ...]) -> Tensor:
        return self.noise_given if hasattr(self, "noise_given") else super()._sample_noise(shape)


@pytest.mark.parametrize("has_control_cost", [False, True])
def test_one_iteration_agrees_given_the_same_noise(has_control_cost: bool) -> None:
    generator = torch.Generator().manual_seed(5)
    half = (HIGH - LOW) / 2
    nominal = torch.rand(1, HORIZON, 2, generator=generator) * 0.6 - 0.3
    planner = MPPI(
        num_samples=SAMPLES,
        num_iterations=1,
        horizon=HORIZON,
        init_std=0.5,
        temperature=LAMBDA,
        temperature_unit="cost",
        control_cost=has_control_cost,
        returns="mean",
    )
    seen: list[Tensor] = []

    def recorded(actions: Tensor) -> Tensor:
        seen.append(actions.clone())
        return cost_fn(actions)

    first = planner.plan(recorded, LOW, HIGH, rng=[torch.Generator().manual_seed(0)])
    seen.clear()
    warm = first.shifted(0)
    warm.mean, warm.actions = nominal.clone(), nominal.clone()
    plan = planner.plan(recorded, LOW, HIGH, rng=[torch.Generator().manual_seed(1)], warm_start=warm)

    theirs = Given(
        dynamics,
        running_cost,
        2,
        torch.diag((0.5 * half).square()),
        num_samples=SAMPLES,
        horizon=HORIZON,
        lambda_=LAMBDA,
        u_min=LOW,
        u_max=HIGH,
        U_init=nominal[0].clone(),
    )
    # the noise before clamping: theirs clamps as well, so the clamped one serves
    theirs.noise_given = seen[0][0] - nominal[0]
    if not has_control_cost:
        theirs._compute_action_cost = torch.zeros_like  # it has no switch for this term
    theirs.command(START, shift_nominal_trajectory=False)
    torch.testing.assert_close(theirs.perturbed_action, seen[0][0])
    torch.testing.assert_close(plan.actions[0], theirs.U.clamp(LOW, HIGH), rtol=1e-4, atol=1e-5)


def test_the_control_cost_matters_in_this_comparison() -> None:
    plans = [
        MPPI(
            num_samples=SAMPLES,
            num_iterations=2,
            horizon=HORIZON,
            temperature=LAMBDA,
            temperature_unit="cost",
            control_cost=has_control_cost,
            returns="mean",
        ).plan(cost_fn, LOW, HIGH, rng=[torch.Generator().manual_seed(1)])
        for has_control_cost in (False, True)
    ]
    assert (plans[0].actions - plans[1].actions).abs().max() > 1e-3
