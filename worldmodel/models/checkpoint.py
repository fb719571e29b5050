"""Checkpoints: one folder with `card.json` and safetensors files of at most 16 MiB. Nothing is ever unpickled.

The card holds the configs of all modules, so loading needs no code beyond this package; the sizes and SHA-256 of the
weight files, so a damaged download is named as such; and what was trained on what, for how long, with which result.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from worldmodel.data.normalize import Normalizer
from worldmodel.errors import CheckpointError, WorldModelError
from worldmodel.models.action_transformer import build_predictor
from worldmodel.models.encoders import Encoder
from worldmodel.models.frozen_encoders import (
    build_encoder,
)
from worldmodel.models.latent_head import build_head
from worldmodel.models.module_configs import config_record, read_config, rebuild
from worldmodel.models.temporal_distance import TemporalDistance
from worldmodel.models.world_model import ModelSpec, WorldModel

FORMAT_VERSION = 1
MAX_FILE_BYTES = 16 * 2**20
LARGE_MODEL_BYTES, LARGE_FILE_BYTES = 256 * 2**20, 2**30  # never shipped; a single tensor may exceed MAX_FILE_BYTES
CARD = "card.json"
SHIPPED = "shipped"
DEFAULT = "tabletop"
"""The shipped checkpoint that "shipped" stands for where several fit."""
STORAGE_DTYPES = {"float32": torch.float32, "float16": torch.float16}


class EnvSpec(Protocol):
    """What an environment or data set must tell for a checkpoint to be checked against it (`EpisodeSpec` does)."""

    @property
    def env_id(self) -> str: ...  # noqa: D102
    @property
    def image_size(self) -> int: ...  # noqa: D102
    @property
    def action_low(self) -> tuple[float, ...]: ...  # noqa: D102
    @property
    def action_high(self) -> tuple[float, ...]: ...  # noqa: D102
    @property
    def proprio_names(self) -> tuple[str, ...]: ...  # noqa: D102


def save_checkpoint(
    path: str | Path, world_model: WorldModel, card: Mapping[str, Any], *, encoder_dtype: str = "float32"
) -> Path:
    """Write a world model.

    Args:
        path: Folder to create or to overwrite (only the files of a checkpoint in it).
        world_model: What to save.
        card: Facts about the training: data hash, steps, hardware, minutes, metrics, licence. JSON values.
        encoder_dtype: Storage of the frozen encoder's weights, "float32" (exact) or "float16" (half the size, latents
            differ in the third digit). Everything else is stored exactly.

    Returns:
        The folder.

    Raises:
        CheckpointError: The card is not finite JSON, weights are not finite, or a tensor exceeds a file.
    """
    configs = {
        "encoder": config_record(world_model.encoder),
        "head": config_record(world_model.head),
        "predictor": config_record(world_model.predictor),
    }
    if world_model.temporal_distance is not None:
        configs["temporal_distance"] = config_record(world_model.temporal_distance)
    record = {"kind": "world_model", "spec": asdict(world_model.spec), "configs": configs}
    return write_checkpoint(Path(path), world_model, record, card, "encoder.", encoder_dtype)


def save_encoder(
    path: str | Path, encoder: Encoder, card: Mapping[str, Any], *, encoder_dtype: str = "float32"
) -> Path:
    """Write an encoder alone; arguments as for `save_checkpoint`."""
    record = {"kind": "encoder", "configs": {"encoder": config_record(encoder)}}
    return write_checkpoint(Path(path), encoder, record, card, "", encoder_dtype)


def load_checkpoint(
    path: str | Path, *, env_spec: EnvSpec | None = None, device: torch.device | str | None = None
) -> WorldModel:
    """Rebuild a world model.

    Args:
        path: Folder of a checkpoint, the name of one that ships with the package, or "shipped" for the shipped one
            that was trained on `env_spec.env_id` (or the only one there is).
        env_spec: Environment the model is to serve; None skips that check.
        device: Where to put it; None means the CPU.

    Raises:
        CheckpointError: Missing, corrupt, of another format version, or not made for `env_spec`.
    """
    folder = resolve_checkpoint(path, None if env_spec is None else env_spec.env_id)
    card = read_card(folder)
    if card["kind"] != "world_model":
        raise CheckpointError(
            f"{folder} holds kind {card['kind']!r}, not a world model; use load_encoder or load_policy"
        )
    try:
        spec = rebuild(ModelSpec, card["spec"])
        if env_spec is not None:
            check_spec(spec, env_spec, folder)
        encoder = build_encoder(read_config(card, "encoder"))
        head = build_head(read_config(card, "head"), num_tokens=encoder.num_tokens, embed_dim=encoder.embed_dim)
        predictor = build_predictor(
            read_config(card, "predictor"),
            num_tokens=head.num_tokens,
            latent_dim=head.latent_dim,
            action_dim=spec.flat_action_dim,
        )
        normalizers = Normalizer(spec.flat_action_dim), Normalizer(len(spec.proprio_names))
        distance = None
        if "temporal_distance" in card["configs"]:
            config = read_config(card, "temporal_distance")
            distance = TemporalDistance(config, latent_dim=head.num_tokens * head.latent_dim)
        model = WorldModel(encoder, head, predictor, *normalizers, spec, temporal_distance=distance)
    except (KeyError, TypeError, ValueError) as error:
        raise unfit(folder, error) from error
    load_weights(model, folder, card)
    return model.to(device).eval()


def load_encoder(path: str | Path, *, device: torch.device | str | None = None) -> Encoder:
    """Rebuild the encoder of any checkpoint (of an encoder, a world model or a policy), frozen.

    Args:
        path: As for `load_checkpoint`.
        device: Where to put it; None means the CPU.

    Raises:
        CheckpointError: Missing, corrupt, or of another format version.
    """
    folder = resolve_checkpoint(path)
    card = read_card(folder)
    try:
        encoder = build_encoder(read_config(card, "encoder"))
    except (KeyError, TypeError, ValueError) as error:
        raise unfit(folder, error) from error
    load_weights(encoder, folder, card, prefix="" if card["kind"] == "encoder" else "encoder.")
    return encoder.to(device).requires_grad_(False).eval()


def shipped_checkpoints() -> dict[str, Path]:
    """Name to folder of the checkpoints inside the installed package."""
    root = Path(str(resources.files("worldmodel"))) / "assets" / "checkpoints"
    if not root.is_dir():
        return {}
    return {folder.name: folder for folder in sorted(root.iterdir()) if (folder / CARD).is_file()}


def resolve_checkpoint(path: str | Path, env_id: str | None = None) -> Path:
    """Folder of a checkpoint given by path, by shipped name, or as "shipped".

    Raises:
        CheckpointError: There is none; the message lists the shipped ones.
    """
    folder = Path(path)
    if folder.name == CARD:
        folder = folder.parent
    if (folder / CARD).is_file():
        return folder
    names = shipped_checkpoints()
    if str(path) in names:
        return names[str(path)]
    if str(path) == SHIPPED and names:
        fitting = {n: f for n, f in names.items() if env_id is None or env_id in _env_ids(f)}
        if len(fitting) == 1 or DEFAULT in fitting:
            return fitting.get(DEFAULT) or next(iter(fitting.values()))
        if not fitting:
            raise CheckpointError(f"no shipped checkpoint was trained on {env_id}; shipped: {_describe(names)}")
        raise CheckpointError(f"several shipped checkpoints fit; name one of {_describe(fitting)}")
    if folder.is_dir():
        raise CheckpointError(f"{folder} is a folder without {CARD}: not a checkpoint, or its writing was interrupted")
    near = get_close_matches(str(path), names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise CheckpointError(f"no checkpoint at {path}; shipped by name: {_describe(names)}{hint}")


def read_card(folder: Path) -> dict[str, Any]:
    """Read the card of a checkpoint folder and check that this version of the package understands it.

    Raises:
        CheckpointError: Unreadable, incomplete, or of another format version.
    """
    try:
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{folder / CARD} cannot be read ({error}); copy the checkpoint again") from error
    if not isinstance(card, dict) or "format_version" not in card:
        raise CheckpointError(f"{folder / CARD} is not the card of a checkpoint: it has no format_version")
    if card["format_version"] != FORMAT_VERSION:
        raise CheckpointError(
            f"{folder} has format version {card['format_version']}, this package reads {FORMAT_VERSION}; "
            "use the package version that wrote it"
        )
    expected = {"kind": str, "configs": dict, "files": dict, "training": dict}
    missing = [key for key, kind in expected.items() if not isinstance(card.get(key), kind)]
    if missing:
        raise CheckpointError(f"{folder / CARD} lacks a usable {', '.join(missing)}; copy the checkpoint again")
    return card


def check_spec(spec: ModelSpec, env_spec: EnvSpec, folder: Path | str = "the checkpoint") -> None:
    """Refuse to serve an environment the model was not made for.

    Raises:
        CheckpointError: Lists every difference, trained against asked for.
    """
    differences = []
    if env_spec.env_id not in spec.env_ids:
        differences.append(f"environment {', '.join(spec.env_ids)} against {env_spec.env_id}")
    for name in ("image_size", "action_low", "action_high", "proprio_names"):
        trained, asked = getattr(spec, name), getattr(env_spec, name)
        if (trained if isinstance(trained, int) else tuple(trained)) != (
            asked if isinstance(asked, int) else tuple(asked)
        ):
            differences.append(f"{name} {trained} against {asked}")
    if differences:
        raise CheckpointError(f"{folder} does not fit; trained for, against asked for: {'; '.join(differences)}")


def write_checkpoint(
    folder: Path, module: nn.Module, record: dict[str, Any], card: Mapping[str, Any], prefix: str, encoder_dtype: str
) -> Path:
    """Write weights, then the card: a folder without a card is an interrupted one."""
    if encoder_dtype not in STORAGE_DTYPES:
        raise CheckpointError(f"encoder_dtype must be one of {', '.join(STORAGE_DTYPES)}, got {encoder_dtype!r}")
    shards = _shards(_stored(module, prefix, STORAGE_DTYPES[encoder_dtype]))
    contents = {f"weights-{i:02d}.safetensors": safetensors.torch.save(shard) for i, shard in enumerate(shards)}
    files = {n: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for n, data in contents.items()}
    full = {"format_version": FORMAT_VERSION, **record, "encoder_dtype": encoder_dtype, "files": files}
    try:
        text = json.dumps({**full, "training": dict(card)}, indent=2, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"the card must hold finite JSON values only: {error}") from error
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CARD).unlink(missing_ok=True)
    for stale in folder.glob("weights-*.safetensors"):
        stale.unlink()
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    partial = folder / f"{CARD}.partial"
    partial.write_text(text + "\n", encoding="utf-8")
    partial.replace(folder / CARD)
    return folder


def _stored(module: nn.Module, prefix: str, encoder_dtype: torch.dtype) -> dict[str, Tensor]:
    """State with the encoder's floating tensors in their storage dtype."""
    stored = {}
    for name, tensor in module.state_dict().items():
        value = tensor.detach().cpu()
        narrow = name.startswith(prefix) and value.is_floating_point()
        if not torch.isfinite(value).all():
            raise CheckpointError(f"{name} holds NaN or infinite values; a model that diverged is not worth keeping")
        if narrow:
            value = value.to(encoder_dtype)
            if not torch.isfinite(value).all():
                raise CheckpointError(f"{name} does not fit {encoder_dtype}; save it with encoder_dtype='float32'")
        stored[name] = value.contiguous().clone()
    return stored


def _shards(state: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """Cut a state into files of at most `MAX_FILE_BYTES` (of a large model, `LARGE_FILE_BYTES`), header included."""
    limit = MAX_FILE_BYTES if sum(value.nbytes for value in state.values()) <= LARGE_MODEL_BYTES else LARGE_FILE_BYTES
    shards: list[dict[str, Tensor]] = [{}]
    used = 0
    for name, tensor in state.items():
        size = tensor.numel() * tensor.element_size() + len(name) + 128  # 128: bound on a header entry
        if size > limit:
            raise CheckpointError(f"{name} takes {size / 2**20:.1f} MiB, more than a file may hold (16 MiB)")
        if used + size > limit:
            shards.append({})
            used = 0
        shards[-1][name] = tensor
        used += size
    return shards


def load_weights(module: nn.Module, folder: Path, card: dict[str, Any], prefix: str = "") -> None:
    """Fill a module strictly from the files named in the card (entries under `prefix` alone)."""
    state: dict[str, Tensor] = {}
    for name, facts in card["files"].items():
        file = folder / Path(name).name
        try:
            data = file.read_bytes()
            if hashlib.sha256(data).hexdigest() != facts["sha256"]:
                raise CheckpointError(f"{file} is corrupt: its SHA-256 is not the one in the card; copy it again")
            state.update(safetensors.torch.load(data))
        except (OSError, SafetensorError, KeyError, TypeError) as error:
            raise CheckpointError(f"{file} cannot be read ({error}); copy the checkpoint again") from error
    wanted = {n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)}
    own = module.state_dict()
    wrong = sorted(set(own) ^ set(wanted)) or [n for n in own if own[n].shape != wanted[n].shape]
    if wrong:
        raise CheckpointError(f"weights in {folder} do not fit the configs in its card: {', '.join(wrong[:5])}")
    module.load_state_dict({n: v.to(own[n].dtype) for n, v in wanted.items()}, strict=True)


def unfit(folder: Path, error: Exception) -> CheckpointError:
    """Error for a card from which no model can be built."""
    if isinstance(error, CheckpointError):
        return error
    reason = str(error) if isinstance(error, WorldModelError) else f"{type(error).__name__}: {error}"
    return CheckpointError(f"the card in {folder} does not describe a model that can be built: {reason}")


def _env_ids(folder: Path) -> list[str]:
    spec: dict[str, Any] = read_card(folder).get("spec", {})
    return list(spec.get("env_ids", []))


def _describe(names: Mapping[str, Path]) -> str:
    return ", ".join(names) if names else "none"
