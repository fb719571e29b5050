"""What a failed episode itself shows: errors of the model along it, and whether its cost points to the goal.

The episode is run once more, with the stream it had, so it is the same episode bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import Tensor

from worldmodel.control.agents import MPCAgent
from worldmodel.control.receding import Observation
from worldmodel.control.threads import torch_threads
from worldmodel.control.workers import parallel_map
from worldmodel.envs import make_env
from worldmodel.envs.base import GoalEnv
from worldmodel.evaluation.episodes import Block, agent_seed, run_block
from worldmodel.evaluation.evaluate import ModelAgents
from worldmodel.evaluation.manifest import Manifest
from worldmodel.types import Context, Goal, Latent, to_tensor


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Measurements along one episode. Costs are those of single frames under the run's own objective.

    Attributes:
        open_loop: Squared latent error of rollouts along the executed actions, over that of repeating the first frame,
            by horizon from one model step on: below 1 is better than standing still.
        rank_correlation: Spearman's, over the frames of the episode, of the latent cost with the true cost
            (`GoalEnv.oracle_cost`); None when one of them never changes.
        cost_at_goal: Of the goal picture.
        cost_at_start: Of the first frame.
        cost_reached: Of the last frame.
        cost_min: Smallest along the way.
        final_distance_m: Distance to the goal at the end, metres.
    """

    open_loop: tuple[float, ...]
    rank_correlation: float | None
    cost_at_goal: float
    cost_at_start: float
    cost_reached: float
    cost_min: float
    final_distance_m: float


class _Recorder:
    """An agent that remembers what it did, around the one that decides; and an observer of what it saw."""

    needs_state = False

    def __init__(self, agent: MPCAgent, env: GoalEnv) -> None:
        self._agent, self._env = agent, env
        self.actions: list[NDArray[np.float32]] = []
        self.frames: list[NDArray[np.uint8]] = []
        self.proprio: list[NDArray[np.float32]] = []
        self.true_costs: list[float] = []
        self.distances: list[float] = []

    def reset(self, goals: Sequence[Goal], *, seeds: Sequence[int], rows: Sequence[int] | None = None) -> None:
        """See `Agent.reset`."""
        self._agent.reset(goals, seeds=seeds, rows=rows)

    def act(self, obs: Observation) -> NDArray[np.float32]:
        """See `Agent.act`."""
        action = self._agent.act(obs)
        self.actions.append(action[0])
        return action

    def observe(self, step: int, obs: dict[str, Any], infos: Sequence[dict[str, Any]]) -> None:
        """Keep the frame and what is true at it."""
        self.frames.append(obs["pixels"][0])
        self.proprio.append(obs["proprio"][0])
        self.true_costs.append(self._env.oracle_cost())
        self.distances.append(float(infos[0]["goal_distance"]))


def collect_evidence(
    manifest: Manifest, factory: ModelAgents, episodes: Sequence[int], *, seed: int, workers: int = 1
) -> dict[int, Evidence]:
    """Run episodes again and measure along them.

    Args:
        manifest: Their tasks.
        factory: The agent that ran them.
        episodes: Indices in the manifest.
        seed: Seed of that run.
        workers: Processes, one thread each.
    """
    job = partial(_evidence_of, manifest, factory, seed)
    return dict(zip(episodes, parallel_map(job, list(episodes), workers=workers, ordered=True), strict=True))


def _evidence_of(manifest: Manifest, factory: ModelAgents, seed: int, episode: int) -> Evidence:
    task = manifest.tasks[episode]
    block = Block(
        env=manifest.env_id,
        image_size=factory.image_size,
        episodes=(episode,),
        tasks=(task,),
        seeds=(agent_seed(manifest.seeds[episode], seed),),
    )
    env = make_env(manifest.env_id, image_size=factory.image_size)
    try:
        with torch_threads(1), torch.no_grad():
            agent = factory.build()
            recorder = _Recorder(agent, env)
            run_block(block, recorder, [env], observer=recorder.observe)
            return _measure(agent, recorder, env.render_goal(task), horizon=factory.planner.horizon)
    finally:
        env.close()


def _measure(agent: MPCAgent, recorder: _Recorder, goal_pixels: NDArray[np.uint8], *, horizon: int) -> Evidence:
    model, block = agent.world_model, agent.world_model.spec.action_block
    body = to_tensor(np.stack(recorder.proprio[::block]))[None]
    seen = model.encode(to_tensor(np.stack(recorder.frames[::block]))[None], body)
    visual = seen.visual[0]  # (T, N, D)
    goal = model.encode(to_tensor(goal_pixels)[None, None]).visual[0]  # (1, N, D)
    steps = len(visual) - 1
    taken = np.stack(recorder.actions[: steps * block]).reshape(steps, -1)
    costs = _frame_costs(agent, torch.cat([visual, goal]), goal)
    along, at_goal = costs[:-1], float(costs[-1])
    return Evidence(
        open_loop=_open_loop(agent, seen, to_tensor(taken, visual.device), min(horizon, steps)),
        rank_correlation=_rank_correlation(along, np.array(recorder.true_costs[::block])),
        cost_at_goal=at_goal,
        cost_at_start=float(along[0]),
        cost_reached=float(along[-1]),
        cost_min=float(along.min()),
        final_distance_m=recorder.distances[-1],
    )


def _frame_costs(agent: MPCAgent, visual: Tensor, goal: Tensor) -> NDArray[np.float64]:
    """(F,) cost of frames (F, N, D), each as if it were the outcome of a plan of one step without motion."""
    still = torch.zeros(1, len(visual), 1, agent.world_model.spec.flat_action_dim, device=visual.device)
    cost = agent.objective(Latent(visual=visual[None, :, None]), Latent(visual=goal[None, None]), still)
    values: NDArray[np.float64] = cost[0].double().cpu().numpy()
    return values


def _open_loop(agent: MPCAgent, seen: Latent, actions: Tensor, horizon: int) -> tuple[float, ...]:
    """Error of rollouts over that of repeating the frame they start from, per horizon; one sequence of T frames."""
    visual = seen.visual[0]
    starts = len(visual) - horizon
    windows = torch.stack([actions[start : start + horizon] for start in range(starts)])  # (B, H, A)
    none = actions.new_zeros(starts, 0, actions.shape[-1])
    body = None if seen.proprio is None else seen.proprio[0, :starts, None]
    context = Context(latent=Latent(visual=visual[:starts, None], proprio=body), actions=none)
    imagined = agent.world_model.rollout(context, windows[:, None]).visual[:, 0]  # (B, H, N, D)
    ratios = []
    for step in range(horizon):
        truth = visual[step + 1 : step + 1 + starts]
        error = (imagined[:, step] - truth).float().square().sum()
        still = (visual[:starts] - truth).float().square().sum()
        ratios.append(float(error / still.clamp_min(torch.finfo(torch.float32).tiny)))
    return tuple(ratios)


def _rank_correlation(first: NDArray[np.float64], second: NDArray[np.float64]) -> float | None:
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(spearmanr(first, second).statistic)
