"""Each number of the health check on features whose answer is known."""

from __future__ import annotations

import pytest
import torch

from worldmodel.errors import DataError
from worldmodel.learning.diagnostics import (
    Health,
    channel_std,
    cross_sample_gap,
    describe,
    effective_rank,
    frame_health,
    health_check,
    positional_share,
    task_health,
    temporal_share,
)
from worldmodel.learning.vjepa import VJEPAConfig, VJEPATask
from worldmodel.models.encoders import VideoViT
from worldmodel.models.masked_predictor import MaskedPredictorConfig
from worldmodel.models.vit import ViTConfig

ENCODER = ViTConfig(image_size=16, patch_size=4, num_frames=4, embed_dim=24, depth=1, num_heads=2)


def noise(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def test_features_of_the_place_alone_are_all_positional() -> None:
    place = noise(1, 1, 9, 5).expand(20, 6, -1, -1)
    assert positional_share(place) == pytest.approx(1.0)
    assert positional_share(place + noise(20, 6, 9, 5, seed=1)) == pytest.approx(0.5, abs=0.1)
    assert positional_share(noise(200, 6, 9, 5)) < 0.02


def test_features_of_the_episode_alone_have_no_temporal_share() -> None:
    episode = noise(200, 1, 9, 5).expand(-1, 6, -1, -1)
    assert temporal_share(episode) == pytest.approx(0.0, abs=1e-6)
    assert temporal_share(episode + noise(200, 6, 9, 5, seed=1)) == pytest.approx(0.5 * 5 / 6, abs=0.03)


def test_effective_rank_counts_directions() -> None:
    assert effective_rank(noise(2000, 8)) == pytest.approx(8, abs=0.1)
    assert effective_rank(noise(2000, 3) @ torch.linalg.qr(noise(8, 8)).Q[:3]) == pytest.approx(3, abs=0.1)
    assert effective_rank(noise(2000, 1).expand(-1, 8)) == pytest.approx(1, abs=1e-3)


def test_channel_std_ignores_the_place() -> None:
    assert channel_std(0.3 * noise(300, 4, 5, 6) + 10 * noise(5, 6)) == pytest.approx(0.3, rel=0.05)


def test_the_gap_sees_whether_predictions_know_their_clip() -> None:
    target = noise(16, 9, 32)
    assert cross_sample_gap(target, target) > 0.9
    assert cross_sample_gap(target.mean(dim=0, keepdim=True).expand(16, -1, -1), target) == pytest.approx(0, abs=1e-5)


def test_warnings_name_the_kind_of_collapse() -> None:
    def warn(**changes: float) -> str:
        healthy = {"positional_share": 0.5, "temporal_share": 0.3, "effective_rank": 20.0, "channel_std": 0.5}
        return " ".join(Health(**{**healthy, **changes}).warnings())

    assert warn() == ""
    assert "positional" in warn(positional_share=0.99)
    assert "slow" in warn(temporal_share=0.01)
    assert "dimensional" in warn(effective_rank=1.5)
    assert "ignore the clip" in warn(cross_sample_gap=0.01)


def test_a_task_and_an_encoder_can_be_checked_without_touching_them() -> None:
    task = VJEPATask(ENCODER, VJEPAConfig(predictor=MaskedPredictorConfig(embed_dim=12, depth=1, num_heads=2)))
    pixels = torch.randint(0, 256, (6, 4, 16, 16, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    before = {name: value.clone() for name, value in task.state_dict().items()}
    health = task_health(task, pixels, torch.Generator().manual_seed(1))
    assert task.training
    assert all(torch.equal(value, before[name]) for name, value in task.state_dict().items())
    assert health.to_dict("clip_").keys() == {
        "clip_positional_share",
        "clip_temporal_share",
        "clip_effective_rank",
        "clip_channel_std",
        "clip_cross_sample_gap",
    }
    single = frame_health(VideoViT(ENCODER), pixels)
    assert "cross_sample_gap" not in single.to_dict()
    assert 0 <= single.positional_share <= 1


def test_the_evaluation_of_a_run_repeats_itself() -> None:
    task = VJEPATask(ENCODER, VJEPAConfig(predictor=MaskedPredictorConfig(embed_dim=12, depth=1, num_heads=2)))
    pixels = torch.randint(0, 256, (4, 4, 16, 16, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    evaluate = health_check(task, pixels)
    first = evaluate(10)
    assert first == evaluate(20)
    assert {"clip_cross_sample_gap", "frame_positional_share"} <= first.keys()


def test_one_clip_is_not_enough() -> None:
    with pytest.raises(DataError, match="B >= 2"):
        describe(torch.zeros(1, 4, 9, 5))
