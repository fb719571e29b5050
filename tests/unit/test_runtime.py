"""How rollouts are computed: other precisions and compilation change speed, and results by little."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import Any

import pytest
import torch

from worldmodel.control.costs import LatentCost
from worldmodel.control.objectives import GoalDistance
from worldmodel.errors import ConfigError
from worldmodel.evaluation.latency import Sizes, cached_error
from worldmodel.evaluation.products import matmul_flops
from worldmodel.evaluation.scenes import Scene, build_scene
from worldmodel.models.ac_dynamics import ACDynamics, ACDynamicsConfig
from worldmodel.models.runtime import RuntimeConfig, TunedProprioPredictor, equipped
from worldmodel.planners import CEM

BFLOAT16 = RuntimeConfig(precision="bfloat16")
COMPILED = RuntimeConfig(compiled=True)
NAMES = ("shipped", "patch")


@pytest.fixture(name="plain", scope="module", params=NAMES)
def _plain(request: pytest.FixtureRequest) -> Scene:
    return build_scene(request.param)


def candidates(scene: Scene, number: int = 16, horizon: int = 4) -> torch.Tensor:
    low, high = scene.model.spec.flat_bounds()
    return low + (high - low) * torch.rand(1, number, horizon, len(low), generator=torch.Generator().manual_seed(7))


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.std())


def tuned(scene: Scene, runtime: RuntimeConfig) -> Scene:
    return replace(scene, model=equipped(scene.model, runtime))


def test_the_default_is_the_model_itself(plain: Scene) -> None:
    assert equipped(plain.model, RuntimeConfig()) is plain.model


def test_bfloat16_products_give_float32_latents_close_to_the_exact_ones(plain: Scene) -> None:
    actions, fast = candidates(plain), tuned(plain, BFLOAT16)
    exact = plain.model.rollout(plain.context(), actions).visual
    found = fast.model.rollout(plain.context(), actions).visual
    assert found.dtype == torch.float32
    assert 0 < relative(found, exact) < 0.1
    assert fast.model.candidate_block == plain.model.candidate_block
    assert fast.model.temporal_distance is plain.model.temporal_distance


def test_bfloat16_keeps_the_order_of_clearly_different_candidates(plain: Scene) -> None:
    actions, fast = candidates(plain, 64), tuned(plain, BFLOAT16)
    exact = LatentCost(plain.model, GoalDistance(), plain.context(), plain.goal)(actions)[0]
    found = LatentCost(fast.model, GoalDistance(), plain.context(), plain.goal)(actions)[0]
    assert torch.corrcoef(torch.stack([exact, found]))[0, 1] > 0.99


def test_a_plan_under_bfloat16_is_the_same_alone_and_in_company() -> None:
    scene = build_scene("patch", runtime=BFLOAT16)
    low, high = scene.model.spec.flat_bounds()
    search = CEM(num_samples=8, num_elites=2, num_iterations=2, horizon=3)
    context, goal = scene.context(), scene.goal
    twice = replace(context, latent=doubled(context.latent), actions=context.actions.repeat(2, 1, 1))

    def plan(start: Any, end: Any, seeds: list[int]) -> torch.Tensor:
        cost = LatentCost(scene.model, GoalDistance(), start, end)
        return search.plan(cost, low, high, rng=[torch.Generator().manual_seed(seed) for seed in seeds]).actions

    assert torch.equal(plan(context, goal, [4]), plan(twice, doubled(goal), [3, 4])[1:])


def doubled(latent: Any) -> Any:
    return replace(latent, visual=latent.visual.repeat(2, 1, 1, 1))


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_a_compiled_rollout_is_the_same_to_rounding_and_can_be_kept() -> None:
    plain = build_scene("shipped")
    fused, first, second = tuned(plain, COMPILED), candidates(plain, horizon=2), -candidates(plain, horizon=2)
    expected = [plain.model.rollout(plain.context(), actions).visual for actions in (first, second)]
    kept = [fused.model.rollout(plain.context(), actions).visual for actions in (first, second)]
    assert all(relative(found, exact) < 1e-4 for found, exact in zip(kept, expected, strict=True))
    assert matmul_flops(lambda: fused.model.rollout(plain.context(), first)) == matmul_flops(
        lambda: plain.model.rollout(plain.context(), first)
    )


def test_gradients_pass_through_a_compiled_model_as_through_the_plain_one(plain: Scene) -> None:
    def gradient(scene: Scene) -> torch.Tensor:
        actions = candidates(scene, 2).requires_grad_(True)
        LatentCost(scene.model, GoalDistance(), scene.context(), scene.goal)(actions).sum().backward()
        assert actions.grad is not None
        return actions.grad

    assert torch.equal(gradient(tuned(plain, COMPILED)), gradient(plain))


def test_dynamics_with_proprioception_are_tuned_too() -> None:
    config = ACDynamicsConfig(embed_dim=24, depth=1, num_heads=2, latent_dim=12, env_action_dim=7)
    dynamics = ACDynamics(config, num_tokens=4, latent_dim=12, action_dim=7)
    wrapped = TunedProprioPredictor(dynamics, BFLOAT16)
    stream = torch.Generator().manual_seed(0)
    seen, past = torch.randn(1, 1, 4, 12, generator=stream), torch.zeros(1, 0, 7)
    actions, body = torch.randn(1, 3, 2, 7, generator=stream), torch.randn(1, 1, 7, generator=stream)
    with torch.no_grad():
        exact, felt = dynamics.rollout_from(seen, past, actions, body)
        found, moved = wrapped.rollout_from(seen, past, actions, body)
    assert wrapped.candidate_bytes == dynamics.candidate_bytes > 0
    assert found.dtype == moved.dtype == torch.float32
    assert 0 < relative(found, exact) < 0.1
    torch.testing.assert_close(moved, felt, rtol=0.02, atol=0.02)


def test_caches_and_window_agree_in_bfloat16_to_its_rounding() -> None:
    sizes = Sizes(num_samples=2, num_elites=2, num_iterations=1, horizon=4, rounds=1)
    assert cached_error(build_scene("patch", runtime=BFLOAT16), sizes) < 0.2


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"precision": "float16"}, "float32, bfloat16"), ({"device": "gpu9"}, "torch device, got 'gpu9'")],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RuntimeConfig(**settings)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is such a device")
def test_a_device_that_is_not_there(plain: Scene) -> None:
    with pytest.raises(ConfigError, match="device cuda cannot be used here"):
        equipped(plain.model, RuntimeConfig(device="cuda"))
