"""The pose map by hand, and V-JEPA 2-AC as dynamics of a world model: states follow the kinematics, nothing leaks."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from worldmodel.data.normalize import Normalizer
from worldmodel.errors import ConfigError
from worldmodel.models.ac_dynamics import ACDynamics, ACDynamicsConfig, PoseMap
from worldmodel.models.ac_predictor import normalise_tokens
from worldmodel.models.checkpoint import load_checkpoint, save_checkpoint
from worldmodel.models.frozen_encoders import build_encoder
from worldmodel.models.latent_head import NormHead, NormHeadConfig
from worldmodel.models.pose import pose_change, propagate_pose
from worldmodel.models.vit import ViTConfig
from worldmodel.models.world_model import ModelSpec, WorldModel
from worldmodel.types import Context

BLOCK = 3


def stream(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(name="model")
def _model() -> WorldModel:
    encoder = build_encoder(ViTConfig(image_size=32, embed_dim=24, depth=1, num_heads=2, num_frames=2))
    spec = ModelSpec(
        env_ids=("worldmodel/Reach-v0",),
        action_dim=4,
        action_low=(-1.0,) * 4,
        action_high=(1.0,) * 4,
        action_block=BLOCK,
        image_size=32,
        proprio_names=("gripper_x", "gripper_y", "gripper_z", "opening"),
        latent="patch",
    )
    config = ACDynamicsConfig(latent_dim=24, embed_dim=24, depth=2, num_heads=2, grid_size=4, window=2)
    dynamics = ACDynamics(config, num_tokens=encoder.num_tokens, latent_dim=24, action_dim=4 * BLOCK)
    for weight in dynamics.parameters():  # fresh output layers are nearly silent
        weight.data += 0.05 * torch.randn(weight.shape, generator=stream(weight.numel()))
    head = NormHead(NormHeadConfig(), num_tokens=encoder.num_tokens, embed_dim=24)
    return WorldModel(encoder, head, dynamics, Normalizer(4 * BLOCK), Normalizer(4), spec)


def seen(model: WorldModel, problems: int = 2, frames: int = 2) -> Context:
    pixels = torch.randint(0, 256, (problems, frames, 32, 32, 3), dtype=torch.uint8, generator=stream(0))
    proprio = torch.rand(problems, frames, 4, generator=stream(1)) * torch.tensor([0.3, 0.3, 0.2, 0.04])
    past = 2 * torch.rand(problems, frames - 1, 4 * BLOCK, generator=stream(2)) - 1
    return Context(latent=model.encode(pixels, proprio), actions=past)


def candidates(problems: int = 2, count: int = 3, horizon: int = 2) -> Tensor:
    return 2 * torch.rand(problems, count, horizon, 4 * BLOCK, generator=stream(3)) - 1


def test_the_pose_map_by_hand() -> None:
    pose = PoseMap()
    body = torch.tensor([[0.5, -0.1, 0.2, 0.01]])
    assert pose.poses(body)[0].tolist() == pytest.approx([0.5, -0.1, 0.2, math.pi, 0.0, 0.0, 0.75])
    actions = torch.tensor([[1.0, 0.5, 0.0, -1.0, 1.0, -0.5, 0.25, -1.0]])  # two env actions
    change = pose.changes(actions, 4)[0]
    assert change.tolist() == pytest.approx([0.08, 0.0, 0.01, 0.0, 0.0, 0.0, 0.5])
    after = propagate_pose(pose.poses(body), change[None])
    assert pose.proprio(after, body)[0].tolist() == pytest.approx([0.58, -0.1, 0.21, 0.0], abs=1e-6)
    # commands that are carried out read as the recorded change
    assert torch.allclose(pose_change(pose.poses(body), after)[0, :3], change[:3], atol=1e-6)


def test_an_arm_without_a_gripper() -> None:
    pose = PoseMap(opening=None, grip=None, position=(1, 2, 3), shift=(0, 1, 2), shift_m=0.1)
    body = torch.tensor([9.0, 0.1, 0.2, 0.3])
    assert pose.poses(body).tolist() == pytest.approx([0.1, 0.2, 0.3, math.pi, 0.0, 0.0, 0.0])
    assert pose.changes(torch.ones(3), 3).tolist() == pytest.approx([0.1, 0.1, 0.1, 0.0, 0.0, 0.0, 0.0])
    assert pose.proprio(pose.poses(body), body).tolist() == pytest.approx(body.tolist())


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"position": (0, 1)}, "position must be three"),
        ({"opening": None}, "both None"),
        ({"max_opening_m": 0.0}, "max_opening_m"),
    ],
)
def test_a_pose_map_that_makes_no_sense(change: dict[str, object], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        replace(PoseMap(), **change)  # type: ignore[arg-type]


def test_entries_must_exist() -> None:
    PoseMap().check(4, 4)
    with pytest.raises(ConfigError, match="proprioception that have 3 numbers"):
        PoseMap().check(3, 4)
    with pytest.raises(ConfigError, match="actions that have 2 numbers"):
        PoseMap().check(4, 2)


def test_a_rollout_is_the_network_on_poses(model: WorldModel) -> None:
    context, actions = seen(model), candidates()
    out = model.rollout(context, actions)
    dynamics = model.predictor
    assert isinstance(dynamics, ACDynamics)
    assert out.proprio is not None
    assert context.latent.proprio is not None
    pose, body = dynamics.config, context.latent.proprio
    for problem in range(2):
        for candidate in range(3):
            z, poses = context.latent.visual[problem][None], pose.poses(body[problem])[None]
            taken = pose.changes(context.actions[problem], 4)[None]
            for step in range(2):
                change = pose.changes(actions[problem, candidate, step], 4)[None, None]
                taken = torch.cat([taken, change], dim=1)
                following = normalise_tokens(dynamics.network(z, taken, poses)[:, -1:])
                z = torch.cat([z, following], dim=1)
                poses = torch.cat([poses, propagate_pose(poses[:, -1:], change)], dim=1)
                assert torch.allclose(out.visual[problem, candidate, step], following[0, 0], atol=1e-5)
                assert torch.allclose(out.proprio[problem, candidate, step, :3], poses[0, -1, :3], atol=1e-6)


def test_plans_do_not_depend_on_the_company(model: WorldModel) -> None:
    context, actions = seen(model), candidates()
    together = model.rollout(context, actions)
    for row in range(2):
        assert context.latent.proprio is not None
        own = Context(
            latent=replace(
                context.latent, visual=context.latent.visual[row][None], proprio=context.latent.proprio[row][None]
            ),
            actions=context.actions[row][None],
        )
        alone = model.rollout(own, actions[row][None])
        assert torch.equal(alone.visual[0], together.visual[row])
        assert alone.proprio is not None
        assert together.proprio is not None
        assert torch.equal(alone.proprio[0], together.proprio[row])


def test_states_matter_and_must_be_there(model: WorldModel) -> None:
    context, actions = seen(model), candidates()
    before = model.rollout(context, actions).visual
    assert context.latent.proprio is not None
    moved = replace(context.latent, proprio=context.latent.proprio + 0.1)
    assert not torch.allclose(model.rollout(Context(latent=moved, actions=context.actions), actions).visual, before)
    blind = Context(latent=replace(context.latent, proprio=None), actions=context.actions)
    with pytest.raises(ConfigError, match="proprioception"):
        model.rollout(blind, actions)
    with pytest.raises(ConfigError, match="rollout_from"):
        model.predictor(context.latent.visual, actions[:, 0])
    with pytest.raises(ConfigError, match="rollout_from"):
        model.predictor.rollout(context.latent.visual, context.actions, actions)


def test_gradients_reach_the_actions(model: WorldModel) -> None:
    actions = candidates().requires_grad_()
    model.rollout(seen(model), actions).visual.square().sum().backward()
    assert actions.grad is not None
    assert float(actions.grad.abs().max()) > 0


def test_a_checkpoint_is_the_identity(model: WorldModel, tmp_path: Path) -> None:
    again = load_checkpoint(save_checkpoint(tmp_path / "ac", model, {"note": "random"}))
    context, actions = seen(model), candidates()
    assert torch.equal(again.rollout(context, actions).visual, model.rollout(context, actions).visual)


def test_sizes_must_fit() -> None:
    config = ACDynamicsConfig(latent_dim=24, embed_dim=24, depth=1, num_heads=2)
    with pytest.raises(ConfigError, match="square number"):
        ACDynamics(config, num_tokens=15, latent_dim=24, action_dim=12)
    with pytest.raises(ConfigError, match="width 24"):
        ACDynamics(config, num_tokens=16, latent_dim=32, action_dim=12)
    with pytest.raises(ConfigError, match="whole env actions"):
        ACDynamics(config, num_tokens=16, latent_dim=24, action_dim=13)
    with pytest.raises(ConfigError, match="uses_extrinsics"):
        ACDynamicsConfig(uses_extrinsics=True)
    with pytest.raises(ConfigError, match="window"):
        ACDynamicsConfig(window=0)
