"""Names and shapes of weights in the released V-JEPA formats, mapped to ours and back.

"Original" is the state dict of the released code without the prefixes of its wrappers (`module.`, `backbone.`), with
which our names agree except for the patch embedding (a convolution there, a linear layer here) and the mask tokens
(one tensor each there, one matrix here). Pure functions on state dicts; files are read and written in `pretrained.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from worldmodel.errors import CheckpointError
from worldmodel.models.masked_predictor import MaskedPredictorConfig
from worldmodel.models.vit import ViTConfig, position_table

State = dict[str, Tensor]
PATCH_WEIGHT = "patch_embed.proj.weight"
_POSITION_TOLERANCE = 1e-4

# Original name of a part outside the blocks -> Hugging Face's, for the encoder and for the predictor.
_ENCODER_PARTS = {"patch_embed.proj": "embeddings.patch_embeddings.proj", "norm": "layernorm"}
_PREDICTOR_PARTS = {
    "predictor_embed": "embeddings.predictor_embeddings",
    "predictor_norm": "layernorm",
    "predictor_proj": "proj",
}
_QKV = ("query", "key", "value")


def strip_prefixes(state: Mapping[str, Tensor]) -> State:
    """Drop what distributed training and the multi-mask wrapper put in front of every name."""
    return {name.replace("module.", "").replace("backbone.", ""): value for name, value in state.items()}


def encoder_from_original(state: Mapping[str, Tensor], config: ViTConfig) -> State:
    """Original encoder weights to ours.

    Fixed position tables are checked where the model adds them (V-JEPA 1) and dropped; the ones that V-JEPA 2 files
    carry without using them are dropped unseen.

    Raises:
        CheckpointError: The stored positions are not those of `config`.
    """
    ours = {name: value for name, value in state.items() if name != "pos_embed"}
    if config.pos_embed == "sincos" and "pos_embed" in state:
        _check_positions(state["pos_embed"], position_table(config, config.embed_dim), config)
    ours[PATCH_WEIGHT] = ours[PATCH_WEIGHT].flatten(1)
    return ours


def encoder_to_original(state: Mapping[str, Tensor], config: ViTConfig) -> State:
    """Our encoder weights to the original ones, V-JEPA 1's position table included."""
    theirs = dict(state)
    size = config.patch_size
    kernel = (size, size) if config.num_frames == 1 else (config.tubelet_size, size, size)
    theirs[PATCH_WEIGHT] = theirs[PATCH_WEIGHT].unflatten(1, (3, *kernel))
    if config.pos_embed == "sincos":
        theirs["pos_embed"] = position_table(config, config.embed_dim).unsqueeze(0)
    return theirs


def predictor_from_original(state: Mapping[str, Tensor], encoder: ViTConfig) -> State:
    """Original weights of the pretraining predictor to ours; position tables as for the encoder.

    Raises:
        CheckpointError: The stored positions are not those of `encoder`.
    """
    ours = {n: v for n, v in state.items() if n != "predictor_pos_embed" and not n.startswith("mask_tokens.")}
    count = sum(name.startswith("mask_tokens.") for name in state)
    ours["mask_tokens"] = torch.stack([state[f"mask_tokens.{index}"].reshape(-1) for index in range(count)])
    if encoder.pos_embed == "sincos" and "predictor_pos_embed" in state:
        stored = state["predictor_pos_embed"]
        _check_positions(stored, position_table(encoder, stored.shape[-1]), encoder)
    return ours


def predictor_to_original(state: Mapping[str, Tensor], encoder: ViTConfig) -> State:
    """Our weights of the pretraining predictor to the original ones."""
    theirs = {name: value for name, value in state.items() if name != "mask_tokens"}
    for index, token in enumerate(state["mask_tokens"]):
        theirs[f"mask_tokens.{index}"] = token.view(1, 1, -1)
    if encoder.pos_embed == "sincos":
        theirs["predictor_pos_embed"] = position_table(encoder, state["mask_tokens"].shape[1]).unsqueeze(0)
    return theirs


def huggingface_to_original(state: Mapping[str, Tensor]) -> tuple[State, State]:
    """Weights of `VJEPA2Model` to the original ones of encoder and predictor (empty where there is none)."""
    encoder: State = {}
    predictor: State = {}
    bare = {name.removeprefix("vjepa2."): value for name, value in state.items()}
    for name, value in bare.items():
        part, _, rest = name.partition(".")
        if part == "encoder":
            _take(encoder, bare, rest, value, part, _ENCODER_PARTS)
        elif part == "predictor" and rest == "embeddings.mask_tokens":
            predictor |= {f"mask_tokens.{i}": token.view(1, 1, -1) for i, token in enumerate(value)}
        elif part == "predictor":
            _take(predictor, bare, rest, value, part, _PREDICTOR_PARTS)
    return encoder, predictor


def original_to_huggingface(encoder: Mapping[str, Tensor], predictor: Mapping[str, Tensor] | None) -> State:
    """Original weights to those of `VJEPA2Model`; the inverse of `huggingface_to_original`."""
    theirs: State = {}
    for name, value in encoder.items():
        theirs |= _give(name, value, "encoder", _ENCODER_PARTS)
    if predictor is not None:
        count = sum(name.startswith("mask_tokens.") for name in predictor)
        theirs["predictor.embeddings.mask_tokens"] = torch.stack([predictor[f"mask_tokens.{i}"] for i in range(count)])
        for name, value in predictor.items():
            if not name.startswith("mask_tokens."):
                theirs |= _give(name, value, "predictor", _PREDICTOR_PARTS)
    return theirs


def encoder_shape(state: Mapping[str, Tensor]) -> dict[str, int | float]:
    """What the shapes of original encoder weights tell of its config: width, depth, MLP ratio, patch and tubelet."""
    kernel = state[PATCH_WEIGHT].shape
    return {
        "embed_dim": kernel[0],
        "depth": _depth(state, "blocks"),
        "mlp_ratio": mlp_ratio(state["blocks.0.mlp.fc1.weight"]),
        "patch_size": kernel[-1],
        "tubelet_size": kernel[2] if len(kernel) == 5 else 1,
    }


def predictor_shape(state: Mapping[str, Tensor], num_heads: int) -> MaskedPredictorConfig:
    """Config of the pretraining predictor that original weights belong to; heads leave no trace in the shapes."""
    return MaskedPredictorConfig(
        embed_dim=state["predictor_embed.weight"].shape[0],
        depth=_depth(state, "predictor_blocks"),
        num_heads=num_heads,
        mlp_ratio=mlp_ratio(state["predictor_blocks.0.mlp.fc1.weight"]),
        num_mask_tokens=sum(name.startswith("mask_tokens.") for name in state),
    )


def mlp_ratio(weight: Tensor) -> float:
    """Ratio r of an MLP's first weight (hidden, D) for which int(D * r) is its hidden width."""
    hidden, width = weight.shape
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else (hidden + 0.5) / width


def _depth(state: Mapping[str, Tensor], blocks: str) -> int:
    return len({name.split(".")[1] for name in state if name.startswith(f"{blocks}.")})


def _check_positions(stored: Tensor, table: Tensor, config: ViTConfig) -> None:
    fits = stored.numel() == table.numel() and torch.allclose(
        stored.reshape(table.shape).float(), table, atol=_POSITION_TOLERANCE
    )
    if not fits:
        raise CheckpointError(
            f"the stored positions {tuple(stored.shape)} are not those of image_size={config.image_size}, "
            f"num_frames={config.num_frames}, patch_size={config.patch_size}; give the sizes they were trained for"
        )


def _take(into: State, state: State, rest: str, value: Tensor, part: str, outside: dict[str, str]) -> None:
    """Put one Hugging Face tensor under its original name; query, key and value are joined when the query comes by."""
    blocks = "blocks" if part == "encoder" else "predictor_blocks"
    match = re.fullmatch(r"layer\.(\d+)\.(.+)\.(weight|bias)", rest)
    if match is None:
        stem, _, kind = rest.rpartition(".")
        names = {theirs: ours for ours, theirs in outside.items()}
        if stem not in names:
            raise CheckpointError(f"unknown weight {part}.{rest}: not a VJEPA2Model of the layout known here")
        into[f"{names[stem]}.{kind}"] = value
        return
    index, inner, kind = match.groups()
    head = inner.removeprefix("attention.")
    if head == "query":
        rows = [state.get(f"{part}.layer.{index}.attention.{name}.{kind}") for name in _QKV]
        if any(row is None for row in rows):
            raise CheckpointError(f"{part}.layer.{index}.attention lacks one of {', '.join(_QKV)}.{kind}")
        into[f"{blocks}.{index}.attn.qkv.{kind}"] = torch.cat([row for row in rows if row is not None])
    elif head not in _QKV:
        name = "attn.proj" if inner == "attention.proj" else inner
        into[f"{blocks}.{index}.{name}.{kind}"] = value


def _give(name: str, value: Tensor, part: str, outside: dict[str, str]) -> State:
    """Hugging Face tensors of one original one."""
    match = re.fullmatch(r"(?:predictor_)?blocks\.(\d+)\.(.+)\.(weight|bias)", name)
    if match is None:
        stem, _, kind = name.rpartition(".")
        return {f"{part}.{outside[stem]}.{kind}": value}
    index, inner, kind = match.groups()
    front = f"{part}.layer.{index}"
    if inner == "attn.qkv":
        return {f"{front}.attention.{n}.{kind}": rows for n, rows in zip(_QKV, value.chunk(3), strict=True)}
    return {f"{front}.{'attention.proj' if inner == 'attn.proj' else inner}.{kind}": value}
