"""No teacher at all: predict the encoder's own representation, kept from collapsing by SIGReg.

SIGReg (LeJEPA, arXiv:2511.08544) alone can be satisfied by features that tell episodes apart and never change within
one; here it also acts on what changes within a clip.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel.errors import ConfigError
from worldmodel.learning.masked import MaskedConfig, MaskedTask, View
from worldmodel.learning.sigreg import sigreg
from worldmodel.models.init import seeded_weights
from worldmodel.models.vit import ViTConfig, init_transformer


@dataclass(kw_only=True)
class OnlineConfig(MaskedConfig):
    """Masked prediction of the projected features of the encoder itself, gradient on both sides.

    Attributes:
        sigreg_weight: Weight of SIGReg on the mean over a frame and, with `centred`, on its deviation from the mean of
            the clip. Prediction is a mean over clips and SIGReg grows with their number, so what keeps 32 clips apart
            is far above the published .02 to .1 for larger batches: .2 collapses on Push, .5 does not (`docs/log.md`).
        centred: Also ask for variation within clips. Without it, features that only tell episodes apart satisfy
            SIGReg: the slow-feature trap.
        sigreg_directions: Random directions SIGReg looks along.
        hidden_dim: Hidden width of the projector.
        target_dim: Width of the projected features.
    """

    sigreg_weight: float = 0.5
    centred: bool = True
    sigreg_directions: int = 256
    hidden_dim: int = 256
    target_dim: int = 64
    loss_exp: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sigreg_weight < 0:
            raise ConfigError(f"sigreg_weight must be >= 0, got {self.sigreg_weight}")
        for name in ("sigreg_directions", "hidden_dim", "target_dim"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be >= 1, got {getattr(self, name)}")


class OnlineTask(MaskedTask):
    """Encoder, projector and predictor.

    Args:
        encoder: Config of the encoder.
        config: Objective.
        background: As for `MaskedTask`.
        seed: Seed of the initial weights.
    """

    def __init__(
        self, encoder: ViTConfig, config: OnlineConfig, *, background: Tensor | None = None, seed: int = 0
    ) -> None:
        super().__init__(encoder, config, target_dim=config.target_dim, background=background, seed=seed)
        self.config = config
        with seeded_weights(seed):
            self.projector = nn.Sequential(
                nn.Linear(encoder.embed_dim, config.hidden_dim),
                nn.BatchNorm1d(config.hidden_dim),
                nn.GELU(),
                nn.Linear(config.hidden_dim, config.target_dim),
            )
        init_transformer(self.projector, torch.Generator().manual_seed(seed + 2))

    def targets(self, view: View) -> Tensor:
        """Projected features; differentiable."""
        features = self.encoder.forward_patches(self.encoder.patchify(view.video))
        h: Tensor = self.projector(features.flatten(0, 1)).float().view(*features.shape[:2], -1)
        if self.training:
            view.statistics.update(h.detach())
        return h

    def raw_targets(self, view: View) -> Tensor:
        """Projected features as in training: normed by the statistics of these clips, not by the running ones."""
        features = self.encoder.forward_patches(self.encoder.patchify(view.video))
        first, norm, *last = self.projector
        assert isinstance(norm, nn.BatchNorm1d)
        hidden: Tensor = first(features.flatten(0, 1)).float()
        hidden = F.batch_norm(hidden, None, None, norm.weight, norm.bias, training=True, eps=norm.eps)
        for layer in last:
            hidden = layer(hidden)
        return hidden.float().view(*features.shape[:2], -1)

    def regularisation(self, view: View, targets: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """SIGReg on frame means and, for whole clips, on their deviation from the mean of the clip."""
        plane = self.frame_statistics.mean.shape[0]
        frames = targets.unflatten(1, (-1, plane)).mean(dim=2)  # (B, T', D)
        samples = [frames.flatten(0, 1)]
        count = frames.shape[1]
        if self.config.centred and count > 1:
            # The deviations of a clip sum to zero; the factor gives them the variance of independent ones.
            centred = (frames - frames.mean(dim=1, keepdim=True)) * (count / (count - 1)) ** 0.5
            samples.append(centred.flatten(0, 1))
        values = [
            sigreg(sample.unsqueeze(0), num_directions=self.config.sigreg_directions, generator=generator)
            for sample in samples
        ]
        return {"sigreg": self.config.sigreg_weight * torch.stack(values).mean()}
