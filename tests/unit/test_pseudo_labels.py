"""Actions guessed from video: right where they can be told, blind to what must not be read, the same every time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from worldmodel.errors import ConfigError, DataError
from worldmodel.learning.features import FrameStore
from worldmodel.learning.pseudo_labels import (
    InverseSampler,
    PseudoLabelConfig,
    around,
    explained_variance,
    learn_inverse_dynamics,
    pseudo_labelled,
)

TOKENS, WIDTH, LENGTH = 4, 12, 25
LABELLED = np.arange(1, 40, 3)
UNLABELLED, HELD_OUT = np.setdiff1d(np.arange(40), LABELLED), np.arange(40, 50)
CONFIG = PseudoLabelConfig(steps=300, token_dim=8, hidden_dim=64, dropout=0.05, batch_size=64, lr=3e-3)
BOUNDS = ((-1.0, -1.0), (1.0, 1.0))


@pytest.fixture(scope="module")
def store() -> FrameStore:
    """A point pushed around in the plane; features are a fixed random non-linear map of where it is."""
    rng = np.random.default_rng(0)
    action = rng.uniform(-1, 1, (50, LENGTH, 2))
    action[:, -1] = 0
    position = 0.2 * (np.cumsum(action, axis=1) - action) + rng.normal(size=(50, 1, 2))
    flat = position.reshape(-1, 2)
    features = np.sin(flat @ (rng.normal(size=(2, TOKENS * WIDTH)) * 0.5) + rng.normal(size=TOKENS * WIDTH))
    return FrameStore(
        features=features.reshape(-1, TOKENS, WIDTH).astype(np.float16),
        action=action.reshape(-1, 2).astype(np.float32),
        proprio=(flat * 0.1 + 4).astype(np.float32),
        privileged=flat.astype(np.float32),
        privileged_names=("x", "y"),
        episode_start=np.arange(50) * LENGTH,
        episode_len=np.full(50, LENGTH),
    )


def guessed(store: FrameStore, episodes: NDArray[np.int64] = UNLABELLED, **changes: Any) -> FrameStore:
    arguments = {"seed": 0, "progress": False, "precision": "32-true"}
    model = learn_inverse_dynamics(CONFIG, store, LABELLED, **{**arguments, **changes})
    return pseudo_labelled(store, model, episodes, BOUNDS)


@pytest.fixture(scope="module")
def result(store: FrameStore) -> FrameStore:
    return guessed(store)


def test_few_labelled_episodes_tell_the_actions_of_the_others(store: FrameStore, result: FrameStore) -> None:
    acting = store.windows(UNLABELLED, 1)
    error = np.square(result.action[acting] - store.action[acting]).mean() / store.action[acting].var()
    assert error < 0.2
    assert explained_variance(store, store, HELD_OUT) == (1.0, 1.0)
    action_r2, proprio_r2 = explained_variance(store, guessed(store, HELD_OUT), HELD_OUT)
    assert action_r2 == pytest.approx(1 - error, abs=0.1)
    assert proprio_r2 > 0.9
    sensed = result.proprio[store.frames_of(UNLABELLED)]
    assert np.corrcoef(sensed[:, 0], store.proprio[store.frames_of(UNLABELLED)][:, 0])[0, 1] > 0.95


def test_true_labels_stay_and_guesses_are_actions(store: FrameStore, result: FrameStore) -> None:
    for episodes in (LABELLED, HELD_OUT):
        frames = store.frames_of(episodes)
        assert np.array_equal(result.action[frames], store.action[frames])
        assert np.array_equal(result.proprio[frames], store.proprio[frames])
    guesses = result.action[store.frames_of(UNLABELLED)]
    assert np.abs(guesses).max() <= 1
    assert not result.action[UNLABELLED * LENGTH + LENGTH - 1].any()  # nothing follows the last frame
    assert not np.array_equal(guesses, store.action[store.frames_of(UNLABELLED)])


def test_what_is_not_labelled_is_not_read(store: FrameStore, result: FrameStore) -> None:
    action, proprio = store.action.copy(), store.proprio.copy()
    action[store.frames_of(UNLABELLED)] = np.nan
    proprio[store.frames_of(UNLABELLED)] = np.nan
    blind = guessed(replace(store, action=action, proprio=proprio))
    assert np.array_equal(blind.action, result.action)
    assert np.array_equal(blind.proprio, result.proprio)


def test_an_interrupted_training_gives_the_same_guesses(store: FrameStore, result: FrameStore, tmp_path: Path) -> None:
    first = guessed(store, run_dir=tmp_path)
    again = guessed(store, run_dir=tmp_path)  # finished: nothing left to do
    for found in (first, again):
        assert np.array_equal(found.action, result.action)
    assert not np.array_equal(guessed(store, seed=1).action, result.action)


def test_frames_around_stay_in_their_episode(store: FrameStore) -> None:
    frames = np.array([0, 1, LENGTH - 2, LENGTH, 3 * LENGTH - 1])
    found = around(store, frames, (-1, 0, 1, 2))
    assert found.tolist() == [
        [0, 0, 1, 2],
        [0, 1, 2, 3],
        [LENGTH - 3, LENGTH - 2, LENGTH - 1, LENGTH - 1],
        [LENGTH, LENGTH, LENGTH + 1, LENGTH + 2],
        [3 * LENGTH - 2, 3 * LENGTH - 1, 3 * LENGTH - 1, 3 * LENGTH - 1],
    ]


def test_a_sampler_goes_on_where_it_was(store: FrameStore) -> None:
    def sampler() -> InverseSampler:
        return InverseSampler(store, LABELLED, offsets=(0, 1), batch_size=8, seed=3)

    one, other = sampler(), sampler()
    one.next_batch()
    other.load_state_dict(one.state_dict())
    assert one.next_batch().action.equal(other.next_batch().action)
    assert one.next_batch().features.shape == (8, 2, TOKENS, WIDTH)
    with pytest.raises(DataError, match="no action to learn from"):
        InverseSampler(store, np.empty(0, np.int64), offsets=(0, 1), batch_size=8, seed=3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": -1}, "steps must be >= 0"),
        ({"offsets": (0, 2)}, "must hold 0 and 1"),
        ({"hidden_dim": 0}, "hidden_dim must be >= 1"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\)"),
    ],
)
def test_bad_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PseudoLabelConfig(**changes)
