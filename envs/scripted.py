"""Scripted behaviour: experts that solve the tasks from true state, and exploratory play for recording data.

Those of the tabletop are written here. Any other environment brings its expert along (`GoalEnv.expert_action`), and is
played with by `Babble`. They read the simulator's state, so they may collect demonstrations and prove that tasks are
solvable; they are no baseline for agents that see pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from worldmodel.envs import resolve_env_id
from worldmodel.envs.base import Array, GoalEnv
from worldmodel.envs.push import CONTACT_GAP_M, PUSH_HEIGHT_M
from worldmodel.envs.tabletop import (
    MAX_OPENING_M,
    MAX_STEP_M,
    OBJECT_HALF_M,
    WORKSPACE_HIGH,
    WORKSPACE_LOW,
    TabletopEnv,
)
from worldmodel.errors import ConfigError

Action = NDArray[np.float32]

TRAVEL_HEIGHT_M = 0.105
"""Gripper height at which the fingers pass above the block, metres."""
_TOLERANCE_M = 0.012
_BLOCK_PLAY = {"wander": 0.5, "push": 0.2, "free": 0.1, "noise": 0.2}
_FREE_PLAY = {"wander": 0.2, "push": 0.1, "free": 0.5, "noise": 0.2}


class Policy(Protocol):
    """Chooses actions from the true state of an environment."""

    def act(self, env: GoalEnv) -> Action:
        """Next action (A,) in [-1, 1]."""
        ...


def expert(env_name: str, *, noise_std: float = 0.0, rng: np.random.Generator | None = None) -> Policy:
    """Expert of an environment.

    Args:
        env_name: Short name, id, or "module:id"; environments of one's own act by `GoalEnv.expert_action`.
        noise_std: Standard deviation of Gaussian noise added to its actions (in action units), 0 for none.
        rng: Stream of that noise; required when `noise_std` > 0.

    Raises:
        ConfigError: Unknown environment, or noise was asked for without a stream.
    """
    policy = _EXPERTS.get(resolve_env_id(env_name), OwnExpert)()
    if noise_std == 0.0:
        return policy
    if rng is None:
        raise ConfigError("noise_std > 0 needs an rng")
    return Noisy(policy, noise_std, rng)


def play(env_name: str, rng: np.random.Generator) -> Policy:
    """Exploratory play: wandering near the block, pushes to random places, free moves, correlated noise.

    Where goals lie anywhere in the workspace (Reach), half of the time goes into free moves through all of it. What is
    not on the tabletop gets correlated noise of every strength (`Babble`).

    Raises:
        ConfigError: Unknown environment.
    """
    policy = expert(env_name)
    if isinstance(policy, OwnExpert):
        return Babble(rng)
    return Play(rng, shares=_FREE_PLAY if isinstance(policy, ReachExpert) else _BLOCK_PLAY)


class ReachExpert:
    """Straight line to the goal."""

    def act(self, env: GoalEnv) -> Action:
        """See `Policy`."""
        table = _tabletop(env)
        return move_towards(table, table.goal_position())


class PushExpert:
    """Goes behind the block (over it if it is in the way), then pushes along the line to the goal."""

    def act(self, env: GoalEnv) -> Action:
        """See `Policy`."""
        table = _tabletop(env)
        return push_towards(table, table.goal_position()[:2])


_EXPERTS: dict[str, Callable[[], Policy]] = {"worldmodel/Reach-v0": ReachExpert, "worldmodel/Push-v0": PushExpert}


class OwnExpert:
    """The expert that an environment brings along."""

    def act(self, env: GoalEnv) -> Action:
        """See `Policy`.

        Raises:
            ConfigError: The environment has none.
        """
        action = env.expert_action()
        if action is None:
            raise ConfigError(f"{type(env).__name__} has no scripted expert: define expert_action, or play only")
        return np.clip(np.asarray(action, dtype=np.float32), -1.0, 1.0)


class Babble:
    """Smooth random actions for any environment: correlated noise whose strength changes every 5 to 15 steps.

    Args:
        rng: Stream of every choice.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._left = 0
        self._strength = 1.0
        self._noise: Array | None = None

    def act(self, env: GoalEnv) -> Action:
        """See `Policy`."""
        if self._left == 0:
            self._left = int(self._rng.integers(5, 16))
            self._strength = float(self._rng.uniform(0.1, 1.5))
        self._left -= 1
        fresh = self._rng.normal(0.0, 1.0, env.action_space.shape)
        self._noise = fresh if self._noise is None else 0.8 * self._noise + 0.6 * fresh
        return np.clip(self._strength * self._noise, -1.0, 1.0).astype(np.float32)


class Noisy:
    """Adds Gaussian noise to another policy."""

    def __init__(self, policy: Policy, std: float, rng: np.random.Generator) -> None:
        self._policy = policy
        self._std = std
        self._rng = rng

    def act(self, env: GoalEnv) -> Action:
        """See `Policy`."""
        action = self._policy.act(env)
        noise = self._rng.normal(0.0, self._std, action.shape)
        if isinstance(env, TabletopEnv):
            noise[3] = 0.0
        return np.clip(action + noise, -1.0, 1.0).astype(np.float32)


class Play:
    """Switches between short random behaviours, each with smooth noise on top.

    "wander" stays near the block without aiming at it: near misses are what teaches a predictor that a block moves
    only when it is touched. Play that always pushes teaches it that blocks follow the gripper. "free" goes anywhere in
    the workspace at every speed, down to the small corrections that holding a place needs.

    Args:
        rng: Stream of every choice.
        shares: Probability of each kind of behaviour: "wander", "push", "free" and "noise".
    """

    def __init__(self, rng: np.random.Generator, shares: Mapping[str, float]) -> None:
        self._rng = rng
        self._shares = dict(shares)
        self._left = 0
        self._kind = "free"
        self._target = np.zeros(3)
        self._noise = np.zeros(4)
        self._opening = 0.0
        self._speed = 1.0
        self._jitter = 0.35

    def act(self, env: GoalEnv) -> Action:
        """See `Policy`."""
        table = _tabletop(env)
        if self._left == 0:
            self._choose(table)
        self._left -= 1
        self._noise = 0.75 * self._noise + 0.66 * self._rng.normal(0.0, 1.0, 4)
        if self._kind == "push":
            action = push_towards(table, self._target[:2]) + 0.25 * self._noise
        elif self._kind == "noise":
            action = self._noise.copy()
            # Gently towards pushing height, where contacts happen.
            action[2] = 0.5 * self._noise[2] - 8.0 * (table.gripper_position()[2] - 0.04)
        else:
            action = self._speed * move_towards(table, self._target) + self._jitter * self._noise
        action[3] = 20.0 * (self._opening - table.opening()) + 0.2 * self._noise[3]
        return np.clip(action, -1.0, 1.0).astype(np.float32)

    def _choose(self, table: TabletopEnv) -> None:
        rng = self._rng
        cube, _ = table.object_pose()
        self._kind = str(rng.choice(list(self._shares), p=list(self._shares.values())))
        self._left = int(rng.integers(4, 10) if self._kind == "wander" else rng.integers(8, 20))
        is_free = self._kind == "free"
        self._speed = float(rng.uniform(0.1 if is_free else 0.4, 1.0))
        self._jitter = float(rng.uniform(0.05, 0.35)) if is_free else 0.35
        self._target = rng.uniform(WORKSPACE_LOW, WORKSPACE_HIGH)
        if self._kind == "push":
            self._target[:2] = rng.uniform(WORKSPACE_LOW[:2] + 0.05, WORKSPACE_HIGH[:2] - 0.05)
        elif self._kind == "wander":
            angle, radius = rng.uniform(0, 2 * np.pi), 0.2 * np.sqrt(rng.uniform())
            self._target[:2] = cube[:2] + radius * np.array([np.cos(angle), np.sin(angle)])
            self._target[2] = rng.uniform(WORKSPACE_LOW[2], 0.06) if rng.random() < 0.8 else rng.uniform(0.06, 0.14)
        if rng.random() < 0.1:
            self._opening = float(rng.uniform(0.0, MAX_OPENING_M)) if self._opening == 0.0 else 0.0


def move_towards(table: TabletopEnv, target: Array) -> Action:
    """Action that brings the gripper nearer to `target` (3,), metres, with closed fingers."""
    action = np.zeros(4, dtype=np.float32)
    action[:3] = np.clip((target - table.gripper_position()) / MAX_STEP_M, -1.0, 1.0)
    action[3] = -1.0
    return action


def push_towards(table: TabletopEnv, goal: Array) -> Action:
    """Action of one step of pushing the block to `goal` (2,), metres; zeros once it is there within 8 mm."""
    gripper = table.gripper_position()
    cube, _ = table.object_pose()
    offset = goal - cube[:2]
    distance = float(np.linalg.norm(offset))
    if distance < 0.008:
        return np.zeros(4, dtype=np.float32)
    along = offset / distance
    across = np.array([-along[1], along[0]])
    relative = gripper[:2] - cube[:2]
    lateral = float(relative @ across)
    is_low = gripper[2] < PUSH_HEIGHT_M + 0.025
    if is_low and relative @ along < -OBJECT_HALF_M * 0.8 and abs(lateral) < 0.02:
        to_contact = max(0.0, -float(relative @ along) - CONTACT_GAP_M - 0.012)
        advance = min(MAX_STEP_M, 0.6 * distance + 0.004 + to_contact)
        step = along * advance - across * lateral
        return move_towards(table, np.append(gripper[:2] + step, PUSH_HEIGHT_M))
    behind = cube[:2] - along * (CONTACT_GAP_M + 0.022)
    behind = np.clip(behind, WORKSPACE_LOW[:2], WORKSPACE_HIGH[:2])
    return _approach(table, behind, cube[:2])


def _approach(table: TabletopEnv, target: Array, cube: Array) -> Action:
    """Step towards `target` (2,) at pushing height, over the block when it is in the way."""
    gripper = table.gripper_position()
    if np.linalg.norm(gripper[:2] - target) < _TOLERANCE_M or not _crosses(gripper[:2], target, cube):
        return move_towards(table, np.append(target, PUSH_HEIGHT_M))
    if gripper[2] > TRAVEL_HEIGHT_M - 0.012:
        return move_towards(table, np.append(target, TRAVEL_HEIGHT_M))
    away = gripper[:2] - cube
    retreat = 0.2 * away if np.linalg.norm(away) < 2.5 * OBJECT_HALF_M else 0.0 * away
    return move_towards(table, np.append(gripper[:2] + retreat, TRAVEL_HEIGHT_M))


def _crosses(start: Array, end: Array, cube: Array) -> bool:
    """Whether the fingers, moving straight, would touch the block."""
    path = end - start
    share = np.clip((cube - start) @ path / max(float(path @ path), 1e-9), 0.0, 1.0)
    return bool(np.linalg.norm(start + share * path - cube) < OBJECT_HALF_M * 1.2 + 0.018)


def _tabletop(env: GoalEnv) -> TabletopEnv:
    if not isinstance(env, TabletopEnv):
        raise ConfigError(f"scripted policies need a tabletop environment, got {type(env).__name__}")
    return env
