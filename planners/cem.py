"""The cross-entropy method: fit a Gaussian to the cheapest candidates, again and again."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from worldmodel.errors import ConfigError
from worldmodel.planners.base import Plan, Problems
from worldmodel.planners.sampling import SamplingPlanner, Scored, Search, check_num_elites, spread_of


@dataclass(kw_only=True)
class CEM(SamplingPlanner):
    """Cross-entropy method with bounds, a floor under the spread, and memory of the best sequence.

    Rubinstein and Kroese, "The Cross-Entropy Method" (2004), as used for planning in latent space by Hafner et al.
    (arXiv:1811.04551). Deviations: candidates are clamped to the bounds before they are scored; the standard deviation
    has a floor; one candidate is always the current mean, so that the mean's own cost is known; the best sequence ever
    scored is returned, not the last mean; the spread is the population one, defined for a single elite too.

    Attributes:
        num_elites: Candidates the Gaussian is fitted to, in [1, num_samples].
        momentum: Weight of the old mean and standard deviation in the new ones, in [0, 1).
    """

    num_elites: int = 20
    momentum: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_num_elites(self.num_elites, self.num_samples)
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"momentum must be in [0, 1), got {self.momentum}")

    def _search(self, problems: Problems, warm_start: Plan | None) -> Search:
        return CEMSearch(self, problems, warm_start)


class CEMSearch(Search):
    """One `plan` call of the cross-entropy method.

    Args:
        config: Settings.
        problems: Bounds and streams.
        warm_start: Earlier plan, checked.
    """

    def __init__(self, config: CEM, problems: Problems, warm_start: Plan | None) -> None:
        super().__init__(config, problems, warm_start, num_elites=config.num_elites)
        self._momentum = config.momentum

    def _refit(self, scored: Scored, iteration: int) -> tuple[Tensor, Tensor, Tensor]:
        mean, spread = spread_of(scored.elites)
        if self._momentum == 0:
            return mean, spread, spread
        keep, take = self._momentum, 1 - self._momentum
        return mean * take + self.mean * keep, spread * take + self.std * keep, spread
