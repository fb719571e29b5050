"""Records that cross package borders: latents, the context of a rollout, and goals.

Kept apart from the modules that produce them so that layers 1 to 3 can share them without importing each other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

CostFn = Callable[[Tensor], Tensor]
"""Maps actions (B, S, H, A) in env units to costs (B, S), lower is better. Always called with all B rows."""


@dataclass(kw_only=True)
class Latent:
    """Representation of one or more frames.

    Attributes:
        visual: (..., T, N, D) standardised planning latent.
        proprio: (..., T, P) standardised proprioception, or None. It stays beside vision, never inside it.
    """

    visual: Tensor
    proprio: Tensor | None = None


@dataclass(kw_only=True)
class Context:
    """What has really been seen before a plan starts.

    Attributes:
        latent: Latent of the T0 most recent model-step frames; T0 grows from 1 to the window W.
        actions: (B, T0 - 1, A) flat model actions between those frames, env units.
    """

    latent: Latent
    actions: Tensor


@dataclass(kw_only=True)
class Goal:
    """What an agent may be asked for.

    Attributes:
        pixels: (Y, X, 3) uint8 goal image.
        proprio: (P,) float32 goal proprioception, or None (the default: goals are images).
        state: (G,) float64 true goal, only for oracles and for drawing; model agents never read it.
        appearance: Look of the scene (`envs.base.Appearance`), only for oracles, which simulate in it; None means the
            trained look.
    """

    pixels: NDArray[np.uint8]
    proprio: NDArray[np.float32] | None = None
    state: NDArray[np.float64] | None = None
    appearance: Any = None


def to_tensor(array: NDArray[Any], device: torch.device | None = None) -> Tensor:
    """Copy an array into a tensor (never a view: callers may reuse their buffers)."""
    return torch.tensor(np.ascontiguousarray(array), device=device)
