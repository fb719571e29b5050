"""Standardisation statistics of actions and proprioception, fitted on the training split.

A module with buffers, so that the statistics travel inside the checkpoint and cannot drift apart from the weights.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from worldmodel.errors import DataError

MIN_STD = 1e-6
"""Entries that vary less than this are taken for constant and only shifted, not scaled."""


class Normalizer(nn.Module):
    """Shifts and scales the last axis to zero mean and unit standard deviation.

    Args:
        dim: Length of the last axis. A new module is the identity until it is fitted or loaded.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        if dim < 1:
            raise DataError(f"dim must be >= 1, got {dim}")
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(dim))

    @classmethod
    def fit(cls, values: NDArray[Any] | Tensor) -> Normalizer:
        """Normalizer with the statistics of (..., dim) training values.

        Raises:
            DataError: There are no values, or some are not finite.
        """
        array = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values, np.float64)
        if array.ndim < 2 or array.size == 0:
            raise DataError(f"statistics need values of shape (..., dim) with at least one row, got {array.shape}")
        rows = array.reshape(-1, array.shape[-1])
        if not np.isfinite(rows).all():
            raise DataError(f"statistics need finite values, entry {_first_bad(rows)} holds NaN or infinite ones")
        std = rows.std(axis=0)
        normalizer = cls(rows.shape[1])
        normalizer.mean.copy_(torch.from_numpy(rows.mean(axis=0)))
        normalizer.std.copy_(torch.from_numpy(np.where(std < MIN_STD, 1.0, std)))
        return normalizer

    def forward(self, values: Tensor) -> Tensor:
        """Standardise (..., dim)."""
        return (values - self.mean) / self.std

    def inverse(self, values: Tensor) -> Tensor:
        """Undo `forward`."""
        return values * self.std + self.mean


def _first_bad(rows: NDArray[np.float64]) -> int:
    return int(np.argmax(~np.isfinite(rows).all(axis=0)))
