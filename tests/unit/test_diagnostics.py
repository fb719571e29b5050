"""Each number of the health check on features whose answer is known."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from worldmodel.errors import DataError
from worldmodel.learning.diagnostics import (
    Health,
    Verdict,
    channel_std,
    cross_sample_gap,
    describe,
    diagnose,
    effective_rank,
    known_share,
    moment_health,
    positional_share,
    reference_health,
    relative_error,
    task_health,
    temporal_share,
)
from worldmodel.learning.online import OnlineConfig
from worldmodel.learning.pixels import PixelsConfig
from worldmodel.learning.targets import TargetConfig, build_task
from worldmodel.learning.teacher import TeacherConfig
from worldmodel.learning.vjepa import VJEPAConfig
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


def test_a_constant_is_known_from_the_place() -> None:
    features = noise(200, 6, 9, 5)
    assert known_share(features) < 0.02
    assert known_share(features + 1) == pytest.approx(0.5, abs=0.02)
    assert positional_share(features + 1) < 0.02
    assert known_share(features + noise(9, 5, seed=1)) == pytest.approx(0.5, abs=0.15)


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


def test_movers_are_judged_apart() -> None:
    features = noise(200, 1, 9, 5).expand(-1, 6, -1, -1).clone()
    features[:, :, :3] += noise(200, 6, 3, 5, seed=1)
    moving = torch.zeros(200, 6, 9, dtype=torch.bool)
    moving[:, :, :3] = True
    assert temporal_share(features, moving) == pytest.approx(0.5 * 5 / 6, abs=0.03)
    assert temporal_share(features, ~moving) == pytest.approx(0.0, abs=1e-6)
    assert describe(features, moving).mover_temporal_share == pytest.approx(temporal_share(features, moving))


def test_the_relative_error_of_the_mean_is_one() -> None:
    target = noise(50, 9, 5)
    chosen = torch.arange(9).expand(50, -1) < 4
    assert relative_error(target.mean(dim=0).expand(50, -1, -1), target, chosen) == pytest.approx(1.0)
    assert relative_error(target, target, chosen) == 0.0
    assert relative_error(target, target, torch.zeros_like(chosen)) is None


RANDOM = Health(
    positional_share=0.75,
    temporal_share=0.64,
    effective_rank=10,
    channel_std=0.38,
    mover_temporal_share=0.7,
    target_known_share=0.8,
    target_std=0.4,
    target_effective_rank=12,
)


@pytest.mark.parametrize(
    ("changes", "done", "verdict"),
    [
        ({}, 0.1, Verdict.HEALTHY),
        ({}, 1.0, Verdict.HEALTHY),
        ({"positional_share": 0.97}, 0.1, Verdict.POSITIONAL),
        ({"mover_temporal_share": 0.05}, 0.1, Verdict.SLOW),
        ({"effective_rank": 1.2}, 0.1, Verdict.DIMENSIONAL),
        ({"channel_std": 0.01}, 0.1, Verdict.DIMENSIONAL),
        ({"temporal_share": 0.2}, 0.1, Verdict.SLOW),
        ({"target_known_share": 0.95}, 0.1, Verdict.POSITIONAL),
        ({"target_std": 0.05}, 0.1, Verdict.DIMENSIONAL),
        ({"target_effective_rank": 2.5}, 0.1, Verdict.DIMENSIONAL),
        ({"effective_rank": 2.4}, 0.1, Verdict.HEALTHY),
        ({"cross_sample_gap": 0.02}, 0.1, Verdict.HEALTHY),
        ({"cross_sample_gap": 0.02}, 0.2, Verdict.UNDER_TRAINED),
        ({"mover_loss": 1.1}, 0.5, Verdict.UNDER_TRAINED),
    ],
)
def test_each_kind_of_failure_has_its_verdict(changes: dict[str, float], done: float, verdict: Verdict) -> None:
    healthy = Health(
        positional_share=0.5,
        temporal_share=0.6,
        effective_rank=12,
        channel_std=0.5,
        mover_temporal_share=0.7,
        cross_sample_gap=0.4,
        mover_loss=0.6,
        static_loss=0.7,
        target_known_share=0.7,
        target_std=0.5,
        target_effective_rank=9,
    )
    diagnosis = diagnose(replace(healthy, **changes), RANDOM, done=done)
    assert diagnosis.verdict == verdict
    assert diagnosis.line.startswith(verdict.value + ": ")
    assert "\n" not in diagnosis.line


@dataclass(frozen=True, kw_only=True)
class Clips:
    pixels: torch.Tensor
    episode: torch.Tensor


def clips(batch: int) -> Clips:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (batch, 4, 16, 16, 3), generator=generator, dtype=torch.uint8)
    return Clips(pixels=pixels, episode=torch.zeros(batch, dtype=torch.long))


PREDICTOR = MaskedPredictorConfig(embed_dim=12, depth=1, num_heads=2)
TARGETS = [
    VJEPAConfig(predictor=PREDICTOR),
    PixelsConfig(predictor=PREDICTOR),
    TeacherConfig(predictor=PREDICTOR),
    OnlineConfig(predictor=PREDICTOR, target_dim=8, hidden_dim=16),
]


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: type(target).__name__)
def test_every_task_can_be_checked_again_without_touching_it(target: TargetConfig) -> None:
    task = build_task(ENCODER, target, teacher=VideoViT(ENCODER, seed=5))
    before = {name: value.clone() for name, value in task.state_dict().items()}
    batch = clips(6)
    health = task_health(task, batch, batch, torch.Generator().manual_seed(1))
    assert task.training
    assert all(torch.equal(value, before[name]) for name, value in task.state_dict().items())
    assert health == task_health(task, batch, batch, torch.Generator().manual_seed(1))
    assert health.to_dict("h_").keys() >= {"h_positional_share", "h_cross_sample_gap", "h_mover_loss"}
    reference = reference_health(task, batch, batch)
    assert task.training
    assert all(torch.equal(value, before[name]) for name, value in task.state_dict().items())
    assert reference.target_known_share == health.target_known_share is not None
    assert reference.mover_loss is None
    single = moment_health(task, VideoViT(ENCODER), batch)
    assert "cross_sample_gap" not in single.to_dict()
    assert 0 <= single.positional_share <= 1


def test_one_clip_is_not_enough() -> None:
    with pytest.raises(DataError, match="B >= 2"):
        describe(torch.zeros(1, 4, 9, 5))
