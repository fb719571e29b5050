import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import safetensors.torch
import torch

from worldmodel.data.normalize import Normalizer
from worldmodel.errors import CheckpointError
from worldmodel.models import checkpoint
from worldmodel.models.action_predictor import ResidualMLPConfig
from worldmodel.models.action_transformer import TransformerPredictorConfig, build_predictor
from worldmodel.models.checkpoint import load_checkpoint, load_encoder, read_card, save_checkpoint, save_encoder
from worldmodel.models.frozen_encoders import build_encoder
from worldmodel.models.latent_head import CompactHeadConfig, GridHeadConfig, HeadConfig, IdentityHeadConfig, build_head
from worldmodel.models.vit import ViTConfig
from worldmodel.models.world_model import ModelSpec, WorldModel
from worldmodel.types import Context

CARD = {"data_hash": "abc", "steps": 10, "minutes": 0.1, "hardware": "test", "metrics": {"loss": 1.0}, "licence": "MIT"}


@dataclass(frozen=True)
class Spec:
    env_id: str = "worldmodel/Push-v0"
    image_size: int = 16
    action_low: tuple[float, ...] = (-1.0, -1.0)
    action_high: tuple[float, ...] = (1.0, 1.0)
    proprio_names: tuple[str, ...] = ("x", "y")


def tiny_model(latent: str = "compact", seed: int = 0, head_name: str | None = None) -> WorldModel:
    compact = latent == "compact"
    vit = ViTConfig(
        image_size=16, patch_size=8, num_frames=2, embed_dim=12, depth=2, num_heads=2, mlp_ratio=2.0, taps=(0, 1)
    )
    encoder = build_encoder(vit, seed=seed)
    heads: dict[str, HeadConfig] = {
        "compact": CompactHeadConfig(token_dim=4, hidden_dim=16, latent_dim=6),
        "grid": GridHeadConfig(token_dim=4, hidden_dim=16, latent_dim=6, blocks=1),
        "patch": IdentityHeadConfig(latent_dim=5),
    }
    head = build_head(
        heads[head_name or latent],
        num_tokens=encoder.num_tokens,
        embed_dim=encoder.embed_dim,
        seed=seed,
    )
    predictor = build_predictor(
        ResidualMLPConfig(hidden_dim=16) if compact else TransformerPredictorConfig(embed_dim=12, depth=1, num_heads=2),
        num_tokens=head.num_tokens,
        latent_dim=head.latent_dim,
        action_dim=4,
        seed=seed,
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        predictor.get_parameter("out.weight").normal_(generator=generator)
    head.standardise.fit([torch.randn(20, encoder.num_tokens, encoder.embed_dim, generator=generator)])
    spec = ModelSpec(
        env_ids=(Spec.env_id,),
        action_dim=2,
        action_low=Spec.action_low,
        action_high=Spec.action_high,
        action_block=2,
        image_size=16,
        proprio_names=Spec.proprio_names,
        latent=latent,
    )
    actions, proprio = (Normalizer.fit(torch.randn(9, dim, generator=generator) + 2) for dim in (4, 2))
    return WorldModel(encoder, head, predictor, actions, proprio, spec)


def outputs(model: WorldModel) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    pixels = torch.randint(0, 256, (2, 1, 16, 16, 3), dtype=torch.uint8, generator=generator)
    seen = model.encode(pixels, torch.ones(2, 1, 2))
    assert seen.proprio is not None
    rolled = model.rollout(Context(latent=seen, actions=torch.zeros(2, 0, 4)), torch.ones(2, 3, 2, 4))
    return [seen.visual, seen.proprio, rolled.visual]


@pytest.mark.parametrize(("latent", "head"), [("compact", "compact"), ("compact", "grid"), ("patch", "patch")])
def test_a_world_model_comes_back_bit_for_bit(latent: str, head: str, tmp_path: Path) -> None:
    model = tiny_model(latent, seed=3, head_name=head)
    folder = save_checkpoint(tmp_path / "deep" / "model", model, CARD)
    loaded = load_checkpoint(folder, env_spec=Spec())
    for mine, theirs in zip(outputs(model), outputs(loaded), strict=True):
        assert torch.equal(mine, theirs)
    assert loaded.spec == model.spec
    assert loaded.head.standardise.fitted
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    assert read_card(folder)["training"] == CARD
    assert load_checkpoint(folder / "card.json").spec == model.spec


def test_saving_again_replaces_the_files(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, tiny_model(seed=1), CARD)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "weights-07.safetensors").write_bytes(b"stale")
    save_checkpoint(tmp_path, tiny_model(seed=2), CARD)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["card.json", "notes.txt", "weights-00.safetensors"]
    assert torch.equal(outputs(load_checkpoint(tmp_path))[2], outputs(tiny_model(seed=2))[2])


def test_weights_are_cut_into_files_below_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    monkeypatch.setattr(checkpoint, "MAX_FILE_BYTES", 20_000)
    save_checkpoint(tmp_path, model, CARD)
    sizes = [p.stat().st_size for p in tmp_path.glob("weights-*.safetensors")]
    assert len(sizes) > 1
    assert max(sizes) <= 20_000
    assert torch.equal(outputs(load_checkpoint(tmp_path))[2], outputs(model)[2])
    monkeypatch.setattr(checkpoint, "MAX_FILE_BYTES", 500)
    with pytest.raises(CheckpointError, match="more than a file may hold"):
        save_checkpoint(tmp_path, model, CARD)


def test_half_precision_is_for_the_encoder_alone(tmp_path: Path) -> None:
    model = tiny_model()
    save_checkpoint(tmp_path, model, CARD, encoder_dtype="float16")
    loaded = load_checkpoint(tmp_path)
    for name, value in model.state_dict().items():
        stored = loaded.state_dict()[name]
        assert stored.dtype == value.dtype
        exact = value.half().float() if name.startswith("encoder.") else value
        assert torch.equal(stored, exact), name
    torch.testing.assert_close(outputs(loaded)[0], outputs(model)[0], rtol=0, atol=1e-2)


def test_encoders_travel_alone_and_out_of_world_models(tmp_path: Path) -> None:
    model = tiny_model()
    pixels = torch.full((1, 1, 16, 16, 3), 99, dtype=torch.uint8)
    save_encoder(tmp_path / "encoder", model.encoder, CARD)
    save_checkpoint(tmp_path / "model", model, CARD)
    for name in ("encoder", "model"):
        encoder = load_encoder(tmp_path / name)
        assert torch.equal(encoder.encode_frames(pixels), model.encoder.encode_frames(pixels))
        assert not any(p.requires_grad for p in encoder.parameters())
    with pytest.raises(CheckpointError, match="not a world model; use load_encoder"):
        load_checkpoint(tmp_path / "encoder")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (Spec(env_id="worldmodel/Reach-v0"), "environment worldmodel/Push-v0 against worldmodel/Reach-v0"),
        (Spec(image_size=32), "image_size 16 against 32"),
        (Spec(action_low=(-1.0, -2.0)), "action_low"),
        (Spec(action_high=(1.0, 1.0, 1.0)), "action_high"),
        (Spec(proprio_names=("x", "z")), "proprio_names"),
    ],
)
def test_another_environment_is_refused(spec: Spec, message: str, tmp_path: Path) -> None:
    save_checkpoint(tmp_path, tiny_model(), CARD)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path, env_spec=spec)


def test_every_byte_of_the_weights_is_checked(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, tiny_model(), CARD)
    file = tmp_path / "weights-00.safetensors"
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"weights-00\.safetensors is corrupt"):
        load_checkpoint(tmp_path)
    file.write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match="corrupt"):
        load_checkpoint(tmp_path)
    file.unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_checkpoint(tmp_path)


def edit(folder: Path, **changes: object) -> None:
    card = json.loads((folder / "card.json").read_text())
    for dotted, value in changes.items():
        target = card
        *path, last = dotted.split("__")
        for key in path:
            target = target[key]
        target.pop(last) if value is None else target.__setitem__(last, value)
    (folder / "card.json").write_text(json.dumps(card))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 99}, "format version 99, this package reads 1"),
        ({"format_version": None}, "has no format_version"),
        ({"files": None}, "lacks a usable files"),
        ({"kind": "robot"}, "holds kind 'robot', not a world model"),
        ({"configs__head__type": "SetupConfig"}, "unknown head config 'SetupConfig'"),
        ({"configs__head__hidden_dim": None}, "lacks .*hidden_dim"),
        ({"configs__head__evil": 1}, "unknown .*evil"),
        ({"configs__head__hidden_dim": 0}, "hidden_dim must be >= 1"),
        ({"configs__head__hidden_dim": "many"}, "cannot|does not describe"),
        ({"configs__head__hidden_dim": 17}, "do not fit the configs"),
        ({"configs__predictor__num_blocks": 3}, "do not fit the configs.*blocks.2"),
        ({"spec__action_block": 3}, "do not fit the configs"),
        ({"spec": None}, "does not describe a model"),
        ({"files__weights-00.safetensors": {}}, "cannot be read"),
        ({"files": 3}, "lacks a usable files"),
    ],
)
def test_a_card_that_lies_is_refused(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    save_checkpoint(tmp_path, tiny_model(), CARD)
    edit(tmp_path, **changes)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path)


def test_weights_with_the_right_hash_but_the_wrong_content_are_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, tiny_model(), CARD)
    file = tmp_path / "weights-00.safetensors"
    state = safetensors.torch.load(file.read_bytes())
    state.pop("head.out.bias")
    file.write_bytes(safetensors.torch.save(state))
    digest = checkpoint.hashlib.sha256(file.read_bytes()).hexdigest()
    card = json.loads((tmp_path / "card.json").read_text())
    card["files"][file.name]["sha256"] = digest
    (tmp_path / "card.json").write_text(json.dumps(card))
    with pytest.raises(CheckpointError, match=r"do not fit.*head\.out\.bias"):
        load_checkpoint(tmp_path)


def test_a_broken_card_and_an_interrupted_save_are_named(tmp_path: Path) -> None:
    (tmp_path / "half").mkdir()
    with pytest.raises(CheckpointError, match=r"without card\.json"):
        load_checkpoint(tmp_path / "half")
    save_checkpoint(tmp_path / "bad", tiny_model(), CARD)
    (tmp_path / "bad" / "card.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_checkpoint(tmp_path / "bad")


def test_what_cannot_be_kept_is_refused_before_anything_is_lost(tmp_path: Path) -> None:
    model = tiny_model()
    save_checkpoint(tmp_path, model, CARD)
    with pytest.raises(CheckpointError, match="finite JSON"):
        save_checkpoint(tmp_path, tiny_model(seed=1), {"loss": float("nan")})
    with pytest.raises(CheckpointError, match="float32, float16, got 'int8'"):
        save_checkpoint(tmp_path, tiny_model(seed=1), CARD, encoder_dtype="int8")
    broken = tiny_model(seed=1)
    broken.head.get_parameter("out.bias").data[0] = torch.nan
    with pytest.raises(CheckpointError, match=r"head\.out\.bias holds NaN"):
        save_checkpoint(tmp_path, broken, CARD)
    assert torch.equal(outputs(load_checkpoint(tmp_path))[2], outputs(model)[2])


def test_shipped_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint at nowhere; shipped by name"):
        load_checkpoint("nowhere")
    monkeypatch.setattr(checkpoint.resources, "files", lambda _: tmp_path)
    with pytest.raises(CheckpointError, match="none"):
        load_checkpoint("shipped")
    root = tmp_path / "assets" / "checkpoints"
    save_checkpoint(root / "push-compact", tiny_model(seed=1), CARD)
    assert load_checkpoint("shipped").spec.env_ids == (Spec.env_id,)
    assert load_checkpoint("push-compact").spec.env_ids == (Spec.env_id,)
    with pytest.raises(CheckpointError, match="did you mean 'push-compact'"):
        load_checkpoint("push-compct")
    save_checkpoint(root / "second", tiny_model(seed=2), CARD)
    with pytest.raises(CheckpointError, match="several shipped checkpoints fit; name one of push-compact, second"):
        load_checkpoint("shipped", env_spec=Spec())
    with pytest.raises(CheckpointError, match="no shipped checkpoint was trained on other"):
        load_checkpoint("shipped", env_spec=Spec(env_id="other"))
    default = save_checkpoint(root / checkpoint.DEFAULT, tiny_model(seed=3), CARD)
    assert checkpoint.resolve_checkpoint("shipped", Spec.env_id) == default
