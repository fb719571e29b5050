"""How records show themselves: one table for terminals (rich) and notebooks (HTML), with a small picture beside it.

A record that has a rich table gives it from `__rich__`, and `html_of` of the same table from `_repr_html_`: both say
the same. Every text is escaped.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from torch import Tensor

_WIDTH, _HEIGHT, _MARGIN = 240, 70, 4
_COSTS = 4  # costs a plan for several problems shows


def html_of(table: Table, picture: str = "") -> str:
    """A rich table as HTML, its title above, a picture and its caption below.

    Args:
        table: Its cells are plain texts.
        picture: HTML of `sparkline` or `film_strip`.
    """
    columns = [[str(cell) for cell in column.cells] for column in table.columns]
    heads = "".join(f"<th>{html.escape(str(column.header))}</th>" for column in table.columns)
    rows = "".join(
        f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in zip(*columns, strict=True)
    )
    head = f"<thead><tr>{heads}</tr></thead>" if table.show_header else ""
    title, caption = (html.escape(str(text or "")) for text in (table.title, table.caption))
    return (
        f"<figure><div><b>{title}</b></div><table>{head}<tbody>{rows}</tbody></table>{picture}"
        f"<figcaption>{caption}</figcaption></figure>"
    )


def sparkline(values: Sequence[float], label: str, *, high: float | None = None) -> str:
    """A small curve from zero upwards, as inline SVG in the colour of the text around it.

    Args:
        values: At least two, finite and not negative.
        label: What is drawn, with its unit.
        high: Value at the upper edge; None means the largest.
    """
    top = max(values) if high is None else high
    wide, tall = _WIDTH - 2 * _MARGIN, _HEIGHT - 2 * _MARGIN
    corners = " ".join(
        f"{_MARGIN + wide * index / (len(values) - 1):.1f},{_MARGIN + tall * (1 - value / (top or 1)):.1f}"
        for index, value in enumerate(values)
    )
    bottom = _HEIGHT - _MARGIN
    return (
        f'<div><svg width="{_WIDTH}" height="{_HEIGHT}" role="img" fill="none" stroke="currentColor">'
        f'<title>{html.escape(label)}</title><path stroke-opacity="0.4" d="M{_MARGIN} {_MARGIN}V{bottom}H{_WIDTH}"/>'
        f'<polyline stroke-width="2" points="{corners}"/></svg><br><small>{html.escape(label)}</small></div>'
    )


def film_strip(frames: NDArray[np.uint8], label: str) -> str:
    """Frames side by side as one PNG inside the HTML.

    Args:
        frames: (T, Y, X, 3) uint8, at least one.
        label: What is seen.
    """
    import imageio.v3 as imageio

    buffer = BytesIO()
    imageio.imwrite(buffer, np.concatenate(list(frames), axis=1), extension=".png")
    data = base64.b64encode(buffer.getvalue()).decode()
    text = html.escape(label)
    return f'<div><img alt="{text}" src="data:image/png;base64,{data}"><br><small>{text}</small></div>'


def facts_table(title: str, facts: dict[str, Any]) -> Table:
    """Names and values below each other, taken as they are: brackets in them are no markup of rich's."""
    table = Table(title=Text(title), show_header=False)
    table.add_column("what")
    table.add_column("value")
    for name, value in facts.items():
        table.add_row(Text(name), Text(str(value)))
    return table


def plan_table(plan: Any) -> Table:
    """What a plan is: its length, what it costs, how the search went.

    Args:
        plan: A `planners.Plan`, which this layer cannot name.
    """
    problems, horizon, width = plan.actions.shape
    costs = ", ".join(f"{float(cost):.4g}" for cost in plan.cost[:_COSTS])
    rest = f" and {problems - _COSTS} more" if problems > _COSTS else ""
    spread = _ran(plan, plan.trace.std)
    narrowed = f", spread of the elites {spread[0]:.0%} to {spread[-1]:.0%} of half the range" if spread else ""
    facts = {
        "plan": f"{horizon} model steps of {width} numbers",
        "cost": "unknown after a shift" if bool(plan.cost.isnan().all()) else costs + rest,
        "search": f"{len(spread)} iterations, {plan.elites.shape[1]} elites{narrowed}",
        "time": f"{plan.seconds:.3f} s",
    }
    return facts_table("plan" if problems == 1 else f"plans for {problems} problems", facts)


def plan_html(plan: Any) -> str:
    """`plan_table` with a curve of the first problem's search.

    Args:
        plan: A `planners.Plan`.
    """
    costs = _ran(plan, plan.trace.best_cost)
    if len(costs) < 2:
        return html_of(plan_table(plan))
    floor = min(0.0, *costs)
    label = f"lowest cost by iteration, {costs[0]:.4g} to {costs[-1]:.4g} (a.u.)"
    return html_of(plan_table(plan), sparkline([cost - floor for cost in costs], label))


def _ran(plan: Any, record: Tensor) -> list[float]:
    """The first problem's row of a record (B, J), without the iterations that did not run."""
    return [float(value) for value in record[0, : int(plan.trace.num_iterations[0])]]
