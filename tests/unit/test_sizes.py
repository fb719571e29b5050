"""The published encoder sizes, counted on the meta device against vjepa.md 1.1."""

from __future__ import annotations

import pytest
import torch

from worldmodel.errors import ConfigError
from worldmodel.models.encoders import VideoViT
from worldmodel.models.masked_predictor import MaskedPredictor, MaskedPredictorConfig
from worldmodel.models.sizes import SIZES, sized
from worldmodel.models.vit import ViTConfig, grid_positions, position_table, sincos_table

PUBLISHED = ViTConfig(image_size=224, patch_size=16, num_frames=16)
MILLIONS = {"tiny": 5.634, "small": 21.885, "base": 86.236, "large": 303.885, "huge": 631.648, "giant": 1012.174}


def parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", list(SIZES))
def test_sizes_have_the_published_number_of_parameters(name: str) -> None:
    with torch.device("meta"):
        encoder = VideoViT(sized(name, PUBLISHED))
    assert round(parameters(encoder) / 1e6, 3) == MILLIONS[name]
    assert encoder.config.grid == (8, 14, 14)


@pytest.mark.parametrize(("name", "millions"), [("large", 22.09), ("huge", 22.28), ("giant", 22.38)])
def test_the_predictor_has_the_published_number_of_parameters(name: str, millions: float) -> None:
    """Vjepa.md 1.5, with ten mask tokens."""
    config = MaskedPredictorConfig(embed_dim=384, depth=12, num_heads=12, num_mask_tokens=10)
    with torch.device("meta"):
        predictor = MaskedPredictor(config, sized(name, PUBLISHED))
    assert round(parameters(predictor) / 1e6, 2) == millions


def test_a_size_changes_nothing_else() -> None:
    small = sized("small")
    assert (small.image_size, small.patch_size, small.pos_embed) == (64, 8, "rope")
    with pytest.raises(ConfigError, match="did you mean 'giant'"):
        sized("gaint")


def test_images_give_all_of_the_width_to_rows_and_columns() -> None:
    """Image mode as published: [code of the row | code of the column], half of the width each."""
    image = ViTConfig(
        image_size=24, patch_size=8, tubelet_size=1, num_frames=1, embed_dim=16, num_heads=2, pos_embed="sincos"
    )
    table = position_table(image, 16)
    frequency = 10000.0 ** (-torch.arange(4.0) / 4)
    for token in range(9):
        row, column = token // 3 * frequency, token % 3 * frequency
        assert torch.allclose(table[token], torch.cat([row.sin(), row.cos(), column.sin(), column.cos()]), atol=1e-6)
    clip = ViTConfig(image_size=24, num_frames=2, embed_dim=16, num_heads=2, pos_embed="sincos")
    assert torch.equal(position_table(clip, 16), sincos_table(grid_positions((1, 3, 3)), 16))


@pytest.mark.parametrize("pos_embed", ["rope", "sincos"])
def test_an_image_encoder_takes_single_frames(pos_embed: str) -> None:
    config = ViTConfig(
        image_size=16, tubelet_size=1, num_frames=1, embed_dim=24, depth=1, num_heads=2, pos_embed=pos_embed
    )
    encoder = VideoViT(config)
    pixels = torch.rand(2, 1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert encoder(pixels).shape == (2, 4, 24)
    assert encoder(pixels, torch.tensor([[0, 3], [1, 2]])).shape == (2, 2, 24)
    frames = (255 * pixels).round().to(torch.uint8).permute(0, 1, 3, 4, 2)
    assert encoder.encode_frames(frames.repeat(1, 3, 1, 1, 1)).shape == (2, 3, 4, 24)
