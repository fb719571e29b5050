"""The V-JEPA 2-AC recipe with random weights: its losses by hand, its controller through the preset."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from worldmodel.config import load
from worldmodel.control.vjepa2_ac import ACContext, ACEnergy, action_bounds
from worldmodel.errors import ConfigError, PlanningError
from worldmodel.learning.fit_config import learning_rate
from worldmodel.learning.vjepa2_ac import VJEPA2ACConfig, VJEPA2ACTask
from worldmodel.models.ac_predictor import ACPredictor, ACPredictorConfig, normalise_tokens
from worldmodel.planners import CEM

TINY = ACPredictorConfig(latent_dim=20, embed_dim=24, depth=1, num_heads=2)


@dataclass(frozen=True, kw_only=True)
class Clips:
    tokens: Tensor
    states: Tensor
    actions: Tensor


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def clips(frames: int = 4) -> Clips:
    """Tokens that turn by the angle of the first action, so that actions tell what comes."""
    actions = torch.rand(8, frames - 1, 7, generator=stream()) - 0.5
    phase = torch.cat([torch.zeros(8, 1), 3 * actions[..., 0].cumsum(dim=1)], dim=1)
    code = torch.stack([phase.cos(), phase.sin()], dim=-1).repeat(1, 1, 10)
    tokens = code.unsqueeze(2) + 0.1 * torch.randn(4, 20, generator=stream(1))
    return Clips(tokens=tokens, states=torch.rand(8, frames, 7, generator=stream(2)), actions=actions)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_losses_are_the_published_ones(steps: int) -> None:
    task, batch = VJEPA2ACTask(VJEPA2ACConfig(predictor=TINY, rollout_steps=steps)), clips()
    out = task(batch)
    z = normalise_tokens(batch.tokens)
    one_step = [
        normalise_tokens(task.predictor(z[:, :t], batch.actions[:, :t], batch.states[:, :t]))[:, -1] for t in (1, 2, 3)
    ]
    forced = torch.stack([(guess - z[:, t]).abs().mean() for t, guess in enumerate(one_step, start=1)]).mean()
    assert torch.allclose(out["teacher_forcing"], forced, atol=1e-6)
    frames = [z[:, 0]]
    for t in range(1, steps + 1):  # the model's own frames, but the recorded states
        past = torch.stack(frames, dim=1)
        frames.append(normalise_tokens(task.predictor(past, batch.actions[:, :t], batch.states[:, :t]))[:, -1])
    rolled = torch.stack([(frames[t] - z[:, t]).abs().mean() for t in range(1, steps + 1)]).mean()
    assert torch.allclose(out["rollout"], rolled, atol=1e-6)
    assert torch.allclose(out["loss"], forced + rolled, atol=1e-6)


def test_the_gradient_flows_through_every_step_of_the_rollout() -> None:
    task, batch = VJEPA2ACTask(VJEPA2ACConfig(predictor=TINY)), clips(3)
    batch.actions.requires_grad_(True)
    task(batch)["rollout"].backward()
    gradient = batch.actions.grad
    assert gradient is not None
    assert torch.all(gradient.abs().amax(dim=(0, 2)) > 0)


def test_training_learns_what_actions_do() -> None:
    """After 60 steps the right actions tell much of what comes, and those of another clip mislead."""
    task, batch = VJEPA2ACTask(VJEPA2ACConfig(predictor=TINY)), clips(3)
    task.predictor.action_encoder.weight.data.mul_(10)  # sooner than by training
    optimizer = torch.optim.Adam(task.predictor.parameters(), lr=1e-2)
    first = float(task(batch)["loss"].detach())
    for _ in range(60):
        optimizer.zero_grad()
        task(batch)["loss"].backward()
        optimizer.step()
    trained = float(task(batch)["loss"].detach())
    shuffled = float(task(replace(batch, actions=batch.actions.flip(0)))["loss"].detach())
    assert trained < 0.5 * first
    assert shuffled > 1.3 * trained


def test_the_schedule_is_the_published_one() -> None:
    settings = load("posttrain", ["data=x.h5", "fit=vjepa2_ac"]).settings.fit
    assert settings.steps == 4500 + 85_500 + 4500
    rates = [learning_rate(settings, step) for step in (0, 4499, 50_000, 89_999, 94_499)]
    assert rates == pytest.approx([7.5e-5 + 3.5e-4 / 4500, 4.25e-4, 4.25e-4, 4.25e-4, 0.0])


def test_clips_must_be_longer_than_the_rollout() -> None:
    with pytest.raises(ConfigError, match="at least 3 frames"):
        VJEPA2ACTask(VJEPA2ACConfig(predictor=TINY))(clips(2))
    with pytest.raises(ConfigError, match="rollout_steps"):
        VJEPA2ACConfig(rollout_steps=0)


def context(model: ACPredictor, problems: int = 2) -> tuple[ACContext, Tensor]:
    tokens = normalise_tokens(torch.randn(problems, 2, 4, 20, generator=stream(3)))
    states, actions = torch.rand(problems, 2, 7, generator=stream(4)), torch.rand(problems, 1, 7, generator=stream(5))
    start = ACContext(tokens=tokens, states=states, actions=actions)
    best = torch.tensor([0.05, -0.04, 0.07, 0.0, 0.0, 0.0, 0.6])
    return start, model.rollout(tokens, states, actions, best.expand(problems, 1, 1, 7))[:, 0, 0]


def planning_model() -> ACPredictor:
    model = ACPredictor(TINY)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=stream())
    torch.nn.init.normal_(model.action_encoder.weight, std=5.0, generator=stream())  # metres are small numbers
    return model.requires_grad_(False)


def test_the_energy_is_the_distance_of_the_last_prediction() -> None:
    model = planning_model()
    start, goal = context(model)
    actions = 0.1 * torch.randn(2, 5, 2, 7, generator=stream(6))
    found = ACEnergy(model, start, goal, candidate_block=3)(actions)
    last = model.rollout(start.tokens, start.states, start.actions, actions)[:, :, -1]
    assert torch.allclose(found, (last - goal.unsqueeze(1)).abs().mean(dim=(2, 3)), atol=1e-6)
    with pytest.raises(PlanningError, match="goal"):
        ACEnergy(model, start, goal[:1])
    with pytest.raises(PlanningError, match="candidate_block"):
        ACEnergy(model, start, goal, candidate_block=0)


def test_the_preset_plans_with_random_weights() -> None:
    """Rotations stay at zero, the shift in its box, and the search comes closer to the goal than standing still."""
    planner = load("evaluate", ["planner=vjepa2_ac"]).settings.planner
    assert isinstance(planner, CEM)
    assert (planner.num_samples, planner.num_iterations, planner.num_elites, planner.horizon) == (800, 10, 10, 1)
    model = planning_model()
    start, goal = context(model)
    low, high = action_bounds()
    energy = ACEnergy(model, start, goal)
    plan = replace(planner, num_samples=64).plan(energy, low, high, rng=[stream(7), stream(8)])
    assert torch.all(plan.actions[..., 3:6] == 0)
    assert torch.all(plan.actions[..., :3].abs() <= 0.075)
    assert torch.all(plan.actions[..., 6].abs() <= 0.75)
    assert torch.all(plan.cost < 0.5 * energy(torch.zeros(2, 1, 1, 7))[:, 0])
