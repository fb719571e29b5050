"""Learning the encoder together with the dynamics: raw frames in place of features.

The arm that every frozen encoder is compared with. The pixels take the place of the features and encoder and head that
of the head, so that sampler, losses and reports are the same; afterwards the two are taken apart again, so that a
checkpoint does not tell how its encoder was trained.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from worldmodel.errors import ConfigError
from worldmodel.learning.features import encode_block
from worldmodel.models.encoders import Encoder
from worldmodel.models.latent_head import LatentHead, TokenStandardiser


class PixelHead(nn.Module):
    """Encoder in training and head as one: frames (B, T, Y, X, 3) uint8 to latents (B, T, N', D').

    Args:
        encoder: Taken over, not copied; its weights will be trained.
        head: Head on its tokens.

    Attributes:
        num_tokens: N', tokens per frame of the latent.
        latent_dim: D', their width.

    Raises:
        ConfigError: The encoder has no weights.
    """

    def __init__(self, encoder: Encoder, head: LatentHead) -> None:
        super().__init__()
        if next(encoder.parameters(), None) is None:
            raise ConfigError(f"{type(encoder).__name__} has no weights to train; use another encoder, or frozen=true")
        self.encoder = encoder.requires_grad_(True)
        self.head = head
        self.num_tokens, self.latent_dim = head.num_tokens, head.latent_dim

    @property
    def standardise(self) -> TokenStandardiser:
        """Statistics of the tokens; those of the encoder before training, a fixed scale afterwards."""
        return self.head.standardise

    def tokens(self, frames: Tensor) -> Tensor:
        """Present tokens (F, N, D) float16, on the CPU, of frames (F, Y, X, 3), without gradients."""
        return torch.from_numpy(encode_block(self.encoder, frames.numpy()))

    def forward(self, frames: Tensor) -> Tensor:
        """Map frames to latents."""
        latents: Tensor = self.head(self.encoder.encode_frames(frames))
        return latents
