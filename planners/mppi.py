"""Model predictive path integral control: average all candidates, weighted by how cheap they are."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from worldmodel.errors import ConfigError
from worldmodel.planners.base import Plan, Problems
from worldmodel.planners.sampling import SamplingPlanner, Scored, Search, check_num_elites, spread_of


@dataclass(kw_only=True)
class MPPI(SamplingPlanner):
    """Path-integral planner of Williams et al. (arXiv:1509.01149; information-theoretic form: ICRA 2017).

    A candidate weighs exp(-(cost - lowest cost) / temperature): the temperature *divides*, so a lower one is greedier
    (the textbook's lambda, as in pytorch-mppi; TD-MPC2 and JEPA-WMs multiply instead). Deviations: several iterations
    per plan with a standard deviation that shrinks, and the best sequence ever scored is returned; `returns="mean"`
    gives the textbook's weighted mean.

    Attributes:
        temperature: > 0, in units of `temperature_unit`.
        temperature_unit: "std": of the standard deviation of the candidates' costs in each iteration, so that one
            setting fits costs of any scale; "cost": of the cost itself, as published.
        std_decay: Factor in (0, 1] on the standard deviation after every iteration.
        control_cost: Add the published term `temperature * mean' noise / std^2`, which prices leaving the nominal
            sequence; it needs `temperature_unit="cost"`.
        num_elites: Cheapest candidates that are described in the trace and kept in the plan; all candidates weigh.
    """

    temperature: float = 0.2
    temperature_unit: str = "std"
    std_decay: float = 0.7
    control_cost: bool = False
    num_elites: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        check_num_elites(self.num_elites, self.num_samples)
        if not 0 < self.temperature < math.inf:
            raise ConfigError(f"temperature must be finite and > 0, got {self.temperature}")
        if self.temperature_unit not in ("std", "cost"):
            raise ConfigError(f"temperature_unit must be 'std' or 'cost', got {self.temperature_unit!r}")
        if not 0 < self.std_decay <= 1:
            raise ConfigError(f"std_decay must be in (0, 1], got {self.std_decay}")
        if self.control_cost and self.temperature_unit != "cost":
            raise ConfigError("control_cost is in units of the cost: set temperature_unit=cost")

    def _search(self, problems: Problems, warm_start: Plan | None) -> Search:
        return _MPPISearch(self, problems, warm_start)


class _MPPISearch(Search):
    """One `plan` call."""

    def __init__(self, config: MPPI, problems: Problems, warm_start: Plan | None) -> None:
        super().__init__(config, problems, warm_start, num_elites=config.num_elites)
        self._mppi = config

    def _refit(self, scored: Scored, iteration: int) -> tuple[Tensor, Tensor, Tensor]:
        cost = scored.cost + self._control_cost(scored.candidates) if self._mppi.control_cost else scored.cost
        weights = path_weights(cost, self._mppi.temperature, self._mppi.temperature_unit)
        weighted = scored.candidates * weights[:, :, None, None]
        mean = weighted.cumsum(dim=1).select(1, -1)
        _, spread = spread_of(scored.elites)
        return mean, self.std * self._mppi.std_decay, spread

    def _control_cost(self, candidates: Tensor) -> Tensor:
        """(B, S) price of moving away from the nominal sequence; 0 where the standard deviation is 0."""
        precision = torch.where(self.std > 0, 1 / self.std.square(), 0.0)
        noise = candidates - self.mean.unsqueeze(1)
        priced = (self.mean * precision).unsqueeze(1) * noise
        # running sums, whose bits do not depend on the number of problems
        total: Tensor = priced.flatten(2).cumsum(dim=2).select(2, -1)
        return total * self._mppi.temperature


def path_weights(cost: Tensor, temperature: float, unit: str = "cost") -> Tensor:
    """Weights (B, S) of candidates that cost (B, S); each row sums to 1.

    Args:
        cost: Finite.
        temperature: > 0; divides the cost.
        unit: "cost", or "std" to count it in standard deviations of a row.
    """
    above = cost - cost.amin(dim=1, keepdim=True)
    if unit == "std":
        mean = cost.cumsum(dim=1).select(1, -1).unsqueeze(1) * (1 / cost.shape[1])
        variance = (cost - mean).square().cumsum(dim=1).select(1, -1).unsqueeze(1) * (1 / cost.shape[1])
        deviation = variance.sqrt()
        above = torch.where(deviation > 0, above / deviation, 0.0)
    # row by row: the vector body and the scalar tail of `exp` differ in the last bit
    weights = torch.stack([torch.exp(row / -temperature) for row in above])
    return weights / weights.cumsum(dim=1).select(1, -1).unsqueeze(1)
