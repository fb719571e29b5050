"""Plan robot manipulation in V-JEPA representations.

The public names below are loaded when first used, so that `import worldmodel` is instant and `worldmodel --help` needs
neither torch nor mujoco.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as _version
from importlib.util import find_spec
from pathlib import Path
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

__all__ = ["__version__", *sorted(_PUBLIC)]


def _load_triton_before_mesa() -> None:
    """Map triton's library, which torch imports late, before any OpenGL context exists.

    Both libtriton and Mesa's software renderer bring an LLVM of their own. Loaded after Mesa's, triton's crashes the
    process (seen with triton 3.9 and Mesa 22.3); the other order works. Whoever
    imports this package may render first and import torch later, as the workers of `collect` do.
    """
    spec = find_spec("triton") if sys.platform == "linux" and "triton" not in sys.modules else None
    for folder in (spec.submodule_search_locations or []) if spec is not None else []:
        with contextlib.suppress(OSError):  # another layout or a foreign build: nothing to protect
            ctypes.CDLL(str(Path(folder) / "_C" / "libtriton.so"))


_load_triton_before_mesa()


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562)."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'worldmodel' has no attribute {name!r}; public names: {', '.join(__all__)}")
    value = getattr(import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
