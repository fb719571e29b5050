"""Closed-form probes: what can be read off frozen features, variable by variable, on episodes never fitted.

Kept apart from `diagnostics.py`, which needs no labels. A mean over variables hides the one that matters (a small
gripper beside a large block), so every result is per variable.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from worldmodel.errors import ConfigError, DataError

Floats = NDArray[np.float64]
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
_SCALE_FLOOR = 1e-6


@dataclass(kw_only=True)
class RidgeProbe:
    """Linear map from features to targets.

    Attributes:
        weight: (K, V).
        offset: (V,).
    """

    weight: Floats
    offset: Floats

    def predict(self, features: NDArray[Any]) -> Floats:
        """Features (F, K) -> targets (F, V)."""
        out: Floats = features.astype(np.float64) @ self.weight + self.offset
        return out


@dataclass(kw_only=True)
class ProbeReport:
    """How well each variable can be read off on held-out episodes.

    Attributes:
        names: Variables V.
        rmse: (V,) root mean squared error, in the unit of the variable.
        r2: (V,) share of variance explained; NaN for a variable that is constant in the held-out episodes.
        penalty: Ridge penalty that was best on a part of the training episodes.
        num_train: Frames fitted.
        num_test: Frames tested.
    """

    names: tuple[str, ...]
    rmse: Floats
    r2: Floats
    penalty: float
    num_train: int
    num_test: int

    def to_dict(self) -> dict[str, float]:
        """Flat JSON-ready form, "NAME_rmse" and "NAME_r2"."""
        pairs = {f"{name}_rmse": float(value) for name, value in zip(self.names, self.rmse, strict=True)}
        return {**pairs, **{f"{name}_r2": float(value) for name, value in zip(self.names, self.r2, strict=True)}}


def fit_ridge(features: NDArray[Any], targets: NDArray[Any], *, penalty: float) -> RidgeProbe:
    """Ridge regression on features standardised per column.

    Args:
        features: (F, K).
        targets: (F, V).
        penalty: Penalty on standardised weights, relative to the number of rows; > 0.

    Raises:
        ConfigError: The penalty is not positive.
        DataError: Row counts differ, or a value is not finite.
    """
    if not penalty > 0:
        raise ConfigError(f"penalty must be > 0, got {penalty}")
    _check(features, targets)
    x, y = features.astype(np.float64), targets.astype(np.float64)
    mean, scale, middle = x.mean(axis=0), x.std(axis=0), y.mean(axis=0)
    scale = np.where(scale > _SCALE_FLOOR, scale, np.inf)  # a constant column carries nothing
    x = (x - mean) / scale
    rows, columns = x.shape
    # The smaller of the two equivalent systems: columns x columns, or rows x rows (kernel form).
    if columns <= rows:
        solved = np.linalg.solve(x.T @ x + penalty * rows * np.eye(columns), x.T @ (y - middle))
    else:
        solved = x.T @ np.linalg.solve(x @ x.T + penalty * rows * np.eye(rows), y - middle)
    weight = solved / scale[:, None]
    return RidgeProbe(weight=weight, offset=middle - mean @ weight)


def probe(
    features: NDArray[Any],
    targets: NDArray[Any],
    episodes: NDArray[Any],
    names: Sequence[str],
    *,
    test_fraction: float = 0.25,
    max_frames: int = 4000,
    seed: int = 0,
    penalties: Sequence[float] = PENALTIES,
) -> ProbeReport:
    """Fit a ridge probe on some episodes and test it on the others.

    Args:
        features: (F, ...) frozen features, flattened per frame.
        targets: (F, V) variables to read off.
        episodes: (F,) episode of each frame; an episode is never on both sides.
        names: Names of the V variables.
        test_fraction: Share of episodes held out, in (0, 1).
        max_frames: Most frames used on either side, chosen at random.
        seed: Seed of the split and of the choice of frames.
        penalties: Ridge penalties to try on a quarter of the training episodes.

    Raises:
        ConfigError: The fraction is out of range or the names do not fit the targets.
        DataError: Shapes differ, values are not finite, or there are fewer than three episodes.
    """
    if not 0 < test_fraction < 1:
        raise ConfigError(f"test_fraction must be in (0, 1), got {test_fraction}")
    flat = features.reshape(len(features), -1)
    if len(names) != targets.shape[-1]:
        raise ConfigError(f"{len(names)} names for {targets.shape[-1]} variables")
    if len(episodes) != len(flat):
        raise DataError(f"{len(flat)} rows of features but {len(episodes)} of episodes")
    rng = np.random.default_rng(seed)
    train, test = _split(np.arange(len(flat)), episodes, test_fraction, rng)
    train, test = _thin(train, max_frames, rng), _thin(test, max_frames, rng)
    _check(flat[test], targets[test])
    inner, tuning = _split(train, episodes, 0.25, rng)
    errors = []
    for penalty in penalties:
        fitted = fit_ridge(flat[inner], targets[inner], penalty=penalty)
        residual = fitted.predict(flat[tuning]) - targets[tuning]
        spread = np.maximum(targets[inner].std(axis=0), _SCALE_FLOOR)
        errors.append(float(np.mean(np.square(residual / spread))))
    best = penalties[int(np.argmin(errors))]
    fitted = fit_ridge(flat[train], targets[train], penalty=best)
    rmse, r2 = _score(fitted.predict(flat[test]), targets[test].astype(np.float64))
    return ProbeReport(names=tuple(names), rmse=rmse, r2=r2, penalty=best, num_train=len(train), num_test=len(test))


def _score(predicted: Floats, true: Floats) -> tuple[Floats, Floats]:
    squared = np.square(predicted - true).mean(axis=0)
    variance = true.var(axis=0)
    r2 = np.full_like(variance, np.nan)
    varies = variance > _SCALE_FLOOR**2
    r2[varies] = 1 - squared[varies] / variance[varies]
    return np.sqrt(squared), r2


def _split(
    rows: NDArray[np.int64], episodes: NDArray[Any], fraction: float, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of the larger and of the smaller part, divided by whole episodes."""
    ids = np.unique(episodes[rows])
    if len(ids) < 2:
        raise DataError(
            f"a probe needs at least three episodes to fit, tune and test on, got {len(np.unique(episodes))}"
        )
    count = min(len(ids) - 1, max(1, round(fraction * len(ids))))
    held_out = np.isin(episodes[rows], rng.permutation(ids)[:count])
    return rows[~held_out], rows[held_out]


def _thin(rows: NDArray[np.int64], limit: int, rng: np.random.Generator) -> NDArray[np.int64]:
    return rows if len(rows) <= limit else np.sort(rng.choice(rows, limit, replace=False))


def _check(features: NDArray[Any], targets: NDArray[Any]) -> None:
    if features.ndim != 2 or targets.ndim != 2 or len(features) != len(targets) or len(features) == 0:
        raise DataError(f"need features (F, K) and targets (F, V), got {features.shape} and {targets.shape}")
    for name, values in (("features", features), ("targets", targets)):
        if not np.isfinite(values).all():
            raise DataError(f"{name} hold NaN or infinite values; check the encoder and the data file")
