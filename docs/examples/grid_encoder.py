"""Colours in the cells of a grid as an encoder: mean and spread of each channel."""

from dataclasses import dataclass

import torch

from worldmodel.cli import main
from worldmodel.commands.run import Run
from worldmodel.commands.train import Settings, TemporalDistanceTraining, run
from worldmodel.models.encoders import Encoder, check_frames
from worldmodel.models.frozen_encoders import register_encoder
from worldmodel.testing import check_encoder


@dataclass(kw_only=True)
class GridConfig:
    image_size: int = 64
    cell: int = 8


class GridEncoder(Encoder):
    def __init__(self, config):
        super().__init__()
        self.config, self.image_size, self.embed_dim = config, config.image_size, 6
        self.num_tokens, self.cell = (config.image_size // config.cell) ** 2, config.cell

    def encode_frames(self, pixels):  # (B, T, Y, X, 3) uint8 -> (B, T, N, D); every frame on its own
        check_frames(pixels, self.image_size)
        cells = (pixels / 255).unfold(2, self.cell, self.cell).unfold(3, self.cell, self.cell).flatten(5).flatten(2, 3)
        return torch.cat([cells.mean(dim=-1), cells.std(dim=-1)], dim=-1)


register_encoder(GridConfig, GridEncoder)  # by this name checkpoints find it

if __name__ == "__main__":
    check_encoder(GridEncoder(GridConfig()))
    main("collect env=worldmodel.testing:worldmodel/PointMass-v0 expert_fraction=0 episodes=20 out=dots.h5".split())
    settings = {"batch_size": 16, "steps": 40, "temporal_distance": TemporalDistanceTraining(steps=40)}
    run(Settings(data="dots.h5", encoder=GridConfig(), **settings), Run.at("grid"))
    main("plan env=worldmodel/PointMass-v0 checkpoint=grid/checkpoint planner.num_samples=50 run_dir=grid_plan".split())
