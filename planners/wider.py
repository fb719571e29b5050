"""The same search with more to spend, for counterfactuals: would it have found a plan with a larger budget?"""

from __future__ import annotations

from dataclasses import fields, replace

from worldmodel.errors import ConfigError
from worldmodel.planners.base import Planner, check_at_least

_WIDTHS = ("num_samples", "num_elites", "num_restarts")


def enlarged(planner: Planner, factor: int) -> Planner:
    """The same search, `factor` times as wide: candidates, elites and restarts multiplied, everything else as it is.

    Args:
        planner: A search with at least one of these fields.
        factor: How many times the model calls, >= 1.

    Raises:
        ConfigError: The search has no such field, or the factor is not positive.
    """
    check_at_least("factor", factor, 1)
    widths = {f.name: factor * getattr(planner, f.name) for f in fields(planner) if f.name in _WIDTHS}
    if not widths:
        raise ConfigError(f"{type(planner).__name__} has none of {', '.join(_WIDTHS)}: it cannot be made wider")
    return replace(planner, **widths)
