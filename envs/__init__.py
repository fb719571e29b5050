"""Simulated manipulation tasks: Gymnasium environments whose goals are pictures.

Importing this package registers `worldmodel/Reach-v0` and `worldmodel/Push-v0` with Gymnasium.
"""

from __future__ import annotations

import difflib
from importlib import import_module

import gymnasium

from worldmodel.envs.base import Appearance, GoalEnv, Task
from worldmodel.envs.state_env import StateEnv
from worldmodel.errors import ConfigError

ENV_IDS: dict[str, str] = {"reach": "worldmodel/Reach-v0", "push": "worldmodel/Push-v0"}
"""Short names accepted on the command line, and the registered ids they stand for."""

_ENTRY_POINTS = {
    "worldmodel/Reach-v0": "worldmodel.envs.reach:ReachEnv",
    "worldmodel/Push-v0": "worldmodel.envs.push:PushEnv",
}

for _id, _entry_point in _ENTRY_POINTS.items():
    if _id not in gymnasium.registry:
        gymnasium.register(id=_id, entry_point=_entry_point, max_episode_steps=None)


_own_modules: list[str] = []


def resolve_env_id(name: str) -> str:
    """Full id for a short name ("push"), an id, or "module:id" (the module is imported, and registers the id).

    Raises:
        ConfigError: Unknown name; the message lists the valid ones and the nearest. Or the module cannot be imported.
    """
    if name in ENV_IDS:
        return ENV_IDS[name]
    module, _, env_id = name.rpartition(":")
    if module:
        use_module(module)
    if env_id in gymnasium.registry:
        return env_id
    known = [*ENV_IDS, *ENV_IDS.values()]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    own = f"importing {module} did not register it" if module else "one of your own as MODULE:ID"
    raise ConfigError(f"unknown environment {name!r}; valid: {', '.join(known)}, {own}{hint}")


def use_module(module: str) -> None:
    """Import a module that registers environments, here and in every worker process started from now on.

    Raises:
        ConfigError: It cannot be imported.
    """
    try:
        import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"cannot import {module!r} ({error}); install it, or run with PYTHONPATH=FOLDER of {module}.py"
        ) from error
    if module not in _own_modules:
        _own_modules.append(module)


def used_modules() -> tuple[str, ...]:
    """Modules that `use_module` has imported; workers import them too."""
    return tuple(_own_modules)


def make_env(name: str, *, image_size: int = 64, render: bool = True) -> GoalEnv:
    """Build an environment by short name or registered id, without Gymnasium's wrappers.

    Args:
        name: "reach", "push", the id of a registered `GoalEnv`, or "module:id".
        image_size: Height and width of the pictures, pixels.
        render: False gives black pictures and needs no OpenGL.

    Raises:
        ConfigError: Unknown name, or the id does not name a `GoalEnv`.
        RenderingError: No OpenGL backend works.
    """
    env = gymnasium.make(resolve_env_id(name), disable_env_checker=True, image_size=image_size, render=render).unwrapped
    if not isinstance(env, GoalEnv):
        raise ConfigError(f"{name!r} is registered but is not a worldmodel GoalEnv")
    return env


__all__ = [
    "ENV_IDS",
    "Appearance",
    "GoalEnv",
    "StateEnv",
    "Task",
    "make_env",
    "resolve_env_id",
    "use_module",
    "used_modules",
]
