"""Finished episodes on disk, so that an interrupted evaluation continues where it stopped.

A run folder holds `evaluation.json` (what was run: everything an outcome depends on), `episodes.jsonl` (one line per
finished episode, timings included) and, at the end, `result.json` and `episodes.csv` (one row per episode). Workers,
batch size and the number of episodes are not part of what was run: outcomes do not depend on them, so they may change
between the attempts.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from worldmodel.errors import ConfigError, DataError
from worldmodel.evaluation.episodes import EpisodeResult, EpisodeRun
from worldmodel.evaluation.stats import quantile

IDENTITY, EPISODES, RESULT, TABLE = "evaluation.json", "episodes.jsonl", "result.json", "episodes.csv"


def describe(value: Any) -> Any:
    """JSON-ready description of settings: dataclasses become {"type": class name, **fields}, recursively.

    Raises:
        ConfigError: A value has no JSON form.
    """
    if is_dataclass(value) and not isinstance(value, type):
        return {"type": type(value).__name__} | {f.name: describe(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): describe(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [describe(entry) for entry in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return str(value)
    raise ConfigError(f"{value!r} cannot be written into a run folder: settings must be dataclasses or plain values")


class RunLog:
    """Append-only record of one run in one folder.

    Args:
        run_dir: Folder, created when missing.
        identity: JSON-ready description of everything an outcome depends on.

    Raises:
        ConfigError: The folder holds a run of something else.
        DataError: The folder's files are unreadable.
    """

    def __init__(self, run_dir: Path, identity: Mapping[str, Any]) -> None:
        self._path = run_dir / EPISODES
        self._run_dir = run_dir
        run_dir.mkdir(parents=True, exist_ok=True)
        stored = run_dir / IDENTITY
        if stored.exists():
            _check_identity(run_dir, _read_json(stored), dict(identity))
        elif self._path.exists():
            raise ConfigError(f"{run_dir} holds {EPISODES} but no {IDENTITY}: not one run; choose another run_dir=")
        else:
            _write_json(stored, identity)
        self.finished: dict[int, EpisodeRun] = self._recover()

    def append(self, runs: Iterable[EpisodeRun]) -> None:
        """Add finished episodes; they are on disk when this returns."""
        lines = []
        for run in runs:
            record = {**run.result.to_dict(), "replan_s": list(run.replan_s), "model_calls": run.model_calls}
            lines.append(json.dumps(record, allow_nan=False) + "\n")
            self.finished[run.result.episode] = run
        with self._path.open("a", encoding="utf-8") as file:
            file.write("".join(lines))
            file.flush()
            os.fsync(file.fileno())

    def finish(self, result: Mapping[str, Any], runs: Sequence[EpisodeRun]) -> None:
        """Write the result and its table beside the episodes.

        Args:
            result: JSON-ready.
            runs: The episodes it is about.
        """
        write_table(self._run_dir / TABLE, runs)
        _write_json(self._run_dir / RESULT, result)

    def _recover(self) -> dict[int, EpisodeRun]:
        """Read what is finished and cut off a line that an interruption left half written."""
        if not self._path.exists():
            return {}
        data = self._path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            with self._path.open("r+b") as file:
                file.truncate(len(whole))
        finished = {}
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                record = json.loads(line)
                run = EpisodeRun(
                    result=EpisodeResult.from_dict(record),
                    replan_s=tuple(record["replan_s"]),
                    model_calls=record.get("model_calls", 0),
                )
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(
                    f"line {number} of {self._path} is corrupt ({error}); choose another run_dir="
                ) from error
            finished[run.result.episode] = run
        return finished


def write_table(path: Path, runs: Sequence[EpisodeRun]) -> None:
    """Write one row per episode as comma-separated values with a header; what is not known is an empty cell.

    The moments of success have spaces between them, so that no reader takes them for a number.
    """
    names = [field.name for field in fields(EpisodeResult)]
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*names, "replan_p50_s", "replan_p95_s", "model_calls"])
        for run in runs:
            row = run.result.to_dict()
            row["success"] = None if run.result.success is None else " ".join(run.result.success)
            seconds = [quantile(run.replan_s, share) for share in (0.5, 0.95)]
            writer.writerow([*(row[name] for name in names), *seconds, run.model_calls])
    os.replace(partial, path)


def _check_identity(run_dir: Path, stored: dict[str, Any], asked: dict[str, Any]) -> None:
    """Refuse to mix outcomes of different things; name what differs."""
    old, new = flatten(stored), flatten(json.loads(json.dumps(asked)))
    differing = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    if differing:
        listed = "; ".join(f"{key} {old.get(key)!r} there, {new.get(key)!r} now" for key in differing[:4])
        more = f" and {len(differing) - 4} more" if len(differing) > 4 else ""
        raise ConfigError(f"{run_dir} holds another run: {listed}{more}; choose another run_dir= or the same settings")


def flatten(value: Any, key: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted names; anything that is no mapping is a value."""
    if not isinstance(value, dict):
        return {key: value}
    flat: dict[str, Any] = {}
    for name, entry in value.items():
        flat |= flatten(entry, f"{key}.{name}" if key else name)
    return flat


def _read_json(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); choose another run_dir=") from error
    if not isinstance(record, dict):
        raise DataError(f"{path} does not hold a JSON object; choose another run_dir=")
    return record


def _write_json(path: Path, record: Mapping[str, Any]) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(record, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(partial, path)
