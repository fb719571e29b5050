"""The released V-JEPA 2 position code, bug included: golden values measured from the reference implementation."""

from __future__ import annotations

import pytest
import torch

from worldmodel.models.vit import apply_rope, rope_tables

GOLDEN = {
    (4, 1): (-1.14264, 2.00990, -1.74498, 4.02980),
    (4, 3): (-1.27223, 2.02910, -3.53446, 4.08819),
    (20, 1): (
        *(-1.14264, 2.23127, 2.33109, 4.1812, 4.84773, 6.0497, 6.9681, 8.01108, 8.99369, 10.00226),
        *(-4.15433, 15.32597, 10.6275, 14.79184, 14.59341, 16.1492, 16.92821, 18.02692, 18.98738, 20.00477),
    ),
}


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize(("axis_dim", "position"), GOLDEN)
def test_tiled_rope_reproduces_the_released_values(axis_dim: int, position: int, axis: int) -> None:
    place = torch.zeros(1, 3, dtype=torch.long)
    place[0, axis] = position
    x = torch.arange(1.0, axis_dim + 1).repeat(3)
    out = apply_rope(x, rope_tables(place, 3 * axis_dim, tiled=True))[0].unflatten(0, (3, axis_dim))
    assert torch.allclose(out[axis], torch.tensor(GOLDEN[axis_dim, position]), atol=2e-5)
    for other in {0, 1, 2} - {axis}:
        assert torch.equal(out[other], torch.arange(1.0, axis_dim + 1))


def test_the_true_rotation_differs_from_the_released_one() -> None:
    place, x = torch.tensor([[1, 0, 0]]), torch.arange(1.0, 13.0)
    assert not torch.allclose(
        apply_rope(x, rope_tables(place, 12, tiled=True)), apply_rope(x, rope_tables(place, 12)), atol=1e-2
    )
