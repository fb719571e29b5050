"""How much arithmetic an episode takes, counted once on the model and multiplied by what the episode asked of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from worldmodel.control.costs import LatentCost
from worldmodel.control.objectives import Objective
from worldmodel.evaluation.episodes import EpisodeRun
from worldmodel.evaluation.products import matmul_flops
from worldmodel.models.world_model import WorldModel
from worldmodel.types import Context, Latent


@dataclass(frozen=True, kw_only=True)
class ModelFlops:
    """Floating-point operations of the matrix products that planning with a model takes.

    Attributes:
        encoding: Of one frame.
        candidate: Of one candidate sequence, rolled out and scored. What the candidates of a plan share is left out.
        window: Frames of context the model keeps; with one, only the frames that are planned from are encoded.
        action_block: Env actions in one model step.
        parameters: Numbers in the weights of the model, the frozen encoder included.
    """

    encoding: int
    candidate: int
    window: int
    action_block: int
    parameters: int = 0

    def of_episode(self, run: EpisodeRun) -> int:
        """Of the goal and the frames that were encoded, and of every candidate scored."""
        model_steps = math.ceil(run.result.steps / self.action_block)
        frames = 1 + (model_steps if self.window > 1 else run.result.replans)
        return frames * self.encoding + run.model_calls * self.candidate


def measure_flops(world_model: WorldModel, objective: Objective, horizon: int) -> ModelFlops:
    """Count the matrix products of one frame and of one candidate.

    Args:
        world_model: The model, which runs on frames and actions of zeros.
        objective: What candidates are scored with, not yet bound to the model.
        horizon: H, model steps of a candidate.
    """
    spec, window = world_model.spec, world_model.window
    frame = torch.zeros(1, 1, spec.image_size, spec.image_size, 3, dtype=torch.uint8)
    encoding = matmul_flops(lambda: world_model.encode(frame))
    body = torch.zeros(1, 1, len(spec.proprio_names))
    seen = world_model.encode(frame, body)
    goal = Latent(visual=seen.visual)
    actions = torch.zeros(1, window - 1, spec.flat_action_dim, device=world_model.device)
    felt = None if seen.proprio is None else seen.proprio.expand(-1, window, -1)
    context = Context(latent=Latent(visual=goal.visual.expand(-1, window, -1, -1), proprio=felt), actions=actions)
    cost = LatentCost(world_model, objective.bind(world_model), context, goal)

    def scoring(candidates: int) -> int:
        sequences = torch.zeros(1, candidates, horizon, spec.flat_action_dim, device=world_model.device)
        return matmul_flops(lambda: cost(sequences))

    return ModelFlops(
        encoding=encoding,
        candidate=(scoring(4) - scoring(2)) // 2,
        window=window,
        action_block=spec.action_block,
        parameters=sum(weight.numel() for weight in world_model.parameters()),
    )
