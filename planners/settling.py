"""CEM that also draws small motions once the goal is near, so that it settles there instead of hovering about."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from worldmodel.errors import ConfigError
from worldmodel.planners.base import CostFn, Plan, Problems, counts_steps
from worldmodel.planners.cem import CEM, CEMSearch
from worldmodel.planners.sampling import Search

_NEAREST = 0.2  # the closest draws are at the square of this share of the spread, or wider


@dataclass(kw_only=True)
class SettlingCEM(CEM):
    """Cross-entropy method that looks how near the goal is before it draws.

    A search as wide as a long way needs has not converged after a few iterations when all that is left is a small,
    exact motion; a narrow one never finds the long way. So a sequence without any action is scored first, by one extra
    call, and remembered like every candidate. Where it costs less than `near_steps`, a third of the first candidates
    are drawn at r of the spread and a third at r^2, r being that cost over `near_steps`, at least .2. From then on it
    is `CEM`: the elites say which spread was right.

    For costs that count model steps to the goal (`counts_steps` of the cost function; `objective=steps_to_goal` does)
    and actions of which 0 is no motion. Of other costs nobody knows what is near: there it is `CEM`.

    Attributes:
        near_steps: Model steps, > 0.
    """

    near_steps: float = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.near_steps < math.inf:
            raise ConfigError(f"near_steps must be a positive number of model steps, got {self.near_steps}")

    @property
    def num_calls(self) -> int:
        """See `Planner.num_calls`; one less where the cost counts no steps."""
        return super().num_calls + 1

    def _search(self, problems: Problems, warm_start: Plan | None) -> Search:
        return _SettlingSearch(self, problems, warm_start)


class _SettlingSearch(CEMSearch):
    """One `plan` call."""

    def __init__(self, config: SettlingCEM, problems: Problems, warm_start: Plan | None) -> None:
        super().__init__(config, problems, warm_start)
        self._near_steps = config.near_steps
        self._scales: Tensor | None = None

    def iterate(self, cost_fn: CostFn, iteration: int) -> None:
        """See `Search.iterate`."""
        is_first = iteration == 0 and counts_steps(cost_fn)
        self._scales = self._scales_at(cost_fn) if is_first else None
        super().iterate(cost_fn, iteration)

    def _scales_at(self, cost_fn: CostFn) -> Tensor:
        """Scales (B, S, 1, 1) of the candidates, from the cost of no action, which is remembered."""
        self.best_actions = self.problems.clamp_(torch.zeros_like(self.mean))
        self.best_cost = self.problems.check_cost(cost_fn(self.best_actions.unsqueeze(1)), 1, 0)[:, 0]
        share = (self.best_cost * (1 / self._near_steps)).clamp(_NEAREST, 1.0)
        rungs = torch.stack([torch.ones_like(share), share, share * share], dim=1)
        return rungs[:, torch.arange(self.config.num_samples, device=rungs.device) % 3, None, None]

    def _colour(self, noise: Tensor) -> Tensor:
        return noise if self._scales is None else noise * self._scales
