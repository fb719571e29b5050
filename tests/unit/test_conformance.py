"""The conformance checks accept what keeps the contracts and catch what does not."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from worldmodel.envs import make_env
from worldmodel.envs.base import Appearance, Task
from worldmodel.errors import ConfigError, PlanningError
from worldmodel.models.encoders import Encoder, VideoViT, check_frames
from worldmodel.models.vit import ViTConfig
from worldmodel.planners import CEM, CostFn, Plan
from worldmodel.testing import PointMassEnv, PointMassModel, check_encoder, check_env, check_planner
from worldmodel.types import Context, Latent

SIZES = {"num_samples": 16, "num_elites": 4, "num_iterations": 2, "horizon": 2}


@dataclass(kw_only=True)
class Altered(CEM):
    """CEM with something done to its inputs or its plan."""

    def before(self, low: Tensor, high: Tensor, rng: Sequence[torch.Generator]) -> tuple[Tensor, Tensor]:
        return low, high

    def after(self, plan: Plan, cost_fn: CostFn) -> Plan:
        return plan

    def plan(
        self,
        cost_fn: CostFn,
        low: Tensor,
        high: Tensor,
        *,
        rng: Sequence[torch.Generator],
        warm_start: Plan | None = None,
        time_budget_s: float | None = None,
    ) -> Plan:
        low, high = self.before(low, high, rng)
        return self.after(super().plan(cost_fn, low, high, rng=rng, warm_start=warm_start), cost_fn)


class Unbounded(Altered):
    def before(self, low: Tensor, high: Tensor, rng: Sequence[torch.Generator]) -> tuple[Tensor, Tensor]:
        return low * 3, high * 3


class Sociable(Altered):
    def before(self, low: Tensor, high: Tensor, rng: Sequence[torch.Generator]) -> tuple[Tensor, Tensor]:
        for _ in range(len(rng)):
            torch.rand(1, generator=rng[0])
        return low, high


class Forgetful(Altered):
    def after(self, plan: Plan, cost_fn: CostFn) -> Plan:
        plan.actions, plan.cost = plan.elites[:, -1], cost_fn(plan.elites)[:, -1]
        return plan


class Boastful(Altered):
    def after(self, plan: Plan, cost_fn: CostFn) -> Plan:
        plan.cost = plan.cost - 1
        return plan


class Evolving(Altered):
    def after(self, plan: Plan, cost_fn: CostFn) -> Plan:
        self.early_stop_std += 1e-9  # changes no plan
        return plan


class Tolerant(Altered):
    def before(self, low: Tensor, high: Tensor, rng: Sequence[torch.Generator]) -> tuple[Tensor, Tensor]:
        return torch.minimum(low, high), torch.maximum(low, high)


@pytest.mark.parametrize(
    ("planner", "message"),
    [
        (Unbounded(**SIZES), "leave the bounds"),
        (Sociable(**SIZES), "order of the problems|gets another plan"),
        (Forgetful(**SIZES), "above the best seen"),
        (Boastful(**SIZES), "not that of the actions"),
        (Evolving(**SIZES), "fields"),
        (Tolerant(**SIZES), "reversed bounds must raise PlanningError"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Altered) else "",
)
def test_broken_planners_are_caught(planner: CEM, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_planner(planner)


class Drifting(PointMassEnv):
    """Has a velocity that its snapshot forgets."""

    _velocity = 0.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        self._velocity = 0.0
        return super().reset(seed=seed, options=options)

    def simulate(self, action: np.ndarray) -> None:
        self._velocity = 0.9 * self._velocity + 0.1 * float(action[0])
        super().simulate(action + np.float32(self._velocity))


class MovedByRendering(PointMassEnv):
    def render_goal(self, task: Task | None = None) -> np.ndarray:
        self._position = self._position + 1e-9
        return super().render_goal(task)


class SolvedAtStart(PointMassEnv):
    def sample_task(self, rng: np.random.Generator, appearance: Appearance | None = None) -> Task:
        task = super().sample_task(rng, appearance)
        return Task(env_id=task.env_id, start=task.goal_state, goal=task.goal, goal_state=task.goal_state)


class Endless(PointMassEnv):
    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        obs, reward, terminated, _, info = super().step(action)
        return obs, reward, terminated, False, info


class Shaped(PointMassEnv):
    """Steps differently from how it simulates."""

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        return super().step(action * np.float32(0.5))


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (Drifting(image_size=32), "does not give the same continuation"),
        (MovedByRendering(image_size=32), "render_goal moves the state"),
        (SolvedAtStart(image_size=32), "starts solved"),
        (Endless(image_size=32), "truncated is False at step 20"),
        (Shaped(image_size=32), r"step\(\) does not give the same continuation"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, PointMassEnv) else "",
)
def test_broken_environments_are_caught(env: PointMassEnv, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_env(env)


def test_point_mass_keeps_the_contract() -> None:
    check_env(PointMassEnv(image_size=32))


@pytest.mark.parametrize("name", ["reach", "push"])
def test_shipped_environments_keep_the_contract(name: str) -> None:
    env = make_env(name, image_size=32)
    check_env(env)
    env.close()


class Vision(Encoder):
    """Means of the picture's rows, with ways to go wrong."""

    def __init__(self, leak: Callable[[Tensor], Tensor], *, is_strict: bool = True, num_tokens: int = 8) -> None:
        super().__init__()
        self.embed_dim, self.num_tokens, self.image_size = 3, num_tokens, 8
        self._leak, self._is_strict = leak, is_strict

    def encode_frames(self, pixels: Tensor) -> Tensor:
        if self._is_strict:
            check_frames(pixels, self.image_size)
        tokens = pixels.float().mean(dim=-2) / 255
        return tokens + self._leak(tokens)


def test_encoders() -> None:
    check_encoder(VideoViT(ViTConfig(image_size=16, patch_size=8, embed_dim=24, depth=1, num_heads=2)).eval())
    check_encoder(Vision(lambda tokens: 0 * tokens))


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        (Vision(lambda tokens: tokens.mean(dim=1, keepdim=True)), "changes others"),
        (Vision(lambda tokens: tokens.mean(dim=0, keepdim=True)), "changes others"),
        (Vision(lambda tokens: -tokens), "its own pixels"),
        (Vision(lambda tokens: 0 * tokens, is_strict=False), "float pixels must raise"),
        (Vision(lambda tokens: 0 * tokens, num_tokens=9), "tokens must be"),
        (Vision(lambda tokens: tokens * torch.nan), "finite"),
        (Vision(lambda tokens: tokens * len(tokens)), "alone gets other tokens"),
    ],
    ids=["future", "batch", "blind", "lenient", "shape", "nan", "company"],
)
def test_broken_encoders_are_caught(encoder: Vision, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_encoder(encoder)


def test_point_mass_model_is_exact() -> None:
    env, model = PointMassEnv(image_size=48), PointMassModel(action_block=2, image_size=48)
    obs, _ = env.reset(seed=0)
    latent = model.encode(torch.from_numpy(obs["pixels"])[None, None])
    np.testing.assert_allclose(latent.visual[0, 0, 0].numpy(), env.get_state(), atol=2e-3)
    actions = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    actions[0, 2] = 1.0  # into the corner
    exact = Latent(visual=torch.from_numpy(env.get_state()).float().view(1, 1, 1, 2))
    future = model.rollout(Context(latent=exact, actions=torch.zeros(1, 0, 4)), actions)
    start = env.get_state()
    for candidate in range(3):
        env.set_state(start)
        for step in range(4):
            for action in actions[0, candidate, step].view(2, 2).numpy():
                env.simulate(action)
            np.testing.assert_allclose(future.visual[0, candidate, step, 0].numpy(), env.get_state(), atol=1e-6)


def test_point_mass_model_refuses_what_it_cannot_see() -> None:
    model = PointMassModel(image_size=32)
    with pytest.raises(ConfigError, match="black"):
        model.encode(torch.zeros(1, 1, 32, 32, 3, dtype=torch.uint8))
    with pytest.raises(ConfigError, match="uint8"):
        model.encode(torch.zeros(1, 1, 32, 32, 3))
    context = Context(latent=Latent(visual=torch.zeros(1, 2, 1, 2)), actions=torch.zeros(1, 1, 4))
    with pytest.raises(PlanningError, match="1 to 1 frames"):
        model.rollout(context, torch.zeros(1, 1, 1, 4))
