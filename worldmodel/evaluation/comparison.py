"""Several agents on the same tasks: who succeeds how often, how sure that is, and in what they differ.

`Arm` is one side of any comparison. `SearchRow` adds what matters between searches (`worldmodel bench planners`);
`worldmodel compare` puts finished runs side by side (`runs_compared.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from worldmodel.evaluation.result import points_of
from worldmodel.evaluation.runlog import flatten
from worldmodel.evaluation.stats import (
    SIGNIFICANCE,
    Difference,
    Interval,
    Outcomes,
    clustered_interval,
    difference_of,
)

OutcomeRows = tuple[tuple[bool, ...], ...]
"""Success per task, one row per training seed."""
_PLACES = frozenset({"checkpoint"})
"""Settings that say where something lay, not what it was."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One side of a comparison.

    Attributes:
        name: In the table.
        held: Success at the end of every task, in the order of the manifest; one row per training seed.
        ever: Success at any moment, likewise.
    """

    name: str
    held: OutcomeRows
    ever: OutcomeRows

    @property
    def rate(self) -> float:
        """Share held at the end, mean over training seeds."""
        return float(np.mean(self.held))

    @property
    def interval(self) -> Interval:
        """Its 95 % interval: Wilson for one training seed, clustered over seeds and tasks for several."""
        return _interval(self.held)

    @property
    def rate_ever(self) -> float:
        """Share with success at any moment, mean over training seeds."""
        return float(np.mean(self.ever))

    @property
    def interval_ever(self) -> Interval:
        """Its 95 % interval, as `interval`."""
        return _interval(self.ever)

    def difference(self, reference: Arm) -> Difference:
        """This arm minus another on the same tasks."""
        return _difference(self.held, reference.held)

    def to_json(self, reference: Arm | None = None) -> dict[str, Any]:
        """JSON-ready form, with the difference to a reference if that is another arm."""
        record: dict[str, Any] = {
            "name": self.name,
            "success_rate": self.rate,
            "success_interval": list(self.interval),
            "success_ever": self.rate_ever,
            "success_ever_interval": list(self.interval_ever),
        }
        if reference is not None and reference is not self:
            record["difference"] = {"to": reference.name, **self.difference(reference).to_json()}
        return record


@dataclass(frozen=True, kw_only=True)
class SearchRow(Arm):
    """One search and what it achieved.

    Attributes:
        replan_p50_s: Median seconds of a plan.
        replan_p95_s: Their 95th percentile.
        num_calls: Model calls per plan at most, None when unknown.
        budget_s: Seconds a plan was allowed, None for no limit.
        settings: Full settings of the search.
    """

    replan_p50_s: float
    replan_p95_s: float
    num_calls: int | None
    budget_s: float | None
    settings: dict[str, Any]

    def to_json(self, reference: Arm | None = None) -> dict[str, Any]:
        """JSON-ready form."""
        return {
            **super().to_json(reference),
            "replan_s": {"p50": self.replan_p50_s, "p95": self.replan_p95_s},
            "num_calls": self.num_calls,
            "budget_s": self.budget_s,
            "settings": self.settings,
            "held": list(self.held[0]),
            "ever": list(self.ever[0]),
        }


def verdict(difference: Difference) -> str:
    """What may be said about an arm after a comparison with its reference: better, worse, or no difference shown."""
    if difference.p < SIGNIFICANCE and difference.rate != 0:
        return "better" if difference.rate > 0 else "worse"
    needed = difference.episodes_needed
    more = "" if needed is None else f"; about {needed} episodes would be needed to see a gap of this size"
    return f"no difference shown (p = {p_text(difference.p)}, n = {difference.episodes}{more})"


def p_text(p: float) -> str:
    """A p-value with two digits and without the leading zero: ".41", ".0021", "< .0001", "1"."""
    if p < 1e-4:
        return "< .0001"
    digits = f"{p:.{max(2, 1 - int(np.floor(np.log10(p))))}f}"
    return "1" if float(digits) >= 1 else digits.removeprefix("0")


def short_names(folders: Sequence[str]) -> list[str]:
    """A name for every folder: its last part, or as many as it takes to tell it from the others.

    A number alone (a job of a multirun) is no name: its folder comes with it.
    """
    parts = [Path(folder).parts for folder in folders]
    names = []
    for own in parts:
        length = min(2 if own and own[-1].isdecimal() else 1, len(own))
        while length < len(own) and sum(other[-length:] == own[-length:] for other in parts) > 1:
            length += 1
        names.append("/".join(own[-length:]).replace("//", "/"))
    return names


def differing_settings(descriptions: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The settings in which agents differ, one value per agent.

    What only some of them have follows from a difference that is named (the planner's `type`, say) and is left out; so
    is where a checkpoint lay, as its hash says what it was.

    Args:
        descriptions: The `agent` of every result.
    """
    flat = [flatten(dict(description)) for description in descriptions]
    shared = [key for key in flat[0] if key not in _PLACES and all(key in other for other in flat)]
    return {
        key: [other[key] for other in flat] for key in shared if any(other[key] != flat[0][key] for other in flat[1:])
    }


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
    for heading in (*arm_headings(reference), "p (McNemar)", "replan p50", "p95", "calls"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            row.name,
            *arm_cells(row, reference),
            "-" if row is reference else p_text(row.difference(reference).p),
            f"{1000 * row.replan_p50_s:.0f} ms",
            f"{1000 * row.replan_p95_s:.0f} ms",
            "-" if row.num_calls is None else str(row.num_calls),
        )
    return table


def arm_headings(reference: Arm) -> tuple[str, ...]:
    """Columns that every comparison has after the name; `arm_cells` fills them."""
    return "held at end", "interval", "ever", f"minus {reference.name}"


def arm_cells(arm: Arm, reference: Arm) -> tuple[str, ...]:
    """One row of `arm_headings`."""
    low, high = arm.interval
    return (
        f"{100 * arm.rate:.0f} %",
        f"{100 * low:.0f}-{100 * high:.0f} %",
        f"{100 * arm.rate_ever:.0f} %",
        "-" if arm is reference else points_of(arm.difference(reference)),
    )


@lru_cache(maxsize=256)
def _interval(outcomes: OutcomeRows) -> Interval:
    """A bootstrap takes a fraction of a second, and every number is shown in several places."""
    return clustered_interval(_array(outcomes))


@lru_cache(maxsize=256)
def _difference(first: OutcomeRows, second: OutcomeRows) -> Difference:
    return difference_of(_array(first), _array(second))


def _array(outcomes: OutcomeRows) -> Outcomes:
    return np.array(outcomes, dtype=np.bool_)
