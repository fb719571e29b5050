"""Encoders: shapes, token dropping, frame mode, timm backbones and their errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from worldmodel.errors import CheckpointError, ConfigError, DataError
from worldmodel.models.encoders import VideoViT
from worldmodel.models.frozen_encoders import (
    ConvEncoderConfig,
    PatchEncoderConfig,
    TimmEncoder,
    TimmEncoderConfig,
    build_encoder,
)
from worldmodel.models.vit import ViTConfig, gather_tokens

TINY = {"image_size": 16, "patch_size": 8, "num_frames": 4, "embed_dim": 24, "depth": 2, "num_heads": 2}


def clip(frames: int = 4, batch: int = 2, size: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (batch, frames, size, size, 3), generator=generator, dtype=torch.uint8)


def as_float(pixels: torch.Tensor) -> torch.Tensor:
    return pixels.permute(0, 1, 4, 2, 3).float() / 255


@pytest.mark.parametrize("pos_embed", ["rope", "sincos"])
def test_a_clip_becomes_tokens_of_the_grid(pos_embed: str) -> None:
    encoder = VideoViT(ViTConfig(**TINY, pos_embed=pos_embed))
    assert encoder(as_float(clip())).shape == (2, 2 * 4, 24)
    assert encoder(as_float(clip(frames=2))).shape == (2, 4, 24)
    assert (encoder.num_tokens, encoder.embed_dim) == (4, 24)


@pytest.mark.parametrize("pos_embed", ["rope", "sincos"])
def test_dropped_tokens_are_as_if_they_never_existed(pos_embed: str) -> None:
    """Attention over the kept tokens at their true places: equal to masking the others out by hand."""
    encoder = VideoViT(ViTConfig(**{**TINY, "depth": 1}, pos_embed=pos_embed))
    keep = torch.tensor([[0, 3, 6], [1, 2, 7]])
    video = as_float(clip())
    changed = video.clone()
    changed[0, 2:, :, :8, :8] = 0.5  # token 4 of clip 0, which is dropped
    assert torch.equal(encoder(video, keep), encoder(changed, keep))
    everything = torch.arange(8).expand(2, -1)
    assert torch.allclose(encoder(video, everything), encoder(video), atol=1e-6)
    assert not torch.allclose(encoder(video, keep), gather_tokens(encoder(video), keep), atol=1e-4)


@pytest.mark.parametrize("pos_embed", ["rope", "sincos"])
def test_positions_matter(pos_embed: str) -> None:
    encoder = VideoViT(ViTConfig(**TINY, pos_embed=pos_embed))
    same = torch.full((1, 4, 3, 16, 16), 0.7)
    same[:, :, :, :8, :8] = 0.1
    moved = same.flip(-1)
    assert not torch.allclose(encoder(same).mean(dim=1), encoder(moved).mean(dim=1), atol=1e-6)


def test_frame_mode_is_a_clip_of_one_repeated_frame_in_the_prediction_space() -> None:
    encoder = VideoViT(ViTConfig(**TINY))
    pixels = clip(frames=3)
    out = encoder.encode_frames(pixels)
    assert out.shape == (2, 3, 4, 24)
    twice = as_float(pixels[:, 1:2]).expand(-1, 2, -1, -1, -1)
    expected = torch.nn.functional.layer_norm(encoder(twice), (24,), eps=1e-6)
    assert torch.allclose(out[:, 1], expected, atol=1e-5)


def test_taps_concatenate_normed_blocks() -> None:
    plain, tapped = VideoViT(ViTConfig(**TINY)), VideoViT(ViTConfig(**TINY, taps=(1, 0)))
    out = tapped.encode_frames(clip())
    assert tapped.embed_dim == 48
    assert out.shape == (2, 4, 4, 48)
    # the last block differs from the default output only by the affine part of the final norm, which starts as identity
    assert torch.allclose(out[..., :24], plain.encode_frames(clip()), atol=1e-4)
    assert torch.allclose(out[..., 24:].mean(dim=-1), torch.zeros(2, 4, 4), atol=1e-5)


def test_seed_decides_the_weights() -> None:
    first, again, other = (build_encoder(ViTConfig(**TINY), seed=seed) for seed in (1, 1, 2))
    pairs = list(zip(first.parameters(), again.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b, _ in pairs)
    assert any(not torch.equal(a, c) for a, _, c in pairs)


def test_tables_stay_out_of_the_state_dict() -> None:
    names = set(VideoViT(ViTConfig(**TINY)).state_dict())
    assert names == {name for name, _ in VideoViT(ViTConfig(**TINY)).named_parameters()}
    assert "blocks.0.attn.qkv.weight" in names


@pytest.mark.parametrize(
    "pixels", [torch.zeros(2, 4, 16, 16, 3), torch.zeros(4, 16, 16, 3, dtype=torch.uint8), clip(size=24)]
)
def test_wrong_frames_are_refused(pixels: torch.Tensor) -> None:
    with pytest.raises(DataError, match="16, 16, 3"):
        VideoViT(ViTConfig(**TINY)).encode_frames(pixels)


@pytest.mark.parametrize("shape", [(1, 3, 3, 16, 16), (1, 6, 3, 16, 16), (1, 4, 3, 24, 24)])
def test_wrong_clips_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="num_frames=4"):
        VideoViT(ViTConfig(**TINY))(torch.zeros(shape))


def test_patches_are_the_pixels_themselves() -> None:
    encoder = build_encoder(PatchEncoderConfig(image_size=16, patch_size=8))
    pixels = clip(frames=2)
    tokens = encoder.encode_frames(pixels)
    assert tokens.shape == (len(pixels), 2, 4, 192)
    lower_left = pixels[:, :, 8:, :8].float() / 127.5 - 1
    assert torch.allclose(tokens[:, :, 2].sort().values, lower_left.flatten(2).sort().values)


def test_a_random_conv_net_is_decided_by_its_seed_and_keeps_places_apart() -> None:
    config = ConvEncoderConfig(image_size=16, widths=(8, 12))
    first, again, other = (build_encoder(config, seed=seed).encode_frames(clip()) for seed in (1, 1, 2))
    assert first.shape[2:] == (16, 12)
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    changed = clip()
    changed[:, :, :2, :2] = 255 - changed[:, :, :2, :2]
    moved = (build_encoder(config, seed=1).encode_frames(changed) - first).abs().amax(dim=(0, 1, 3)).view(4, 4)
    assert moved[0, 0] > 0
    assert torch.all(moved[2:] == 0)
    assert torch.all(moved[:, 2:] == 0)


@pytest.mark.parametrize(
    "make",
    [
        lambda: PatchEncoderConfig(image_size=20, patch_size=8),
        lambda: ConvEncoderConfig(image_size=20),
        lambda: ConvEncoderConfig(widths=()),
    ],
)
def test_sizes_that_do_not_divide_are_refused(make: Callable[[], object]) -> None:
    with pytest.raises(ConfigError, match="image_size"):
        make()


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet10t"])
def test_timm_backbones_give_tokens(name: str) -> None:
    encoder = build_encoder(TimmEncoderConfig(name=name, image_size=32))
    out = encoder.encode_frames(clip(frames=2, size=32))
    assert out.shape == (2, 2, encoder.num_tokens, encoder.embed_dim)
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    again = build_encoder(TimmEncoderConfig(name=name, image_size=32))
    assert torch.equal(out, again.encode_frames(clip(frames=2, size=32)))


def test_a_frozen_backbone_ignores_training_mode() -> None:
    encoder = build_encoder(TimmEncoderConfig(name="resnet10t", image_size=32))
    before = encoder.encode_frames(clip(size=32))
    assert torch.equal(encoder.train().encode_frames(clip(size=32)), before)


def test_weights_that_cannot_be_downloaded_are_explained() -> None:
    with pytest.raises(ConfigError, match="weights=FILE"):
        build_encoder(TimmEncoderConfig(name="levit_256d", pretrained=True, image_size=224))


def test_timm_prefix_tokens_are_dropped_and_frames_resized() -> None:
    encoder = TimmEncoder(TimmEncoderConfig(name="vit_tiny_patch16_224", image_size=16, input_size=48))
    assert encoder.num_tokens == 9
    assert encoder.encode_frames(clip(frames=1)).shape == (2, 1, 9, 192)


def test_unknown_timm_names_get_the_nearest() -> None:
    with pytest.raises(ConfigError, match="resnet18"):
        build_encoder(TimmEncoderConfig(name="resnet1818"))


def test_timm_weights_come_from_safetensors(tmp_path: Path) -> None:
    source = timm.create_model("resnet10t", num_classes=0)
    path = tmp_path / "weights.safetensors"
    save_file(source.state_dict(), path)
    encoder = TimmEncoder(TimmEncoderConfig(name="resnet10t", image_size=32, weights=str(path)))
    assert torch.equal(encoder.backbone.state_dict()["conv1.0.weight"], source.state_dict()["conv1.0.weight"])
    with pytest.raises(CheckpointError, match="does not fit"):
        TimmEncoder(TimmEncoderConfig(name="resnet18", image_size=32, weights=str(path)))
    with pytest.raises(CheckpointError, match="does not exist"):
        TimmEncoder(TimmEncoderConfig(name="resnet10t", image_size=32, weights=str(tmp_path / "none.safetensors")))


def test_two_sources_of_weights_are_refused() -> None:
    with pytest.raises(ConfigError, match="one source"):
        TimmEncoderConfig(pretrained=True, weights="x.safetensors")
