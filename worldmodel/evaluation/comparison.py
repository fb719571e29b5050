"""Several searches on the same tasks: who succeeds how often, and how long a plan takes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.table import Table

from worldmodel.evaluation.stats import (
    Interval,
    clustered_difference,
    mcnemar_p,
    success_interval,
    success_rate,
)


@dataclass(frozen=True, kw_only=True)
class SearchRow:
    """One search and what it achieved.

    Attributes:
        name: In the table.
        held: Success at the end of every task, in the order of the manifest.
        ever: Success at any moment.
        replan_p50_s: Median seconds of a plan.
        replan_p95_s: Their 95th percentile.
        num_calls: Model calls per plan at most, None when unknown.
        budget_s: Seconds a plan was allowed, None for no limit.
        settings: Full settings of the search.
    """

    name: str
    held: tuple[bool, ...]
    ever: tuple[bool, ...]
    replan_p50_s: float
    replan_p95_s: float
    num_calls: int | None
    budget_s: float | None
    settings: dict[str, Any]

    @property
    def rate(self) -> float:
        """Share held at the end."""
        return success_rate(self.held)

    @property
    def interval(self) -> Interval:
        """95 % Wilson interval of `rate`."""
        return success_interval(self.held)

    def difference(self, reference: SearchRow) -> tuple[float, Interval]:
        """Difference to another search on the same tasks with its paired 95 % bootstrap interval."""
        ours, theirs = (np.array([row.held]) for row in (self, reference))
        return self.rate - reference.rate, clustered_difference(ours, theirs)

    def to_json(self, reference: SearchRow | None = None) -> dict[str, Any]:
        """JSON-ready form."""
        record: dict[str, Any] = {
            "name": self.name,
            "success_rate": self.rate,
            "success_interval": list(self.interval),
            "success_ever": success_rate(self.ever),
            "success_ever_interval": list(success_interval(self.ever)),
            "replan_s": {"p50": self.replan_p50_s, "p95": self.replan_p95_s},
            "num_calls": self.num_calls,
            "budget_s": self.budget_s,
            "settings": self.settings,
            "held": list(self.held),
            "ever": list(self.ever),
        }
        if reference is not None and reference is not self:
            difference, interval = self.difference(reference)
            record["difference"] = {
                "to": reference.name,
                "rate": difference,
                "interval": list(interval),
                "p": mcnemar_p(self.held, reference.held),
            }
        return record


def search_table(title: str, rows: Sequence[SearchRow], reference: SearchRow, caption: str) -> Table:
    """The comparison for a terminal.

    Args:
        title: Above the table.
        rows: In order.
        reference: Row the others are compared with.
        caption: Below the table.
    """
    table = Table(title=title, caption=caption)
    table.add_column("search")
    versus = (f"minus {reference.name}", "interval", "p (McNemar)")
    headings = ("held at end", "interval", *versus, "ever", "replan p50", "p95", "calls")
    for heading in headings:
        table.add_column(heading, justify="right")
    for row in rows:
        difference, (low, high) = row.difference(reference)
        p = mcnemar_p(row.held, reference.held)
        compared = (f"{100 * difference:+.0f}", f"{100 * low:+.0f} to {100 * high:+.0f}", f"{p:.2g}")
        table.add_row(
            row.name,
            f"{100 * row.rate:.0f} %",
            f"{100 * row.interval[0]:.0f}-{100 * row.interval[1]:.0f} %",
            *(("-", "-", "-") if row is reference else compared),
            f"{100 * success_rate(row.ever):.0f} %",
            f"{1000 * row.replan_p50_s:.0f} ms",
            f"{1000 * row.replan_p95_s:.0f} ms",
            "-" if row.num_calls is None else str(row.num_calls),
        )
    return table
