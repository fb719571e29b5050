"""Does a longer search find better plans, or the mistakes of the model? Predicted against true outcome, by search.

    python tests/benchmarks/bench_optimism.py push 12 2
    python tests/benchmarks/bench_optimism.py reach 12 2 24

(environment, validation tasks, workers, control steps before the first state: none, or enough to be near the goal).
Prints a table and one JSON object.

An episode is driven by `cem_fast`. At four of its states every search plans afresh, and its plan is carried out in the
simulator: what did the model predict that the plan would cost, what does it cost by the same objective on the pictures
that really follow, how far is the goal really, and how wrong was the last imagined latent? Beside the searches stand a
plan that does not move and two drawn at random, for which nothing was optimised.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import Tensor

from worldmodel.control.agents import MPCAgent
from worldmodel.control.costs import LatentCost
from worldmodel.control.oracle import SimulatedLatentCost, SimulatorCost, env_blocks
from worldmodel.control.threads import torch_threads
from worldmodel.control.workers import parallel_map
from worldmodel.envs import make_env, resolve_env_id
from worldmodel.envs.base import Array, GoalEnv, Task
from worldmodel.evaluation.evaluate import EvaluateConfig, model_agents
from worldmodel.evaluation.manifest import Manifest, find_manifest
from worldmodel.evaluation.stats import resampled
from worldmodel.planners import CEM, SettlingCEM
from worldmodel.types import Context, Goal, to_tensor

SEARCHES = {
    "100 x 4": CEM(num_samples=100, num_elites=10, num_iterations=4),
    "200 x 6": CEM(num_samples=200, num_elites=20, num_iterations=6),
    "200 x 6, narrow": CEM(num_samples=200, num_elites=20, num_iterations=6, init_std=0.2),
    "200 x 6, settling": SettlingCEM(num_samples=200, num_elites=20, num_iterations=6),
    "300 x 30": CEM(num_samples=300, num_elites=30, num_iterations=30),
}
DRIVER = "100 x 4"
NAMES = ("no motion", "random", "random again", *SEARCHES)
MEASURES = ("predicted cost", "true cost", "true distance, cm", "error of the last latent")
REFERENCE = "200 x 6"
MODEL_STEPS_BETWEEN, STATES = 2, 4


def measured(agent: MPCAgent, sim: GoalEnv, task: Task, state: Array, frame: Array, seed: int) -> NDArray[np.float64]:
    """(plans, measures) of all plans from one state."""
    model = agent.world_model
    low, high = model.spec.flat_bounds(model.device)
    block, horizon = model.spec.action_block, agent.planner.horizon
    goal = model.encode(to_tensor(sim.render_goal(task))[None, None])
    context = Context(latent=model.encode(to_tensor(frame)[None, None]), actions=low.new_zeros(1, 0, len(low)))
    cost = LatentCost(model, agent.objective, context, goal)
    stream = torch.Generator().manual_seed(seed)
    drawn = torch.rand(1, 2, horizon, len(low) // block, generator=stream).repeat(1, 1, 1, block)
    plans = [low.new_zeros(1, 1, horizon, len(low)), low + (high - low) * drawn.to(low)]
    for search in SEARCHES.values():
        rng = [torch.Generator().manual_seed(seed)]
        plans.append(replace(search, action_repeat=block).plan(cost, low, high, rng=rng).actions[:, None])
    actions = torch.cat(plans, dim=1)
    true = SimulatedLatentCost(sim, [state], [task], model, agent.objective, goal)(actions)
    metres = SimulatorCost(sim, [state], [task], block, step_weight=0.0)(actions)
    imagined = model.rollout(context, actions).visual[0, :, -1]
    error = (imagined - last_latents(agent, sim, task, state, actions)).square().mean(dim=(1, 2))
    return torch.stack([cost(actions)[0], true[0], 100 * metres[0], error], dim=1).double().numpy()


def last_latents(agent: MPCAgent, sim: GoalEnv, task: Task, state: Array, actions: Tensor) -> Tensor:
    """(S, N, D) latents of the pictures that candidates (1, S, H, A) really end at."""
    sim.reset(options={"task": task})
    pictures = []
    for blocks in env_blocks(actions, sim, 1, agent.world_model.spec.action_block)[0]:
        sim.set_state(state)
        for action in blocks.reshape(-1, blocks.shape[-1]):
            obs = sim.step(action)[0]
        pictures.append(obs["pixels"])
    return agent.world_model.encode(to_tensor(np.stack(pictures))[:, None]).visual[:, 0]


def episode(env_id: str, manifest: Manifest, first: int, number: int) -> NDArray[np.float64]:
    """(states, plans, measures) along one episode, from its control step `first` on."""
    block = 3
    driver = replace(SEARCHES[DRIVER], action_repeat=block)
    factory = model_agents(EvaluateConfig(env=env_id, planner=driver), env_id)
    with torch_threads(1), torch.inference_mode():
        agent, task = factory.build(), manifest.tasks[number]
        assert (agent.world_model.spec.action_block, agent.world_model.window) == (block, 1)
        env, sim = (make_env(env_id, image_size=factory.image_size) for _ in range(2))
        obs, _ = env.reset(seed=number, options={"task": task})
        agent.reset([Goal(pixels=env.render_goal(task))], seeds=[number])
        found = []
        for step in range(first + STATES * MODEL_STEPS_BETWEEN * block):
            if step >= first and (step - first) % (MODEL_STEPS_BETWEEN * block) == 0:
                sim.reset(options={"task": task})
                found.append(measured(agent, sim, task, env.get_state(), obs["pixels"], 100 * number + step))
            obs = env.step(agent.act({key: value[None] for key, value in obs.items()})[0])[0]
        env.close()
        sim.close()
    return np.stack(found)


def main(env: str, tasks: int, workers: int, first: int = 0) -> None:
    """Measure, and compare every plan with that of the default search; tasks are resampled as wholes."""
    env_id = resolve_env_id(env)
    manifest = find_manifest("validation", env_id)
    job = partial(episode, env_id, manifest, first)
    found = np.stack(list(parallel_map(job, list(range(tasks)), workers=workers, ordered=True))).mean(axis=1)
    draws = resampled(tasks, np.random.default_rng(0)) / tasks  # (R, tasks)
    title = f"{env}, {tasks} validation tasks, {STATES} states each from control step {first}"
    table = Table(title=title, caption=f"means; in brackets minus {REFERENCE}, 95 % over tasks")
    table.add_column("plan")
    record: dict[str, dict[str, list[float]]] = {}
    for measure in MEASURES:
        table.add_column(measure, justify="right")
    for place, name in enumerate(NAMES):
        cells, record[name] = [], {}
        for column, measure in enumerate(MEASURES):
            values = found[:, place, column]
            less = values - found[:, NAMES.index(REFERENCE), column]
            low, high = np.quantile(draws @ less, [0.025, 0.975])
            record[name][measure] = [float(value) for value in (values.mean(), less.mean(), low, high)]
            cells.append(f"{values.mean():.3g} ({less.mean():+.2g} [{low:+.2g}, {high:+.2g}])")
        table.add_row(name, *cells)
    console = Console(width=170)
    console.print(table)
    console.print_json(json.dumps({"title": title, "plans": record}))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
