"""Frame encoders: what turns pixels into tokens, behind one interface.

`VideoViT` is the encoder V-JEPA pretrains; `TimmEncoder` serves any image backbone of timm. Both can encode single
frames independently of each other, which is what planning needs.
"""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.data.config import resolve_model_data_config
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel.errors import CheckpointError, ConfigError, DataError
from worldmodel.models.vit import (
    LAYER_NORM_EPS,
    Block,
    Rope,
    RopeGrid,
    ViTConfig,
    gather_tokens,
    grid_positions,
    init_transformer,
    patchify,
    sincos_table,
)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Encoder(nn.Module, ABC):
    """Turns frames into tokens; frozen at planning time.

    Attributes:
        embed_dim: Width D of the tokens that `encode_frames` returns.
        num_tokens: Tokens N per frame.
        image_size: Side of the frames it takes, pixels.
    """

    embed_dim: int
    num_tokens: int
    image_size: int

    @abstractmethod
    def encode_frames(self, pixels: Tensor) -> Tensor:
        """Encode every frame on its own: the tokens of frame t depend on frame t alone.

        Args:
            pixels: (B, T, Y, X, 3) uint8.

        Returns:
            (B, T, N, D), the encoder's own floating type.

        Raises:
            DataError: Not uint8, or not frames of the size the encoder was built for.
        """


def check_frames(pixels: Tensor, image_size: int) -> None:
    """Raise DataError unless `pixels` is (B, T, image_size, image_size, 3) uint8."""
    expected = (image_size, image_size, 3)
    if pixels.dtype != torch.uint8 or pixels.ndim != 5 or tuple(pixels.shape[2:]) != expected:
        raise DataError(
            f"frames must be uint8 of shape (B, T, {image_size}, {image_size}, 3), got {pixels.dtype} "
            f"{tuple(pixels.shape)}; resize them or use an encoder with that image_size"
        )


class TubeletEmbed(nn.Module):
    """Linear embedding of tubelets, equal to a Conv3d whose kernel is its stride, but able to skip masked tokens."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.proj = nn.Linear(config.patch_dim, config.embed_dim)

    def forward(self, patches: Tensor) -> Tensor:
        """Tubelets (B, K, patch_dim) -> tokens (B, K, D)."""
        out: Tensor = self.proj(patches)
        return out


class VideoViT(Encoder):
    """Video transformer of V-JEPA (arXiv:2404.08471, 2506.09985), without class token, dropout or drop path.

    Deviations: tubelets are cut before they are embedded, so that masked tokens cost nothing at all.

    Args:
        config: Sizes and position embedding.
        seed: Seed of the initial weights.
    """

    pixel_mean: Tensor
    pixel_std: Tensor
    pos_table: Tensor

    def __init__(self, config: ViTConfig, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.image_size = config.image_size
        self.embed_dim = config.embed_dim * max(1, len(config.taps))
        self.num_tokens = config.grid[1] * config.grid[2]
        self.patch_embed = TubeletEmbed(config)
        self.blocks = nn.ModuleList(
            Block(config.embed_dim, config.num_heads, config.mlp_ratio) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.embed_dim, eps=LAYER_NORM_EPS)
        init_transformer(self, torch.Generator().manual_seed(seed))
        if config.pos_embed == "rope":
            self.rope = RopeGrid(config.grid, config.embed_dim // config.num_heads, tiled=config.rope_tiled)
        else:
            table = sincos_table(grid_positions(config.grid), config.embed_dim)
            self.register_buffer("pos_table", table, persistent=False)
        self.register_buffer("pixel_mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)

    def forward(self, pixels: Tensor, keep: Tensor | None = None) -> Tensor:
        """Encode a clip, or only some of its tokens.

        Args:
            pixels: (B, T, 3, Y, X) float in [0, 1]; T a multiple of tubelet_size, at most num_frames.
            keep: (B, K) long token ids that are visible; None keeps all.

        Returns:
            (B, T // tubelet_size * N, D) or (B, K, D), after the final layer norm.

        Raises:
            DataError: The clip does not fit the configured sizes.
        """
        return self.forward_patches(self.patchify(pixels), keep)

    def patchify(self, pixels: Tensor) -> Tensor:
        """Normalise the colours of pixels (B, T, 3, Y, X) float in [0, 1] and cut them -> (B, tokens, patch_dim)."""
        config = self.config
        frames, size = pixels.shape[1], (3, config.image_size, config.image_size)
        if tuple(pixels.shape[2:]) != size or frames % config.tubelet_size or not 0 < frames <= config.num_frames:
            raise DataError(
                f"a clip must be (B, T, {size[0]}, {size[1]}, {size[2]}) with T a multiple of tubelet_size="
                f"{config.tubelet_size} and at most num_frames={config.num_frames}, got {tuple(pixels.shape)}"
            )
        normal = (pixels - self.pixel_mean) / self.pixel_std
        return patchify(normal, tubelet_size=config.tubelet_size, patch_size=config.patch_size)

    def forward_patches(self, patches: Tensor, keep: Tensor | None = None) -> Tensor:
        """As `forward`, from `patchify`'s output (B, tokens, patch_dim), so that several masks share one cut."""
        x, rope = self._embed(patches, keep)
        for block in self.blocks:
            x = block(x, rope)
        out: Tensor = self.norm(x)
        return out

    def encode_frames(self, pixels: Tensor) -> Tensor:
        """Encode each frame as a clip of one tubelet that repeats it; see `Encoder.encode_frames`.

        The tokens are layer-normed without affine: the space in which V-JEPA predicts. With `taps`, the normed
        outputs of those blocks are concatenated along D.
        """
        check_frames(pixels, self.image_size)
        batch, frames = pixels.shape[:2]
        single = pixels.flatten(0, 1).permute(0, 3, 1, 2).unsqueeze(1).float() / 255.0  # (B*T, 1, 3, Y, X)
        clip = single.expand(-1, self.config.tubelet_size, -1, -1, -1)
        x, rope = self._embed(self.patchify(clip), None)
        tapped: dict[int, Tensor] = {}
        for index, block in enumerate(self.blocks):
            x = block(x, rope)
            if index in self.config.taps:
                tapped[index] = x
        outputs = [tapped[tap] for tap in self.config.taps] or [self.norm(x)]
        normed = [F.layer_norm(out, (self.config.embed_dim,), eps=LAYER_NORM_EPS) for out in outputs]
        return torch.cat(normed, dim=-1).view(batch, frames, self.num_tokens, self.embed_dim)

    def _embed(self, patches: Tensor, keep: Tensor | None) -> tuple[Tensor, Rope | None]:
        if keep is not None:
            patches = gather_tokens(patches, keep)
        # A clip shorter than num_frames uses the first ids: tokens are ordered by time first.
        index = torch.arange(patches.shape[1], device=patches.device) if keep is None else keep
        x = self.patch_embed(patches)
        if self.config.pos_embed == "sincos":
            return x + self.pos_table[index], None
        return x, self.rope(index)


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
        with torch.random.fork_rng(devices=[]):  # timm draws from the global stream
            torch.manual_seed(seed)
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


EncoderConfig = ViTConfig | TimmEncoderConfig


def build_encoder(config: EncoderConfig, *, seed: int = 0) -> Encoder:
    """Build the encoder that `config` describes, with random weights drawn from `seed` where none are loaded."""
    if isinstance(config, ViTConfig):
        return VideoViT(config, seed=seed)
    return TimmEncoder(config, seed=seed)
