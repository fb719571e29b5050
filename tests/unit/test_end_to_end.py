"""The encoder in training: gradients, learning, resuming, and what comes out of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from worldmodel.data.episodes import EpisodeDataset
from worldmodel.errors import ConfigError
from worldmodel.learning.dynamics import DynamicsTask
from worldmodel.learning.dynamics_config import DynamicsConfig, LossWeights
from worldmodel.learning.end_to_end import PixelHead
from worldmodel.learning.features import FrameStore, encode_block, frame_store
from worldmodel.learning.fit import fit
from worldmodel.learning.open_loop import open_loop_report
from worldmodel.learning.temporal_distance import all_latents
from worldmodel.models.action_predictor import ResidualMLPConfig
from worldmodel.models.checkpoint import load_checkpoint, save_checkpoint
from worldmodel.models.encoders import Encoder
from worldmodel.models.frozen_encoders import (
    ConvEncoderConfig,
    EncoderConfig,
    PatchEncoderConfig,
    TimmEncoderConfig,
    build_encoder,
)
from worldmodel.models.latent_head import CompactHead, CompactHeadConfig
from worldmodel.models.vit import ViTConfig
from worldmodel.models.world_model import ModelSpec

SIZE = 16
TRAIN, VAL = np.arange(30), np.arange(30, 40)
CONV = ConvEncoderConfig(image_size=SIZE, widths=(8, 16))
VIT = ViTConfig(image_size=SIZE, patch_size=8, num_frames=2, embed_dim=12, depth=1, num_heads=2, mlp_ratio=2.0)
SPEC = ModelSpec(
    env_ids=("worldmodel/Reach-v0",),
    action_dim=2,
    action_low=(-1.0, -1.0),
    action_high=(1.0, 1.0),
    action_block=2,
    image_size=SIZE,
    proprio_names=("x", "y"),
)


def config(**changes: Any) -> DynamicsConfig:
    values: dict[str, Any] = {
        "frozen": False,
        "action_block": 2,
        "rollout_steps": 3,
        "weights": LossWeights(reconstruction=0.0),
        "compact_head": CompactHeadConfig(token_dim=6, hidden_dim=32, latent_dim=8),
        "compact_predictor": ResidualMLPConfig(hidden_dim=32, num_blocks=1),
        "sigreg_directions": 32,
        "batch_size": 16,
        "steps": 120,
        "lr": 3e-3,
        "warmup_steps": 10,
    }
    return DynamicsConfig(**{**values, **changes})


def blob_store(episodes: int = 40, length: int = 15) -> FrameStore:
    """A bright spot pushed around on a grey picture, 16 x 16 pixels."""
    rng = np.random.default_rng(0)
    action = rng.uniform(-1, 1, (episodes, length, 2))
    action[:, -1] = 0
    position = 8 + 1.5 * (np.cumsum(action, axis=1) - action) + rng.normal(size=(episodes, 1, 2))
    flat = position.reshape(-1, 2)
    grid = np.stack(np.meshgrid(np.arange(SIZE), np.arange(SIZE), indexing="ij"), axis=-1)
    spot = np.exp(-((grid - flat[:, None, None]) ** 2).sum(-1) / 6)
    frames = (60 + 180 * spot[..., None]).repeat(3, axis=-1).astype(np.uint8)
    return FrameStore(
        features=frames,
        action=action.reshape(-1, 2).astype(np.float32),
        proprio=flat.astype(np.float32),
        privileged=flat.astype(np.float32),
        privileged_names=("x", "y"),
        episode_start=np.arange(episodes) * length,
        episode_len=np.full(episodes, length),
    )


def task_of(settings: DynamicsConfig, store: FrameStore, encoder: EncoderConfig = CONV) -> DynamicsTask:
    built = build_encoder(encoder).requires_grad_(False).eval()
    sizes = {"num_tokens": built.num_tokens, "embed_dim": built.embed_dim}
    task = DynamicsTask(settings, SPEC, **sizes, encoder=built)
    task.fit_statistics(store, TRAIN)
    return task


def encoder_of(task: DynamicsTask) -> Encoder:
    assert isinstance(task.head, PixelHead)
    return task.head.encoder


def one_batch_backward(task: DynamicsTask, store: FrameStore) -> None:
    with torch.no_grad():  # a fresh predictor predicts "no change" whatever the latent, and hands on no gradient
        task.predictor.get_parameter("out.weight").normal_(generator=torch.Generator().manual_seed(0))
    task(task.sampler(store, TRAIN, seed=0).next_batch(), torch.Generator().manual_seed(0))["loss"].backward()


@pytest.mark.parametrize("encoder", [CONV, VIT], ids=["conv", "vit"])
def test_every_weight_of_the_encoder_gets_a_gradient(encoder: EncoderConfig) -> None:
    store = blob_store()
    task = task_of(config(batch_size=4), store, encoder)
    one_batch_backward(task, store)
    gradients = {name: p.grad for name, p in task.named_parameters()}
    assert any(name.startswith("head.encoder.") for name in gradients)
    assert [name for name, grad in gradients.items() if grad is None or not grad.abs().sum() > 0] == []


def test_batch_norms_of_a_backbone_keep_their_statistics() -> None:
    store, settings = blob_store(), config(batch_size=4, steps=2)
    task = task_of(settings, store, TimmEncoderConfig(name="resnet10t", image_size=SIZE, input_size=32))
    before = {name: value.clone() for name, value in encoder_of(task).state_dict().items()}
    fit(task, task.sampler(store, TRAIN, seed=0), settings.fit_config(precision="32-true"), progress=False)
    after = encoder_of(task).state_dict()
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert "backbone.conv1.0.weight" in moved
    assert not {name for name in moved if "running" in name or "batches" in name}


@pytest.mark.parametrize("term", ["rollout", "one_step", "inverse_dynamics", "sigreg", "proprio"])
def test_each_loss_alone_reaches_the_encoder(term: str) -> None:
    names = ("rollout", "one_step", "inverse_dynamics", "sigreg", "proprio")
    store, tiny = blob_store(), 1e-30  # the two that train the predictor must not both be 0
    weights = LossWeights(**{**dict.fromkeys(names, 0.0), "reconstruction": 0.0, "one_step": tiny, term: 1.0})
    task = task_of(config(weights=weights), store)
    one_batch_backward(task, store)
    grad = encoder_of(task).get_parameter("layers.0.weight").grad
    assert grad is not None
    assert grad.abs().max() > 1e-9


def test_a_frozen_encoder_is_left_alone() -> None:
    frames = blob_store()
    encoder = build_encoder(CONV).requires_grad_(False).eval()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    store = FrameStore(**{**vars(frames), "features": encode_block(encoder, frames.features)})
    settings = config(frozen=True, steps=3)
    task = DynamicsTask(settings, SPEC, num_tokens=encoder.num_tokens, embed_dim=encoder.embed_dim)
    task.fit_statistics(store, TRAIN)
    fit(task, task.sampler(store, TRAIN, seed=0), settings.fit_config(precision="32-true"), progress=False)
    model = task.world_model(encoder)
    assert not any("encoder" in name for name in task.state_dict())
    assert not any(p.requires_grad or p.grad is not None for p in encoder.parameters())
    assert all(torch.equal(value, model.encoder.state_dict()[name]) for name, value in before.items())


def test_training_starts_as_the_frozen_arm_does() -> None:
    frames = blob_store()
    task = task_of(config(), frames)
    encoder = build_encoder(CONV)
    frozen = DynamicsTask(config(frozen=True), SPEC, num_tokens=encoder.num_tokens, embed_dim=encoder.embed_dim)
    store = FrameStore(**{**vars(frames), "features": encode_block(encoder, frames.features)})
    frozen.fit_statistics(store, TRAIN)
    assert torch.equal(task.head.standardise.std, frozen.head.standardise.std)
    batches = [t.sampler(s, TRAIN, seed=0).next_batch() for t, s in ((task, frames), (frozen, store))]
    assert torch.equal(batches[0].frames, batches[1].frames)
    with torch.no_grad():
        mine, theirs = task.latents(batches[0].features), frozen.latents(batches[1].features)
    torch.testing.assert_close(mine, theirs, rtol=0, atol=2e-2)  # cached features are rounded to float16


def test_it_learns_and_is_taken_apart_into_an_ordinary_world_model(tmp_path: Path) -> None:
    store, settings = blob_store(), config()
    task = task_of(settings, store)
    initial = {name: value.clone() for name, value in encoder_of(task).state_dict().items()}
    fit(task, task.sampler(store, TRAIN, seed=0), settings.fit_config(precision="32-true"), progress=False)
    report = open_loop_report(task, store, train_ids=TRAIN, val_ids=VAL, horizon=3, num_clips=128)
    assert report.model[-1] < 0.6 * report.copy_last[-1]
    assert report.model[-1] < 0.6 * report.shuffled[-1]
    assert max(report.probe_true) < 0.4 * min(report.spread)

    save_checkpoint(tmp_path, task.world_model(), {})
    model = load_checkpoint(tmp_path)
    assert isinstance(model.head, CompactHead)
    for name, value in model.encoder.state_dict().items():
        assert not torch.equal(value, initial[name]), name
    frames = torch.from_numpy(store.features[:4])
    with torch.no_grad():
        expected = task.head(frames[None])[0]
    torch.testing.assert_close(model.encode(frames[None]).visual[0], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(all_latents(task.head, store.features)[:4], expected, rtol=1e-4, atol=1e-5)


class KilledError(Exception):
    """Stands for a kill signal."""


def test_a_killed_run_resumes_to_the_same_bits(tmp_path: Path) -> None:
    store, settings = blob_store(), config(steps=6, batch_size=8, encoder_lr_scale=0.3)

    def train(folder: str, stop: int | None) -> DynamicsTask:
        def kill(done: int) -> dict[str, float]:
            if done == stop:
                raise KilledError
            return {}

        task = task_of(settings, store)
        fit_config = settings.fit_config(run_dir=str(tmp_path / folder), eval_every=1, precision="32-true")
        fit_config.checkpoint_every = 2
        fit(task, task.sampler(store, TRAIN, seed=0), fit_config, evaluate=kill, progress=False)
        return task

    whole = train("whole", None)
    with pytest.raises(KilledError):
        train("half", 5)
    assert '"step": 4' in (tmp_path / "half" / "state.json").read_text()
    resumed = train("half", None)
    assert any(name.startswith("head.encoder.") for name in whole.state_dict())
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_the_encoder_may_learn_more_slowly() -> None:
    store = blob_store()

    def moved(scale: float) -> float:
        settings = config(steps=1, warmup_steps=0, weight_decay=0.0, encoder_lr_scale=scale)
        task = task_of(settings, store)
        before = encoder_of(task).get_parameter("layers.0.weight").detach().clone()
        fit(task, task.sampler(store, TRAIN, seed=0), settings.fit_config(precision="32-true"), progress=False)
        return float((encoder_of(task).get_parameter("layers.0.weight").detach() - before).abs().max())

    assert moved(1.0) == pytest.approx(3e-3, rel=0.01)  # Adam's first step is the learning rate
    assert moved(0.1) == pytest.approx(3e-4, rel=0.01)


def test_labelled_episodes_are_renumbered(episode_file: EpisodeDataset) -> None:
    chosen: NDArray[np.int64] = np.array([7, 2, 9])
    store = frame_store(episode_file, chosen)
    assert store.features.dtype == np.uint8
    assert store.episode_len.tolist() == [12, 7, 14]
    for number, i in enumerate(chosen):
        episode, rows = episode_file.episode(i), store.frames_of(np.array([number]))
        np.testing.assert_array_equal(store.features[rows], episode.pixels)
        np.testing.assert_array_equal(store.action[rows[:-1]], episode.action)
        np.testing.assert_array_equal(store.proprio[rows], episode.proprio)
        np.testing.assert_array_equal(store.privileged[rows], episode.privileged)


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"set weights\.reconstruction=0"):
        DynamicsConfig(frozen=False)
    with pytest.raises(ConfigError, match="frozen=false needs latent=compact, got patch"):
        config(latent="patch")
    with pytest.raises(ConfigError, match=r"encoder_lr_scale must be > 0, got 0\.0"):
        config(encoder_lr_scale=0.0)
    sizes = {"num_tokens": 4, "embed_dim": 12}
    with pytest.raises(ConfigError, match="PatchEncoder has no weights to train"):
        DynamicsTask(config(), SPEC, **sizes, encoder=build_encoder(PatchEncoderConfig(image_size=SIZE)))
    with pytest.raises(ConfigError, match="exactly when frozen=False, got none"):
        DynamicsTask(config(), SPEC, **sizes)
    with pytest.raises(ConfigError, match="exactly when frozen=False, got VideoViT"):
        DynamicsTask(config(frozen=True), SPEC, **sizes, encoder=build_encoder(VIT))
    with pytest.raises(ConfigError, match="without one"):
        DynamicsTask(config(), SPEC, **sizes, encoder=build_encoder(VIT)).world_model(build_encoder(VIT))
    with pytest.raises(ConfigError, match="frozen=True keeps no encoder"):
        DynamicsTask(config(frozen=True), SPEC, **sizes).world_model()
