"""Success against what it costs (labelled episodes, time for a plan), and runs beside each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib import colormaps
from matplotlib.figure import Figure

from worldmodel.evaluation.low_label import Results
from worldmodel.evaluation.runs_compared import Comparison

_MARKERS = "osD^vP*Xhd<>"


@dataclass(frozen=True, kw_only=True)
class LabelCurve:
    """One arm.

    Attributes:
        name: Of the arm.
        places: Where its points stand on the axis of labels, indices into `ticks`.
        rate: Success at each place, in [0, 1].
        low: Lower ends of the intervals.
        high: Upper ends.
    """

    name: str
    places: Sequence[int]
    rate: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


def label_figure(
    panels: Mapping[str, Sequence[LabelCurve]], floors: Mapping[str, float], ticks: Sequence[str]
) -> Figure:
    """Draw the comparison.

    Args:
        panels: Curves by title of the panel.
        floors: Success of agents without a model, drawn as lines.
        ticks: Names of the places on the axis of labels.
    """
    figure = Figure(figsize=(5.5 * len(panels) + 1.5, 4.8), layout="constrained")
    names = list(dict.fromkeys(curve.name for curves in panels.values() for curve in curves))
    grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)
    for axes, (title, curves) in zip(grid[0], panels.items(), strict=True):
        for curve in curves:
            index = names.index(curve.name)
            shift = 0.05 * (index - (len(names) - 1) / 2)  # intervals side by side instead of on top of each other
            axes.errorbar(
                [place + shift for place in curve.places],
                [100 * value for value in curve.rate],
                yerr=[
                    [100 * (value - low) for value, low in zip(curve.rate, curve.low, strict=True)],
                    [100 * (high - value) for value, high in zip(curve.rate, curve.high, strict=True)],
                ],
                color=colormaps["tab20"](index % 20),
                marker=_MARKERS[index % len(_MARKERS)],
                capsize=2,
                linewidth=1.2,
                label=curve.name,
            )
        for rate in dict.fromkeys(floors.values()):
            name = ", ".join(name for name, other in floors.items() if other == rate)
            axes.axhline(100 * rate, color="0.6", linewidth=0.8, linestyle=":")
            axes.text(len(ticks) - 0.55, 100 * rate, name, color="0.4", fontsize=8, va="bottom", ha="right")
        axes.set_title(title)
        axes.set_xticks(range(len(ticks)), ticks)
        axes.set_xlim(-0.5, len(ticks) - 0.5)
        axes.set_ylim(-3, 103)
        axes.set_xlabel("episodes with actions")
    grid[0][0].set_ylabel("held at the end, % (95 % interval)")
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False)
    return figure


def budget_figure(
    budgets_s: Sequence[float], rate: Sequence[float], intervals: Sequence[tuple[float, float]], title: str
) -> Figure:
    """Success against the time a plan may take.

    Args:
        budgets_s: Seconds, ascending.
        rate: Success at each, in [0, 1].
        intervals: Their ends.
        title: Above the picture.
    """
    figure = Figure(figsize=(5.5, 4.0), layout="constrained")
    axes = figure.subplots()
    below = [100 * (value - low) for value, (low, _) in zip(rate, intervals, strict=True)]
    above = [100 * (high - value) for value, (_, high) in zip(rate, intervals, strict=True)]
    milliseconds = [1000 * budget for budget in budgets_s]
    axes.errorbar(
        milliseconds, [100 * value for value in rate], yerr=[below, above], color="0.1", marker="o", capsize=3
    )
    axes.set_xscale("log")
    axes.set_xticks(milliseconds, [f"{value:g}" for value in milliseconds])
    axes.set_xticks([], minor=True)
    axes.set_ylim(-3, 103)
    axes.set_xlabel("time for a plan, ms")
    axes.set_ylabel("held at the end, % (95 % interval)")
    axes.set_title(title)
    return figure


@dataclass(frozen=True, kw_only=True)
class RunBar:
    """One run in a comparison.

    Attributes:
        name: Of the run.
        rate: Success held at the end, in [0, 1].
        low: Lower end of its interval.
        high: Upper end.
        curve: Share of episodes with success after each number of steps, the start first; None when unknown.
    """

    name: str
    rate: float
    low: float
    high: float
    curve: Sequence[float] | None


def runs_figure(comparison: Comparison) -> Figure:
    """Draw finished evaluations side by side.

    Args:
        comparison: From `evaluation.runs_compared.compare_runs`.
    """
    bars = [
        RunBar(name=arm.name, rate=arm.rate, low=arm.interval[0], high=arm.interval[1], curve=arm.curve)
        for arm in comparison.arms
    ]
    return comparison_figure(bars, f"{comparison.env_id}, {comparison.episodes} held-out episodes")


def comparison_figure(bars: Sequence[RunBar], title: str) -> Figure:
    """Draw runs below each other with their intervals and, where they are known, success at every step.

    Args:
        bars: At least one; the first is drawn on top.
        title: Above the picture.
    """
    curves = [(index, bar) for index, bar in enumerate(bars) if bar.curve is not None]
    columns = 2 if curves else 1
    figure = Figure(figsize=(6.0 * columns, max(3.6, 1.4 + 0.45 * len(bars))), layout="constrained")
    grid = figure.subplots(1, columns, squeeze=False)[0]
    rates = grid[0]
    for index, bar in enumerate(bars):
        rates.errorbar(
            100 * bar.rate,
            index,
            xerr=[[100 * (bar.rate - bar.low)], [100 * (bar.high - bar.rate)]],
            color=colormaps["tab10"](index % 10),
            marker=_MARKERS[index % len(_MARKERS)],
            capsize=3,
        )
    rates.set_yticks(range(len(bars)), [bar.name for bar in bars])
    rates.set_ylim(len(bars) - 0.5, -0.5)
    rates.set_xlim(-3, 103)
    rates.set_xlabel("held at the end, % (95 % interval)")
    rates.grid(axis="x", color="0.9", linewidth=0.6)
    for index, bar in curves:
        assert bar.curve is not None
        grid[1].plot(
            range(len(bar.curve)),
            [100 * value for value in bar.curve],
            color=colormaps["tab10"](index % 10),
            linestyle=("-", "--", "-.", ":")[index % 4],
            label=bar.name,
        )
    if curves:
        grid[1].set_ylim(-3, 103)
        grid[1].set_xlabel("environment step")
        grid[1].set_ylabel("success at this step, %")
        grid[1].legend(frameon=False, fontsize=8)
    figure.suptitle(title)
    return figure


def low_label_figure(results: Results) -> Figure:
    """Success against labelled episodes, a panel per look."""
    ticks = ["all" if labels is None else str(labels) for labels in results.labels]
    panels = {}
    for look in results.looks:
        curves = []
        for arm in results.arms:
            found = [results.rate(arm, labels, look) for labels in results.labels]
            places = [place for place, entry in enumerate(found) if entry is not None]
            points = [entry for entry in found if entry is not None]
            curves.append(
                LabelCurve(
                    name=arm,
                    places=places,
                    rate=[rate for rate, _, _ in points],
                    low=[interval[0] for _, interval, _ in points],
                    high=[interval[1] for _, interval, _ in points],
                )
            )
        panels[f"{look.replace('_', ' ')}"] = curves
    return label_figure(panels, results.floor_rates(), ticks)
