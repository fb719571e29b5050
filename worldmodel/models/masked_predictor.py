"""V-JEPA's narrow predictor: from visible tokens to the representation of masked ones, or to other targets.

Kept apart from the encoders: it exists only during pretraining and is never shipped.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from worldmodel.errors import ConfigError
from worldmodel.models.init import seeded_weights
from worldmodel.models.vit import (
    LAYER_NORM_EPS,
    Block,
    RopeGrid,
    ViTConfig,
    init_transformer,
    position_table,
    run_blocks,
)


@dataclass(kw_only=True)
class MaskedPredictorConfig:
    """Sizes of the predictor; position embedding and grid follow the encoder's.

    Defaults: a width of half the default encoder's, where V-JEPA has 384, 12 blocks and 12 heads (version 1: the
    encoder's heads) for every encoder (arXiv:2404.08471, appendix; 2506.09985, appendix): see configs/target/.

    Attributes:
        embed_dim: Width, narrower than the encoder's so that the encoder has to do the work.
        depth: Number of blocks.
        num_heads: Attention heads.
        mlp_ratio: Hidden width of the MLP over `embed_dim`.
        num_mask_tokens: Learned mask tokens, one per kind of mask.
    """

    embed_dim: int = 96
    depth: int = 4
    num_heads: int = 3
    mlp_ratio: float = 4.0
    num_mask_tokens: int = 2

    def __post_init__(self) -> None:
        for name in ("embed_dim", "depth", "num_heads", "num_mask_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be >= 1, got {getattr(self, name)}")
        if self.embed_dim % self.num_heads:
            raise ConfigError(f"embed_dim={self.embed_dim} must be a multiple of num_heads={self.num_heads}")


class MaskedPredictor(nn.Module):
    """Transformer over [visible tokens ; mask tokens at the target positions] (arXiv:2404.08471, section 3).

    Args:
        config: Sizes.
        encoder: Config of the encoder whose tokens it reads.
        target_dim: Numbers per token that it predicts; None for as many as the encoder gives.
        seed: Seed of the initial weights.

    Attributes:
        checkpoint_activations: Trade time for memory in training; see `run_blocks`.
    """

    pos_table: Tensor

    def __init__(
        self, config: MaskedPredictorConfig, encoder: ViTConfig, *, target_dim: int | None = None, seed: int = 0
    ) -> None:
        super().__init__()
        self.config = config
        self.encoder_config = encoder
        self.checkpoint_activations = False
        self.uses_rope = encoder.pos_embed == "rope"
        self.mask_tokens = nn.Parameter(torch.zeros(config.num_mask_tokens, config.embed_dim))
        with seeded_weights(seed):  # new layers draw from the global stream, even where they are initialised again
            self.predictor_embed = nn.Linear(encoder.embed_dim, config.embed_dim)
            self.predictor_blocks = nn.ModuleList(
                Block(config.embed_dim, config.num_heads, config.mlp_ratio) for _ in range(config.depth)
            )
            self.predictor_norm = nn.LayerNorm(config.embed_dim, eps=LAYER_NORM_EPS)
            self.predictor_proj = nn.Linear(config.embed_dim, target_dim or encoder.embed_dim)
        init_transformer(self, torch.Generator().manual_seed(seed))
        if self.uses_rope:
            self.rope = RopeGrid(encoder.grid, config.embed_dim // config.num_heads, tiled=encoder.rope_tiled)
        else:
            self.register_buffer("pos_table", position_table(encoder, config.embed_dim), persistent=False)

    def forward(
        self, context: Tensor, keep: Tensor, target: Tensor, *, mask_type: int = 0, with_context: bool = False
    ) -> Tensor:
        """Predict the representation at the target positions.

        Args:
            context: (B, K, D) encoded visible tokens.
            keep: (B, K) long, their token ids.
            target: (B, M) long, ids to predict.
            mask_type: Which learned mask token to use.
            with_context: Also return the outputs at the visible positions.

        Returns:
            (B, M, target_dim); with `with_context` (B, K + M, target_dim), the visible positions first.
        """
        visible = keep.shape[1]
        index = torch.cat((keep, target), dim=1)
        embedded = self.predictor_embed(context)
        masks = self.mask_tokens[mask_type].to(embedded.dtype).expand(*target.shape, -1)
        x = torch.cat((embedded, masks), dim=1)
        rope = self.rope(index) if self.uses_rope else None
        if not self.uses_rope:
            x = x + self.pos_table[index]
        x = run_blocks(self.predictor_blocks, x, rope, checkpointed=self.checkpoint_activations)
        out: Tensor = self.predictor_proj(self.predictor_norm(x if with_context else x[:, visible:]))
        return out
