"""Cells of the low-label comparison on disk, and what they say together.

Separate from the command that makes them: a folder of cells is enough for tables, intervals and plot.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from worldmodel.errors import DataError
from worldmodel.evaluation.stats import Interval, Outcomes, clustered_difference, clustered_interval, wilson_interval


@dataclass(frozen=True, kw_only=True, order=True)
class Cell:
    """One training of one arm.

    Attributes:
        arm: Name of the arm.
        seed: Training seed.
        labels: Labelled episodes; None means all.
    """

    arm: str
    seed: int
    labels: int | None

    @property
    def name(self) -> str:
        """Name of its file and folder."""
        return f"{self.arm}-{'all' if self.labels is None else self.labels}-s{self.seed}"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A finished cell.

    Attributes:
        cell: Which one.
        variant: Recipe that was chosen on validation tasks; None when there was no choice.
        commands: Overrides of every command that made it, without paths.
        train_minutes: Minutes of training on the labelled episodes.
        held: Success at the last step, per look, one per task.
        ever: Success at any moment, per look, one per task.
        manifests: Hash of the tasks, per look.
        data: Content hash of the recording; empty in cells from before it was kept.
    """

    cell: Cell
    variant: str | None
    commands: Mapping[str, list[str]]
    train_minutes: float
    held: Mapping[str, list[bool]]
    ever: Mapping[str, list[bool]]
    manifests: Mapping[str, str]
    data: str = ""

    def with_looks_of(self, other: Row) -> Row:
        """This cell with the outcomes of another evaluation of it added."""
        return replace(
            self,
            held={**self.held, **other.held},
            ever={**self.ever, **other.ever},
            manifests={**self.manifests, **other.manifests},
        )

    def save(self, folder: Path) -> None:
        """Write it into a folder of cells; never a half file."""
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f"{self.cell.name}.partial"
        partial.write_text(json.dumps(asdict(self)) + "\n", encoding="utf-8")
        partial.replace(folder / f"{self.cell.name}.json")


def read_rows(folder: Path) -> list[Row]:
    """Finished cells of a folder, in order of their names; none when the folder is missing.

    Raises:
        DataError: A file is no cell.
    """
    rows = []
    for path in sorted(folder.glob("*.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            rows.append(Row(**{**record, "cell": Cell(**record["cell"])}))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is not a finished cell ({error}); remove it to run the cell again") from error
    return rows


@dataclass(frozen=True, kw_only=True)
class Results:
    """Cells side by side.

    Attributes:
        rows: Finished cells.
        floors: Held outcomes of agents without a model, by name, one per task.
        candidate: Arm that is compared with every other one.
    """

    rows: Sequence[Row]
    floors: Mapping[str, Sequence[bool]]
    candidate: str

    def __post_init__(self) -> None:
        for look in self.looks:
            if len({row.manifests[look] for row in self.rows if look in row.manifests}) > 1:
                raise DataError(f"the cells were judged on different tasks ({look}); compare cells of one run")

    @property
    def looks(self) -> list[str]:
        """Looks that were tried."""
        return list(dict.fromkeys(look for row in self.rows for look in row.held))

    @property
    def arms(self) -> list[str]:
        """Arms that were tried, the candidate first."""
        names = sorted({row.cell.arm for row in self.rows})
        return sorted(names, key=lambda name: name != self.candidate)

    @property
    def labels(self) -> list[int | None]:
        """Numbers of labelled episodes that were tried, ascending; None (all) last."""
        return sorted(
            {row.cell.labels for row in self.rows}, key=lambda count: float("inf") if count is None else count
        )

    def by_seed(self, arm: str, labels: int | None, look: str) -> dict[int, list[bool]]:
        """What every finished seed of an arm held at the end, task by task."""
        chosen = [row for row in self.rows if row.cell.arm == arm and row.cell.labels == labels and look in row.held]
        return {row.cell.seed: row.held[look] for row in sorted(chosen, key=lambda row: row.cell.seed)}

    def outcomes(self, arm: str, labels: int | None, look: str) -> Outcomes | None:
        """(S, T) bool: held at the end, one row per seed; None when no seed is finished."""
        seeds = self.by_seed(arm, labels, look)
        return np.array(list(seeds.values()), np.bool_) if seeds else None

    def rate(self, arm: str, labels: int | None, look: str) -> tuple[float, Interval, int] | None:
        """Rate, interval over seeds and tasks, and number of seeds; None when no seed is finished."""
        outcomes = self.outcomes(arm, labels, look)
        if outcomes is None:
            return None
        return float(outcomes.mean()), clustered_interval(outcomes), len(outcomes)

    def floor_rates(self) -> dict[str, float]:
        """Success of the agents without a model."""
        return {name: sum(held) / len(held) for name, held in self.floors.items()}

    def contrasts(self) -> list[dict[str, Any]]:
        """Candidate against every other arm over the seeds both have finished: difference, interval, what it shows.

        A seed draws the labelled episodes, the same for every arm, so seeds are compared in pairs. One pair shows
        nothing about arms, however clear its interval over tasks: trainings differ by more than that (docs/log.md).
        """
        found = []
        for look in self.looks:
            for labels in self.labels:
                ours = self.by_seed(self.candidate, labels, look)
                for arm in self.arms[1:]:
                    theirs = self.by_seed(arm, labels, look)
                    common = sorted(ours.keys() & theirs.keys())
                    if not common:
                        continue
                    mine, other = (np.array([held[seed] for seed in common], np.bool_) for held in (ours, theirs))
                    low, high = clustered_difference(mine, other, paired_seeds=True)
                    shown = "better" if low > 0 else "worse" if high < 0 else "no difference shown"
                    if len(common) == 1:
                        shown = "nothing: one seed"
                    difference = float(mine.mean() - other.mean())
                    found.append(
                        {
                            "look": look,
                            "labels": labels,
                            "against": arm,
                            "difference": difference,
                            "interval": [low, high],
                            "seeds": common,
                            "tasks": mine.shape[1],
                            "shown": shown,
                        }
                    )
        return found

    def to_json(self) -> dict[str, Any]:
        """The machine-readable record: every rate, every contrast."""
        rates = []
        for look in self.looks:
            for arm in self.arms:
                for labels in self.labels:
                    found = self.rate(arm, labels, look)
                    if found is not None:
                        rate, interval, seeds = found
                        place = {"arm": arm, "labels": labels, "look": look}
                        rates.append({**place, "held": rate, "interval": list(interval), "seeds": seeds})
        floors = {
            name: {"held": sum(held) / len(held), "interval": list(wilson_interval(sum(held), len(held)))}
            for name, held in self.floors.items()
        }
        return {"candidate": self.candidate, "rates": rates, "floors": floors, "contrasts": self.contrasts()}

    def tables(self) -> list[Table]:
        """Tables of rates, one per look, and of contrasts, one per look and number of labels."""
        tables = []
        for look in self.looks:
            table = Table(
                title=f"held at the end, {look.replace('_', ' ')}", caption="95 % intervals; (training seeds)"
            )
            table.add_column("arm")
            for labels in self.labels:
                table.add_column("all labels" if labels is None else f"{labels} labels", justify="right")
            for arm in self.arms:
                table.add_row(arm, *(_cell(self.rate(arm, labels, look)) for labels in self.labels))
            for name, held in self.floors.items():
                text = _percent(sum(held) / len(held), wilson_interval(sum(held), len(held)))
                table.add_row(name, *[text] * len(self.labels), style="dim")
            tables.append(table)
        return [*tables, *self._contrast_tables()]

    def _contrast_tables(self) -> list[Table]:
        """One table of contrasts per look and number of labels; narrow enough for 80 columns."""
        tables: dict[tuple[str, int | None], Table] = {}
        for entry in self.contrasts():
            place = (entry["look"], entry["labels"])
            if place not in tables:
                look, labels = place[0].replace("_", " "), "all" if place[1] is None else place[1]
                tables[place] = Table(
                    title=f"{self.candidate} minus the other arm, {look}, {labels} labels",
                    caption="points held at the end, bootstrap over pairs of seeds and tasks; (pairs)",
                )
                for heading in ("against", "difference", "shown"):
                    tables[place].add_column(heading, justify="right" if heading == "difference" else "left")
            low, high = entry["interval"]
            points = f"{100 * entry['difference']:+.0f} [{100 * low:+.0f}, {100 * high:+.0f}] ({len(entry['seeds'])})"
            tables[place].add_row(entry["against"], points, entry["shown"])
        return list(tables.values())


def _cell(found: tuple[float, Interval, int] | None) -> str:
    if found is None:
        return "-"
    rate, interval, seeds = found
    return f"{_percent(rate, interval)} ({seeds})"


def _percent(rate: float, interval: Interval) -> str:
    low, high = interval
    return f"{100 * rate:.0f} % [{100 * low:.0f}, {100 * high:.0f}]"
