"""Models to measure the latency of planning with, and what they have seen: the shipped one and two untrained."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from worldmodel.data.normalize import Normalizer
from worldmodel.evaluation.peers import recompute_window
from worldmodel.models.action_predictor import ActionPredictor
from worldmodel.models.action_transformer import TransformerPredictor, TransformerPredictorConfig, build_predictor
from worldmodel.models.checkpoint import load_checkpoint, resolve_checkpoint
from worldmodel.models.frozen_encoders import EncoderConfig, PatchEncoderConfig, build_encoder
from worldmodel.models.latent_head import IdentityHeadConfig, build_head
from worldmodel.models.runtime import RuntimeConfig, equipped
from worldmodel.models.vit import ViTConfig
from worldmodel.models.world_model import ModelSpec, WorldModel
from worldmodel.types import Context, Latent


class Recomputing(ActionPredictor):
    """A predictor that runs its whole window again for every step of a rollout, as peers do; the reference for speed.

    Args:
        predictor: The network; shared, not copied.
    """

    def __init__(self, predictor: ActionPredictor) -> None:
        super().__init__()
        self.predictor = predictor
        self.window = predictor.window
        self.num_tokens, self.latent_dim = predictor.num_tokens, predictor.latent_dim
        self.action_dim = predictor.action_dim

    def forward(self, z: Tensor, actions: Tensor) -> Tensor:
        """See `ActionPredictor.forward`."""
        predicted: Tensor = self.predictor(z, actions)
        return predicted

    def rollout(self, context_z: Tensor, context_actions: Tensor, actions: Tensor) -> Tensor:
        """See `ActionPredictor.rollout`."""
        problems, candidates = actions.shape[:2]

        def rows(x: Tensor) -> Tensor:
            return x.unsqueeze(1).expand(-1, candidates, *x.shape[1:]).flatten(0, 1)

        taken = torch.cat([rows(context_actions), actions.flatten(0, 1)], dim=1)
        imagined = recompute_window(self.predictor, rows(context_z), taken)
        by_problem: Tensor = imagined.unflatten(0, (problems, candidates))
        return by_problem


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A model and what it has seen.

    Attributes:
        model: World model.
        frame: (1, 1, Y, X, 3) uint8, the newest.
        earlier: Latent of the W - 1 frames before it, or None with a window of one.
        past: (1, W - 1, A) actions between them.
        goal: Latent of the goal frame.
    """

    model: WorldModel
    frame: Tensor
    earlier: Latent | None
    past: Tensor
    goal: Latent

    def context(self, *, latent: Latent | None = None) -> Context:
        """What a plan starts from; encodes the newest frame unless its latent is given."""
        newest = self.model.encode(self.frame) if latent is None else latent
        if self.earlier is None:
            return Context(latent=newest, actions=self.past)
        return Context(latent=Latent(visual=torch.cat([self.earlier.visual, newest.visual], dim=1)), actions=self.past)


def build_scene(name: str, seed: int = 0, runtime: RuntimeConfig | None = None) -> Scene:
    """The model of a name, with noise for frames and random actions.

    Args:
        name: One of `MODELS`.
        seed: Of weights, frames and actions.
        runtime: How the model computes; None means as it does by default.

    Raises:
        ConfigError: The device of `runtime` is not there.
    """
    model = (
        load_checkpoint(resolve_checkpoint("shipped", "worldmodel/Push-v0"))
        if name == "shipped"
        else _random(name, seed)
    )
    model = equipped(model, runtime or RuntimeConfig())
    generator = torch.Generator().manual_seed(seed)
    side, window = model.spec.image_size, model.window
    frames = torch.randint(0, 256, (window + 1, side, side, 3), generator=generator, dtype=torch.uint8)
    low, high = model.spec.flat_bounds()
    past = low + (high - low) * torch.rand(1, window - 1, len(low), generator=generator)
    return Scene(
        model=model,
        frame=frames[window - 1][None, None],
        earlier=model.encode(frames[None, : window - 1]) if window > 1 else None,
        past=past.to(model.device),
        goal=model.encode(frames[window][None, None]),
    )


def _random(name: str, seed: int) -> WorldModel:
    """Untrained patch model; its last layer is not zero, or a rollout would copy the last frame."""
    encoder_config: EncoderConfig = ViTConfig(embed_dim=96, depth=4, num_heads=3)
    config = TransformerPredictorConfig()
    if name == "wide":
        encoder_config = PatchEncoderConfig(image_size=256, patch_size=16)
        config = TransformerPredictorConfig(embed_dim=1024, depth=6, num_heads=16)
    encoder = build_encoder(encoder_config, seed=seed)
    sizes = {"num_tokens": encoder.num_tokens, "embed_dim": encoder.embed_dim}
    head = build_head(IdentityHeadConfig(), **sizes)
    spec = ModelSpec(
        env_ids=("worldmodel/Push-v0",),
        action_dim=2,
        action_low=(-1.0, -1.0),
        action_high=(1.0, 1.0),
        action_block=3,
        image_size=encoder_config.image_size,
        proprio_names=(),
        latent="patch",
    )
    predictor = build_predictor(
        config,
        num_tokens=encoder.num_tokens,
        latent_dim=encoder.embed_dim,
        action_dim=spec.flat_action_dim,
        seed=seed + 1,
    )
    assert isinstance(predictor, TransformerPredictor)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(seed + 2)
        predictor.out.weight.normal_(std=0.02, generator=generator)
    return WorldModel(encoder, head, predictor, Normalizer(spec.flat_action_dim), Normalizer(1), spec)
