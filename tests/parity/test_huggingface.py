"""Encoder, predictor and file formats against `transformers`' V-JEPA 2 with random weights (issue 6)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from worldmodel.models.encoders import IMAGENET_MEAN, IMAGENET_STD, VideoViT
from worldmodel.models.masked_predictor import MaskedPredictor
from worldmodel.models.pretrained import OfficialEncoderConfig, Pretrained, export_huggingface, import_official
from worldmodel.models.vit import gather_tokens

transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-5
SIZES = {
    "narrow": {
        "crop_size": 64,
        "hidden_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "pred_hidden_size": 48,
        "pred_num_hidden_layers": 2,
        "pred_num_attention_heads": 2,
        "pred_num_mask_tokens": 4,
    },
    "wide": {
        "crop_size": 48,
        "hidden_size": 176,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "mlp_ratio": 48 / 11,
        "pred_hidden_size": 64,
        "pred_num_hidden_layers": 1,
        "pred_num_attention_heads": 2,
        "pred_num_mask_tokens": 2,
    },
}


def stream(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module", params=list(SIZES))
def reference(request: pytest.FixtureRequest) -> Any:
    """`VJEPA2Model` with large random weights, mask tokens and biases included."""
    config = transformers.VJEPA2Config(frames_per_clip=8, **SIZES[request.param])
    with torch.random.fork_rng(devices=[]):
        model = transformers.VJEPA2Model(config).eval()
    for name, parameter in model.named_parameters():  # wide queries and keys: attention far from uniform
        sharp = name.endswith(("query.weight", "key.weight"))
        torch.nn.init.normal_(parameter, std=0.4 if sharp else 0.1, generator=stream(1))
    return model.requires_grad_(False)


@pytest.fixture(scope="module")
def folder(reference: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("huggingface")
    reference.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def ours(folder: Path) -> Pretrained:
    return import_official(OfficialEncoderConfig(path=str(folder)))


def clip(reference: Any, frames: int) -> tuple[Tensor, Tensor]:
    """Pixels in [0, 1] for us, and normalised as the published processor does for the reference."""
    size = reference.config.crop_size
    video = torch.rand(2, frames, 3, size, size, generator=stream(2))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return video, (video - mean) / std


def masked_predictor(model: Pretrained) -> MaskedPredictor:
    assert isinstance(model.predictor, MaskedPredictor)
    return model.predictor


def gap(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    assert float(theirs.std()) > 0.05, "a reference that gives nothing proves nothing"
    found = float((ours - theirs).abs().max())
    print(f"max abs difference {found:.2e}")  # noqa: T201
    return found


@pytest.mark.parametrize("frames", [2, 4, 8])
def test_encoders_agree(reference: Any, ours: Pretrained, frames: int) -> None:
    video, normal = clip(reference, frames)
    theirs = reference(pixel_values_videos=normal, skip_predictor=True).last_hidden_state
    assert gap(ours.encoder(video), theirs) < TOLERANCE


def test_a_single_frame_is_a_repeated_frame(reference: Any, ours: Pretrained) -> None:
    video, normal = clip(reference, 1)
    theirs = reference(pixel_values_videos=normal, skip_predictor=True).last_hidden_state
    assert gap(ours.encoder(video.expand(-1, 2, -1, -1, -1)), theirs) < TOLERANCE


@pytest.mark.parametrize(
    ("frames", "visible", "hidden", "seed"), [(8, 0.4, 0.5, 3), (8, 0.1, 0.8, 4), (4, 0.3, 0.3, 5)]
)
def test_predictors_agree(
    reference: Any, ours: Pretrained, frames: int, visible: float, hidden: float, seed: int
) -> None:
    """Different random masks for each clip; the reference always uses the second mask token."""
    video, normal = clip(reference, frames)
    encoded = ours.encoder(video)
    tokens = encoded.shape[1]
    order = torch.stack([torch.randperm(tokens, generator=stream(seed + row)) for row in range(2)])
    seen, wanted = int(visible * tokens), int(hidden * tokens)
    keep, target = order[:, :seen].sort(dim=1).values, order[:, seen : seen + wanted].sort(dim=1).values
    theirs = reference(pixel_values_videos=normal, context_mask=[keep], target_mask=[target])
    found = masked_predictor(ours)(gather_tokens(encoded, keep), keep, target, mask_type=1)
    assert gap(found, theirs.predictor_output.last_hidden_state) < TOLERANCE


def test_everything_is_predicted_from_everything_without_masks(reference: Any, ours: Pretrained) -> None:
    video, normal = clip(reference, 4)
    encoded = ours.encoder(video)
    everything = torch.arange(encoded.shape[1]).expand(2, -1)
    found = masked_predictor(ours)(encoded, everything, everything, mask_type=1)
    theirs = reference(pixel_values_videos=normal).predictor_output.last_hidden_state
    assert gap(found, theirs) < TOLERANCE


def test_the_comparison_can_fail(reference: Any, ours: Pretrained) -> None:
    """The true rotation, another mask token and other positions are all told apart."""
    video, normal = clip(reference, 4)
    theirs = reference(pixel_values_videos=normal).predictor_output.last_hidden_state
    encoded = ours.encoder(video)
    everything = torch.arange(encoded.shape[1]).expand(2, -1)
    predictor = masked_predictor(ours)
    assert gap(predictor(encoded, everything, everything, mask_type=0), theirs) > 100 * TOLERANCE
    assert gap(predictor(encoded, everything, everything.roll(1, dims=1), mask_type=1), theirs) > 100 * TOLERANCE
    true_rotation = VideoViT(replace(ours.encoder.config, rope_tiled=False))
    true_rotation.load_state_dict(ours.encoder.state_dict())
    with torch.no_grad():
        assert gap(true_rotation(video), encoded) > 100 * TOLERANCE


def test_import_then_export_is_the_identity(reference: Any, ours: Pretrained, tmp_path: Path) -> None:
    export_huggingface(tmp_path, ours)
    loaded, facts = transformers.VJEPA2Model.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(facts[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for name, value in reference.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    kept = {name: value for name, value in reference.config.to_dict().items() if name in SIZES["wide"]}
    assert {name: loaded.config.to_dict()[name] for name in kept} == kept
