"""Why episodes failed, as a picture: verdicts, and what speaks for them."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from worldmodel.evaluation.attribution import VERDICTS, Explanation, Verdict
from worldmodel.evaluation.stats import wilson_interval

_LOOKS = dict(zip(VERDICTS, (("#1f4e79", "o"), ("#b03a00", "s"), ("#4d7f3a", "^"), ("0.55", "x")), strict=True))


def attribution_figure(explanation: Explanation) -> Figure:
    """Four panels: failures per verdict, open-loop error by horizon, costs at goal and end, rank correlations.

    Args:
        explanation: At least one verdict.
    """
    figure = Figure(figsize=(15, 4.2), layout="constrained")
    bars, errors, costs, ranks = figure.subplots(1, 4)
    _draw_verdicts(bars, explanation)
    for entry in explanation.verdicts:
        colour, marker = _LOOKS[entry.verdict]
        seen = entry.evidence
        errors.plot(range(1, len(seen.open_loop) + 1), seen.open_loop, color=colour, linewidth=0.8, alpha=0.7)
        costs.plot(seen.cost_at_goal, seen.cost_reached, marker, color=colour, markerfacecolor="none")
    errors.axhline(1, color="0.3", linestyle=":", linewidth=1)
    errors.set(
        title="open-loop error",
        xlabel="model steps",
        ylabel="error of the model / error of standing still",
        yscale="log",
    )
    corner = max(max(entry.evidence.cost_at_goal, entry.evidence.cost_reached) for entry in explanation.verdicts)
    costs.plot([0, corner], [0, corner], color="0.3", linestyle=":", linewidth=1)
    costs.set(
        title="does the cost see that it failed?",
        xlabel="latent cost of the goal picture",
        ylabel="latent cost of the last frame (dotted: equal)",
    )
    _draw_ranks(ranks, explanation.verdicts)
    return figure


def _draw_verdicts(axes: Axes, explanation: Explanation) -> None:
    trials = len(explanation.verdicts)
    for place, (name, count) in enumerate(explanation.counts().items()):
        low, high = wilson_interval(count, trials)
        axes.barh(place, count, color=_LOOKS[name][0])
        axes.plot([low * trials, high * trials], [place, place], color="0.1", linewidth=1)
        axes.annotate(str(count), (high * trials, place), xytext=(4, -3), textcoords="offset points")
    axes.set_yticks(range(len(VERDICTS)), [name.replace(" within", "\nwithin") for name in VERDICTS])
    axes.invert_yaxis()
    axes.set(
        title=f"{trials} of {explanation.num_failures} failures; {explanation.num_again} succeed when run again",
        xlabel="failures (lines: 95 % Wilson intervals)",
    )


def _draw_ranks(axes: Axes, verdicts: tuple[Verdict, ...]) -> None:
    for place, name in enumerate(VERDICTS):
        colour, marker = _LOOKS[name]
        found = [entry.evidence.rank_correlation for entry in verdicts if entry.verdict == name]
        values = [value for value in found if value is not None]
        shift = np.linspace(-0.2, 0.2, len(values)) if len(values) > 1 else np.zeros(len(values))
        axes.plot(values, place + shift, marker, color=colour, markerfacecolor="none")
    axes.axvline(0, color="0.3", linestyle=":", linewidth=1)
    axes.set_yticks(range(len(VERDICTS)), [""] * len(VERDICTS))
    axes.invert_yaxis()
    axes.set(title="latent cost against true cost", xlabel="rank correlation along the episode", xlim=(-1.05, 1.05))
