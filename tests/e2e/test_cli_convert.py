"""`worldmodel convert`: round trips through every format keep every bit, and what a format cannot say is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from worldmodel.cli import main
from worldmodel.models.ac_predictor import ACPredictor, ACPredictorConfig
from worldmodel.models.checkpoint import load_encoder, read_card
from worldmodel.models.encoders import VideoViT
from worldmodel.models.masked_predictor import MaskedPredictor, MaskedPredictorConfig
from worldmodel.models.pretrained import Pretrained, load_pretrained, save_pretrained
from worldmodel.models.vit import ViTConfig

HEADS = ["num_heads=2", "num_frames=4", "image_size=16"]


def source(folder: Path, *, predictor: str, pos_embed: str = "rope") -> Path:
    """A checkpoint of this project with random weights and a predictor (or none)."""
    config = ViTConfig(
        image_size=16,
        patch_size=8,
        num_frames=4,
        embed_dim=24,
        depth=2,
        num_heads=2,
        pos_embed=pos_embed,
        rope_tiled=pos_embed == "rope",
    )
    encoder = VideoViT(config, seed=3)
    chosen: MaskedPredictor | ACPredictor | None = None
    if predictor == "masked":
        heads = 2 if pos_embed == "sincos" else 12  # V-JEPA 1's predictor has the encoder's heads, V-JEPA 2's 12
        sizes = MaskedPredictorConfig(embed_dim=72, depth=1, num_heads=heads, num_mask_tokens=3)
        chosen = MaskedPredictor(sizes, config, seed=4)
    elif predictor == "ac":
        chosen = ACPredictor(ACPredictorConfig(latent_dim=24, embed_dim=128, depth=2, num_heads=2), seed=5)
    return save_pretrained(folder, Pretrained(encoder, chosen), {"licence": "test", "source": "random"})


def convert(capsys: pytest.CaptureFixture[str], *overrides: str) -> tuple[int, dict[str, Any], str]:
    status = main(["convert", *overrides, "run_dir=run", "--json"])
    said = capsys.readouterr()
    return status, json.loads(said.out) if status == 0 else {}, said.err


@pytest.mark.parametrize(
    ("to", "predictor", "pos_embed"),
    [
        ("vjepa1", "masked", "sincos"),
        ("vjepa2", "masked", "rope"),
        ("vjepa2_ac", "ac", "rope"),
        ("huggingface", "masked", "rope"),
        ("vjepa2", "none", "rope"),
    ],
)
def test_there_and_back_keeps_every_bit(
    to: str,
    predictor: str,
    pos_embed: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    before = load_pretrained(source(tmp_path / "ours", predictor=predictor, pos_embed=pos_embed))
    status, record, _ = convert(capsys, "path=ours", f"to={to}", "out=theirs")
    assert status == 0
    assert record["source"] == "worldmodel"
    assert record["to"] == to
    assert record["parameters"]["encoder"] == sum(weight.numel() for weight in before.encoder.parameters())
    kind = [] if to == "huggingface" else [f"format={to}", *HEADS]
    status, record, _ = convert(capsys, "path=theirs", *kind, "out=again", "licence=CC-BY-NC")
    assert status == 0
    assert record["source"] == to
    after = load_pretrained(tmp_path / "again")
    assert after.encoder.config == before.encoder.config
    old, new = before.state_dict(), after.state_dict()
    assert set(old) == set(new)
    assert all(torch.equal(old[name], new[name]) for name in old)
    card = read_card(tmp_path / "again")
    assert card["training"]["licence"] == "CC-BY-NC"
    assert card["training"]["source"] == {"path": "theirs", "format": to}
    clip = torch.randint(0, 256, (1, 2, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    encoder = load_encoder(tmp_path / "again")
    assert torch.equal(encoder.encode_frames(clip), before.encoder.encode_frames(clip))


@pytest.mark.parametrize(
    ("predictor", "pos_embed", "to", "words"),
    [
        ("masked", "rope", "vjepa1", ["pos_embed=sincos", "pos_embed=rope"]),
        ("masked", "sincos", "huggingface", ["rope_tiled=true", "pos_embed=sincos"]),
        ("ac", "rope", "huggingface", ["action-conditioned", "huggingface"]),
        ("masked", "rope", "vjepa2_ac", ["masked predictor", "vjepa2_ac"]),
        ("none", "rope", "safetensor", ["safetensor", "vjepa2_ac"]),
    ],
)
def test_what_a_format_cannot_say_is_refused(
    predictor: str,
    pos_embed: str,
    to: str,
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    source(tmp_path / "ours", predictor=predictor, pos_embed=pos_embed)
    status, _, said = convert(capsys, "path=ours", f"to={to}", "out=theirs")
    assert status == 2
    assert all(word in said for word in words), said
    assert not (tmp_path / "theirs").exists()


def test_bad_input_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    source(tmp_path / "ours", predictor="none")
    for overrides, words in (
        (["path=nowhere.pt", "format=vjepa2", "out=x"], ["nowhere.pt", "download"]),
        (["path=nowhere", "out=x"], ["nowhere"]),
        (["path=ours", "out=ours"], ["ours", "exists"]),
        (["path=ours", "format=huggingface", "out=x"], ["format", "vjepa2_ac", "huggingface"]),
        (["path=shipped", "to=vjepa2", "out=x"], ["rope_tiled"]),
    ):
        status, _, said = convert(capsys, *overrides)
        assert status == 2
        assert len(said.strip().splitlines()) == 1, said
        assert all(word in said for word in words), said
