"""Frames in other colours: a random affine map of the colours, drawn for every frame by itself.

Colours that last for an episode are what a latent remembers best and needs least; colours that change from frame to
frame cannot be predicted, so a latent that is trained to predict drops them. An affine map takes any three colours to
any other three, so an object, a table and an arm in colours never seen are among what is drawn.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from worldmodel.errors import ConfigError

_GAIN = 0.7  # standard deviation of each entry of the 3 x 3 map
_MIDDLE, _LEVELS = 0.5, (0.2, 0.8)  # where middle grey goes: drawn evenly, per channel


@dataclass(frozen=True, kw_only=True)
class Recolouring:
    """Other colours for every frame of a data set.

    Attributes:
        strength: From 0, colours as they are, to 1, colours that tell nothing about those before.
        seed: Root of all streams.
    """

    strength: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_strength("strength", self.strength)
        if self.seed < 0:
            raise ConfigError(f"seed must be >= 0, got {self.seed}")

    @property
    def facts(self) -> dict[str, Any]:
        """What it is, JSON-ready."""
        return {"recolouring": asdict(self)}


def check_strength(name: str, strength: float) -> None:
    """Refuse a strength outside [0, 1].

    Raises:
        ConfigError: It is.
    """
    if not 0 <= strength <= 1:
        raise ConfigError(f"{name} must be in [0, 1], got {strength}")


def recolour(pixels: NDArray[np.uint8], config: Recolouring, *, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Frames in other colours.

    Args:
        pixels: (F, Y, X, 3) uint8; left as they are.
        config: How far the colours go.
        rows: (F,) number of each frame in its data set, whose stream is used.

    Returns:
        (F, Y, X, 3) uint8.
    """
    draws = np.empty((len(rows), 4, 3), np.float32)
    for place, row in enumerate(rows):
        stream = np.random.default_rng([config.seed, int(row)])
        draws[place, :3], draws[place, 3] = stream.standard_normal((3, 3)), stream.random(3)
    video = pixels.reshape(len(pixels), -1, 3).swapaxes(1, 2).astype(np.float32) / 255
    mapped = mapped_colours(video, draws[:, :3], draws[:, 3], config.strength)
    found: NDArray[np.uint8] = (mapped * 255).round().astype(np.uint8).swapaxes(1, 2).reshape(pixels.shape)
    return found


def mapped_colours(video: Any, normal: Any, uniform: Any, strength: float) -> Any:
    """Colours under one affine map per frame, cut off at black and white; of arrays, or of tensors.

    Args:
        video: (..., 3, P) the P pixels of each frame, in [0, 1].
        normal: (..., 3, 3) standard normal draws: the map.
        uniform: (..., 3) draws from [0, 1): where middle grey goes.
        strength: In [0, 1].

    Returns:
        (..., 3, P) in [0, 1].
    """
    low, high = _LEVELS
    mixed = (_GAIN * normal) @ (video - _MIDDLE) + (low + (high - low) * uniform[..., None])
    return (video + strength * (mixed - video)).clip(0, 1)
