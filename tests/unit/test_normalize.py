from __future__ import annotations

import numpy as np
import pytest
import torch

from worldmodel.data.normalize import Normalizer
from worldmodel.errors import DataError

VALUES = np.random.default_rng(0).normal([1.0, -2.0, 5.0], [0.1, 3.0, 20.0], (4, 50, 3)).astype(np.float32)


def test_a_new_normalizer_is_the_identity() -> None:
    x = torch.from_numpy(VALUES)
    assert torch.equal(Normalizer(3)(x), x)


def test_fitted_values_have_mean_zero_and_std_one() -> None:
    out = Normalizer.fit(VALUES)(torch.from_numpy(VALUES)).reshape(-1, 3)
    assert torch.allclose(out.mean(0), torch.zeros(3), atol=1e-5)
    assert torch.allclose(out.std(0, correction=0), torch.ones(3), atol=1e-5)


def test_arrays_and_tensors_give_the_same_statistics() -> None:
    a, b = Normalizer.fit(VALUES), Normalizer.fit(torch.from_numpy(VALUES))
    assert torch.equal(a.mean, b.mean)
    assert torch.equal(a.std, b.std)


def test_inverse_undoes_forward() -> None:
    normalizer, x = Normalizer.fit(VALUES), torch.from_numpy(VALUES)
    assert torch.allclose(normalizer.inverse(normalizer(x)), x, rtol=1e-5, atol=1e-4)


def test_constant_entries_are_shifted_only() -> None:
    normalizer = Normalizer.fit(np.array([[3.0, 1.0], [3.0, 2.0]]))
    out = normalizer(torch.tensor([[3.0, 1.5], [4.0, 1.5]]))
    assert out[:, 0].tolist() == [0.0, 1.0]


def test_large_offsets_keep_their_spread() -> None:
    values = (1e4 + np.random.default_rng(0).normal(0, 0.01, (1000, 1))).astype(np.float64)
    assert Normalizer.fit(values).std.item() == pytest.approx(0.01, rel=0.1)


def test_statistics_travel_in_the_state_dict() -> None:
    fitted, loaded = Normalizer.fit(VALUES), Normalizer(3)
    loaded.load_state_dict(fitted.state_dict())
    assert set(fitted.state_dict()) == {"mean", "std"}
    assert torch.equal(loaded(torch.ones(3)), fitted(torch.ones(3)))


@pytest.mark.parametrize("values", [np.zeros((0, 3)), np.zeros(3)])
def test_no_rows(values: np.ndarray) -> None:
    with pytest.raises(DataError, match="at least one row"):
        Normalizer.fit(values)


def test_not_finite() -> None:
    values = VALUES.copy()
    values[2, 3, 1] = np.nan
    with pytest.raises(DataError, match="entry 1 holds NaN"):
        Normalizer.fit(values)


def test_dim_below_one() -> None:
    with pytest.raises(DataError, match="dim must be >= 1, got 0"):
        Normalizer(0)
