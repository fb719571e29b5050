"""Plan robot manipulation in V-JEPA representations.

The public names below are loaded when first used, so that `import worldmodel` is instant and `worldmodel --help` needs
neither torch nor mujoco.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as _version
from typing import Any

_PUBLIC = {
    "CEM": "worldmodel.planners",
    "Context": "worldmodel.types",
    "Goal": "worldmodel.types",
    "Latent": "worldmodel.types",
    "MPCAgent": "worldmodel.control.agents",
    "WorldModel": "worldmodel.models.world_model",
    "WorldModelError": "worldmodel.errors",
    "evaluate": "worldmodel.evaluation.evaluate",
    "load_checkpoint": "worldmodel.models.checkpoint",
    "make_env": "worldmodel.envs",
    "save_checkpoint": "worldmodel.models.checkpoint",
    "watch": "worldmodel.analysis.episode",
}

try:
    __version__ = _version("worldmodel")
except PackageNotFoundError:  # a source tree on the path, never installed
    __version__ = "0+unknown"

__all__ = ["__version__", *sorted(_PUBLIC)]  # noqa: PLE0604  (names resolve through __getattr__)


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562)."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'worldmodel' has no attribute {name!r}; public names: {', '.join(__all__)}")
    value = getattr(import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
