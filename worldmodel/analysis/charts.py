"""Charts as inline SVG: they follow the page's light or dark colours, print sharply and need no picture file.

Colours come from the style sheet by class name (`s0`, `s1`, ...); dashes, positions and printed numbers carry the same
meaning, so that a chart survives a black-and-white print. Every text is escaped on its way in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

NUM_COLOURS = 6
_DASHES = ("none", "7 3", "2 3", "9 3 2 3")
_ROW_HEIGHT, _AXIS_HEIGHT, _CHAR_WIDTH = 30, 44, 7.2
_MAX_NAME = 34


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A share with its interval.

    Attributes:
        name: Of what it is a share.
        rate: In [0, 1].
        low: Lower end of the interval.
        high: Upper end.
        series: Number of its colour; None draws it grey, as what stands beside.
    """

    name: str
    rate: float
    low: float
    high: float
    series: int | None = None


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A share after every number of steps.

    Attributes:
        name: Whose.
        rate: In [0, 1], the start first.
        band: Interval at every step; None draws none.
        series: Number of its colour.
    """

    name: str
    rate: tuple[float, ...]
    band: tuple[tuple[float, float], ...] | None
    series: int


@dataclass(frozen=True, kw_only=True)
class Gap:
    """A difference of shares with its interval.

    Attributes:
        name: Of what.
        rate: In [-1, 1].
        low: Lower end of the interval.
        high: Upper end.
        series: Number of its colour.
    """

    name: str
    rate: float
    low: float
    high: float
    series: int


def percent(share: float) -> str:
    """A share as a number of per cent with one decimal, without the sign."""
    return f"{100 * share:.1f}"


def rate_bars(bars: Sequence[Bar], label: str) -> Markup:
    """Shares as bars below each other, each with its interval and its numbers.

    Args:
        bars: At least one; the first is on top.
        label: Under the axis.
    """
    names = [_short(bar.name) for bar in bars]
    left = 16 + _CHAR_WIDTH * max(map(len, names))
    plot, right = 290.0, 174.0
    place = _Scale(low=0.0, high=1.0, start=left, end=left + plot)
    bottom = _ROW_HEIGHT * len(bars) + 6
    parts = [_grid_line(place(share), bottom, f"{100 * share:.0f}") for share in (0, 0.25, 0.5, 0.75, 1)]
    for index, (bar, name) in enumerate(zip(bars, names, strict=True)):
        middle = _ROW_HEIGHT * (index + 0.5) + 4
        width = place(bar.rate) - left
        colour = "plain" if bar.series is None else _colour(bar.series)
        parts += [
            _name(name, bar.name, left - 8, middle),
            Markup('<rect class="bar {}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="14"/>').format(
                colour, left, middle - 7, width
            ),
            _whisker(place(bar.low), place(bar.high), middle),
            Markup('<text class="value" x="{:.1f}" y="{:.1f}">{} % ({} to {})</text>').format(
                left + plot + 12, middle + 4, percent(bar.rate), percent(bar.low), percent(bar.high)
            ),
        ]
    parts.append(_axis_label(label, left + plot / 2, bottom))
    return _svg(left + plot + right, bottom + _AXIS_HEIGHT, label, parts)


def gap_plot(gaps: Sequence[Gap], label: str) -> Markup:
    """Differences as points with intervals around a line at zero.

    Args:
        gaps: At least one; the first is on top.
        label: Under the axis.
    """
    names = [_short(gap.name) for gap in gaps]
    left = 16 + _CHAR_WIDTH * max(map(len, names))
    plot, right = 290.0, 174.0
    furthest = max(max(abs(gap.low), abs(gap.high), abs(gap.rate)) for gap in gaps)
    limit = max(0.05, math.ceil(furthest * 20) / 20)
    place = _Scale(low=-limit, high=limit, start=left, end=left + plot)
    bottom = _ROW_HEIGHT * len(gaps) + 6
    parts = [_grid_line(place(share * limit), bottom, f"{100 * share * limit:+.3g}") for share in (-1, -0.5, 0.5, 1)]
    parts += [
        _grid_line(place(0), bottom, "0"),
        Markup('<line class="zero" x1="{0:.1f}" x2="{0:.1f}" y1="0" y2="{1:.1f}"/>').format(place(0), bottom),
    ]
    for index, (gap, name) in enumerate(zip(gaps, names, strict=True)):
        middle = _ROW_HEIGHT * (index + 0.5) + 4
        parts += [
            _name(name, gap.name, left - 8, middle),
            _whisker(place(gap.low), place(gap.high), middle),
            Markup('<circle class="bar {}" cx="{:.1f}" cy="{:.1f}" r="5.5"/>').format(
                _colour(gap.series), place(gap.rate), middle
            ),
            Markup('<text class="value" x="{:.1f}" y="{:.1f}">{} ({} to {})</text>').format(
                left + plot + 12, middle + 4, points(gap.rate), points(gap.low), points(gap.high)
            ),
        ]
    parts.append(_axis_label(label, left + plot / 2, bottom))
    return _svg(left + plot + right, bottom + _AXIS_HEIGHT, label, parts)


def points(share: float) -> str:
    """A difference of shares in percentage points with its sign and one decimal."""
    return f"{100 * share:+.1f}"


def curve_plot(curves: Sequence[Curve], label: str) -> Markup:
    """Shares over environment steps; names stand at the ends of their lines.

    Args:
        curves: At least one.
        label: Of the vertical axis.
    """
    left, top, plot, height = 52.0, 10.0, 330.0, 220.0
    names = [_short(curve.name) for curve in curves]
    right = 56 + _CHAR_WIDTH * max(map(len, names))
    steps = max(1, max(len(curve.rate) for curve in curves) - 1)
    across = _Scale(low=0.0, high=float(steps), start=left, end=left + plot)
    up = _Scale(low=0.0, high=1.0, start=top + height, end=top)
    parts = []
    for share in (0, 0.25, 0.5, 0.75, 1):
        parts.append(
            Markup(
                '<line class="grid" x1="{:.1f}" x2="{:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
                '<text class="tick" x="{:.1f}" y="{:.1f}" text-anchor="end">{:.0f}</text>'
            ).format(left, left + plot, left - 8, up(share) + 4, 100 * share, y=up(share))
        )
    parts += [_grid_tick(across(step), top + height, str(step)) for step in _ticks(steps)]
    parts += [_band(curve, across, up) for curve in curves if curve.band is not None]
    parts += [_line(curve, across, up) for curve in curves]
    ends = _spread([up(curve.rate[-1]) for curve in curves], gap=17.0, low=top, high=top + height)
    parts += [_end_label(*entry, left + plot) for entry in zip(curves, names, ends, strict=True)]
    middle = top + height / 2
    parts += [
        Markup('<text class="axis" text-anchor="middle" transform="translate(13 {:.1f}) rotate(-90)">{}</text>').format(
            middle, label
        ),
        _axis_label("environment step", left + plot / 2, top + height),
    ]
    return _svg(left + plot + right, top + height + _AXIS_HEIGHT, f"{label}, by environment step", parts)


@dataclass(frozen=True, kw_only=True)
class _Scale:
    """Numbers to places on the picture."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (self.end - self.start) * (value - self.low) / (self.high - self.low)


def _svg(width: float, height: float, title: str, parts: Sequence[Markup]) -> Markup:
    body = Markup("").join(parts)
    return Markup('<svg class="chart" viewBox="0 0 {0:.0f} {1:.0f}" width="{0:.0f}" role="img">{2}{3}</svg>').format(
        width, height, Markup("<title>{}</title>").format(title), body
    )


def _colour(series: int) -> str:
    return f"s{series % NUM_COLOURS}"


def _short(name: str) -> str:
    """A name that fits: of a long one, beginning and end."""
    return name if len(name) <= _MAX_NAME else f"{name[: _MAX_NAME // 2 - 2]}...{name[-(_MAX_NAME // 2 - 1) :]}"


def _name(short: str, full: str, x: float, middle: float) -> Markup:
    return Markup('<text class="name" x="{:.1f}" y="{:.1f}" text-anchor="end">{}<title>{}</title></text>').format(
        x, middle + 4, short, full
    )


def _whisker(low: float, high: float, y: float) -> Markup:
    path = f"M{low:.1f} {y - 5:.1f}V{y + 5:.1f}M{low:.1f} {y:.1f}H{high:.1f}M{high:.1f} {y - 5:.1f}V{y + 5:.1f}"
    return Markup('<path class="whisker" d="{}"/>').format(path)


def _grid_line(x: float, bottom: float, text: str) -> Markup:
    line = Markup('<line class="grid" x1="{0:.1f}" x2="{0:.1f}" y1="0" y2="{1:.1f}"/>').format(x, bottom)
    return line + _grid_tick(x, bottom, text)


def _grid_tick(x: float, bottom: float, text: str) -> Markup:
    return Markup('<text class="tick" x="{:.1f}" y="{:.1f}" text-anchor="middle">{}</text>').format(
        x, bottom + 16, text
    )


def _axis_label(text: str, x: float, bottom: float) -> Markup:
    return Markup('<text class="axis" x="{:.1f}" y="{:.1f}" text-anchor="middle">{}</text>').format(
        x, bottom + 36, text
    )


def _line(curve: Curve, across: _Scale, up: _Scale) -> Markup:
    corners = " ".join(f"{across(step):.1f},{up(rate):.1f}" for step, rate in enumerate(curve.rate))
    return Markup('<polyline class="line {}" stroke-dasharray="{}" points="{}"><title>{}</title></polyline>').format(
        _colour(curve.series), _DASHES[curve.series % len(_DASHES)], corners, curve.name
    )


def _band(curve: Curve, across: _Scale, up: _Scale) -> Markup:
    assert curve.band is not None
    over = [f"{across(step):.1f},{up(high):.1f}" for step, (_, high) in enumerate(curve.band)]
    under = [f"{across(step):.1f},{up(low):.1f}" for step, (low, _) in enumerate(curve.band)]
    return Markup('<polygon class="band {}" points="{}"/>').format(
        _colour(curve.series), " ".join([*over, *reversed(under)])
    )


def _end_label(curve: Curve, name: str, y: float, x: float) -> Markup:
    return Markup(
        '<line class="line {}" stroke-dasharray="{}" x1="{:.1f}" x2="{:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
        '<text class="name" x="{:.1f}" y="{:.1f}">{}</text>'
    ).format(_colour(curve.series), _DASHES[curve.series % len(_DASHES)], x + 8, x + 38, x + 44, y + 4, name, y=y)


def _spread(places: Sequence[float], *, gap: float, low: float, high: float) -> list[float]:
    """Move places apart, in the order they have, until no two are closer than `gap`; the last stays above `high`."""
    order = sorted(range(len(places)), key=places.__getitem__)
    found, limit = list(places), low
    for index in order:
        found[index] = max(found[index], limit)
        limit = found[index] + gap
    limit = high
    for index in reversed(order):
        found[index] = min(found[index], limit)
        limit = found[index] - gap
    return found


def _ticks(steps: int) -> list[int]:
    """Whole numbers from 0 to `steps`, about six."""
    raw = max(1.0, steps / 6)
    power = 10 ** math.floor(math.log10(raw))
    unit = next(int(factor * power) for factor in (1, 2, 5, 10) if factor * power >= raw)
    return list(range(0, steps + 1, unit))
