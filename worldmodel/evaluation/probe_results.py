"""Cells of a frozen evaluation on disk, and what they say together: means over splits, intervals, contrasts, tables.

Separate from the command that makes them: a folder of cells is enough for tables and plot.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from worldmodel.errors import DataError
from worldmodel.evaluation.probe_tasks import TASKS
from worldmodel.evaluation.stats import Interval

DRAWS = 400
"""Bootstrap samples of the test clips that every cell is scored on."""
_SEED = 0


@dataclass(frozen=True, kw_only=True, order=True)
class ProbeCell:
    """One probe: task, encoder, number of labels and random split."""

    task: str
    arm: str
    share: float
    split: int

    @property
    def name(self) -> str:
        """Name of its file."""
        return f"{self.task}-{self.arm}-{100 * self.share:g}pct-s{self.split}"


@dataclass(frozen=True, kw_only=True)
class ProbeRow:
    """A finished cell.

    Attributes:
        cell: Which one.
        settings: Everything its outcome depends on.
        metric: What the score is.
        chance: Score of a guess that looks at nothing.
        labelled: Clips whose labels were used, for choosing and for training.
        score: On all test clips.
        draws: On bootstrap samples of them, the same for every arm of a task; None where a sample has no score.
        details: More numbers about the test clips.
        lr: Learning rate that was chosen.
        weight_decay: Weight decay that was chosen.
        validation: Score of every candidate on the validation part, None where it has none.
        seconds: Wall time of the training.
    """

    cell: ProbeCell
    settings: Mapping[str, Any]
    metric: str
    chance: float
    labelled: int
    score: float
    draws: Sequence[float | None]
    details: Mapping[str, float]
    lr: float
    weight_decay: float
    validation: Sequence[float | None]
    seconds: float

    def save(self, folder: Path) -> None:
        """Write it into a folder of cells; never a half file."""
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f"{self.cell.name}.partial"
        partial.write_text(json.dumps(asdict(self), allow_nan=False) + "\n", encoding="utf-8")
        partial.replace(folder / f"{self.cell.name}.json")


def read_cells(folder: Path) -> list[ProbeRow]:
    """Finished cells of a folder, in order of their names; none when the folder is missing.

    Raises:
        DataError: A file is no cell.
    """
    rows = []
    for path in sorted(folder.glob("*.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            rows.append(ProbeRow(**{**record, "cell": ProbeCell(**record["cell"])}))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is not a finished cell ({error}); remove it to run the cell again") from error
    return rows


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The splits of one arm at one number of labels, together.

    Attributes:
        task: Task.
        arm: Arm.
        share: Share of the labels.
        labelled: Clips that is.
        mean: Mean score of the splits.
        std: Their standard deviation (n - 1); None of a single one.
        interval: 95 % of the mean, over splits and test episodes.
        splits: How many splits are finished.
        metric: What the score is.
        chance: Score of a guess that looks at nothing.
    """

    task: str
    arm: str
    share: float
    labelled: int
    mean: float
    std: float | None
    interval: Interval
    splits: int
    metric: str
    chance: float

    @property
    def text(self) -> str:
        """As a cell of a table, in points of 100."""
        low, high = self.interval
        spread = "" if self.std is None else f" ± {100 * self.std:.1f}"
        return f"{100 * self.mean:.1f}{spread} [{100 * low:.0f}, {100 * high:.0f}]"


@dataclass(frozen=True, kw_only=True)
class ProbeResults:
    """Cells side by side.

    Attributes:
        rows: Finished cells.
        arms: Names of the arms in the order of the tables.
        candidate: Arm that is compared with every other one.
    """

    rows: Sequence[ProbeRow]
    arms: Sequence[str]
    candidate: str

    @property
    def tasks(self) -> list[str]:
        """Tasks that were tried."""
        return [task for task in TASKS if any(row.cell.task == task for row in self.rows)]

    @property
    def shares(self) -> list[float]:
        """Shares of the labels that were tried, ascending."""
        return sorted({row.cell.share for row in self.rows})

    def of(self, task: str, arm: str, share: float) -> list[ProbeRow]:
        """Finished splits of one place in the table, in order."""
        found = [row for row in self.rows if (row.cell.task, row.cell.arm, row.cell.share) == (task, arm, share)]
        return sorted(found, key=lambda row: row.cell.split)

    def summary(self, task: str, arm: str, share: float) -> Summary | None:
        """Mean, spread and interval of one place; None when no split is finished."""
        rows = self.of(task, arm, share)
        if not rows:
            return None
        scores = np.array([row.score for row in rows])
        return Summary(
            task=task,
            arm=arm,
            share=share,
            labelled=rows[0].labelled,
            mean=float(scores.mean()),
            std=float(scores.std(ddof=1)) if len(rows) > 1 else None,
            interval=split_interval(_draws(rows)),
            splits=len(rows),
            metric=rows[0].metric,
            chance=rows[0].chance,
        )

    def summaries(self) -> list[Summary]:
        """Every place that has a finished split."""
        places = [(task, arm, share) for task in self.tasks for arm in self.arms for share in self.shares]
        return [found for place in places if (found := self.summary(*place)) is not None]

    def contrasts(self) -> list[dict[str, Any]]:
        """Candidate minus every other arm on the splits both have: difference, interval, what it shows."""
        found = []
        for task in self.tasks:
            for share in self.shares:
                mine = {row.cell.split: row for row in self.of(task, self.candidate, share)}
                for arm in self.arms:
                    other = {row.cell.split: row for row in self.of(task, arm, share)}
                    common = sorted(mine.keys() & other.keys())
                    if arm == self.candidate or not common:
                        continue
                    ours, theirs = [mine[split] for split in common], [other[split] for split in common]
                    difference, (low, high) = _difference(ours, theirs)
                    found.append(
                        {
                            "task": task,
                            "labels": share,
                            "against": arm,
                            "difference": difference,
                            "interval": [low, high],
                            "splits": len(common),
                            "shown": "better" if low > 0 else "worse" if high < 0 else "no difference shown",
                        }
                    )
        return found

    def drop(self, harder: ProbeResults, task: str, arm: str, share: float) -> tuple[float, Interval] | None:
        """How much an arm loses on harder clips of the same labels, with its interval; None unless both have it.

        Args:
            harder: The same grid on other looks of the same test clips, with the same splits.
            task: Task.
            arm: Arm.
            share: Share of the labels.
        """
        plain, other = self.of(task, arm, share), harder.of(task, arm, share)
        if not plain or [row.cell.split for row in plain] != [row.cell.split for row in other]:
            return None
        return _difference(plain, other)

    def to_json(self) -> dict[str, Any]:
        """The machine-readable record: every mean, every contrast, every cell without its bootstrap."""
        cells = [
            {key: value for key, value in asdict(row).items() if key not in ("draws", "settings")} for row in self.rows
        ]
        scores = [{**asdict(entry), "interval": list(entry.interval)} for entry in self.summaries()]
        return {"candidate": self.candidate, "scores": scores, "contrasts": self.contrasts(), "cells": cells}

    def to_csv(self) -> str:
        """Means as comma-separated values with a header."""
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(
            ["task", "arm", "labels", "labelled", "mean", "std", "low", "high", "splits", "metric", "chance"]
        )
        for entry in self.summaries():
            numbers = [entry.labelled, entry.mean, entry.std, *entry.interval, entry.splits]
            writer.writerow([entry.task, entry.arm, entry.share, *numbers, entry.metric, entry.chance])
        return text.getvalue()

    def to_markdown(self) -> str:
        """The tables, for a README."""
        parts = []
        for task in self.tasks:
            parts.append(f"**{self._title(task)}**\n")
            parts.append("| encoder | " + " | ".join(f"{100 * share:g} % labels" for share in self.shares) + " |")
            parts.append("|---|" + "---:|" * len(self.shares))
            for arm in self.arms:
                found = [self.summary(task, arm, share) for share in self.shares]
                if any(found):
                    cells = ["-" if entry is None else entry.text for entry in found]
                    parts.append(f"| {arm} | " + " | ".join(cells) + " |")
            parts.append("")
        return "\n".join(parts)

    def tables(self) -> list[Table]:
        """One table of scores per task, one of contrasts."""
        tables = []
        for task in self.tasks:
            table = Table(title=self._title(task), caption="mean ± std over splits [95 % interval]; points of 100")
            table.add_column("encoder")
            for share in self.shares:
                table.add_column(f"{100 * share:g} %", justify="right")
            for arm in self.arms:
                found = [self.summary(task, arm, share) for share in self.shares]
                if any(found):
                    table.add_row(arm, *("-" if entry is None else entry.text for entry in found))
            tables.append(table)
        contrasts = Table(
            title=f"{self.candidate} minus the other arm, points", caption="bootstrap over splits and test episodes"
        )
        for heading in ("task", "labels", "against", "difference", "95 % interval", "shown"):
            contrasts.add_column(heading)
        for entry in self.contrasts():
            low, high = entry["interval"]
            interval = f"[{100 * low:+.0f}, {100 * high:+.0f}]"
            difference = f"{100 * entry['difference']:+.1f}"
            labels = f"{100 * entry['labels']:g} %"
            contrasts.add_row(entry["task"], labels, entry["against"], difference, interval, entry["shown"])
        return [*tables, contrasts]

    def _title(self, task: str) -> str:
        row = next(row for row in self.rows if row.cell.task == task)
        return f"{task}: {row.metric} (chance {100 * row.chance:.0f})"


def split_interval(draws: NDArray[np.float64]) -> Interval:
    """95 % interval of a mean over splits, from scores (splits, draws) on shared bootstrap samples of the test clips.

    In every draw the splits are drawn again as well; the same ones for the same shape, so that differences are paired.
    Samples without a score are left out.

    Raises:
        DataError: No draw has a score.
    """
    means = split_means(draws)
    means = means[np.isfinite(means)]
    if not len(means):
        raise DataError("no bootstrap sample of the test clips has a score; test on more clips")
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def split_means(draws: NDArray[np.float64]) -> NDArray[np.float64]:
    """(draws,) means over the splits drawn again in every draw, from scores (splits, draws)."""
    splits, count = draws.shape
    chosen = np.random.default_rng(_SEED).integers(splits, size=(count, splits))
    return np.asarray(draws.T[np.arange(count)[:, None], chosen].mean(axis=1))


def _difference(ours: Sequence[ProbeRow], theirs: Sequence[ProbeRow]) -> tuple[float, Interval]:
    """Mean difference of the same splits, and its interval."""
    scores = [float(np.mean([row.score for row in rows])) for rows in (ours, theirs)]
    return scores[0] - scores[1], split_interval(_draws(ours) - _draws(theirs))


def _draws(rows: Sequence[ProbeRow]) -> NDArray[np.float64]:
    """(splits, draws), NaN where there is no score."""
    return np.array([[np.nan if value is None else value for value in row.draws] for row in rows], np.float64)
