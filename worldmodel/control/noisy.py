"""Action noise of recordings, around any policy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from worldmodel.envs.base import GoalEnv
from worldmodel.envs.scripted import Policy

MAX_NOISE_STD = 0.5
"""Episodes with noise draw its standard deviation from [0, MAX_NOISE_STD], share of half the action range."""
_NOISE_MEMORY = 0.7  # AR(1) coefficient: about three control steps, so that noise moves the arm instead of jittering it


@runtime_checkable
class Watching(Policy, Protocol):
    """A policy that acts on observations, as a trained one must."""

    def see(self, observation: Mapping[str, NDArray[Any]]) -> None:
        """Take the observation that the next action answers."""


class Noisy:
    """A policy with correlated action noise and, per episode, its own noise level.

    Noise makes it visit states around its path and press against the object off-centre, which a dynamics model has to
    know about.

    Args:
        policy: What acts.
        rng: Stream of this episode.
    """

    def __init__(self, policy: Policy, rng: np.random.Generator) -> None:
        self._policy = policy
        self._rng = rng
        self._std = rng.uniform(0.0, MAX_NOISE_STD)
        self._noise: NDArray[np.float64] | None = None

    def see(self, observation: Mapping[str, NDArray[Any]]) -> None:
        """See `Watching`; policies that know the state do not look."""
        if isinstance(self._policy, Watching):
            self._policy.see(observation)

    def act(self, env: GoalEnv) -> NDArray[np.float32]:
        """Action (A_env,) for the current state."""
        action = self._policy.act(env)
        fresh = self._rng.normal(0.0, self._std, action.shape)
        old = fresh if self._noise is None else self._noise
        self._noise = _NOISE_MEMORY * old + np.sqrt(1 - _NOISE_MEMORY**2) * fresh
        return np.asarray(action + self._noise, np.float32)
