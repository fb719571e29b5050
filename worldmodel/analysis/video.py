"""Episodes as MP4: the camera beside the goal image, the latent cost below with a marker that moves with time.

Text and frames are drawn with Pillow, the static curve once with matplotlib: a film takes a second, not a minute.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from worldmodel.errors import DataError

Pixels = NDArray[np.uint8]

_MARGIN, _HEADER, _CURVE, _DPI = 16, 48, 240, 100
_INK, _MARK, _BACKGROUND = (30, 30, 30), (213, 94, 0), (255, 255, 255)
_BLOCK = 16  # H.264 codes 16 x 16 blocks; other sizes make encoders rescale the whole picture


@dataclass(frozen=True, kw_only=True)
class Film:
    """What a video shows.

    Attributes:
        frames: (T+1, Y, X, 3) uint8 camera frames, the start included.
        goal: (Y, X, 3) uint8 goal image.
        costs: (T+1,) latent cost of every frame (arbitrary unit, lower is better); NaN is left out of the curve.
        success: (T+1,) bool, success predicate at every frame.
        title: Shown in the header, e.g. the environment's name.
        dt_s: Seconds between frames.
    """

    frames: Pixels
    goal: Pixels
    costs: NDArray[np.float64]
    success: NDArray[np.bool_]
    title: str
    dt_s: float = 0.1

    def __post_init__(self) -> None:
        if self.frames.ndim != 4 or self.frames.shape[-1] != 3 or self.frames.dtype != np.uint8 or not len(self.frames):
            raise DataError(f"frames must be (T, Y, X, 3) uint8, got {self.frames.shape} {self.frames.dtype}")
        if self.goal.shape != self.frames.shape[1:]:
            raise DataError(f"goal must be {self.frames.shape[1:]} like the frames, got {self.goal.shape}")
        for name in ("costs", "success"):
            if getattr(self, name).shape != (len(self.frames),):
                raise DataError(f"{name} must be ({len(self.frames)},), got {getattr(self, name).shape}")
        if not self.dt_s > 0:
            raise DataError(f"dt_s must be > 0, got {self.dt_s}")


def upscale(image: Pixels, side: int) -> Pixels:
    """Enlarge by pixel repetition with a whole factor until both sides are at least `side` pixels."""
    factor = max(1, math.ceil(side / min(image.shape[:2])))
    return np.asarray(np.repeat(np.repeat(image, factor, axis=0), factor, axis=1))


def compose(film: Film, side: int = 384) -> Iterator[Pixels]:
    """Yield the pictures of the video, all of one size whose sides are multiples of 16.

    Args:
        film: What to show.
        side: Smallest side of the camera picture, pixels.
    """
    goal = upscale(film.goal, side)
    height, width = goal.shape[:2]
    canvas_width = _round_up(3 * _MARGIN + 2 * width)
    canvas_height = _round_up(_HEADER + height + _MARGIN + _CURVE)
    curve, points = _draw_curve(film, canvas_width, canvas_height - _HEADER - height - _MARGIN)
    base = Image.new("RGB", (canvas_width, canvas_height), _BACKGROUND)
    left, right, top = _MARGIN, 2 * _MARGIN + width, _HEADER
    base.paste(Image.fromarray(goal), (right, top))
    base.paste(Image.fromarray(curve), (0, top + height + _MARGIN))
    ImageDraw.Draw(base).text((right, 16), "goal image", fill=_INK, font=_font(18))
    for step, frame in enumerate(film.frames):
        picture = base.copy()
        picture.paste(Image.fromarray(upscale(frame, side)), (left, top))
        draw = ImageDraw.Draw(picture)
        draw.text((left, 16), _caption(film, step), fill=_INK, font=_font(18))
        _draw_marker(draw, points, step, top + height + _MARGIN)
        yield np.asarray(picture)


def write_video(path: Path, film: Film, *, side: int = 384, hold_s: float = 1.0) -> Path:
    """Write an H.264 MP4 that browsers play (yuv420p, index in front), in real time.

    Args:
        path: Target, ending in .mp4; parents are created. An interrupted run leaves no half file under this name.
        film: What to show.
        side: Smallest side of the camera picture, pixels.
        hold_s: Seconds for which the last picture stays.

    Returns:
        `path`.

    Raises:
        DataError: `path` does not end in .mp4.
    """
    return write_pictures(path, _held(compose(film, side), round(hold_s / film.dt_s)), fps=1 / film.dt_s)


def write_pictures(path: Path, pictures: Iterable[Pixels], *, fps: float) -> Path:
    """Write pictures of one size, sides multiples of 16, as an H.264 MP4 that browsers play.

    Args:
        path: Target, ending in .mp4; parents are created. An interrupted run leaves no half file under this name.
        pictures: (Y, X, 3) uint8 each.
        fps: Pictures per second.

    Returns:
        `path`.

    Raises:
        DataError: `path` does not end in .mp4.
    """
    if path.suffix != ".mp4":
        raise DataError(f"a video's name must end in .mp4, got {path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.stem + ".partial.mp4")
    writer = imageio.get_writer(
        partial,
        format="FFMPEG",
        fps=fps,
        codec="libx264",
        pixelformat="yuv420p",
        quality=8,
        macro_block_size=_BLOCK,
        ffmpeg_params=["-movflags", "+faststart"],
        ffmpeg_log_level="error",
    )
    with writer:
        for picture in pictures:
            writer.append_data(picture)
    os.replace(partial, path)
    return path


def _held(pictures: Iterator[Pixels], times: int) -> Iterator[Pixels]:
    """Pictures, the last one repeated so many times more."""
    for picture in pictures:
        yield picture
    yield from [picture] * times


def _caption(film: Film, step: int) -> str:
    state = "success" if film.success[step] else ""
    return f"{film.title}   step {step}/{len(film.frames) - 1}   {state}"


def _draw_curve(film: Film, width: int, height: int) -> tuple[Pixels, NDArray[np.float64]]:
    """Draw the cost curve once; return its picture and the pixel (x, y) of every sample (T+1, 2), NaN if unknown."""
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI)
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0.11, 0.22, 0.86, 0.66))
    steps = np.arange(len(film.costs))
    axes.plot(steps, film.costs, color="0.15", linewidth=1.8, label="latent cost to the goal")
    inside = film.success.astype(bool)
    if inside.any():
        axes.fill_between(
            steps,
            0,
            1,
            where=inside.tolist(),
            transform=axes.get_xaxis_transform(),
            color="0.85",
            linewidth=0,
            label="success predicate true",
        )
    axes.set_xlim(0, max(1, len(steps) - 1))
    if np.isfinite(film.costs).any():
        axes.set_ylim(0, 1.1 * max(float(np.nanmax(film.costs)), 1e-9))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel(f"environment step ({film.dt_s:g} s each)")
    axes.set_ylabel("latent cost (a.u.)")
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 0.98), frameon=False, fontsize=9, ncols=2)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    canvas.draw()
    picture = np.asarray(canvas.buffer_rgba())[..., :3].copy()
    points = axes.transData.transform(np.column_stack([steps, film.costs]))
    points[:, 1] = picture.shape[0] - points[:, 1]
    return picture, points


def _draw_marker(draw: ImageDraw.ImageDraw, points: NDArray[np.float64], step: int, top: int) -> None:
    x, y = points[step]
    if np.isfinite(x) and np.isfinite(y):
        radius = 7
        centre = (float(x), float(y) + top)
        box = (centre[0] - radius, centre[1] - radius, centre[0] + radius, centre[1] + radius)
        draw.ellipse(box, fill=_MARK, outline=_INK, width=2)


def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(findfont("DejaVu Sans"), size)


def _round_up(length: int) -> int:
    return math.ceil(length / _BLOCK) * _BLOCK
