"""Goals one model step away: problems whose answer is known, to judge energy landscapes by.

The simulator is put into a held-out state, a random action is held for one model step, and the picture afterwards is
the goal. The lowest point of the landscape should lie where the hand really went.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from worldmodel.analysis.frame_bank import encode_start
from worldmodel.analysis.landscape import Landscape, energy_landscape, tabletop_axes
from worldmodel.analysis.style import CHOSEN, MUTED, SECOND, tidy
from worldmodel.control.costs import LatentCost
from worldmodel.control.objectives import Objective, default_objective
from worldmodel.envs import make_env
from worldmodel.envs.scripted import play
from worldmodel.envs.tabletop import MAX_STEP_M, WORKSPACE_HIGH, WORKSPACE_LOW, TabletopEnv
from worldmodel.errors import ConfigError
from worldmodel.evaluation.manifest import draw_task
from worldmodel.evaluation.stats import success_interval
from worldmodel.models.world_model import WorldModel
from worldmodel.types import Context

Array = NDArray[np.float64]
BAR_M = 0.02
"""How far the minimum may be from the true displacement and still count as right, metres."""
_MOST_MOVES = 20  # steps of play before the problem starts
_ATTEMPTS = 200


@dataclass(frozen=True, kw_only=True)
class OneStepProblem:
    """A start, a goal one model step later, and the way between them.

    Attributes:
        frame: (Y, X, 3) uint8 before.
        proprio: (P,) float32 before.
        goal: (Y, X, 3) uint8 after.
        action: (E,) environment action that was held.
        moved_m: (3,) true displacement of the gripper, metres.
        state: Full simulator state before.
        is_moving: Whether play moved the hand before.
    """

    frame: NDArray[np.uint8]
    proprio: NDArray[np.float32]
    goal: NDArray[np.uint8]
    action: NDArray[np.float32]
    moved_m: Array
    state: Array
    is_moving: bool


@dataclass(frozen=True, kw_only=True)
class OneStepCheck:
    """A problem with the landscape a model sees, cut through the true action.

    Attributes:
        problem: The problem.
        landscape: Cost over two axes of displacement (cm); `expert` is the action that was held.
        true: True displacement along the two axes, cm.
        reached: True displacement along the two axes when the action at the minimum is carried out, cm.
    """

    problem: OneStepProblem
    landscape: Landscape
    true: tuple[float, float]
    reached: tuple[float, float]

    @property
    def error_m(self) -> float:
        """Distance of the minimum, as a commanded displacement, from the true displacement."""
        return self.landscape.apart(self.true) / 100

    @property
    def reached_error_m(self) -> float:
        """Distance of the place that the action at the minimum leads to from the place of the goal."""
        return float(np.hypot(self.reached[0] - self.true[0], self.reached[1] - self.true[1])) / 100


def one_step_problems(
    count: int, *, action_block: int, image_size: int = 64, moving: bool = True, env: str = "reach", seed: int = 0
) -> Iterator[OneStepProblem]:
    """Draw problems at starts of validation tasks, or at states that play leads to from there.

    Args:
        count: How many.
        action_block: Environment steps in a model step.
        image_size: Side of the frames, pixels.
        moving: Let play move the hand first, for up to 20 steps; else every problem starts at rest.
        env: A tabletop environment.
        seed: Of tasks, play and actions.

    Raises:
        ConfigError: The environment is not of the tabletop family, or no free action was found.
        RenderingError: No OpenGL backend works.
    """
    scene = make_env(env, image_size=image_size)
    try:
        if not isinstance(scene, TabletopEnv):
            raise ConfigError(f"one-step problems need a tabletop environment, got {env!r}")
        for number in range(count):
            task, _ = draw_task(scene, "validation", seed, number)
            obs, _ = scene.reset(options={"task": task})
            rng = np.random.default_rng([seed, number, 7])
            moves = int(rng.integers(1, _MOST_MOVES + 1)) if moving else 0
            policy = play(env, rng)
            for _ in range(moves):
                obs = scene.step(policy.act(scene))[0]
            yield _problem(scene, obs, rng, action_block, is_moving=moving)
    finally:
        scene.close()


def check_landscapes(
    model: WorldModel,
    problems: Sequence[OneStepProblem],
    *,
    axes: tuple[str, str] = ("x", "y"),
    objective: Objective | None = None,
    resolution: int = 41,
    env: str = "reach",
) -> list[OneStepCheck]:
    """Cut the landscape of every problem and find out where its minimum leads.

    Args:
        model: Judges; made for the environment.
        problems: From `one_step_problems`.
        axes: Two of "x", "y", "z"; the third entry keeps the value of the true action.
        objective: Cost; None means the model's default.
        resolution: Values per axis; 41 are 6 mm apart.
        env: The environment of the problems.

    Raises:
        ConfigError: An axis has no such name.
    """
    known = tabletop_axes(model.spec.action_block)
    if not set(axes) <= set(known):
        raise ConfigError(f"axes must be two of {', '.join(known)}, got {axes}")
    chosen = (known[axes[0]], known[axes[1]])
    bound = (objective or default_objective(model)).bind(model)
    scene = make_env(env, render=False)
    try:
        checks = []
        for problem in problems:
            start = encode_start(model, problem.frame[None], problem.proprio[None])
            goal = model.encode(torch.from_numpy(problem.goal)[None, None])
            nothing = torch.zeros(1, 0, model.spec.flat_action_dim)
            held = torch.from_numpy(np.tile(problem.action, model.spec.action_block))[None]
            landscape = energy_landscape(
                LatentCost(model, bound, Context(latent=start, actions=nothing), goal),
                held,
                model.spec.flat_bounds(),
                chosen,
                env_action_dim=model.spec.action_dim,
                resolution=resolution,
                marks={"expert": held},
            )
            at_minimum = problem.action.copy()
            for axis, value in zip(chosen, landscape.minimum, strict=True):
                at_minimum[axis.index] = value / axis.scale
            assert isinstance(scene, TabletopEnv)
            scene.reset(seed=0)
            checks.append(
                OneStepCheck(
                    problem=problem,
                    landscape=landscape,
                    true=_along(problem.moved_m, axes),
                    reached=_along(_carry_out(scene, problem.state, at_minimum, model.spec.action_block), axes),
                )
            )
        return checks
    finally:
        scene.close()


def one_step_figure(checks: Sequence[OneStepCheck]) -> Figure:
    """Where the minima lie: their offsets from the truth, and the share of problems within each distance.

    Args:
        checks: At least one, all over the same axes.
    """
    offsets = np.array([np.subtract(check.landscape.minimum, check.true) for check in checks])
    errors = 100 * np.sort([check.error_m for check in checks])
    figure = Figure(figsize=(9.6, 4.4), layout="constrained")
    around, shares = figure.subplots(1, 2)
    circle = np.linspace(0, 2 * np.pi, 100)
    around.plot(2 * np.cos(circle), 2 * np.sin(circle), "--", color="0.3", linewidth=1.2, label="2 cm")
    around.plot(offsets[:, 0], offsets[:, 1], "o", color=SECOND, markerfacecolor="none", label="a held-out state")
    around.plot(0, 0, "P", color="black", markersize=9, label="true displacement")
    first, second = checks[0].landscape.axes
    around.set_xlabel(f"minimum minus truth, {first.name[-1]} (cm)")
    around.set_ylabel(f"minimum minus truth, {second.name[-1]} (cm)")
    limit = 1.1 * max(3.5, float(np.abs(offsets).max()))
    around.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
    around.legend(frameon=False, fontsize=9, loc="upper left")
    shares.step(np.append(0, errors), np.arange(len(errors) + 1) * 100 / len(errors), where="post", color=CHOSEN)
    shares.axvline(100 * BAR_M, color="0.3", linestyle="--", linewidth=1.2, label="2 cm")
    shares.axhline(80, color=MUTED, linewidth=1.2, linestyle=":", label="80 % of the states")
    shares.set(xlabel="distance of the minimum from the true displacement (cm)", ylabel="share of states (%)")
    shares.set(ylim=(0, 103), xlim=(0, max(4.0, 1.05 * float(errors[-1]))))
    shares.legend(frameon=False, fontsize=9, loc="lower right")
    low, high = success_interval([check.error_m <= BAR_M for check in checks])
    right = sum(check.error_m <= BAR_M for check in checks)
    figure.suptitle(
        f"goals one model step away: {right} of {len(checks)} minima within 2 cm "
        f"(95 % interval {100 * low:.0f} to {100 * high:.0f} %)",
        fontsize=11,
    )
    for axes in (around, shares):
        tidy(axes)
    return figure


def _problem(
    scene: TabletopEnv, obs: dict[str, NDArray[Any]], rng: np.random.Generator, action_block: int, *, is_moving: bool
) -> OneStepProblem:
    """A problem from where the scene stands, whose action meets neither the border of the workspace nor the object."""
    frame, proprio = obs["pixels"].copy(), obs["proprio"].copy()
    state, before = scene.get_state(), scene.gripper_position()
    for _ in range(_ATTEMPTS):
        action = np.append(rng.uniform(-1, 1, 3), 0.0).astype(np.float32)
        command = before + MAX_STEP_M * action_block * action[:3]
        if not ((command > WORKSPACE_LOW) & (command < WORKSPACE_HIGH)).all():
            continue
        scene.set_state(state)
        touched = False
        for _ in range(action_block - 1):
            scene.simulate(action)
            touched |= scene.in_contact()
        after, _, _, _, info = scene.step(action)
        if not touched and not info["contact"]:
            return OneStepProblem(
                frame=frame,
                proprio=proprio,
                goal=after["pixels"].copy(),
                action=action,
                moved_m=scene.gripper_position() - before,
                state=state,
                is_moving=is_moving,
            )
    raise ConfigError(f"no action free of contact found in {_ATTEMPTS} attempts; use another seed")


def _carry_out(scene: TabletopEnv, state: Array, action: NDArray[np.float32], action_block: int) -> Array:
    """True displacement (3,) of the gripper, metres."""
    scene.set_state(state)
    before = scene.gripper_position()
    for _ in range(action_block):
        scene.simulate(action)
    return scene.gripper_position() - before


def _along(moved_m: Array, axes: tuple[str, str]) -> tuple[float, float]:
    """Two entries of a displacement, cm."""
    first, second = (float(100 * moved_m["xyz".index(name)]) for name in axes)
    return first, second
