"""Records of episodes: what docs/results holds, who describes it, and the rows of the results page made of it."""

from __future__ import annotations

import csv
import gzip
import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from worldmodel.evaluation.manifest import Manifest, load_manifest
from worldmodel.evaluation.stats import difference_of, quantile, wilson_interval
from worldmodel.evaluation.stored_baselines import stored_path
from worldmodel.models.checkpoint import shipped_checkpoints

RESULTS = Path(__file__).resolve().parent / "results"
RECORDS = RESULTS / "records.toml"
_EPISODE_COLUMNS = ("Row", "n", "Held", "Ever", "Replan p50 / p95", "Minutes", "Tasks", "Hardware", "Date", "Command")


class RecordError(ValueError):
    """A record and its description do not belong together."""


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """Episodes of one record, in the order of their tasks.

    Attributes:
        held: Success at the last step.
        ever: Success at any moment.
        start_distance_m: Distance to the goal at the start; identifies the tasks.
        replan_s: (p50, p95) of the seconds of a plan; medians of the episodes' quantiles where only these were kept.
        is_approximate: Whether they are such medians.
        planning_min: Minutes of planning, all episodes together.
    """

    held: list[bool]
    ever: list[bool]
    start_distance_m: list[float]
    replan_s: tuple[float, float]
    is_approximate: bool
    planning_min: float


def read_outcomes(path: Path) -> Outcomes:
    """Episodes of a JSON-lines or CSV file of `worldmodel evaluate`.

    Raises:
        RecordError: The episodes are not those from 0 on, each once.
    """
    text = path.read_text(encoding="utf-8")
    is_csv = path.suffix == ".csv"
    rows: list[dict[str, Any]] = list(csv.DictReader(text.splitlines())) if is_csv else _json_lines(text)
    rows.sort(key=lambda row: int(row["episode"]))
    if [int(row["episode"]) for row in rows] != list(range(len(rows))):
        raise RecordError(f"{path} does not hold every episode from 0 on once")
    if is_csv:
        halves, tails = ([float(row[name]) for row in rows] for name in ("replan_p50_s", "replan_p95_s"))
        planning = sum(int(row["replans"]) * half for row, half in zip(rows, halves, strict=True)) / 60
        seconds = (float(np.median(halves)), float(np.median(tails)))
    else:
        plans = [float(value) for row in rows for value in row["replan_s"]]
        planning, seconds = sum(plans) / 60, (quantile(plans, 0.5) or 0.0, quantile(plans, 0.95) or 0.0)
    return Outcomes(
        held=[str(row["held"]) == "True" for row in rows],
        ever=[str(row["ever"]) == "True" for row in rows],
        start_distance_m=[float(row["start_distance_m"]) for row in rows],
        replan_s=seconds,
        is_approximate=is_csv,
        planning_min=planning,
    )


def _json_lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def load_records() -> dict[str, Any]:
    """What records.toml says."""
    return tomllib.loads(RECORDS.read_text(encoding="utf-8"))


def described(records: Mapping[str, Any]) -> set[Path]:
    """Record files that records.toml describes."""
    found = {RESULTS / entry["file"] for section in records["section"] for entry in section.get("record", ())}
    folders = [RESULTS / section["folder"] for section in records["section"] if "folder" in section]
    return found | {path for folder in folders for path in folder.glob("*.json")}


def undescribed(records: Mapping[str, Any]) -> list[str]:
    """Record files that it does not describe."""
    files = {path for path in RESULTS.rglob("*.*") if path.suffix in (".json", ".jsonl", ".csv")}
    return sorted(path.relative_to(RESULTS).as_posix() for path in files - described(records))


def episode_section(section: Mapping[str, Any]) -> str:
    """Table of evaluations, each against the reference of its section."""
    reference = section.get("reference") or None
    first = read_outcomes(RESULTS / reference) if reference else None
    columns = [*_EPISODE_COLUMNS[:4], *(["Minus reference"] if first else []), *_EPISODE_COLUMNS[4:]]
    rows = []
    for entry in section.get("record", ()):
        facts = {**{key: section[key] for key in section if key not in ("record", "stored", "note", "title")}, **entry}
        rows.append(_episode_row(facts, first, is_reference=entry["file"] == reference))
    stored = [row for entry in section.get("stored", ()) for row in _stored_rows(entry)]
    return table(columns, rows + stored)


def _episode_row(facts: Mapping[str, Any], first: Outcomes | None, *, is_reference: bool) -> list[str]:
    outcomes = read_outcomes(RESULTS / facts["file"])
    digest = check_tasks(outcomes, load_manifest(facts["manifest"]), facts)
    note = f" ({facts['note']})" if "note" in facts else ""
    difference = [] if first is None else ["-" if is_reference else _difference(outcomes, first)]
    minutes = facts.get("minutes")
    shown = f"{minutes:g}" if minutes else f"plan {outcomes.planning_min / facts['workers']:.1f}"
    return [
        f"[{facts['title']}](results/{facts['file']}){note}",
        str(len(outcomes.held)),
        rate(outcomes.held),
        rate(outcomes.ever),
        *difference,
        f"{'about ' * outcomes.is_approximate}{outcomes.replan_s[0]:.2f} / {outcomes.replan_s[1]:.2f} s",
        shown,
        f"`{digest[:12]}`",
        "as above",
        str(facts["date"]),
        f"`{facts['command']}`",
    ]


def check_tasks(outcomes: Outcomes, manifest: Manifest, facts: Mapping[str, Any]) -> str:
    """Hash of the tasks of a record, which must begin like the shipped ones.

    Raises:
        RecordError: They do not, or there are more of them than the shipped manifest has and no hash is given.
    """
    shipped = [row.start_distance_m for row in manifest.baselines["noop"].rows]
    if "hash" not in facts and len(outcomes.held) > len(shipped):
        raise RecordError(f"{facts['file']} holds {len(outcomes.held)} tasks, the manifest {len(shipped)}: give hash=")
    for index, (found, wanted) in enumerate(zip(outcomes.start_distance_m, shipped, strict=False)):
        if abs(found - wanted) > 1e-9:
            raise RecordError(
                f"task {index} of {facts['file']} starts {found} m from its goal, that of manifest "
                f"{facts['manifest']} {wanted} m: it is another list of tasks"
            )
    return str(facts.get("hash", manifest.hash))


def _stored_rows(entry: Mapping[str, Any]) -> Iterator[list[str]]:
    """Rows of outcomes that are stored with a manifest or a checkpoint."""
    manifest = load_manifest(entry["manifest"])
    known = {name: list(baseline.rows) for name, baseline in manifest.baselines.items()}
    for folder in shipped_checkpoints().values():
        known |= _checkpoint_rows(stored_path(folder, manifest))
    for name in entry["names"]:
        rows = known[name]
        held, ever = ([_outcome(row, key) for row in rows] for key in ("held", "ever"))
        title = f"{entry['manifest'].capitalize()}, `{name}`"
        command = f"`{entry['command']}`"
        minutes = entry.get("minutes", "not kept")
        counted = [title, str(len(rows)), rate(held), rate(ever), ""]
        yield [*counted, minutes, f"`{manifest.hash[:12]}`", "as above", str(entry["date"]), command]


def _checkpoint_rows(path: Path) -> dict[str, list[Any]]:
    if not path.is_file():
        return {}
    stored = json.loads(gzip.decompress(path.read_bytes()))["baselines"]
    return {name: baseline["rows"] for name, baseline in stored.items()}


def _outcome(row: Any, key: str) -> bool:
    return bool(row[key] if isinstance(row, dict) else getattr(row, key))


def rate(outcomes: Sequence[bool]) -> str:
    """Percent of successes with its Wilson interval."""
    return share(sum(outcomes), len(outcomes))


def share(count: int, total: int) -> str:
    """`count` of `total` in percent with its Wilson interval."""
    low, high = wilson_interval(count, total)
    return f"{100 * count / total:.3g} % [{100 * low:.0f}, {100 * high:.0f}]"


def _difference(outcomes: Outcomes, first: Outcomes) -> str:
    count = min(len(outcomes.held), len(first.held))
    found = difference_of(np.array([outcomes.held[:count]]), np.array([first.held[:count]]))
    low, high = (100 * bound for bound in found.interval)
    return f"{100 * found.rate:+.0f} [{low:+.0f}, {high:+.0f}], p {found.p:.2g}" + (
        f" ({count} tasks)" if count < len(first.held) else ""
    )


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(re.sub(r'[|]', chr(92) + '|', cell) for cell in line)} |\n" for line in lines)
