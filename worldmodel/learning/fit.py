"""The one training loop: V-JEPA, dynamics and probes all run through `fit`.

A task is a module whose forward returns {"loss": tensor, ...parts}; a batch source is anything with `next_batch` and
a JSON-able state. Lightning Fabric provides device, precision and launch; files are written by `run_state.py`.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from lightning_fabric import Fabric
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from worldmodel.errors import ConfigError, WorldModelError
from worldmodel.learning.fit_config import FitConfig, has_native_bf16, learning_rate, step_generator, weight_decay
from worldmodel.learning.run_state import MetricsFile, RunState, load_run, save_run

__all__ = [
    "BatchSource",
    "DivergenceError",
    "Evaluate",
    "FitConfig",
    "FitReport",
    "Listener",
    "Rates",
    "StepHook",
    "fit",
    "to_device",
]


class DivergenceError(WorldModelError, ArithmeticError):
    """The training loss is no longer finite."""


class BatchSource(Protocol):
    """Endless, resumable stream of batches (tensors, arrays, or dataclasses, dicts and tuples of them)."""

    def next_batch(self) -> Any:
        """Return the next batch."""

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the stream as JSON-able values."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a position `state_dict` gave; the next batches are then the same."""


@runtime_checkable
class StepHook(Protocol):
    """A task that has something to do after each optimiser step (an EMA update)."""

    def after_step(self, step: int, total_steps: int) -> None:
        """`step` optimiser steps of `total_steps` are done."""


@runtime_checkable
class Rates(Protocol):
    """A task some of whose parameters learn more slowly than the others."""

    def lr_scale(self, name: str) -> float:
        """Share of the learning rate that the parameter of that name gets."""


Evaluate = Callable[[int], Mapping[str, float | str]]
"""Maps the number of steps done to named results, which go to metrics.jsonl; "status" is shown in the progress bar."""


Listener = Callable[[Mapping[str, Any]], None]
"""Gets every row of metrics as it is written: "kind", "step", and named numbers or texts."""

_Advance = Callable[[int, float | None, str], None]


@dataclass(kw_only=True)
class FitReport:
    """What a run did.

    Attributes:
        step: Steps done in all.
        resumed_from: Step at which this call took over (0 for a fresh run).
        seconds: Training time over all calls.
        metrics: Last row of training metrics.
        evaluation: Last evaluation, or an empty dict.
    """

    step: int
    resumed_from: int
    seconds: float
    metrics: dict[str, Any]
    evaluation: dict[str, Any]


def to_device(batch: Any, device: torch.device) -> Any:
    """Copy the tensors and arrays of a batch to the device; dataclasses, dicts, lists and tuples are rebuilt."""
    if isinstance(batch, np.ndarray):
        return torch.from_numpy(batch).to(device)
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        fields = {f.name: to_device(getattr(batch, f.name), device) for f in dataclasses.fields(batch) if f.init}
        return dataclasses.replace(batch, **fields)
    if isinstance(batch, dict):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        return type(batch)(to_device(value, device) for value in batch)
    return batch


class _Sealed:
    """Carries a batch through Fabric, whose mixed precision takes dataclasses apart and fails on frozen ones."""

    def __init__(self, batch: Any) -> None:
        self.batch = batch


class _Unseal(nn.Module):
    def __init__(self, task: nn.Module) -> None:
        super().__init__()
        self.task = task

    def forward(self, sealed: _Sealed, generator: torch.Generator) -> dict[str, Any]:
        out: dict[str, Any] = self.task(sealed.batch, generator)
        return out


def fit(
    task: nn.Module,
    batches: BatchSource,
    config: FitConfig,
    *,
    evaluate: Evaluate | None = None,
    listener: Listener | None = None,
    progress: bool = True,
    title: str = "train",
) -> FitReport:
    """Train `task`, resuming from `config.run_dir` when it holds an unfinished run.

    A killed run that is resumed ends with the same bits as an uninterrupted one (CPU, same thread count). Each row of
    training metrics says which share of the training time the batches took (`loader_share`).

    Args:
        task: forward(batch, generator) -> {"loss": scalar tensor, further scalars}. If it has
            `after_step(step, total_steps)`, that is called after each optimiser step; if it has `lr_scale(name)`,
            that is the share of the learning rate each parameter gets.
        batches: Where batches come from; its state is part of the checkpoint.
        config: Optimisation and bookkeeping.
        evaluate: Called in eval mode, without gradients, every `eval_every` steps and at the end.
        listener: Called with every row of metrics, in the first process only.
        progress: Show a bar on stderr (never when it is not a terminal).
        title: Label of the bar.

    Returns:
        Counters and the last metrics; the trained weights are in `task`, which stays on the training device.

    Raises:
        ConfigError: The run folder belongs to a run with other settings.
        CheckpointError: The run folder is damaged.
        DivergenceError: The loss is not finite.
    """
    fabric = _make_fabric(config)
    optimizer = _make_optimizer(task, config)
    model, wrapped = fabric.setup(_Unseal(task), optimizer)
    loop = _Loop(fabric, task, model, wrapped, optimizer, batches, config, evaluate)
    loop.listener = listener if fabric.is_global_zero else None
    resumed_from = loop.restore()
    with _progress_bar(title, config.steps, resumed_from, show=progress and fabric.is_global_zero) as advance:
        for step in range(resumed_from, config.steps):
            loop.train_step(step)
            loop.keep_books(step + 1)
            advance(step + 1, loop.last_row.get("loss"), loop.last_evaluation.get("status", ""))
    task.eval()
    return FitReport(
        step=config.steps,
        resumed_from=resumed_from,
        seconds=loop.seconds,
        metrics=loop.last_row,
        evaluation=loop.last_evaluation,
    )


class _Loop:
    """The state of one `fit` call; a class only so that the steps of the loop can be read one by one."""

    def __init__(
        self,
        fabric: Fabric,
        task: nn.Module,
        model: nn.Module,
        wrapped: Any,
        optimizer: torch.optim.Optimizer,
        batches: BatchSource,
        config: FitConfig,
        evaluate: Evaluate | None,
    ) -> None:
        self.fabric, self.task, self.model = fabric, task, model
        self.wrapped, self.optimizer = wrapped, optimizer  # Fabric's view of the optimiser and the optimiser itself
        self.batches, self.config, self.evaluate = batches, config, evaluate
        self.run_dir = Path(config.run_dir) if config.run_dir is not None else None
        self.fingerprint = {
            **config.fingerprint(),
            "num_processes": fabric.world_size,
            "shapes": {name: list(value.shape) for name, value in task.state_dict().items()},
        }
        self.metrics_file: MetricsFile | None = None
        self.listener: Listener | None = None
        self.sums: dict[str, Any] = {}
        self.count = 0
        self.seconds = 0.0
        self.loading = 0.0  # seconds that the batches took since the last row (of this call)
        self.seconds_at_row = 0.0
        self.last_row: dict[str, Any] = {}
        self.last_evaluation: dict[str, Any] = {}

    def restore(self) -> int:
        """Load an earlier run, if there is one, and return the number of steps it had done."""
        if self.run_dir is None:
            return 0
        self.run_dir.mkdir(parents=True, exist_ok=True)
        state = load_run(self.run_dir, self.task, self.optimizer, self.fingerprint)
        if self.fabric.is_global_zero:
            self.metrics_file = MetricsFile(self.run_dir, step=state.step if state else 0)
        if state is None:
            return 0
        self.batches.load_state_dict(state.batches)
        self.sums, self.count = dict(state.window["sums"]), int(state.window["count"])
        self.last_row, self.last_evaluation = state.window["last_row"], state.window["last_evaluation"]
        self.seconds = self.seconds_at_row = state.seconds
        return state.step

    def train_step(self, step: int) -> None:
        """One optimiser step."""
        started = time.perf_counter()
        config = self.config
        self.task.train()
        rate = learning_rate(config, step)
        decay = weight_decay(config, step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]
            group["weight_decay"] = decay if group["decays"] else 0.0
        asked = time.perf_counter()
        batch = to_device(self.batches.next_batch(), self.fabric.device)
        self.loading += time.perf_counter() - asked
        generator = step_generator(config.seed, step, self.fabric.device, self.fabric.global_rank)
        parts = self.model(_Sealed(batch), generator)
        self.wrapped.zero_grad(set_to_none=True)
        self.fabric.backward(parts["loss"])
        if config.clip_norm > 0:
            self.fabric.clip_gradients(self.model, self.wrapped, max_norm=config.clip_norm, error_if_nonfinite=False)
        self.wrapped.step()
        if isinstance(self.task, StepHook):
            self.task.after_step(step + 1, config.steps)
        for name, value in parts.items():
            detached = value.detach().double() if isinstance(value, Tensor) else float(value)
            self.sums[name] = self.sums.get(name, 0.0) + detached
        self.count += 1
        self.seconds += time.perf_counter() - started

    def keep_books(self, done: int) -> None:
        """Log, evaluate and save whatever is due after `done` steps."""
        config = self.config
        last = done == config.steps
        saves = self.run_dir is not None and (last or done % config.checkpoint_every == 0)
        if saves or last or done % config.log_every == 0:
            self._settle(done)
        if last or done % config.log_every == 0:
            means = {name: value / self.count for name, value in self.sums.items()}
            self.last_row = {"kind": "train", "step": done, **means, "lr": learning_rate(config, done - 1)}
            share = self.loading / max(1e-9, self.seconds - self.seconds_at_row)
            self._append({**self.last_row, "seconds": round(self.seconds, 3), "loader_share": round(share, 4)})
            self.loading, self.seconds_at_row = 0.0, self.seconds
            self.sums, self.count = {}, 0
        if self.evaluate is not None and (last or (config.eval_every and done % config.eval_every == 0)):
            self.task.eval()
            with torch.no_grad():
                found = self.evaluate(done).items()
                results = {name: value if isinstance(value, str) else float(value) for name, value in found}
            self.last_evaluation = {"kind": "eval", "step": done, **results}
            self._append(self.last_evaluation)
        if saves:
            self._save(done)

    def _settle(self, done: int) -> None:
        """Turn the running sums into floats (the one place that waits for the device) and refuse a broken loss."""
        started = time.perf_counter()
        self.sums = {name: float(value) for name, value in self.sums.items()}
        self.seconds += time.perf_counter() - started  # the device works while the steps are only being queued
        if not math.isfinite(self.sums["loss"]):
            raise DivergenceError(
                f"the loss is {self.sums['loss']} within {self.count} steps before step {done} "
                f"(last finite mean {self.last_row.get('loss')}); lower lr={self.config.lr} or set clip_norm; "
                "the last good checkpoint is untouched"
            )

    def _append(self, row: dict[str, Any]) -> None:
        if self.metrics_file is not None:
            self.metrics_file.append(row)
        if self.listener is not None:
            self.listener(row)

    def _save(self, done: int) -> None:
        window = {
            "sums": self.sums,
            "count": self.count,
            "last_row": self.last_row,
            "last_evaluation": self.last_evaluation,
        }
        if self.fabric.is_global_zero and self.run_dir is not None:
            state = RunState(
                step=done,
                seconds=self.seconds,
                fingerprint=self.fingerprint,
                batches=self.batches.state_dict(),
                window=window,
            )
            save_run(self.run_dir, self.task, self.optimizer, state)
        self.fabric.barrier()


def _make_fabric(config: FitConfig) -> Fabric:
    precision = config.precision
    if precision == "auto":
        device = Fabric(accelerator=config.accelerator, devices=1).device
        precision = "bf16-mixed" if has_native_bf16(device) else "32-true"
    fabric = Fabric(accelerator=config.accelerator, devices=config.devices, precision=precision)  # type: ignore[arg-type]
    fabric.launch()
    return fabric


def _make_optimizer(task: nn.Module, config: FitConfig) -> torch.optim.Optimizer:
    trained = {name: parameter for name, parameter in task.named_parameters() if parameter.requires_grad}
    if not trained:
        raise ConfigError(f"{type(task).__name__} has no parameter that requires a gradient: nothing to train")
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, parameter in trained.items():
        scale = task.lr_scale(name) if isinstance(task, Rates) else 1.0
        groups.setdefault((parameter.ndim < 2, scale), []).append(parameter)
    betas = (config.beta1, config.beta2)
    described = [
        {"params": params, "decays": not is_vector, "lr_scale": scale}
        for (is_vector, scale), params in sorted(groups.items(), key=lambda item: item[0])
    ]
    return torch.optim.AdamW(described, lr=config.lr, betas=betas, fused=True)


@contextmanager
def _progress_bar(title: str, steps: int, done: int, *, show: bool) -> Iterator[_Advance]:
    """Yield advance(step, loss, status); the bar is on stderr, so that stdout stays free for results."""
    console = Console(stderr=True)
    columns = (
        TextColumn(f"{title:>10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]}  {task.fields[rate]} steps/s"),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[status]}"),
    )
    with Progress(*columns, console=console, disable=not (show and console.is_terminal)) as bar:
        row = bar.add_task(title, total=steps, completed=done, loss="-", rate="-", status="")
        started = time.perf_counter()

        def advance(step: int, loss: float | None, status: str) -> None:
            rate = (step - done) / max(1e-9, time.perf_counter() - started)
            shown = "-" if loss is None else f"{loss:.4f}"
            bar.update(row, completed=step, loss=shown, rate=f"{rate:.2f}", status=status)

        yield advance
