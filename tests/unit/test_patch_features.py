"""What an encoder sees, open-loop error of a whole model, and attention of its predictor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from worldmodel.analysis.attention import attention_figure, predictor_attention
from worldmodel.analysis.open_loop import measure_open_loop, open_loop_figure
from worldmodel.analysis.patch_features import drift_figure, encoder_drift, feature_figure, feature_maps
from worldmodel.analysis.samples import sample_episodes
from worldmodel.data.normalize import Normalizer
from worldmodel.errors import ConfigError, DataError
from worldmodel.learning.diagnostics import feature_drift
from worldmodel.models import action_transformer
from worldmodel.models.action_predictor import ResidualMLPConfig
from worldmodel.models.action_transformer import PredictorConfig, TransformerPredictorConfig, build_predictor
from worldmodel.models.encoders import Encoder
from worldmodel.models.frozen_encoders import PatchEncoderConfig, build_encoder
from worldmodel.models.latent_head import CompactHeadConfig, IdentityHeadConfig, build_head
from worldmodel.models.vit import ViTConfig
from worldmodel.models.world_model import ModelSpec, WorldModel
from worldmodel.testing import POINT_MASS_ID

VIT = ViTConfig(image_size=32, embed_dim=24, depth=1, num_heads=2, num_frames=2)


def make_model(latent: str, predictor: PredictorConfig) -> WorldModel:
    """Untrained model of the point mass; predictors do not copy the last frame."""
    encoder = build_encoder(VIT)
    config = (
        CompactHeadConfig(token_dim=4, hidden_dim=16, latent_dim=8) if latent == "compact" else IdentityHeadConfig()
    )
    head = build_head(config, num_tokens=encoder.num_tokens, embed_dim=encoder.embed_dim)
    spec = ModelSpec(
        env_ids=(POINT_MASS_ID,),
        action_dim=2,
        action_low=(-1.0, -1.0),
        action_high=(1.0, 1.0),
        action_block=2,
        image_size=32,
        proprio_names=("x", "y"),
        latent=latent,
    )
    network = build_predictor(predictor, num_tokens=head.num_tokens, latent_dim=head.latent_dim, action_dim=4)
    return WorldModel(encoder, head, network, Normalizer(4), Normalizer(2), spec)


def moving_square(count: int) -> np.ndarray:
    frames = np.full((count, 32, 32, 3), 40, np.uint8)
    for index in range(count):
        row, column = 8 * (index % 4), 8 * (index // 4 % 4)
        frames[index, row : row + 8, column : column + 8] = (250, 30, 120)
    return frames


def test_what_moves_gets_a_colour_of_its_own(tmp_path: Path) -> None:
    frames = moving_square(16)
    maps = feature_maps(build_encoder(PatchEncoderConfig(image_size=32, patch_size=8)), frames)
    assert maps.colours.shape == (16, 4, 4, 3)
    for index in range(16):
        first = maps.colours[index, ..., 0].astype(int)
        place = (index % 4, index // 4)
        assert first[place] == 255, "rare and strong is bright"
        assert first[place] - np.delete(first.ravel(), 4 * place[0] + place[1]).max() > 200
    assert maps.share[0] > 0.95
    figure = feature_figure(maps, columns=4)
    assert len([axes for axes in figure.axes if axes.images]) == 12
    assert maps.save_video(tmp_path / "maps.mp4", side=64).stat().st_size > 1000
    with pytest.raises(DataError, match="mp4"):
        maps.save_video(tmp_path / "maps.gif")
    with pytest.raises(DataError, match="T >= 2"):
        feature_maps(build_encoder(VIT), frames[:1])


def test_drift_sees_no_rotation_and_sees_another_encoder() -> None:
    features = torch.randn(40, 4, 6, generator=torch.Generator().manual_seed(0))
    turn, _ = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(1)))
    assert feature_drift(features, 3 * features @ turn + 2) == pytest.approx(0, abs=1e-6)
    other = torch.randn(40, 4, 6, generator=torch.Generator().manual_seed(2))
    assert feature_drift(features, other) > 0.8
    half = feature_drift(features, features + other)
    assert 0.1 < half < 0.8
    with pytest.raises(DataError, match="same frames"):
        feature_drift(features, other[:10])


def test_encoders_are_compared_on_the_same_frames() -> None:
    encoders: dict[str, Encoder] = {
        name: build_encoder(VIT, seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1))
    }
    rng = np.random.default_rng(0)
    drift = encoder_drift(encoders, rng.integers(0, 256, (12, 32, 32, 3), dtype=np.uint8))
    assert np.isnan(drift.from_previous[0])
    assert drift.from_previous[1] == pytest.approx(0, abs=1e-6)
    assert drift.from_previous[2] == drift.from_first[2] > 0.01
    assert [row["encoder"] for row in drift.records()] == ["a", "b", "c"]
    assert "effective rank" in drift._repr_html_()
    ranks, changes = drift_figure(drift).axes
    assert (ranks.get_xlabel(), changes.get_ylabel()) == ("encoder", "change of the features (1 - CKA)")
    with pytest.raises(DataError, match="two whole clips"):
        encoder_drift(encoders, np.zeros((6, 32, 32, 3), np.uint8))


def test_attention_is_what_the_kernel_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("patch", TransformerPredictorConfig(embed_dim=24, depth=2, num_heads=2, window=3))
    heard: list[Tensor] = []
    kernel = torch.nn.functional.scaled_dot_product_attention

    def listen(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        eye = torch.eye(k.shape[2]).expand(*k.shape[:2], -1, -1)
        heard.append(kernel(q, k, eye, attn_mask=attn_mask))  # values that name the key: the output is the weights
        return kernel(q, k, v, attn_mask=attn_mask)

    monkeypatch.setattr(action_transformer.functional, "scaled_dot_product_attention", listen)
    actions = np.random.default_rng(1).uniform(-1, 1, (3, 4)).astype(np.float32)
    attention = predictor_attention(model, moving_square(3), actions)
    assert attention.weights.shape == (2, 2, 16, 3, 16)
    own = [weights for weights in heard if weights.shape[-1] == 48][-2:]
    for layer, weights in enumerate(own):
        np.testing.assert_allclose(attention.weights[layer], weights[0, :, -16:].unflatten(-1, (3, 16)), atol=1e-5)
    np.testing.assert_allclose(attention.by_age.sum(axis=1), 1, atol=1e-6)
    figure = attention_figure(attention, patch=(1, 2))
    assert figure.axes[-1].get_ylabel() or figure.axes[-2].get_ylabel()
    assert not any(block._forward_pre_hooks for block in model.predictor.blocks), "nobody listens any more"  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=r"inside \(4, 4\)"):
        attention_figure(attention, patch=(4, 0))
    with pytest.raises(ConfigError, match="1 to 3 frames"):
        predictor_attention(model, moving_square(4), np.zeros((4, 4), np.float32))


def test_open_loop_errors_of_recorded_episodes(tmp_path: Path) -> None:
    model = make_model("compact", ResidualMLPConfig(hidden_dim=16, num_blocks=1))
    with pytest.raises(ConfigError, match="has no attention"):
        predictor_attention(model, moving_square(1), np.zeros((1, 4), np.float32))
    data = sample_episodes(tmp_path / "dots.h5", POINT_MASS_ID, episodes=6, steps=10, image_size=32, expert_fraction=0)
    known, held_out = np.array([0, 2, 3, 5]), np.array([1, 4])
    report = measure_open_loop(model, data, held_out, probe_episodes=known, horizon=3, num_clips=8)
    assert len(report.model) == 3
    assert report.model == pytest.approx(report.copy_last), "an untrained predictor repeats the last frame"
    figure = open_loop_figure(report, step_s=0.2, variables=("x", "y"))
    errors, probes = figure.axes
    assert "imagined time (s)" in errors.get_xlabel()
    assert [line.get_label() for line in probes.lines] == ["x", "y"]
    np.testing.assert_allclose(
        probes.lines[0].get_ydata(), 100 * np.array([report.probe_true[0], *report.probe_model[0]])
    )
    with pytest.raises(ConfigError, match="not yaw"):
        open_loop_figure(report, step_s=0.2, variables=("yaw",))
