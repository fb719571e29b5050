"""A masked predictor asked about the future of short clips."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from worldmodel.envs.violations import Clip, Timing
from worldmodel.errors import ConfigError
from worldmodel.evaluation.masked_surprise import MaskedSurprise
from worldmodel.learning.pixels import PixelsConfig, PixelsTask
from worldmodel.learning.vjepa import VJEPAConfig, VJEPATask
from worldmodel.models.masked_predictor import MaskedPredictorConfig
from worldmodel.models.vit import ViTConfig

VIT = ViTConfig(image_size=16, patch_size=8, num_frames=4, embed_dim=24, depth=1, num_heads=2)
PREDICTOR = MaskedPredictorConfig(embed_dim=12, depth=1, num_heads=2)
TIMING = Timing(before=2, after=2, action_block=3, every=1)


def clip_of(seed: int = 0) -> Clip:
    nothing: Any = np.zeros(0)
    pixels = np.random.default_rng(seed).integers(0, 256, (TIMING.steps + 1, 16, 16, 3), dtype=np.uint8)
    return Clip(pixels=pixels, actions=nothing, states=nothing, gripper=nothing, object=nothing, contact=nothing)


@pytest.mark.parametrize("kind", ["vjepa", "pixels"])
def test_the_late_frames_are_predicted_from_the_early_ones(kind: str) -> None:
    task = (
        VJEPATask(VIT, VJEPAConfig(predictor=PREDICTOR, loss_exp=2))
        if kind == "vjepa"
        else PixelsTask(VIT, PixelsConfig(predictor=PREDICTOR))
    )
    before = {name: value.clone() for name, value in task.state_dict().items()}
    judge, clip = MaskedSurprise(task, 2), clip_of()
    surprise = judge(clip, TIMING)
    assert surprise.shape == (4,)
    assert (surprise > 0).all()
    assert np.array_equal(judge(clip, TIMING), surprise)
    assert all(torch.equal(value, before[name]) for name, value in task.state_dict().items()), "nothing is learned"
    # The clip of model step 3 is made of control steps 3, 5, 7 and 9: nothing else reaches its surprise.
    for step in range(TIMING.steps + 1):
        changed = clip.pixels.copy()
        changed[step] = 255 - changed[step]
        moved = judge(replace(clip, pixels=changed), TIMING)[2] != surprise[2]
        assert moved == (step in (3, 5, 7, 9)), step
    # That of step 1 begins before the start: control steps 0, 0, 1 and 3.
    changed = clip.pixels.copy()
    changed[2] = 255 - changed[2]
    assert judge(replace(clip, pixels=changed), TIMING)[0] == surprise[0]


def test_what_cannot_be_asked_is_refused() -> None:
    short = VJEPATask(replace(VIT, num_frames=2), VJEPAConfig(predictor=PREDICTOR))
    with pytest.raises(ConfigError, match="have no future to predict"):
        MaskedSurprise(short, 2)
    known = VJEPATask(VIT, VJEPAConfig(predictor=PREDICTOR), background=torch.zeros(1, 16, 16, 3, dtype=torch.uint8))
    with pytest.raises(ConfigError, match="build the task without backgrounds"):
        MaskedSurprise(known, 2)
    judge = MaskedSurprise(VJEPATask(VIT, VJEPAConfig(predictor=PREDICTOR)), 2)
    with pytest.raises(ConfigError, match="film with every=1"):
        judge(clip_of(), replace(TIMING, every=None))
