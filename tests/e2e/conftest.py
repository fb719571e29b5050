"""A checkpoint that has learned nothing and a manifest of two tasks, for tests of what is around them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from worldmodel.data.normalize import Normalizer
from worldmodel.envs import make_env
from worldmodel.evaluation.manifest import build_manifest
from worldmodel.models.action_predictor import ResidualMLPConfig, ResidualMLPPredictor
from worldmodel.models.checkpoint import save_checkpoint
from worldmodel.models.frozen_encoders import build_encoder
from worldmodel.models.latent_head import CompactHead, CompactHeadConfig
from worldmodel.models.vit import ViTConfig
from worldmodel.models.world_model import ModelSpec, WorldModel


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an untrained world model for Reach at 32 x 32 pixels."""
    config = ViTConfig(image_size=32, embed_dim=48, depth=1, num_heads=2, num_frames=2)
    encoder = build_encoder(config)
    spec = ModelSpec(
        env_ids=("worldmodel/Reach-v0",),
        action_dim=4,
        action_low=(-1.0,) * 4,
        action_high=(1.0,) * 4,
        action_block=3,
        image_size=32,
        proprio_names=("gripper_x", "gripper_y", "gripper_z", "opening"),
        latent="compact",
    )
    head = CompactHead(
        CompactHeadConfig(token_dim=8, hidden_dim=32, latent_dim=16),
        num_tokens=encoder.num_tokens,
        embed_dim=encoder.embed_dim,
    )
    head.standardise.fit(iter([encoder.encode_frames(torch.zeros(4, 1, 32, 32, 3, dtype=torch.uint8))[:, 0]]))
    predictor = ResidualMLPPredictor(
        ResidualMLPConfig(hidden_dim=32, num_blocks=1), latent_dim=16, action_dim=spec.flat_action_dim
    )
    model = WorldModel(encoder, head, predictor, Normalizer(spec.flat_action_dim), Normalizer(4), spec)
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny", model, {"note": "untrained"})


@pytest.fixture(scope="session")
def small_manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two Reach tasks without baselines."""
    path = tmp_path_factory.mktemp("manifest") / "reach.json"
    env = make_env("reach", render=False)
    build_manifest(env, episodes=2).save(path)
    env.close()
    return path
