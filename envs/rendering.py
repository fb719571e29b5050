"""Offscreen pictures of a MuJoCo scene without touching environment variables.

mujoco chooses its OpenGL backend from `MUJOCO_GL` when it is imported. A library must not set that variable behind
its user's back, so the context is created here, explicitly: the backend the user named, else EGL, else OSMesa.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any, Protocol

import mujoco
import numpy as np
from numpy.typing import NDArray

from worldmodel.errors import RenderingError

BACKENDS = ("egl", "osmesa", "glfw")
_ADVICE = (
    "install one with `apt-get install libegl1 libgl1 libgles2 libgl1-mesa-dri` (EGL) or "
    "`apt-get install libosmesa6` (OSMesa)"
)


class _GLContext(Protocol):
    def make_current(self) -> None: ...
    def free(self) -> None: ...


def candidate_backends() -> tuple[str, ...]:
    """Backends to try, in order; a `MUJOCO_GL` set by the user is respected and then the only one.

    Raises:
        RenderingError: `MUJOCO_GL` names no known backend, or switches rendering off.
    """
    named = os.environ.get("MUJOCO_GL", "").strip().lower()
    if not named:
        return ("egl", "osmesa")
    if named in BACKENDS:
        return (named,)
    raise RenderingError(f"MUJOCO_GL={named!r} names no usable backend; use one of {', '.join(BACKENDS)} or unset it")


def create_context(width: int, height: int) -> tuple[_GLContext, str]:
    """Create an OpenGL context.

    Args:
        width: Pixels.
        height: Pixels.

    Returns:
        The context (current on this thread) and the name of its backend.

    Raises:
        RenderingError: No backend works; the message says what failed and which package helps.
    """
    failures = []
    for backend in candidate_backends():
        try:
            context: Any = importlib.import_module(f"mujoco.{backend}").GLContext(width, height)
            context.make_current()
        except (ImportError, RuntimeError, AttributeError, OSError, TypeError) as error:
            failures.append(f"{backend}: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
            continue
        return context, backend
    raise RenderingError(f"no OpenGL backend for rendering ({'; '.join(failures)}); {_ADVICE}")


class SceneRenderer:
    """Renders one fixed camera of one model into uint8 pictures.

    Args:
        model: Compiled model; its offscreen buffer must be at least `size`.
        camera: Name of a camera of the model.
        size: Picture height and width in pixels.

    Raises:
        RenderingError: No OpenGL backend works.
    """

    def __init__(self, model: mujoco.MjModel, camera: str, size: int) -> None:
        self._model = model
        self._size = size
        self._gl, self.backend = create_context(size, size)
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._scene = mujoco.MjvScene(model, maxgeom=200)
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = False
        self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = False
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SKYBOX] = False
        self._option = mujoco.MjvOption()
        self._perturb = mujoco.MjvPerturb()
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._camera.fixedcamid = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, camera)
        self._viewport = mujoco.MjrRect(0, 0, size, size)
        self._buffer = np.zeros((size, size, 3), dtype=np.uint8)
        self._is_open = True

    def render(self, data: mujoco.MjData, shadow_below: NDArray[np.float64]) -> NDArray[np.uint8]:
        """Picture (size, size, 3) of the current positions in `data`.

        Args:
            data: Positions, with cameras and lights up to date.
            shadow_below: (3,) point in metres under which a round shadow is drawn on the table. One camera sees no
                depth: this is the cue for height. Shadow maps would give it too, at two and a half times the cost.
        """
        self._gl.make_current()
        mujoco.mjv_updateScene(
            self._model,
            data,
            self._option,
            self._perturb,
            self._camera,
            mujoco.mjtCatBit.mjCAT_ALL.value,
            self._scene,
        )
        self._add_shadow(shadow_below)
        mujoco.mjr_render(self._viewport, self._scene, self._context)
        mujoco.mjr_readPixels(self._buffer, None, self._viewport, self._context)
        return self._buffer[::-1].copy()

    def close(self) -> None:
        """Free the OpenGL objects; further calls to `render` are invalid."""
        if self._is_open:
            self._is_open = False
            # The names of OpenGL objects repeat between contexts: freeing under another renderer's context would
            # delete that renderer's buffers.
            self._gl.make_current()
            self._context.free()
            self._gl.free()

    def __del__(self) -> None:
        # At interpreter exit mujoco has already torn its displays down.
        if getattr(self, "_is_open", False) and not sys.is_finalizing():
            self.close()

    def _add_shadow(self, point: NDArray[np.float64]) -> None:
        if self._scene.ngeom >= self._scene.maxgeom:
            return
        geom = self._scene.geoms[self._scene.ngeom]
        mujoco.mjv_initGeom(geom, mujoco.mjtGeom.mjGEOM_CYLINDER.value, _SHADOW_SIZE, _flat(point), _EYE, _SHADOW_RGBA)
        self._scene.ngeom += 1


_SHADOW_SIZE = np.array([0.02, 0.02, 0.0005])
_SHADOW_RGBA = np.array([0.15, 0.15, 0.15, 1.0], dtype=np.float32)
_EYE = np.eye(3).ravel()


def _flat(point: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.array([point[0], point[1], 0.0005])
