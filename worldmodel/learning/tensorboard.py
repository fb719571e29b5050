"""Rows of metrics as TensorBoard events: an optional listener of the training loop.

Apart from `fit.py`, which knows no logger; metrics.jsonl is written whatever listens.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from worldmodel.errors import ConfigError

FOLDER = "tensorboard"
_BOOKKEEPING = ("kind", "step")


class TensorBoardWriter:
    """Writes each row it is called with: numbers as scalars, texts as texts, named `<kind>/<name>`. A context manager.

    A resumed run repeats rows from the last saved step on; the first row it writes hides the older ones of the same and
    later steps.

    Args:
        folder: Of the event files; created with the first row.

    Raises:
        ConfigError: The package tensorboard is not installed.
    """

    def __init__(self, folder: str | Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigError(f"TensorBoard events need a package ({error}): pip install tensorboard") from error
        self._make = SummaryWriter
        self._folder = Path(folder)
        self._writer: SummaryWriter | None = None

    def __call__(self, row: Mapping[str, Any]) -> None:
        """Write one row of metrics: `kind`, `step`, and named numbers or texts."""
        kind, step = str(row["kind"]), int(row["step"])
        if self._writer is None:
            self._writer = self._make(str(self._folder), purge_step=step)
        for name, value in row.items():
            if name in _BOOKKEEPING:
                continue
            if isinstance(value, int | float):
                self._writer.add_scalar(f"{kind}/{name}", value, step)
            else:
                self._writer.add_text(f"{kind}/{name}", str(value), step)
        self._writer.flush()

    def __enter__(self) -> TensorBoardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._writer is not None:
            self._writer.close()
