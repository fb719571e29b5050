"""Action-conditioned generation of frames: the foil to predicting representations.

It reads what the planning model reads, the tokens of a frozen encoder, and has the same state vector and residual
dynamics behind them, but what it predicts is the next frame, pixel by pixel, and every further step starts from the
frame it drew. Planning with it compares pictures. Kept apart from the predictors of latents because it needs an encoder
of its own inside: to it, the latent of a frame is the frame.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from worldmodel.errors import ConfigError
from worldmodel.models.action_predictor import ActionPredictor, ResidualMLPConfig, ResidualMLPPredictor
from worldmodel.models.encoders import VideoViT
from worldmodel.models.latent_head import CompactHead, CompactHeadConfig
from worldmodel.models.vit import ViTConfig, patchify


@dataclass(kw_only=True)
class FrameDecoderConfig:
    """From the next state to the change of every patch.

    Attributes:
        place_dim: Numbers that the state says about each patch.
        hidden_dim: Hidden width of the MLP that all patches share; it reads them beside the encoder's token.
    """

    place_dim: int = 32
    hidden_dim: int = 256

    def __post_init__(self) -> None:
        for name in ("place_dim", "hidden_dim"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be >= 1, got {getattr(self, name)}")


@dataclass(kw_only=True)
class FramePredictorConfig:
    """Encoder, state, dynamics and decoder; each may be given as a mapping of its fields, as a card holds it.

    Attributes:
        encoder: The frozen encoder whose tokens are read; its patches are those that are drawn.
        state: From its tokens to one vector per frame, as the compact latent.
        dynamics: What an action does to that vector, as in the compact latent.
        decoder: From there to pixels.
    """

    encoder: ViTConfig = field(default_factory=ViTConfig)
    state: CompactHeadConfig = field(default_factory=CompactHeadConfig)
    dynamics: ResidualMLPConfig = field(default_factory=ResidualMLPConfig)
    decoder: FrameDecoderConfig = field(default_factory=FrameDecoderConfig)

    def __post_init__(self) -> None:
        for name, kind in _PARTS.items():
            value = getattr(self, name)
            if isinstance(value, Mapping):
                setattr(self, name, kind(**value))


_PARTS: dict[str, type[Any]] = {
    "encoder": ViTConfig,
    "state": CompactHeadConfig,
    "dynamics": ResidualMLPConfig,
    "decoder": FrameDecoderConfig,
}


class FrameDecoder(nn.Module):
    """Draws the change of a frame: what the next state says about a place, beside the token of that place now.

    Args:
        config: Widths.
        state_dim: Of the state.
        num_tokens: Places.
        embed_dim: Width of the encoder's tokens.
        patch_dim: Numbers of a patch.
    """

    def __init__(
        self, config: FrameDecoderConfig, *, state_dim: int, num_tokens: int, embed_dim: int, patch_dim: int
    ) -> None:
        super().__init__()
        self.num_tokens, self.place_dim = num_tokens, config.place_dim
        self.place = nn.Linear(state_dim, num_tokens * config.place_dim)
        self.up = nn.Linear(config.place_dim + embed_dim, config.hidden_dim)
        self.down = nn.Linear(config.hidden_dim, patch_dim)
        nn.init.zeros_(self.down.weight)
        nn.init.zeros_(self.down.bias)

    def forward(self, state: Tensor, tokens: Tensor) -> Tensor:
        """Map the next state (..., d) and standardised tokens (..., N, E) of the present to changes (..., N, D)."""
        place = self.place(state).unflatten(-1, (self.num_tokens, self.place_dim))
        here = tokens.expand(*place.shape[:-1], -1)  # at the first step all candidates share one frame
        change: Tensor = self.down(functional.gelu(self.up(torch.cat([place, here], dim=-1))))
        return change


class FramePredictor(ActionPredictor):
    """Predicts the next frame; the latent (N, D) of a frame is its patches in [-1, 1] (`PatchEncoder`).

    Starts as copy-last-frame, like the predictors of latents. Window 1, like the compact one.

    Args:
        config: Parts and their sizes.
        num_tokens: N; must be the number of patches of the encoder.
        latent_dim: D; must be the numbers of one of its patches.
        action_dim: A.

    Raises:
        ConfigError: Frames are cut into other patches than the encoder's.
    """

    def __init__(self, config: FramePredictorConfig, *, num_tokens: int, latent_dim: int, action_dim: int) -> None:
        super().__init__()
        patches = config.encoder.grid[1] * config.encoder.grid[2], 3 * config.encoder.patch_size**2
        if (num_tokens, latent_dim) != patches:
            raise ConfigError(
                f"the encoder reads patches (N, D) = {patches}, the frames are cut into {(num_tokens, latent_dim)}; "
                f"use patch_size={config.encoder.patch_size} and image_size={config.encoder.image_size}"
            )
        self.config = config
        self.window = 1
        self.num_tokens, self.latent_dim, self.action_dim = num_tokens, latent_dim, action_dim
        self.encoder = VideoViT(config.encoder).requires_grad_(False)
        width = self.encoder.embed_dim
        self.state = CompactHead(config.state, num_tokens=num_tokens, embed_dim=width)
        state_dim = self.state.latent_dim
        self.dynamics = ResidualMLPPredictor(config.dynamics, latent_dim=state_dim, action_dim=action_dim)
        sizes = {"state_dim": state_dim, "num_tokens": num_tokens, "embed_dim": width, "patch_dim": latent_dim}
        self.decoder = FrameDecoder(config.decoder, **sizes)

    @property
    def candidate_bytes(self) -> int:
        """One block's intermediates of the encoder, and the decoder's."""
        inside = 14 * self.encoder.embed_dim + 6 * self.latent_dim + 2 * self.config.decoder.hidden_dim
        return int(self.num_tokens * inside * self.decoder.up.weight.element_size())

    def tokens(self, z: Tensor) -> Tensor:
        """Encoder tokens (..., N, E) of frames (..., N, D); differentiable."""
        config = self.config.encoder
        _, rows, columns = config.grid
        split = z.reshape(-1, rows, columns, 3, config.patch_size, config.patch_size)
        images = split.permute(0, 3, 1, 4, 2, 5).reshape(-1, 3, config.image_size, config.image_size)
        tokens: Tensor = self.encoder.encode_images((images + 1) / 2).unflatten(0, z.shape[:-2])
        return tokens

    def draw(self, z: Tensor, tokens: Tensor, actions: Tensor) -> Tensor:
        """Next frames before they are clamped to what a picture can hold.

        Args:
            z: (..., N, D) frames.
            tokens: (..., N, E) their tokens.
            actions: (..., A) standardised.

        Returns:
            (..., N, D).
        """
        following = self.dynamics(self.state(tokens), actions).squeeze(-2)
        change: Tensor = self.decoder(following, self.state.standardise(tokens))
        return z + change

    def forward(self, z: Tensor, actions: Tensor) -> Tensor:
        """See `ActionPredictor.forward`."""
        return self.draw(z, self.tokens(z), actions).clamp(-1, 1)

    def rollout(self, context_z: Tensor, context_actions: Tensor, actions: Tensor) -> Tensor:
        """See `ActionPredictor.rollout`; frames before the last do not matter (window 1).

        The frame that is planned from is encoded once for all candidates, every frame that was drawn for itself.
        """
        self.check_rollout(context_z, context_actions, actions)
        z = context_z[:, -1:]  # (B, 1, N, D), broadcast over the candidates until the first step has told them apart
        steps = []
        for step in range(actions.shape[2]):
            z = self.draw(z, self.tokens(z), actions[:, :, step]).clamp(-1, 1)
            steps.append(z)
        return torch.stack(steps, dim=2)


def frame_patches(pixels: Tensor, patch_size: int) -> Tensor:
    """Frames (..., Y, X, 3) uint8 as patches (..., N, D) in [-1, 1]: the latent of a `FramePredictor`."""
    images = pixels.flatten(0, -4).permute(0, 3, 1, 2).unsqueeze(1).float() / 127.5 - 1.0
    patches: Tensor = patchify(images, tubelet_size=1, patch_size=patch_size).unflatten(0, pixels.shape[:-3])
    return patches
