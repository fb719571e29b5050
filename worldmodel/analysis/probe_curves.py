"""Probe scores against what they cost, a panel per task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib import colormaps
from matplotlib.figure import Figure

from worldmodel.analysis.success_curves import LabelCurve
from worldmodel.evaluation.probe_results import ProbeResults

_MARKERS = "osD^vP*Xhd<>"


@dataclass(frozen=True, kw_only=True)
class ProbePanel:
    """One task.

    Attributes:
        curves: One per encoder; `places` are indices into `ticks`.
        metric: Name of the score.
        chance: Score of a guess that looks at nothing, drawn as a line.
    """

    curves: Sequence[LabelCurve]
    metric: str
    chance: float


def probe_figure(panels: Mapping[str, ProbePanel], ticks: Sequence[str], axis: str) -> Figure:
    """Draw the tasks side by side, every encoder in the same colour and mark.

    Args:
        panels: By title.
        ticks: Names of the places on the horizontal axis.
        axis: Name of that axis.
    """
    figure = Figure(figsize=(4.2 * len(panels) + 1.5, 4.2), layout="constrained")
    names = list(dict.fromkeys(curve.name for panel in panels.values() for curve in panel.curves))
    handles = {}
    for axes, (title, panel) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for curve in panel.curves:
            index = names.index(curve.name)
            shift = 0.05 * (index - (len(names) - 1) / 2)  # intervals side by side instead of on top of each other
            handles[curve.name] = axes.errorbar(
                [place + shift for place in curve.places],
                [100 * value for value in curve.rate],
                yerr=[
                    [100 * max(0.0, value - low) for value, low in zip(curve.rate, curve.low, strict=True)],
                    [100 * max(0.0, high - value) for value, high in zip(curve.rate, curve.high, strict=True)],
                ],
                color=colormaps["tab10"](index % 10),
                marker=_MARKERS[index % len(_MARKERS)],
                capsize=2,
                linewidth=1.2,
            )
        axes.axhline(100 * panel.chance, color="0.6", linewidth=0.8, linestyle=":")
        axes.text(len(ticks) - 0.5, 100 * panel.chance, "chance", color="0.4", fontsize=8, va="bottom", ha="right")
        axes.set_title(title)
        axes.set_xticks(range(len(ticks)), ticks)
        axes.set_xlim(-0.5, len(ticks) - 0.5)
        axes.set_ylim(min(-3.0, *(max(-60.0, 100 * low) for curve in panel.curves for low in curve.low)), 103)
        axes.set_xlabel(axis)
        axes.set_ylabel(f"{panel.metric} x 100 (95 % interval)")
    figure.legend(list(handles.values()), list(handles), loc="outside right center", frameon=False)
    return figure


def label_curves(results: ProbeResults) -> Figure:
    """Score against the share of labels, a panel per task."""
    panels = {}
    for task in results.tasks:
        curves = []
        for arm in results.arms:
            found = [results.summary(task, arm, share) for share in results.shares]
            known = [(place, entry) for place, entry in enumerate(found) if entry is not None]
            if known:
                curves.append(
                    LabelCurve(
                        name=arm,
                        places=[place for place, _ in known],
                        rate=[entry.mean for _, entry in known],
                        low=[entry.interval[0] for _, entry in known],
                        high=[entry.interval[1] for _, entry in known],
                    )
                )
        first = next(row for row in results.rows if row.cell.task == task)
        panels[task] = ProbePanel(curves=curves, metric=first.metric, chance=first.chance)
    return probe_figure(panels, [f"{100 * share:g} %" for share in results.shares], "labels")
