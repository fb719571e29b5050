"""The results page: every figure computed from its record in docs/results.

records.toml there adds what the records do not say themselves.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from results_records import RESULTS, episode_section, load_records, rate, share, table, undescribed

from worldmodel.evaluation.probe_results import ProbeResults, read_cells


def results_page() -> str:
    """The results, every figure computed from its record.

    Raises:
        RecordError: A record does not hold the tasks its description says.
    """
    records = load_records()
    hardware = records["hardware"]["vm"]
    parts = [
        "# Results\n\nEvery row links its record and says with which command, on which hardware, in how many minutes "
        "and on which tasks it was made. Rates have 95 % Wilson intervals, differences are paired over tasks "
        "(bootstrap, McNemar's p). Minutes are the wall time of the evaluation; `plan` in front of them means planning "
        "alone, summed over the record and divided by the workers, because the run's wall time was not kept; `about` "
        "in front of a replan time means medians over episodes. Tasks are the first 12 digits of the manifest's hash. "
        "All of this page is computed from the records when the site is built; "
        "[decision 11](decisions/0011-evidence.md) says what the rows are. "
        f"Hardware: {hardware}, unless a row says otherwise.\n"
    ]
    makers = {
        "episodes": episode_section,
        "cells": _cell_section,
        "speed": _speed_section,
        "counts": _count_section,
        "profile": _profile_section,
        "probe": _probe_section,
        "efficiency": _efficiency_section,
    }
    for section in records["section"]:
        body = makers[section.get("kind", "episodes")](section)
        parts.append(f"\n## {section['title']}\n\n{section['note']}\n\n{body}")
    if rest := undescribed(records):
        listed = "".join(f"- [{name}](results/{name})\n" for name in rest)
        parts.append(f"\n## Records without a description\n\nNot in `docs/results/records.toml` yet.\n\n{listed}")
    return "".join(parts)


def _cell_section(section: Mapping[str, Any]) -> str:
    rows = []
    for path in sorted((RESULTS / section["folder"]).glob("*.json")):
        cell = json.loads(path.read_text(encoding="utf-8"))
        for look, held in cell["held"].items():
            arm = f"[{cell['cell']['arm']}, {cell['cell']['labels']} labels, seed {cell['cell']['seed']}]"
            rows.append(
                [
                    f"{arm}(results/{path.relative_to(RESULTS).as_posix()}), {look.replace('_', ' ')}",
                    str(len(held)),
                    rate(held),
                    rate(cell["ever"][look]),
                    f"{cell['train_minutes']:g}",
                    f"`{cell['manifests'][look][:12]}`",
                    "as above",
                    str(section["date"]),
                    f"`{section['command']}`",
                ]
            )
    return table(("Row", "n", "Held", "Ever", "Minutes", "Tasks", "Hardware", "Date", "Command"), rows)


def _speed_section(section: Mapping[str, Any]) -> str:
    rows = []
    for entry in section["record"]:
        record = json.loads((RESULTS / entry["file"]).read_text(encoding="utf-8"))
        sizes, hardware, replans = record["sizes"], record["hardware"], record["replan_all_s"]
        ratios = [record[f"ratio_{name}"] for name in ("recompute", "swm", "pytorch_mppi")]
        rows.append(
            [
                f"[{entry['title']}](results/{entry['file']})",
                f"{sizes['num_samples']} x {sizes['num_iterations']}, {sizes['horizon']} steps",
                f"{record['replan_s']['p50']:.3g} s",
                f"{min(replans):.3g} to {max(replans):.3g} s ({len(replans)})",
                *("not run" if ratio is None else f"{ratio:.2f}" for ratio in ratios),
                f"{sum(replans) / 60:.2g}",
                f"{hardware['processor']}, {record['threads']} threads",
                str(section["date"]),
                f"`{entry['command']}`",
            ]
        )
    head = ("Model", "Candidates", "Replan p50", "All replans", "Recomputing the window", "stable-worldmodel")
    return table((*head, "pytorch-mppi", "Minutes (ours)", "Hardware", "Date", "Command"), rows)


def _count_section(section: Mapping[str, Any]) -> str:
    """Rows of "so many of so many", found in the records by dotted paths."""
    rows = []
    for entry in section["record"]:
        record = json.loads((RESULTS / entry["file"]).read_text(encoding="utf-8"))
        right, total = (_value(record, entry[key]) for key in ("right", "of"))
        rows.append(
            [
                f"[{entry['title']}](results/{entry['file']})",
                f"{right} of {total}",
                share(right, total),
                *(str(entry.get(key, section.get(key))) for key in ("minutes", "tasks")),
                "as above",
                str(section["date"]),
                f"`{entry.get('command', section.get('command'))}`",
            ]
        )
    return table(("Row", "Right", "Share", "Minutes", "Tasks", "Hardware", "Date", "Command"), rows)


def _profile_section(section: Mapping[str, Any]) -> str:
    """Where the time of all workers went."""
    (entry,) = section["record"]
    record = json.loads((RESULTS / entry["file"]).read_text(encoding="utf-8"))
    total = record["workers"] * record["seconds"]
    rows = [[name, f"{seconds:.1f} s", f"{100 * seconds / total:.1f} %"] for name, seconds in record["spent_s"].items()]
    made = (
        f"[Record](results/{entry['file']}) of `{section['command']}`: {record['episodes']} episodes, "
        f"{record['workers']} workers, {record['seconds'] / 60:.1f} minutes, {record['hardware']['processor']}, "
        f"{section['date']}; {100 * record['share']:.1f} % in model and simulator.\n\n"
    )
    return made + table(("Part", "All workers", "Share"), rows)


def _probe_section(section: Mapping[str, Any]) -> str:
    """Scores of frozen encoders, computed anew from the cells."""
    rows = [row for row in read_cells(RESULTS / section["folder"]) if row.cell.arm in section["arms"]]
    results = ProbeResults(rows=rows, arms=section["arms"], candidate=section["arms"][0])
    made = (
        f"{len(rows)} cells in `docs/results/{section['folder']}`, `{section['command']}`, {section['date']}: mean ± "
        "standard deviation over splits and [95 % interval] over splits and test episodes, in points of 100.\n\n"
    )
    return made + results.to_markdown() + (_drop_table(section, results) if "plain" in section else "")


def _drop_table(section: Mapping[str, Any], harder: ProbeResults) -> str:
    """What every arm loses against the plain clips of the same splits."""
    rows = read_cells(RESULTS / section["plain"])
    plain = ProbeResults(rows=rows, arms=harder.arms, candidate=harder.candidate)
    body = [
        [task, *(_points(plain.drop(harder, task, arm, labels)) for arm in harder.arms)]
        for task in harder.tasks
        for labels in harder.shares
    ]
    return "\nWhat is lost against the plain clips, in points.\n\n" + table(("Task", *harder.arms), body)


def _points(found: tuple[float, tuple[float, float]] | None) -> str:
    if found is None:
        return "-"
    value, (low, high) = found
    return f"{round(100 * value)} [{round(100 * low)}, {round(100 * high)}]"


def _efficiency_section(section: Mapping[str, Any]) -> str:
    """Ratios of pretrainings, task by task."""
    (entry,) = section["record"]
    record = json.loads((RESULTS / entry["file"]).read_text(encoding="utf-8"))
    mine, theirs = record["candidate"], record["reference"]
    ratios = {name: (found["score"], found["ratio"]) for name, found in record["tasks"].items()}
    rows = [
        [f"[{name}](results/{entry['file']})", f"{100 * score:.1f}", *map(_ratio, units.values())]
        for name, (score, units) in ratios.items()
    ]
    if record["mean_ratio"] is not None:
        rows.append(["geometric mean", "", *map(_ratio, record["mean_ratio"].values())])
    made = f"`{section['command']}`, {section['date']}, {record['hardware']['processor']}.\n\n"
    head = ("Task", "Best score both reach", *(f"{theirs} / {mine}, {unit}" for unit in ("clips", "FLOPs", "time")))
    return made + table(head, rows)


def _ratio(found: Mapping[str, Any]) -> str:
    if found["ratio"] is None or found["interval"] is None:
        return "none: random weights read as much"
    low, high = found["interval"]
    return f"{found['ratio']:.2f} [{low:.2f}, {high:.2f}]"


def _value(record: Any, path: str) -> int:
    for key in path.split("."):
        record = record[int(key)] if isinstance(record, list) else record[key]
    return int(record)
