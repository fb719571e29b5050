from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from worldmodel.control.agents import Agent, MPCAgent, NoopAgent, OracleAgent, RandomAgent
from worldmodel.control.objectives import GoalDistance
from worldmodel.errors import ConfigError, PlanningError
from worldmodel.planners import CEM, CostFn, Gradient, Plan, Planner
from worldmodel.testing import POINT_MASS_ID, PointMassEnv, PointMassModel
from worldmodel.types import Context, Goal, Latent

PLANNER = CEM(num_samples=24, num_elites=5, num_iterations=3, horizon=4)


def make_agent(
    *, window: int = 1, action_block: int = 2, replan_every: int = 1, planner: Planner = PLANNER
) -> MPCAgent:
    model = PointMassModel(action_block=action_block, window=window, image_size=32)
    return MPCAgent(model, planner, GoalDistance(), replan_every=replan_every)


class World:
    """Point-mass environments run in lockstep."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self.seeds = list(seeds)
        self.envs = [PointMassEnv(image_size=32) for _ in seeds]
        self.goals: list[Goal] = []
        self._frames = [self._begin(env, seed) for env, seed in zip(self.envs, seeds, strict=True)]

    def _begin(self, env: PointMassEnv, seed: int) -> dict[str, Any]:
        task = env.sample_task(np.random.default_rng(seed))
        obs, _ = env.reset(seed=seed, options={"task": task})
        self.goals.append(Goal(pixels=env.render_goal(), state=task.goal))
        return obs

    @property
    def obs(self) -> dict[str, Any]:
        stacked: dict[str, Any] = {key: np.stack([frame[key] for frame in self._frames]) for key in self._frames[0]}
        return stacked | {"state": [env.get_state() for env in self.envs]}

    def step(self, actions: NDArray[np.float32]) -> None:
        self._frames = [env.step(action)[0] for env, action in zip(self.envs, actions, strict=True)]

    def run(self, agent: Agent, steps: int) -> NDArray[np.float32]:
        """(steps, B, A_env) actions taken."""
        taken = []
        for _ in range(steps):
            taken.append(agent.act(self.obs))
            self.step(taken[-1])
        return np.stack(taken)

    def distances(self) -> list[float]:
        return [env.goal_distance() for env in self.envs]


@pytest.mark.parametrize(("window", "replan_every", "action_block"), [(1, 1, 2), (3, 2, 1), (2, 2, 3)])
def test_mpc_reaches_the_goal_picture(window: int, replan_every: int, action_block: int) -> None:
    world = World([0, 1, 2])
    start = world.distances()
    planner = CEM(num_samples=64, num_elites=8, num_iterations=4, horizon=3)
    agent = make_agent(window=window, replan_every=replan_every, action_block=action_block, planner=planner)
    agent.reset(world.goals, seeds=world.seeds)
    actions = world.run(agent, 20)
    assert actions.shape == (20, 3, 2)
    assert actions.dtype == np.float32
    assert (np.abs(actions) <= 1).all()
    assert min(start) >= 0.2
    assert max(world.distances()) < 0.05
    replans = -(-20 // (replan_every * action_block))
    assert len(agent.replan_s) == len(agent.replan_s_per_problem) == replans
    assert agent.replan_s_per_problem == [seconds / 3 for seconds in agent.replan_s]


@pytest.mark.parametrize("planner", [PLANNER, Gradient(num_restarts=2, num_iterations=3, horizon=2)])
def test_model_calls_are_counted_as_the_planner_counts_them(planner: Planner) -> None:
    world, agent = World([0, 1]), make_agent(action_block=2, planner=planner)
    agent.reset(world.goals, seeds=world.seeds)
    assert agent.model_calls == (0, 0)
    world.run(agent, 6)
    assert planner.num_calls is not None
    assert agent.model_calls == (3 * planner.num_calls,) * 2
    agent.reset([world.goals[1]], seeds=[9], rows=[1])
    assert agent.model_calls == (3 * planner.num_calls, 0)


def test_actions_have_the_same_bits_in_any_company() -> None:
    together = World([0, 1, 2])
    agent = make_agent(window=2)
    agent.reset(together.goals, seeds=together.seeds)
    actions = together.run(agent, 7)
    for row in range(3):
        alone = World([row])
        other = make_agent(window=2)
        other.reset(alone.goals, seeds=alone.seeds)
        assert np.array_equal(alone.run(other, 7)[:, 0], actions[:, row])


def test_restarting_a_row_equals_a_fresh_agent_and_leaves_the_others_alone() -> None:
    world, agent = World([0, 1]), make_agent(window=3, replan_every=2)
    agent.reset(world.goals, seeds=world.seeds)
    first = world.run(agent, 5)
    late = World([9])
    world.envs[1], world.goals[1] = late.envs[0], late.goals[0]
    world._frames[1] = late._frames[0]
    agent.reset([world.goals[1]], seeds=[9], rows=[1])
    second = world.run(agent, 7)

    fresh, other = World([9]), make_agent(window=3, replan_every=2)
    other.reset(fresh.goals, seeds=[9])
    assert np.array_equal(fresh.run(other, 7)[:, 0], second[:, 1])
    undisturbed, another = World([0]), make_agent(window=3, replan_every=2)
    another.reset(undisturbed.goals, seeds=[0])
    assert np.array_equal(undisturbed.run(another, 12)[:, 0], np.concatenate([first, second])[:, 0])


def test_resetting_everything_forgets_everything() -> None:
    agent = make_agent(window=2)
    for _ in range(2):
        world = World([4, 5])
        agent.reset(world.goals, seeds=world.seeds)
        assert agent.plan is None
        actions = world.run(agent, 3)
    world, other = World([4, 5]), make_agent(window=2)
    other.reset(world.goals, seeds=world.seeds)
    assert np.array_equal(world.run(other, 3), actions)


class RecordingModel(PointMassModel):
    """Keeps the contexts it was asked about."""

    def __init__(self, **sizes: int) -> None:
        super().__init__(**sizes)
        self.contexts: list[Context] = []
        self.encoded: list[tuple[int, ...]] = []

    def encode(self, pixels: torch.Tensor, proprio: torch.Tensor | None = None) -> Latent:
        self.encoded.append(tuple(pixels.shape[:2]))
        return super().encode(pixels, proprio)

    def rollout(self, context: Context, actions: torch.Tensor) -> Latent:
        self.contexts.append(context)
        return super().rollout(context, actions)


def test_context_holds_what_was_seen_and_done_at_model_steps() -> None:
    model = RecordingModel(action_block=2, window=3, image_size=32)
    planner = CEM(num_samples=8, num_elites=2, num_iterations=1, horizon=2)
    world, agent = World([0, 1]), MPCAgent(model, planner, GoalDistance())
    agent.reset(world.goals, seeds=world.seeds)
    places, actions = [], []
    for _ in range(10):
        places.append(world.obs["proprio"])
        actions.append(agent.act(world.obs))
        world.step(actions[-1])
    assert [context.latent.visual.shape[1] for context in model.contexts] == [1, 2, 3, 3, 3]
    for index, context in enumerate(model.contexts):
        frames = list(range(max(0, index - 2), index + 1))
        assert context.latent.proprio is not None
        seen = torch.from_numpy(np.stack([places[2 * frame] for frame in frames], axis=1))
        assert torch.equal(context.latent.proprio, seen)
        torch.testing.assert_close(context.latent.visual[:, :, 0], seen, atol=2e-3, rtol=0)
        done = [np.concatenate([actions[2 * frame], actions[2 * frame + 1]], axis=1) for frame in frames[:-1]]
        expected = np.stack(done, axis=1) if done else np.zeros((2, 0, 4), dtype=np.float32)
        assert np.array_equal(context.actions.numpy(), expected)
    # the two goals once, then one frame per model step for both problems
    assert model.encoded == [(1, 1), (1, 1)] + [(2, 1)] * 5


@pytest.mark.parametrize(("window", "frames"), [(1, 2), (2, 4)])
def test_frames_nobody_will_look_at_are_not_encoded(window: int, frames: int) -> None:
    model = RecordingModel(action_block=1, window=window, image_size=32)
    world, agent = World([0]), MPCAgent(model, PLANNER, GoalDistance(), replan_every=2)
    agent.reset(world.goals, seeds=world.seeds)
    world.run(agent, 4)
    assert len(model.encoded) == 1 + frames


@dataclass(kw_only=True)
class Spy(Planner):
    """Plans with CEM, tells what it was given, and breaks the promise to stay inside the bounds."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.warm_starts: list[Plan | None] = []
        self.plans: list[Plan] = []

    def plan(
        self,
        cost_fn: CostFn,
        low: torch.Tensor,
        high: torch.Tensor,
        *,
        rng: Sequence[torch.Generator],
        warm_start: Plan | None = None,
        time_budget_s: float | None = None,
    ) -> Plan:
        plan = CEM(num_samples=8, num_elites=2, num_iterations=1, horizon=self.horizon).plan(
            cost_fn, low, high, rng=rng
        )
        plan.actions[:] = torch.arange(float(plan.actions.numel())).view_as(plan.actions) / 20
        self.warm_starts.append(warm_start)
        self.plans.append(plan)
        return plan


def test_plans_are_executed_in_order_clamped_and_shifted_into_the_next_call() -> None:
    spy = Spy(horizon=3)
    world, agent = World([0]), make_agent(action_block=2, replan_every=2, planner=spy)
    agent.reset(world.goals, seeds=world.seeds)
    actions = world.run(agent, 8)
    plan = spy.plans[0].actions[0].reshape(6, 2)
    expected = plan[:4].clamp(-1, 1).numpy()
    assert np.array_equal(actions[:4, 0], expected)
    assert np.array_equal(actions[4:, 0], expected)
    assert spy.warm_starts[0] is None
    assert spy.warm_starts[1] is not None
    assert torch.equal(spy.warm_starts[1].actions, spy.plans[0].shifted(2).actions)
    assert torch.equal(spy.warm_starts[1].mean, spy.plans[0].shifted(2).mean)
    assert len(spy.plans) == 2


def test_without_a_warm_start_every_search_begins_from_nothing() -> None:
    spy = Spy()
    world, model = World([0]), PointMassModel(action_block=2, window=1, image_size=32)
    agent = MPCAgent(model, spy, GoalDistance(), warm_start=False)
    agent.reset(world.goals, seeds=[0])
    world.run(agent, 6)
    assert spy.warm_starts == [None, None, None]


def test_the_last_plan_of_all_problems_is_kept() -> None:
    world, agent = World([0, 1, 2]), make_agent()
    agent.reset(world.goals, seeds=world.seeds)
    world.run(agent, 1)
    assert agent.plan is not None
    assert agent.plan.actions.shape == (3, 4, 4)
    assert torch.equal(agent.plan.actions[1, 0, :2], torch.from_numpy(np.asarray(agent._problems[1].queue[0])))


def test_goal_proprioception_reaches_the_objective() -> None:
    world = World([0])
    model = PointMassModel(image_size=32)
    agent = MPCAgent(model, PLANNER, GoalDistance(proprio_weight=1.0))
    agent.reset(world.goals, seeds=[0])
    with pytest.raises(PlanningError, match="the goal has none"):
        agent.act(world.obs)
    assert world.goals[0].state is not None
    goal = Goal(pixels=world.goals[0].pixels, proprio=world.goals[0].state[:2].astype(np.float32))
    agent.reset([goal], seeds=[0])
    world.run(agent, 16)
    assert world.distances()[0] < 0.05


def test_bad_input_to_planning_agents() -> None:
    world, agent = World([0, 1]), make_agent()
    with pytest.raises(ConfigError, match="before reset"):
        agent.act(world.obs)
    with pytest.raises(ConfigError, match="at least one"):
        agent.reset([], seeds=[])
    with pytest.raises(ConfigError, match="2 goals, 1 seeds"):
        agent.reset(world.goals, seeds=[0])
    with pytest.raises(ConfigError, match=r"rows must be different and in \[0, 0\)"):
        agent.reset(world.goals[:1], seeds=[0], rows=[0])
    agent.reset(world.goals, seeds=[0, 1])
    for rows in ([5], [-1]):
        with pytest.raises(ConfigError, match=r"in \[0, 2\)"):
            agent.reset(world.goals[:1], seeds=[0], rows=rows)
    with pytest.raises(ConfigError, match="different"):
        agent.reset(world.goals, seeds=[0, 1], rows=[1, 1])
    with pytest.raises(ConfigError, match=r"obs\['pixels'\] must hold 2 rows"):
        agent.act(World([0]).obs)
    for pixels in (np.zeros((64, 64, 3), np.uint8), np.zeros((32, 32, 3), np.float32), np.zeros((32, 32), np.uint8)):
        with pytest.raises(ConfigError, match="goal image"):
            agent.reset([Goal(pixels=pixels)], seeds=[0])
    for replan_every in (0, 5):
        with pytest.raises(ConfigError, match=r"replan_every must be in \[1, horizon=4\]"):
            make_agent(replan_every=replan_every)


def test_oracle_needs_true_goals_and_states() -> None:
    world, agent = World([0]), OracleAgent(POINT_MASS_ID, PLANNER)
    assert agent.needs_state
    pixels = world.goals[0].pixels
    with pytest.raises(ConfigError, match="got none"):
        agent.reset([Goal(pixels=pixels)], seeds=[0])
    with pytest.raises(ConfigError, match=r"shape \(2,\)"):
        agent.reset([Goal(pixels=pixels, state=np.zeros(2))], seeds=[0])
    with pytest.raises(ConfigError, match="action_block"):
        OracleAgent(POINT_MASS_ID, PLANNER, action_block=0)
    agent.reset(world.goals, seeds=[0])
    with pytest.raises(ConfigError, match="true states"):
        agent.act({"pixels": world.obs["pixels"]})


def test_oracle_plans_the_same_in_any_company() -> None:
    together, agent = World([0, 1]), OracleAgent(POINT_MASS_ID, PLANNER, action_block=2)
    agent.reset(together.goals, seeds=together.seeds)
    actions = together.run(agent, 4)
    alone, other = World([1]), OracleAgent(POINT_MASS_ID, PLANNER, action_block=2)
    other.reset(alone.goals, seeds=[1])
    assert np.array_equal(alone.run(other, 4)[:, 0], actions[:, 1])


def test_random_actions_depend_on_the_seed_alone() -> None:
    world, agent = World([0, 1]), RandomAgent(POINT_MASS_ID)
    assert not agent.needs_state
    agent.reset(world.goals, seeds=[7, 8])
    first = world.run(agent, 50)
    agent.reset(world.goals[:1], seeds=[7], rows=[1])
    second = world.run(agent, 50)
    assert np.array_equal(second[:, 1], first[:, 0])
    assert not np.array_equal(second[:, 0], first[:, 0])
    assert first.dtype == np.float32
    assert first.min() < -0.9
    assert first.max() > 0.9
    assert (np.abs(first) <= 1).all()


def test_noop_never_moves() -> None:
    world, agent = World([0, 1]), NoopAgent(POINT_MASS_ID)
    with pytest.raises(ConfigError, match="before reset"):
        agent.act(world.obs)
    agent.reset(world.goals, seeds=world.seeds)
    assert (world.run(agent, 3) == 0).all()


@pytest.mark.parametrize("kind", [NoopAgent, RandomAgent])
def test_unknown_environment(kind: type[NoopAgent] | type[RandomAgent]) -> None:
    with pytest.raises(ConfigError, match="did you mean 'reach'"):
        kind("raech")


class Watching(CEM):
    """CEM that keeps what it was asked and what it answered."""

    calls: list[tuple[CostFn, Plan]]

    def plan(self, cost_fn: CostFn, *args: Any, **options: Any) -> Plan:
        found = super().plan(cost_fn, *args, **options)
        self.calls = [*getattr(self, "calls", []), (cost_fn, found)]
        return found


@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize(("delay", "blocks"), [(1, 1), (2, 1), (3, 2)])
def test_the_robot_goes_on_while_a_plan_is_made(window: int, delay: int, blocks: int) -> None:
    """With exact dynamics the state foreseen for the moment a plan takes over is the one it meets there."""
    planner = Watching(num_samples=24, num_elites=5, num_iterations=3, horizon=4)
    model = PointMassModel(action_block=2, window=window, image_size=32)
    world, agent = World([0]), MPCAgent(model, planner, GoalDistance(), delay=delay)
    agent.reset(world.goals, seeds=[0])
    taken, states = [], []
    for _ in range(12):
        states.append(world.envs[0].get_state()[:2].copy())
        taken.append(agent.act(world.obs)[0])
        world.step(taken[-1][None])
    late = 2 * blocks
    assert all((action == 0).all() for action in taken[:late])
    for number, (cost_fn, plan) in enumerate(planner.calls):
        start = number * late + late  # asked for at number * late, in force that much later
        steps = min(late, 12 - start)
        if steps <= 0:
            break
        np.testing.assert_array_equal(taken[start : start + steps], plan.actions[0].reshape(-1, 2).numpy()[:steps])
        context = cost_fn.cost_fn._context  # type: ignore[attr-defined]
        np.testing.assert_allclose(context.latent.visual[0, -1].flatten()[:2].numpy(), states[start], atol=2e-2)
        assert context.actions.shape[1] == context.latent.visual.shape[1] - 1 <= window - 1
    assert len(planner.calls) == 12 // late


def test_a_delay_does_not_change_what_company_means() -> None:
    def run(seeds: Sequence[int]) -> NDArray[np.float32]:
        model = PointMassModel(action_block=2, window=2, image_size=32)
        world, agent = World(seeds), MPCAgent(model, PLANNER, GoalDistance(), delay=3)
        agent.reset(world.goals, seeds=seeds)
        return world.run(agent, 12)

    together = run([0, 1, 2])
    np.testing.assert_array_equal(together[:, 1:2], run([1]))


def test_delays_and_budgets_that_make_no_sense() -> None:
    model = PointMassModel(action_block=2, image_size=32)
    with pytest.raises(ConfigError, match="delay must be >= 0"):
        MPCAgent(model, PLANNER, GoalDistance(), delay=-1)
    with pytest.raises(ConfigError, match=r"5 model steps \(10 control steps\) does not fit"):
        MPCAgent(model, PLANNER, GoalDistance(), delay=9)
    with pytest.raises(ConfigError, match="time_budget_s"):
        MPCAgent(model, PLANNER, GoalDistance(), time_budget_s=0.0)


def test_a_budget_bounds_the_iterations() -> None:
    planner = Watching(num_samples=24, num_elites=5, num_iterations=500, horizon=4)
    model = PointMassModel(action_block=2, image_size=32)
    world, agent = World([0]), MPCAgent(model, planner, GoalDistance(), time_budget_s=0.02)
    agent.reset(world.goals, seeds=[0])
    world.run(agent, 4)
    assert all(plan.trace.num_iterations.max() < 500 for _, plan in planner.calls)
