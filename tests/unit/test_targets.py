"""The other pretraining targets: what each predicts, where gradients go, learning and exact resuming."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from worldmodel.errors import ConfigError
from worldmodel.learning.any_colour import AnyColourConfig
from worldmodel.learning.fit import FitConfig, fit
from worldmodel.learning.masked import MaskedTask
from worldmodel.learning.masking import MaskConfig
from worldmodel.learning.online import OnlineConfig, OnlineTask
from worldmodel.learning.pixels import PixelsConfig
from worldmodel.learning.targets import TargetConfig, build_task, first_stage
from worldmodel.learning.teacher import TeacherConfig, TeacherTask
from worldmodel.learning.vjepa import VJEPAConfig, VJEPATask
from worldmodel.models.encoders import VideoViT
from worldmodel.models.masked_predictor import MaskedPredictorConfig
from worldmodel.models.vit import ViTConfig, patchify

ENCODER = ViTConfig(image_size=16, patch_size=4, num_frames=4, embed_dim=24, depth=2, num_heads=2)
SHARED: dict[str, Any] = {
    "predictor": MaskedPredictorConfig(embed_dim=12, depth=1, num_heads=2),
    "mask": MaskConfig(max_target_tokens=8, share=2),
}
CURES: dict[str, Any] = {"motion_weight": 5.0, "single_frame_fraction": 0.25, "context_loss_weight": 0.5}
CONFIGS: list[TargetConfig] = [
    VJEPAConfig(**SHARED, **CURES, standardise_targets=True, latent_dynamics_weight=1.0),
    PixelsConfig(**SHARED, **CURES),
    TeacherConfig(**SHARED, **CURES),
    AnyColourConfig(**SHARED),
    # A small weight: thirty steps are too few to leave the plateau on which SIGReg starts.
    OnlineConfig(**SHARED, **CURES, hidden_dim=16, target_dim=8, sigreg_directions=16, sigreg_weight=0.05),
]
every_target = pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)


@dataclass(frozen=True, kw_only=True)
class Clips:
    pixels: Tensor
    episode: Tensor


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def clips(batch: int = 8, seed: int = 0) -> Clips:
    """A bright square that moves over a fixed pattern."""
    generator = stream(seed)
    pixels = BACKGROUND[0].expand(batch, 4, -1, -1, -1).clone()
    for row in range(batch):
        y, x, step = (int(torch.randint(high, (), generator=generator)) for high in (12, 6, 3))
        for time in range(4):
            pixels[row, time, y : y + 4, x + step * time : x + step * time + 4] = 255
    return Clips(pixels=pixels, episode=torch.arange(batch) % 2)


BACKGROUND = torch.randint(0, 128, (16, 16, 3), generator=stream(99), dtype=torch.uint8).expand(2, -1, -1, -1)


def make(config: TargetConfig) -> MaskedTask:
    return build_task(ENCODER, config, background=BACKGROUND, teacher=VideoViT(ENCODER, seed=7))


def targets_of(task: MaskedTask, batch: Clips) -> Tensor:
    return task.targets(task._view(batch))


@pytest.mark.parametrize(
    "config", [one for one in CONFIGS if not isinstance(one, AnyColourConfig)], ids=lambda config: type(config).__name__
)
def test_the_loss_is_the_sum_of_its_terms_and_reaches_encoder_and_predictor(config: TargetConfig) -> None:
    task = make(config)
    parts = task(clips(), stream())
    clip_terms = sum(value for name, value in parts.items() if name.endswith("_clip"))
    frame_terms = sum(value for name, value in parts.items() if name.endswith("_frame"))
    assert torch.allclose(parts["loss"], 0.75 * clip_terms + 0.25 * frame_terms, atol=1e-6)
    parts["loss"].backward()
    for name, parameter in [*task.encoder.named_parameters(), *task.predictor.named_parameters()]:
        assert parameter.grad is not None, name


def test_pixel_targets_are_the_difference_to_the_background_and_the_pixels_in_unit_scale() -> None:
    task, batch = make(PixelsConfig(**SHARED)), clips(32)
    target = targets_of(task, batch)
    video = batch.pixels.permute(0, 1, 4, 2, 3).float() / 255
    still = BACKGROUND[0].permute(2, 0, 1).float() / 255
    residual = patchify(video - still, tubelet_size=2, patch_size=4)
    assert target.shape == (32, 32, 2 * residual.shape[-1])
    first, second = target.chunk(2, dim=-1)
    scale = (first / residual)[residual.abs() > 0.1]
    assert scale.std() / scale.mean() < 1e-4
    # The weights of the squared error, 1 and .2, are in the scale; the factor 2 undoes the mean over two parts.
    assert float(first.square().mean()) == pytest.approx(2 * 1.0, rel=0.01)
    assert float(second.square().mean()) == pytest.approx(2 * 0.2, rel=0.01)


def test_pixels_alone_or_differences_alone_can_be_predicted() -> None:
    full, residual = (
        make(PixelsConfig(**SHARED, residual_weight=weights[0], full_weight=weights[1])) for weights in ((0, 1), (1, 0))
    )
    assert targets_of(full, clips()).shape == targets_of(residual, clips()).shape == (8, 32, 2 * 4 * 4 * 3)
    with pytest.raises(ConfigError, match="not both 0"):
        PixelsConfig(residual_weight=0, full_weight=0)


def test_the_teacher_stays_and_the_kept_student_is_an_average() -> None:
    task = make(TeacherConfig(**SHARED))
    assert isinstance(task, TeacherTask)
    before = [parameter.clone() for parameter in task.teacher.parameters()]
    task(clips(), stream())["loss"].backward()
    assert all(parameter.grad is None for parameter in task.teacher.parameters())
    with torch.no_grad():
        for parameter in task.encoder.parameters():
            parameter.add_(1.0)
    old = task.average.norm.weight.clone()
    task.after_step(10_000_000, 10_000_000)
    assert torch.allclose(task.average.norm.weight, old + 0.001, atol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(before, task.teacher.parameters(), strict=True))
    assert task.result is task.average


def test_a_teacher_is_needed_and_must_fit() -> None:
    with pytest.raises(ConfigError, match="needs the trained teacher"):
        build_task(ENCODER, TeacherConfig(**SHARED))
    other = VideoViT(ViTConfig(image_size=16, patch_size=8, num_frames=4, embed_dim=24, depth=1, num_heads=2))
    with pytest.raises(ConfigError, match="grid"):
        build_task(ENCODER, TeacherConfig(**SHARED), teacher=other)


def test_the_first_stage_has_the_masks_and_weights_of_the_second() -> None:
    config = TeacherConfig(**SHARED, **CURES)
    first = first_stage(config)
    assert isinstance(first, PixelsConfig)
    assert (first.mask, first.predictor) == (config.mask, config.predictor)
    assert (first.motion_weight, first.single_frame_fraction) == (5.0, 0.25)


def test_a_first_stage_may_be_a_vjepa_with_its_own_recipe() -> None:
    config = AnyColourConfig(**SHARED)
    first = first_stage(config)
    assert isinstance(first, VJEPAConfig)
    assert (first.mask, first.predictor) == (config.mask, config.predictor)
    assert replace(first, mask=MaskConfig(), predictor=MaskedPredictorConfig()) == replace(
        VJEPAConfig.repaired(), mask=MaskConfig(), predictor=MaskedPredictorConfig()
    )
    with pytest.raises(ConfigError, match="first_stage must be one of pixels, ema_repaired"):
        TeacherConfig(first_stage="dino")


def test_online_targets_have_gradients_and_sigreg_sees_slow_features() -> None:
    task = make(OnlineConfig(**SHARED, hidden_dim=16, target_dim=8, sigreg_directions=64))
    assert isinstance(task, OnlineTask)
    assert targets_of(task, clips()).requires_grad
    view = task._view(clips(64))
    fast = torch.randn(64, 32, 8, generator=stream()) * 4  # 16 tokens a frame: their mean has unit variance
    slow = fast.clone()
    slow[:, 16:] = slow[:, :16]
    loss = {name: float(task.regularisation(view, h, stream())["sigreg"]) for name, h in (("f", fast), ("s", slow))}
    assert loss["s"] > 3 * loss["f"]


def test_latent_dynamics_look_at_visible_moving_tokens_with_a_later_one() -> None:
    task = make(VJEPAConfig(**SHARED, motion_weight=1.0, latent_dynamics_weight=2.0))
    assert isinstance(task, VJEPATask)
    view = task._view(clips())
    targets = torch.zeros(8, 32, 24)
    context, keep = torch.randn(8, 32, 24, generator=stream()), torch.arange(32).expand(8, -1)
    still = task.auxiliary(view, context, keep, targets)["latent_dynamics"].detach()
    assert view.motion is not None
    places = view.motion[:, :16] > 0.25  # tokens of the first tubelet that move
    targets[:, 16:][places] = 3.0
    changed = task.auxiliary(view, context, keep, targets)["latent_dynamics"].detach()
    assert float(changed) == pytest.approx(float(still) + 2.0 * 9.0, rel=0.2)
    targets[:, 16:] = 0.0
    targets[:, 16:][~places] = 3.0
    assert torch.equal(task.auxiliary(view, context, keep, targets)["latent_dynamics"], still)


def loss_of(task: MaskedTask, batch: Clips) -> float:
    with torch.no_grad():
        return float(task.eval()(batch, stream())["loss"])


class Source:
    def __init__(self) -> None:
        self.index = 0

    def next_batch(self) -> Clips:
        self.index += 1
        return clips(seed=self.index % 3)

    def state_dict(self) -> dict[str, Any]:
        return {"index": self.index}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.index = state["index"]


class KilledError(Exception):
    """Stands for a kill signal."""


@every_target
def test_every_target_learns_and_resumes_to_the_same_bits(config: TargetConfig, tmp_path: Path) -> None:
    def settings(name: str) -> FitConfig:
        return FitConfig(
            run_dir=str(tmp_path / name),
            steps=30,
            lr=3e-3,
            warmup_steps=5,
            log_every=10,
            checkpoint_every=8,
            eval_every=4,
            precision="32-true",
            accelerator="cpu",
        )

    def kill(step: int) -> dict[str, float]:
        if step == 12:
            raise KilledError
        return {}

    whole = make(config)
    fit(whole, Source(), settings("whole"))
    if not isinstance(config, VJEPAConfig):  # whose targets move; see test_vjepa.py
        fresh = make(config)
        fresh.clip_statistics.load_state_dict(whole.clip_statistics.state_dict())
        fresh.frame_statistics.load_state_dict(whole.frame_statistics.state_dict())
        assert loss_of(whole, clips(seed=1)) < 0.98 * loss_of(fresh, clips(seed=1))
    with pytest.raises(KilledError):
        fit(make(config), Source(), settings("half"), evaluate=kill)
    resumed = make(config)
    assert fit(resumed, Source(), settings("half")).resumed_from == 8
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
