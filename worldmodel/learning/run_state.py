"""What a training run keeps on disk so that it can be killed at any moment: resumable state and metrics.

Kept apart from `fit.py`, which decides when to save: here is only what the files hold and how they are replaced.
Tensors go to safetensors, everything else to JSON; nothing is pickled.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from worldmodel.errors import CheckpointError, ConfigError

FORMAT = 1
STATE_NAME = "state.json"
METRICS_NAME = "metrics.jsonl"


@dataclass(kw_only=True)
class RunState:
    """Everything of a run that is not a tensor.

    Attributes:
        step: Optimiser steps done.
        seconds: Training time so far.
        fingerprint: Settings and parameter shapes a resuming run must share.
        batches: State of the batch source.
        window: Sums of the metrics not yet logged.
    """

    step: int
    seconds: float
    fingerprint: dict[str, Any]
    batches: dict[str, Any]
    window: dict[str, Any] = field(default_factory=dict)


def write_atomically(path: Path, text: str) -> None:
    """Replace a text file in one step: readers see the old or the new content, never a part."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with draft.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def save_run(run_dir: Path, task: nn.Module, optimizer: torch.optim.Optimizer, state: RunState) -> Path:
    """Save weights, buffers, optimiser moments and counters; the JSON is replaced last and makes the save valid.

    Args:
        run_dir: Existing folder.
        task: Module whose whole state dict is kept (EMA copies and running statistics are part of it).
        optimizer: Optimiser over parameters of `task`.
        state: The rest.

    Returns:
        Path of the tensor file.
    """
    tensors = {f"task.{name}": value for name, value in task.state_dict().items()}
    for name, parameter in task.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{name}.{key}"] = torch.as_tensor(value)
    path = run_dir / f"state-{state.step:08d}.safetensors"
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    # safetensors refuses shared storage, and a buffer may be a view: store copies
    save_file({name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}, draft)
    draft.replace(path)
    record = {"format": FORMAT, "tensors": path.name, **vars(state)}
    write_atomically(run_dir / STATE_NAME, json.dumps(record, indent=1))
    for old in run_dir.glob("state-*.safetensors"):
        if old != path:
            old.unlink()
    return path


def load_run(
    run_dir: Path, task: nn.Module, optimizer: torch.optim.Optimizer, fingerprint: dict[str, Any]
) -> RunState | None:
    """Restore what `save_run` wrote, or return None when the folder holds no run.

    Args:
        run_dir: Folder of the run.
        task: Module of the same structure.
        optimizer: Fresh optimiser over parameters of `task`.
        fingerprint: Settings of the run that wants to resume.

    Raises:
        ConfigError: The folder holds a run with other settings.
        CheckpointError: A file is damaged or missing.
    """
    path = run_dir / STATE_NAME
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        version = record.pop("format")
        tensor_path = run_dir / record.pop("tensors")
        state = RunState(**record)
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); delete the folder to start again") from error
    if version != FORMAT:
        raise CheckpointError(f"{path} has format {version}, this release reads {FORMAT}; use another run_dir")
    _check_fingerprint(run_dir, state.fingerprint, fingerprint)
    try:
        tensors = load_file(tensor_path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{tensor_path} is damaged ({error}); delete {run_dir} to start again") from error
    task.load_state_dict({k.removeprefix("task."): v for k, v in tensors.items() if k.startswith("task.")})
    _load_optimizer(task, optimizer, tensors)
    return state


def _check_fingerprint(run_dir: Path, saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    wanted = json.loads(json.dumps(wanted))  # tuples come back from JSON as lists
    different = [key for key in {**saved, **wanted} if saved.get(key) != wanted.get(key)]
    if different:
        key = different[0]
        raise ConfigError(
            f"{run_dir} holds a run with {key}={saved.get(key)!r}, this one has {wanted.get(key)!r}; "
            "use another run_dir, or delete the folder to start again"
        )


def _load_optimizer(task: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    for name, parameter in task.named_parameters():
        prefix = f"optimizer.{name}."
        moments = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        if moments:
            # fused optimisers keep the step counter beside the parameter, too
            optimizer.state[parameter] = {key: value.to(parameter.device) for key, value in moments.items()}


class MetricsFile:
    """`metrics.jsonl`: one JSON object a line, each with "kind" ("train" or "eval") and "step".

    Args:
        run_dir: Existing folder.
        step: Rows of later steps are dropped: a resumed run writes them again.
    """

    def __init__(self, run_dir: Path, *, step: int) -> None:
        self.path = run_dir / METRICS_NAME
        kept = [row for row in read_metrics(run_dir) if row["step"] <= step]
        write_atomically(self.path, "".join(json.dumps(row) + "\n" for row in kept))

    def append(self, row: dict[str, Any]) -> None:
        """Add one row; it is on disk when this returns."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """Rows of a run's metrics.jsonl, oldest first; a last line cut short by a kill is skipped."""
    path = run_dir / METRICS_NAME
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n"):
            rows.append(json.loads(line))
    return rows
