"""Learned steps to a goal: recipe, sampler, training on a world whose answer is known, checkpoint, objective."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from worldmodel.control.objectives import ActionCost, GoalDistance, StepsToGoal, default_objective
from worldmodel.errors import ConfigError, DataError
from worldmodel.learning.features import FrameStore
from worldmodel.learning.fit import fit
from worldmodel.learning.temporal_distance import (
    PairSampler,
    TemporalDistanceTask,
    TemporalDistanceTraining,
    all_latents,
)
from worldmodel.models.temporal_distance import TemporalDistance, TemporalDistanceConfig
from worldmodel.types import Latent

NUM_EPISODES, LENGTH, BLOCK = 40, 25, 2


def line_world(seed: int = 0) -> tuple[torch.Tensor, FrameStore]:
    """Episodes that walk right on a line, one place per model step (BLOCK frames), from random starts in [0, 8)."""
    rng = np.random.default_rng(seed)
    starts = rng.integers(0, 8, NUM_EPISODES)
    places = starts[:, None] + np.arange(LENGTH) // BLOCK
    latents = torch.tensor(places.reshape(-1, 1, 1) / 10.0, dtype=torch.float32)
    frames = NUM_EPISODES * LENGTH
    store = FrameStore(
        features=np.zeros((frames, 1, 1), np.float16),
        action=np.zeros((frames, 1), np.float32),
        proprio=np.zeros((frames, 1), np.float32),
        privileged=np.zeros((frames, 1), np.float32),
        privileged_names=("x",),
        episode_start=np.arange(NUM_EPISODES) * LENGTH,
        episode_len=np.full(NUM_EPISODES, LENGTH),
    )
    return latents, store


def sampler(config: TemporalDistanceTraining, seed: int = 0) -> PairSampler:
    latents, store = line_world()
    return PairSampler(latents, store, np.arange(NUM_EPISODES), action_block=BLOCK, config=config, seed=seed)


def test_learns_the_number_of_steps_on_a_line() -> None:
    config = TemporalDistanceTraining(
        steps=800, batch_size=128, lr=3e-3, target_rate=0.05, head=TemporalDistanceConfig(hidden_dim=32, num_layers=2)
    )
    task = TemporalDistanceTask(config, latent_dim=1)
    fit(task, sampler(config), config.fit_config(run_dir=None, seed=0), progress=False)
    place = torch.full((6, 1, 1), 0.6)
    goal = place + 0.1 * torch.arange(6).view(6, 1, 1)
    with torch.no_grad():
        steps = task.distance(place, goal)
    truth = (1 - config.discount ** torch.arange(6)) / (1 - config.discount)
    assert (steps - truth).abs().max() < 0.6
    assert (steps.diff() > 0).all()


def test_goals_are_the_frame_itself_later_in_the_episode_or_anywhere() -> None:
    config = TemporalDistanceTraining(batch_size=4000, same_fraction=0.25, other_fraction=0.25)
    batch = sampler(config).next_batch()
    assert batch.is_goal.float().mean() == pytest.approx(0.25, abs=0.05)
    assert torch.equal(batch.successor, batch.latent + 0.1) or (batch.successor - batch.latent - 0.1).abs().max() < 1e-6
    ahead = (batch.goal - batch.latent).flatten()
    assert (ahead < -1e-6).any()  # only goals from anywhere lie behind
    assert (ahead >= -1e-6).float().mean() > 0.75
    assert torch.equal(batch.latent[batch.is_goal], batch.goal[batch.is_goal])


def test_sampler_continues_where_it_stopped() -> None:
    config = TemporalDistanceTraining(batch_size=16)
    whole, resumed = sampler(config), sampler(config, seed=9)
    whole.next_batch()
    resumed.load_state_dict(whole.state_dict())
    assert torch.equal(whole.next_batch().goal, resumed.next_batch().goal)


def test_episodes_shorter_than_a_model_step_are_refused() -> None:
    latents, store = line_world()
    with pytest.raises(DataError, match="no episode has more than 99 frames"):
        PairSampler(
            latents, store, np.arange(3), action_block=99, config=TemporalDistanceTraining(batch_size=2), seed=0
        )


@pytest.mark.parametrize(
    ("field", "value"),
    [("discount", 1.0), ("expectile", 0.4), ("target_rate", 0.0), ("same_fraction", 0.9), ("steps", -1)],
)
def test_impossible_recipes_are_refused(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=field):
        TemporalDistanceTraining(**{field: value})  # type: ignore[arg-type]


def test_latents_of_a_data_set_do_not_depend_on_blocks() -> None:
    features = np.random.default_rng(0).normal(size=(1030, 2, 3)).astype(np.float16)
    head = torch.nn.Linear(3, 4)
    whole = head(torch.from_numpy(features).float())
    assert torch.allclose(all_latents(head, features), whole, atol=1e-6)


class Model:
    """What the objective needs of a world model."""

    def __init__(self) -> None:
        self.temporal_distance = TemporalDistance(TemporalDistanceConfig(hidden_dim=8), latent_dim=6)


def candidates() -> tuple[Latent, Latent, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    latent = Latent(visual=torch.randn(2, 5, 3, 2, 3, generator=generator))
    goal = Latent(visual=torch.randn(2, 1, 1, 2, 3, generator=generator))
    return latent, goal, torch.zeros(2, 5, 3, 4)


def test_steps_to_goal_is_the_weighted_sum_of_both_parts() -> None:
    model, (latent, goal, actions) = Model(), candidates()
    objective = StepsToGoal(last_step_weight=2.0, step_weight=1.0, latent_weight=0.5).bind(model)
    cost = objective(latent, goal, actions)
    steps = model.temporal_distance(latent.visual, goal.visual.expand_as(latent.visual))
    squared = (latent.visual - goal.visual).square().mean(dim=(-2, -1))
    expected = ((steps + 0.5 * squared) * torch.tensor([0.25, 0.25, 0.5])).sum(-1)
    assert torch.allclose(cost, expected, atol=1e-5)


def test_steps_to_goal_composes_and_binds_inside_sums() -> None:
    model, (latent, goal, actions) = Model(), candidates()
    total = (StepsToGoal() + ActionCost(weight=1.0)).bind(model)
    assert torch.allclose(total(latent, goal, actions), StepsToGoal().bind(model)(latent, goal, actions))


def test_a_model_without_the_distance_is_named_and_falls_back_by_default() -> None:
    with pytest.raises(ConfigError, match="objective=goal_distance"):
        StepsToGoal().bind(object())
    with pytest.raises(ConfigError, match="bind"):
        StepsToGoal()(*candidates())
    assert isinstance(default_objective(object()), GoalDistance)
    assert isinstance(default_objective(Model()), StepsToGoal)


def test_checkpoint_keeps_the_distance(tmp_path: Path) -> None:
    from worldmodel.data.normalize import Normalizer
    from worldmodel.models.action_predictor import ResidualMLPConfig, ResidualMLPPredictor
    from worldmodel.models.checkpoint import load_checkpoint, save_checkpoint
    from worldmodel.models.encoders import VideoViT
    from worldmodel.models.latent_head import CompactHead, CompactHeadConfig
    from worldmodel.models.vit import ViTConfig
    from worldmodel.models.world_model import ModelSpec, WorldModel

    encoder = VideoViT(ViTConfig(image_size=16, patch_size=8, embed_dim=24, depth=1, num_heads=2, num_frames=2))
    head = CompactHead(CompactHeadConfig(token_dim=4, hidden_dim=8, latent_dim=6), num_tokens=4, embed_dim=24)
    predictor = ResidualMLPPredictor(ResidualMLPConfig(hidden_dim=8, num_blocks=1), latent_dim=6, action_dim=2)
    spec = ModelSpec(
        env_ids=("a",),
        action_dim=2,
        action_low=(-1.0, -1.0),
        action_high=(1.0, 1.0),
        action_block=1,
        image_size=16,
        proprio_names=("x",),
    )
    distance = TemporalDistance(TemporalDistanceConfig(hidden_dim=8), latent_dim=6, seed=3)
    model = WorldModel(encoder, head, predictor, Normalizer(2), Normalizer(1), spec, temporal_distance=distance)
    save_checkpoint(tmp_path / "with", model, {})
    loaded = load_checkpoint(tmp_path / "with").temporal_distance
    assert loaded is not None
    latent = torch.randn(3, 1, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(loaded(latent, latent[:1]), distance(latent, latent[:1]))
    save_checkpoint(tmp_path / "without", WorldModel(encoder, head, predictor, Normalizer(2), Normalizer(1), spec), {})
    assert load_checkpoint(tmp_path / "without").temporal_distance is None


def test_a_distance_of_another_width_is_refused() -> None:
    from worldmodel.data.normalize import Normalizer
    from worldmodel.models.action_predictor import ResidualMLPConfig, ResidualMLPPredictor
    from worldmodel.models.encoders import VideoViT
    from worldmodel.models.latent_head import CompactHead, CompactHeadConfig
    from worldmodel.models.vit import ViTConfig
    from worldmodel.models.world_model import ModelSpec, WorldModel

    encoder = VideoViT(ViTConfig(image_size=16, patch_size=8, embed_dim=24, depth=1, num_heads=2, num_frames=2))
    head = CompactHead(CompactHeadConfig(token_dim=4, hidden_dim=8, latent_dim=6), num_tokens=4, embed_dim=24)
    predictor = ResidualMLPPredictor(ResidualMLPConfig(hidden_dim=8, num_blocks=1), latent_dim=6, action_dim=1)
    spec = ModelSpec(
        env_ids=("a",),
        action_dim=1,
        action_low=(-1.0,),
        action_high=(1.0,),
        action_block=1,
        image_size=16,
        proprio_names=("x",),
    )
    with pytest.raises(ConfigError, match="takes latents of 5 numbers"):
        WorldModel(
            encoder,
            head,
            predictor,
            Normalizer(1),
            Normalizer(1),
            spec,
            temporal_distance=TemporalDistance(TemporalDistanceConfig(), latent_dim=5),
        )


def test_pairs_are_drawn_across_colours_and_unchanged_without_them() -> None:
    latents, store = line_world()
    shared = {"action_block": BLOCK, "config": TemporalDistanceTraining(batch_size=256), "seed": 0}
    looks = torch.stack([latents, latents + 100])
    plain = PairSampler(latents, store, np.arange(NUM_EPISODES), **shared).next_batch()  # type: ignore[arg-type]
    mixed = PairSampler(looks, store, np.arange(NUM_EPISODES), **shared).next_batch()  # type: ignore[arg-type]
    assert torch.equal(mixed.is_goal, plain.is_goal)
    for name in ("latent", "successor", "goal"):
        shift = getattr(mixed, name) - getattr(plain, name)
        assert set(shift.round().unique().tolist()) == {0.0, 100.0}
    assert ((mixed.latent > 50) != (mixed.goal > 50)).any()
