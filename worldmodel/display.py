"""How records show themselves: one table for terminals (rich) and notebooks (HTML), with a small picture beside it.

A record that has a rich table gives it from `__rich__`, and `html_of` of the same table from `_repr_html_`: both say
the same. Every text is escaped.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table
from rich.text import Text

_WIDTH, _HEIGHT, _MARGIN = 240, 70, 4


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
