"""Running agents on given tasks: one lockstep loop over a plain list of environments, blocks of it in parallel.

Every number this project claims, floors and ceilings included, comes out of `run_block`. Episodes always run their full
length: success is observed, never used to stop, so that "held at the end" can be told from "ever".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from worldmodel.control.threads import torch_threads
from worldmodel.control.workers import parallel_map
from worldmodel.data.distractor import NO_DISTRACTOR, DistractorConfig, distract
from worldmodel.envs import make_env
from worldmodel.envs.base import GoalEnv, Task
from worldmodel.errors import ConfigError, DataError
from worldmodel.types import Goal

if TYPE_CHECKING:
    from worldmodel.control.agents import Agent


@dataclass(frozen=True, kw_only=True)
class EpisodeResult:
    """Outcome of one episode: everything that must be equal on a rerun, so no timings.

    Attributes:
        episode: Index of the task in its manifest.
        held: Success predicate at the last step (the headline).
        ever: Success predicate at any moment, the start included.
        steps_to_success: Environment steps until success was first seen, None when it never was.
        start_distance_m: Distance to the goal at the start, metres.
        final_distance_m: Distance to the goal at the last step, metres.
        min_distance_m: Smallest distance to the goal seen, metres.
        steps: Environment steps taken.
        replans: Plans made; 0 for agents that do not plan.
        success: Success predicate at every step, the start included: `steps` + 1 characters, "1" where it held. None in
            rows recorded before it was kept.
    """

    episode: int
    held: bool
    ever: bool
    steps_to_success: int | None
    start_distance_m: float
    final_distance_m: float
    min_distance_m: float
    steps: int
    replans: int
    success: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return asdict(self)

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> EpisodeResult:
        """Inverse of `to_dict`; keys it does not know are ignored, fields with a default may be missing.

        Raises:
            DataError: A field is missing.
        """
        names = [field.name for field in fields(cls) if field.name in record or field.default is MISSING]
        missing = [name for name in names if name not in record]
        if missing:
            raise DataError(f"episode row lacks {missing}; it holds {sorted(record)}")
        return cls(**{name: record[name] for name in names})


@dataclass(frozen=True, kw_only=True)
class EpisodeRun:
    """An outcome and what it cost.

    Attributes:
        result: The outcome.
        replan_s: Seconds per plan of this episode's problem: a call that planned B problems counts as 1/B each.
        model_calls: Sequences the cost function was asked to score for this episode's problem, all plans together,
            counted as `Planner.num_calls` does; 0 for agents that do not plan. Not part of the outcome: a problem that
            stopped early is scored again for as long as others of its block search.
    """

    result: EpisodeResult
    replan_s: tuple[float, ...]
    model_calls: int = 0


@dataclass(frozen=True, kw_only=True)
class Block:
    """Episodes to run in lockstep.

    Attributes:
        env: Name or id of the environment.
        image_size: Side of the rendered frames, pixels.
        episodes: Indices of the tasks in their manifest.
        tasks: The tasks, one environment each.
        seeds: Seeds of the agent, one stream per episode.
        distractor: Drawn over what the agent sees, the goal picture included; the seeds are its streams.
    """

    env: str
    image_size: int
    episodes: tuple[int, ...]
    tasks: tuple[Task, ...]
    seeds: tuple[int, ...]
    distractor: DistractorConfig = NO_DISTRACTOR

    def __post_init__(self) -> None:
        if not len(self.episodes) == len(self.tasks) == len(self.seeds) >= 1:
            counts = f"{len(self.episodes)} episodes, {len(self.tasks)} tasks, {len(self.seeds)} seeds"
            raise ConfigError(f"a block needs as many tasks and seeds as episodes, at least one, got {counts}")


class AgentFactory(Protocol):
    """What is sent to a worker instead of an agent: small, picklable, builds the agent there."""

    @property
    def needs_pixels(self) -> bool:
        """Whether observations and goals must be rendered."""

    @property
    def image_size(self) -> int:
        """Side of the frames the agent takes, pixels."""

    def identity(self) -> dict[str, Any]:
        """JSON-ready description of everything the agent's behaviour depends on."""

    def build(self) -> Agent:
        """Make the agent; called once per block."""


Observer = Callable[[int, dict[str, Any], Sequence[dict[str, Any]]], None]
"""Called with (steps taken, stacked observation, infos) after the reset and after every step."""


def agent_seed(task_seed: int, run_seed: int) -> int:
    """Seed of an agent's stream in one episode; depends on nothing but the task's seed and the run's."""
    return int(np.random.SeedSequence([run_seed, task_seed]).generate_state(1)[0])


def make_blocks(  # the schedule, and nothing about outcomes
    env: str,
    image_size: int,
    tasks: Sequence[tuple[int, Task, int]],
    *,
    batch: int,
    workers: int,
    distractor: DistractorConfig = NO_DISTRACTOR,
) -> list[Block]:
    """Cut episodes into blocks of at most `batch`, smaller when that keeps every worker busy.

    Args:
        env: Name or id of the environment.
        image_size: Side of the rendered frames, pixels.
        tasks: (episode, task, agent seed) triples.
        batch: Largest number of episodes in a block, >= 1.
        workers: Number of processes, >= 1.
        distractor: Drawn over what the agent sees.

    Raises:
        ConfigError: `batch` or `workers` is not positive.
    """
    if batch < 1 or workers < 1:
        raise ConfigError(f"batch and workers must be >= 1, got batch={batch}, workers={workers}")
    size = max(1, min(batch, math.ceil(len(tasks) / workers)))
    blocks = []
    for first in range(0, len(tasks), size):
        episodes, block_tasks, seeds = zip(*tasks[first : first + size], strict=True)
        blocks.append(
            Block(
                env=env,
                image_size=image_size,
                episodes=episodes,
                tasks=block_tasks,
                seeds=seeds,
                distractor=distractor,
            )
        )
    return blocks


def run_block(
    block: Block, agent: Agent, envs: Sequence[GoalEnv], observer: Observer | None = None
) -> list[EpisodeRun]:
    """Run the episodes of one block in lockstep to their full length.

    Args:
        block: Tasks and seeds, B of them.
        agent: Acts for all B episodes at once.
        envs: B environments; left at their last state.
        observer: Sees every frame; must not touch the environments.

    Returns:
        One run per episode, in the order of the block.

    Raises:
        ConfigError: The number of environments differs from the number of tasks.
    """
    if len(envs) != len(block.tasks):
        raise ConfigError(f"a block of {len(block.tasks)} tasks needs as many environments, got {len(envs)}")
    starts = [
        env.reset(seed=seed, options={"task": task})
        for env, task, seed in zip(envs, block.tasks, block.seeds, strict=True)
    ]
    pictures = [env.render_goal(task) for env, task in zip(envs, block.tasks, strict=True)]
    goals = [
        Goal(pixels=pixels, state=task.goal, appearance=task.appearance)
        for pixels, task in zip(_distracted(block, pictures, 0), block.tasks, strict=True)
    ]
    agent.reset(goals, seeds=block.seeds)
    timed_before = len(_replan_seconds(agent))
    frames, infos = [obs for obs, _ in starts], [info for _, info in starts]
    distances, successes = [_column(infos, "goal_distance")], [_column(infos, "is_success")]
    steps = envs[0].max_steps
    for step in range(steps + 1):
        obs = _stack(frames, envs, agent)
        if "pixels" in obs:
            obs["pixels"] = np.stack(_distracted(block, obs["pixels"], step + 1))
        if observer is not None:
            observer(step, obs, infos)
        if step == steps:
            break
        actions = agent.act(obs)
        outcomes = [env.step(action) for env, action in zip(envs, actions, strict=True)]
        frames, infos = [outcome[0] for outcome in outcomes], [outcome[4] for outcome in outcomes]
        distances.append(_column(infos, "goal_distance"))
        successes.append(_column(infos, "is_success"))
    seconds = tuple(_replan_seconds(agent)[timed_before:])
    calls = getattr(agent, "model_calls", (0,) * len(block.episodes))  # agents that do not plan make none
    rows = zip(block.episodes, np.transpose(distances), np.transpose(successes), calls, strict=True)
    return [
        EpisodeRun(result=_summarise(episode, distance, success, len(seconds)), replan_s=seconds, model_calls=count)
        for episode, distance, success, count in rows
    ]


def run_episodes(blocks: Sequence[Block], factory: AgentFactory, *, workers: int = 1) -> Iterator[list[EpisodeRun]]:
    """Run blocks, in this process or in joblib workers, and yield each as it finishes (in any order).

    Torch runs on one thread everywhere, in this process too: kernels round differently with the number of threads, and
    an outcome must not depend on how many workers there were.

    Args:
        blocks: What to run.
        factory: Builds the agent, in the worker.
        workers: Number of processes, >= 1.

    Raises:
        ConfigError: `workers` is not positive.
    """
    yield from parallel_map(partial(_run_job, factory), blocks, workers=workers)


def _run_job(factory: AgentFactory, block: Block) -> list[EpisodeRun]:
    """One task of the parallel call: environments are opened and closed here, in the process that uses them."""
    with torch_threads(1):
        agent = factory.build()
        envs: list[GoalEnv] = []
        try:
            for _ in block.tasks:
                envs.append(make_env(block.env, image_size=block.image_size, render=factory.needs_pixels))
            return run_block(block, agent, envs)
        finally:
            for owner in (*envs, agent):
                # of the agents, only those that simulate have something to free
                getattr(owner, "close", lambda: None)()


def _stack(frames: Sequence[dict[str, Any]], envs: Sequence[GoalEnv], agent: Agent) -> dict[str, Any]:
    """Observations of B environments as one batch; true states only for agents that declare they need them."""
    obs: dict[str, Any] = {key: np.stack([frame[key] for frame in frames]) for key in frames[0]}
    if agent.needs_state:
        obs["state"] = [env.get_state() for env in envs]
    return obs


def _distracted(block: Block, pictures: Sequence[NDArray[np.uint8]], step: int) -> list[NDArray[np.uint8]]:
    """One picture (Y, X, 3) of every episode, with the distractor of a block over it; step 0 is the goal's."""
    return [
        distract(picture[None], block.distractor, episode=seed, steps=np.array([step]))[0]
        for picture, seed in zip(pictures, block.seeds, strict=True)
    ]


def _column(infos: Sequence[dict[str, Any]], key: str) -> list[float]:
    return [info[key] for info in infos]


def _replan_seconds(agent: Agent) -> list[float]:
    """Seconds per problem of every planning call so far; agents that do not plan have none."""
    return getattr(agent, "replan_s_per_problem", [])


def _summarise(episode: int, distance: np.ndarray, success: np.ndarray, replans: int) -> EpisodeResult:
    """Reduce the (T+1,) distances and success flags of one episode, index 0 being the start."""
    moments = np.flatnonzero(success)
    return EpisodeResult(
        episode=episode,
        held=bool(success[-1]),
        ever=bool(len(moments)),
        steps_to_success=int(moments[0]) if len(moments) else None,
        start_distance_m=float(distance[0]),
        final_distance_m=float(distance[-1]),
        min_distance_m=float(distance.min()),
        steps=len(distance) - 1,
        replans=replans,
        success="".join("1" if moment else "0" for moment in success),
    )
