"""What every encoder must satisfy, on random sizes and frames."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worldmodel.models.encoders import Encoder
from worldmodel.models.frozen_encoders import ConvEncoderConfig, PatchEncoderConfig, TimmEncoderConfig, build_encoder
from worldmodel.models.vit import ViTConfig

ENCODERS: dict[str, Encoder] = {
    "rope": build_encoder(ViTConfig(image_size=16, patch_size=8, num_frames=4, embed_dim=24, depth=2, num_heads=2)),
    "sincos": build_encoder(
        ViTConfig(
            image_size=16,
            patch_size=4,
            num_frames=4,
            embed_dim=24,
            depth=2,
            num_heads=2,
            pos_embed="sincos",
            taps=(0, 1),
        )
    ),
    "pixels": build_encoder(PatchEncoderConfig(image_size=16, patch_size=8)),
    "conv": build_encoder(ConvEncoderConfig(image_size=16, widths=(8, 12))),
    "timm": build_encoder(TimmEncoderConfig(name="resnet10t", image_size=16)),
}


def frames(seed: int, batch: int, time: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, time, 16, 16, 3), generator=generator, dtype=torch.uint8)


@settings(max_examples=12, deadline=None)
@given(
    name=st.sampled_from(sorted(ENCODERS)),
    seed=st.integers(0, 1000),
    batch=st.integers(1, 3),
    time=st.integers(2, 4),
    data=st.data(),
)
def test_frames_do_not_see_each_other(name: str, seed: int, batch: int, time: int, data: st.DataObject) -> None:
    """Changing one frame changes its own tokens only: no leak from the future, nor from the past."""
    encoder = ENCODERS[name]
    pixels = frames(seed, batch, time)
    changed_frame = data.draw(st.integers(0, time - 1))
    changed = pixels.clone()
    changed[:, changed_frame] = 255 - changed[:, changed_frame]
    with torch.no_grad():
        before, after = encoder.encode_frames(pixels), encoder.encode_frames(changed)
    assert before.shape == (batch, time, encoder.num_tokens, encoder.embed_dim)
    same = [t for t in range(time) if t != changed_frame]
    assert torch.equal(before[:, same], after[:, same])
    assert not torch.equal(before[:, changed_frame], after[:, changed_frame])


@settings(max_examples=12, deadline=None)
@given(name=st.sampled_from(sorted(ENCODERS)), seed=st.integers(0, 1000))
def test_clips_do_not_see_each_other(name: str, seed: int) -> None:
    encoder = ENCODERS[name]
    pixels = frames(seed, 3, 2)
    order = torch.tensor([2, 0, 1])
    with torch.no_grad():
        out, permuted = encoder.encode_frames(pixels), encoder.encode_frames(pixels[order])
        again = encoder.encode_frames(pixels)
    assert torch.allclose(out[order], permuted, atol=1e-5)
    assert torch.equal(out, again)


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 1000), kept=st.integers(1, 8))
def test_the_order_of_kept_tokens_is_irrelevant(seed: int, kept: int) -> None:
    """Positions come from the ids, so permuting the ids permutes the outputs."""
    encoder = ENCODERS["rope"]
    video = frames(seed, 1, 4).permute(0, 1, 4, 2, 3).float() / 255
    keep = torch.randperm(8, generator=torch.Generator().manual_seed(seed))[:kept].unsqueeze(0)
    order = torch.randperm(kept, generator=torch.Generator().manual_seed(seed + 1))
    with torch.no_grad():
        assert torch.allclose(encoder(video, keep)[:, order], encoder(video, keep[:, order]), atol=1e-5)
