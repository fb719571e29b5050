"""Pages of the site that follow from the code or from records: API reference, decisions, results.

mkdocs calls `on_config`, `on_files` and `on_page_markdown`. Figures on the results page are computed here from the
files in docs/results; docs/results/records.toml adds what the records do not say themselves.
"""

from __future__ import annotations

import csv
import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from worldmodel.evaluation.manifest import Manifest, load_manifest
from worldmodel.evaluation.probe_results import ProbeResults, read_cells
from worldmodel.evaluation.stats import difference_of, quantile, wilson_interval
from worldmodel.evaluation.stored_baselines import stored_path
from worldmodel.models.checkpoint import shipped_checkpoints

DOCS = Path(__file__).resolve().parent
RESULTS = DOCS / "results"
RECORDS = RESULTS / "records.toml"
API = {
    "worldmodel": "Records, errors, conformance checks and configuration",
    "envs": "Environments: the contract, the tasks, scripted policies, rendering",
    "data": "Episodes on disk, clips, normalisation",
    "models": "What is learned: encoders, heads, predictors, the world model, checkpoints",
    "learning": "How it is learned: targets, dynamics, the training loop, probes, health",
    "planners": "Searches for cheap action sequences",
    "control": "From a model to actions: objectives, costs, agents, collection",
    "evaluation": "What is claimed: manifests, episodes, statistics, comparisons, verdicts",
    "analysis": "What can be seen: figures, videos, reports",
    "commands": "The commands of the program and their settings",
}
_TOP_LEVEL = {"envs", "planners"}
_TOP_MODULES = ("types", "errors", "testing", "config", "display", "doctor", "cli")
_EPISODE_COLUMNS = ("Row", "n", "Held", "Ever", "Replan p50 / p95", "Minutes", "Tasks", "Hardware", "Date", "Command")


class RecordError(ValueError):
    """A record and its description do not belong together."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fill the parts of the navigation that follow from files."""
    api: list[Any] = ["api/index.md", *({name: f"api/{name}.md"} for name in API)]
    decisions: list[Any] = ["decisions/index.md", *({_title(path): f"decisions/{path.name}"} for path in _decisions())]
    notebooks: list[Any] = [
        {_title(path): f"notebooks/{path.name}"} for path in sorted((DOCS / "notebooks").glob("*.md"))
    ]
    _fill(config.nav, {"API reference": api, "Decisions": decisions, "Notebooks": notebooks})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are written here."""
    pages = {"results.md": results_page(), "decisions/index.md": decisions_page(), **api_pages(DOCS.parent)}
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Make links that are right in the repository right on the site."""
    if page.file.src_uri in ("changelog.md", "contributing.md"):  # files of the root, whose links begin there
        text = (DOCS.parent / f"{page.file.src_uri.removesuffix('.md').upper()}.md").read_text(encoding="utf-8")
        return text.replace("](docs/", "](")
    return markdown.replace("](decisions/)", "](decisions/index.md)")


def _fill(nav: Any, filled: Mapping[str, list[Any]]) -> None:
    """Replace the entries of some names, anywhere in a navigation."""
    for entry in nav if isinstance(nav, list) else []:
        for name in entry if isinstance(entry, dict) else ():
            entry[name] = filled.get(name, entry[name])
            _fill(entry[name], filled)


# ---- API and decisions -----------------------------------------------------------------------------------------------


def api_pages(root: Path) -> dict[str, str]:
    """Source name to text: one page per package, one section per public module, and an index."""
    index = "".join(f"- [`{_import_name(name)}`]({name}.md): {text}.\n" for name, text in API.items())
    pages = {"api/index.md": f"# API reference\n\nGenerated from the docstrings.\n\n{index}"}
    for name, text in API.items():
        folder = root / name if name in _TOP_LEVEL else root / "worldmodel" / ("" if name == "worldmodel" else name)
        modules = _TOP_MODULES if name == "worldmodel" else _modules(folder)
        sections = "".join(
            f"\n::: {_import_name(name)}.{module}\n    options: {{heading_level: 2}}\n" for module in modules
        )
        pages[f"api/{name}.md"] = f"# {_import_name(name)}\n\n{text}.\n{sections}"
    return pages


def _import_name(name: str) -> str:
    return name if name == "worldmodel" else f"worldmodel.{name}"


def _modules(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))


def _decisions() -> list[Path]:
    return sorted((DOCS / "decisions").glob("[0-9]*.md"))


def _title(path: Path) -> str:
    return path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")


def decisions_page() -> str:
    """Index of the decisions."""
    lines = "".join(f"- [{_title(path)}]({path.name})\n" for path in _decisions())
    return f"# Decisions\n\nChoices with a cost: what was chosen, why, and what it costs.\n\n{lines}"


# ---- Results ---------------------------------------------------------------------------------------------------------


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
        "episodes": _episode_section,
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


def _episode_section(section: Mapping[str, Any]) -> str:
    reference = section.get("reference") or None
    first = read_outcomes(RESULTS / reference) if reference else None
    columns = [*_EPISODE_COLUMNS[:4], *(["Minus reference"] if first else []), *_EPISODE_COLUMNS[4:]]
    rows = []
    for entry in section.get("record", ()):
        facts = {**{key: section[key] for key in section if key not in ("record", "stored", "note", "title")}, **entry}
        rows.append(_episode_row(facts, first, is_reference=entry["file"] == reference))
    stored = [row for entry in section.get("stored", ()) for row in _stored_rows(entry)]
    return _table(columns, rows + stored)


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
        _rate(outcomes.held),
        _rate(outcomes.ever),
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
        counted = [title, str(len(rows)), _rate(held), _rate(ever), ""]
        yield [*counted, minutes, f"`{manifest.hash[:12]}`", "as above", str(entry["date"]), command]


def _checkpoint_rows(path: Path) -> dict[str, list[Any]]:
    import gzip

    if not path.is_file():
        return {}
    stored = json.loads(gzip.decompress(path.read_bytes()))["baselines"]
    return {name: baseline["rows"] for name, baseline in stored.items()}


def _outcome(row: Any, key: str) -> bool:
    return bool(row[key] if isinstance(row, dict) else getattr(row, key))


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
                    _rate(held),
                    _rate(cell["ever"][look]),
                    f"{cell['train_minutes']:g}",
                    f"`{cell['manifests'][look][:12]}`",
                    "as above",
                    str(section["date"]),
                    f"`{section['command']}`",
                ]
            )
    return _table(("Row", "n", "Held", "Ever", "Minutes", "Tasks", "Hardware", "Date", "Command"), rows)


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
    return _table((*head, "pytorch-mppi", "Minutes (ours)", "Hardware", "Date", "Command"), rows)


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
                _share(right, total),
                *(str(entry.get(key, section.get(key))) for key in ("minutes", "tasks")),
                "as above",
                str(section["date"]),
                f"`{entry.get('command', section.get('command'))}`",
            ]
        )
    return _table(("Row", "Right", "Share", "Minutes", "Tasks", "Hardware", "Date", "Command"), rows)


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
    return made + _table(("Part", "All workers", "Share"), rows)


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
        [task, *(_points(plain.drop(harder, task, arm, share)) for arm in harder.arms)]
        for task in harder.tasks
        for share in harder.shares
    ]
    return "\nWhat is lost against the plain clips, in points.\n\n" + _table(("Task", *harder.arms), body)


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
    return made + _table(head, rows)


def _ratio(found: Mapping[str, Any]) -> str:
    if found["ratio"] is None or found["interval"] is None:
        return "none: random weights read as much"
    low, high = found["interval"]
    return f"{found['ratio']:.2f} [{low:.2f}, {high:.2f}]"


def _value(record: Any, path: str) -> int:
    for key in path.split("."):
        record = record[int(key)] if isinstance(record, list) else record[key]
    return int(record)


def _rate(outcomes: Sequence[bool]) -> str:
    return _share(sum(outcomes), len(outcomes))


def _share(count: int, total: int) -> str:
    low, high = wilson_interval(count, total)
    return f"{100 * count / total:.3g} % [{100 * low:.0f}, {100 * high:.0f}]"


def _difference(outcomes: Outcomes, first: Outcomes) -> str:
    count = min(len(outcomes.held), len(first.held))
    found = difference_of(np.array([outcomes.held[:count]]), np.array([first.held[:count]]))
    low, high = (100 * bound for bound in found.interval)
    return f"{100 * found.rate:+.0f} [{low:+.0f}, {high:+.0f}], p {found.p:.2g}" + (
        f" ({count} tasks)" if count < len(first.held) else ""
    )


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(re.sub(r'[|]', chr(92) + '|', cell) for cell in line)} |\n" for line in lines)
