"""Energy landscapes: what a plan costs when two entries of its actions are changed and the rest stays.

A planner sees nothing but this surface. Where its lowest point lies says whether the cost asks for the right thing;
flat and ragged places say where a search loses its way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from worldmodel.analysis.style import tidy
from worldmodel.envs.tabletop import MAX_STEP_M
from worldmodel.errors import ConfigError
from worldmodel.types import CostFn

Array = NDArray[np.float64]
Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class ActionAxis:
    """One entry of an environment action, held for a model step, as an axis.

    Attributes:
        index: Place in the environment action.
        name: What it does.
        unit: Of `scale`.
        scale: What an action of 1 amounts to over a model step, in this unit.
    """

    index: int
    name: str
    unit: str = "action units"
    scale: float = 1.0


def tabletop_axes(action_block: int) -> dict[str, ActionAxis]:
    """Axes of the tabletop environments by name: "x", "y" and "z", displacement commanded in a model step."""
    scale = 100 * MAX_STEP_M * action_block
    return {
        name: ActionAxis(index=index, name=f"commanded displacement in {name}", unit="cm", scale=scale)
        for index, name in enumerate("xyz")
    }


@dataclass(frozen=True, kw_only=True)
class Landscape:
    """Costs over two axes.

    Attributes:
        axes: What is varied: horizontal, then vertical.
        x: (R,) values on the horizontal axis, its unit.
        y: (R,) on the vertical one.
        cost: (R, R) cost at (x[i], y[j]) in row j, column i, arbitrary unit.
        chosen: Values of the planner's action, or None.
        expert: Values of the expert's action, or None.
        title: Shown above the figure.
    """

    axes: tuple[ActionAxis, ActionAxis]
    x: Array
    y: Array
    cost: Array
    chosen: Point | None = None
    expert: Point | None = None
    title: str = ""

    @property
    def minimum(self) -> Point:
        """Values at the lowest cost of the grid."""
        row, column = np.unravel_index(int(np.argmin(self.cost)), self.cost.shape)
        return float(self.x[column]), float(self.y[row])

    @property
    def spacing(self) -> float:
        """Distance between two points of the grid, the larger of the two axes."""
        return float(max(self.x[1] - self.x[0], self.y[1] - self.y[0]))

    def apart(self, point: Point) -> float:
        """Distance of a point from the minimum; means something where both axes have one unit."""
        return float(np.hypot(self.minimum[0] - point[0], self.minimum[1] - point[1]))


def energy_landscape(
    cost_fn: CostFn,
    actions: Tensor,
    bounds: tuple[Tensor, Tensor],
    axes: tuple[ActionAxis, ActionAxis],
    *,
    env_action_dim: int,
    step: int | None = 0,
    resolution: int = 41,
    marks: Mapping[str, Tensor | None] = MappingProxyType({}),
) -> Landscape:
    """Cost of a plan with two entries of its actions replaced by every pair of values within the bounds.

    Args:
        cost_fn: Cost of one problem (B = 1).
        actions: (H, A) plan the landscape is cut around, env units.
        bounds: (A,) and (A,) smallest and largest flat model actions.
        axes: Entries to vary; every environment action of the model step gets the same value.
        env_action_dim: Size of one environment action.
        step: Model step whose action varies; None varies all steps alike.
        resolution: Values per axis, >= 3.
        marks: Plans (H, A) to mark, by name: "chosen" and "expert".

    Raises:
        ConfigError: Shapes, axes, step, resolution or names of marks do not fit.
    """
    if not set(marks) <= {"chosen", "expert"}:
        raise ConfigError(f"marks are 'chosen' and 'expert', got {sorted(marks)}")
    _check(actions, bounds, axes, env_action_dim, step, resolution)
    steps = slice(None) if step is None else slice(step, step + 1)

    def marked(name: str) -> Point | None:
        plan = marks.get(name)
        return None if plan is None else _values(plan, axes, env_action_dim, steps)

    low, high = (bound[:env_action_dim].double().cpu().numpy() for bound in bounds)
    first, second = (np.linspace(low[axis.index], high[axis.index], resolution) for axis in axes)
    across, along = np.meshgrid(first, second)
    plans = actions.unflatten(-1, (-1, env_action_dim)).expand(resolution**2, -1, -1, -1).clone()  # (R*R, H, block, E)
    for axis, values in zip(axes, (across, along), strict=True):
        plans[:, steps, :, axis.index] = torch.from_numpy(values.ravel()).to(plans)[:, None, None]
    with torch.no_grad():
        cost = cost_fn(plans.flatten(-2)[None])[0].double().cpu().numpy()
    return Landscape(
        axes=axes,
        x=first * axes[0].scale,
        y=second * axes[1].scale,
        cost=cost.reshape(resolution, resolution),
        chosen=marked("chosen"),
        expert=marked("expert"),
    )


def landscape_figure(landscapes: Sequence[Landscape]) -> Figure:
    """Landscapes side by side: dark is cheap, with the minimum, the chosen and the expert action marked.

    Args:
        landscapes: At least one.
    """
    figure = Figure(figsize=(1.0 + 4.6 * len(landscapes), 4.9), layout="constrained")
    for axes, landscape in zip(figure.subplots(1, len(landscapes), squeeze=False)[0], landscapes, strict=True):
        _draw(figure, axes, landscape)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=10)
    return figure


def _draw(figure: Figure, axes: Axes, landscape: Landscape) -> None:
    surface = axes.contourf(landscape.x, landscape.y, landscape.cost, levels=24, cmap="gray")
    axes.contour(landscape.x, landscape.y, landscape.cost, levels=8, colors="black", linewidths=0.4, alpha=0.6)
    figure.colorbar(surface, ax=axes, label="cost (a.u.), dark is cheap", shrink=0.85)
    marks = (
        ("minimum of the landscape", landscape.minimum, "o", "white", 11),
        ("action of the planner", landscape.chosen, "X", "#ffb000", 11),
        ("action of the expert", landscape.expert, "P", "#7fc4ff", 11),
    )
    for name, point, marker, colour, size in marks:
        if point is not None:
            style: dict[str, Any] = {
                "color": colour,
                "markeredgecolor": "black",
                "markersize": size,
                "linestyle": "none",
            }
            axes.plot(*point, marker=marker, label=name, clip_on=False, zorder=3, **style)
    axes.set_xlabel(f"{landscape.axes[0].name} ({landscape.axes[0].unit})")
    axes.set_ylabel(f"{landscape.axes[1].name} ({landscape.axes[1].unit})")
    axes.set_title(landscape.title, fontsize=10)
    if landscape.axes[0].unit == landscape.axes[1].unit:
        axes.set_aspect("equal")
    tidy(axes)


def _values(actions: Tensor, axes: tuple[ActionAxis, ActionAxis], env_action_dim: int, steps: slice) -> Point:
    """Mean of the two entries over the varied steps, in the units of the axes."""
    entries = actions.unflatten(-1, (-1, env_action_dim))[steps].double().mean(dim=(0, 1))
    first, second = (float(entries[axis.index]) * axis.scale for axis in axes)
    return first, second


def _check(
    actions: Tensor,
    bounds: tuple[Tensor, Tensor],
    axes: tuple[ActionAxis, ActionAxis],
    env_action_dim: int,
    step: int | None,
    resolution: int,
) -> None:
    if actions.ndim != 2 or actions.shape[1] % env_action_dim or any(len(b) != actions.shape[1] for b in bounds):
        shapes = f"{tuple(actions.shape)} with bounds of {[len(bound) for bound in bounds]}"
        raise ConfigError(f"actions must be (H, A), A a multiple of {env_action_dim} and bounds (A,), got {shapes}")
    indices = [axis.index for axis in axes]
    if len(set(indices)) != 2 or not all(0 <= index < env_action_dim for index in indices):
        raise ConfigError(f"axes must be two different entries in [0, {env_action_dim}), got {indices}")
    if step is not None and not 0 <= step < len(actions):
        raise ConfigError(f"step must be in [0, {len(actions)}), the model steps of the plan, or None, got {step}")
    if resolution < 3:
        raise ConfigError(f"resolution must be >= 3, got {resolution}")
