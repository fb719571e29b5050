"""Runs made to fail in a known way get the right verdict early; healthy ones never get a bad one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from worldmodel.learning.diagnostics import Diagnosis, Verdict, diagnose, reference_health, task_health
from worldmodel.learning.fit import FitConfig, fit
from worldmodel.learning.masking import MaskConfig
from worldmodel.learning.online import OnlineConfig
from worldmodel.learning.pixels import PixelsConfig
from worldmodel.learning.targets import TargetConfig, build_task
from worldmodel.learning.vjepa import VJEPAConfig
from worldmodel.models.masked_predictor import MaskedPredictorConfig
from worldmodel.models.vit import ViTConfig

ENCODER = ViTConfig(image_size=32, patch_size=8, num_frames=4, embed_dim=48, depth=2, num_heads=2)
SHARED: dict[str, Any] = {
    "predictor": MaskedPredictorConfig(embed_dim=32, depth=2, num_heads=2),
    "mask": MaskConfig(num_blocks=(3,), spatial_scale=(0.2,)),
}
EPISODES, LENGTH = 96, 24


@dataclass(frozen=True, kw_only=True)
class Clips:
    pixels: Tensor
    episode: Tensor


class World:
    """Two bright discs that drift over a table.

    Args:
        coloured: Draw the colours of table and discs once per episode; else they are the same in all.
    """

    def __init__(self, *, coloured: bool = False) -> None:
        stream = torch.Generator().manual_seed(3)
        grid = torch.stack(torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij"))
        table = (60 + 40 * (grid[0] > 16).float())[..., None].expand(EPISODES, -1, -1, 3)
        discs = torch.tensor([[230.0, 40.0, 30.0], [30.0, 60.0, 230.0]]).expand(EPISODES, -1, -1)
        if coloured:
            colours = torch.Generator().manual_seed(9)
            discs = torch.rand(EPISODES, 2, 3, generator=colours) * 255
            table = table + torch.rand(EPISODES, 1, 1, 3, generator=colours) * 150 - 50
        place = torch.rand(EPISODES, 2, 2, generator=stream) * 24 + 4
        speed = torch.randn(EPISODES, 2, 2, generator=stream) * 1.2
        self.pixels = torch.zeros(EPISODES, LENGTH, 32, 32, 3, dtype=torch.uint8)
        for time in range(LENGTH):
            frame = table
            for disc in range(2):
                distance = (grid[None] - place[:, disc, :, None, None]).norm(dim=1)
                frame = torch.where((distance < 4)[..., None], discs[:, disc, None, None], frame)
            self.pixels[:, time] = frame.clamp(0, 255).to(torch.uint8)
            place = place + speed
            outside = (place < 4) | (place > 28)
            speed = torch.where(outside, -speed, speed)
            place = place.clamp(4, 28)
        self.background = self.pixels.median(dim=1).values
        self.held_out = torch.arange(EPISODES - 24, EPISODES)

    def clips(self, episodes: Tensor, first: Tensor) -> Clips:
        times = first[:, None] + torch.arange(4)
        return Clips(pixels=self.pixels[episodes[:, None], times], episode=episodes)

    def moments(self) -> Clips:
        times = torch.tensor([0, 0, LENGTH - 1, LENGTH - 1]).expand(len(self.held_out), -1)
        return Clips(pixels=self.pixels[self.held_out[:, None], times], episode=self.held_out)


class Source:
    def __init__(self, world: World, seed: int) -> None:
        self.world, self.stream = world, torch.Generator().manual_seed(seed)

    def next_batch(self) -> Clips:
        episodes = torch.randint(EPISODES - 24, (32,), generator=self.stream)
        return self.world.clips(episodes, torch.randint(LENGTH - 3, (32,), generator=self.stream))

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        raise AssertionError("nothing is resumed here")


def verdicts(
    config: TargetConfig,
    *,
    steps: int,
    lr: float = 1e-3,
    stop: int | None = None,
    seed: int = 0,
    coloured: bool = False,
) -> list[Diagnosis]:
    """Diagnoses every 5 % of a run of `steps` steps, which is cut after `stop`."""
    world = World(coloured=coloured)
    task = build_task(ENCODER, config, background=world.background, seed=seed)
    first = torch.zeros(len(world.held_out), dtype=torch.long)
    clips = world.clips(world.held_out, first + 8)
    reference = reference_health(task, clips, world.moments())
    found: list[Diagnosis] = []

    def check(step: int) -> dict[str, float]:
        health = task_health(task, clips, world.moments(), torch.Generator().manual_seed(0))
        found.append(diagnose(health, reference, done=step / steps))
        return {}

    fit(
        task,
        Source(world, seed),
        FitConfig(
            steps=stop or steps, lr=lr, warmup_steps=10, eval_every=max(1, steps // 20), seed=seed, accelerator="cpu"
        ),
        evaluate=check,
    )
    return found


REPAIRED: dict[str, Any] = {
    "loss_exp": 2,
    "standardise_targets": True,
    "motion_weight": 10.0,
    "single_frame_fraction": 0.375,
    "context_loss_weight": 0.5,
    "ema_start": 0.996,
}


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_a_healthy_run_is_called_healthy_all_along(seed: int) -> None:
    found = verdicts(VJEPAConfig(**SHARED, **REPAIRED), steps=400, seed=seed)
    assert {diagnosis.verdict for diagnosis in found} == {Verdict.HEALTHY}, [diagnosis.line for diagnosis in found]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "steps"),
    [
        pytest.param(PixelsConfig(**SHARED), 200, id="pixels: features of few directions, targets that never move"),
        pytest.param(VJEPAConfig(**SHARED), 80, id="the published loss with its slow copy"),
    ],
)
def test_a_run_whose_targets_keep_their_variety_is_never_called_collapsed(config: TargetConfig, steps: int) -> None:
    found = verdicts(config, steps=400, stop=steps)
    assert {diagnosis.verdict for diagnosis in found} <= {Verdict.HEALTHY, Verdict.UNDER_TRAINED}, [
        diagnosis.line for diagnosis in found
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "expected"),
    [
        pytest.param(
            {"config": VJEPAConfig(**SHARED, **REPAIRED), "steps": 400, "lr": 3e-2},
            {Verdict.DIMENSIONAL, Verdict.POSITIONAL},
            id="learning rate x 30",
        ),
        pytest.param(
            {"config": VJEPAConfig(**SHARED, **REPAIRED), "steps": 50}, {Verdict.UNDER_TRAINED}, id="50 steps"
        ),
        pytest.param(
            {"config": VJEPAConfig(**SHARED, ema_start=0.0, ema_end=0.0), "steps": 400},
            {Verdict.POSITIONAL},
            id="no EMA",
        ),
        pytest.param(
            {"config": OnlineConfig(**SHARED, centred=False, sigreg_weight=0.05), "steps": 400, "coloured": True},
            {Verdict.SLOW},
            id="colours per episode",
        ),
    ],
)
def test_a_run_made_to_fail_is_found_out_early(case: dict[str, Any], expected: set[Verdict]) -> None:
    found = verdicts(**case, stop=case["steps"] // 5)
    assert found[-1].verdict in expected, [diagnosis.line for diagnosis in found]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "is_kept"),
    [
        pytest.param(OnlineConfig(**SHARED), True, id="default"),
        pytest.param(OnlineConfig(**SHARED, sigreg_weight=0.05), False, id="a tenth"),
    ],
)
def test_the_default_weight_of_sigreg_keeps_targets_of_32_clips_apart(config: OnlineConfig, is_kept: bool) -> None:
    world = World()
    task = build_task(ENCODER, config, background=world.background, seed=0)
    clips = world.clips(world.held_out, torch.full_like(world.held_out, 8))
    start = reference_health(task, clips, world.moments()).target_std
    fit(task, Source(world, 0), FitConfig(steps=40, lr=1e-3, warmup_steps=10, seed=0, accelerator="cpu"))
    end = task_health(task, clips, world.moments(), torch.Generator().manual_seed(0)).target_std
    assert end > start if is_kept else end < 0.4 * start, (start, end)
