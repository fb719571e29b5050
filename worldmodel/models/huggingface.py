"""Folders of Hugging Face's V-JEPA 2: `config.json` and safetensors files, read and written without `transformers`.

Separate from `pretrained.py` because nothing here knows our modules: configs and weights under their original names go
in and out.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError

from worldmodel.errors import CheckpointError
from worldmodel.models.masked_predictor import MaskedPredictorConfig
from worldmodel.models.pretrained_keys import State, huggingface_to_original, original_to_huggingface
from worldmodel.models.vit import LAYER_NORM_EPS, ViTConfig

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
CONFIG = "config.json"
RELEASED_PREDICTOR = MaskedPredictorConfig(embed_dim=384, depth=12, num_heads=12, num_mask_tokens=10)
"""The predictor of every released V-JEPA 2 (arXiv:2506.09985, appendix; vjepa2 configs)."""
_FIXED = {"hidden_act": "gelu", "qkv_bias": True, "in_chans": 3, "layer_norm_eps": LAYER_NORM_EPS}


@dataclass(frozen=True, kw_only=True)
class HuggingFaceModel:
    """What a folder holds, in the terms of this project.

    Attributes:
        encoder_config: Architecture of the encoder.
        predictor_config: Architecture of the predictor.
        encoder: Encoder weights under their original names.
        predictor: Predictor weights under their original names; empty where the folder has none.
    """

    encoder_config: ViTConfig
    predictor_config: MaskedPredictorConfig
    encoder: State
    predictor: State


def read_huggingface(folder: Path) -> HuggingFaceModel:
    """Read a folder written by `save_pretrained` of `VJEPA2Model` or of a model built on it.

    Raises:
        CheckpointError: Missing, damaged, or another model.
    """
    record = _read_json(folder / CONFIG)
    try:
        encoder_config, predictor_config = _configs(record)
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / CONFIG} is not the config of a V-JEPA 2 model: it lacks {error}") from error
    names = [WEIGHTS]
    if (folder / INDEX).is_file():
        names = sorted(set(_read_json(folder / INDEX).get("weight_map", {}).values()))
    state: State = {}
    for name in names:
        file = folder / Path(name).name
        try:
            state |= safetensors.torch.load_file(file)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{file} cannot be read ({error}); download the model again") from error
    encoder, predictor = huggingface_to_original(state)
    return HuggingFaceModel(
        encoder_config=encoder_config, predictor_config=predictor_config, encoder=encoder, predictor=predictor
    )


def write_huggingface(folder: Path, model: HuggingFaceModel) -> Path:
    """Write a folder that `VJEPA2Model.from_pretrained` loads; the inverse of `read_huggingface`."""
    folder.mkdir(parents=True, exist_ok=True)
    record = _record(model.encoder_config, model.predictor_config)
    (folder / CONFIG).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    state = original_to_huggingface(model.encoder, model.predictor or None)
    separate = {name: value.contiguous().clone() for name, value in state.items()}  # safetensors refuses views
    safetensors.torch.save_file(separate, folder / WEIGHTS, metadata={"format": "pt"})
    return folder


def _read_json(file: Path) -> dict[str, Any]:
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{file} cannot be read ({error}); give the folder of a downloaded model") from error
    if not isinstance(record, dict):
        raise CheckpointError(f"{file} does not hold a JSON object")
    return record


def _configs(record: dict[str, Any]) -> tuple[ViTConfig, MaskedPredictorConfig]:
    for name, value in _FIXED.items():
        if record.get(name, value) != value:
            raise CheckpointError(f"V-JEPA 2 has {name}={value!r}, this model {record[name]!r}")
    encoder = ViTConfig(
        image_size=record["crop_size"],
        patch_size=record["patch_size"],
        tubelet_size=record["tubelet_size"],
        num_frames=record["frames_per_clip"],
        embed_dim=record["hidden_size"],
        depth=record["num_hidden_layers"],
        num_heads=record["num_attention_heads"],
        mlp_ratio=float(record["mlp_ratio"]),
        rope_tiled=True,
    )
    predictor = MaskedPredictorConfig(
        embed_dim=record["pred_hidden_size"],
        depth=record["pred_num_hidden_layers"],
        num_heads=record["pred_num_attention_heads"],
        mlp_ratio=float(record["pred_mlp_ratio"]),
        num_mask_tokens=record["pred_num_mask_tokens"],
    )
    return encoder, predictor


def _record(encoder: ViTConfig, predictor: MaskedPredictorConfig) -> dict[str, Any]:
    return {
        "model_type": "vjepa2",
        "architectures": ["VJEPA2Model"],
        **_FIXED,
        "crop_size": encoder.image_size,
        "patch_size": encoder.patch_size,
        "tubelet_size": encoder.tubelet_size,
        "frames_per_clip": encoder.num_frames,
        "hidden_size": encoder.embed_dim,
        "num_hidden_layers": encoder.depth,
        "num_attention_heads": encoder.num_heads,
        "mlp_ratio": encoder.mlp_ratio,
        "pred_hidden_size": predictor.embed_dim,
        "pred_num_hidden_layers": predictor.depth,
        "pred_num_attention_heads": predictor.num_heads,
        "pred_mlp_ratio": predictor.mlp_ratio,
        "pred_num_mask_tokens": predictor.num_mask_tokens,
    }
