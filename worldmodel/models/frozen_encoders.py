"""Encoders that are never trained here: timm's backbones, and two references without any learning.

`PatchEncoder` hands raw patches on, `ConvEncoder` is a random convolutional net: what a pretrained encoder has to beat.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any, Self

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.data.config import resolve_model_data_config
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel.errors import CheckpointError, ConfigError
from worldmodel.models.encoders import Encoder, VideoViT, check_frames
from worldmodel.models.init import seeded_weights
from worldmodel.models.vit import ViTConfig, patchify


@dataclass(kw_only=True)
class TimmEncoderConfig:
    """A frozen image backbone of timm.

    Attributes:
        name: timm model name, e.g. "vit_tiny_patch16_224" or "resnet18".
        pretrained: Download timm's weights (needs a network); otherwise the weights are random or from `weights`.
        weights: Path of a local safetensors file with the backbone's weights, or None.
        image_size: Side of the incoming frames, pixels.
        input_size: Side to which frames are resized before the backbone; None keeps `image_size`.
    """

    name: str = "vit_tiny_patch16_224"
    pretrained: bool = False
    weights: str | None = None
    image_size: int = 64
    input_size: int | None = None

    def __post_init__(self) -> None:
        for name in ("image_size", "input_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be >= 1, got {value}")
        if self.pretrained and self.weights is not None:
            raise ConfigError("pretrained=True and weights were both given; choose one source of weights")


class TimmEncoder(Encoder):
    """Any timm backbone as a frozen frame encoder; its feature map becomes the tokens.

    Args:
        config: Backbone and sizes.
        seed: Seed of the initial weights when none are loaded.

    Raises:
        ConfigError: timm has no such model.
        CheckpointError: The weights file is missing or does not fit.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, config: TimmEncoderConfig, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.image_size = config.image_size
        self.input_size = config.input_size or config.image_size
        self.backbone = _build_backbone(config, self.input_size, seed)
        self.num_prefix_tokens = int(getattr(self.backbone, "num_prefix_tokens", 0))
        data = resolve_model_data_config(self.backbone)  # type: ignore[no-untyped-call]
        self.register_buffer("pixel_mean", torch.tensor(data["mean"]).view(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(data["std"]).view(3, 1, 1), persistent=False)
        self.requires_grad_(False)
        self.eval()
        with torch.no_grad():
            raw = self._features(torch.zeros(1, 3, self.input_size, self.input_size))
        width = getattr(self.backbone, "num_features", raw.shape[-1])
        self.channels_last = raw.ndim == 4 and raw.shape[1] != width  # Swin and friends answer (B, h, w, C)
        self.num_tokens, self.embed_dim = self._to_tokens(raw).shape[1:]

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode: batch norms of a frozen backbone must not follow the data."""
        return super().train(False)

    def encode_frames(self, pixels: Tensor) -> Tensor:
        """See `Encoder.encode_frames`."""
        check_frames(pixels, self.image_size)
        batch, frames = pixels.shape[:2]
        x = pixels.flatten(0, 1).permute(0, 3, 1, 2).float() / 255.0
        if self.input_size != self.image_size:
            x = F.interpolate(x, size=(self.input_size, self.input_size), mode="bilinear", antialias=True)
        tokens: Tensor = self._to_tokens(self._features((x - self.pixel_mean) / self.pixel_std))
        return tokens.reshape(batch, frames, self.num_tokens, self.embed_dim)

    def _features(self, x: Tensor) -> Tensor:
        backbone: Any = self.backbone  # timm's models share no typed base
        features: Tensor = backbone.forward_features(x)
        return features

    def _to_tokens(self, raw: Tensor) -> Tensor:
        """Feature map (B, C, h, w), (B, h, w, C) or tokens (B, prefix + N, C) -> (B, N, C)."""
        if raw.ndim == 3:
            return raw[:, self.num_prefix_tokens :]
        if raw.ndim == 4:
            return raw.flatten(1, 2) if self.channels_last else raw.flatten(2).transpose(1, 2)
        raise ConfigError(f"timm model {self.config.name!r} gives features of {tuple(raw.shape)}; need 3-D or 4-D")


def _build_backbone(config: TimmEncoderConfig, input_size: int, seed: int) -> nn.Module:
    if not timm.is_model(config.name):
        known = timm.list_models()
        near = difflib.get_close_matches(config.name, known, n=3)
        raise ConfigError(
            f"timm has no model {config.name!r}; nearest: {', '.join(near) or 'none'} "
            f"({len(known)} names in timm.list_models())"
        )
    default = timm.get_pretrained_cfg(config.name)
    # Backbones with position embeddings are built for one size; the others take any size and know no such argument.
    size: dict[str, Any] = {"img_size": input_size} if default is not None and default.fixed_input_size else {}
    try:
        with seeded_weights(seed):
            backbone = timm.create_model(config.name, pretrained=config.pretrained, num_classes=0, **size)
    except (OSError, RuntimeError) as error:
        if not config.pretrained:
            raise
        raise ConfigError(
            f"cannot get timm's weights of {config.name!r} ({str(error).splitlines()[0]}); download them elsewhere and "
            "give weights=FILE.safetensors, or use pretrained=false"
        ) from error
    if config.weights is not None:
        _load_weights(backbone, Path(config.weights), config.name)
    return backbone


def _load_weights(backbone: nn.Module, path: Path, name: str) -> None:
    if not path.is_file():
        raise CheckpointError(f"weights file {path} does not exist; give the path of a safetensors file")
    try:
        missing, unexpected = backbone.load_state_dict(load_file(path), strict=False)
    except (SafetensorError, RuntimeError) as error:  # RuntimeError: a tensor of another shape
        reason = str(error).strip().splitlines()[-1].strip()
        raise CheckpointError(f"{path} does not fit {name!r}: {reason}") from error
    unexpected = [key for key in unexpected if not key.startswith(("head", "fc", "classifier"))]
    if missing or unexpected:
        problem = f"missing {missing[:3]}, unknown {unexpected[:3]}"
        raise CheckpointError(f"{path} does not fit {name!r}: {problem}")


@dataclass(kw_only=True)
class PatchEncoderConfig:
    """Raw patches as tokens.

    Attributes:
        image_size: Side of the frames, pixels.
        patch_size: Side of a patch, pixels; divides `image_size`.
    """

    image_size: int = 64
    patch_size: int = 8

    def __post_init__(self) -> None:
        if self.patch_size < 1 or self.image_size < 1 or self.image_size % self.patch_size:
            raise ConfigError(
                f"patch_size must divide image_size, got patch_size={self.patch_size}, image_size={self.image_size}"
            )


class PatchEncoder(Encoder):
    """Every patch of a frame, its pixels in [-1, 1], is a token: planning in pixels.

    Args:
        config: Sizes.
    """

    def __init__(self, config: PatchEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.image_size = config.image_size
        self.num_tokens = (config.image_size // config.patch_size) ** 2
        self.embed_dim = 3 * config.patch_size**2
        self.register_buffer("unit", torch.ones(()))  # an encoder has a device and is stored with its weights

    def encode_frames(self, pixels: Tensor) -> Tensor:
        """See `Encoder.encode_frames`."""
        check_frames(pixels, self.image_size)
        batch, frames = pixels.shape[:2]
        x = pixels.flatten(0, 1).permute(0, 3, 1, 2).unsqueeze(1).float() / 127.5 - 1.0
        tokens = patchify(x, tubelet_size=1, patch_size=self.config.patch_size)
        return tokens.view(batch, frames, self.num_tokens, self.embed_dim)


@dataclass(kw_only=True)
class ConvEncoderConfig:
    """A random convolutional net.

    Attributes:
        image_size: Side of the frames, pixels; a multiple of 2 to the number of layers.
        widths: Channels of the layers; each halves the resolution.
    """

    image_size: int = 64
    widths: tuple[int, ...] = (32, 64, 96)

    def __post_init__(self) -> None:
        self.widths = tuple(self.widths)
        if not self.widths or min(self.widths) < 1 or self.image_size < 1:
            raise ConfigError(f"widths and image_size must be >= 1, got {self.widths} and {self.image_size}")
        if self.image_size % 2 ** len(self.widths):
            raise ConfigError(f"image_size={self.image_size} must be a multiple of {2 ** len(self.widths)}")


class ConvEncoder(Encoder):
    """Convolutions (3 x 3, stride 2) and GELUs with random weights; a stronger prior for pictures than a random ViT.

    Args:
        config: Sizes.
        seed: Seed of the weights.
    """

    def __init__(self, config: ConvEncoderConfig, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.image_size = config.image_size
        self.num_tokens = (config.image_size // 2 ** len(config.widths)) ** 2
        self.embed_dim = config.widths[-1]
        channels = (3, *config.widths)
        with seeded_weights(seed):
            self.layers = nn.ModuleList(
                nn.Conv2d(before, after, 3, stride=2, padding=1)
                for before, after in zip(channels, config.widths, strict=False)
            )
        generator = torch.Generator().manual_seed(seed)
        for layer in self.layers:
            assert isinstance(layer, nn.Conv2d) and layer.bias is not None  # noqa: PT018
            nn.init.kaiming_normal_(layer.weight, generator=generator)
            nn.init.zeros_(layer.bias)

    def encode_frames(self, pixels: Tensor) -> Tensor:
        """See `Encoder.encode_frames`."""
        check_frames(pixels, self.image_size)
        batch, frames = pixels.shape[:2]
        x = pixels.flatten(0, 1).permute(0, 3, 1, 2).float() / 127.5 - 1.0
        for layer in self.layers:
            x = F.gelu(layer(x))
        return x.flatten(2).transpose(1, 2).reshape(batch, frames, self.num_tokens, self.embed_dim)


EncoderConfig = ViTConfig | TimmEncoderConfig | PatchEncoderConfig | ConvEncoderConfig


REGISTERED: dict[str, type[Any]] = {}
"""Configs given to `register_encoder`, by name."""
_builders: dict[type[Any], Callable[[Any], Encoder]] = {}


def register_encoder(config: type[Any], encoder: Callable[[Any], Encoder]) -> None:
    """Make an encoder of one's own known: `train` from Python takes its config, checkpoints store and find it.

    Whoever loads such a checkpoint must have registered it before; nothing is imported by name.

    Args:
        config: Dataclass of its settings, JSON values; its name stands in checkpoints.
        encoder: Builds the encoder from one, and keeps that as its attribute `config`.

    Raises:
        ConfigError: `config` is no dataclass, or its name is taken.
    """
    if not is_dataclass(config):
        raise ConfigError(f"the config of an encoder must be a dataclass, got {config!r}")
    known = {kind.__name__: kind for kind in (ViTConfig, TimmEncoderConfig, PatchEncoderConfig, ConvEncoderConfig)}
    if {**known, **REGISTERED}.get(config.__name__, config) is not config:
        raise ConfigError(f"there is an encoder with a {config.__name__} already; choose another name")
    REGISTERED[config.__name__] = config
    _builders[config] = encoder


def build_encoder(config: EncoderConfig, *, seed: int = 0) -> Encoder:
    """Build the encoder that `config` describes, with random weights drawn from `seed` where none are loaded.

    Raises:
        ConfigError: Nobody knows an encoder with such a config.
    """
    if type(config) in _builders:
        return _builders[type(config)](config)
    match config:
        case ViTConfig():
            return VideoViT(config, seed=seed)
        case TimmEncoderConfig():
            return TimmEncoder(config, seed=seed)
        case PatchEncoderConfig():
            return PatchEncoder(config)
        case ConvEncoderConfig():
            return ConvEncoder(config, seed=seed)
        case _:
            raise ConfigError(f"no encoder is known with a {type(config).__name__}; see register_encoder")
