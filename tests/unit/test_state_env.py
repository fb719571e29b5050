"""Environments of one's own: what `StateEnv` does for them, names with a module, experts and play."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import gymnasium
import numpy as np
import pytest

from worldmodel.analysis.figures import cumulative_xy
from worldmodel.control.collect import CollectConfig, collect
from worldmodel.control.workers import parallel_map
from worldmodel.data.episodes import EpisodeDataset
from worldmodel.envs import StateEnv, Task, make_env, resolve_env_id, used_modules
from worldmodel.envs.scripted import Babble, expert, play
from worldmodel.envs.tabletop import MAX_STEP_M, TabletopEnv
from worldmodel.errors import ConfigError, SimulationError
from worldmodel.models import frozen_encoders
from worldmodel.models.encoders import Encoder
from worldmodel.models.frozen_encoders import ConvEncoderConfig, build_encoder, register_encoder
from worldmodel.models.module_configs import config_record, read_config
from worldmodel.testing import check_env


class Lift(StateEnv):
    """A platform that goes up and down, and its lamp; the lamp is state but no goal."""

    env_id, max_steps, success_radius_m = "own/Lift-v0", 12, 0.05
    privileged_names: ClassVar[tuple[str, ...]] = ("height", "lamp")
    action_dim, proprio_dim, max_step_m = 1, 1, 0.1

    def sample_states(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        return np.array([rng.uniform(0, 1), 0.0]), np.array([rng.uniform(0, 1), 1.0])

    def advance(self, state: np.ndarray, action: np.ndarray) -> np.ndarray:
        return np.array([np.clip(state[0] + self.max_step_m * action[0], 0, 1), state[1]])

    def draw(self, state: np.ndarray) -> np.ndarray:
        picture = np.full((self.image_size, self.image_size, 3), 40 + 100 * state[1])
        picture[int((1 - state[0]) * (self.image_size - 1)) :] = 200
        return picture.astype(np.uint8)

    def goal_position(self, state: np.ndarray) -> np.ndarray:
        return state[:1]


class Operated(Lift):
    """The lift with somebody who knows the way."""

    env_id = "own/Operated-v0"

    def expert_action(self) -> np.ndarray:
        return np.array([(self._current().goal[0] - self.get_state()[0]) / self.max_step_m], np.float32)


@pytest.fixture
def registered() -> Iterator[None]:
    for kind in (Lift, Operated):
        gymnasium.register(kind.env_id, kind)
    yield
    for kind in (Lift, Operated):
        gymnasium.registry.pop(kind.env_id)


def test_a_state_env_keeps_the_contract() -> None:
    check_env(Lift(image_size=16))


def test_goal_success_and_proprioception_are_of_the_named_entries() -> None:
    env = Lift(image_size=16)
    observation, info = env.reset(seed=3)
    task = env.sample_task(np.random.default_rng(5))
    assert observation["proprio"].shape == (1,)
    np.testing.assert_array_equal(task.goal, [task.goal_state[0], 0, 0])
    env.reset(options={"task": task})
    env.set_state(np.array([task.goal[0], 0.3]))
    assert env.goal_distance() == 0
    assert env.is_success()
    assert not info["contact"]
    black = Lift(image_size=8, render=False)
    assert not black.reset(seed=0)[0]["pixels"].any()


def test_a_state_env_refuses_what_does_not_fit() -> None:
    env = Lift(image_size=16)
    with pytest.raises(SimulationError, match="before reset"):
        env.goal_distance()
    env.reset(seed=0)
    for action in (np.zeros(2), np.array([np.nan])):
        with pytest.raises(ConfigError, match="action must be 1 finite numbers"):
            env.step(action.astype(np.float32))
    other = env.sample_task(np.random.default_rng(0))
    with pytest.raises(ConfigError, match="own/Other-v0"):
        env.reset(options={"task": Task(**{**vars(other), "env_id": "own/Other-v0"})})

    class Solved(Lift):
        def sample_states(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
            return np.zeros(2), np.zeros(2)

    with pytest.raises(SimulationError, match="no unsolved task"):
        Solved().sample_task(np.random.default_rng(0))


def test_play_is_smooth_bounded_and_only_the_stream_matters(registered: None) -> None:
    env = make_env("own/Lift-v0", image_size=8)
    assert isinstance(play("own/Lift-v0", np.random.default_rng(0)), Babble)
    tracks = []
    for _ in range(2):
        policy = play("own/Lift-v0", np.random.default_rng(1))
        tracks.append(np.stack([policy.act(env) for _ in range(400)]))
    np.testing.assert_array_equal(*tracks)
    track = tracks[0][:, 0]
    assert np.abs(track).max() <= 1
    assert np.corrcoef(track[1:], track[:-1])[0, 1] > 0.5
    assert track.std() > 0.3


def test_an_environment_brings_its_expert(registered: None, tmp_path: Path) -> None:
    config = CollectConfig(env="own/Operated-v0", episodes=6, out=str(tmp_path / "a.h5"), workers=1, image_size=8)
    config.expert_fraction = 1.0
    assert collect(config, progress=False).episodes == 6
    index = EpisodeDataset.open(config.out).index
    assert set(index.policy.tolist()) == {"expert"}
    assert index.success.mean() >= 0.5
    lift = CollectConfig(env="own/Lift-v0", episodes=2, out=str(tmp_path / "b.h5"), workers=1, image_size=8)
    with pytest.raises(ConfigError, match="expert_fraction must be 0"):
        collect(lift, progress=False)
    assert not (tmp_path / "b.h5").exists()
    lift.expert_fraction = 0.0
    assert collect(lift, progress=False).episodes == 2
    with pytest.raises(ConfigError, match="has no scripted expert"):
        expert("own/Lift-v0").act(make_env("own/Lift-v0", image_size=8))


def test_a_module_can_stand_before_the_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_lifts.py").write_text(
        "import gymnasium\ngymnasium.register('own/Later-v0', 'worldmodel.testing:PointMassEnv')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("worldmodel.envs._own_modules", [])
    try:
        assert resolve_env_id("own_lifts:own/Later-v0") == "own/Later-v0"
        assert "own_lifts" in used_modules()
        with pytest.raises(ConfigError, match="importing own_lifts did not register it"):
            resolve_env_id("own_lifts:own/Never-v0")
        assert list(parallel_map(resolve_env_id, ["own/Later-v0"] * 2, workers=2)) == ["own/Later-v0"] * 2
    finally:
        gymnasium.registry.pop("own/Later-v0", None)
        sys.modules.pop("own_lifts", None)
    with pytest.raises(ConfigError, match=r"cannot import 'nowhere'.*PYTHONPATH"):
        resolve_env_id("nowhere:own/Later-v0")
    with pytest.raises(ConfigError, match="one of your own as MODULE:ID"):
        resolve_env_id("own/Later-v0")


def test_drawn_plans_have_the_scale_of_the_environment() -> None:
    assert TabletopEnv.max_step_m == MAX_STEP_M
    path = cumulative_xy(np.array([[[1.0], [-0.5]]]), 1, Lift.max_step_m)
    np.testing.assert_allclose(path, [[[0, 0], [0.1, 0], [0.05, 0]]])


class Mean(Encoder):
    """The mean colour of a frame."""

    def __init__(self, config: ConvEncoderConfig) -> None:
        super().__init__()
        self.config, self.image_size, self.num_tokens, self.embed_dim = config, config.image_size, 1, 3

    def encode_frames(self, pixels):  # type: ignore[no-untyped-def]
        return pixels.float().mean(dim=(2, 3))[:, :, None]


def test_an_encoder_is_known_once_it_is_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    from worldmodel.errors import CheckpointError

    monkeypatch.setattr(frozen_encoders, "_builders", {})

    class MeanConfig(ConvEncoderConfig):
        """Settings of `Mean`."""

    with pytest.raises(CheckpointError, match="which checkpoints cannot rebuild"):
        config_record(Mean(MeanConfig(image_size=16)))
    with pytest.raises(ConfigError, match="must be a dataclass"):
        register_encoder(int, Mean)
    with pytest.raises(ConfigError, match="a ConvEncoderConfig already"):
        register_encoder(type("ConvEncoderConfig", (MeanConfig,), {}), Mean)
    try:
        register_encoder(MeanConfig, Mean)
        record = config_record(Mean(MeanConfig(image_size=16)))
        rebuilt = build_encoder(read_config({"configs": {"encoder": record}}, "encoder"))
        assert isinstance(rebuilt, Mean)
        assert rebuilt.image_size == 16
    finally:
        frozen_encoders.REGISTERED.pop("MeanConfig", None)
    with pytest.raises(CheckpointError, match="register an encoder of your own first"):
        read_config({"configs": {"encoder": record}}, "encoder")
