"""Still pictures: what a planner did in one replan, and training curves.

Shapes and grey levels carry the meaning, colour only helps: the figures survive a black-and-white print.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from worldmodel.analysis.video import upscale
from worldmodel.errors import DataError

Array = NDArray[np.float64]
_CHOSEN, _SECOND, _FAN = "#b03a00", "#1f4e79", "0.70"
_HEALTH_PANELS = (
    (("health_positional_share",), "variance explained by place (share)"),
    (("health_temporal_share", "health_mover_temporal_share"), "variance within episodes (share)"),
    (("health_effective_rank",), "effective rank"),
    (("health_drift",), "change since the start (1 - CKA)"),
    (("health_channel_std",), "std of a channel"),
    (("health_target_known_share",), "targets known from place (share)"),
    (("health_target_std",), "std of a target channel"),
    (("health_target_effective_rank",), "effective rank of targets"),
    (("health_cross_sample_gap",), "cross-sample gap (cosine)"),
    (("health_mover_loss", "health_static_loss"), "error over that of the mean"),
)


@dataclass(frozen=True, kw_only=True)
class PlanView:
    """One replan, ready to be drawn.

    Attributes:
        frame: (Y, X, 3) uint8 camera frame the plan started from.
        goal: (Y, X, 3) uint8 goal image.
        best_cost: (I,) lowest planning cost seen up to each iteration.
        elite_cost: (I,) mean planning cost of the elites of each iteration.
        imagined_cost: (H+1,) latent cost to the goal now and after each imagined model step.
        chosen_xy_m: (L+1, 2) cumulated commanded displacement of the chosen plan, metres, from (0, 0).
        elite_xy_m: (K, L+1, 2) the same for the elites of the last iteration.
        executed: Environment steps of the plan carried out before the next replan.
        step_s: Seconds of one model step.
        seconds: Time the replan took.
        title: Shown above the figure.
    """

    frame: NDArray[np.uint8]
    goal: NDArray[np.uint8]
    best_cost: Array
    elite_cost: Array
    imagined_cost: Array
    chosen_xy_m: Array
    elite_xy_m: Array
    executed: int
    step_s: float
    seconds: float
    title: str

    def __post_init__(self) -> None:
        if self.best_cost.shape != self.elite_cost.shape or self.best_cost.ndim != 1:
            shapes = f"{self.best_cost.shape} and {self.elite_cost.shape}"
            raise DataError(f"best_cost and elite_cost must both be (I,), got {shapes}")
        if self.chosen_xy_m.ndim != 2 or self.elite_xy_m.shape[1:] != self.chosen_xy_m.shape:
            shapes = f"{self.chosen_xy_m.shape} and {self.elite_xy_m.shape}"
            raise DataError(f"chosen_xy_m must be (L+1, 2) and elite_xy_m (K, L+1, 2), got {shapes}")


def cumulative_xy(actions: Array, env_action_dim: int, step_m: float) -> Array:
    """Commanded displacement of the gripper in the table plane.

    Args:
        actions: (..., H, A) flat model actions, A a multiple of `env_action_dim`; the first two entries of every
            environment action are dx and dy in [-1, 1]; dy is 0 where there is only one.
        env_action_dim: Size of one environment action.
        step_m: Displacement of a full command in one environment step, metres.

    Returns:
        (..., L+1, 2) metres, starting at (0, 0), L environment steps.

    Raises:
        DataError: A is not a multiple of `env_action_dim`.
    """
    horizon, flat = actions.shape[-2:]
    if env_action_dim < 1 or flat % env_action_dim:
        raise DataError(f"a flat action of {flat} numbers does not split into env actions of {env_action_dim}")
    steps = actions.reshape(*actions.shape[:-2], horizon * (flat // env_action_dim), env_action_dim)[..., :2]
    if env_action_dim == 1:
        steps = np.concatenate([steps, np.zeros_like(steps)], axis=-1)
    origin = np.zeros((*steps.shape[:-2], 1, 2))
    return np.concatenate([origin, np.cumsum(steps * step_m, axis=-2)], axis=-2)


def plan_figure(view: PlanView) -> Figure:
    """Draw a replan: pictures, search progress, imagined future, and the fan of elite plans seen from above."""
    figure = Figure(figsize=(12.5, 6.6), layout="constrained")
    grid = figure.add_gridspec(2, 3, width_ratios=(0.85, 1.15, 1.5))
    for row, (picture, name) in enumerate(((view.frame, "camera now"), (view.goal, "goal image"))):
        axes = figure.add_subplot(grid[row, 0])
        axes.imshow(upscale(picture, 256), interpolation="nearest")
        axes.set_title(name, fontsize=11)
        axes.set_xticks([])
        axes.set_yticks([])
    _draw_search(figure.add_subplot(grid[0, 1]), view)
    _draw_imagined(figure.add_subplot(grid[1, 1]), view)
    _draw_fan(figure.add_subplot(grid[:, 2]), view)
    figure.suptitle(f"{view.title}: one replan, {view.seconds:.2f} s", fontsize=13)
    return figure


def metrics_figure(path: Path, keys: Sequence[str] | None = None) -> Figure:
    """Draw training curves out of a `metrics.jsonl`, one panel per key.

    Args:
        path: File with one JSON object per line, each with a "step".
        keys: What to draw; None means every numeric key.

    Raises:
        DataError: The file is missing or holds no such numbers.
    """
    series = _read_metrics(path)
    wanted = list(series) if keys is None else list(keys)
    unknown = [key for key in wanted if key not in series]
    if unknown or not wanted:
        raise DataError(f"{path} holds no numbers named {unknown or 'anything'}; it holds {sorted(series)}")
    columns = min(3, len(wanted))
    rows = -(-len(wanted) // columns)
    figure = Figure(figsize=(4.2 * columns, 2.8 * rows), layout="constrained")
    for index, key in enumerate(wanted):
        axes = figure.add_subplot(rows, columns, index + 1)
        steps, values = zip(*series[key], strict=True)
        axes.plot(steps, values, color=_SECOND, linewidth=1.2)
        axes.set_xlabel("optimiser step")
        axes.set_ylabel(key)
        _tidy(axes)
    return figure


def health_figure(path: Path, reference: Mapping[str, float]) -> Figure:
    """Draw the health of a pretraining run over its steps, beside what random weights give.

    Args:
        path: `metrics.jsonl` of the run, whose evaluations hold "health_..." numbers.
        reference: The same numbers before the first step, by the same names.

    Raises:
        DataError: The file is missing or holds no health numbers.
    """
    series = {key: points for key, points in _read_metrics(path).items() if key.startswith("health_")}
    panels = [(keys, label) for keys, label in _HEALTH_PANELS if keys[0] in series]
    if not panels:
        raise DataError(f"{path} holds no health numbers; point to the metrics.jsonl of a pretraining run")
    columns = min(3, len(panels))
    figure = Figure(figsize=(4.2 * columns, 2.8 * -(-len(panels) // columns)), layout="constrained")
    for index, (keys, label) in enumerate(panels):
        axes = figure.add_subplot(-(-len(panels) // columns), columns, index + 1)
        for key, color, marker in zip(keys, (_CHOSEN, _SECOND), "os", strict=False):
            if key in series:
                steps, values = zip(*series[key], strict=True)
                name = key.removeprefix("health_").replace("_", " ")
                axes.plot(steps, values, marker=marker, color=color, linewidth=1.2, markersize=3, label=name)
            if key in reference:
                axes.axhline(reference[key], color="0.4", linestyle="--", linewidth=1.0, label="random weights")
        axes.set_xlabel("optimiser step")
        axes.set_ylabel(label)
        axes.legend(frameon=False, fontsize=8)
        _tidy(axes)
    figure.suptitle(_last_text(path, "diagnosis"), fontsize=10)
    return figure


def save_figure(figure: Figure, path: Path, dpi: int = 120) -> Path:
    """Write a PNG; parents are created, and an interrupted run leaves no half file under this name.

    Raises:
        DataError: `path` does not end in .png.
    """
    if path.suffix != ".png":
        raise DataError(f"a figure's name must end in .png, got {path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.stem + ".partial.png")
    figure.savefig(partial, dpi=dpi)
    os.replace(partial, path)
    return path


def _draw_search(axes: Axes, view: PlanView) -> None:
    iterations = np.arange(1, len(view.best_cost) + 1)
    axes.plot(iterations, view.elite_cost, "s--", color=_SECOND, markersize=5, label="mean of the elites")
    axes.plot(iterations, view.best_cost, "o-", color=_CHOSEN, markersize=5, label="best so far")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("planner iteration")
    axes.set_ylabel("planning cost (a.u.)")
    axes.set_title("search", fontsize=11)
    axes.legend(frameon=False, fontsize=9)
    _tidy(axes)


def _draw_imagined(axes: Axes, view: PlanView) -> None:
    seconds = np.arange(len(view.imagined_cost)) * view.step_s
    axes.plot(seconds, view.imagined_cost, "o-", color=_CHOSEN, markersize=5)
    axes.set_ylim(0, 1.1 * max(float(np.max(view.imagined_cost)), 1e-9))
    axes.set_xlabel("imagined time (s)")
    axes.set_ylabel("latent cost to the goal (a.u.)")
    axes.set_title("what the model expects of the chosen plan", fontsize=11)
    _tidy(axes)


def _draw_fan(axes: Axes, view: PlanView) -> None:
    for index, path in enumerate(100 * view.elite_xy_m):
        label = f"elites of the last iteration ({len(view.elite_xy_m)})" if index == 0 else None
        axes.plot(path[:, 1], path[:, 0], color=_FAN, linewidth=1.0, label=label, zorder=1)
    chosen = 100 * view.chosen_xy_m
    done = chosen[: view.executed + 1]
    axes.plot(
        chosen[:, 1], chosen[:, 0], "o-", color=_CHOSEN, markersize=3, linewidth=1.6, label="chosen plan", zorder=3
    )
    axes.plot(
        done[:, 1], done[:, 0], color="black", linewidth=4.0, label="carried out before the next replan", zorder=2
    )
    axes.plot(0, 0, marker="P", color="black", markersize=10, linestyle="none", label="gripper now", zorder=4)
    axes.set_aspect("equal", adjustable="datalim")
    axes.invert_yaxis()  # the camera looks along -x: down is towards it, as in the frames
    axes.set_xlabel("commanded displacement in y (cm), right in the camera's view")
    axes.set_ylabel("commanded displacement in x (cm), down is towards the camera")
    axes.set_title("plans seen from above", fontsize=11)
    axes.grid(color="0.9", linewidth=0.6)
    axes.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2)
    _tidy(axes)


def _tidy(axes: Axes) -> None:
    axes.ticklabel_format(useOffset=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _last_text(path: Path, key: str) -> str:
    """The last text stored under `key`, "" without one."""
    rows = (json.loads(line) for line in path.read_text().splitlines())
    return next((str(value) for value in reversed([row[key] for row in rows if key in row])), "")


def _read_metrics(path: Path) -> dict[str, list[tuple[float, float]]]:
    if not path.is_file():
        raise DataError(f"metrics file {path} does not exist; point to the metrics.jsonl of a training run")
    series: dict[str, list[tuple[float, float]]] = {}
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            record = json.loads(line)
            step = float(record["step"])
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"line {number} of {path} is not a JSON object with a 'step' ({error})") from error
        for key, value in record.items():
            if key != "step" and isinstance(value, int | float) and not isinstance(value, bool):
                series.setdefault(key, []).append((step, float(value)))
    return series
