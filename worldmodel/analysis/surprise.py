"""Violation of expectation as pictures: surprise over time around the event, and what the clips look like."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from worldmodel.envs.violations import KINDS, Pair
from worldmodel.evaluation.surprise import CHANCE, COMPARISONS, SurpriseResult, model_frames

_CLIPS = {
    "possible": ("possible", "#1f4e79", "o", "-"),
    "impossible": ("impossible", "#b03a00", "s", "-"),
    "held": ("impossible, arm held still", "#b03a00", "^", ":"),
    "always": ("like that from the start", "0.45", "x", "--"),
}
_MARKERS = "osv^Dx"
_SHADES = ("#b03a00", "#1f4e79", "0.35", "0.55", "0.7", "0.8")


def surprise_figure(result: SurpriseResult, step_s: float) -> Figure:
    """Surprise of the first judge over time, a panel per violation, and how often every judge is right.

    Args:
        result: Judged pairs.
        step_s: Seconds of a model step.
    """
    columns = 3
    rows = -(-(len(result.kinds) + 1) // columns)
    figure = Figure(figsize=(4.6 * columns, 3.5 * rows), layout="constrained")
    for place, kind in enumerate(result.kinds, start=1):
        axes = figure.add_subplot(rows, columns, place)
        _draw_curves(axes, result, kind, step_s)
        if place == 1:
            axes.legend(frameon=False, fontsize=8)
    _draw_accuracies(figure.add_subplot(rows, columns, len(result.kinds) + 1), result)
    pairs = len(result.of(result.kinds[0]))
    figure.suptitle(f"surprise of {result.judges[0]}, {pairs} pairs of clips per violation", fontsize=12)
    return figure


def film_strip(pairs: Mapping[str, Pair]) -> Figure:
    """One pair per violation: its possible clip above its impossible one, a frame per model step.

    Args:
        pairs: By kind; clips of equal length.
    """
    timing = next(iter(pairs.values())).scene.timing
    frames = timing.before + timing.after + 1
    figure = Figure(figsize=(1.25 * frames + 1.6, 2.75 * len(pairs)), layout="constrained")
    grid = figure.add_gridspec(2 * len(pairs), frames)
    for number, (kind, pair) in enumerate(pairs.items()):
        for row, name in enumerate(("possible", "impossible")):
            for column, picture in enumerate(model_frames(pair.clips[name], timing)):
                axes = figure.add_subplot(grid[2 * number + row, column])
                axes.imshow(picture, interpolation="nearest")
                axes.set(xticks=[], yticks=[])
                broken = name == "impossible" and column > timing.before
                for spine in axes.spines.values():
                    spine.set(color="#b03a00" if broken else "0.6", linewidth=2.5 if broken else 0.8)
                if column == 0:
                    axes.set_ylabel(f"{kind}\n{name}" if row == 0 else name, fontsize=9)
                if number == row == 0:
                    since = column - timing.before
                    axes.set_title("event after this" if since == 0 else f"{since:+d}", fontsize=8)
    figure.suptitle("a frame per model step; thick frames: what cannot happen", fontsize=11)
    return figure


def _draw_curves(axes: Axes, result: SurpriseResult, kind: str, step_s: float) -> None:
    timing = result.timing
    seconds = (np.arange(1, timing.before + timing.after + 1) - timing.before) * step_s
    for clip, (label, colour, marker, line) in _CLIPS.items():
        found = result.curve(result.judges[0], kind, clip)
        if found is None:
            continue
        mean, half = found
        axes.plot(seconds, mean, marker + line, color=colour, markersize=4, linewidth=1.2, label=label)
        axes.fill_between(seconds, mean - half, mean + half, color=colour, alpha=0.15, linewidth=0)
    axes.axvline(0, color="0.3", linestyle=":", linewidth=1)
    axes.set_ylim(bottom=0)
    axes.set(title=f"{kind}: {KINDS[kind]}", xlabel="seconds after the event", ylabel="prediction error (a.u.)")
    axes.title.set_fontsize(10)
    _tidy(axes)


def _draw_accuracies(axes: Axes, result: SurpriseResult) -> None:
    """Overall accuracy of every judge under every comparison that was made."""
    made = [name for name in COMPARISONS if result.accuracy(result.judges[0], None, name) is not None]
    for number, judge in enumerate(result.judges):
        shift = 0.7 * (number / max(1, len(result.judges) - 1) - 0.5) if len(result.judges) > 1 else 0.0
        marker, colour = _MARKERS[number % len(_MARKERS)], _SHADES[number % len(_SHADES)]
        for place, comparison in enumerate(made):
            entry = result.accuracy(judge, None, comparison)
            assert entry is not None
            low, high = entry.interval
            axes.plot([100 * low, 100 * high], [place + shift] * 2, color=colour, linewidth=1.5)
            label = judge if place == 0 else None
            axes.plot(100 * entry.rate, place + shift, marker, color=colour, markersize=6, label=label)
    axes.axvline(100 * CHANCE, color="0.3", linestyle=":", linewidth=1)
    axes.set_yticks(range(len(made)), [name.replace("_", "\n") for name in made])
    axes.set_ylim(len(made) - 0.4, -0.6)
    axes.set_xlim(-3, 103)
    axes.set(title="pairs judged right, all violations (dotted: chance)", xlabel="% (95 % Wilson intervals)")
    axes.title.set_fontsize(10)
    axes.legend(frameon=False, fontsize=7, loc="lower left", bbox_to_anchor=(0, -0.55), ncols=1)
    _tidy(axes)


def _tidy(axes: Axes) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
