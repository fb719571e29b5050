"""The book that lets a chain of stages continue where it stopped, and refuse to continue with other settings."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from worldmodel.errors import ConfigError

_FREE_KEYS = ("workers", "batch", "run_dir", "sinks")  # outcomes do not depend on them


class StageBook:
    """Which stages are done, with which settings, how long they took and what came out.

    Args:
        path: JSON file; read when it exists.

    Raises:
        ConfigError: The file is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stages: dict[str, Any] = {}
        if path.is_file():
            try:
                self._stages = json.loads(path.read_text(encoding="utf-8"))
            except json.JSONDecodeError as error:
                raise ConfigError(f"{path} is damaged; remove it to run every stage again") from error

    def has(self, name: str) -> bool:
        """Whether a stage is done."""
        return name in self._stages

    def minutes(self, name: str) -> float:
        """How long a stage that is done took."""
        return float(self._stages[name]["seconds"]) / 60

    def record(self, name: str) -> dict[str, Any]:
        """What a stage that is done handed back."""
        return dict(self._stages[name]["record"])

    def check(self, name: str, settings: Any) -> None:
        """Refuse to mix settings in one folder.

        Raises:
            ConfigError: The stage is done with other settings; names the first difference.
        """
        if not self.has(name):
            return
        before, now = _flat(self._stages[name]["settings"]), _flat(_essence(settings))
        for key in sorted({*before, *now}):
            if before.get(key) != now.get(key):
                raise ConfigError(
                    f"{self._path.parent} holds {name} done with {key}={before.get(key)}, asked for {now.get(key)}; "
                    "choose another run_dir"
                )

    def add(self, name: str, settings: Any, seconds: float, record: dict[str, Any]) -> None:
        """Write down a stage that has just been done."""
        self._stages[name] = {"settings": _essence(settings), "seconds": seconds, "record": record}
        partial = self._path.with_suffix(".partial")
        partial.write_text(json.dumps(self._stages, indent=2) + "\n", encoding="utf-8")
        partial.replace(self._path)


def _essence(settings: Any) -> dict[str, Any]:
    """JSON form of the settings an outcome depends on."""
    essence: dict[str, Any] = json.loads(
        json.dumps({key: value for key, value in asdict(settings).items() if key not in _FREE_KEYS})
    )
    return essence


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings to dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
