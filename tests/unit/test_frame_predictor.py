"""The generative foil: it reads the encoder's tokens, draws frames, and goes on from what it drew."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from worldmodel.control.costs import LatentCost
from worldmodel.control.objectives import GoalDistance, default_objective
from worldmodel.errors import ConfigError
from worldmodel.learning.dynamics import validation_losses
from worldmodel.learning.dynamics_config import DynamicsConfig, LossWeights
from worldmodel.learning.features import FrameStore, encode_all
from worldmodel.learning.fit import fit
from worldmodel.learning.frames import FrameTask
from worldmodel.learning.open_loop import open_loop_report
from worldmodel.models.action_predictor import ResidualMLPConfig
from worldmodel.models.action_transformer import build_predictor
from worldmodel.models.checkpoint import load_checkpoint, save_checkpoint
from worldmodel.models.encoders import VideoViT
from worldmodel.models.frame_predictor import FrameDecoderConfig, FramePredictor, FramePredictorConfig, frame_patches
from worldmodel.models.frozen_encoders import ConvEncoderConfig, PatchEncoderConfig, build_encoder
from worldmodel.models.latent_head import CompactHeadConfig
from worldmodel.models.vit import ViTConfig
from worldmodel.models.world_model import ModelSpec, WorldModel
from worldmodel.types import Context

SIZE, ACTION = 16, 4
VIT = ViTConfig(image_size=SIZE, patch_size=8, num_frames=2, embed_dim=24, depth=2, num_heads=2)
STATE = CompactHeadConfig(token_dim=6, hidden_dim=24, latent_dim=12)
DYNAMICS = ResidualMLPConfig(hidden_dim=24, num_blocks=1)
DECODER = FrameDecoderConfig(place_dim=6, hidden_dim=24)
SIZES = FramePredictorConfig(encoder=VIT, state=STATE, dynamics=DYNAMICS, decoder=DECODER)
SPEC = ModelSpec(
    env_ids=("test",),
    action_dim=2,
    action_low=(-1.0, -1.0),
    action_high=(1.0, 1.0),
    action_block=2,
    image_size=SIZE,
    proprio_names=("x", "y"),
    latent="pixels",
)
TRAIN, VAL = np.arange(12), np.arange(12, 16)


def recipe(**changes: Any) -> DynamicsConfig:
    values: dict[str, Any] = {
        "latent": "pixels",
        "action_block": 2,
        "rollout_steps": 2,
        "compact_head": STATE,
        "compact_predictor": DYNAMICS,
        "frame_decoder": DECODER,
        "batch_size": 16,
        "steps": 160,
        "lr": 6e-3,
        "warmup_steps": 5,
    }
    return DynamicsConfig(**{**values, **changes})


def trained_looking() -> FramePredictor:
    """A predictor whose every action changes every frame (untrained ones copy)."""
    built = build_predictor(SIZES, num_tokens=4, latent_dim=192, action_dim=ACTION, seed=1)
    assert isinstance(built, FramePredictor)
    generator = torch.Generator().manual_seed(0)
    for layer in (built.decoder.down, built.dynamics.out):
        layer.weight.data.normal_(0, 0.3, generator=generator)
    return built.eval()


def frames_of(count: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (count, 1, SIZE, SIZE, 3), dtype=np.uint8))


def dot_store() -> FrameStore:
    """A bright square on black that goes where it is told, with the features of a random encoder."""
    rng = np.random.default_rng(0)
    episodes, length = len(TRAIN) + len(VAL), 11
    action = rng.uniform(-1, 1, (episodes, length, 2)).astype(np.float32)
    action[:, -1] = 0
    place = np.zeros((episodes, length, 2))
    place[:, 0] = rng.uniform(2, 10, (episodes, 2))
    pixels = np.zeros((episodes, length, SIZE, SIZE, 3), np.uint8)
    for t in range(length):
        if t > 0:
            place[:, t] = np.clip(place[:, t - 1] + 2 * action[:, t - 1], 0, SIZE - 4)
        for e in range(episodes):
            row, column = place[e, t].round().astype(int)
            pixels[e, t, row : row + 4, column : column + 4] = 255
    flat = pixels.reshape(-1, SIZE, SIZE, 3)
    where = place.reshape(-1, 2).astype(np.float32)
    return FrameStore(
        features=encode_all(build_encoder(VIT, seed=3), flat),
        action=action.reshape(-1, 2),
        proprio=where,
        privileged=where,
        privileged_names=("row", "column"),
        episode_start=np.arange(episodes) * length,
        episode_len=np.full(episodes, length),
        pixels=flat,
    )


def test_the_latent_is_the_frame_as_the_patch_encoder_cuts_it() -> None:
    frames = frames_of(3)
    z = frame_patches(frames, 8)
    assert z.shape == (3, 1, 4, 192)
    cut = build_encoder(PatchEncoderConfig(image_size=SIZE, patch_size=8)).encode_frames(frames)
    assert torch.equal(z, cut)


def test_tokens_of_a_frame_are_those_of_its_encoder() -> None:
    predictor, frames = trained_looking(), frames_of(5)
    expected = predictor.encoder.encode_frames(frames)
    torch.testing.assert_close(predictor.tokens(frame_patches(frames, 8)), expected, rtol=1e-4, atol=1e-4)


def test_untrained_copies_the_frame() -> None:
    predictor = build_predictor(SIZES, num_tokens=4, latent_dim=192, action_dim=ACTION)
    z = frame_patches(frames_of(2), 8)
    assert torch.equal(predictor(z, torch.randn(2, 1, ACTION)), z)


def test_every_step_starts_from_the_picture_drawn_before() -> None:
    predictor = trained_looking()
    z = frame_patches(frames_of(2), 8)
    actions = torch.randn(2, 3, 4, ACTION, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        imagined = predictor.rollout(z, actions[:, 0, :0], actions)
        assert imagined.shape == (2, 3, 4, 4, 192)
        assert imagined.min() >= -1
        assert imagined.max() <= 1
        assert (imagined.abs() == 1).any(), "a picture cannot hold more than white"
        current = z.expand(-1, 3, -1, -1)
        for step in range(4):
            # A frame the predictor never saw inside: only its pixels are handed on.
            current = predictor(current, actions[:, :, step])
            torch.testing.assert_close(imagined[:, :, step], current, rtol=1e-4, atol=1e-4)


def test_gradients_reach_early_actions_through_drawn_frames() -> None:
    predictor = trained_looking()
    actions = (0.01 * torch.ones(1, 1, 2, ACTION)).requires_grad_()
    predictor.rollout(0.1 * frame_patches(frames_of(1), 8), actions[:, 0, :0], actions)[:, :, -1].sum().backward()
    assert actions.grad is not None
    assert (actions.grad.abs().sum(dim=-1) > 0).all()


def test_other_patches_than_the_encoders_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"the encoder reads patches \(N, D\) = \(4, 192\), the frames are cut into"):
        build_predictor(SIZES, num_tokens=16, latent_dim=48, action_dim=ACTION)
    with pytest.raises(ConfigError, match="place_dim must be >= 1, got 0"):
        FrameDecoderConfig(place_dim=0)
    assert FramePredictorConfig(**asdict(SIZES)) == SIZES, "a card holds mappings"


def test_training_draws_what_actions_do_and_leaves_the_encoder_alone() -> None:
    store, encoder = dot_store(), build_encoder(VIT, seed=3)
    task = FrameTask(recipe(), SPEC, encoder=encoder)
    task.fit_statistics(store, TRAIN)
    batches = [task.sampler(store, VAL, seed=1).next_batch() for _ in range(2)]
    task.eval()
    with torch.no_grad():
        before = validation_losses(task, batches)
    fit(
        task, task.sampler(store, TRAIN, seed=0), replace(task.config.fit_config(), precision="32-true"), progress=False
    )
    task.eval()
    with torch.no_grad():
        after = validation_losses(task, batches)
    assert after["val_one_step"] < 0.85 * before["val_one_step"]
    assert after["val_rollout"] < 0.95 * before["val_rollout"]
    trained = task.predictor.encoder.state_dict()
    assert all(torch.equal(trained[name], value) for name, value in encoder.state_dict().items())
    shown = replace(store, features=store.pixels)
    report = open_loop_report(task, shown, train_ids=TRAIN, val_ids=VAL, horizon=2, num_clips=32)
    assert report.model[0] < report.copy_last[0]
    assert report.model[0] < report.shuffled[0]


def test_a_drawn_frame_gives_no_gradient_to_the_step_that_drew_it() -> None:
    store = dot_store()
    task = FrameTask(recipe(weights=LossWeights(one_step=0, rollout=1)), SPEC, encoder=build_encoder(VIT, seed=3))
    task.fit_statistics(store, TRAIN)
    task.predictor.decoder.down.weight.data.normal_(0, 0.1, generator=torch.Generator().manual_seed(0))
    batch = task.sampler(store, TRAIN, seed=0).next_batch()
    generator = torch.Generator()
    actions = batch.actions.clone().requires_grad_()
    losses = task(replace(batch, actions=actions), generator)
    assert set(losses) == {"loss", "rollout"}
    losses["loss"].backward()
    assert actions.grad is not None
    first = actions.grad[:, 0].clone()
    # The first action matters to the first step's loss alone: half of the mean of two steps.
    one = replace(task.config, rollout_steps=1)
    task.config = one
    again = batch.actions.clone().requires_grad_()
    task(replace(batch, actions=again), generator)["loss"].backward()
    assert again.grad is not None
    torch.testing.assert_close(first, again.grad[:, 0] / 2, rtol=1e-4, atol=1e-8)


def world_model() -> WorldModel:
    task = FrameTask(recipe(), SPEC, encoder=build_encoder(VIT, seed=3))
    task.fit_statistics(dot_store(), TRAIN)
    task.predictor.load_state_dict(trained_looking().state_dict())
    return task.world_model()


def test_its_world_model_plans_by_comparing_pictures_and_survives_a_checkpoint(tmp_path: Path) -> None:
    model = world_model()
    assert isinstance(default_objective(model), GoalDistance)
    start, goal = frames_of(1, 1)[None, 0], frames_of(1, 2)[None, 0]
    actions = torch.rand(1, 5, 2, SPEC.flat_action_dim, generator=torch.Generator().manual_seed(0)) * 2 - 1
    context = Context(latent=model.encode(start), actions=torch.zeros(1, 0, SPEC.flat_action_dim))
    cost = LatentCost(model, GoalDistance(step_weight=0.0), context, model.encode(goal))(actions)
    drawn = model.rollout(context, actions).visual[0, :, -1]
    picture = frame_patches(goal, 8)[0]
    torch.testing.assert_close(cost[0], (drawn - picture).square().mean(dim=(-2, -1)))
    again = load_checkpoint(save_checkpoint(tmp_path / "foil", model, {"note": "test"}))
    assert again.spec == SPEC
    assert torch.equal(again.rollout(context, actions).visual, model.rollout(context, actions).visual)


def test_only_what_can_be_encoded_again_is_drawn() -> None:
    conv = build_encoder(ConvEncoderConfig(image_size=SIZE, widths=(4, 8)))
    with pytest.raises(ConfigError, match="needs a ViT encoder, got ConvEncoder"):
        FrameTask(recipe(), SPEC, encoder=conv)
    with pytest.raises(ConfigError, match="takes frames of 16 pixels, the data has 32"):
        FrameTask(recipe(), replace(SPEC, image_size=32), encoder=VideoViT(VIT))
    task = FrameTask(recipe(), SPEC, encoder=VideoViT(VIT))
    with pytest.raises(ConfigError, match="store needs pixels beside its features"):
        task.sampler(replace(dot_store(), pixels=None), TRAIN, seed=0)
