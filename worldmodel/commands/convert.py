"""`worldmodel convert`: V-JEPA weights from one format to another, read back and compared before it says done."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from rich.table import Table

from worldmodel.commands.run import Outcome, Run, RunSettings
from worldmodel.errors import CheckpointError, ConfigError
from worldmodel.models.ac_predictor import ACPredictor
from worldmodel.models.checkpoint import CARD, load_encoder, read_card, resolve_checkpoint
from worldmodel.models.encoders import VideoViT
from worldmodel.models.pretrained import (
    FORMATS,
    OfficialEncoderConfig,
    Pretrained,
    export_huggingface,
    export_original,
    import_official,
    load_pretrained,
    save_pretrained,
)

OURS = "worldmodel"
_ORIGINAL = tuple(name for name in FORMATS if name != "huggingface")


@dataclass(kw_only=True)
class Settings(RunSettings):
    """What to convert.

    Attributes:
        path: Weights on the local disk: an original .pt or .pth.tar, a folder of Hugging Face's `VJEPA2Model`, a
            checkpoint folder of this project, or the name of a shipped checkpoint.
        format: What `path` holds: "vjepa1", "vjepa2" or "vjepa2_ac" for an original file; None for a folder, which
            says itself what it is.
        to: "worldmodel", "huggingface", "vjepa1", "vjepa2" or "vjepa2_ac".
        out: Folder, or file for an original format, to write; it must not exist.
        part: Which encoder of an original file: "target_encoder" or "encoder".
        image_size: Side of the frames, pixels; None keeps what the weights were trained for.
        num_frames: Frames of a full clip; None keeps what they were trained for.
        num_heads: Attention heads, for sizes nobody published; None looks the size up.
        licence: What the card of a checkpoint of this project says about the weights' licence.
    """

    path: str
    out: str
    format: str | None = None
    to: str = OURS
    part: str = "target_encoder"
    image_size: int | None = None
    num_frames: int | None = None
    num_heads: int | None = None
    licence: str = "that of the source"

    def __post_init__(self) -> None:
        if self.to not in (OURS, *FORMATS):
            raise ConfigError(f"to must be one of {', '.join((OURS, *FORMATS))}, got {self.to!r}")
        if self.format is not None and self.format not in _ORIGINAL:
            raise ConfigError(
                f"format must be one of {', '.join(_ORIGINAL)}, or null for a folder, got {self.format!r}"
            )


def run(settings: Settings, run: Run) -> Outcome:
    """Read, write, read back, compare."""
    out = Path(settings.out)
    if out.exists():
        raise ConfigError(f"out={out} exists; choose another name")
    source, model = _read(settings)
    _check_fits(model, settings.to)
    run.note(f"Writing {source} weights from {settings.path} as {settings.to}")
    _write(settings, source, model, out)
    _check_written(settings, model, out)
    counts = {
        "encoder": _numbers(model.encoder),
        "predictor": 0 if model.predictor is None else _numbers(model.predictor),
    }
    record = {"source": source, "to": settings.to, "out": str(out), "parameters": counts, "equal_when_read_back": True}
    table = Table(title=str(out), show_header=False)
    config = model.encoder.config
    table.add_row("encoder", f"{counts['encoder']:,} parameters, width {config.embed_dim}, {config.depth} blocks")
    table.add_row("frames", f"{config.num_frames} of {config.image_size} px, patches of {config.patch_size} px")
    kind = (
        "none" if model.predictor is None else f"{type(model.predictor).__name__}, {counts['predictor']:,} parameters"
    )
    table.add_row("predictor", kind)
    table.add_row("read back", "every tensor equal")
    return Outcome(record=record, report=(table,))


def _read(settings: Settings) -> tuple[str, Pretrained]:
    """Format found, and the weights.

    Raises:
        CheckpointError: Missing, corrupt, or not V-JEPA.
    """
    if settings.format is None and not (Path(settings.path) / "config.json").is_file():
        folder = resolve_checkpoint(settings.path)
        if read_card(folder)["kind"] == "pretrained":
            return OURS, load_pretrained(folder)
        encoder = load_encoder(folder)
        if not isinstance(encoder, VideoViT):
            raise CheckpointError(f"{settings.path} holds a {type(encoder).__name__}, which has no V-JEPA format")
        return OURS, Pretrained(encoder)
    config = _official(settings, settings.path, settings.format or "huggingface")
    return config.format, import_official(config)


def _official(settings: Settings, path: str, kind: str) -> OfficialEncoderConfig:
    return OfficialEncoderConfig(
        path=path,
        format=kind,
        part=settings.part,
        image_size=settings.image_size,
        num_frames=settings.num_frames,
        num_heads=settings.num_heads,
    )


def _check_fits(model: Pretrained, to: str) -> None:
    """Refuse what a format cannot say, before anything is written.

    Raises:
        ConfigError: Positions or predictor are not those of the format.
    """
    if to == OURS:
        return
    config = model.encoder.config
    is_tiled = config.pos_embed == "rope" and config.rope_tiled
    if (config.pos_embed != "sincos") if to == "vjepa1" else not is_tiled:
        need = "pos_embed=sincos" if to == "vjepa1" else "pos_embed=rope with rope_tiled=true"
        got = f"pos_embed={config.pos_embed}, rope_tiled={config.rope_tiled}"
        raise ConfigError(f"{to} weights have {need}; this encoder has {got}, and would compute something else there")
    if config.taps:
        raise ConfigError(f"{to} weights give the output of the last block; this encoder taps {config.taps}")
    is_ac = isinstance(model.predictor, ACPredictor)
    if model.predictor is not None and is_ac != (to == "vjepa2_ac"):
        kind = "an action-conditioned" if is_ac else "a masked"
        raise ConfigError(f"these weights have {kind} predictor, which {to} has no place for")


def _write(settings: Settings, source: str, model: Pretrained, out: Path) -> None:
    if settings.to == OURS:
        card = {"licence": settings.licence, "source": {"path": Path(settings.path).name, "format": source}}
        save_pretrained(out, model, card)
    elif settings.to == "huggingface":
        export_huggingface(out, model)
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        # both places of the encoder, so that code that reads either finds it
        modules: dict[str, torch.nn.Module] = {"encoder": model.encoder, "target_encoder": model.encoder}
        if model.predictor is not None:
            modules["predictor"] = model.predictor
        export_original(out, modules, format=settings.to)


def _check_written(settings: Settings, model: Pretrained, out: Path) -> None:
    """Read the result back and compare it, tensor by tensor.

    Raises:
        CheckpointError: It is not what was meant to be written.
    """
    if (out / CARD).is_file():
        again = load_pretrained(out)
    else:
        config = model.encoder.config
        found = _official(settings, str(out), settings.to)
        found.image_size, found.num_frames, found.num_heads = config.image_size, config.num_frames, config.num_heads
        again = import_official(found)
    before, after = model.state_dict(), again.state_dict()
    wrong = sorted(set(before) ^ set(after)) or [name for name in before if not torch.equal(before[name], after[name])]
    if again.encoder.config != model.encoder.config:
        wrong.append("the architecture of the encoder")
    if getattr(again.predictor, "config", None) != getattr(model.predictor, "config", None):
        wrong.append("the architecture of the predictor")
    if wrong:
        raise CheckpointError(f"{out} does not read back as it was written: {', '.join(wrong[:5])}")


def _numbers(module: torch.nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())
