import numpy as np
import pytest
import torch

from worldmodel.control.agents import OracleAgent
from worldmodel.control.costs import LatentCost
from worldmodel.control.objectives import ActionCost, GoalDistance
from worldmodel.control.oracle import SimulatedLatentCost, SimulatorCost
from worldmodel.envs import make_env
from worldmodel.errors import ConfigError, PlanningError
from worldmodel.planners import CEM
from worldmodel.testing import POINT_MASS_ID, PointMassEnv, PointMassModel
from worldmodel.types import Context, Goal


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


class CountingEnv(PointMassEnv):
    """Counts the pictures it draws."""

    pictures = 0

    def _picture(self, position: np.ndarray) -> np.ndarray:
        self.pictures += 1
        return super()._picture(position)


def latent_cost(env: PointMassEnv, states: list, tasks: list, objective: GoalDistance) -> SimulatedLatentCost:
    model = PointMassModel(action_block=2)
    goals = torch.from_numpy(np.stack([env.render_goal(task) for task in tasks]))[:, None]
    return SimulatedLatentCost(env, states, tasks, model, objective, model.encode(goals))


def test_latent_cost_is_the_objective_on_pictures_of_what_really_happens() -> None:
    _, states, tasks = setup_problems(3)
    env, model = PointMassEnv(), PointMassModel(action_block=2)
    actions = torch.rand(3, 4, 2, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    cost = latent_cost(env, states, tasks, GoalDistance(step_weight=0.5))(actions)
    assert cost.shape == (3, 4)
    for problem in range(3):
        goal = torch.from_numpy(tasks[problem].goal[:2])
        for candidate in range(4):
            position, squares = states[problem].copy(), []
            for step in range(2):
                for action in actions[problem, candidate, step].view(2, 2).numpy():
                    position = np.clip(position + 0.05 * action, 0, 1)
                squares.append(float((torch.from_numpy(position) - goal).square().mean()))
            expected = (0.5 * squares[0] + squares[1]) / 1.5
            assert cost[problem, candidate].item() == pytest.approx(expected, abs=2e-3), "up to the pixels"
    alone = latent_cost(env, states[1:2], tasks[1:2], GoalDistance(step_weight=0.5))(actions[1:2])
    assert torch.equal(alone[0], cost[1]), "whatever the company"
    exact = LatentCost(
        model,
        GoalDistance(step_weight=0.5),
        Context(latent=model.encode(frames_at(env, states)), actions=torch.zeros(3, 0, 4)),
        model.encode(torch.from_numpy(np.stack([env.render_goal(task) for task in tasks]))[:, None]),
    )(actions)
    assert torch.allclose(cost, exact, atol=2e-3), "an exact model agrees with the simulation"


def frames_at(env: PointMassEnv, states: list) -> torch.Tensor:
    """Pictures (B, 1, Y, X, 3) of the dot at B places."""
    return torch.from_numpy(np.stack([env._picture(state) for state in states]))[:, None]


def test_only_scored_steps_are_drawn() -> None:
    _, states, tasks = setup_problems(2)
    actions = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    drawn = {}
    for step_weight in (0.0, 0.3):
        env = CountingEnv()
        cost_fn = latent_cost(env, states, tasks, GoalDistance(step_weight=step_weight))
        before = env.pictures
        cost_fn(actions)
        drawn[step_weight] = env.pictures - before - len(tasks)  # each reset shows its first frame
    assert drawn == {0.0: 2 * 3, 0.3: 2 * 3 * 4}
    assert (GoalDistance(step_weight=0.0) + ActionCost()).scored_steps(3) == (False, False, True)
    assert ActionCost().scored_steps(2) == (False, False)
    with pytest.raises(ConfigError, match="2 states, 1 tasks, 1 goals"):
        latent_cost(PointMassEnv(), states, tasks[:1], GoalDistance())
    with pytest.raises(PlanningError, match=r"\(B=2, S, H, A=4\)"):
        latent_cost(PointMassEnv(), states, tasks, GoalDistance())(torch.zeros(2, 3, 2, 2))


def test_an_oracle_with_a_models_cost_solves_the_point_mass() -> None:
    planner = CEM(num_samples=24, num_elites=5, num_iterations=3, horizon=3)
    env, model = PointMassEnv(), PointMassModel(action_block=2)
    task = env.sample_task(np.random.default_rng(3))
    obs, info = env.reset(options={"task": task})
    start = info["goal_distance"]
    agent = OracleAgent(POINT_MASS_ID, planner, world_model=model)
    agent.reset([Goal(pixels=env.render_goal(task), state=task.goal)], seeds=[3])
    for _ in range(20):
        batch = {key: value[None] for key, value in obs.items()} | {"state": [env.get_state()]}
        obs, _, _, _, info = env.step(agent.act(batch)[0])
    agent.close()
    assert info["goal_distance"] < 0.02 < start


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
