"""SIGReg: keeps a batch of embeddings close to an isotropic Gaussian, which rules out collapse without a teacher."""

from __future__ import annotations

import torch
from torch import Tensor

KNOTS = 17
MAX_FREQUENCY = 3.0


def sigreg(z: Tensor, *, num_directions: int, generator: torch.Generator) -> Tensor:
    """Sketched isotropic Gaussian regularisation (LeJEPA, arXiv:2511.08544; weights as in LeWM, arXiv:2603.19312).

    Every random direction gives a one-dimensional sample, whose empirical characteristic function is compared with
    that of N(0, 1) (Epps-Pulley statistic, trapezoid rule over 17 frequencies in [0, 3] under a Gaussian window).

    Args:
        z: (T, B, D); the statistic is taken over B, separately for every t.
        num_directions: Random unit directions.
        generator: Stream of the directions.

    Returns:
        Scalar: B times the statistic, averaged over directions and t. About 1 for a Gaussian sample, of order B for
        a collapsed one.
    """
    directions = torch.randn(z.shape[-1], num_directions, generator=generator, device=generator.device).to(z.device)
    with torch.autocast(z.device.type, enabled=False):  # in bfloat16 the statistic would measure rounding
        projected = z.float() @ (directions / directions.norm(dim=0))  # (T, B, K)
    knots = torch.linspace(0, MAX_FREQUENCY, KNOTS, device=z.device)
    gaussian = torch.exp(-knots.square() / 2)
    weights = torch.full_like(knots, MAX_FREQUENCY / (KNOTS - 1))
    weights[0] = weights[-1] = weights[0] / 2
    angles = projected.unsqueeze(-1) * knots  # (T, B, K, knots)
    error = (angles.cos().mean(1) - gaussian).square() + angles.sin().mean(1).square()
    statistic = (error * (weights * gaussian)).sum(-1)
    value: Tensor = z.shape[1] * statistic.mean()
    return value


def expected_at_gaussian() -> float:
    """Value of `sigreg` to expect when z really is Gaussian, for reading loss curves.

    For independent N(0, 1) samples the squared error at frequency t has expectation (1 - exp(-t^2)) / B.
    """
    knots = torch.linspace(0, MAX_FREQUENCY, KNOTS, dtype=torch.float64)
    values = (1 - torch.exp(-knots.square())) * torch.exp(-knots.square() / 2)
    return float(torch.trapezoid(values, knots))
