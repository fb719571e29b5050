"""Watch one planned episode: what the camera saw, what the planner thought, what the model expected.

Behind `worldmodel plan` and the notebooks. The episode itself runs through `worldmodel.evaluation.episodes`, the code
path of every reported number; this module only looks on.
"""

from __future__ import annotations

import base64
import html
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worldmodel.analysis.figures import PlanView, cumulative_xy, plan_figure, save_figure
from worldmodel.analysis.video import Film, write_video
from worldmodel.control.agents import MPCAgent
from worldmodel.control.objectives import Objective
from worldmodel.envs import make_env, resolve_env_id
from worldmodel.errors import ConfigError
from worldmodel.evaluation.episodes import Block, EpisodeResult, agent_seed, run_block
from worldmodel.evaluation.evaluate import EvaluateConfig, ModelAgents, model_agents
from worldmodel.evaluation.manifest import draw_task
from worldmodel.evaluation.plan_records import PlanLog, PlanRecord
from worldmodel.evaluation.stats import quantile
from worldmodel.models.world_model import WorldModel
from worldmodel.planners.base import Plan, Planner
from worldmodel.types import Context, Latent

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class PlannedStep:
    """One replan of a watched episode.

    Attributes:
        step: Environment steps taken when it was made.
        actions: (H, A) chosen plan, env units.
        elites: (K, H, A) elites of the last iteration, env units.
        best_cost: (J,) lowest planning cost up to each iteration that ran.
        elite_cost: (J,) mean planning cost of each iteration's elites.
        imagined_cost: (H+1,) latent cost to the goal of the frame planned from and of every imagined model step.
        seconds: Time it took.
    """

    step: int
    actions: Array
    elites: Array
    best_cost: Array
    elite_cost: Array
    imagined_cost: Array
    seconds: float


@dataclass(frozen=True, kw_only=True)
class WatchedEpisode:
    """A planned episode, ready to be looked at; shows itself as a video in a notebook.

    Attributes:
        env_id: Environment.
        seed: Number of the task among the demonstration tasks.
        frames: (T+1, Y, X, 3) uint8 camera frames, the start included.
        goal: (Y, X, 3) uint8 goal image.
        costs: (T+1,) latent cost of every frame to the goal image (arbitrary unit).
        success: (T+1,) success predicate at every frame.
        result: Outcome, as an evaluation would record it.
        plans: One per replan, in order.
        env_action_dim: Size of one environment action.
        replan_steps: Environment steps between replans.
        dt_s: Seconds of one environment step.
        step_m: Displacement of a full command along one axis in one environment step, metres.
        log: Every plan with what it started from, to be saved and replayed.
    """

    env_id: str
    seed: int
    frames: NDArray[np.uint8]
    goal: NDArray[np.uint8]
    costs: Array
    success: NDArray[np.bool_]
    result: EpisodeResult
    plans: tuple[PlannedStep, ...]
    env_action_dim: int
    replan_steps: int
    dt_s: float
    step_m: float
    log: PlanLog

    @property
    def replan_s(self) -> tuple[float, ...]:
        """Seconds of every replan."""
        return tuple(plan.seconds for plan in self.plans)

    def summary(self) -> dict[str, Any]:
        """The outcome as a JSON-ready record."""
        return {
            "env": self.env_id,
            "seed": self.seed,
            "success": self.result.held,
            "success_ever": self.result.ever,
            "steps": self.result.steps,
            "steps_to_success": self.result.steps_to_success,
            "start_distance_m": self.result.start_distance_m,
            "final_distance_m": self.result.final_distance_m,
            "replans": len(self.plans),
            "replan_s": {"p50": quantile(self.replan_s, 0.5), "p95": quantile(self.replan_s, 0.95)},
            "latent_cost": {"start": float(self.costs[0]), "end": float(self.costs[-1])},
        }

    def film(self) -> Film:
        """Everything the video shows."""
        return Film(
            frames=self.frames,
            goal=self.goal,
            costs=self.costs,
            success=self.success,
            title=self.env_id.rpartition("/")[2],
            dt_s=self.dt_s,
        )

    def plan_view(self, index: int = 0) -> PlanView:
        """Everything the figure of one replan shows.

        Args:
            index: Which replan; negative counts from the end.

        Raises:
            ConfigError: There is no such replan.
        """
        if not -len(self.plans) <= index < len(self.plans):
            raise ConfigError(f"index must be in [0, {len(self.plans) - 1}], one per replan, got {index}")
        plan = self.plans[index]
        actions_per_step = plan.actions.shape[1] // self.env_action_dim
        return PlanView(
            frame=self.frames[plan.step],
            goal=self.goal,
            best_cost=plan.best_cost,
            elite_cost=plan.elite_cost,
            imagined_cost=plan.imagined_cost,
            chosen_xy_m=cumulative_xy(plan.actions, self.env_action_dim, self.step_m),
            elite_xy_m=cumulative_xy(plan.elites, self.env_action_dim, self.step_m),
            executed=min(self.replan_steps, len(self.frames) - 1 - plan.step),
            step_s=actions_per_step * self.dt_s,
            seconds=plan.seconds,
            title=f"{self.env_id.rpartition('/')[2]}, task {self.seed}, step {plan.step}",
        )

    def save_video(self, path: str | Path) -> Path:
        """Write the MP4: camera beside goal, latent cost below.

        Raises:
            DataError: `path` does not end in .mp4.
        """
        return write_video(Path(path), self.film())

    def save_plan_figure(self, path: str | Path, index: int = 0) -> Path:
        """Write the picture of one replan.

        Args:
            path: Target, ending in .png.
            index: Which replan; negative counts from the end.

        Raises:
            ConfigError: There is no such replan.
            DataError: `path` does not end in .png.
        """
        return save_figure(plan_figure(self.plan_view(index)), Path(path))

    def _repr_html_(self) -> str:
        with tempfile.TemporaryDirectory() as folder:
            data = base64.b64encode(self.save_video(Path(folder) / "episode.mp4").read_bytes()).decode()
        verdict = (
            "held at the end" if self.result.held else "reached but not held" if self.result.ever else "not reached"
        )
        distances = f"{100 * self.result.start_distance_m:.1f} cm to {100 * self.result.final_distance_m:.1f} cm"
        p50 = quantile(self.replan_s, 0.5) or 0.0
        text = f"{self.env_id}, task {self.seed}: goal {verdict}; {distances}; replan {p50:.2f} s (median)"
        video = f'<video controls loop muted width="612" src="data:video/mp4;base64,{data}"></video>'
        return f"<figure>{video}<figcaption>{html.escape(text)}</figcaption></figure>"


def watch(
    checkpoint: str | Path = "shipped",
    env: str = "push",
    seed: int = 0,
    *,
    planner: Planner | None = None,
    objective: Objective | None = None,
    replan_every: int = 1,
) -> WatchedEpisode:
    """Plan one episode toward a goal image and keep everything worth looking at.

    Args:
        checkpoint: Folder of a checkpoint, the name of a shipped one, or "shipped".
        env: Environment, short name or id.
        seed: Number of the task among the demonstration tasks, which no training or evaluation uses.
        planner: Search in latent space; None means `SettlingCEM` over actions held for a model step.
        objective: What the search minimises; None means the model's default.
        replan_every: Model steps carried out between plans.

    Raises:
        CheckpointError: The checkpoint is missing, corrupt, or not made for the environment.
        ConfigError: Unknown environment, or a value out of range.
        RenderingError: No OpenGL backend works.
    """
    env_id = resolve_env_id(env)
    config = EvaluateConfig(
        env=env, checkpoint=str(checkpoint), planner=planner, objective=objective, replan_every=replan_every
    )
    factory = model_agents(config, env_id)
    world_model = factory.world_model()
    agent = factory.build()
    scene = make_env(env_id, image_size=factory.image_size)
    try:
        task, task_seed = draw_task(scene, "demo", seed, 0)
        seeds = (agent_seed(task_seed, config.seed),)
        block = Block(env=env_id, image_size=factory.image_size, episodes=(seed,), tasks=(task,), seeds=seeds)
        watcher = _Watcher(agent)
        (run,) = run_block(block, agent, [scene], watcher)
        goal = scene.render_goal(task)
        dt_s = 1 / float(scene.metadata["render_fps"])
    finally:
        scene.close()
    judge = Judge(world_model, factory.objective, goal)
    spec = world_model.spec
    return WatchedEpisode(
        env_id=env_id,
        seed=seed,
        frames=np.stack(watcher.frames),
        goal=goal,
        costs=judge.seen(watcher.frames, watcher.proprio),
        success=np.array(watcher.success),
        result=run.result,
        plans=_planned_steps(watcher, world_model, judge, replan_every),
        env_action_dim=spec.action_dim,
        replan_steps=replan_every * spec.action_block,
        dt_s=dt_s,
        step_m=scene.max_step_m,
        log=_log(factory, agent, judge, watcher),
    )


class _Watcher:
    """Observer of `run_block` that keeps the frames and every plan."""

    def __init__(self, agent: MPCAgent) -> None:
        self._agent = agent
        self.frames: list[NDArray[np.uint8]] = []
        self.proprio: list[NDArray[np.float32]] = []
        self.success: list[bool] = []
        self.plans: list[tuple[int, Plan, float]] = []
        self.records: list[PlanRecord] = []

    def __call__(self, step: int, obs: dict[str, Any], infos: Sequence[dict[str, Any]]) -> None:
        plan = self._agent.plan
        if plan is not None and len(self._agent.replan_s) > len(self.plans):  # made on the way to this frame
            self.plans.append((step - 1, plan, self._agent.replan_s[-1]))
            assert self._agent.last_context is not None
            self.records.append(PlanRecord(step=step - 1, context=self._agent.last_context, plan=plan))
        self.frames.append(obs["pixels"][0].copy())
        self.proprio.append(obs["proprio"][0].copy())
        self.success.append(bool(infos[0]["is_success"]))


class Judge:
    """Latent cost to one goal image, of seen frames and of imagined steps, each as if it were the end of a plan."""

    def __init__(self, world_model: WorldModel, objective: Objective, goal: NDArray[np.uint8]) -> None:
        self._model = world_model
        self._objective = objective.bind(world_model)
        self.goal = world_model.encode(torch.tensor(goal)[None, None])

    def seen(self, frames: Sequence[NDArray[np.uint8]], proprio: Sequence[NDArray[np.float32]]) -> Array:
        """(T,) costs of camera frames."""
        pixels, body = torch.tensor(np.stack(frames))[None], torch.tensor(np.stack(proprio))[None]
        return self._costs(self._model.encode(pixels, body))

    def imagined(self, context: Context, actions: Tensor) -> Array:
        """(H+1,) costs of the last frame of a context and of the steps that a plan (1, H, A) leads to."""
        last = Latent(
            visual=context.latent.visual[:, -1:],
            proprio=None if context.latent.proprio is None else context.latent.proprio[:, -1:],
        )
        future = self._model.rollout(context, actions[:, None])
        steps = Latent(visual=future.visual[:, 0], proprio=None if future.proprio is None else future.proprio[:, 0])
        return np.concatenate([self._costs(last), self._costs(steps)])

    def _costs(self, latent: Latent) -> Array:
        """Costs of the frames (1, T, ...) of a latent: T candidates with a horizon of one step and no action."""
        visual = latent.visual[:, :, None]
        proprio = None if latent.proprio is None else latent.proprio[:, :, None]
        goal = Latent(
            visual=self.goal.visual[:, None],
            proprio=None if self.goal.proprio is None else self.goal.proprio[:, None],
        )
        still = visual.new_zeros(1, visual.shape[1], 1, self._model.spec.flat_action_dim)
        with torch.no_grad():
            costs = self._objective(Latent(visual=visual, proprio=proprio), goal, still)
        return costs[0].double().cpu().numpy()


def _log(factory: ModelAgents, agent: MPCAgent, judge: Judge, watcher: _Watcher) -> PlanLog:
    return PlanLog(
        checkpoint=factory.checkpoint_hash,
        planner=factory.planner,
        objective=factory.objective,
        goal=judge.goal,
        interval=agent.interval,
        threads=torch.get_num_threads(),
        records=tuple(watcher.records),
    )


def _planned_steps(
    watcher: _Watcher, world_model: WorldModel, judge: Judge, replan_every: int
) -> tuple[PlannedStep, ...]:
    """Copy the plans out of their tensors, and ask the model what it expects of each in the context it was made in."""
    if not watcher.plans:
        return ()
    block = world_model.spec.action_block
    executed = torch.cat([plan.actions[:, :replan_every] for _, plan, _ in watcher.plans], dim=1)
    steps = []
    for step, plan, seconds in watcher.plans:
        now = step // block
        first = max(0, now + 1 - world_model.window)
        chosen = slice(first * block, step + 1, block)
        pixels = torch.tensor(np.stack(watcher.frames[chosen]))[None]
        proprio = torch.tensor(np.stack(watcher.proprio[chosen]))[None]
        context = Context(latent=world_model.encode(pixels, proprio), actions=executed[:, first:now])
        ran = int(plan.trace.num_iterations[0])
        steps.append(
            PlannedStep(
                step=step,
                actions=_numbers(plan.actions),
                elites=_numbers(plan.elites),
                best_cost=_numbers(plan.trace.best_cost)[:ran],
                elite_cost=_numbers(plan.trace.elite_cost)[:ran],
                imagined_cost=judge.imagined(context, plan.actions),
                seconds=seconds,
            )
        )
    return tuple(steps)


def _numbers(tensor: Tensor) -> Array:
    """The only problem's part of a planner's tensor."""
    return np.asarray(tensor[0].double().cpu().numpy())
