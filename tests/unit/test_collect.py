from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from worldmodel.control import collect as module
from worldmodel.control.collect import (
    CollectConfig,
    collect,
    episode_seed,
    record_block,
    record_episode,
    remembered_interrupt,
    spec_of,
)
from worldmodel.control.noisy import MAX_NOISE_STD, Noisy
from worldmodel.control.planned import Planned
from worldmodel.data.episodes import EpisodeDataset
from worldmodel.envs import make_env
from worldmodel.envs.base import GoalEnv
from worldmodel.envs.scripted import expert
from worldmodel.errors import ConfigError, DataError, SimulationError
from worldmodel.testing import PointMassEnv, PointMassModel

Config = Callable[..., CollectConfig]


@pytest.fixture(autouse=True)
def _no_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Black pictures, because OpenGL contexts are slow to make; tests that look at them ask for `pictures`."""
    if "pictures" not in request.fixturenames:
        monkeypatch.setattr(module, "make_env", partial(make_env, render=False))


@pytest.fixture
def pictures() -> None:
    """Ask for rendered pictures."""


@pytest.fixture
def config(tmp_path: Path) -> Config:
    def make(**changes: object) -> CollectConfig:
        settings: dict[str, object] = {
            "env": "push",
            "episodes": 4,
            "out": str(tmp_path / "a.h5"),
            "workers": 1,
            "image_size": 16,
            "steps": 3,
            "episodes_per_block": 2,
        }
        return CollectConfig(**{**settings, **changes})  # type: ignore[arg-type]

    return make


def test_report_and_file(config: Config, pictures: None) -> None:
    report = collect(config())
    dataset = EpisodeDataset.open(report.path)
    dataset.verify()
    assert (report.episodes, report.frames, report.total_episodes) == (4, 16, 4)
    assert (len(dataset), dataset.num_frames) == (4, 16)
    assert report.frames_per_s == pytest.approx(report.frames / report.seconds)
    assert report.content_hash == dataset.content_hash
    assert dataset.index.seed.tolist() == [episode_seed(0, i) for i in range(4)]
    assert dataset.pixels.std() > 10
    assert dataset.spec.control_dt_s == pytest.approx(0.1)
    assert dataset.spec.proprio_names == ("gripper_x", "gripper_y", "gripper_z", "opening")


def test_blocks_and_interruptions_leave_no_trace_in_the_content(config: Config, tmp_path: Path) -> None:
    whole = collect(config(episodes=5)).content_hash
    part = config(episodes=3, out=str(tmp_path / "b.h5"), episodes_per_block=1)
    collect(part)
    part.episodes, part.append = 5, True
    report = collect(part)
    assert report.episodes == 2
    assert report.content_hash == whole


def test_seed_changes_the_content(config: Config, tmp_path: Path) -> None:
    a, b = collect(config()), collect(config(seed=1, out=str(tmp_path / "b.h5")))
    assert a.content_hash != b.content_hash


def test_append_is_done_when_the_episodes_are_there(config: Config) -> None:
    first = collect(config())
    again = collect(config(append=True))
    assert (again.episodes, again.frames, again.frames_per_s) == (0, 0, 0.0)
    assert again.content_hash == first.content_hash


def test_a_file_that_is_complete_is_not_written_to(config: Config) -> None:
    """Others may be training on it."""
    collect(config())
    with h5py.File(config().out, "r"):
        with pytest.raises(DataError):  # the file is locked against writing
            collect(config(episodes=5, append=True))
        assert collect(config(append=True)).episodes == 0


def test_two_environments_in_one_file(config: Config) -> None:
    collect(config())
    report = collect(config(env="reach", episodes=3, append=True))
    dataset = EpisodeDataset.open(report.path)
    assert (report.episodes, report.total_episodes) == (3, 7)
    assert dataset.index.env_id.tolist() == ["worldmodel/Push-v0"] * 4 + ["worldmodel/Reach-v0"] * 3
    assert len(set(dataset.index.seed.tolist())) == 7


def test_append_refuses_another_image_size(config: Config) -> None:
    before = collect(config()).content_hash
    with pytest.raises(DataError, match="image_size: 16 against 24"):
        collect(config(image_size=24, append=True))
    assert EpisodeDataset.open(config().out).content_hash == before


def test_existing_file_is_refused(config: Config) -> None:
    collect(config())
    with pytest.raises(DataError, match="append=true"):
        collect(config())


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SimulationError("diverged")])
def test_what_was_recorded_survives_an_interruption(
    config: Config, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail_on_third(settings: CollectConfig, first: int, last: int) -> object:
        if first == 4:
            raise error
        return record_block(settings, first, last)

    monkeypatch.setattr(module, "record_block", fail_on_third)
    with pytest.raises(type(error)):
        collect(config(episodes=8))
    dataset = EpisodeDataset.open(config().out)
    dataset.verify()
    assert len(dataset) == 4


@pytest.mark.parametrize(("fraction", "labels"), [(0.0, {"play"}), (1.0, {"expert"}), (0.5, {"play", "expert"})])
def test_expert_fraction(config: Config, fraction: float, labels: set[str]) -> None:
    episodes = record_block(config(expert_fraction=fraction, steps=1), 0, 12)
    assert {episode.policy for episode in episodes} == labels


def test_a_stored_seed_starts_the_same_episode_again(config: Config, pictures: None) -> None:
    (episode,) = record_block(config(), 3, 4)
    env = make_env("push", image_size=16)
    observation, _ = env.reset(seed=episode.seed)
    np.testing.assert_array_equal(observation["pixels"], episode.pixels[0])
    for t, action in enumerate(episode.action):
        observation, *_ = env.step(action)
        np.testing.assert_array_equal(observation["pixels"], episode.pixels[t + 1])
        np.testing.assert_array_equal(observation["proprio"], episode.proprio[t + 1])
    env.close()


def test_seeds_do_not_collide() -> None:
    seeds = {episode_seed(seed, episode) for seed in range(20) for episode in range(200)}
    assert len(seeds) == 4000
    assert min(seeds) >= 0
    assert max(seeds) < 2**63


def test_expert_episodes_differ_in_noise_and_stay_in_bounds(config: Config) -> None:
    episodes = record_block(config(env="reach", expert_fraction=1.0, steps=8), 0, 4)
    actions = np.stack([episode.action for episode in episodes])
    assert np.abs(actions).max() <= 1.0
    assert len({tuple(a[0]) for a in actions}) == 4


class Still:
    def act(self, env: GoalEnv) -> NDArray[np.float32]:
        return np.zeros(4, np.float32)


def test_noise_is_correlated_and_of_the_drawn_size() -> None:
    env = make_env("reach", render=False)
    tracks = []
    for seed in range(60):
        policy = Noisy(Still(), np.random.default_rng(seed))
        tracks.append(np.stack([policy.act(env) for _ in range(50)]))
    noise = np.stack(tracks)
    assert noise.std() == pytest.approx(MAX_NOISE_STD / np.sqrt(3), rel=0.15)  # mean square of U(0, m) is m^2 / 3
    assert np.corrcoef(noise[:, 1:].ravel(), noise[:, :-1].ravel())[0, 1] > 0.6
    assert np.std(noise.std(axis=(1, 2))) > 0.05
    env.close()


class TooMuch:
    def act(self, env: GoalEnv) -> NDArray[np.float32]:
        return np.array([9.0, -9.0, 0.5, 0.0], np.float32)


def test_actions_are_recorded_as_they_were_taken() -> None:
    env = make_env("reach", image_size=16, render=False)
    episode = record_episode(env, TooMuch(), seed=1, steps=2, label="x", env_id="worldmodel/Reach-v0")
    np.testing.assert_array_equal(episode.action, np.array([[1, -1, 0.5, 0]] * 2, np.float32))
    assert episode.pixels.shape == (3, 16, 16, 3)
    env.close()


def test_success_is_that_of_the_last_frame() -> None:
    env = make_env("reach", image_size=16, render=False)
    kept = record_episode(env, expert("reach"), seed=2, steps=env.max_steps, label="expert", env_id="r")
    short = record_episode(env, expert("reach"), seed=2, steps=1, label="expert", env_id="r")
    assert kept.success
    assert not short.success
    env.close()


def test_entries_that_equal_nothing_are_numbered(monkeypatch: pytest.MonkeyPatch) -> None:
    env = make_env("reach", image_size=16, render=False)
    monkeypatch.setattr(env, "privileged", lambda: np.full(8, 7.0))
    assert spec_of(env, "r", 16).proprio_names == ("proprio_0", "proprio_1", "proprio_2", "proprio_3")
    env.close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"env": "psuh"}, "did you mean 'push'"),
        ({"episodes": 0}, "episodes must be >= 1, got 0"),
        ({"episodes": -5}, "episodes must be >= 1, got -5"),
        ({"workers": 0}, "workers must be >= 1"),
        ({"episodes_per_block": 0}, "episodes_per_block must be >= 1"),
        ({"seed": -1}, "seed must be >= 0"),
        ({"expert_fraction": 1.5}, r"expert_fraction must be in \[0, 1\], got 1\.5"),
        ({"expert_fraction": float("nan")}, "expert_fraction"),
        ({"steps": 0}, "steps must be >= 1"),
        ({"steps": 61}, "steps must be <= 60"),
        ({"image_size": 4}, "image_size"),
    ],
)
def test_bad_settings_leave_no_file(config: Config, change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        collect(config(**change))
    assert not Path(config().out).exists()


def test_no_bar_without_a_terminal(config: Config, capfd: pytest.CaptureFixture[str]) -> None:
    collect(config(episodes=1))
    assert capfd.readouterr() == ("", "")


@pytest.fixture
def minds_ctrl_c() -> Iterator[None]:
    """A background job of a shell starts with Ctrl-C ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_that_was_swallowed_is_raised_again(minds_ctrl_c: None) -> None:
    with remembered_interrupt() as check:
        check()
        with pytest.raises(KeyboardInterrupt):  # as a destructor would, and drop it
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            check()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_recording_whose_shell_ignores_ctrl_c_goes_on(minds_ctrl_c: None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with remembered_interrupt() as check:
        signal.raise_signal(signal.SIGINT)
        check()  # does not raise
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_a_planned_policy_acts_toward_the_goal_it_is_shown() -> None:
    """With the exact model of a point mass the recording ends at the goal."""
    env = PointMassEnv()
    episode = record_episode(
        env, Planned(PointMassModel(), seed=0), seed=3, steps=env.max_steps, label="planned", env_id="p"
    )
    assert episode.success
    env.close()
