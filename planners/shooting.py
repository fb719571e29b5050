"""The two simplest searches: keep the best of what was drawn, around one place or around the best so far.

Both draw at several scales at once, because the right one is not known and nothing is fitted.
"""

from __future__ import annotations

import math
from abc import ABC
from dataclasses import dataclass

import torch
from torch import Tensor

from worldmodel.errors import ConfigError
from worldmodel.planners.base import Plan, Problems, check_at_least
from worldmodel.planners.sampling import SamplingPlanner, Scored, Search, spread_of

NUM_ELITES = 16
"""Cheapest candidates that a plan of these planners keeps, if as many are drawn."""


@dataclass(kw_only=True)
class _ScaledSampling(SamplingPlanner, ABC):
    """What both have in common.

    Attributes:
        num_scales: Scales that the candidates take in turn, >= 1; 1 draws all of them at the largest.
        smallest_scale: Smallest of them as a share of the largest, in (0, 1]; the others lie between in equal ratios.
    """

    num_scales: int = 6
    smallest_scale: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least("num_scales", self.num_scales, 1)
        if not 0 < self.smallest_scale <= 1:
            raise ConfigError(f"smallest_scale must be in (0, 1], got {self.smallest_scale}")

    def scales(self) -> list[float]:
        """Scale of each of the S candidates."""
        ratio = self.smallest_scale ** (1 / max(self.num_scales - 1, 1))
        return [ratio ** (candidate % self.num_scales) for candidate in range(self.num_samples)]


@dataclass(kw_only=True)
class PredictiveSampling(_ScaledSampling):
    """Predictive sampling of Howell et al. (arXiv:2212.00541): noise around the best sequence so far, keep the best.

    The standard deviation stays what it is at the start (never below `min_std`). Deviation: several scales; with
    `num_scales=1` it is the published method without splines.
    """

    def _search(self, problems: Problems, warm_start: Plan | None) -> Search:
        return _PredictiveSearch(self, problems, warm_start)


@dataclass(kw_only=True)
class RandomShooting(_ScaledSampling):
    """Random shooting: sequences drawn independently, nothing learned from one to the next; the floor to compare with.

    Uniform in the box of the bounds and in boxes shrunk towards the mean of the warm start, or towards no action;
    `num_scales=1` keeps the whole box alone. Iterations only divide the draws into portions; `init_std`, `min_std` and
    `warm_start_std` have no effect. Beside the draws stand the mean itself and the sequence that was best.
    """

    def _search(self, problems: Problems, warm_start: Plan | None) -> Search:
        return _ShootingSearch(self, problems, warm_start)


class _ScaledSearch(Search):
    """One `plan` call of either."""

    def __init__(self, config: _ScaledSampling, problems: Problems, warm_start: Plan | None) -> None:
        super().__init__(config, problems, warm_start, num_elites=min(NUM_ELITES, config.num_samples))
        self._scales = torch.tensor(config.scales(), dtype=self.std.dtype, device=self.std.device).view(-1, 1, 1)

    def _refit(self, scored: Scored, iteration: int) -> tuple[Tensor, Tensor, Tensor]:
        _, spread = spread_of(scored.elites)
        return scored.best_actions.clone(), self.std, spread


class _PredictiveSearch(_ScaledSearch):
    """Noise around the best so far."""

    def _colour(self, noise: Tensor) -> Tensor:
        return noise * self._scales


class _ShootingSearch(_ScaledSearch):
    """Uniform draws around where the search began."""

    def __init__(self, config: RandomShooting, problems: Problems, warm_start: Plan | None) -> None:
        super().__init__(config, problems, warm_start)
        self._centre = self.mean.clone()
        # deviation of a uniform number between the bounds
        self.std = (problems.half_range * (1 / math.sqrt(3))).expand(problems.sequence_shape).contiguous()

    def _sample(self, iteration: int) -> Tensor:
        rows = self.active
        noise = self.problems.draw_(self._noise, rows, is_uniform=True)[rows]
        candidates = self._candidates
        parts = candidates.unflatten(-1, (self.config.action_repeat, -1))
        parts[rows] = noise.unsqueeze(-2).expand_as(parts[rows])
        low, width = self.problems.low.unsqueeze(1), self.problems.half_range.unsqueeze(1) * 2
        centre = self._centre.unsqueeze(1)[rows]
        drawn = candidates[rows] * width[rows] + low[rows]
        candidates[rows] = (drawn - centre) * self._scales + centre
        if iteration == 0:
            candidates[:, 0] = self.mean
        self._keep_best(candidates, iteration)
        return self.problems.clamp_(candidates)
