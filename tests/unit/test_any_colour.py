"""A student that gives its teacher's features whatever the colours, and the colours it is shown."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from worldmodel.commands.pretrain import Settings
from worldmodel.errors import ConfigError
from worldmodel.learning.any_colour import AnyColourConfig, AnyColourTask
from worldmodel.learning.disguise import recoloured_parts
from worldmodel.models.encoders import VideoViT
from worldmodel.models.latent_head import CompactHeadConfig, build_head
from worldmodel.models.masked_predictor import MaskedPredictorConfig
from worldmodel.models.vit import ViTConfig

ENCODER = ViTConfig(image_size=16, patch_size=4, num_frames=4, embed_dim=24, depth=2, num_heads=2)
PREDICTOR = MaskedPredictorConfig(embed_dim=12, depth=1, num_heads=2)


@dataclass(frozen=True, kw_only=True)
class Clips:
    pixels: Tensor
    episode: Tensor


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def clips(batch: int = 8, seed: int = 0) -> Clips:
    """A red square at random places of a grey table below a blue wall."""
    pixels = torch.full((batch, 4, 16, 16, 3), 150, dtype=torch.uint8)
    pixels[:, :, :6] = torch.tensor([30, 40, 160], dtype=torch.uint8)
    places = torch.randint(6, 13, (batch, 4, 2), generator=stream(seed))
    for row in range(batch):
        for time in range(4):
            y, x = places[row, time].tolist()
            pixels[row, time, y : y + 3, x : x + 3] = torch.tensor([210, 40, 30], dtype=torch.uint8)
    return Clips(pixels=pixels, episode=torch.zeros(batch, dtype=torch.long))


def make(teacher_seed: int = 7, **changes: object) -> AnyColourTask:
    config = AnyColourConfig(predictor=PREDICTOR, **changes)  # type: ignore[arg-type]
    task = AnyColourTask(ENCODER, config, VideoViT(ENCODER, seed=teacher_seed))
    task(clips(64), stream())  # statistics of the targets
    return task


def loss(task: AnyColourTask) -> float:
    return float(task.eval()(clips(16, seed=1), stream(1))["loss"].detach())


def test_the_student_starts_as_its_teacher_and_is_right_about_the_colours_it_knows() -> None:
    for changes in ({"recolour_share": 0.0}, {"recolour": 0.0}):
        assert loss(make(**changes)) < 1e-6
    for parts in (0.0, 1.0):
        assert loss(make(recolour_parts=parts, recolour_share=1.0)) > 0.05
    task = make()
    for network in (task.encoder, task.result):
        assert all(torch.equal(a, b) for a, b in zip(network.parameters(), task.teacher.parameters(), strict=True))


def test_it_learns_to_ignore_colours() -> None:
    task = make()
    before = loss(task)
    optimiser = torch.optim.Adam([weight for weight in task.parameters() if weight.requires_grad], lr=2e-3)
    task.train()
    for step in range(150):
        optimiser.zero_grad()
        task(clips(16, seed=step), stream(step))["loss"].backward()
        optimiser.step()
        task.after_step(step + 1, 150)
    assert loss(task) < 0.5 * before
    assert all(weight.grad is None for weight in (*task.teacher.parameters(), *task.predictor.parameters()))


def test_health_is_judged_on_other_colours() -> None:
    task = make().eval()
    batch = clips(6)
    prediction, target, motion = task.predict(batch, stream())
    assert prediction.shape == target.shape == (6, 16, 24)
    assert motion.shape == (6, 16)
    assert not torch.equal(prediction, target)
    first = clips(6)
    first.pixels[:, 1:] = 0  # only the first frame of a clip is judged
    assert torch.equal(task.predict(first, stream())[1], target)


def test_the_planning_latent_counts_as_well() -> None:
    config = AnyColourConfig(predictor=PREDICTOR, latent_weight=0.5, path="a model")
    head = build_head(CompactHeadConfig(token_dim=4, hidden_dim=16, latent_dim=6), num_tokens=16, embed_dim=24, seed=0)
    teacher = VideoViT(ENCODER, seed=7)
    task = AnyColourTask(ENCODER, config, teacher, head=head)
    parts = task(clips(), stream())
    assert torch.allclose(parts["loss"], parts["features"] + 0.5 * parts["latent"])
    batch = clips()
    view = task._take_apart(task._view(batch))
    wanted = head(teacher.encode_frames(batch.pixels[:, :: ENCODER.tubelet_size]).flatten(0, 1))
    assert task.head is not None
    assert torch.allclose(task._latent(task.raw_targets(view)), wanted, atol=1e-5)
    parts["latent"].backward()
    assert task.encoder.patch_embed.proj.weight.grad is not None
    assert all(weight.grad is None for weight in task.head.parameters())
    with pytest.raises(ConfigError, match="an encoder has no latent"):
        AnyColourTask(ENCODER, config, teacher)
    with pytest.raises(ConfigError, match="needs the world model whose latent it is"):
        AnyColourConfig(latent_weight=1.0)


def test_what_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"single_frame_fraction must be 1, got 0\.5"):
        AnyColourConfig(single_frame_fraction=0.5)
    with pytest.raises(ConfigError, match="architectures must agree"):
        AnyColourTask(ENCODER, AnyColourConfig(predictor=PREDICTOR), VideoViT(replace(ENCODER, depth=1)))
    tapped = replace(ENCODER, taps=(0, 1))
    with pytest.raises(ConfigError, match="taps must be empty"):
        AnyColourTask(tapped, AnyColourConfig(predictor=PREDICTOR), VideoViT(tapped))
    with pytest.raises(ConfigError, match="taps must be empty"):
        Settings(data="push.h5", target=AnyColourConfig(), encoder=tapped)


def test_parts_change_colours_that_belong_together() -> None:
    batch = clips(256)
    video = batch.pixels.permute(0, 1, 4, 2, 3).float() / 255
    seen = recoloured_parts(video, 2, stream())
    assert seen.shape == video.shape
    assert seen.min() >= 0
    assert seen.max() <= 1
    assert torch.equal(seen, recoloured_parts(video, 2, stream()))
    same = recoloured_parts(video[:, :1].expand_as(video), 2, stream())
    assert torch.equal(same[:, 0], same[:, 1])  # a tubelet shares its colours
    assert not torch.equal(same[:, 0], same[:, 2])
    frame, before = seen[:, 0], video[:, 0]
    wall = frame[:, :, :6].flatten(2)
    assert (wall - wall[..., :1]).abs().max() < 1e-6  # one colour stays one colour
    red = (before == video.new_tensor([210 / 255, 40 / 255, 30 / 255])[:, None, None]).all(dim=1)
    moved = {
        "wall": (wall[..., 0] - before[:, :, 0, 0]).abs().amax(dim=1) > 0.05,
        "block": torch.stack([(a - b).abs()[:, m].max() > 0.05 for a, b, m in zip(frame, before, red, strict=True)]),
    }
    assert 0.3 < moved["block"].float().mean() < 0.95  # small as it is, and not always
    alone = moved["block"] != moved["wall"]
    assert alone.float().mean() > 0.1  # colours change independently of each other
