"""The DINO presets with random weights: one token per patch, class and register tokens left out."""

from __future__ import annotations

import pytest
import torch

from worldmodel.commands.material import make_encoder
from worldmodel.config import load


@pytest.mark.parametrize(("name", "patch", "prefix"), [("dinov2_small", 14, 1), ("dinov3_small", 16, 5)])
def test_a_frame_becomes_its_patches(name: str, patch: int, prefix: int) -> None:
    size = [f"encoder.input_size={3 * patch}", "encoder.image_size=32", "encoder.pretrained=false"]
    encoder = make_encoder(load("train", ["data=x.h5", f"encoder={name}", *size]).settings.encoder, seed=0)
    assert (encoder.num_tokens, encoder.embed_dim) == (9, 384)
    assert encoder.num_prefix_tokens == prefix
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    pixels = torch.randint(0, 256, (1, 2, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    tokens = encoder.encode_frames(pixels)
    assert tokens.shape == (1, 2, 9, 384)
    assert torch.allclose(encoder.encode_frames(pixels[:, 1:])[:, 0], tokens[:, 1], atol=1e-4)
