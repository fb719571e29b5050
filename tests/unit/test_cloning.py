"""Goal-conditioned behaviour cloning: hindsight goals, learning, resuming, the policy on disk and in an agent."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from worldmodel.control.policy_agent import PolicyAgent
from worldmodel.data.episodes import Episode, EpisodeDataset, EpisodeSpec, write_episodes
from worldmodel.data.normalize import Normalizer
from worldmodel.errors import CheckpointError, ConfigError, DataError
from worldmodel.learning.cloning import CloningConfig, CloningMaterial, CloningTask, HindsightSampler, clone
from worldmodel.learning.dynamics_config import spec_of_data
from worldmodel.learning.features import FrameStore, encode_block
from worldmodel.learning.fit import fit
from worldmodel.models.checkpoint import load_checkpoint, load_encoder
from worldmodel.models.encoders import Encoder
from worldmodel.models.frozen_encoders import ConvEncoderConfig, build_encoder
from worldmodel.models.latent_head import CompactHeadConfig, build_head
from worldmodel.models.policy import GoalMLP, GoalMLPConfig, GoalPolicy
from worldmodel.models.policy_checkpoint import load_policy, save_policy
from worldmodel.types import Goal

SIZE, BLOCK = 16, 2
TRAIN, VAL = np.arange(24), np.arange(24, 30)


@dataclass(kw_only=True)
class World:
    """Episodes in which a bright spot is pushed in one direction, each in its own."""

    dataset: EpisodeDataset
    encoder: Encoder
    store: FrameStore


def sizes_of(encoder: Encoder) -> dict[str, int]:
    """What a head needs to know of an encoder."""
    return {"num_tokens": encoder.num_tokens, "embed_dim": encoder.embed_dim}


def spot(position: np.ndarray) -> np.ndarray:
    """Pictures (T, 16, 16, 3) uint8 of a spot at positions (T, 2)."""
    grid = np.stack(np.meshgrid(np.arange(SIZE), np.arange(SIZE), indexing="ij"), axis=-1)
    light = np.exp(-((grid - position[:, None, None]) ** 2).sum(-1) / 6)
    return (60 + 180 * light[..., None]).repeat(3, axis=-1).astype(np.uint8)


@pytest.fixture(name="world", scope="module")
def _world(tmp_path_factory: pytest.TempPathFactory) -> World:
    rng = np.random.default_rng(0)
    spec = EpisodeSpec(
        env_id="worldmodel/Reach-v0",
        image_size=SIZE,
        action_low=(-1.0, -1.0),
        action_high=(1.0, 1.0),
        proprio_names=("x", "y"),
        privileged_names=("x", "y"),
        control_dt_s=0.1,
    )
    episodes = []
    for number in range(30):
        length = 9 + number % 3
        action = np.repeat(rng.uniform(-1, 1, (1, 2)), length - 1, axis=0)
        position = rng.uniform(6, 10, 2) + np.concatenate([np.zeros((1, 2)), np.cumsum(0.8 * action, axis=0)])
        episodes.append(
            Episode(
                pixels=spot(position),
                proprio=position.astype(np.float32),
                action=action.astype(np.float32),
                privileged=position.astype(np.float32),
                contact=np.zeros(length, np.bool_),
                policy="play",
                seed=number,
                success=False,
            )
        )
    dataset = write_episodes(tmp_path_factory.mktemp("data") / "spots.h5", spec, episodes)
    encoder = build_encoder(ConvEncoderConfig(image_size=SIZE, widths=(8, 16))).requires_grad_(False).eval()
    store = FrameStore.from_dataset(dataset, encode_block(encoder, dataset.pixels))
    return World(dataset=dataset, encoder=encoder, store=store)


def config(**changes: Any) -> CloningConfig:
    values: dict[str, Any] = {
        "action_block": BLOCK,
        "head": CompactHeadConfig(token_dim=6, hidden_dim=32, latent_dim=8),
        "policy": GoalMLPConfig(hidden_dim=32, num_layers=2),
        "batch_size": 32,
        "steps": 150,
        "lr": 3e-3,
        "warmup_steps": 10,
    }
    return CloningConfig(**{**values, **changes})


def small_policy(world: World, seed: int = 0) -> GoalPolicy:
    """An untrained policy with statistics of the data."""
    settings = config(seed=seed)
    spec = spec_of_data(world.dataset, action_block=BLOCK)
    encoder = world.encoder
    task = CloningTask(settings, spec, num_tokens=encoder.num_tokens, embed_dim=encoder.embed_dim)
    task.fit_statistics(world.store, TRAIN)
    return task.policy(encoder)


@pytest.mark.parametrize("goals", ["uniform", "geometric"])
def test_goals_lie_later_in_the_same_episode_at_whole_model_steps(world: World, goals: str) -> None:
    settings = config(goals=goals, batch_size=3000, mean_goal_steps=1.5)
    batch = HindsightSampler(world.store, TRAIN, config=settings, seed=0).next_batch()
    frames, aims = batch.frames.numpy(), batch.goal_frames.numpy()
    episode = np.searchsorted(world.store.episode_start, frames, side="right") - 1
    assert np.array_equal(episode, np.searchsorted(world.store.episode_start, aims, side="right") - 1)
    assert set(episode) == set(TRAIN)
    ahead = (aims - frames) / BLOCK
    assert np.array_equal(ahead, ahead.astype(int))
    assert ahead.min() == 1
    # five model steps fit into the longest episode from its first frame
    first = ahead[(frames == world.store.episode_start[episode]) & (world.store.episode_len[episode] == 11)]
    shares = np.bincount(first.astype(int), minlength=6)[1:] / len(first)
    assert len(shares) == 5
    expected = [0.2] * 5 if goals == "uniform" else [2 / 3, 2 / 9, 2 / 27, 2 / 81, 1 / 81]
    np.testing.assert_allclose(shares, expected, atol=0.09)


def test_a_batch_holds_what_was_seen_and_done(world: World) -> None:
    batch = HindsightSampler(world.store, TRAIN, config=config(batch_size=5), seed=0).next_batch()
    for row, (frame, goal) in enumerate(zip(batch.frames, batch.goal_frames, strict=True)):
        np.testing.assert_array_equal(batch.features[row], world.store.features[frame])
        np.testing.assert_array_equal(batch.goal_features[row], world.store.features[goal])
        np.testing.assert_array_equal(batch.actions[row], world.dataset.action[frame : frame + BLOCK].reshape(-1))


def test_the_loss_is_huber_on_standardised_actions(world: World) -> None:
    spec = spec_of_data(world.dataset, action_block=BLOCK)
    task = CloningTask(
        config(huber_delta=0.7), spec, num_tokens=world.encoder.num_tokens, embed_dim=world.encoder.embed_dim
    )
    task.fit_statistics(world.store, TRAIN)
    batch = task.sampler(world.store, TRAIN, seed=0).next_batch()
    out = task(batch, torch.Generator())
    heads = [task.head(part.float()[:, None])[:, 0] for part in (batch.features, batch.goal_features)]
    sampler = task.sampler(world.store, TRAIN, seed=0)
    rows = torch.from_numpy(sampler.actions_at(sampler.starts)).double()
    wanted = (batch.actions.double() - rows.mean(0)) / rows.std(0, correction=0)
    error = (task.net(*heads).double() - wanted).abs()
    huber = torch.where(error < 0.7, 0.5 * error**2, 0.7 * (error - 0.35)).mean()
    assert float(out["loss"].detach()) == pytest.approx(float(huber.detach()), rel=1e-4)
    out["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in task.parameters())


def material(world: World, **changes: Any) -> CloningMaterial:
    """All training episodes of the world."""
    parts = {"dataset": world.dataset, "encoder": world.encoder, "store": world.store, "train_ids": TRAIN}
    return CloningMaterial(**{**parts, **changes})


def test_on_a_frozen_head_only_the_decision_is_learned(world: World) -> None:
    head = build_head(CompactHeadConfig(token_dim=4, hidden_dim=16, latent_dim=8), **sizes_of(world.encoder), seed=3)
    head.standardise.fit([torch.from_numpy(world.store.features[:200])])
    before = {name: value.clone() for name, value in head.state_dict().items()}
    nearest = config(goals="geometric", mean_goal_steps=1.0)
    run = {"precision": "32-true", "accelerator": "cpu", "progress": False}
    policy, report = clone(nearest, material(world, val_ids=VAL, head=head), **run)
    assert all(torch.equal(value, before[name]) for name, value in policy.head.state_dict().items())
    assert report.evaluation["val_squared_error"] < 0.85, "1 is to know nothing; the head is random"
    task = CloningTask(config(), policy.spec, num_tokens=1, embed_dim=8, has_latents=True)
    with pytest.raises(ConfigError, match="give the head"):
        task.policy(world.encoder)


def test_it_learns_to_go_where_the_goal_is(world: World) -> None:
    policy, report = clone(
        config(),
        material(world, val_ids=VAL),
        precision="32-true",
        accelerator="cpu",
        progress=False,
    )
    assert report.evaluation["val_squared_error"] < 0.7
    now = torch.from_numpy(spot(np.array([[8.0, 8.0]]).repeat(4, axis=0)))
    towards = np.array([[3.0, 0.0], [-3.0, 0.0], [0.0, 3.0], [0.0, -3.0]])
    actions = policy.act(now, torch.from_numpy(spot(8 + towards))).numpy().reshape(4, BLOCK, 2).mean(axis=1)
    cosine = (actions * towards).sum(1) / np.linalg.norm(actions, axis=1) / np.linalg.norm(towards, axis=1)
    assert cosine.min() > 0.8


class KilledError(Exception):
    """Stands for a kill signal."""


def test_a_killed_run_resumes_to_the_same_bits(world: World, tmp_path: Path) -> None:
    settings = config(steps=6, batch_size=8)

    def train(folder: str, stop: int | None) -> CloningTask:
        def kill(done: int) -> dict[str, float]:
            if done == stop:
                raise KilledError
            return {}

        spec = spec_of_data(world.dataset, action_block=BLOCK)
        sizes = {"num_tokens": world.encoder.num_tokens, "embed_dim": world.encoder.embed_dim}
        task = CloningTask(settings, spec, **sizes)
        task.fit_statistics(world.store, TRAIN)
        fit_config = settings.fit_config(run_dir=str(tmp_path / folder), eval_every=1, precision="32-true")
        fit_config.checkpoint_every = 2
        fit(task, task.sampler(world.store, TRAIN, seed=0), fit_config, evaluate=kill, progress=False)
        return task

    whole = train("whole", None)
    with pytest.raises(KilledError):
        train("half", 5)
    assert json.loads((tmp_path / "half" / "state.json").read_text())["step"] == 4
    resumed = train("half", None)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_a_sampler_continues_where_it_stopped(world: World) -> None:
    whole, resumed = (HindsightSampler(world.store, TRAIN, config=config(), seed=seed) for seed in (0, 9))
    whole.next_batch()
    resumed.load_state_dict(json.loads(json.dumps(whole.state_dict())))
    mine, theirs = whole.next_batch(), resumed.next_batch()
    assert torch.equal(mine.frames, theirs.frames)
    assert torch.equal(mine.goal_frames, theirs.goal_frames)


def test_a_policy_comes_back_bit_for_bit(world: World, tmp_path: Path) -> None:
    policy = small_policy(world, seed=3)
    folder = save_policy(tmp_path / "policy", policy, {"licence": "MIT"})
    loaded = load_policy(folder)
    frames = torch.from_numpy(world.dataset.pixels[:6])
    assert torch.equal(policy.act(frames[:3], frames[3:]), loaded.act(frames[:3], frames[3:]))
    assert loaded.spec == policy.spec
    assert not any(p.requires_grad for p in loaded.parameters())
    assert torch.equal(load_encoder(folder).encode_frames(frames[None]), world.encoder.encode_frames(frames[None]))
    with pytest.raises(CheckpointError, match="'goal_policy', not a world model"):
        load_checkpoint(folder)
    weights = next(folder.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(CheckpointError, match="SHA-256"):
        load_policy(folder)


def test_actions_stay_inside_the_bounds(world: World) -> None:
    policy = small_policy(world)
    policy.action_normalizer.std.fill_(50.0)
    frames = torch.from_numpy(world.dataset.pixels[:20])
    actions = policy.act(frames[:10], frames[10:])
    assert actions.shape == (10, BLOCK * 2)
    assert actions.abs().max() == 1


def test_an_agent_carries_out_a_block_and_looks_again(world: World) -> None:
    policy, pixels = small_policy(world), world.dataset.pixels
    agent = PolicyAgent(policy)
    goals = [Goal(pixels=pixels[40 + i]) for i in range(3)]
    agent.reset(goals, seeds=[0, 1, 2])
    taken = [agent.act({"pixels": pixels[10 * t : 10 * t + 3]}) for t in range(4)]
    aims = torch.from_numpy(pixels[40:43])
    for t in (0, 2):
        frames = torch.from_numpy(pixels[10 * t : 10 * t + 3])
        expected = policy.act(frames, aims).numpy().reshape(3, BLOCK, 2)
        np.testing.assert_array_equal(np.stack(taken[t : t + 2], axis=1), expected)
    assert taken[0].dtype == np.float32

    alone = PolicyAgent(policy)
    alone.reset(goals[1:2], seeds=[5])
    for t in range(4):
        np.testing.assert_array_equal(alone.act({"pixels": pixels[10 * t + 1 : 10 * t + 2]})[0], taken[t][1])


def test_restarting_a_row_leaves_the_others_alone(world: World) -> None:
    policy, pixels = small_policy(world), world.dataset.pixels
    agent, undisturbed = PolicyAgent(policy), PolicyAgent(policy)
    goals = [Goal(pixels=pixels[40]), Goal(pixels=pixels[41])]
    for each in (agent, undisturbed):
        each.reset(goals, seeds=[0, 1])
        each.act({"pixels": pixels[:2]})
    agent.reset([Goal(pixels=pixels[50])], seeds=[7], rows=[1])
    obs = {"pixels": pixels[20:22]}
    mine, theirs = agent.act(obs), undisturbed.act(obs)
    np.testing.assert_array_equal(mine[0], theirs[0])
    fresh = policy.act(torch.from_numpy(pixels[21:22]), torch.from_numpy(pixels[50:51]))[0, :2]
    np.testing.assert_array_equal(mine[1], fresh.numpy())


def test_what_does_not_fit_is_refused(world: World, tmp_path: Path) -> None:
    for field, value in {
        "goals": "all",
        "batch_size": 0,
        "mean_goal_steps": 0.5,
        "huber_delta": 0.0,
        "lr": 0.0,
    }.items():
        with pytest.raises(ConfigError, match=field):
            config(**{field: value})
    with pytest.raises(ConfigError, match="num_layers=0"):
        GoalMLPConfig(num_layers=0)
    with pytest.raises(DataError, match="no episode has more than 99 frames"):
        HindsightSampler(world.store, TRAIN, config=config(action_block=99), seed=0)
    other = build_encoder(ConvEncoderConfig(image_size=SIZE, widths=(4,)))
    with pytest.raises(DataError, match="the store has"):
        clone(config(), material(world, encoder=other))
    policy = small_policy(world)
    with pytest.raises(ConfigError, match=r"pixels must be \(B, 16, 16, 3\) uint8"):
        policy.act(torch.zeros(1, 8, 8, 3, dtype=torch.uint8), torch.zeros(1, 8, 8, 3, dtype=torch.uint8))
    with pytest.raises(ConfigError, match="as many goals as frames, got 2 and 1"):
        policy.act(torch.zeros(1, SIZE, SIZE, 3, dtype=torch.uint8), torch.zeros(2, SIZE, SIZE, 3, dtype=torch.uint8))
    with pytest.raises(ConfigError, match="the goal image must be"):
        PolicyAgent(policy).reset([Goal(pixels=np.zeros((8, 8, 3), np.uint8))], seeds=[0])
    net = GoalMLP(GoalMLPConfig(), latent_dim=8, action_dim=3)
    with pytest.raises(ConfigError, match="actions of width 3"):
        GoalPolicy(world.encoder, policy.head, net, Normalizer(4), policy.spec)
    net = GoalMLP(GoalMLPConfig(), latent_dim=9, action_dim=4)
    with pytest.raises(ConfigError, match="latents of 9 numbers"):
        GoalPolicy(world.encoder, policy.head, net, Normalizer(4), policy.spec)
