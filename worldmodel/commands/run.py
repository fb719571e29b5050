"""What every command shares: the run folder, and the outcome it hands back."""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from worldmodel.errors import ConfigError
from worldmodel.learning.fit import FitReport, Listener

CHECKPOINT_LICENCE = "MIT"
_SINK_PACKAGES = {"tensorboard": ("tensorboard", "tensorboard"), "rerun": ("rerun", "rerun-sdk")}
_ROW_KEYS = ("kind", "step", "seconds")
CONFIG_FILE, RUN_FILE = "config.yaml", "run.json"


@dataclass(kw_only=True)
class RunSettings:
    """Settings every command has.

    Attributes:
        run_dir: Folder of the run; None means outputs/<command>/<time>.
    """

    run_dir: str | None = None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a command hands back.

    Attributes:
        record: JSON-ready result, the object `--json` prints.
        report: What a person reads instead.
        status: Exit status of the program.
    """

    record: dict[str, Any]
    report: tuple[RenderableType, ...] = ()
    status: int = 0


@dataclass(kw_only=True)
class Run:
    """Where a command works and talks.

    Attributes:
        folder: The run folder; it exists.
        console: For notes along the way (stderr when stdout must hold JSON alone).
        progress: Whether progress bars may be shown.
        kept: What an interrupted run leaves behind; a command sets it before long work.
    """

    folder: Path
    console: Console
    progress: bool = True
    kept: str = field(default="")

    @classmethod
    def at(cls, folder: str | Path) -> Run:
        """A run of one's own in Python: the folder is created, notes go to stdout."""
        (place := Path(folder)).mkdir(parents=True, exist_ok=True)
        return cls(folder=place, console=Console())

    def note(self, text: str) -> None:
        """Say in one line what happens next."""
        self.console.print(text, highlight=False, soft_wrap=True)


def default_folder(command: str) -> Path:
    """A fresh folder below outputs/, named by the command and the time."""
    return Path("outputs") / command / time.strftime("%Y%m%d-%H%M%S")


def open_folder(folder: Path, command: str, config_yaml: str, facts: dict[str, Any]) -> None:
    """Create a run folder and keep in it what was asked for.

    Args:
        folder: Created when missing. One that holds an earlier run of the same command is continued.
        command: Name of the command.
        config_yaml: The resolved configuration.
        facts: Versions, seed, device and the like.

    Raises:
        ConfigError: The folder belongs to another command.
    """
    record = folder / RUN_FILE
    if record.is_file():
        try:
            earlier = json.loads(record.read_text(encoding="utf-8")).get("command")
        except (json.JSONDecodeError, AttributeError) as error:
            raise ConfigError(f"{record} is not the record of a run; choose another run_dir") from error
        if earlier != command:
            raise ConfigError(f"run_dir={folder} holds a run of `worldmodel {earlier}`; choose another run_dir")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).write_text(config_yaml, encoding="utf-8")
    facts = {"command": command, **facts, "python": platform.python_version()}
    record.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def numbers_of(report: FitReport) -> dict[str, float]:
    """Last training metrics and evaluation of a run, without the bookkeeping of their rows."""
    rows = {**report.metrics, **report.evaluation}
    return {name: float(value) for name, value in rows.items() if name not in _ROW_KEYS and _is_number(value)}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_sinks(chosen: Sequence[str], valid: str) -> None:
    """Refuse a sink that a command does not have, or whose package is missing, before work starts.

    Args:
        chosen: What `sinks=` says.
        valid: The one that the command has.

    Raises:
        ConfigError: As said; the message holds the pip line.
    """
    for name in chosen:
        if name != valid:
            raise ConfigError(f"unknown sink {name!r}; this command has: {valid}")
        module, package = _SINK_PACKAGES[name]
        if find_spec(module) is None:
            raise ConfigError(f"sinks=[{name}] needs a package that is not installed: pip install {package}")


@contextmanager
def listening(chosen: Sequence[str], folder: Path) -> Iterator[Listener | None]:
    """What listens to the metrics of a training run: TensorBoard events in its folder, when `sinks` says so."""
    check_sinks(chosen, "tensorboard")
    if not chosen:
        yield None
        return
    from worldmodel.learning.tensorboard import FOLDER, TensorBoardWriter

    with TensorBoardWriter(folder / FOLDER) as writer:
        yield writer


@contextmanager
def counted(title: str, show: bool) -> Iterator[Callable[[int, int], None]]:
    """Progress bar on stderr, off when that is no terminal; yields a function of (done, total)."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not (show and sys.stderr.isatty())) as bar:
        task = bar.add_task(title, total=None)

        def update(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield update


@contextmanager
def busy(title: str, show: bool) -> Iterator[None]:
    """Spinner on stderr for work of unknown length, off when that is no terminal."""
    if not (show and sys.stderr.isatty()):
        yield
        return
    with Console(stderr=True).status(f"{title} ..."):
        yield
