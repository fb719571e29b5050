"""Released formats with synthetic weights in their exact layouts: what goes in comes out, in the right place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from worldmodel.commands.material import make_encoder
from worldmodel.errors import CheckpointError, ConfigError
from worldmodel.models.ac_predictor import ACPredictor
from worldmodel.models.checkpoint import load_encoder, save_encoder
from worldmodel.models.masked_predictor import MaskedPredictor
from worldmodel.models.pretrained import (
    OfficialEncoderConfig,
    Pretrained,
    export_huggingface,
    export_original,
    import_official,
    load_pretrained,
    original_state,
    save_pretrained,
)
from worldmodel.models.pretrained_keys import mlp_ratio
from worldmodel.models.vit import ViTConfig, position_table

WIDTH, HEADS, PATCH, NARROW = 24, 2, 4, 72
SIZE, FRAMES = 8, 4


def block(prefix: str, width: int, hidden: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of one block, vjepa.md 4.3."""
    return {
        f"{prefix}.norm1.weight": (width,),
        f"{prefix}.norm1.bias": (width,),
        f"{prefix}.attn.qkv.weight": (3 * width, width),
        f"{prefix}.attn.qkv.bias": (3 * width,),
        f"{prefix}.attn.proj.weight": (width, width),
        f"{prefix}.attn.proj.bias": (width,),
        f"{prefix}.norm2.weight": (width,),
        f"{prefix}.norm2.bias": (width,),
        f"{prefix}.mlp.fc1.weight": (hidden, width),
        f"{prefix}.mlp.fc1.bias": (hidden,),
        f"{prefix}.mlp.fc2.weight": (width, hidden),
        f"{prefix}.mlp.fc2.bias": (width,),
    }


def linear(name: str, outputs: int, inputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def encoder_layout(kernel: tuple[int, ...] = (2, PATCH, PATCH)) -> dict[str, tuple[int, ...]]:
    layout: dict[str, tuple[int, ...]] = {
        "patch_embed.proj.weight": (WIDTH, 3, *kernel),
        "patch_embed.proj.bias": (WIDTH,),
        "norm.weight": (WIDTH,),
        "norm.bias": (WIDTH,),
    }
    return layout | block("blocks.0", WIDTH, 100) | block("blocks.1", WIDTH, 100)


def predictor_layout(tokens: int) -> dict[str, tuple[int, ...]]:
    layout = linear("predictor_embed", NARROW, WIDTH) | linear("predictor_proj", WIDTH, NARROW)
    layout |= {f"mask_tokens.{index}": (1, 1, NARROW) for index in range(tokens)}
    return (
        layout
        | block("predictor_blocks.0", NARROW, 4 * NARROW)
        | {"predictor_norm.weight": (NARROW,), "predictor_norm.bias": (NARROW,)}
    )


def ac_layout() -> dict[str, tuple[int, ...]]:
    layout = linear("predictor_embed", 128, WIDTH) | linear("predictor_proj", WIDTH, 128)
    layout |= linear("action_encoder", 128, 7) | linear("state_encoder", 128, 7) | linear("extrinsics_encoder", 128, 6)
    layout |= block("predictor_blocks.0", 128, 512) | block("predictor_blocks.1", 128, 512)
    return layout | {"predictor_norm.weight": (128,), "predictor_norm.bias": (128,)}


def filled(layout: dict[str, tuple[int, ...]], prefix: str, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {f"{prefix}{name}": 0.1 * torch.randn(shape, generator=generator) for name, shape in layout.items()}


def write(path: Path, family: str) -> dict[str, Any]:
    """A training checkpoint as released: prefixes, counters, optimiser state and position tables included."""
    prefix = "module." if family == "vjepa2_ac" else "module.backbone."
    record: dict[str, Any] = {
        name: filled(encoder_layout(), prefix, seed) for seed, name in enumerate(("encoder", "target_encoder"))
    }
    record["predictor"] = filled(ac_layout() if family == "vjepa2_ac" else predictor_layout(3), prefix, 7)
    if family == "vjepa1":
        sincos = ViTConfig(
            image_size=SIZE, patch_size=PATCH, num_frames=FRAMES, embed_dim=WIDTH, num_heads=HEADS, pos_embed="sincos"
        )
        for name in ("encoder", "target_encoder"):
            record[name][f"{prefix}pos_embed"] = position_table(sincos, WIDTH).unsqueeze(0)
        record["predictor"][f"{prefix}predictor_pos_embed"] = position_table(sincos, NARROW).unsqueeze(0)
    weights = record
    torch.save(
        {**weights, "opt": {"state": {0: {"step": torch.ones(())}}, "param_groups": [{"lr": 1e-3}]}, "scaler": None}
        | {"epoch": 3, "loss": 0.5, "batch_size": 24, "world_size": 128, "lr": 1e-3},
        path,
    )
    return weights


def config(path: Path, family: str, **changes: Any) -> OfficialEncoderConfig:
    sizes: dict[str, Any] = {"num_heads": HEADS, "num_frames": FRAMES} | (
        {} if family == "vjepa1" else {"image_size": SIZE}
    )
    return OfficialEncoderConfig(path=str(path), format=family, **{**sizes, **changes})


@pytest.mark.parametrize("family", ["vjepa1", "vjepa2", "vjepa2_ac"])
def test_import_then_export_is_the_identity(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = write(tmp_path / "released.pt", family)
    read = {
        part: import_official(config(tmp_path / "released.pt", family, part=part))
        for part in ("encoder", "target_encoder")
    }
    predictor = read["encoder"].predictor
    assert predictor is not None
    modules = {part: model.encoder for part, model in read.items()}
    again = export_original(tmp_path / "again.pt", {**modules, "predictor": predictor}, format=family)
    after = torch.load(again, weights_only=True)  # noqa: TID251
    assert set(after) == set(before)
    for part, state in before.items():
        assert set(after[part]) == set(state)
        for name, value in state.items():
            assert torch.equal(after[part][name], value), name


def test_legacy_positions_of_v2_are_dropped(tmp_path: Path) -> None:
    record = write(tmp_path / "plain.pt", "vjepa2")
    for part, name in (("target_encoder", "pos_embed"), ("predictor", "predictor_pos_embed")):
        record[part][f"module.backbone.{name}"] = torch.randn(1, 99, WIDTH)
    torch.save(record, tmp_path / "legacy.pt")
    states = [import_official(config(tmp_path / f"{name}.pt", "vjepa2")).state_dict() for name in ("plain", "legacy")]
    assert all(torch.equal(states[0][name], value) for name, value in states[1].items())


def test_weights_reach_the_computation_of_the_original(tmp_path: Path) -> None:
    """The patch embedding is the released convolution, and the first block works on its output, by hand."""
    record = write(tmp_path / "x.pt", "vjepa2")["target_encoder"]
    encoder = import_official(config(tmp_path / "x.pt", "vjepa2")).encoder
    video = torch.rand(1, FRAMES, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    normal = (video - encoder.pixel_mean) / encoder.pixel_std
    weight, bias = (record[f"module.backbone.patch_embed.proj.{kind}"] for kind in ("weight", "bias"))
    conv = torch.nn.functional.conv3d(normal.transpose(1, 2), weight, bias, stride=(2, PATCH, PATCH))
    embedded = encoder.patch_embed(encoder.patchify(video))
    assert torch.allclose(embedded, conv.flatten(2).transpose(1, 2), atol=1e-5)
    assert encoder.config.rope_tiled
    assert (encoder.config.depth, encoder.config.mlp_ratio) == (2, 100 / WIDTH)


def test_the_size_of_v1_follows_from_its_positions(tmp_path: Path) -> None:
    write(tmp_path / "v1.pt", "vjepa1")
    model = import_official(config(tmp_path / "v1.pt", "vjepa1"))
    assert (model.encoder.config.image_size, model.encoder.config.pos_embed) == (SIZE, "sincos")
    assert isinstance(model.predictor, MaskedPredictor)
    assert model.predictor.config.num_mask_tokens == 3
    assert model.predictor.config.num_heads == HEADS  # version 1: as many as the encoder
    with pytest.raises(CheckpointError, match="positions"):
        import_official(config(tmp_path / "v1.pt", "vjepa1", image_size=16))


def test_image_encoders_have_a_flat_kernel(tmp_path: Path) -> None:
    state = filled(encoder_layout((PATCH, PATCH)), "module.backbone.", 0)
    torch.save({"encoder": state}, tmp_path / "image.pt")
    source = config(tmp_path / "image.pt", "vjepa2", part="encoder", num_frames=None)
    encoder = import_official(source).encoder
    assert (encoder.config.num_frames, encoder.config.tubelet_size) == (1, 1)
    assert all(torch.equal(value, state[f"module.backbone.{name}"]) for name, value in original_state(encoder).items())


@pytest.mark.parametrize("family", ["vjepa1", "vjepa2", "vjepa2_ac"])
def test_our_format_keeps_encoder_and_predictor(family: str, tmp_path: Path) -> None:
    write(tmp_path / "released.pt", family)
    model = import_official(config(tmp_path / "released.pt", family))
    save_pretrained(tmp_path / "ours", model, {"source": "synthetic", "licence": "none"})
    again = load_pretrained(tmp_path / "ours")
    assert isinstance(again.predictor, ACPredictor if family == "vjepa2_ac" else MaskedPredictor)
    assert all(torch.equal(again.state_dict()[name], value) for name, value in model.state_dict().items())
    pixels = torch.randint(0, 256, (1, 2, SIZE, SIZE, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = model.encoder.encode_frames(pixels)
    assert torch.equal(load_encoder(tmp_path / "ours").encode_frames(pixels), expected)


def test_a_local_huggingface_folder_is_an_encoder_for_planning(tmp_path: Path) -> None:
    """What `encoder=huggingface` builds: frozen, at the size of the frames, and kept in a checkpoint of its own."""
    write(tmp_path / "x.pt", "vjepa2")
    model = import_official(config(tmp_path / "x.pt", "vjepa2"))
    export_huggingface(tmp_path / "hf", model)
    again = import_official(OfficialEncoderConfig(path=str(tmp_path / "hf")))
    assert (again.encoder.config, again.predictor is None) == (model.encoder.config, False)
    assert all(torch.equal(again.state_dict()[name], value) for name, value in model.state_dict().items())
    encoder = make_encoder(OfficialEncoderConfig(path=str(tmp_path / "hf"), image_size=16), seed=0)
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    pixels = torch.randint(0, 256, (1, 2, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    tokens = encoder.encode_frames(pixels)
    assert tokens.shape == (1, 2, 16, WIDTH)
    save_encoder(tmp_path / "ours", encoder, {"licence": "none"})
    assert torch.equal(load_encoder(tmp_path / "ours").encode_frames(pixels), tokens)


def test_other_formats_refuse_what_they_cannot_hold(tmp_path: Path) -> None:
    write(tmp_path / "v1.pt", "vjepa1")
    with pytest.raises(ConfigError, match="rope_tiled"):
        export_huggingface(tmp_path / "hf", import_official(config(tmp_path / "v1.pt", "vjepa1")))
    write(tmp_path / "ac.pt", "vjepa2_ac")
    with pytest.raises(ConfigError, match="action-conditioned"):
        export_huggingface(tmp_path / "hf", import_official(config(tmp_path / "ac.pt", "vjepa2_ac")))
    with pytest.raises(ConfigError, match="Linear"):
        original_state(torch.nn.Linear(1, 1))
    with pytest.raises(CheckpointError, match="not an encoder with its predictor"):
        load_pretrained("shipped")


class Trap:
    """Something that is no tensor: reading it would run code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit",))


def test_files_that_hold_more_than_tensors_are_refused(tmp_path: Path) -> None:
    torch.save({"encoder": Trap()}, tmp_path / "trap.pt")
    with pytest.raises(CheckpointError, match="cannot be read as tensors"):
        import_official(config(tmp_path / "trap.pt", "vjepa2"))


def test_mistakes_are_named(tmp_path: Path) -> None:
    path = tmp_path / "released.pt"
    with pytest.raises(CheckpointError, match="no file"):
        import_official(config(path, "vjepa2"))
    record = write(path, "vjepa2")
    with pytest.raises(ConfigError, match="give num_heads"):
        import_official(config(path, "vjepa2", num_heads=None))
    with pytest.raises(ConfigError, match="format"):
        config(path, "vjepa3")
    with pytest.raises(ConfigError, match="part"):
        config(path, "vjepa2", part="predictor")
    del record["target_encoder"]
    torch.save(record, path)
    with pytest.raises(CheckpointError, match="no 'target_encoder'"):
        import_official(config(path, "vjepa2"))
    del record["encoder"]["module.backbone.blocks.1.norm1.bias"]
    torch.save(record, path)
    with pytest.raises(CheckpointError, match=r"blocks\.1\.norm1\.bias"):
        import_official(config(path, "vjepa2", part="encoder"))
    with pytest.raises(CheckpointError, match="cannot be read"):
        import_official(OfficialEncoderConfig(path=str(tmp_path / "nowhere")))


@pytest.mark.parametrize(
    ("width", "hidden"), [(1408, 6144), (192, 768), (24, 100), (1280, 5120), (1664, 8192), (49, 163)]
)
def test_ratios_give_the_hidden_width_back(width: int, hidden: int) -> None:
    assert int(width * mlp_ratio(torch.empty(hidden, width, device="meta"))) == hidden


def test_the_container_is_what_was_read(tmp_path: Path) -> None:
    write(tmp_path / "x.pt", "vjepa2")
    model = import_official(config(tmp_path / "x.pt", "vjepa2"))
    assert isinstance(model, Pretrained)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
