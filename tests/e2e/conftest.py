"""A checkpoint that has learned nothing and a manifest of two tasks, for tests of what is around them."""

from __future__ import annotations

import multiprocessing
import shutil
import subprocess
import sys
import zipfile
from multiprocessing.context import ForkServerContext
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


@pytest.fixture(scope="session")
def fresh_processes() -> ForkServerContext:
    """Processes that can be killed and need not import everything again: children of a server that has done nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["worldmodel.commands.pretrain", "worldmodel.evaluation.evaluate", "worldmodel.cli"])
    return context


@pytest.fixture(scope="session")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy, so that no build folder appears in the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "source"
    copy.mkdir()
    for name in ("worldmodel", "envs", "planners", "configs"):
        shutil.copytree(root / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, copy / name)
    options = ["--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", str(folder)]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", *options, str(copy)], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="session")
def wheel_path(wheel: Path) -> Path:
    """Folder with what the wheel installs; in front of PYTHONPATH it hides the checkout."""
    folder = wheel.parent / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder
