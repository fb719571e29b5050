"""The operation count that the pretraining benchmark divides by."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from worldmodel.models.encoders import VideoViT
from worldmodel.models.vit import ViTConfig

PATH = Path(__file__).resolve().parents[1] / "benchmarks" / "bench_pretrain.py"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_pretrain", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "bench_pretrain", module)
    spec.loader.exec_module(module)
    return module


def test_a_linear_layer_counts_twice_with_its_weight_gradient(bench: ModuleType) -> None:
    layer, x = nn.Linear(8, 16), torch.ones(4, 8)
    assert bench.matmul_flops(lambda: layer(x)) == 2 * 4 * 8 * 16
    assert bench.matmul_flops(lambda: layer(x).sum().backward()) == 2 * 2 * 4 * 8 * 16
    x.requires_grad_()
    assert bench.matmul_flops(lambda: layer(x).sum().backward()) == 3 * 2 * 4 * 8 * 16


def test_scores_that_backward_computes_again_are_not_counted(bench: ModuleType) -> None:
    q, k, v = (torch.ones(2, 3, 5, 8, requires_grad=True) for _ in range(3))
    forward = 2 * (2 * 2 * 3 * 5 * 5 * 8)
    assert bench.matmul_flops(lambda: F.scaled_dot_product_attention(q, k, v)) == forward
    assert bench.matmul_flops(lambda: F.scaled_dot_product_attention(q, k, v).sum().backward()) == 3 * forward


def test_an_encoder_counts_what_its_sizes_say(bench: ModuleType) -> None:
    config = ViTConfig(image_size=16, num_frames=4, embed_dim=24, depth=2, num_heads=2)
    encoder, pixels = VideoViT(config), torch.rand(3, 4, 3, 16, 16)
    tokens, width = 8, 24
    linears = 2 * tokens * (config.patch_dim * width + config.depth * 12 * width**2)
    attention = config.depth * 4 * tokens**2 * width
    assert bench.matmul_flops(lambda: encoder(pixels)) == 3 * (linears + attention)
