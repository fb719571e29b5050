"""The configs of a checkpoint's modules: what its card says of them, and back.

A card names the class of a config and holds all of its fields, so that a model can be rebuilt without any other code.
"""

from __future__ import annotations

import types
import typing
from collections import ChainMap
from dataclasses import asdict, fields
from typing import Any

from torch import nn

from worldmodel.errors import CheckpointError
from worldmodel.models.ac_dynamics import ACDynamicsConfig
from worldmodel.models.ac_predictor import ACPredictorConfig
from worldmodel.models.action_predictor import ResidualMLPConfig
from worldmodel.models.action_transformer import TransformerPredictorConfig
from worldmodel.models.frame_predictor import FramePredictorConfig
from worldmodel.models.frozen_encoders import REGISTERED, ConvEncoderConfig, PatchEncoderConfig, TimmEncoderConfig
from worldmodel.models.latent_head import CompactHeadConfig, GridHeadConfig, IdentityHeadConfig, NormHeadConfig
from worldmodel.models.masked_predictor import MaskedPredictorConfig
from worldmodel.models.policy import GoalMLPConfig
from worldmodel.models.temporal_distance import TemporalDistanceConfig
from worldmodel.models.vit import ViTConfig

_OWN_CONFIGS: dict[str, type[Any]] = {
    config.__name__: config
    for config in (
        *(ViTConfig, TimmEncoderConfig, PatchEncoderConfig, ConvEncoderConfig),
        *(CompactHeadConfig, GridHeadConfig, IdentityHeadConfig, NormHeadConfig),
        *(ResidualMLPConfig, FramePredictorConfig),
        TransformerPredictorConfig,
        TemporalDistanceConfig,
        GoalMLPConfig,
        MaskedPredictorConfig,
        *(ACPredictorConfig, ACDynamicsConfig),
    )
}
_CONFIGS = ChainMap(_OWN_CONFIGS, REGISTERED)  # with those of the user's encoders


def config_record(module: nn.Module) -> dict[str, Any]:
    """What a card says about a module: the name and the fields of its config.

    Raises:
        CheckpointError: A config that `read_config` does not know.
    """
    config: Any = module.config
    name = type(config).__name__
    if name not in _CONFIGS:
        known = ", ".join(_CONFIGS)
        raise CheckpointError(f"{type(module).__name__} has a {name}, which checkpoints cannot rebuild; known: {known}")
    return {"type": name, **asdict(config)}


def read_config(card: dict[str, Any], part: str) -> Any:
    """Config of a part of a model, as `config_record` described it.

    Raises:
        CheckpointError: Unknown, or not with exactly its fields.
    """
    record = dict(card["configs"][part])
    name = record.pop("type")
    if name not in _CONFIGS:
        hint = "register an encoder of your own first (register_encoder)"
        raise CheckpointError(f"unknown {part} config {name!r}; known: {', '.join(_CONFIGS)}; {hint}")
    if name == TimmEncoderConfig.__name__:
        record |= {"pretrained": False, "weights": None}  # the weights are in the checkpoint; fetch no others
    return rebuild(_CONFIGS[name], record)


def rebuild(kind: type[Any], record: dict[str, Any]) -> Any:
    """Dataclass from JSON: exactly its fields, lists back to tuples where the field is one."""
    names = {field.name for field in fields(kind)}
    if set(record) != names:
        lacking, extra = sorted(names - set(record)), sorted(set(record) - names)
        raise CheckpointError(
            f"{kind.__name__} in the card lacks {lacking or 'nothing'}, has unknown {extra or 'nothing'}"
        )
    hints = typing.get_type_hints(kind)
    return kind(**{k: tuple(v) if isinstance(v, list) and _is_tuple(hints[k]) else v for k, v in record.items()})


def _is_tuple(hint: Any) -> bool:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_is_tuple(part) for part in typing.get_args(hint))
    return hint is tuple or origin is tuple
