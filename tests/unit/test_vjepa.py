"""The V-JEPA task: gradients, targets, each cure, EMA, learning and exact resuming."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from worldmodel.errors import ConfigError
from worldmodel.learning.fit import FitConfig, fit
from worldmodel.learning.masked import TargetStatistics
from worldmodel.learning.masking import MaskConfig, sample_masks
from worldmodel.learning.vjepa import VJEPAConfig, VJEPATask
from worldmodel.models.masked_predictor import MaskedPredictor, MaskedPredictorConfig
from worldmodel.models.vit import ViTConfig, gather_tokens

ENCODER = ViTConfig(image_size=16, patch_size=4, num_frames=4, embed_dim=24, depth=2, num_heads=2)
PREDICTOR = MaskedPredictorConfig(embed_dim=12, depth=1, num_heads=2)


@dataclass(frozen=True, kw_only=True)
class Clips:
    pixels: Tensor
    episode: Tensor


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def clips(batch: int = 8, seed: int = 0) -> Clips:
    """A bright square that moves over a fixed pattern."""
    generator = stream(seed)
    ground = torch.randint(0, 128, (16, 16, 3), generator=stream(99), dtype=torch.uint8)
    pixels = ground.expand(batch, 4, -1, -1, -1).clone()
    for row in range(batch):
        y, x, step = (int(torch.randint(high, (), generator=generator)) for high in (12, 6, 3))
        for time in range(4):
            pixels[row, time, y : y + 4, x + step * time : x + step * time + 4] = 255
    return Clips(pixels=pixels, episode=torch.arange(batch) % 2)


def make(seed: int = 0, background: Tensor | None = None, **changes: Any) -> VJEPATask:
    config = VJEPAConfig(**{"predictor": PREDICTOR, **changes})
    return VJEPATask(ENCODER, config, background=background, seed=seed)


def loss_of(task: VJEPATask, batch: Clips, seed: int = 0) -> float:
    with torch.no_grad():
        return float(task(batch, stream(seed))["loss"])


REPAIRED = replace(VJEPAConfig.repaired(), predictor=PREDICTOR, mask=MaskConfig(share=2, max_target_tokens=8))


def test_the_default_is_the_published_recipe() -> None:
    config = VJEPAConfig()
    assert (config.ema_start, config.ema_end, config.ema_stretch, config.loss_exp) == (0.998, 1.0, 1.25, 1)
    assert not config.standardise_targets
    assert config.motion_weight == config.single_frame_fraction == config.context_loss_weight == config.jitter == 0
    assert (config.mask.num_blocks, config.mask.spatial_scale) == ((8, 2), (0.15, 0.70))


def test_the_loss_is_the_published_equation() -> None:
    """Mean |P(E(visible), ids) - LN(E_ema(clip))| over the targets of both masks, recomputed by hand."""
    task, batch = make(), clips()
    loss = task(batch, stream(5))["loss"]
    video = batch.pixels.permute(0, 1, 4, 2, 3).float() / 255
    target = F.layer_norm(task.target_encoder(video), (24,), eps=1e-6)
    parts = []
    for kind, (keep, hidden) in enumerate(sample_masks(task.config.mask, ENCODER.grid, 8, stream(5))):
        out = task.predictor(task.encoder(video, keep), keep, hidden, mask_type=kind)
        parts.append((out - gather_tokens(target, hidden)).abs().mean())
    assert torch.allclose(loss, torch.stack(parts).mean(), atol=1e-6)


def test_gradients_reach_encoder_predictor_and_mask_tokens_but_not_the_targets() -> None:
    task = make()
    task(clips(), stream())["loss"].backward()
    assert all(parameter.grad is None for parameter in task.target_encoder.parameters())
    for name, parameter in [*task.encoder.named_parameters(), *task.predictor.named_parameters()]:
        assert parameter.grad is not None, name
    assert task.predictor.mask_tokens.grad is not None
    assert torch.all(task.predictor.mask_tokens.grad.abs().sum(dim=1) > 0)
    assert not any(parameter.requires_grad for parameter in task.target_encoder.parameters())


def test_the_target_encoder_follows_the_published_schedule() -> None:
    task = make(ema_start=0.5, ema_end=1.0, ema_stretch=1.25)
    with torch.no_grad():
        for parameter in task.target_encoder.parameters():
            parameter.zero_()
    fast = task.encoder.norm.weight.detach().clone()
    task.after_step(1, 100)
    assert torch.allclose(task.target_encoder.norm.weight, 0.5 * fast)
    task.after_step(100, 100)  # momentum .5 + .5 * 99 / 125
    momentum = 0.5 + 0.5 * 99 / 125
    assert torch.allclose(task.target_encoder.norm.weight, momentum * 0.5 * fast + (1 - momentum) * fast, atol=1e-6)


def test_statistics_follow_the_average_of_the_batches() -> None:
    statistics = TargetStatistics(3, 2)
    samples = torch.randn(40, 3, 2, generator=stream()) * torch.tensor([1.0, 5.0]) + torch.arange(3.0).view(3, 1)
    for part in samples.split(8):
        statistics.update(part)
    assert torch.allclose(statistics.mean, samples.mean(dim=0), atol=1e-5)
    assert torch.allclose(statistics.variance(), samples.var(dim=0, correction=0), atol=1e-3)
    standard = statistics.standardise(samples, floor=0.0)
    assert torch.allclose(standard.mean(dim=0), torch.zeros(3, 2), atol=1e-4)
    assert torch.allclose(standard.std(dim=0, correction=0), torch.ones(3, 2), atol=1e-3)


def test_the_floor_keeps_still_places_quiet() -> None:
    statistics = TargetStatistics(2, 1)
    samples = torch.randn(200, 2, 1, generator=stream()) * torch.tensor([[1.0], [1e-4]])
    statistics.update(samples)
    spread = statistics.standardise(samples, floor=0.1).std(dim=0)
    assert float(spread[0]) > 0.9
    assert float(spread[1]) < 1e-3


def test_standardised_targets_reward_nothing_that_follows_from_the_place() -> None:
    """Predicting the mean of each place costs half a unit of variance per channel, however positional the encoder."""
    task, batch = make(standardise_targets=True, loss_exp=2, standardise_floor=0.0), clips(64)
    for seed in range(3):
        task(batch, stream(seed))
    _, target, _ = task.predict(batch, stream())
    assert float(target.mean(dim=0).abs().mean()) < 0.05
    assert float(target.var(dim=0).mean()) > 0.5


def test_statistics_are_frozen_in_eval_mode() -> None:
    task = make().eval()
    task(clips(), stream())
    assert float(task.clip_statistics.count) == 0


def test_motion_weight_moves_the_loss_toward_the_mover() -> None:
    plain, heavy, batch = make().eval(), make(motion_weight=50.0).eval(), clips(16)
    losses = [loss_of(task, batch, 3) for task in (plain, heavy)]
    assert losses[0] != pytest.approx(losses[1], abs=1e-4)
    video = batch.pixels.permute(0, 1, 4, 2, 3).float() / 255
    motion = heavy.motion_of(batch)
    assert motion.shape == (16, 2 * 16)
    changed = (video - video.mean(dim=1, keepdim=True)).abs().amax(dim=(2,)) > 0.05
    still = F.max_pool3d(changed.float().unsqueeze(1), (2, 4, 4)).flatten(1) == 0
    assert float(motion[still].max()) < 0.05
    moving = changed.flatten(1).any(dim=1)
    assert moving.any()
    assert torch.all(motion.amax(dim=1)[moving] > 0.99)


def test_a_still_clip_has_no_motion_and_an_unweighted_loss() -> None:
    batch = clips(4)
    still = Clips(pixels=batch.pixels[:, :1].expand(-1, 4, -1, -1, -1), episode=batch.episode)
    losses = [loss_of(make(motion_weight=weight).eval(), still) for weight in (0.0, 9.0)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_the_background_table_shows_motion_in_still_clips() -> None:
    background = torch.zeros(2, 16, 16, 3, dtype=torch.uint8)
    background[1] = 100
    task = make(background=background, motion_weight=1.0)
    black = Clips(pixels=torch.zeros(2, 4, 16, 16, 3, dtype=torch.uint8), episode=torch.tensor([0, 1]))
    motion = task.motion_of(black)
    assert torch.equal(motion[0], torch.zeros(32))
    assert torch.allclose(motion[1], torch.ones(32))
    assert "background" not in task.state_dict()


def test_single_frames_are_encoded_as_at_planning_time() -> None:
    task, batch = make(single_frame_fraction=1.0), clips(4)
    video = batch.pixels.permute(0, 1, 4, 2, 3).float() / 255
    singles = task._take_apart(task._view(batch)).video
    assert singles.shape == (8, 2, 3, 16, 16)
    assert torch.equal(singles[:, 0], singles[:, 1])
    assert torch.equal(singles[1, 0], video[0, 2])
    encoded = F.layer_norm(task.encoder(singles), (24,), eps=1e-6)
    assert torch.allclose(encoded[1], task.encoder.encode_frames(batch.pixels)[0, 2], atol=1e-5)


def test_single_frames_are_mixed_by_share() -> None:
    out = make(single_frame_fraction=0.25)(clips(8), stream())
    assert torch.allclose(out["loss"], 0.75 * out["loss_clip"] + 0.25 * out["loss_frame"])
    assert set(make(single_frame_fraction=1.0)(clips(8), stream())) >= {"loss_frame"}
    assert "loss_frame" not in make()(clips(8), stream())


def test_the_context_loss_is_added_with_its_weight() -> None:
    losses = [loss_of(make(context_loss_weight=weight).eval(), clips()) for weight in (0.0, 0.5, 1.0)]
    assert losses[0] < losses[1] < losses[2]
    assert losses[2] - losses[1] == pytest.approx(losses[1] - losses[0], rel=1e-4)


def test_jitter_changes_what_is_seen_and_not_what_is_predicted() -> None:
    plain, jittered, batch = make(), make(jitter=0.3), clips()
    video = batch.pixels.permute(0, 1, 4, 2, 3).float() / 255
    seen = jittered._disguised(video, stream())
    shift = (seen - video).mean(dim=(-1, -2))
    assert float(shift.std(dim=1).min()) > 0.005  # per frame, so that it cannot be copied from a neighbour
    assert seen.min() >= 0
    assert seen.max() <= 1
    for task in (plain, jittered):
        task(batch, stream())
    assert torch.equal(plain.clip_statistics.mean, jittered.clip_statistics.mean)


def test_predictor_separates_kinds_of_masks_and_returns_context_first() -> None:
    predictor = MaskedPredictor(PREDICTOR, ENCODER)
    for parameter in predictor.parameters():  # large weights, so that attention is far from uniform
        torch.nn.init.normal_(parameter, std=0.5, generator=stream())
    context = torch.randn(2, 3, 24, generator=stream(1))
    keep, target = torch.tensor([[0, 4, 9], [1, 2, 3]]), torch.tensor([[5, 6], [20, 30]])
    short, long = (predictor(context, keep, target, mask_type=kind) for kind in (0, 1))
    assert short.shape == (2, 2, 24)
    assert not torch.allclose(short, long, atol=1e-5)
    both = predictor(context, keep, target, with_context=True)
    assert both.shape == (2, 5, 24)
    assert torch.allclose(both[:, 3:], short, atol=1e-6)
    elsewhere = predictor(context, keep, target + 1)
    assert not torch.allclose(short, elsewhere, atol=1e-6)


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


def test_pretraining_learns_and_resumes_to_the_same_bits(tmp_path: Path) -> None:
    def settings(name: str) -> FitConfig:
        return FitConfig(
            run_dir=str(tmp_path / name),
            steps=20,
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

    whole = VJEPATask(ENCODER, REPAIRED)
    before = loss_of(whole.eval(), clips())
    fit(whole, Source(), settings("whole"))
    assert loss_of(whole, clips()) < before
    with pytest.raises(KilledError):
        fit(VJEPATask(ENCODER, REPAIRED), Source(), settings("half"), evaluate=kill)
    resumed = VJEPATask(ENCODER, REPAIRED)
    assert fit(resumed, Source(), settings("half")).resumed_from == 8
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"ema_start": 1.1}, "ema_start"),
        ({"loss_exp": 3}, "loss_exp"),
        ({"single_frame_fraction": -0.1}, "single_frame_fraction"),
        ({"motion_weight": -1.0}, "motion_weight"),
        ({"predictor": MaskedPredictorConfig(num_mask_tokens=1)}, "num_mask_tokens=1"),
    ],
)
def test_bad_settings_are_named(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        VJEPAConfig(**changes)


def test_predictor_sizes_are_checked() -> None:
    with pytest.raises(ConfigError, match="num_heads=5"):
        MaskedPredictorConfig(num_heads=5)


def test_the_dense_loss_ramps_up_and_may_weigh_all_visible_tokens_alike() -> None:
    batch = clips()
    plain, full = (loss_of(make(context_loss_weight=weight).eval(), batch) for weight in (0.0, 0.8))
    task = make(context_loss_weight=0.8, context_ramp_steps=4)
    found = [float(task(batch, stream())["loss"].detach()) for _ in range(6)]
    assert found == pytest.approx([plain + share * (full - plain) for share in (0.25, 0.5, 0.75, 1, 1, 1)], rel=1e-4)
    assert float(task.state_dict()["steps_seen"]) == 6
    loss_of(task.eval(), batch)
    assert float(task.steps_seen) == 6  # looking does not count
    level = loss_of(make(context_loss_weight=0.8, context_loss_decays=False).eval(), batch)
    assert level > full + 1e-3  # 1 / sqrt(distance) is below one for most visible tokens
    assert "steps_seen" not in make().state_dict()


def test_several_levels_of_the_target_encoder_are_predicted() -> None:
    task, batch = make(target_levels=(0, 1), latent_dynamics_weight=0.1), clips()
    video = batch.pixels.permute(0, 1, 4, 2, 3).float() / 255
    x, rope = task.target_encoder._embed(task.target_encoder.patchify(video), None)
    levels = []
    for block in task.target_encoder.blocks:
        x = block(x, rope)
        levels.append(F.layer_norm(x, (24,), eps=1e-6))
    expected = torch.cat(levels, dim=-1)
    assert torch.allclose(task.targets(task._view(batch)), expected, atol=1e-5)
    prediction, target, _ = task.predict(batch, stream())
    assert prediction.shape == target.shape
    assert prediction.shape[-1] == 48
    assert torch.isfinite(task(batch, stream())["loss"])
    with pytest.raises(ConfigError, match="target_levels"):
        make(target_levels=(2,))


def test_checkpointed_activations_change_neither_loss_nor_gradient() -> None:
    outcomes = []
    for checkpointed in (False, True):
        task = make(checkpoint_activations=checkpointed)
        loss = task(clips(), stream())["loss"]
        loss.backward()
        outcomes.append(
            [loss.detach(), *(parameter.grad for parameter in task.parameters() if parameter.grad is not None)]
        )
    assert len(outcomes[0]) == len(outcomes[1]) > 20
    assert all(torch.equal(a, b) for a, b in zip(*outcomes, strict=True))


def test_published_masks_train() -> None:
    """Counts that change from batch to batch go through the whole task."""
    task = make(mask=MaskConfig(kind="published"))
    losses = [float(task(clips(), stream(seed))["loss"].detach()) for seed in range(4)]
    assert all(loss > 0 for loss in losses)
    counts = {sample_masks(task.config.mask, ENCODER.grid, 8, stream(seed))[0][0].shape[1] for seed in range(4)}
    assert len(counts) > 1


def test_single_images_are_pretrained_in_image_mode() -> None:
    """I-JEPA's case: one frame, no tubelet, masks in the plane."""
    image = replace(ENCODER, num_frames=1, tubelet_size=1)
    task = VJEPATask(image, VJEPAConfig(predictor=PREDICTOR, mask=MaskConfig(kind="published")))
    whole = clips()
    batch = Clips(pixels=whole.pixels[:, :1], episode=whole.episode)
    loss = task(batch, stream())["loss"]
    loss.backward()
    assert loss > 0
    assert all(parameter.grad is not None for parameter in task.encoder.parameters())


def test_the_momentum_of_v2_is_constant() -> None:
    task = make(ema_start=0.75, ema_end=0.75)
    with torch.no_grad():
        for parameter in task.target_encoder.parameters():
            parameter.zero_()
    for step in (1, 50, 100):
        task.after_step(step, 100)
    assert torch.allclose(task.target_encoder.norm.weight, (1 - 0.75**3) * task.encoder.norm.weight)


def test_ramps_are_checked() -> None:
    with pytest.raises(ConfigError, match="context_ramp_steps"):
        VJEPAConfig(context_ramp_steps=0)


def test_recolouring_is_per_tubelet_and_leaves_the_targets_alone() -> None:
    plain, recoloured, batch = make(), make(recolour=1.0), clips()
    video = batch.pixels.permute(0, 1, 4, 2, 3).float() / 255
    seen = recoloured._disguised(video, stream())
    assert seen.shape == video.shape
    tubelet = recoloured.encoder.config.tubelet_size
    same = video[:, :1].expand_as(video)
    mapped = recoloured._disguised(same, stream())
    assert torch.equal(mapped[:, 0], mapped[:, tubelet - 1])
    assert (mapped[:, 0] - mapped[:, tubelet]).abs().mean() > 0.02
    for task in (plain, recoloured):
        task(batch, stream())
    assert torch.equal(plain.clip_statistics.mean, recoloured.clip_statistics.mean)
    with pytest.raises(ConfigError, match="recolour"):
        make(recolour=1.5)


def test_a_share_of_the_tubelets_keeps_its_colours() -> None:
    task = make(recolour=1.0, recolour_share=0.5)
    video = torch.cat([clips().pixels for _ in range(64)]).permute(0, 1, 4, 2, 3).float() / 255
    tubelet = task.encoder.config.tubelet_size
    changed = (task._disguised(video, stream()) - video).abs().flatten(2).amax(dim=-1) > 0  # (B, T)
    assert torch.equal(changed[:, ::tubelet], changed[:, 1::tubelet])  # a tubelet is changed whole or not at all
    assert 0.4 < changed.float().mean() < 0.6
    assert torch.equal(make(recolour=1.0, recolour_share=0.0)._disguised(video, stream()), video)
    with pytest.raises(ConfigError, match="recolour_share"):
        make(recolour_share=-0.1)
