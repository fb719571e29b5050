"""Detail that nobody can predict, drawn over a part of every frame as it is read.

What an encoder has to ignore: noise that flickers, or a texture that sways at random, in a band of the picture. Each
episode has its own stream, and a frame looks the same however it is read: alone, in a clip, or with its file.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from worldmodel.errors import ConfigError

DISTRACTORS = ("none", "flicker", "sway")
_CELLS = 8  # cells of the noise, and of the texture, along each side of the patch
_WALK = 0.6  # standard deviation of a step of the swaying texture, in cells


@dataclass(frozen=True, kw_only=True)
class DistractorConfig:
    """A patch over every frame.

    Attributes:
        kind: "none"; "flicker": new random colours in every frame; "sway": a random texture that wanders.
        height: Of the patch, as a share of the picture; it hangs from the upper edge, above most of the table.
        width: Of the patch, as a share of the picture; where it hangs is drawn for each episode.
        seed: Root of all streams.
    """

    kind: str = "none"
    height: float = 0.4
    width: float = 0.6
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in DISTRACTORS:
            raise ConfigError(f"distractor.kind must be one of {', '.join(DISTRACTORS)}, got {self.kind!r}")
        for name in ("height", "width"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"distractor.{name} must be in (0, 1], got {getattr(self, name)}")
        if self.seed < 0:
            raise ConfigError(f"distractor.seed must be >= 0, got {self.seed}")

    @property
    def facts(self) -> dict[str, Any] | None:
        """What it is, JSON-ready; None for no distractor."""
        return None if self.kind == "none" else asdict(self)


NO_DISTRACTOR = DistractorConfig()


def distract(
    pixels: NDArray[np.uint8], config: DistractorConfig, *, episode: int, steps: NDArray[np.int64]
) -> NDArray[np.uint8]:
    """Frames of one episode with the patch drawn over them.

    Args:
        pixels: (F, Y, X, 3) uint8; left as they are.
        config: What is drawn.
        episode: Number of the episode, whose stream is used.
        steps: (F,) env step of each frame within its episode.

    Returns:
        (F, Y, X, 3) uint8.
    """
    if config.kind == "none" or len(pixels) == 0:
        return pixels
    rows, columns = (max(1, round(share * size)) for share, size in
                     zip((config.height, config.width), pixels.shape[1:3], strict=True))  # fmt: skip
    place = np.random.default_rng([config.seed, episode])
    left = int(place.integers(pixels.shape[2] - columns + 1))
    texture = place.integers(0, 256, (_CELLS, _CELLS, 3), dtype=np.uint8)
    out = pixels.copy()
    if config.kind == "flicker":
        for frame, step in enumerate(steps):
            noise = np.random.default_rng([config.seed, episode, int(step)]).integers(
                0, 256, (_CELLS, _CELLS, 3), dtype=np.uint8
            )
            out[frame, :rows, left : left + columns] = _stretched(noise, rows, columns, (0.0, 0.0))
        return out
    walk = np.random.default_rng([config.seed, episode, 1]).normal(0.0, _WALK, (int(max(steps)) + 1, 2)).cumsum(axis=0)
    for frame, step in enumerate(steps):
        out[frame, :rows, left : left + columns] = _stretched(texture, rows, columns, tuple(walk[step]))
    return out


def _stretched(cells: NDArray[np.uint8], rows: int, columns: int, shift: tuple[float, ...]) -> NDArray[np.uint8]:
    """Cells (K, K, 3) as a picture (rows, columns, 3), moved by `shift` cells; what leaves at one side comes back."""
    down = np.floor(np.arange(rows) * _CELLS / rows + shift[0]).astype(np.int64) % _CELLS
    right = np.floor(np.arange(columns) * _CELLS / columns + shift[1]).astype(np.int64) % _CELLS
    picture: NDArray[np.uint8] = cells[down[:, None], right]
    return picture
