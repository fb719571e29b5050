"""Keeps small things in a compact latent: the tokens must be readable from it, coarsely.

Prediction, inverse dynamics and SIGReg leave open what the latent spends its width on, and a small object that is
rarely touched is cheap to forget. Decoding a random sketch of the standardised tokens, a few numbers per patch, asks
for everything that varies, without pixels and without labels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from worldmodel.models.init import seeded_weights
from worldmodel.models.latent_head import TokenStandardiser


class SketchDecoder(nn.Module):
    """Two-layer MLP from the latent to a fixed random projection of every token.

    Args:
        latent_dim: D' of the latent.
        num_tokens: N of the encoder.
        embed_dim: D of the encoder.
        sketch_dim: Numbers kept of each token.
        seed: Seed of the projection and of the initial weights.
    """

    sketch: Tensor
    scale: Tensor

    def __init__(self, *, latent_dim: int, num_tokens: int, embed_dim: int, sketch_dim: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("sketch", torch.randn(embed_dim, sketch_dim, generator=generator) / embed_dim**0.5)
        self.register_buffer("scale", torch.ones(num_tokens, sketch_dim))
        with seeded_weights(seed):
            self.hidden = nn.Linear(latent_dim, 512)
            self.out = nn.Linear(512, num_tokens * sketch_dim)

    @torch.no_grad()
    def fit(self, standardise: TokenStandardiser, frames: Tensor) -> None:
        """Scale the targets to unit deviation; `frames` (F, N, D) are raw features of training frames."""
        self.scale.copy_((standardise(frames.float()) @ self.sketch).std(dim=0).clamp_min(1e-3))

    def loss(self, z: Tensor, standardise: TokenStandardiser, features: Tensor) -> Tensor:
        """Mean squared error of the sketch of features (B, T, N, D) read from z (B, T, D')."""
        with torch.no_grad():
            target = (standardise(features.float()) @ self.sketch).float() / self.scale
        decoded = self.out(functional.gelu(self.hidden(z))).float()
        return functional.mse_loss(decoded.view_as(target), target)
