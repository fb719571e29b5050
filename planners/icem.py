"""Improved CEM: noise that is correlated over time, elites that are kept, fewer candidates as the search narrows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from worldmodel.errors import ConfigError
from worldmodel.planners.base import Plan, Problems, check_at_least
from worldmodel.planners.cem import CEM, CEMSearch
from worldmodel.planners.sampling import Scored, Search


@dataclass(kw_only=True)
class ICEM(CEM):
    """Sample-efficient cross-entropy method of Pinneri et al. (arXiv:2008.06389).

    Of its parts: coloured noise, elites kept from one iteration to the next and, through the warm start, shifted into
    the next plan, the mean among the candidates (here in every iteration, as in `CEM`), a population that shrinks, and
    memory of the best sequence. Deviation: the noise is drawn from the covariance of a power-law spectrum with a period
    of twice the horizon, so that the first and the last step are not tied to each other as with a period of one.

    Attributes:
        noise_beta: Exponent of the noise's power spectrum 1 / f^beta over time, >= 0; 0 is white, 2 is Brownian.
        keep_fraction: Share of the elites that are candidates again in the next iteration, in [0, 1].
        sample_decay: Factor >= 1 by which the number of candidates shrinks with every iteration, down to twice the
            elites.
    """

    noise_beta: float = 2.0
    keep_fraction: float = 0.3
    sample_decay: float = 1.25
    momentum: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least("noise_beta", self.noise_beta, 0)
        check_at_least("sample_decay", self.sample_decay, 1)
        if not 0 <= self.keep_fraction <= 1:
            raise ConfigError(f"keep_fraction must be in [0, 1], got {self.keep_fraction}")

    @property
    def num_calls(self) -> int:
        """See `Planner.num_calls`."""
        return sum(map(self.samples_at, range(self.num_iterations))) + (self.returns == "mean")

    def samples_at(self, iteration: int) -> int:
        """Candidates per problem in an iteration, counted from 0."""
        fewest = min(2 * self.num_elites, self.num_samples)
        return max(fewest, math.floor(self.num_samples * self.sample_decay**-iteration))

    def _search(self, problems: Problems, warm_start: Plan | None) -> Search:
        return _ICEMSearch(self, problems, warm_start)


class _ICEMSearch(CEMSearch):
    """One `plan` call."""

    def __init__(self, config: ICEM, problems: Problems, warm_start: Plan | None) -> None:
        super().__init__(config, problems, warm_start)
        self._icem = config
        self._mix = noise_mixture(config.horizon, config.noise_beta)
        self._num_kept = math.ceil(config.keep_fraction * config.num_elites)
        self._survivors = None if warm_start is None else warm_start.elites[:, : self._num_kept].to(self.std)

    def _colour(self, noise: Tensor) -> Tensor:
        return mix_steps(noise, self._mix)

    def _sample(self, iteration: int) -> Tensor:
        candidates = super()._sample(iteration)
        if self._survivors is not None:
            first = 2 if iteration == 0 and self.kept is not None else 1
            survivors = self._survivors[:, : max(self._icem.samples_at(iteration) - first, 0)]
            rows = self.active
            candidates[rows, first : first + survivors.shape[1]] = survivors[rows]
            self.problems.clamp_(candidates)
        return candidates[:, : self._icem.samples_at(iteration)]

    def _refit(self, scored: Scored, iteration: int) -> tuple[Tensor, Tensor, Tensor]:
        self._survivors = scored.elites[:, : self._num_kept]
        return super()._refit(scored, iteration)


def noise_mixture(horizon: int, beta: float) -> list[list[float]]:
    """Rows (H, H), lower triangular, that turn H independent normal numbers into noise with spectrum 1 / f^beta.

    Every step keeps unit variance. The process has period 2 H and, as in the original, no more power at frequency 0
    than at the lowest one above.
    """
    period = 2 * horizon
    frequency = np.fft.rfftfreq(period)
    frequency[0] = frequency[1]
    covariance = np.fft.irfft(frequency**-beta, n=period)[:horizon] if horizon > 1 else np.ones(1)
    lag = np.abs(np.subtract.outer(np.arange(horizon), np.arange(horizon)))
    toeplitz = (covariance / covariance[0])[lag]
    mixture: list[list[float]] = np.linalg.cholesky(toeplitz + 1e-12 * np.eye(horizon)).tolist()
    return mixture


def mix_steps(noise: Tensor, mixture: list[list[float]]) -> Tensor:
    """Mix (..., H, F) over the steps; elementwise, so that the bits do not depend on the number of rows."""
    steps = noise.unbind(dim=-2)
    mixed = []
    for row in mixture:
        total = steps[0] * row[0]
        for weight, step in zip(row[1:], steps[1:], strict=True):
            if weight != 0:
                total = total + step * weight
        mixed.append(total)
    return torch.stack(mixed, dim=-2)
