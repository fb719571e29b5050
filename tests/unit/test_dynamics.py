import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from worldmodel.errors import ConfigError
from worldmodel.learning.dynamics import DynamicsTask, validation_losses
from worldmodel.learning.dynamics_config import DynamicsConfig, LossWeights
from worldmodel.learning.features import FrameStore
from worldmodel.learning.fit import fit
from worldmodel.learning.open_loop import open_loop_report
from worldmodel.learning.sigreg import expected_at_gaussian, sigreg
from worldmodel.models.action_predictor import ResidualMLPConfig
from worldmodel.models.action_transformer import TransformerPredictorConfig
from worldmodel.models.frozen_encoders import build_encoder
from worldmodel.models.latent_head import CompactHeadConfig, GridHead, IdentityHeadConfig
from worldmodel.models.vit import ViTConfig
from worldmodel.models.world_model import ModelSpec

TOKENS, WIDTH = 4, 12
TRAIN, VAL = np.arange(40), np.arange(40, 50)
SPEC = {
    "env_ids": ("test",),
    "action_dim": 2,
    "action_low": (-1.0, -1.0),
    "action_high": (1.0, 1.0),
    "action_block": 2,
    "image_size": 16,
    "proprio_names": ("x", "y"),
}


def config(latent: str = "compact", **changes: object) -> DynamicsConfig:
    values: dict[str, object] = {
        "latent": latent,
        "action_block": 2,
        "rollout_steps": 3,
        "compact_head": CompactHeadConfig(token_dim=6, hidden_dim=32, latent_dim=8),
        "compact_predictor": ResidualMLPConfig(hidden_dim=32, num_blocks=1),
        "patch_head": IdentityHeadConfig(),
        "patch_predictor": TransformerPredictorConfig(embed_dim=24, depth=2, num_heads=2, window=2, mlp_ratio=2.0),
        "sigreg_directions": 32,
        "batch_size": 32,
        "steps": 150,
        "lr": 3e-3,
        "warmup_steps": 10,
    }
    return DynamicsConfig(**{**values, **changes})


def point_store(episodes: int = 50, length: int = 25, seed: int = 0) -> FrameStore:
    """A point pushed around in the plane; features are a fixed random non-linear map of where it is."""
    rng = np.random.default_rng(seed)
    action = rng.uniform(-1, 1, (episodes, length, 2))
    action[:, -1] = 0
    position = np.cumsum(action, axis=1) - action
    position = 0.5 * (position + rng.normal(size=(episodes, 1, 2)))
    flat = position.reshape(-1, 2)
    mix, bias = rng.normal(size=(2, TOKENS * WIDTH)) * 0.5, rng.normal(size=TOKENS * WIDTH)
    features = np.sin(flat @ mix + bias).reshape(-1, TOKENS, WIDTH)
    return FrameStore(
        features=features.astype(np.float16),
        action=action.reshape(-1, 2).astype(np.float32),
        proprio=(flat * 0.1 + 4).astype(np.float32),
        privileged=flat.astype(np.float32),
        privileged_names=("x", "y"),
        episode_start=np.arange(episodes) * length,
        episode_len=np.full(episodes, length),
    )


def task_of(settings: DynamicsConfig, store: FrameStore) -> DynamicsTask:
    spec = ModelSpec(**{**SPEC, "latent": settings.latent})
    task = DynamicsTask(settings, spec, num_tokens=TOKENS, embed_dim=WIDTH)
    task.fit_statistics(store, TRAIN)
    return task


@pytest.mark.parametrize(("latent", "grid_blocks"), [("compact", 0), ("compact", 1), ("patch", 0)])
def test_training_beats_copying_and_wrong_actions(latent: str, grid_blocks: int) -> None:
    steps, batch_size = (150, 32) if latent == "compact" else (60, 16)
    settings = config(latent, steps=steps, batch_size=batch_size, grid_blocks=grid_blocks)
    store = point_store()
    task = task_of(settings, store)
    assert isinstance(task.head, GridHead) == (grid_blocks > 0)
    held_out = [task.sampler(store, VAL, seed=1).next_batch()]
    before = open_loop_report(task, store, train_ids=TRAIN, val_ids=VAL, horizon=4, num_clips=128)
    assert before.model == pytest.approx(before.copy_last)  # starts as copy-last-frame
    report = fit(
        task,
        task.sampler(store, TRAIN, seed=0),
        settings.fit_config(precision="32-true"),
        evaluate=lambda _: validation_losses(task, held_out),
        progress=False,
    )
    assert report.evaluation["val_rollout"] < 0.5
    after = open_loop_report(task, store, train_ids=TRAIN, val_ids=VAL, horizon=4, num_clips=128)
    for step in range(4):
        assert after.model[step] < 0.8 * after.copy_last[step]
        assert after.model[step] < 0.8 * after.shuffled[step]
    assert max(after.probe_true) < 0.35 * min(after.spread)
    for variable in range(2):
        assert after.probe_model[variable][-1] < 0.85 * after.probe_copy_last[variable][-1]


def test_a_world_model_out_of_a_task_is_an_independent_copy() -> None:
    store = point_store()
    task = task_of(config(), store)
    vit = ViTConfig(image_size=16, patch_size=8, num_frames=2, embed_dim=WIDTH, depth=1, num_heads=2)
    model = task.world_model(build_encoder(vit))
    assert all(p.requires_grad for p in task.predictor.parameters())
    assert not any(p.requires_grad for p in model.parameters())
    with torch.no_grad():
        task.predictor.get_parameter("out.bias").add_(1)
    assert model.predictor.get_parameter("out.bias").abs().sum() == 0
    report = open_loop_report(model, store, train_ids=TRAIN, val_ids=VAL, horizon=2, num_clips=16)
    assert report.model == pytest.approx(report.copy_last)


def test_statistics_come_from_the_training_episodes_and_real_actions_only() -> None:
    store = point_store()
    store.action[40 * 25 :] = 100.0
    store.proprio[40 * 25 :] = 100.0
    task = task_of(config(), store)
    rows = store.action.reshape(50, 25, 2)[:40, :-1].reshape(-1, 2)
    np.testing.assert_allclose(task.action_normalizer.std, np.tile(rows.std(0), 2), rtol=1e-4)
    np.testing.assert_allclose(task.action_normalizer.mean, np.tile(rows.mean(0), 2), atol=1e-6)
    assert float(task.proprio_normalizer.mean.max()) < 10


@pytest.mark.parametrize("name", list(LossWeights.__dataclass_fields__))
def test_each_weight_switches_its_term(name: str) -> None:
    store = point_store()
    everything = dict.fromkeys(LossWeights.__dataclass_fields__, 1.0)
    full = task_of(config(weights=LossWeights(**everything)), store)
    without = task_of(config(weights=LossWeights(**{**everything, name: 0.0})), store)
    batch = full.sampler(store, TRAIN, seed=0).next_batch()
    with torch.no_grad():
        with_term = full(batch, torch.Generator().manual_seed(0))
        parts = without(batch, torch.Generator().manual_seed(0))
    assert set(with_term) - set(parts) == {name}
    assert float(with_term["loss"]) == pytest.approx(
        sum(float(v) for k, v in with_term.items() if k != "loss"), rel=1e-5
    )
    assert float(with_term["loss"] - with_term[name]) == pytest.approx(float(parts["loss"]), rel=1e-4)


def test_every_trained_weight_gets_a_gradient() -> None:
    for latent in ("compact", "patch"):
        store = point_store()
        task = task_of(config(latent), store)
        with torch.no_grad():
            task.predictor.get_parameter("out.weight").normal_(generator=torch.Generator().manual_seed(0))
        task(task.sampler(store, TRAIN, seed=0).next_batch(), torch.Generator().manual_seed(0))["loss"].backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in task.parameters() if p.requires_grad)


def test_the_targets_get_the_share_of_the_gradient_that_is_asked_for() -> None:
    store = point_store()
    weights = LossWeights(rollout=0, one_step=1, inverse_dynamics=0, sigreg=0, proprio=0)

    def gradient(share: float) -> torch.Tensor:
        task = task_of(config(weights=weights, target_gradient=share), store)
        task(task.sampler(store, TRAIN, seed=0).next_batch(), torch.Generator())["loss"].backward()
        grad = task.head.get_parameter("out.weight").grad
        assert grad is not None
        return grad

    stopped, full = gradient(0.0), gradient(1.0)
    assert not torch.allclose(stopped, full)
    torch.testing.assert_close(gradient(0.3), stopped + 0.3 * (full - stopped))


@pytest.mark.parametrize("wrong", [{"grid_blocks": -1}, {"grid_blocks": 1, "latent": "patch"}])
def test_convolutions_are_for_the_compact_latent(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="grid_blocks must be >= 0, and 0 but for latent=compact"):
        DynamicsConfig(**wrong)


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_a_share_of_the_gradient_is_a_share(share: float) -> None:
    with pytest.raises(ConfigError, match=r"target_gradient must be in \[0, 1\]"):
        DynamicsConfig(target_gradient=share)


def test_patch_context_length_varies_with_the_generator() -> None:
    store = point_store()
    task = task_of(config("patch"), store)
    with torch.no_grad():
        task.predictor.get_parameter("out.weight").normal_(generator=torch.Generator().manual_seed(0))
    batch = task.sampler(store, TRAIN, seed=0).next_batch()
    with torch.no_grad():
        losses = {round(float(task(batch, torch.Generator().manual_seed(s))["rollout"]), 6) for s in range(12)}
    assert len(losses) == 2  # window 2: one or two frames of context


def test_sigreg_is_small_for_gaussians_and_large_for_collapse() -> None:
    def value(z: torch.Tensor) -> float:
        return float(sigreg(z, num_directions=128, generator=torch.Generator().manual_seed(1)))

    z = torch.randn(3, 256, 16, generator=torch.Generator().manual_seed(0))
    assert value(z) == pytest.approx(expected_at_gaussian(), rel=0.25)
    assert value(z * 0.1) > 20 * value(z)
    assert value(z * 3) > 5 * value(z)
    assert value(z + 1) > 5 * value(z)
    flat = z.clone()
    flat[..., 1:] = flat[..., :1]  # unit variance per channel, one dimension in truth
    assert value(flat) > 5 * value(z)


def test_sigreg_gradient_spreads_a_collapsed_batch() -> None:
    z = (0.01 * torch.randn(1, 64, 4, generator=torch.Generator().manual_seed(0))).requires_grad_(True)
    optimizer = torch.optim.Adam([z], lr=0.05)
    for step in range(100):
        optimizer.zero_grad()
        sigreg(z, num_directions=32, generator=torch.Generator().manual_seed(step)).backward()
        optimizer.step()
    assert z.detach().std(dim=1).min() > 0.6


def test_reconstruction_keeps_what_prediction_forgets() -> None:
    """A feature that no action moves is lost without the decoder and kept with it."""
    store = point_store()
    still = np.random.default_rng(3).normal(size=(50, 1)).repeat(25, axis=1).reshape(-1)
    store.features[:, 0, :4] = still[:, None]
    store.privileged = np.concatenate([store.privileged, still[:, None]], axis=1).astype(np.float32)
    store.privileged_names = ("x", "y", "still")
    rmse = []
    for weight in (0.0, 2.0):
        weights = LossWeights(sigreg=0.0, reconstruction=weight)
        task = task_of(config(weights=weights, steps=100), store)
        fit(task, task.sampler(store, TRAIN, seed=0), task.config.fit_config(precision="32-true"), progress=False)
        rmse.append(open_loop_report(task, store, train_ids=TRAIN, val_ids=VAL, horizon=2, num_clips=128).probe_true[2])
    assert rmse[1] < 0.6 * rmse[0]


def test_probes_survive_an_object_that_fell_off_the_table() -> None:
    store = point_store()
    task = task_of(config(), store)
    clean = open_loop_report(task, store, train_ids=TRAIN, val_ids=VAL, horizon=2, num_clips=64)
    store.privileged[100:103] = -40.0
    store.privileged[45 * 25 + 5] = -40.0
    dirty = open_loop_report(task, store, train_ids=TRAIN, val_ids=VAL, horizon=2, num_clips=64)
    np.testing.assert_allclose(dirty.probe_true, clean.probe_true, rtol=0.3)
    np.testing.assert_allclose(dirty.spread, clean.spread, rtol=0.3)


def test_report_is_json_and_tables() -> None:
    store = point_store()
    report = open_loop_report(task_of(config(), store), store, train_ids=TRAIN, val_ids=VAL, horizon=3, num_clips=8)
    record = json.loads(report.to_json())
    assert len(record["model"]) == 3
    assert record["variables"] == ["x", "y"]
    assert np.shape(record["probe_model"]) == (2, 3)
    assert report.scalars()["open_loop"] == report.model[-1]
    assert [table.row_count for table in report.tables()] == [3, 2]


def test_configs_refuse_nonsense() -> None:
    with pytest.raises(ConfigError, match="compact, patch, pixels, got 'patches'"):
        DynamicsConfig(latent="patches")
    with pytest.raises(ConfigError, match="rollout_steps must be >= 1, got 0"):
        DynamicsConfig(rollout_steps=0)
    with pytest.raises(ConfigError, match="validation_fraction"):
        DynamicsConfig(validation_fraction=0.0)
    with pytest.raises(ConfigError, match="weight sigreg must be >= 0"):
        LossWeights(sigreg=-1)
    with pytest.raises(ConfigError, match="would not be trained"):
        LossWeights(rollout=0, one_step=0)


def test_a_latent_trained_in_many_colours_keeps_the_place_and_drops_the_colour() -> None:
    """Colours here shift the channels of every token of a frame; those of the test are drawn anew."""
    store = point_store()

    def in_colours(seed: int) -> NDArray[np.float16]:
        shift = np.random.default_rng(seed).normal(size=(len(store.features), 1, WIDTH))
        return (store.features + shift).astype(np.float16)

    def colour_share(recoloured: tuple[NDArray[np.float16], ...]) -> float:
        """How far new colours move a latent, over how far latents of other frames lie."""
        settings = config("compact", steps=200, batch_size=32)
        seen = replace(store, recoloured=recoloured)
        task = task_of(settings, seen)
        fit(task, task.sampler(seen, TRAIN, seed=0), settings.fit_config(precision="32-true"), progress=False)
        frames = store.frames_of(VAL)
        with torch.no_grad():
            plain, moved = (
                task.eval().latents(torch.from_numpy(look[frames])[:, None])
                for look in (np.asarray(store.features), in_colours(99))
            )
        return float((moved - plain).norm(dim=-1).mean() / (plain - plain.roll(37, dims=0)).norm(dim=-1).mean())

    shares = [colour_share(()), colour_share(tuple(in_colours(seed) for seed in range(3)))]
    assert shares[1] < 0.5 * shares[0], shares
