"""One replan taken apart: every candidate of the search, where the plans lead on the camera image, what they cost.

A record of a plan keeps its random stream, so the search can be run again with somebody writing down what it asks for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from torch import Tensor

from worldmodel.analysis.episode import WatchedEpisode
from worldmodel.analysis.landscape import ActionAxis, Landscape, energy_landscape, tabletop_axes
from worldmodel.analysis.style import CHOSEN, MUTED, SECOND, tidy
from worldmodel.control.costs import LatentCost
from worldmodel.control.threads import torch_threads
from worldmodel.envs import make_env
from worldmodel.envs.base import GoalEnv
from worldmodel.envs.scripted import expert
from worldmodel.envs.tabletop import WORKSPACE_HIGH, WORKSPACE_LOW, TabletopEnv
from worldmodel.errors import CheckpointError, ConfigError
from worldmodel.evaluation.evaluate import EvaluateConfig, model_agents
from worldmodel.evaluation.manifest import draw_task
from worldmodel.models.world_model import ModelSpec
from worldmodel.planners.base import Plan, counts_steps
from worldmodel.types import CostFn

Array = NDArray[np.float64]
_FAN = 40  # candidates drawn per iteration


class RecordedCost:
    """A cost function (one problem) that keeps what it was asked and what it answered.

    Args:
        cost_fn: The cost.

    Attributes:
        candidates: (S, H, A) of every call.
        costs: (S,) of every call.
    """

    def __init__(self, cost_fn: CostFn) -> None:
        self._cost_fn = cost_fn
        self.counts_steps = counts_steps(cost_fn)
        self.candidates: list[Tensor] = []
        self.costs: list[Tensor] = []

    def __call__(self, actions: Tensor) -> Tensor:
        """(1, S, H, A) -> (1, S)."""
        cost = self._cost_fn(actions)
        self.candidates.append(actions[0].detach().clone())
        self.costs.append(cost[0].detach().clone())
        return cost


@dataclass(frozen=True, kw_only=True)
class InspectedPlan:
    """A replan of a watched episode with everything its search looked at.

    Attributes:
        env_id: Environment.
        step: Environment steps before it.
        frame: (Y, X, 3) uint8 it started from.
        spec: Actions of the model.
        cost_fn: What was minimised (one problem).
        plan: What was found then; the search found the same again.
        candidates: (S, H, A) of every iteration.
        costs: (S,) of every iteration.
        expert: (H, A) what the scripted expert does from there; None where there is none.
        gripper_m: (3,) place of the gripper; None outside the tabletop family.
        step_m: Displacement of a full command in one environment step, metres.
    """

    env_id: str
    step: int
    frame: NDArray[np.uint8]
    spec: ModelSpec
    cost_fn: CostFn
    plan: Plan
    candidates: tuple[Tensor, ...]
    costs: tuple[Tensor, ...]
    expert: Tensor | None
    gripper_m: Array | None
    step_m: float

    def landscape(self, axes: tuple[str, str] = ("x", "y"), *, step: int = 0, resolution: int = 41) -> Landscape:
        """Energy landscape around the plan, its own first action and the expert's marked.

        Args:
            axes: Two of "x", "y", "z" on the tabletop, or entries of the environment action by number ("0", "1").
            step: Model step whose action varies.
            resolution: Values per axis.

        Raises:
            ConfigError: Unknown axes, or a step beyond the horizon.
        """
        known = {str(index): ActionAxis(index=index, name=f"action {index}") for index in range(self.spec.action_dim)}
        known |= tabletop_axes(self.spec.action_block) if self.gripper_m is not None else {}
        if not set(axes) <= set(known):
            raise ConfigError(f"axes must be two of {', '.join(known)}, got {axes}")
        landscape = energy_landscape(
            self.cost_fn,
            self.plan.actions[0],
            self.spec.flat_bounds(self.plan.actions.device),
            (known[axes[0]], known[axes[1]]),
            env_action_dim=self.spec.action_dim,
            step=step,
            resolution=resolution,
            marks={"chosen": self.plan.actions[0], "expert": self.expert},
        )
        name = self.env_id.rpartition("/")[2]
        return replace(landscape, title=f"{name}, step {self.step}, model step {step + 1} of the plan")

    def paths_px(self, actions: Tensor) -> Array:
        """Where commanded plans lead on the frame.

        Args:
            actions: (..., H, A).

        Returns:
            (..., L+1, 2) pixels of the frame, x right and y down, L environment steps.

        Raises:
            ConfigError: The environment is not of the tabletop family.
        """
        if self.gripper_m is None:
            raise ConfigError(f"{self.env_id} has no camera that plans could be projected to: not a tabletop")
        moves = actions.unflatten(-1, (-1, self.spec.action_dim)).flatten(-3, -2)[..., :3].double().cpu().numpy()
        commanded = self.gripper_m + self.step_m * np.cumsum(moves, axis=-2)
        path = np.clip(commanded, WORKSPACE_LOW, WORKSPACE_HIGH)
        start = np.broadcast_to(self.gripper_m, (*path.shape[:-2], 1, 3))
        with _scene(self.env_id, self.frame.shape[0]) as scene:
            assert isinstance(scene, TabletopEnv)
            scene.reset(seed=0)
            pixels: Array = scene.project(np.concatenate([start, path], axis=-2))
        return pixels


def inspect_plan(episode: WatchedEpisode, index: int = 0, *, checkpoint: str | Path = "shipped") -> InspectedPlan:
    """Run the search of one replan again and keep everything it looked at.

    Args:
        episode: From `watch`.
        index: Which replan; negative counts from the end.
        checkpoint: The checkpoint the episode was planned with.

    Raises:
        CheckpointError: It is another checkpoint.
        ConfigError: There is no such replan.
    """
    log = episode.log
    if not -len(log.records) <= index < len(log.records):
        raise ConfigError(f"index must be in [0, {len(log.records) - 1}], one per replan, got {index}")
    number = index % len(log.records)
    config = EvaluateConfig(
        env=episode.env_id, checkpoint=str(checkpoint), planner=log.planner, objective=log.objective
    )
    factory = model_agents(config, episode.env_id)
    if factory.checkpoint_hash != log.checkpoint:
        raise CheckpointError(f"the episode was planned with another checkpoint than {checkpoint}; name that one")
    model, record = factory.world_model(), log.records[number]
    cost = RecordedCost(LatentCost(model, log.objective.bind(model), record.context, log.goal))
    stream = torch.Generator()
    stream.set_state(record.plan.rng_state[0])
    low, high = model.spec.flat_bounds(model.device)
    warm = log.records[number - 1].plan.shifted(log.interval) if number else None
    with torch_threads(log.threads):
        log.planner.plan(cost, low, high, rng=[stream], warm_start=warm)
    done = torch.cat(
        [before.plan.actions[0, : log.interval] for before in log.records[:number]] or [low.new_zeros(0, len(low))]
    )
    advice, gripper = _from_there(episode, model.spec, done, horizon=record.plan.horizon)
    return InspectedPlan(
        env_id=episode.env_id,
        step=record.step,
        frame=episode.frames[record.step],
        spec=model.spec,
        cost_fn=LatentCost(model, log.objective.bind(model), record.context, log.goal),
        plan=record.plan,
        candidates=tuple(cost.candidates),
        costs=tuple(cost.costs),
        expert=advice,
        gripper_m=gripper,
        step_m=episode.step_m,
    )


def fan_figure(inspected: InspectedPlan, *, panels: int = 3) -> Figure:
    """Candidates of several iterations on the camera image, elites and the chosen plan among them, and what they cost.

    Args:
        inspected: A replan of a tabletop environment.
        panels: Iterations to draw, the first and the last among them.

    Raises:
        ConfigError: The environment is not of the tabletop family.
    """
    count = len(inspected.candidates)
    shown = sorted({round(place) for place in np.linspace(0, count - 1, min(panels, count))})
    figure = Figure(figsize=(3.7 * (len(shown) + 1), 4.5), layout="constrained")
    grid = figure.subplots(1, len(shown) + 1, squeeze=False)[0]
    num_elites = inspected.plan.elites.shape[1]
    chosen = inspected.paths_px(inspected.plan.actions[0])
    for axes, iteration in zip(grid, shown, strict=False):
        cost, candidates = inspected.costs[iteration], inspected.candidates[iteration]
        order = cost.argsort()
        elites = inspected.paths_px(candidates[order[: min(num_elites, _FAN)]])
        others = order[num_elites:]
        spread = others[torch.linspace(0, len(others) - 1, min(_FAN, len(others))).long()]
        rest = inspected.paths_px(candidates[spread])
        _draw_fan(axes, inspected.frame, rest, elites, chosen)
        axes.set_title(f"iteration {iteration + 1} of {count}: best {float(cost.min()):.2f}", fontsize=10)
    _draw_costs(grid[-1], inspected, num_elites)
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=4, facecolor="0.75", framealpha=1, fontsize=9
    )  # grey, as the elites are white
    name = inspected.env_id.rpartition("/")[2]
    figure.suptitle(f"{name}, step {inspected.step}: commanded paths of the gripper on the camera image", fontsize=11)
    return figure


def _draw_fan(axes: Axes, frame: NDArray[np.uint8], rest: Array, elites: Array, chosen: Array) -> None:
    height, width = frame.shape[:2]
    axes.imshow(frame, extent=(0, width, height, 0), interpolation="nearest", alpha=0.75)
    layers: tuple[tuple[str, Array, dict[str, Any]], ...] = (
        ("other candidates", rest, {"color": "0.25", "linewidth": 0.6, "alpha": 0.7}),
        ("elites", elites, {"color": "white", "linewidth": 1.1}),
        ("chosen plan", chosen[None], {"color": CHOSEN, "linewidth": 2.4, "marker": "o", "markersize": 2.5}),
    )
    for name, paths, style in layers:
        for number, path in enumerate(paths):
            axes.plot(*path.T, label=name if number == 0 else None, **style)
    axes.plot(
        *chosen[0], "P", color="black", markeredgecolor="white", markersize=10, linestyle="none", label="gripper now"
    )
    axes.set(xlim=(0, width), ylim=(height, 0), facecolor="0.6")
    axes.set_xlabel("camera pixels, right")
    axes.set_ylabel("camera pixels, down")


def _draw_costs(axes: Axes, inspected: InspectedPlan, num_elites: int) -> None:
    iterations = np.arange(1, len(inspected.costs) + 1)
    ranked = [cost.sort().values.double().cpu().numpy() for cost in inspected.costs]
    low, high = (np.array([np.quantile(cost, q) for cost in ranked]) for q in (0.05, 0.95))
    axes.fill_between(iterations, low, high, color=MUTED, alpha=0.5, linewidth=0, label="middle 90 % of candidates")
    elite = [cost[:num_elites].mean() for cost in ranked]
    axes.plot(iterations, elite, "s--", color=SECOND, markersize=5, label="mean of the elites")
    axes.plot(iterations, [cost[0] for cost in ranked], "o-", color=CHOSEN, markersize=5, label="best")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("planner iteration")
    axes.set_ylabel("planning cost (a.u.)")
    axes.set_title("what they cost", fontsize=10)
    axes.legend(frameon=False, fontsize=8)
    tidy(axes)


def _from_there(
    episode: WatchedEpisode, spec: ModelSpec, done: Tensor, *, horizon: int
) -> tuple[Tensor | None, Array | None]:
    """What the expert does (H, A) after the flat actions `done` (M, A) of a watched episode; where the gripper is."""
    with _scene(episode.env_id, spec.image_size) as scene:
        task, _ = draw_task(scene, "demo", episode.seed, 0)
        scene.reset(options={"task": task})
        for action in done.unflatten(-1, (-1, spec.action_dim)).flatten(0, 1).cpu().numpy():
            scene.step(action)
        gripper = scene.gripper_position() if isinstance(scene, TabletopEnv) else None
        try:
            policy = expert(episode.env_id)
            advice = []
            for _ in range(horizon * spec.action_block):
                advice.append(policy.act(scene))
                scene.simulate(advice[-1])
        except ConfigError:  # nobody wrote one for this environment
            return None, gripper
    return torch.from_numpy(np.stack(advice)).reshape(horizon, -1), gripper


@contextmanager
def _scene(env_id: str, image_size: int) -> Iterator[GoalEnv]:
    """An environment without pictures."""
    env = make_env(env_id, image_size=image_size, render=False)
    try:
        yield env
    finally:
        env.close()
