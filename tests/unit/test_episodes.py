from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from numpy.typing import NDArray

from worldmodel.data.distractor import DistractorConfig
from worldmodel.envs import make_env
from worldmodel.envs.base import GoalEnv
from worldmodel.errors import ConfigError, DataError
from worldmodel.evaluation.episodes import (
    Block,
    EpisodeResult,
    EpisodeRun,
    agent_seed,
    make_blocks,
    run_block,
    run_episodes,
)
from worldmodel.evaluation.manifest import Manifest, build_manifest
from worldmodel.evaluation.runlog import EPISODES, RESULT, TABLE, RunLog, describe
from worldmodel.evaluation.runs import Schedule, run_manifest, so_far
from worldmodel.types import Goal


class SeekingAgent:
    """Moves the gripper straight to the true goal for `until` steps, then away from it."""

    def __init__(self, until: int) -> None:
        self.needs_state = True
        self.replan_s_per_problem: list[float] = []
        self.seen: list[dict[str, Any]] = []
        self.seeds: Sequence[int] = ()
        self.goals: Sequence[Goal] = ()
        self._until = until
        self._goals: list[NDArray[np.float64]] = []

    def reset(self, goals: Sequence[Goal], *, seeds: Sequence[int], rows: Sequence[int] | None = None) -> None:
        self.seeds, self.seen, self.goals = tuple(seeds), [], tuple(goals)
        self._goals = []
        for goal in goals:
            assert goal.state is not None
            self._goals.append(goal.state)

    def act(self, obs: dict[str, Any]) -> NDArray[np.float32]:
        self.seen.append(obs)
        self.replan_s_per_problem.append(0.25)
        sign = 1 if len(self.seen) <= self._until else -1
        offsets = np.stack(self._goals) - obs["proprio"][:, :3]
        moves = np.clip(sign * offsets / 0.03, -1, 1)
        return np.concatenate([moves, np.zeros((len(moves), 1))], axis=1).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class SeekingAgents:
    until: int
    image_size: int = 64
    needs_pixels: bool = False

    def identity(self) -> dict[str, Any]:
        return describe(self)

    def build(self) -> SeekingAgent:
        assert torch.get_num_threads() == 1
        return SeekingAgent(self.until)


@pytest.fixture(name="manifest", scope="module")
def _manifest() -> Manifest:
    env = make_env("reach", render=False)
    manifest = build_manifest(env, episodes=5)
    env.close()
    return manifest


@pytest.fixture(name="envs")
def _envs() -> Iterator[list[GoalEnv]]:
    envs = [make_env("reach", render=False) for _ in range(2)]
    yield envs
    for env in envs:
        env.close()


def _block(manifest: Manifest, episodes: Sequence[int]) -> Block:
    tasks = tuple(manifest.tasks[i] for i in episodes)
    return Block(
        env="reach", image_size=64, episodes=tuple(episodes), tasks=tasks, seeds=tuple(10 + i for i in episodes)
    )


def test_success_held_and_ever_are_told_apart(manifest: Manifest, envs: list[GoalEnv]) -> None:
    stays = run_block(_block(manifest, [0, 1]), SeekingAgent(until=60), envs)
    leaves = run_block(_block(manifest, [0, 1]), SeekingAgent(until=30), envs)
    flees = run_block(_block(manifest, [0, 1]), SeekingAgent(until=0), envs)
    assert [(r.result.held, r.result.ever) for r in stays] == [(True, True)] * 2
    assert [(r.result.held, r.result.ever) for r in leaves] == [(False, True)] * 2
    assert [(r.result.held, r.result.ever) for r in flees] == [(False, False)] * 2
    for stay, leave in zip(stays, leaves, strict=True):
        assert 0 < (stay.result.steps_to_success or 0) == leave.result.steps_to_success <= 30
        assert stay.result.final_distance_m <= 0.03 < leave.result.final_distance_m
        assert leave.result.min_distance_m <= 0.03 < leave.result.start_distance_m
    assert flees[0].result.steps_to_success is None
    for run in (*stays, *leaves, *flees):
        row = run.result
        assert row.success is not None
        assert len(row.success) == row.steps + 1
        assert (row.success[-1] == "1", "1" in row.success) == (row.held, row.ever)
        assert row.success.find("1") == (-1 if row.steps_to_success is None else row.steps_to_success)
    assert {run.result.steps for run in stays + leaves + flees} == {60}, "episodes always run their full length"


def test_agents_get_stacked_observations_their_seeds_and_states_only_when_needed(
    manifest: Manifest, envs: list[GoalEnv]
) -> None:
    agent = SeekingAgent(until=60)
    seen: list[tuple[int, int]] = []
    run_block(_block(manifest, [3, 1]), agent, envs, lambda step, obs, infos: seen.append((step, len(infos))))
    assert agent.seeds == (13, 11)
    first = agent.seen[0]
    assert first["pixels"].shape == (2, 64, 64, 3)
    assert first["proprio"].shape == (2, 4)
    np.testing.assert_array_equal(first["state"][0], manifest.tasks[3].start)
    assert seen == [(step, 2) for step in range(61)]
    agent.needs_state = False
    run_block(_block(manifest, [3, 1]), agent, envs)
    assert "state" not in agent.seen[0]


def test_a_distractor_lies_over_what_the_agent_sees_and_nothing_else(manifest: Manifest, envs: list[GoalEnv]) -> None:
    flicker = DistractorConfig(kind="flicker")
    rendered = [make_env("reach") for _ in range(2)]
    agents, runs = [SeekingAgent(until=60) for _ in range(3)], []
    blocks = [_block(manifest, [0, 1]), *(replace(_block(manifest, [0, 1]), distractor=flicker) for _ in range(2))]
    for agent, block in zip(agents, blocks, strict=True):
        runs.append([run.result for run in run_block(block, agent, rendered)])
    for env in rendered:
        env.close()
    plain, seen, again = ([obs["pixels"] for obs in agent.seen] for agent in agents)
    np.testing.assert_array_equal(seen, again)
    changed = np.array(seen) != np.array(plain)  # (steps, B, Y, X, 3)
    assert changed.any(axis=(2, 3, 4)).all(), "every frame of every episode"
    assert 0.15 < changed.any(axis=-1).mean() < 0.25, "a patch of .4 x .6"
    first, second = np.array(seen)[:2, 0]
    assert (first != second)[: round(0.4 * 64)].any(axis=-1).mean() > 0.5, "which flickers"
    goals = [np.stack([goal.pixels for goal in agent.goals]) for agent in agents]
    assert (goals[0] != goals[1]).any(axis=(1, 2, 3)).all()
    assert not np.array_equal(goals[1][0, :26], seen[0][0, :26]), "a goal picture has noise of its own"
    assert runs[0] == runs[1], "who looks at the state alone is not distracted"


def test_replan_seconds_of_this_block_are_kept(manifest: Manifest, envs: list[GoalEnv]) -> None:
    agent = SeekingAgent(until=60)
    run_block(_block(manifest, [0, 1]), agent, envs)
    (run, _) = run_block(_block(manifest, [0, 1]), agent, envs)
    assert run.replan_s == (0.25,) * 60, "earlier blocks do not count"
    assert run.result.replans == 60


def test_a_solved_start_counts_at_step_zero(manifest: Manifest, envs: list[GoalEnv]) -> None:
    task = manifest.tasks[0]
    solved = Block(
        env="reach",
        image_size=64,
        episodes=(0,),
        tasks=(type(task)(env_id=task.env_id, start=task.goal_state, goal=task.goal, goal_state=task.goal_state),),
        seeds=(0,),
    )
    (run,) = run_block(solved, SeekingAgent(until=60), envs[:1])
    assert (run.result.ever, run.result.steps_to_success, run.result.held) == (True, 0, True)


def test_blocks_cover_every_episode_once_and_keep_workers_busy(manifest: Manifest) -> None:
    tasks = [(i, manifest.tasks[i], i) for i in range(5)]
    sizes = {
        (batch, workers): [len(b.episodes) for b in make_blocks("reach", 64, tasks, batch=batch, workers=workers)]
        for batch, workers in [(10, 1), (2, 1), (10, 2), (1, 4)]
    }
    assert sizes == {(10, 1): [5], (2, 1): [2, 2, 1], (10, 2): [3, 2], (1, 4): [1] * 5}
    blocks = make_blocks("reach", 64, tasks, batch=2, workers=2)
    assert [i for block in blocks for i in block.episodes] == list(range(5))
    assert make_blocks("reach", 64, [], batch=2, workers=2) == []
    with pytest.raises(ConfigError, match="batch=0"):
        make_blocks("reach", 64, tasks, batch=0, workers=1)
    with pytest.raises(ConfigError, match="as many tasks"):
        Block(env="reach", image_size=64, episodes=(0, 1), tasks=tuple(manifest.tasks[:1]), seeds=(0, 1))
    with pytest.raises(ConfigError, match="as many environments"):
        run_block(blocks[0], SeekingAgent(until=1), [])
    with pytest.raises(ConfigError, match="workers"):
        next(run_episodes(blocks, SeekingAgents(until=1), workers=0))


def test_outcomes_do_not_depend_on_the_batch(manifest: Manifest) -> None:
    results = []
    for batch in (1, 2, 5):
        runs = run_manifest(manifest, SeekingAgents(until=40), Schedule(episodes=5, batch=batch), progress=False)
        results.append([run.result for run in runs])
    assert results[0] == results[1] == results[2]
    assert [row.episode for row in results[0]] == list(range(5))
    with pytest.raises(ConfigError, match=r"\[1, 5\], got 6"):
        run_manifest(manifest, SeekingAgents(until=40), Schedule(episodes=6), progress=False)


def test_agent_seeds_depend_on_task_and_run() -> None:
    assert len({agent_seed(task, run) for task in range(10) for run in range(10)}) == 100
    assert agent_seed(3, 4) == agent_seed(3, 4)


def test_an_interrupted_run_continues_without_repeating(tmp_path: Path, manifest: Manifest) -> None:
    identity = {"agent": describe(SeekingAgents(until=40))}
    schedule = Schedule(episodes=4, batch=1)
    whole = run_manifest(manifest, SeekingAgents(until=40), schedule, progress=False)
    log = RunLog(tmp_path, identity)
    log.append(whole[:1])
    log.append(whole[2:3])
    path = tmp_path / EPISODES
    lines = path.read_bytes()
    path.write_bytes(lines + b'{"episode": 3, "held": tr')  # killed while writing

    reopened = RunLog(tmp_path, identity)
    assert sorted(reopened.finished) == [0, 2]
    assert path.read_bytes() == lines
    runs = run_manifest(manifest, SeekingAgents(until=40), schedule, log=reopened, progress=False)
    assert [run.result for run in runs] == [run.result for run in whole]
    again = RunLog(tmp_path, identity)
    assert sorted(again.finished) == [0, 1, 2, 3]
    assert path.read_text().count("\n") == 4


def test_rows_from_before_success_at_every_step_was_kept_still_load(tmp_path: Path, manifest: Manifest) -> None:
    (run,) = run_manifest(manifest, SeekingAgents(until=40), Schedule(episodes=1), progress=False)
    row = run.result.to_dict()
    assert EpisodeResult.from_dict(row) == run.result
    del row["success"]
    assert EpisodeResult.from_dict(row) == replace(run.result, success=None)
    RunLog(tmp_path, {})
    (tmp_path / EPISODES).write_text(json.dumps({**row, "replan_s": [0.5]}) + "\n")
    assert RunLog(tmp_path, {}).finished[0] == replace(run, result=replace(run.result, success=None), replan_s=(0.5,))
    del row["held"]
    with pytest.raises(DataError, match="lacks \\['held'\\]"):
        EpisodeResult.from_dict(row)


def test_model_calls_survive_the_log(tmp_path: Path, manifest: Manifest) -> None:
    (run,) = run_manifest(manifest, SeekingAgents(until=40), Schedule(episodes=1), progress=False)
    assert run.model_calls == 0, "this agent asks no cost function"
    RunLog(tmp_path, {}).append([replace(run, model_calls=1200)])
    assert RunLog(tmp_path, {}).finished[0].model_calls == 1200


def test_the_table_of_episodes_is_read_by_pandas(tmp_path: Path, manifest: Manifest) -> None:
    first, second = run_manifest(manifest, SeekingAgents(until=40), Schedule(episodes=2), progress=False)
    second = replace(second, result=replace(second.result, steps_to_success=None, success=None), replan_s=())
    RunLog(tmp_path, {}).finish({"env": "reach"}, [replace(first, model_calls=7), second])
    table = pandas.read_csv(tmp_path / TABLE)
    assert list(table.columns) == [*first.result.to_dict(), "replan_p50_s", "replan_p95_s", "model_calls"]
    assert table["held"].dtype == bool
    distances = [first.result.final_distance_m, second.result.final_distance_m]
    assert table["final_distance_m"].tolist() == pytest.approx(distances, abs=1e-12)
    assert table["success"][0].replace(" ", "") == first.result.success
    assert table["replan_p50_s"][0] == 0.25
    assert table["model_calls"].tolist() == [7, 0]
    empty = table.loc[1, ["steps_to_success", "success", "replan_p50_s", "replan_p95_s"]]
    assert empty.isna().all()
    assert json.loads((tmp_path / RESULT).read_text()) == {"env": "reach"}


def test_a_run_folder_belongs_to_one_run(tmp_path: Path) -> None:
    RunLog(tmp_path / "a", {"seed": 0, "agent": {"planner": {"num_samples": 64}}})
    with pytest.raises(ConfigError, match=r"agent\.planner\.num_samples 64 there, 65 now"):
        RunLog(tmp_path / "a", {"seed": 0, "agent": {"planner": {"num_samples": 65}}})
    (tmp_path / "a" / "evaluation.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        RunLog(tmp_path / "a", {})
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / EPISODES).write_text("{}\n")
    with pytest.raises(ConfigError, match="not one run"):
        RunLog(tmp_path / "b", {})
    RunLog(tmp_path / "c", {})
    (tmp_path / "c" / EPISODES).write_text('{"episode": 1}\n')
    with pytest.raises(DataError, match="line 1"):
        RunLog(tmp_path / "c", {})


def test_schedule_and_descriptions_refuse_nonsense() -> None:
    with pytest.raises(ConfigError, match="episodes must be >= 1, got -1"):
        Schedule(episodes=-1)
    with pytest.raises(ConfigError, match="seed must be >= 0"):
        Schedule(episodes=1, seed=-1)
    with pytest.raises(ConfigError, match="cannot be written"):
        describe({"rng": np.random.default_rng(0)})
    assert describe(SeekingAgents(until=3)) == {
        "type": "SeekingAgents",
        "until": 3,
        "image_size": 64,
        "needs_pixels": False,
    }


def test_progress_says_success_so_far_with_its_interval() -> None:
    def run(held: bool) -> EpisodeRun:
        result = EpisodeResult(
            episode=0,
            held=held,
            ever=held,
            steps_to_success=None,
            start_distance_m=1.0,
            final_distance_m=1.0,
            min_distance_m=1.0,
            steps=60,
            replans=0,
        )
        return EpisodeRun(result=result, replan_s=())

    assert so_far([]) == ""
    assert so_far([run(True)] * 8 + [run(False)] * 2) == "held 80 % [49, 94]"
