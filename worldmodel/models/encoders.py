"""Frame encoders: what turns pixels into tokens, behind one interface, and the one that is pretrained here.

`VideoViT` encodes clips in pretraining and single frames, independently of each other, in planning. Encoders that are
never trained here are in `frozen_encoders.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel.errors import DataError
from worldmodel.models.init import seeded_weights
from worldmodel.models.vit import (
    LAYER_NORM_EPS,
    Block,
    Rope,
    RopeGrid,
    ViTConfig,
    gather_tokens,
    init_transformer,
    patchify,
    position_table,
    run_blocks,
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

    Attributes:
        checkpoint_activations: Trade time for memory in training; see `run_blocks`.
    """

    pixel_mean: Tensor
    pixel_std: Tensor
    pos_table: Tensor

    def __init__(self, config: ViTConfig, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.checkpoint_activations = False
        self.image_size = config.image_size
        self.embed_dim = config.embed_dim * max(1, len(config.taps))
        self.num_tokens = config.grid[1] * config.grid[2]
        with seeded_weights(seed):  # new layers draw from the global stream, even where they are initialised again
            self.patch_embed = TubeletEmbed(config)
            self.blocks = nn.ModuleList(
                Block(config.embed_dim, config.num_heads, config.mlp_ratio) for _ in range(config.depth)
            )
            self.norm = nn.LayerNorm(config.embed_dim, eps=LAYER_NORM_EPS)
        init_transformer(self, torch.Generator().manual_seed(seed))
        if config.pos_embed == "rope":
            self.rope = RopeGrid(config.grid, config.embed_dim // config.num_heads, tiled=config.rope_tiled)
        else:
            self.register_buffer("pos_table", position_table(config, config.embed_dim), persistent=False)
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
        out: Tensor = self.norm(run_blocks(self.blocks, x, rope, checkpointed=self.checkpoint_activations))
        return out

    def forward_levels(self, patches: Tensor, levels: Sequence[int]) -> Tensor:
        """Outputs of several blocks, each layer-normed without affine, side by side.

        Args:
            patches: `patchify`'s output (B, tokens, patch_dim).
            levels: Blocks, counted from 0.

        Returns:
            (B, tokens, len(levels) * D), in the order of `levels`.
        """
        x, rope = self._embed(patches, None)
        return self._levels(x, rope, levels)

    def encode_frames(self, pixels: Tensor) -> Tensor:
        """Encode each frame as a clip of one tubelet that repeats it; see `Encoder.encode_frames`.

        The tokens are layer-normed without affine: the space in which V-JEPA predicts. With `taps`, the normed
        outputs of those blocks are concatenated along D.
        """
        check_frames(pixels, self.image_size)
        batch, frames = pixels.shape[:2]
        tokens = self.encode_images(pixels.flatten(0, 1).permute(0, 3, 1, 2).float() / 255.0)
        return tokens.view(batch, frames, self.num_tokens, self.embed_dim)

    def encode_images(self, images: Tensor) -> Tensor:
        """As `encode_frames`, of images (F, 3, Y, X) float in [0, 1] that need not be 8-bit -> (F, N, D)."""
        clip = images.unsqueeze(1).expand(-1, self.config.tubelet_size, -1, -1, -1)
        x, rope = self._embed(self.patchify(clip), None)
        return self._levels(x, rope, self.config.taps)

    def _levels(self, x: Tensor, rope: Rope | None, levels: Sequence[int]) -> Tensor:
        """Normed outputs of the blocks `levels`, or of the final norm when there are none, concatenated."""
        tapped: dict[int, Tensor] = {}
        for index, block in enumerate(self.blocks):
            x = block(x, rope)
            if index in levels:
                tapped[index] = x
        outputs = [tapped[level] for level in levels] or [self.norm(x)]
        normed = [F.layer_norm(out, (self.config.embed_dim,), eps=LAYER_NORM_EPS) for out in outputs]
        return torch.cat(normed, dim=-1)

    def _embed(self, patches: Tensor, keep: Tensor | None) -> tuple[Tensor, Rope | None]:
        if keep is not None:
            patches = gather_tokens(patches, keep)
        # A clip shorter than num_frames uses the first ids: tokens are ordered by time first.
        index = torch.arange(patches.shape[1], device=patches.device) if keep is None else keep
        x = self.patch_embed(patches)
        if self.config.pos_embed == "sincos":
            return x + self.pos_table[index], None
        return x, self.rope(index)
