"""What all still pictures share: marks that grey prints keep apart, plain axes, frames without ticks."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from worldmodel.analysis.video import upscale

CHOSEN, SECOND, MUTED = "#b03a00", "#1f4e79", "0.70"
_SIDE = 192


def tidy(axes: Axes) -> None:
    """Plain numbers, no box around the curve."""
    axes.ticklabel_format(useOffset=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def show_frame(axes: Axes, frame: NDArray[np.uint8], title: str = "") -> None:
    """A camera frame (Y, X, 3) uint8 as it is, its pixels visible, without ticks."""
    axes.imshow(upscale(frame, _SIDE), interpolation="nearest")
    axes.set_title(title, fontsize=9)
    axes.set_xticks([])
    axes.set_yticks([])


def frame_grid(rows: int, columns: int, *, side: float = 1.35, extra: float = 1.0) -> tuple[Figure, NDArray[Any]]:
    """A figure for frames in rows.

    Args:
        rows: Rows of frames.
        columns: Frames in each.
        side: Of a frame, inches.
        extra: Height for titles and captions, inches.

    Returns:
        The figure and its axes (rows, columns).
    """
    figure = Figure(figsize=(max(6.0, 1.1 + side * columns), extra + (side + 0.3) * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def row_label(axes: Axes, text: str) -> None:
    """Name a row of frames at the left of its first one."""
    axes.set_ylabel(text, fontsize=9, rotation=0, ha="right", va="center", labelpad=8)
