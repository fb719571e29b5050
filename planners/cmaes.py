"""CMA-ES: a full covariance over the whole action sequence, adapted by the `cmaes` library."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from cmaes import CMA
from numpy.typing import NDArray
from torch import Tensor

from worldmodel.errors import ConfigError
from worldmodel.planners.base import Plan, Problems
from worldmodel.planners.sampling import SamplingPlanner, Scored, Search, spread_of, start_std
from worldmodel.planners.shooting import NUM_ELITES

_FEWEST = 4


@dataclass(kw_only=True)
class CMAES(SamplingPlanner):
    """Covariance matrix adaptation evolution strategy (Hansen, arXiv:1604.00772), one instance per problem.

    Numbers are shares of half the action range around its middle. Candidates beyond the bounds are clamped before they
    are scored and learned from; what a warm start brings is injected among the first ones. Each instance is seeded
    from its problem's stream. `min_std` is a floor under the standard deviation in the plan alone: the step size is
    the library's business. It draws one candidate after the other in Python, so its own time is a larger share of a
    replan than that of the other planners.

    Attributes:
        init_std: The library's initial step size.
    """

    num_samples: int = 48
    num_iterations: int = 25
    init_std: float = 0.4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_samples < _FEWEST:
            raise ConfigError(f"num_samples must be >= {_FEWEST} for CMA-ES, got {self.num_samples}")

    def _search(self, problems: Problems, warm_start: Plan | None) -> Search:
        return _CMAESSearch(self, problems, warm_start)


class _CMAESSearch(Search):
    """One `plan` call."""

    def __init__(self, config: CMAES, problems: Problems, warm_start: Plan | None) -> None:
        super().__init__(config, problems, warm_start, num_elites=min(NUM_ELITES, config.num_samples))
        self._middle = problems.low + problems.half_range
        sigma = start_std(config.init_std, config.warm_start_std, warm_start)
        centre = self._free((self.mean - self._middle) * problems.share)
        seeds = [int(torch.randint(2**31, (), generator=stream, device=stream.device)) for stream in problems.rng]
        self._optimisers = [
            CMA(mean=row, sigma=sigma, population_size=config.num_samples, seed=seed)
            for row, seed in zip(centre, seeds, strict=True)
        ]

    def _sample(self, iteration: int) -> Tensor:
        candidates = self._candidates
        for row in self.active:
            optimiser = self._optimisers[row]
            draws = np.stack([optimiser.ask() for _ in range(self.config.num_samples)])
            candidates[row] = self._actions(draws, row)
        if iteration == 0:
            candidates[:, 0] = self.mean
        self._keep_best(candidates, iteration)
        return self.problems.clamp_(candidates)

    def _refit(self, scored: Scored, iteration: int) -> tuple[Tensor, Tensor, Tensor]:
        shares = (scored.candidates - self._middle.unsqueeze(1)) * self.problems.share.unsqueeze(1)
        mean = self.mean.clone()
        for row in self.active:
            optimiser = self._optimisers[row]
            costs = scored.cost[row].tolist()
            optimiser.tell(list(zip(self._free(shares[row]), costs, strict=True)))
            mean[row] = self._actions(optimiser.mean[None], row)[0]
        _, spread = spread_of(scored.elites)
        return mean, spread, spread

    def _commit(self, iteration: int, state: tuple[Tensor, ...], record: Tensor) -> None:
        super()._commit(iteration, state, record)
        self.active = [row for row in self.active if not self._optimisers[row].should_stop()]

    def _free(self, shares: Tensor) -> NDArray[np.float64]:
        """(..., H, A) shares of half the range to the library's flat vectors, one of the repeated parts each."""
        parts = shares.unflatten(-1, (self.config.action_repeat, -1))[..., 0, :]
        flat: NDArray[np.float64] = parts.flatten(-2).double().cpu().numpy()
        return flat

    def _actions(self, flat: NDArray[np.float64], row: int) -> Tensor:
        """(S, n) library vectors of a problem to actions (S, H, A)."""
        parts = torch.from_numpy(flat).to(self.mean).view(len(flat), self.mean.shape[1], -1)
        shares = parts.repeat(1, 1, self.config.action_repeat)
        return shares * self.problems.half_range[row] + self._middle[row]
