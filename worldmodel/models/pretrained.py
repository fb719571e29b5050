"""Released V-JEPA weights: read, write back, and keep in the project's own format.

Formats: the original files of V-JEPA 1, V-JEPA 2 and V-JEPA 2-AC (`torch.save`, read with `weights_only`: tensors and
plain containers, nothing is executed) and folders of Hugging Face's `VJEPA2Model` (`huggingface.py`). Which weight is
called what is in `pretrained_keys.py`. The weights themselves are not shipped; V-JEPA 1's are for non-commercial use.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from worldmodel.errors import CheckpointError, ConfigError
from worldmodel.models.ac_predictor import ACPredictor, ACPredictorConfig
from worldmodel.models.checkpoint import (
    load_weights,
    read_card,
    resolve_checkpoint,
    unfit,
    write_checkpoint,
)
from worldmodel.models.encoders import VideoViT
from worldmodel.models.huggingface import RELEASED_PREDICTOR, HuggingFaceModel, read_huggingface, write_huggingface
from worldmodel.models.masked_predictor import MaskedPredictor
from worldmodel.models.module_configs import config_record, read_config
from worldmodel.models.pretrained_keys import (
    State,
    encoder_from_original,
    encoder_shape,
    encoder_to_original,
    mlp_ratio,
    predictor_from_original,
    predictor_shape,
    predictor_to_original,
    strip_prefixes,
)
from worldmodel.models.sizes import SIZES
from worldmodel.models.vit import ViTConfig

FORMATS = ("huggingface", "vjepa1", "vjepa2", "vjepa2_ac")
PARTS = ("target_encoder", "encoder")
_PREFIX = {"vjepa1": "module.backbone.", "vjepa2": "module.backbone.", "vjepa2_ac": "module."}
_AC_HEAD_DIM = 64
_PREDICTOR_HEADS = 12


@dataclass(kw_only=True)
class OfficialEncoderConfig:
    """An encoder with released weights on the local disk.

    Attributes:
        path: Folder of a Hugging Face V-JEPA 2 model (config.json, model.safetensors), or an original .pt or .pth.tar.
        format: "huggingface", or the original "vjepa1", "vjepa2" or "vjepa2_ac".
        part: Which encoder of an original file: "target_encoder" (the average, used by the published evaluations and
            by V-JEPA 2-AC) or "encoder" (what V-JEPA 2's hub code and the Hugging Face models hold).
        image_size: Side of the frames, pixels; None keeps what the weights were trained for (V-JEPA 2: 256). Rotary
            weights take any multiple of the patch size.
        num_frames: Frames of a full clip; None for what they were trained for (V-JEPA 1: 16, V-JEPA 2: 64).
        num_heads: Attention heads, for sizes that are not in `sizes.SIZES`; None looks the size up there.
    """

    path: str
    format: str = "huggingface"
    part: str = "target_encoder"
    image_size: int | None = None
    num_frames: int | None = None
    num_heads: int | None = None

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ConfigError(f"format must be one of {', '.join(FORMATS)}, got {self.format!r}")
        if self.part not in PARTS:
            raise ConfigError(f"part must be one of {', '.join(PARTS)}, got {self.part!r}")


class Pretrained(nn.Module):
    """An encoder and the predictor that was trained with it.

    Args:
        encoder: The encoder.
        predictor: Of masked tokens, or of what actions do; None where the file has none.
    """

    def __init__(self, encoder: VideoViT, predictor: MaskedPredictor | ACPredictor | None = None) -> None:
        super().__init__()
        self.encoder = encoder
        self.predictor = predictor


def import_official(config: OfficialEncoderConfig) -> Pretrained:
    """Read released weights.

    Args:
        config: Where they are and what they are.

    Returns:
        Frozen, in evaluation mode, on the CPU, in fp32.

    Raises:
        CheckpointError: Missing, of another layout, or holding anything but tensors and plain values.
        ConfigError: The sizes asked for do not fit.
    """
    path = Path(config.path)
    found = _from_huggingface(path, config) if config.format == "huggingface" else _from_original(path, config)
    return found.float().requires_grad_(False).eval()


def load_official_encoder(config: OfficialEncoderConfig) -> VideoViT:
    """The encoder of released weights, frozen; see `import_official`."""
    return import_official(config).encoder


def export_original(path: str | Path, modules: Mapping[str, nn.Module], *, format: str) -> Path:
    """Write an original file, which the published code loads.

    Args:
        path: File to write.
        modules: "encoder" and "target_encoder" to a `VideoViT`, "predictor" to the predictor of the format; any of
            them may be left out.
        format: "vjepa1", "vjepa2" or "vjepa2_ac".

    Raises:
        ConfigError: Another format or part.
    """
    if format not in _PREFIX:
        raise ConfigError(f"format must be one of {', '.join(_PREFIX)}, got {format!r}")
    record: dict[str, State] = {}
    for part, module in modules.items():
        if part not in (*PARTS, "predictor"):
            raise ConfigError(f"parts are {', '.join(PARTS)} and predictor, got {part!r}")
        state = original_state(module)
        record[part] = {f"{_PREFIX[format]}{name}": value.contiguous() for name, value in state.items()}
    torch.save(record, path)
    return Path(path)


def original_state(module: nn.Module) -> State:
    """State dict of a module under the original names, without prefixes.

    Raises:
        ConfigError: Not an encoder or predictor of V-JEPA.
    """
    state = {name: value.detach().cpu() for name, value in module.state_dict().items()}
    match module:
        case VideoViT():
            return encoder_to_original(state, module.config)
        case MaskedPredictor():
            return predictor_to_original(state, module.encoder_config)
        case ACPredictor():
            return state
    raise ConfigError(f"{type(module).__name__} has no original format")


def export_huggingface(folder: str | Path, model: Pretrained) -> Path:
    """Write a folder that `transformers.VJEPA2Model.from_pretrained` loads.

    Args:
        folder: Folder to create or to write into.
        model: An encoder with tiled rotary positions and, for a complete model, its masked predictor.

    Raises:
        ConfigError: The encoder's positions are not those of V-JEPA 2, or the predictor is not a masked one.
    """
    config, predictor = model.encoder.config, model.predictor
    if config.pos_embed != "rope" or not config.rope_tiled:
        raise ConfigError("the Hugging Face V-JEPA 2 has tiled rotary positions: pos_embed='rope', rope_tiled=True")
    if predictor is not None and not isinstance(predictor, MaskedPredictor):
        raise ConfigError("the Hugging Face layout has no action-conditioned predictor; use export_original")
    found = HuggingFaceModel(
        encoder_config=config,
        predictor_config=predictor.config if predictor is not None else RELEASED_PREDICTOR,
        encoder=original_state(model.encoder),
        predictor={} if predictor is None else original_state(predictor),
    )
    return write_huggingface(Path(folder), found)


def save_pretrained(folder: str | Path, model: Pretrained, card: Mapping[str, Any]) -> Path:
    """Write encoder and predictor as a checkpoint of this project; `load_encoder` reads its encoder.

    Args:
        folder: As for `save_checkpoint`.
        model: What to save.
        card: As for `save_checkpoint`; name the source and the licence of the weights.
    """
    configs = {"encoder": config_record(model.encoder)}
    if model.predictor is not None:
        configs["predictor"] = config_record(model.predictor)
    record = {"kind": "pretrained", "configs": configs}
    return write_checkpoint(Path(folder), model, record, card, "", "float32")


def load_pretrained(folder: str | Path) -> Pretrained:
    """Rebuild what `save_pretrained` wrote, frozen.

    Raises:
        CheckpointError: Missing, corrupt, or of another kind.
    """
    path = resolve_checkpoint(folder)
    card = read_card(path)
    if card["kind"] != "pretrained":
        raise CheckpointError(f"{path} holds kind {card['kind']!r}, not an encoder with its predictor")
    try:
        encoder = VideoViT(read_config(card, "encoder"))
        predictor: MaskedPredictor | ACPredictor | None = None
        if "predictor" in card["configs"]:
            config = read_config(card, "predictor")
            is_ac = isinstance(config, ACPredictorConfig)
            predictor = ACPredictor(config) if is_ac else MaskedPredictor(config, encoder.config)
    except (KeyError, TypeError, ValueError) as error:
        raise unfit(path, error) from error
    model = Pretrained(encoder, predictor)
    load_weights(model, path, card)
    return model.requires_grad_(False).eval()


def _from_original(path: Path, config: OfficialEncoderConfig) -> Pretrained:
    record = _read_original(path)
    if config.part not in record:
        raise CheckpointError(f"{path} has no {config.part!r}; it holds {', '.join(record)}")
    state = strip_prefixes(record[config.part])
    try:
        encoder_config = _original_config(state, config)
        encoder = VideoViT(encoder_config)
        _fill(encoder, encoder_from_original(state, encoder_config), path)
        predictor: MaskedPredictor | ACPredictor | None = None
        if "predictor" in record:
            predictor = _original_predictor(strip_prefixes(record["predictor"]), encoder_config, config, path)
    except (KeyError, IndexError) as error:
        raise CheckpointError(f"{path} is not a {config.format} checkpoint: it lacks {error}") from error
    return Pretrained(encoder, predictor)


def _read_original(path: Path) -> dict[str, dict[str, Tensor]]:
    """Parts of an original file: named groups of tensors; optimiser state and counters are left out."""
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}; download the weights and give their path")
    try:
        # weights_only: a restricted reader that builds tensors and containers and refuses everything else
        record = torch.load(path, map_location="cpu", weights_only=True)  # noqa: TID251
    except Exception as error:  # the reader raises whatever a damaged archive makes it
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{path} cannot be read as tensors ({reason}); download it again") from error
    if not isinstance(record, dict):
        raise CheckpointError(f"{path} holds a {type(record).__name__}, not named groups of weights")
    wanted = {name: record[name] for name in (*PARTS, "predictor") if isinstance(record.get(name), Mapping)}
    return {
        name: {key: value for key, value in group.items() if isinstance(value, Tensor)}
        for name, group in wanted.items()
    }


def _original_config(state: State, config: OfficialEncoderConfig) -> ViTConfig:
    shape = encoder_shape(state)
    heads = config.num_heads or _known_heads(int(shape["embed_dim"]), int(shape["depth"]), config.format)
    is_first = config.format == "vjepa1"
    is_image = state["patch_embed.proj.weight"].ndim == 4
    frames = config.num_frames or (1 if is_image else 16 if is_first else 64)
    size = config.image_size or 256
    if is_first and config.image_size is None:
        places = state["pos_embed"].shape[-2] // (frames // int(shape["tubelet_size"]))
        size = int(shape["patch_size"]) * round(places**0.5)
    return ViTConfig(
        image_size=size,
        patch_size=int(shape["patch_size"]),
        tubelet_size=int(shape["tubelet_size"]),
        num_frames=frames,
        embed_dim=int(shape["embed_dim"]),
        depth=int(shape["depth"]),
        num_heads=heads,
        mlp_ratio=float(shape["mlp_ratio"]),
        pos_embed="sincos" if is_first else "rope",
        rope_tiled=not is_first,
    )


def _known_heads(embed_dim: int, depth: int, format: str) -> int:
    """Heads leave no trace in the weights: look the published size up."""
    for name, size in SIZES.items():
        if (size.embed_dim, size.depth) == (embed_dim, depth):
            return 16 if name == "giant" and format == "vjepa1" else size.num_heads
    raise ConfigError(f"no published encoder has width {embed_dim} and depth {depth}; give num_heads")


def _original_predictor(
    state: State, encoder: ViTConfig, config: OfficialEncoderConfig, path: Path
) -> MaskedPredictor | ACPredictor:
    if config.format == "vjepa2_ac":
        width, latent_dim = state["predictor_embed.weight"].shape
        depth = len({name.split(".")[1] for name in state if name.startswith("predictor_blocks.")})
        ac = ACPredictor(
            ACPredictorConfig(
                latent_dim=latent_dim,
                embed_dim=width,
                depth=depth,
                num_heads=max(1, width // _AC_HEAD_DIM),
                mlp_ratio=mlp_ratio(state["predictor_blocks.0.mlp.fc1.weight"]),
            )
        )
        _fill(ac, state, path)
        return ac
    heads = encoder.num_heads if config.format == "vjepa1" else _PREDICTOR_HEADS
    masked = MaskedPredictor(predictor_shape(state, heads), encoder)
    _fill(masked, predictor_from_original(state, encoder), path)
    return masked


def _from_huggingface(folder: Path, config: OfficialEncoderConfig) -> Pretrained:
    found = read_huggingface(folder)
    encoder_config = replace(
        found.encoder_config,
        image_size=config.image_size or found.encoder_config.image_size,
        num_frames=config.num_frames or found.encoder_config.num_frames,
        num_heads=config.num_heads or found.encoder_config.num_heads,
    )
    encoder = VideoViT(encoder_config)
    predictor = MaskedPredictor(found.predictor_config, encoder_config) if found.predictor else None
    try:
        _fill(encoder, encoder_from_original(found.encoder, encoder_config), folder)
        if predictor is not None:
            _fill(predictor, predictor_from_original(found.predictor, encoder_config), folder)
    except KeyError as error:
        raise CheckpointError(f"{folder} is not a VJEPA2Model: it lacks {error}") from error
    return Pretrained(encoder, predictor)


def _fill(module: nn.Module, state: State, where: Path) -> None:
    """Load strictly; weights are cast to the module's type."""
    own = module.state_dict()
    wrong = sorted(set(own) ^ set(state)) or [name for name in own if own[name].shape != state[name].shape]
    if wrong:
        raise CheckpointError(f"the weights in {where} do not fit {type(module).__name__}: {', '.join(wrong[:5])}")
    module.load_state_dict(state, strict=True)
