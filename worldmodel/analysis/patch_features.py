"""What an encoder sees: patch features as colours over a video, and how they change from one encoder to another."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.table import Table
from rich.text import Text

from worldmodel.analysis.style import CHOSEN, SECOND, frame_grid, row_label, show_frame
from worldmodel.analysis.video import upscale, write_pictures
from worldmodel.display import html_of
from worldmodel.errors import DataError
from worldmodel.learning.diagnostics import describe, feature_drift
from worldmodel.models.encoders import Encoder

Array = NDArray[np.float64]
_TAIL = 2.0  # percent at either end that colours do not reserve room for


@dataclass(frozen=True, kw_only=True)
class FeatureMaps:
    """Three principal components of patch features as colours.

    Attributes:
        frames: (T, Y, X, 3) uint8.
        colours: (T, rows, columns, 3) uint8: the first component is red, the second green, the third blue.
        share: (3,) share of the variance each explains.
    """

    frames: NDArray[np.uint8]
    colours: NDArray[np.uint8]
    share: Array

    def save_video(self, path: str | Path, *, fps: float = 10.0, side: int = 256) -> Path:
        """Write an MP4: the camera on the left, the colours of its patches on the right.

        Args:
            path: Target, ending in .mp4.
            fps: Frames per second.
            side: Smallest side of either picture, pixels.

        Raises:
            DataError: `path` does not end in .mp4.
        """
        height = upscale(self.frames[0], side).shape[0]
        pictures = (
            np.concatenate([upscale(frame, side), _fill(colours, height)], axis=1)
            for frame, colours in zip(self.frames, self.colours, strict=True)
        )
        return write_pictures(Path(path), pictures, fps=fps)


def feature_maps(encoder: Encoder, frames: NDArray[np.uint8], *, centre: bool = True) -> FeatureMaps:
    """Principal components of patch features, taken over all patches of all frames together.

    Args:
        encoder: Frozen encoder.
        frames: (T, Y, X, 3) uint8, T >= 2: of one video, or of several.
        centre: Remove what each place of the picture shows on average first. Otherwise the largest components of most
            encoders say where a patch is and not what is in it.

    Raises:
        DataError: Fewer than two frames, or not of the encoder's size.
    """
    tokens = patch_tokens(encoder, frames)
    count, places, width = tokens.shape
    flat = (tokens - tokens.mean(axis=0 if centre else (0, 1), keepdims=True)).reshape(-1, width)
    if width < 3:
        raise DataError(f"three colours need features of width >= 3, got {width}")
    spread, directions = np.linalg.eigh(flat.T @ flat)
    scores = flat @ directions[:, ::-1][:, :3]
    # A component has no sign of its own: let rare, strong patches (objects before a background) be bright.
    scores *= np.where(np.mean(scores**3, axis=0) < 0, -1, 1)
    low, high = np.percentile(scores, [_TAIL, 100 - _TAIL], axis=0)
    scaled = np.clip((scores - low) / np.maximum(high - low, 1e-12), 0, 1)
    rows = _rows(places)
    return FeatureMaps(
        frames=frames,
        colours=np.round(255 * scaled).astype(np.uint8).reshape(count, rows, places // rows, 3),
        share=spread[::-1][:3] / max(float(spread.sum()), 1e-12),
    )


def feature_figure(maps: FeatureMaps, *, columns: int = 6) -> Figure:
    """Frames, the colours of their patches, and the first component alone in grey.

    Args:
        maps: From `feature_maps`.
        columns: Frames to show, spread over the video.
    """
    chosen = np.unique(np.linspace(0, len(maps.frames) - 1, columns).astype(int))
    figure, grid = frame_grid(3, len(chosen), extra=0.9)
    for row, name in enumerate(("camera", "three components\nas red, green, blue", "first component\nas brightness")):
        row_label(grid[row, 0], name)
    for column, index in enumerate(chosen):
        show_frame(grid[0, column], maps.frames[index], f"frame {index}")
        show_frame(grid[1, column], maps.colours[index])
        show_frame(grid[2, column], np.repeat(maps.colours[index][..., :1], 3, axis=-1))
    shares = ", ".join(f"{100 * value:.0f} %" for value in maps.share)
    figure.suptitle(f"principal components of the patch features; they explain {shares} of the variance", fontsize=10)
    return figure


@dataclass(frozen=True, kw_only=True)
class Drift:
    """Features of the same frames under one encoder after another; shows itself as a table.

    Attributes:
        names: Of the encoders, in order.
        effective_rank: (E,) directions in use after what each place shows on average is removed, 1 to D.
        positional_share: (E,) share of the variance that the place alone explains.
        from_previous: (E,) 1 - linear CKA to the encoder before, in [0, 1]; NaN for the first.
        from_first: (E,) the same to the first.
    """

    names: tuple[str, ...]
    effective_rank: Array
    positional_share: Array
    from_previous: Array
    from_first: Array

    def records(self) -> list[dict[str, float | str]]:
        """One record per encoder, for a data frame."""
        columns = (self.effective_rank, self.positional_share, self.from_previous, self.from_first)
        labels = ("effective_rank", "positional_share", "from_previous", "from_first")
        return [
            {"encoder": name, **dict(zip(labels, map(float, row), strict=True))}
            for name, row in zip(self.names, zip(*columns, strict=True), strict=True)
        ]

    def __rich__(self) -> Table:
        table = Table(title="features of the same frames")
        for heading in ("encoder", "effective rank", "place alone", "change from the one before", "from the first"):
            table.add_column(heading, justify="left" if heading == "encoder" else "right")
        for row in self.records():
            name, rank, place, previous, first = row.values()
            shown = ("-" if math.isnan(float(value)) else f"{float(value):.2f}" for value in (previous, first))
            table.add_row(Text(str(name)), f"{float(rank):.1f}", f"{float(place):.0%}", *shown)
        return table

    def _repr_html_(self) -> str:
        return html_of(self.__rich__())


def encoder_drift(encoders: Mapping[str, Encoder], frames: NDArray[np.uint8], *, clip_len: int = 4) -> Drift:
    """Compare encoders on the same frames: saved stages of one training, or different trainings.

    Args:
        encoders: By name, in order; they may differ in everything but the frames they take.
        frames: (F, Y, X, 3) uint8, F a multiple of `clip_len` and at least twice as many; consecutive ones form a clip.
        clip_len: Frames per clip.

    Raises:
        DataError: There are no encoders, too few frames, or frames of another size.
    """
    if not encoders or clip_len < 1 or len(frames) < 2 * clip_len or len(frames) % clip_len:
        got = f"{len(encoders)} encoders and {len(frames)} frames in clips of {clip_len}"
        raise DataError(f"drift needs encoders and at least two whole clips of frames, got {got}")
    tokens = [torch.from_numpy(patch_tokens(encoder, frames)).float() for encoder in encoders.values()]
    health = [describe(one.unflatten(0, (-1, clip_len))) for one in tokens]
    previous = [math.nan, *(feature_drift(a, b) for a, b in pairwise(tokens))]
    return Drift(
        names=tuple(encoders),
        effective_rank=np.array([one.effective_rank for one in health]),
        positional_share=np.array([one.positional_share for one in health]),
        from_previous=np.array(previous),
        from_first=np.array([feature_drift(tokens[0], one) for one in tokens]),
    )


def drift_figure(drift: Drift) -> Figure:
    """Effective rank and change of the features, encoder by encoder."""
    figure = Figure(figsize=(9.0, 3.6), layout="constrained")
    ranks, changes = figure.subplots(1, 2)
    places = np.arange(len(drift.names))
    ranks.plot(places, drift.effective_rank, "o-", color=CHOSEN, label="features of a place")
    ranks.set(ylabel="effective rank (directions)", ylim=(0, 1.2 * float(drift.effective_rank.max())))
    changes.plot(places, drift.from_first, "s--", color=SECOND, label="from the first encoder")
    changes.plot(places, drift.from_previous, "o-", color=CHOSEN, label="from the one before")
    changes.set(ylabel="change of the features (1 - CKA)", ylim=(-0.03, 1.03))
    for axes in (ranks, changes):
        axes.set_xticks(places, drift.names)
        axes.set_xlabel("encoder")
        axes.legend(frameon=False, fontsize=9)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    return figure


def patch_tokens(encoder: Encoder, frames: NDArray[np.uint8]) -> Array:
    """Features (T, N, D) of frames (T, Y, X, 3) uint8, T >= 2.

    Raises:
        DataError: Fewer than two frames, or not of the encoder's size.
    """
    if frames.ndim != 4 or len(frames) < 2:
        raise DataError(f"frames must be (T >= 2, Y, X, 3) uint8, got {frames.shape}")
    device = next(iter([*encoder.parameters(), *encoder.buffers()])).device
    with torch.no_grad():
        parts = [
            encoder.encode_frames(torch.from_numpy(np.ascontiguousarray(part))[:, None].to(device))[:, 0].double().cpu()
            for part in np.array_split(frames, -(-len(frames) // 64))
        ]
    tokens: Array = torch.cat(parts).numpy()
    return tokens


def _rows(places: int) -> int:
    """Rows of the grid of patches: square where the number is, else one row."""
    side = math.isqrt(places)
    return side if side * side == places else 1


def _fill(colours: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Colours (rows, columns, 3) as a square picture, every patch an area."""
    rows, columns = colours.shape[:2]
    down, right = (np.arange(side) * count // side for count in (rows, columns))
    return np.asarray(colours[down][:, right])
