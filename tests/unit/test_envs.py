"""The tabletop environments: contract, physics, predicates, appearance, experts."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import worldmodel.envs
from worldmodel.envs import ENV_IDS, Appearance, Task, make_env, resolve_env_id
from worldmodel.envs.base import GoalEnv
from worldmodel.envs.kinematics import HOME, ArmKinematics
from worldmodel.envs.push import MAX_GOAL_DISTANCE_M, MIN_GOAL_DISTANCE_M
from worldmodel.envs.scripted import expert, play
from worldmodel.envs.tabletop import MAX_STEP_M, WORKSPACE_HIGH, WORKSPACE_LOW, TabletopEnv
from worldmodel.errors import ConfigError, SimulationError

NAMES = list(ENV_IDS)


def headless(name: str) -> TabletopEnv:
    env = make_env(name, render=False)
    assert isinstance(env, TabletopEnv)
    return env


@pytest.fixture(params=NAMES)
def env(request: pytest.FixtureRequest) -> TabletopEnv:
    return headless(request.param)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore:.*not within the observation space.*")
def test_passes_gymnasiums_checker(name: str) -> None:
    checked = gymnasium.make(ENV_IDS[name], render_mode="rgb_array").unwrapped
    check_env(checked)
    assert checked.render().shape == (256, 256, 3)
    checked.close()


def test_can_be_made_from_outside_by_module_and_id() -> None:
    env = gymnasium.make("worldmodel.envs:worldmodel/Push-v0", render=False)
    assert isinstance(env.unwrapped, GoalEnv)


def test_unknown_name_lists_the_valid_ones_and_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"reach, push.*did you mean 'push'"):
        resolve_env_id("pusch")


def test_foreign_env_is_refused() -> None:
    with pytest.raises((ConfigError, TypeError)):
        make_env("CartPole-v1")


def test_continuation_after_restore_is_bit_equal(env: TabletopEnv) -> None:
    rng = np.random.default_rng(3)
    env.reset(seed=3)
    for action in rng.uniform(-1, 1, (7, 4)):
        env.simulate(action)
    state = env.get_state()
    actions = rng.uniform(-1, 1, (9, 4))
    ends = []
    for _ in range(2):
        for action in actions:
            env.simulate(action)
        ends.append(env.get_state())
        env.set_state(state)
    assert np.array_equal(ends[0], ends[1])
    assert not np.array_equal(ends[0], state)


def test_state_holds_velocities(env: TabletopEnv) -> None:
    env.reset(seed=0)
    before = env.get_state()
    env.simulate(np.array([1.0, 0.0, 0.0, 0.0]))
    moving = env.get_state()
    env.set_state(before)
    env.set_state(moving)
    env.simulate(np.zeros(4))
    coasting = env.gripper_position()
    assert np.abs(moving - before).max() > 0.1  # a joint velocity, rad/s
    assert np.isfinite(coasting).all()


def test_same_seed_gives_the_same_episode(env: TabletopEnv) -> None:
    ends = []
    for _ in range(2):
        env.reset(seed=11)
        for action in np.random.default_rng(0).uniform(-1, 1, (5, 4)):
            env.simulate(action)
        ends.append(env.get_state())
    assert np.array_equal(ends[0], ends[1])


@pytest.mark.parametrize("bad", [np.zeros(3), np.full(400, np.nan)])
def test_bad_states_are_refused(bad: np.ndarray) -> None:
    with pytest.raises(SimulationError, match="state"):
        headless("reach").set_state(bad)


@pytest.mark.parametrize("bad", [np.zeros(3), np.array([0, 0, np.nan, 0])])
def test_bad_actions_are_refused(bad: np.ndarray) -> None:
    env = headless("reach")
    env.reset(seed=0)
    with pytest.raises(ConfigError, match="action"):
        env.step(bad)


def test_step_before_reset_is_refused() -> None:
    with pytest.raises(SimulationError, match="reset"):
        headless("reach").step(np.zeros(4))


def test_unknown_reset_option_is_refused(env: TabletopEnv) -> None:
    with pytest.raises(ConfigError, match="tsk"):
        env.reset(options={"tsk": None})


def test_task_of_another_env_is_refused() -> None:
    task = headless("reach").sample_task(np.random.default_rng(0))
    with pytest.raises(ConfigError, match="belongs to"):
        headless("push").reset(options={"task": task})


def test_tasks_start_unsolved_and_keep_their_distance(env: TabletopEnv) -> None:
    rng = np.random.default_rng(5)
    for _ in range(40):
        task = env.sample_task(rng)
        _, info = env.reset(options={"task": task})
        assert not info["is_success"]
        if task.env_id.endswith("Push-v0"):
            assert MIN_GOAL_DISTANCE_M - 1e-6 <= info["goal_distance"] <= MAX_GOAL_DISTANCE_M + 1e-6
        else:
            assert info["goal_distance"] >= 0.1 - 1e-3
        env.set_state(task.goal_state)
        assert env.is_success()


def test_success_radius_is_what_the_docs_say() -> None:
    reach, push = headless("reach"), headless("push")
    for env, radius, offset in ((reach, 0.03, 0.029), (push, 0.04, 0.039)):
        env.reset(seed=1)
        goal = env.goal_position()
        for distance, solved in ((offset, True), (radius + 0.001, False)):
            spot = goal + np.array([0.0, distance if goal[1] < 0 else -distance, 0.0])
            cube = spot if env is push else np.array([0.36, 0.0, 0.035])
            gripper = np.array([0.36, 0.0, 0.2]) if env is push else spot
            env.set_state(env.pose_state(gripper, cube, 0.0))
            assert env.is_success() is solved, (env.env_id, distance)


def test_success_does_not_end_an_episode_but_the_step_limit_does() -> None:
    env = headless("reach")
    env.reset(seed=2)
    policy = expert("reach")
    flags = []
    for _ in range(env.max_steps):
        _, _, terminated, truncated, info = env.step(policy.act(env))
        flags.append((terminated, truncated))
    assert info["is_success"]
    assert flags == [(False, False)] * 59 + [(False, True)]


@pytest.mark.parametrize("name", NAMES)
def test_scripted_expert_solves_at_least_95_percent_held_at_the_end(name: str) -> None:
    env = headless(name)
    rng = np.random.default_rng(2024)
    policy = expert(name)
    num_tasks, solved = 40, 0
    for _ in range(num_tasks):
        env.reset(options={"task": env.sample_task(rng)})
        for _ in range(env.max_steps):
            env.simulate(policy.act(env))
        solved += env.is_success()
    assert solved >= 0.95 * num_tasks


def test_play_touches_and_moves_the_block() -> None:
    env = headless("push")
    moved, touched = [], 0
    for seed in range(6):
        env.reset(seed=seed)
        policy = play("push", np.random.default_rng(seed))
        start = env.object_pose()[0]
        for _ in range(env.max_steps):
            env.simulate(policy.act(env))
            touched += env.in_contact()
        moved.append(np.linalg.norm(env.object_pose()[0] - start))
    assert touched > 10
    assert np.mean(moved) > 0.03


def test_one_full_action_moves_the_gripper_by_about_the_step_and_stays_in_the_workspace() -> None:
    env = headless("reach")
    env.set_state(env.pose_state(np.array([0.5, 0.0, 0.15]), np.array([0.36, -0.2, 0.035]), 0.0))
    for _ in range(3):
        env.simulate(np.array([0.0, 1.0, 0.0, 0.0]))
    assert env.gripper_position()[1] == pytest.approx(3 * MAX_STEP_M, abs=0.012)
    for _ in range(30):
        env.simulate(np.array([1.0, 1.0, 1.0, 1.0]))
    gripper = env.gripper_position()
    assert (gripper < WORKSPACE_HIGH + 0.01).all()
    assert (gripper > WORKSPACE_LOW - 0.01).all()
    assert env.opening() == pytest.approx(0.04, abs=0.002)


def test_inverse_kinematics_reaches_the_whole_workspace() -> None:
    env = headless("reach")
    kinematics = ArmKinematics(env._model)
    corners = np.stack(np.meshgrid(*zip(WORKSPACE_LOW, WORKSPACE_HIGH, strict=True)), -1).reshape(-1, 3)
    for corner in corners:
        angles = kinematics.solve(corner, HOME, max_iterations=100)
        assert np.linalg.norm(kinematics.gripper_position(angles) - corner) < 1e-3


def test_goal_picture_shows_the_goal_and_leaves_the_state_alone() -> None:
    env = make_env("push")
    obs, _ = env.reset(seed=4)
    before = env.get_state()
    goal = env.render_goal()
    assert np.array_equal(env.get_state(), before)
    assert goal.shape == (64, 64, 3)
    assert goal.dtype == np.uint8
    red = [(p[..., 0].astype(int) > 1.7 * p[..., 1]) & (p[..., 0] > 60) for p in (obs["pixels"], goal)]
    assert red[0].any()
    centres = [np.argwhere(mask).mean(0) for mask in red]
    assert np.linalg.norm(centres[0] - centres[1]) > 5  # 12 cm are more than 5 pixels
    env.close()


def test_two_renderers_in_one_process_do_not_disturb_each_other() -> None:
    first = make_env("push")
    alone = first.reset(seed=4)[0]["pixels"]
    second = make_env("reach")
    second.reset(seed=4)
    second.close()
    del second
    assert alone.std() > 10
    assert np.array_equal(first.reset(seed=4)[0]["pixels"], alone)


def test_appearance_changes_the_picture_but_not_the_physics() -> None:
    env = make_env("push")
    task = env.sample_task(np.random.default_rng(0))
    look = Appearance(object_rgb=(0.1, 0.8, 0.2), light=0.6, camera_offset_m=(0.02, 0.0, 0.0))
    other = Task.from_dict({**task.to_dict(), "appearance": Task.to_dict(task)["appearance"] | look.__dict__})
    plain, painted = (env.reset(options={"task": t})[0] for t in (task, other))
    assert not np.array_equal(plain["pixels"], painted["pixels"])
    assert np.array_equal(plain["proprio"], painted["proprio"])
    assert np.array_equal(env.reset(options={"task": task})[0]["pixels"], plain["pixels"])


@pytest.mark.parametrize("wrong", [{"light": 0.0}, {"object_shape": "ball"}, {"table_rgb": (2.0, 0.0, 0.0)}])
def test_impossible_appearance_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        Appearance(**wrong)  # type: ignore[arg-type]


def test_task_survives_json_bit_for_bit(env: TabletopEnv) -> None:
    import json

    task = env.sample_task(np.random.default_rng(1))
    again = Task.from_dict(json.loads(json.dumps(task.to_dict())))
    assert np.array_equal(again.start, task.start)
    assert np.array_equal(again.goal_state, task.goal_state)
    assert again.appearance == task.appearance


def test_unusable_gl_backend_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "nonsense")
    with pytest.raises(worldmodel.errors.RenderingError, match="MUJOCO_GL='nonsense'"):
        make_env("reach")
