"""Building a network leaves torch's global stream alone and depends on its seed alone."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from worldmodel.learning.online import OnlineConfig, OnlineTask
from worldmodel.learning.vjepa import VJEPAConfig, VJEPATask
from worldmodel.models.encoders import VideoViT
from worldmodel.models.frozen_encoders import ConvEncoder, ConvEncoderConfig
from worldmodel.models.latent_head import CompactHeadConfig, build_head
from worldmodel.models.masked_predictor import MaskedPredictor, MaskedPredictorConfig
from worldmodel.models.vit import ViTConfig

VIT = ViTConfig(embed_dim=24, depth=1, num_heads=2, image_size=16, patch_size=8, num_frames=4)
SMALL = MaskedPredictorConfig(embed_dim=24, depth=1, num_heads=2)


@pytest.mark.parametrize(
    "build",
    [
        lambda: VideoViT(VIT, seed=3),
        lambda: MaskedPredictor(SMALL, VIT, seed=3),
        lambda: ConvEncoder(ConvEncoderConfig(), seed=3),
        lambda: build_head(CompactHeadConfig(), num_tokens=4, embed_dim=24, seed=3),
        lambda: VJEPATask(VIT, VJEPAConfig(predictor=SMALL, latent_dynamics_weight=0.1), background=None, seed=3),
        lambda: OnlineTask(VIT, OnlineConfig(predictor=SMALL), background=None, seed=3),
    ],
    ids=["vit", "masked-predictor", "conv", "head", "vjepa", "online"],
)
def test_weights_come_from_the_seed_and_the_global_stream_stays(build: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = build().state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    second = build().state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
