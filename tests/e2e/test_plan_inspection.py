"""A replan taken apart: the search found again what it found then, and its paths start where the gripper is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from worldmodel.analysis.episode import WatchedEpisode, watch
from worldmodel.analysis.landscape import landscape_figure
from worldmodel.analysis.one_step import check_landscapes, one_step_figure, one_step_problems
from worldmodel.analysis.plan_inspection import fan_figure, inspect_plan
from worldmodel.envs import make_env
from worldmodel.errors import CheckpointError, ConfigError
from worldmodel.models.checkpoint import load_checkpoint
from worldmodel.planners import CEM


@pytest.fixture(scope="module", name="episode")
def _episode(tiny_checkpoint: Path) -> WatchedEpisode:
    planner = CEM(num_samples=12, num_elites=3, num_iterations=2, horizon=2, action_repeat=3)
    return watch(tiny_checkpoint, "reach", 0, planner=planner, replan_every=2)


def test_the_search_finds_again_what_it_found(episode: WatchedEpisode, tiny_checkpoint: Path) -> None:
    for index in (0, 2, -1):
        inspected = inspect_plan(episode, index, checkpoint=tiny_checkpoint)
        record = episode.log.records[index]
        assert inspected.step == record.step
        assert [tuple(one.shape) for one in inspected.candidates] == [(12, 2, 12)] * 2
        lowest = torch.stack([cost.min() for cost in inspected.costs]).min()
        assert lowest == record.plan.cost[0], "warm start, stream and context are those of then"
        again = inspected.cost_fn(record.plan.actions[:, None])
        torch.testing.assert_close(again[0, 0], record.plan.cost[0])


def test_paths_and_expert_start_from_the_state_of_the_episode(episode: WatchedEpisode, tiny_checkpoint: Path) -> None:
    inspected = inspect_plan(episode, 3, checkpoint=tiny_checkpoint)
    assert inspected.gripper_m is not None
    paths = inspected.paths_px(inspected.plan.elites[0])
    assert paths.shape == (3, 7, 2), "two model steps of three actions"
    env = make_env("reach", image_size=32, render=False)
    env.reset(seed=0)
    np.testing.assert_allclose(paths[:, 0], np.tile(env.project(inspected.gripper_m), (3, 1)))  # type: ignore[attr-defined]
    env.close()
    proprio = episode.log.records[3].context.latent.proprio
    assert proprio is not None
    model = load_checkpoint(tiny_checkpoint)
    np.testing.assert_allclose(model.proprio_normalizer.inverse(proprio)[0, -1, :3], inspected.gripper_m, atol=1e-5)
    assert inspected.expert is not None
    assert tuple(inspected.expert.shape) == (2, 12)


def test_pictures_of_a_plan(episode: WatchedEpisode, tiny_checkpoint: Path) -> None:
    inspected = inspect_plan(episode, 0, checkpoint=tiny_checkpoint)
    *fans, costs = fan_figure(inspected).axes
    assert [axes.get_title().split(":")[0] for axes in fans] == ["iteration 1 of 2", "iteration 2 of 2"]
    assert len(fans[0].lines) == 12 + 1 + 1, "twelve candidates, the chosen plan and the gripper"
    assert costs.get_ylabel() == "planning cost (a.u.)"
    landscape = inspected.landscape(("y", "z"), resolution=5)
    assert "model step 1 of the plan" in landscape_figure([landscape]).axes[0].get_title()
    assert landscape.chosen is not None
    with pytest.raises(ConfigError, match="axes must be two of 0, 1, 2, 3, x, y, z"):
        inspected.landscape(("x", "w"))
    with pytest.raises(ConfigError, match="index must be in"):
        inspect_plan(episode, 99, checkpoint=tiny_checkpoint)
    with pytest.raises(CheckpointError, match="another checkpoint"):
        inspect_plan(episode, 0, checkpoint="shipped")


def test_one_step_problems_are_judged_by_where_the_hand_went(tiny_checkpoint: Path) -> None:
    model = load_checkpoint(tiny_checkpoint)
    problems = list(one_step_problems(2, action_block=3, image_size=32))
    again = list(one_step_problems(2, action_block=3, image_size=32))
    for problem, same in zip(problems, again, strict=True):
        np.testing.assert_array_equal(problem.goal, same.goal)
        assert np.linalg.norm(problem.moved_m - 0.12 * problem.action[:3]) < 0.06, "the hand follows, with a lag"
    check = check_landscapes(model, problems, axes=("x", "z"), resolution=9)[0]
    assert check.true == pytest.approx(100 * problems[0].moved_m[[0, 2]])
    assert check.landscape.expert == pytest.approx(12 * problems[0].action[[0, 2]])
    assert check.error_m == pytest.approx(np.hypot(*np.subtract(check.landscape.minimum, check.true)) / 100)
    assert "of 2 minima within 2 cm" in one_step_figure([check, check]).get_suptitle()
    with pytest.raises(ConfigError, match="two of x, y, z"):
        check_landscapes(model, problems, axes=("x", "yaw"))
