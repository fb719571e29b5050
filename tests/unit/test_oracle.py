import numpy as np
import pytest
import torch

from worldmodel.control.agents import OracleAgent
from worldmodel.control.oracle import SimulatorCost
from worldmodel.envs import make_env
from worldmodel.errors import ConfigError, PlanningError
from worldmodel.planners import CEM
from worldmodel.testing import POINT_MASS_ID, PointMassEnv
from worldmodel.types import Goal


def setup_problems(count: int) -> tuple[PointMassEnv, list, list]:
    env = PointMassEnv(render=False)
    rng = np.random.default_rng(0)
    tasks = [env.sample_task(rng) for _ in range(count)]
    states = [rng.uniform(0.2, 0.8, 2) for _ in tasks]
    return env, states, tasks


def test_cost_is_the_weighted_distance_after_each_model_step() -> None:
    env, states, tasks = setup_problems(3)
    actions = torch.rand(3, 4, 2, 6, generator=torch.Generator().manual_seed(0)) * 2 - 1
    cost = SimulatorCost(env, states, tasks, 3, last_step_weight=2.0, step_weight=0.5)(actions)
    assert cost.shape == (3, 4)
    for problem in range(3):
        for candidate in range(4):
            position = states[problem].copy()
            distances = []
            for step in range(2):
                for action in actions[problem, candidate, step].view(3, 2).numpy():
                    position = np.clip(position + 0.05 * action, 0, 1)
                distances.append(np.linalg.norm(position - tasks[problem].goal[:2]))
            expected = (0.5 * distances[0] + 2.0 * distances[1]) / 2.5
            assert cost[problem, candidate].item() == pytest.approx(expected, rel=1e-5)


def test_cost_of_a_problem_does_not_depend_on_the_others_or_on_repetition() -> None:
    env, states, tasks = setup_problems(3)
    actions = torch.rand(3, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    cost_fn = SimulatorCost(env, states, tasks, 1)
    cost = cost_fn(actions)
    assert torch.equal(cost_fn(actions), cost)
    assert torch.equal(SimulatorCost(env, states[1:2], tasks[1:2], 1)(actions[1:2])[0], cost[1])


def test_bad_input() -> None:
    env, states, tasks = setup_problems(2)
    with pytest.raises(ConfigError, match="2 and 1"):
        SimulatorCost(env, states, tasks[:1], 1)
    with pytest.raises(ConfigError, match="action_block"):
        SimulatorCost(env, states, tasks, 0)
    with pytest.raises(ConfigError, match="last_step_weight"):
        SimulatorCost(env, states, tasks, 1, last_step_weight=0.0)
    for shape in [(2, 3, 2, 2), (1, 3, 2, 4), (2, 3, 4)]:
        with pytest.raises(PlanningError, match=r"\(B=2, S, H, A=4\)"):
            SimulatorCost(env, states, tasks, 2)(torch.zeros(shape))


def run_oracle(env_name: str, planner: CEM, *, action_block: int, steps: int, seed: int) -> tuple[float, float]:
    """Distance to the goal at the start and at the end of an episode."""
    env = make_env(env_name, render=False)
    task = env.sample_task(np.random.default_rng(seed))
    obs, info = env.reset(seed=seed, options={"task": task})
    start = info["goal_distance"]
    agent = OracleAgent(env_name, planner, action_block=action_block)
    agent.reset([Goal(pixels=obs["pixels"], state=task.goal)], seeds=[seed])
    for _ in range(steps):
        batch = {key: value[None] for key, value in obs.items()} | {"state": [env.get_state()]}
        obs, _, _, _, info = env.step(agent.act(batch)[0])
    return start, info["goal_distance"]


def test_oracle_solves_the_point_mass() -> None:
    planner = CEM(num_samples=24, num_elites=5, num_iterations=3, horizon=3)
    start, end = run_oracle(POINT_MASS_ID, planner, action_block=1, steps=20, seed=3)
    assert end < 0.02 < start


def test_oracle_solves_reach_with_a_small_budget() -> None:
    planner = CEM(num_samples=12, num_elites=3, num_iterations=2, horizon=2)
    start, end = run_oracle("reach", planner, action_block=3, steps=24, seed=1)
    assert end < 0.03 < start
