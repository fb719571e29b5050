"""Parts of the vision transformer against independent definitions."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from worldmodel.errors import ConfigError
from worldmodel.models.vit import (
    Attention,
    Block,
    RopeGrid,
    ViTConfig,
    apply_rope,
    gather_tokens,
    grid_positions,
    init_transformer,
    patchify,
    rope_axis_dim,
    rope_tables,
    sincos_table,
)


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_tubelets_times_a_matrix_equal_a_strided_convolution() -> None:
    pixels = torch.randn(2, 4, 3, 16, 24, generator=stream())
    conv = nn.Conv3d(3, 5, kernel_size=(2, 8, 8), stride=(2, 8, 8))
    expected = conv(pixels.transpose(1, 2)).flatten(2).transpose(1, 2)
    linear = patchify(pixels, tubelet_size=2, patch_size=8) @ conv.weight.flatten(1).T + conv.bias
    assert torch.allclose(linear, expected, atol=1e-5)


def test_positions_run_over_time_then_rows_then_columns() -> None:
    positions = grid_positions((2, 3, 4))
    assert positions[0].tolist() == [0, 0, 0]
    assert positions[1].tolist() == [0, 0, 1]
    assert positions[4].tolist() == [0, 1, 0]
    assert positions[12].tolist() == [1, 0, 0]


@pytest.mark.parametrize(("head_dim", "axis_dim"), [(64, 20), (80, 26), (32, 10), (128, 42), (6, 2)])
def test_axis_widths_are_the_published_ones(head_dim: int, axis_dim: int) -> None:
    assert rope_axis_dim(head_dim) == axis_dim


@pytest.mark.parametrize("head_dim", [25, 4])
def test_heads_that_cannot_be_rotated_are_refused(head_dim: int) -> None:
    with pytest.raises(ConfigError, match=str(head_dim)):
        rope_axis_dim(head_dim)


def test_rotation_matches_its_definition_pair_by_pair() -> None:
    position, head_dim = torch.tensor([[3, 1, 2]]), 32
    x = torch.randn(1, head_dim, generator=stream())
    expected = x.clone()
    for axis in range(3):
        for pair in range(5):
            angle = float(position[0, axis]) * 10000 ** (-pair / 5)
            a, b = float(x[0, 10 * axis + 2 * pair]), float(x[0, 10 * axis + 2 * pair + 1])
            expected[0, 10 * axis + 2 * pair] = a * math.cos(angle) - b * math.sin(angle)
            expected[0, 10 * axis + 2 * pair + 1] = a * math.sin(angle) + b * math.cos(angle)
    assert torch.allclose(apply_rope(x, rope_tables(position, head_dim)), expected, atol=1e-5)
    assert torch.equal(expected[:, 30:], x[:, 30:])


def test_scores_depend_on_relative_positions_only() -> None:
    q, k = torch.randn(2, 1, 32, generator=stream()).unbind(0)
    here, there, shift = torch.tensor([[1, 2, 3]]), torch.tensor([[4, 0, 1]]), torch.tensor([[2, 5, 7]])

    def score(a: torch.Tensor, b: torch.Tensor, tiled: bool) -> float:
        turned = apply_rope(q, rope_tables(a, 32, tiled=tiled)) * apply_rope(k, rope_tables(b, 32, tiled=tiled))
        return float(turned.sum())

    assert score(here, there, False) == pytest.approx(score(here + shift, there + shift, False), abs=1e-4)
    # the released tiling is not a true rotation: the property is lost, which is why it is only an option
    assert abs(score(here, there, True) - score(here + shift, there + shift, True)) > 1e-2


def test_complex_and_real_tables_rotate_alike() -> None:
    index = torch.tensor([[0, 5, 7], [3, 2, 1]])
    x = torch.randn(2, 3, 2, 32, generator=stream())
    fast = apply_rope(x, RopeGrid((2, 2, 2), 32, tiled=False)(index))
    cos, sin = rope_tables(grid_positions((2, 2, 2)), 32)
    slow = apply_rope(x, (cos[index].unsqueeze(-2), sin[index].unsqueeze(-2)))
    assert torch.allclose(fast, slow, atol=1e-6)


def test_rotation_keeps_half_precision() -> None:
    x = torch.ones(1, 1, 1, 32, dtype=torch.bfloat16)
    assert apply_rope(x, RopeGrid((1, 1, 1), 32, tiled=False)(torch.zeros(1, dtype=torch.long))).dtype == torch.bfloat16


def test_sincos_gives_each_axis_its_code_and_is_cut_to_width() -> None:
    table = sincos_table(torch.tensor([[2, 0, 1]]), 16)  # 6 per axis, 18 cut to 16
    assert table.shape == (1, 16)
    for i in range(3):
        omega = 10000 ** (-i / 3)
        assert table[0, i] == pytest.approx(math.sin(2 * omega), abs=1e-6)
        assert table[0, 3 + i] == pytest.approx(math.cos(2 * omega), abs=1e-6)
        assert table[0, 6 + i] == 0
        assert table[0, 12 + i] == pytest.approx(math.sin(omega), abs=1e-6)


def test_gathering_picks_rows_by_id() -> None:
    x = torch.arange(12.0).view(2, 3, 2)
    assert gather_tokens(x, torch.tensor([[2, 0], [1, 1]])).tolist() == [[[4, 5], [0, 1]], [[8, 9], [8, 9]]]


def test_attention_is_the_softmax_of_scaled_scores() -> None:
    attention = Attention(8, 2)
    init_transformer(attention, stream())
    x = torch.randn(2, 5, 8, generator=stream(1))
    q, k, v = (t.view(2, 5, 2, 4).transpose(1, 2) for t in attention.qkv(x).split(8, dim=-1))
    weights = (q @ k.transpose(-1, -2) / 2.0).softmax(dim=-1)
    expected = attention.proj((weights @ v).transpose(1, 2).reshape(2, 5, 8))
    assert torch.allclose(attention(x, None), expected, atol=1e-6)


def test_initial_weights_come_from_the_generator_and_shrink_with_depth() -> None:
    blocks = nn.Sequential(*(Block(64, 2, 4.0) for _ in range(8)))
    init_transformer(blocks, stream())
    first, last = blocks[0], blocks[7]
    assert isinstance(first, Block)
    assert isinstance(last, Block)
    assert float(first.attn.qkv.weight.detach().std()) == pytest.approx(0.02, rel=0.05)
    assert float(first.attn.proj.weight.detach().std()) == pytest.approx(0.02 / math.sqrt(2), rel=0.05)
    assert float(last.mlp.fc2.weight.detach().std()) == pytest.approx(0.02 / 4, rel=0.05)
    again = nn.Sequential(*(Block(64, 2, 4.0) for _ in range(8)))
    init_transformer(again, stream())
    assert all(torch.equal(a, b) for a, b in zip(blocks.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"image_size": 60}, "patch_size=8"),
        ({"num_frames": 7}, "tubelet_size=2"),
        ({"num_heads": 5}, "num_heads=5"),
        ({"depth": 0}, "depth"),
        ({"pos_embed": "learned"}, "learned"),
        ({"taps": (6,)}, "taps"),
        ({"embed_dim": 12, "num_heads": 3}, "at least 6"),
    ],
)
def test_bad_sizes_are_named(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        ViTConfig(**changes)
