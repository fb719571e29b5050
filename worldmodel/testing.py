"""Conformance checks for planners, environments and encoders, your own included, and a world with nothing to learn.

`check_planner`, `check_env` and `check_encoder` raise `AssertionError` with what is wrong. `PointMassEnv` and
`PointMassModel` (the environment's exact dynamics, seen through its pictures) exercise everything above them without
training; importing this module registers the environment as `worldmodel/PointMass-v0`.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, ClassVar

import gymnasium
import numpy as np
import torch
from gymnasium.utils import env_checker
from numpy.typing import NDArray
from torch import Tensor

from worldmodel.envs.base import Appearance, Array, GoalEnv, Task
from worldmodel.errors import ConfigError, PlanningError, SimulationError, WorldModelError
from worldmodel.models.encoders import Encoder
from worldmodel.models.world_model import ModelSpec
from worldmodel.planners import CostFn, Plan, Planner
from worldmodel.types import Context, Latent

POINT_MASS_ID = "worldmodel/PointMass-v0"
_STEP_M = 0.05


class PointMassEnv(GoalEnv):
    """A dot in the unit square (metres) that moves by 5 cm times the action; the goal is another place.

    Args:
        image_size: Height and width of the pictures, pixels.
        render: False gives black pictures.
    """

    env_id: ClassVar[str] = POINT_MASS_ID
    max_steps: ClassVar[int] = 20
    success_radius_m: ClassVar[float] = 0.03
    privileged_names: ClassVar[tuple[str, ...]] = ("x", "y")

    def __init__(self, *, image_size: int = 64, render: bool = True) -> None:
        self.image_size = image_size
        self.is_rendered = render
        spaces: dict[str, gymnasium.Space[Any]] = {
            "pixels": gymnasium.spaces.Box(0, 255, (image_size, image_size, 3), np.uint8),
            "proprio": gymnasium.spaces.Box(0.0, 1.0, (2,), np.float32),
        }
        self.observation_space: gymnasium.Space[Any] = gymnasium.spaces.Dict(spaces)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self._position = np.full(2, 0.5)
        self._task = self.sample_task(np.random.default_rng(0))
        self._num_steps = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Start the task in `options["task"]`, or sample one."""
        super().reset(seed=seed)
        self._task = (options or {}).get("task") or self.sample_task(self.np_random)
        self.set_state(self._task.start)
        self._num_steps = 0
        return self._observe(), self._info()

    def step(self, action: NDArray[np.float32]) -> tuple[dict[str, NDArray[Any]], float, bool, bool, dict[str, Any]]:
        """Move once; the reward is minus the distance to the goal."""
        self.simulate(action)
        self._num_steps += 1
        return self._observe(), -self.goal_distance(), False, self._num_steps >= self.max_steps, self._info()

    def sample_task(self, rng: np.random.Generator, appearance: Appearance | None = None) -> Task:
        """Start and goal at least 20 cm apart."""
        start = rng.uniform(0.1, 0.9, 2)
        goal = start
        while np.linalg.norm(goal - start) < 0.2:
            goal = rng.uniform(0.1, 0.9, 2)
        look = appearance or Appearance()
        return Task(env_id=self.env_id, start=start, goal=np.append(goal, 0.0), goal_state=goal, appearance=look)

    def get_state(self) -> Array:
        """(2,) position."""
        return self._position.copy()

    def set_state(self, state: Array) -> None:
        """Put the dot somewhere."""
        state = np.asarray(state, dtype=np.float64)
        if state.shape != (2,) or not np.isfinite(state).all():
            raise SimulationError(f"state must be two finite numbers, got {state}")
        self._position = state.copy()

    def render_goal(self, task: Task | None = None) -> NDArray[np.uint8]:
        """Picture of the dot at the goal."""
        return self._picture((task or self._task).goal_state)

    def privileged(self) -> Array:
        """Position, metres."""
        return self._position.copy()

    def goal_distance(self) -> float:
        """Distance to the goal, metres."""
        return float(np.linalg.norm(self._position - self._task.goal[:2]))

    def oracle_cost(self) -> float:
        """The distance itself."""
        return self.goal_distance()

    def simulate(self, action: NDArray[np.float32]) -> None:
        """Move once, no further than the border."""
        self._position = np.clip(self._position + _STEP_M * np.clip(action, -1.0, 1.0).astype(np.float64), 0.0, 1.0)

    def _picture(self, position: Array) -> NDArray[np.uint8]:
        """(Y, X, 3) Gaussian dot; x runs right, y runs down."""
        if not self.is_rendered:
            return np.zeros((self.image_size, self.image_size, 3), dtype=np.uint8)
        margin, scale = _geometry(self.image_size)
        at = margin + scale * position
        axis = np.arange(self.image_size)
        squared = np.add.outer((axis - at[1]) ** 2, (axis - at[0]) ** 2)
        dot = np.round(255 * np.exp(-squared / (2 * (margin / 4) ** 2))).astype(np.uint8)
        return np.repeat(dot[..., None], 3, axis=-1)

    def _observe(self) -> dict[str, NDArray[Any]]:
        return {"pixels": self._picture(self._position), "proprio": self._position.astype(np.float32)}

    def _info(self) -> dict[str, Any]:
        return {"is_success": self.is_success(), "goal_distance": self.goal_distance(), "contact": False}


if POINT_MASS_ID not in gymnasium.registry:
    gymnasium.register(id=POINT_MASS_ID, entry_point="worldmodel.testing:PointMassEnv")


def _geometry(image_size: int) -> tuple[float, float]:
    """Free border and length of the unit square in a picture, pixels."""
    margin = image_size / 8
    return margin, image_size - 1 - 2 * margin


class PointMassModel:
    """World model of `PointMassEnv` that is exact: its latent (N = 1, D = 2) is the place of the dot in the picture.

    Args:
        action_block: Env actions in one model step.
        image_size: Height and width of the pictures, pixels.
        window: Longest context it takes.
    """

    def __init__(self, *, action_block: int = 2, image_size: int = 64, window: int = 1) -> None:
        self.spec = ModelSpec(
            env_ids=(POINT_MASS_ID,),
            action_dim=2,
            action_low=(-1.0, -1.0),
            action_high=(1.0, 1.0),
            action_block=action_block,
            image_size=image_size,
            proprio_names=("x", "y"),
        )
        self.window = window
        self.device = torch.empty(0).device

    def encode(self, pixels: Tensor, proprio: Tensor | None = None) -> Latent:
        """(B, T, Y, X, 3) uint8 -> visual (B, T, 1, 2): the centre of mass of each picture, metres."""
        size = self.spec.image_size
        if pixels.ndim != 5 or tuple(pixels.shape[2:]) != (size, size, 3) or pixels.dtype != torch.uint8:
            raise ConfigError(
                f"pixels must be (B, T, {size}, {size}, 3) uint8, got {tuple(pixels.shape)} {pixels.dtype}"
            )
        margin, scale = _geometry(size)
        # whole numbers in float64: the sums are exact, so a frame's latent has the same bits in any company
        mass = pixels[..., 0].double()
        axis = torch.arange(size, dtype=torch.float64)
        total = mass.sum(dim=(-2, -1))
        if not (total > 0).all():
            raise ConfigError("a frame is black: the point-mass model needs to see the dot (render=True)")
        centre = torch.stack([(mass.sum(dim=-2) * axis).sum(dim=-1), (mass.sum(dim=-1) * axis).sum(dim=-1)], dim=-1)
        position = (centre / total.unsqueeze(-1) - margin) / scale
        return Latent(visual=position.float().unsqueeze(-2), proprio=proprio)

    def encode_batch(self, pixels: Tensor) -> Tensor:
        """(F, Y, X, 3) uint8 -> (F, 1, 2), as `encode`."""
        return self.encode(pixels[None]).visual[0]

    def rollout(self, context: Context, actions: Tensor) -> Latent:
        """Env units (B, S, H, A) -> visual (B, S, H, 1, 2), proprio (B, S, H, 2) or None."""
        num_frames = context.latent.visual.shape[1]
        if not 1 <= num_frames <= self.window or context.actions.shape[1] != num_frames - 1:
            got = f"{num_frames} frames and {context.actions.shape[1]} actions"
            raise PlanningError(f"context must hold 1 to {self.window} frames and one action fewer, got {got}")
        position = context.latent.visual[:, -1, 0].unsqueeze(1)
        moves = actions.view(*actions.shape[:3], self.spec.action_block, 2)
        steps = []
        for step in range(actions.shape[2]):
            for sub_step in range(self.spec.action_block):
                position = (position + _STEP_M * moves[:, :, step, sub_step]).clamp(0.0, 1.0)
            steps.append(position)
        places = torch.stack(steps, dim=2)
        return Latent(visual=places.unsqueeze(-2), proprio=None if context.latent.proprio is None else places)


def check_planner(planner: Planner, *, num_problems: int = 3, action_dim: int = 2, is_exact: bool = True) -> None:
    """Check the contract of `Planner.plan` on quadratic problems.

    Args:
        planner: Any planner with its settings; small ones keep the check fast.
        num_problems: B, at least 2.
        action_dim: A.
        is_exact: Whether a problem's plan must have the same bits in any company (CPU); False allows 1e-5.

    Raises:
        AssertionError: A promise is broken; the message says which.
    """
    before = asdict(planner)
    low, high = -torch.ones(action_dim), torch.linspace(0.5, 2.0, action_dim)
    targets = torch.linspace(-1.5, 1.5, num_problems * planner.horizon * action_dim)
    targets = targets.view(num_problems, planner.horizon, action_dim)
    plan = planner.plan(quadratic(targets), low, high, rng=_streams(num_problems))
    shape = (num_problems, planner.horizon, action_dim)
    _require(tuple(plan.actions.shape) == shape, f"actions must be (B, H, A) = {shape}, got {plan.actions.shape}")
    inside = ((plan.actions >= low) & (plan.actions <= high)).all()
    _require(bool(inside), "actions leave the bounds")
    cost = quadratic(targets)(plan.actions.unsqueeze(1))[:, 0]
    _require(torch.allclose(cost, plan.cost, atol=1e-5), f"cost {plan.cost} is not that of the actions, {cost}")
    lowest = plan.trace.best_cost.nan_to_num(nan=torch.inf).amin(dim=1)
    _require(bool((plan.cost <= lowest + 1e-6).all()), f"cost {plan.cost} is above the best seen, {lowest}")

    again = planner.plan(quadratic(targets), low, high, rng=_streams(num_problems))
    _require(torch.equal(again.actions, plan.actions), "the same streams gave another plan")
    is_same = torch.equal if is_exact else functools.partial(torch.allclose, atol=1e-5)
    order = list(reversed(range(num_problems)))
    streams = _streams(num_problems)
    turned = planner.plan(quadratic(targets[order]), low, high, rng=[streams[row] for row in order])
    _require(is_same(turned.actions, plan.actions[order]), "the plan depends on the order of the problems")
    for row in range(num_problems):
        alone = planner.plan(quadratic(targets[row : row + 1]), low, high, rng=[_streams(num_problems)[row]])
        _require(is_same(alone.actions[0], plan.actions[row]), f"problem {row} alone gets another plan")

    rest = planner.plan(quadratic(targets), low, high, rng=_streams(num_problems), warm_start=plan)
    _require(bool((rest.cost <= plan.cost + 1e-6).all()), "a warm start lost the sequence it was given")
    shifted = planner.plan(quadratic(targets), low, high, rng=_streams(num_problems), warm_start=plan.shifted(1))
    _require(tuple(shifted.actions.shape) == shape, "a shifted plan changes the horizon")
    _check_planner_refusals(planner, targets, low, high, plan)
    _require(asdict(planner) == before, "planning changed the planner's fields")


def quadratic(targets: Tensor) -> CostFn:
    """Cost (B, S) of actions: squared distance to targets (B, H, A)."""
    return lambda actions: (actions - targets.unsqueeze(1)).square().sum(dim=(-2, -1))


def _check_planner_refusals(planner: Planner, targets: Tensor, low: Tensor, high: Tensor, plan: Plan) -> None:
    num_problems = len(targets)
    cost = quadratic(targets)

    def attempt(
        cost_fn: CostFn = cost, *, bounds: tuple[Tensor, Tensor] = (low, high), warm: Plan | None = None
    ) -> None:
        planner.plan(cost_fn, *bounds, rng=_streams(num_problems), warm_start=warm)

    cases: dict[str, Callable[[], object]] = {
        "a cost that is NaN": lambda: attempt(lambda actions: cost(actions) * torch.nan),
        "a cost of the wrong shape": lambda: attempt(lambda actions: cost(actions)[:, :-1]),
        "reversed bounds": lambda: attempt(bounds=(high, low)),
        "infinite bounds": lambda: attempt(bounds=(low, high / 0)),
        "a warm start for other problems": lambda: attempt(warm=plan.select([0])),
        "no stream at all": lambda: planner.plan(cost, low, high, rng=[]),
    }
    for what, case in cases.items():
        _require_refusal(case, PlanningError, what)


def _streams(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


def check_env(env: GoalEnv, *, seed: int = 0, num_steps: int = 8) -> None:
    """Check Gymnasium's contract and that of `GoalEnv`. Gymnasium's warnings go to the caller's filters.

    Args:
        env: The environment, without wrappers.
        seed: Of tasks and actions.
        num_steps: Control steps in each comparison, below `max_steps`.

    Raises:
        AssertionError: A promise is broken; the message says which.
    """
    env_checker.check_env(env, skip_render_check=True)
    rng = np.random.default_rng(seed)
    space = env.action_space
    _require(isinstance(space, gymnasium.spaces.Box), f"actions must be a Box, got {space}")
    actions = rng.uniform(-1, 1, (num_steps, *(space.shape or ()))).astype(np.float32)
    first, second = (_episode(env, seed, actions) for _ in range(2))
    _require_equal(first, second, "the same seed and actions gave another episode")
    _check_restore(env, seed, actions)
    for _ in range(5):
        _check_task(env, env.sample_task(rng))
    env.reset(seed=seed)
    for step in range(1, env.max_steps + 1):
        _, _, terminated, truncated, info = env.step(actions[step % num_steps])
        missing = {"is_success", "goal_distance", "contact"} - set(info)
        _require(not missing, f"info lacks {sorted(missing)}")
        _require(not terminated, f"step {step} terminated the episode; only max_steps may end it")
        _require(truncated == (step == env.max_steps), f"truncated is {truncated} at step {step} of {env.max_steps}")


def _record(
    env: GoalEnv, advance: Callable[[NDArray[np.float32]], object], actions: NDArray[np.float32]
) -> list[Array]:
    """Everything there is to know, before and after every action."""
    seen = [env.get_state()]
    for action in actions:
        advance(action)
        seen += [env.get_state(), env.privileged(), np.asarray(env.goal_distance())]
    return seen


def _episode(env: GoalEnv, seed: int, actions: NDArray[np.float32]) -> list[Array]:
    pictures = [env.reset(seed=seed)[0]["pixels"]]
    return [*_record(env, lambda action: pictures.append(env.step(action)[0]["pixels"]), actions), *pictures]


def _check_restore(env: GoalEnv, seed: int, actions: NDArray[np.float32]) -> None:
    """Snapshot, continue, detour, restore, continue: bit for bit the same, by step and by simulate."""
    env.reset(seed=seed)
    _record(env, env.step, actions)
    snapshot = env.get_state()
    expected = _record(env, env.simulate, actions)
    detours: dict[str, Callable[[NDArray[np.float32]], object]] = {"restoring": env.simulate, "step()": env.step}
    for what, advance in detours.items():
        _record(env, env.simulate, -actions)
        env.set_state(snapshot)
        _require_equal(_record(env, advance, actions), expected, f"{what} does not give the same continuation")
    _require_refusal(lambda: env.set_state(np.append(snapshot, 0.0)), SimulationError, "a state of the wrong length")
    _require_refusal(lambda: env.set_state(snapshot * np.nan), SimulationError, "a state that is not finite")


def _check_task(env: GoalEnv, task: Task) -> None:
    obs, info = env.reset(options={"task": task})
    _require(np.array_equal(env.get_state(), task.start), "reset does not start at the task's start")
    _require(not info["is_success"] and not env.is_success(), "a sampled task starts solved")
    _require(len(env.privileged()) == len(env.privileged_names), "privileged() does not match privileged_names")
    _require(bool(np.isfinite(env.oracle_cost())), "oracle_cost is not finite")
    goal = env.render_goal()
    _require(goal.shape == obs["pixels"].shape and goal.dtype == np.uint8, "the goal picture is unlike observations")
    _require(np.array_equal(env.get_state(), task.start), "render_goal moves the state")
    _require(np.array_equal(goal, env.render_goal(task)), "the goal picture changes")
    env.set_state(task.goal_state)
    reached = env.goal_distance()
    _require(env.is_success(), f"the goal state is no success: {reached} m from the goal")
    _require(reached < info["goal_distance"], "the goal state is no closer than the start")
    copy = Task.from_dict(json.loads(json.dumps(task.to_dict())))
    env.reset(options={"task": copy})
    _require(np.array_equal(env.get_state(), task.start), "a task read back from JSON starts elsewhere")
    _require(
        env.is_success() == (env.goal_distance() <= env.success_radius_m), "is_success is not the stated predicate"
    )


def check_encoder(encoder: Encoder, *, seed: int = 0, tolerance: float = 1e-4) -> None:
    """Check the contract of `Encoder.encode_frames`: shapes, no leak between frames or clips, refusal of other input.

    Args:
        encoder: In evaluation mode.
        seed: Of the random pictures.
        tolerance: Largest difference that counts as none.

    Raises:
        AssertionError: A promise is broken; the message says which.
    """
    size = encoder.image_size
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (2, 3, size, size, 3), generator=generator, dtype=torch.uint8)
    with torch.no_grad():
        tokens = encoder.encode_frames(pixels)
        shape = (2, 3, encoder.num_tokens, encoder.embed_dim)
        _require(tuple(tokens.shape) == shape, f"tokens must be (B, T, N, D) = {shape}, got {tuple(tokens.shape)}")
        _require(tokens.is_floating_point() and bool(tokens.isfinite().all()), "tokens must be finite floats")
        _require(torch.equal(tokens, encoder.encode_frames(pixels)), "the same frames gave other tokens")
        for frame in range(3):
            changed = pixels.clone()
            changed[0, frame] = 255 - changed[0, frame]
            moved = (encoder.encode_frames(changed) - tokens).abs().amax(dim=(2, 3)) > tolerance
            _require(bool(moved[0, frame]), f"frame {frame} does not depend on its own pixels")
            _require(int(moved.sum()) == 1, f"changing frame {frame} changes others: {moved.tolist()}")
        alone = encoder.encode_frames(pixels[1:, 1:2])[0, 0]
        _require(bool((alone - tokens[1, 1]).abs().max() <= tolerance), "a frame alone gets other tokens")
    wrong = {
        "float pixels": pixels.float(),
        "frames without a batch": pixels[0],
        "frames of another size": pixels[:, :, 1:],
        "channels first": pixels.movedim(-1, 2),
    }
    for what, value in wrong.items():
        _require_refusal(functools.partial(encoder.encode_frames, value), WorldModelError, what)


def _require(is_met: bool, message: str) -> None:
    if not is_met:
        raise AssertionError(message)


def _require_equal(values: list[Array], expected: list[Array], message: str) -> None:
    for index, (value, wanted) in enumerate(zip(values, expected, strict=True)):
        _require(np.array_equal(value, wanted), f"{message} (first difference in record {index})")


def _require_refusal(call: Callable[[], object], error: type[WorldModelError], what: str) -> None:
    try:
        call()
    except error:
        return
    raise AssertionError(f"{what} must raise {error.__name__}, nothing was raised")
