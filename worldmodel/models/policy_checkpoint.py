"""Checkpoints of goal-conditioned policies: the files of `checkpoint.py`, another kind on the card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from worldmodel.data.normalize import Normalizer
from worldmodel.errors import CheckpointError
from worldmodel.models.checkpoint import (
    EnvSpec,
    check_spec,
    load_weights,
    read_card,
    resolve_checkpoint,
    unfit,
    write_checkpoint,
)
from worldmodel.models.frozen_encoders import build_encoder
from worldmodel.models.latent_head import build_head
from worldmodel.models.module_configs import config_record, read_config, rebuild
from worldmodel.models.policy import GoalMLP, GoalPolicy
from worldmodel.models.world_model import ModelSpec

KIND = "goal_policy"


def is_policy(folder: Path) -> bool:
    """Whether a checkpoint folder holds a policy.

    Raises:
        CheckpointError: The card is unreadable.
    """
    return bool(read_card(folder)["kind"] == KIND)


def save_policy(
    path: str | Path, policy: GoalPolicy, card: Mapping[str, Any], *, encoder_dtype: str = "float32"
) -> Path:
    """Write a policy; arguments, result and errors as for `checkpoint.save_checkpoint`."""
    configs = {name: config_record(getattr(policy, name)) for name in ("encoder", "head", "net")}
    record = {"kind": KIND, "spec": asdict(policy.spec), "configs": configs}
    return write_checkpoint(Path(path), policy, record, card, "encoder.", encoder_dtype)


def load_policy(
    path: str | Path, *, env_spec: EnvSpec | None = None, device: torch.device | str | None = None
) -> GoalPolicy:
    """Rebuild a policy.

    Args:
        path: Folder of its checkpoint.
        env_spec: Environment the policy is to serve; None skips that check.
        device: Where to put it; None means the CPU.

    Raises:
        CheckpointError: Missing, corrupt, of another format version, no policy, or not made for `env_spec`.
    """
    folder = resolve_checkpoint(path)
    card = read_card(folder)
    if card["kind"] != KIND:
        raise CheckpointError(f"{folder} holds kind {card['kind']!r}, not {KIND!r}; use load_checkpoint")
    try:
        spec = rebuild(ModelSpec, card["spec"])
        if env_spec is not None:
            check_spec(spec, env_spec, folder)
        encoder = build_encoder(read_config(card, "encoder"))
        head = build_head(read_config(card, "head"), num_tokens=encoder.num_tokens, embed_dim=encoder.embed_dim)
        width = head.num_tokens * head.latent_dim
        net = GoalMLP(read_config(card, "net"), latent_dim=width, action_dim=spec.flat_action_dim)
        policy = GoalPolicy(encoder, head, net, Normalizer(spec.flat_action_dim), spec)
    except (KeyError, TypeError, ValueError) as error:
        raise unfit(folder, error) from error
    load_weights(policy, folder, card)
    return policy.to(device).eval()
