"""The world model as agents and planners meet it: pixels in, latents out, actions in env units.

The only place where actions and proprioception are normalised, so that training and serving cannot drift apart, and
the only place where batches are cut into blocks of fixed shape, so that a problem gives the same bits alone or in
company.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from rich.table import Table
from torch import Tensor, nn

from worldmodel.data.normalize import Normalizer
from worldmodel.display import facts_table, html_of
from worldmodel.errors import ConfigError
from worldmodel.models.action_predictor import ActionPredictor, ProprioPredictor
from worldmodel.models.encoders import Encoder
from worldmodel.models.latent_head import LatentHead
from worldmodel.models.temporal_distance import TemporalDistance
from worldmodel.types import Context, Latent

LATENTS = ("compact", "patch", "pixels")
ROLLOUT_BYTES = 2 * 1024**3
"""Memory that a rollout may take at once, unless the size of its blocks is given."""
MAX_CANDIDATE_BLOCK = 512


@dataclass(kw_only=True)
class ModelSpec:
    """What a world model was trained for; a checkpoint refuses anything else.

    Attributes:
        env_ids: Environments whose data it was trained on.
        action_dim: Length of one env action.
        action_low: Lower bounds of the env action (action_dim numbers).
        action_high: Upper bounds of the env action.
        action_block: Consecutive env actions in one model step.
        image_size: Height and width of a frame, pixels.
        proprio_names: Names of the proprioceptive entries.
        latent: "compact" (one vector per frame), "patch" (one per patch) or "pixels" (the frame itself, drawn).
    """

    env_ids: tuple[str, ...]
    action_dim: int
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    action_block: int
    image_size: int
    proprio_names: tuple[str, ...]
    latent: str = "compact"

    def __post_init__(self) -> None:
        if self.latent not in LATENTS:
            raise ConfigError(f"latent must be one of {', '.join(LATENTS)}, got {self.latent!r}")
        if self.action_dim < 1 or self.action_block < 1 or self.image_size < 1:
            got = f"{self.action_dim}, {self.action_block}, {self.image_size}"
            raise ConfigError(f"action_dim, action_block and image_size must be >= 1, got {got}")
        if len(self.action_low) != self.action_dim or len(self.action_high) != self.action_dim:
            got = f"{len(self.action_low)} and {len(self.action_high)}"
            raise ConfigError(f"action_low and action_high must hold action_dim={self.action_dim} numbers, got {got}")

    @property
    def flat_action_dim(self) -> int:
        """A: length of one flat model action."""
        return self.action_dim * self.action_block

    def flat_bounds(self, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
        """Bounds (A,) and (A,) of the flat model action, env units."""
        low = torch.tensor(self.action_low * self.action_block, dtype=torch.float32, device=device)
        high = torch.tensor(self.action_high * self.action_block, dtype=torch.float32, device=device)
        return low, high


class WorldModel(nn.Module):
    """Encoder, latent head, action predictor and the normalisation around them. Always in evaluation mode.

    Args:
        encoder: Frozen frame encoder.
        head: Turns its tokens into the planning latent.
        predictor: Dynamics in that latent.
        action_normalizer: Of flat model actions (A).
        proprio_normalizer: Of proprioception (P).
        spec: What the model was trained for.
        temporal_distance: Learned number of steps between two latents, or None.
        candidate_block: Candidates rolled out at once; more are cut into blocks of this size, the last one padded.
            None takes as many as fit into `ROLLOUT_BYTES`, at most `MAX_CANDIDATE_BLOCK`. Never changes with the number
            of problems.

    Raises:
        ConfigError: The parts do not fit each other or the spec.
    """

    def __init__(
        self,
        encoder: Encoder,
        head: LatentHead,
        predictor: ActionPredictor,
        action_normalizer: Normalizer,
        proprio_normalizer: Normalizer,
        spec: ModelSpec,
        *,
        temporal_distance: TemporalDistance | None = None,
        candidate_block: int | None = None,
    ) -> None:
        super().__init__()
        if predictor.action_dim != spec.flat_action_dim:
            raise ConfigError(
                f"the predictor takes actions of width {predictor.action_dim}, the spec asks for "
                f"{spec.flat_action_dim} (action_dim {spec.action_dim} x action_block {spec.action_block})"
            )
        shapes = (head.num_tokens, head.latent_dim), (predictor.num_tokens, predictor.latent_dim)
        if shapes[0] != shapes[1]:
            raise ConfigError(f"the head gives latents (N, D) = {shapes[0]}, the predictor takes {shapes[1]}")
        if temporal_distance is not None and temporal_distance.latent_dim != head.num_tokens * head.latent_dim:
            raise ConfigError(
                f"the temporal distance takes latents of {temporal_distance.latent_dim} numbers, the head gives "
                f"{head.num_tokens} x {head.latent_dim}"
            )
        if candidate_block is None:
            fitting = ROLLOUT_BYTES // max(predictor.candidate_bytes, 1)
            candidate_block = max(1, min(fitting, MAX_CANDIDATE_BLOCK))
        if candidate_block < 1:
            raise ConfigError(f"candidate_block must be >= 1, got {candidate_block}")
        self.encoder = encoder
        self.head = head
        self.predictor = predictor
        self.action_normalizer = action_normalizer
        self.proprio_normalizer = proprio_normalizer
        self.spec = spec
        self.temporal_distance = temporal_distance
        self.candidate_block = candidate_block
        self.requires_grad_(False)
        self.eval()

    def with_predictor(self, predictor: ActionPredictor) -> WorldModel:
        """The same model around another predictor; the other parts are shared."""
        return WorldModel(
            self.encoder,
            self.head,
            predictor,
            self.action_normalizer,
            self.proprio_normalizer,
            self.spec,
            temporal_distance=self.temporal_distance,
            candidate_block=self.candidate_block,
        )

    @property
    def device(self) -> torch.device:
        """Where the weights are; inputs are moved there."""
        return self.action_normalizer.mean.device

    @property
    def window(self) -> int:
        """Frames of context the predictor can use."""
        return self.predictor.window

    def __rich__(self) -> Table:
        spec, head, predictor = self.spec, self.head, self.predictor
        block = f" in model steps of {spec.action_block}" if spec.action_block > 1 else ""
        distance = "none" if self.temporal_distance is None else f"{_parameters(self.temporal_distance)} parameters"
        facts = {
            "environments": ", ".join(spec.env_ids),
            "frames": f"{spec.image_size} x {spec.image_size} pixels",
            "actions": f"{spec.action_dim} numbers{block}",
            "encoder": f"{type(self.encoder).__name__}, {_parameters(self.encoder)} parameters, "
            f"{self.encoder.num_tokens} tokens of {self.encoder.embed_dim}",
            "latent": f"{spec.latent}: {head.num_tokens} x {head.latent_dim} numbers a frame, "
            f"{type(head).__name__} of {_parameters(head)} parameters",
            "predictor": f"{type(predictor).__name__}, {_parameters(predictor)} parameters, "
            f"looks back {predictor.window} {'frame' if predictor.window == 1 else 'frames'}",
            "temporal distance": distance,
            "device": str(self.device),
        }
        return facts_table("world model", facts)

    def _repr_html_(self) -> str:
        return html_of(self.__rich__())

    def encode(self, pixels: Tensor, proprio: Tensor | None = None) -> Latent:
        """Latent of real frames.

        Frames are encoded one by one: the same frame gives the same bits whatever it is encoded with. `encode_batch`
        is faster for many; bulk encoding for training lives in `learning.features`.

        Args:
            pixels: (B, T, Y, X, 3) uint8.
            proprio: (B, T, P) env units, or None.

        Raises:
            ConfigError: Wrong shape or dtype.
        """
        self._check_pixels(pixels, "B, T")
        problems, frames = pixels.shape[:2]
        with torch.no_grad():
            moved = pixels.to(self.device).flatten(0, 1)
            latents = [self.head(self.encoder.encode_frames(moved[i : i + 1, None].clone())) for i in range(len(moved))]
            visual = torch.cat(latents).view(problems, frames, self.head.num_tokens, self.head.latent_dim)
            return Latent(visual=visual, proprio=None if proprio is None else self._normal_proprio(proprio, pixels))

    @torch.no_grad()
    def encode_batch(self, pixels: Tensor) -> Tensor:
        """Latents of many frames in one pass; their last bits depend on how many there are.

        Args:
            pixels: (F, Y, X, 3) uint8.

        Returns:
            (F, N, D).

        Raises:
            ConfigError: Wrong shape or dtype.
        """
        self._check_pixels(pixels, "F")
        latents: Tensor = self.head(self.encoder.encode_frames(pixels.to(self.device).unsqueeze(1)))
        return latents.squeeze(1)

    def _check_pixels(self, pixels: Tensor, leading: str) -> None:
        """Refuse frames of another shape or dtype; `leading` names the dimensions before (Y, X, 3)."""
        size, count = self.spec.image_size, leading.count(",") + 1
        if tuple(pixels.shape[count:]) != (size, size, 3) or pixels.dim() != count + 3 or pixels.dtype != torch.uint8:
            expected = f"({leading}, {size}, {size}, 3) uint8"
            raise ConfigError(f"pixels must be {expected}, got {tuple(pixels.shape)} {pixels.dtype}")

    def _normal_proprio(self, proprio: Tensor, pixels: Tensor) -> Tensor:
        expected = (*pixels.shape[:2], len(self.spec.proprio_names))
        if tuple(proprio.shape) != expected:
            raise ConfigError(f"proprio must be (B, T, P) = {expected}, got {tuple(proprio.shape)}")
        normal: Tensor = self.proprio_normalizer(proprio.to(device=self.device, dtype=torch.float32))
        return normal

    def rollout(self, context: Context, actions: Tensor) -> Latent:
        """Imagine the latents that follow candidate action sequences.

        Runs without autograd unless `actions.requires_grad`.

        Args:
            context: What has been seen; its actions are in env units.
            actions: (B, S, H, A) env units.

        Returns:
            Latent with visual (B, S, H, N, D); proprio (B, S, H, P) of predictors that carry it along, else None.

        Raises:
            ConfigError: The shapes do not belong together, or the predictor needs proprioception and there is none.
        """
        if actions.dim() != 4 or actions.shape[3] != self.spec.flat_action_dim:
            expected = f"(B, S, H, {self.spec.flat_action_dim})"
            raise ConfigError(f"actions must be (B, S, H, A) = {expected}, got {tuple(actions.shape)}")
        visual = context.latent.visual.to(self.device)
        if len(visual) != len(actions):
            raise ConfigError(f"context holds {len(visual)} problems, actions {len(actions)}")
        past = context.actions.to(self.device)
        body = context.latent.proprio
        if isinstance(self.predictor, ProprioPredictor) and body is None:
            raise ConfigError("this model predicts from proprioception too: encode(pixels, proprio), then roll out")
        with torch.inference_mode(mode=not actions.requires_grad):
            moved = actions.to(device=self.device, dtype=torch.float32)
            rows = [
                self._rollout_problem(visual[i], past[i], moved[i], None if body is None else body[i].to(self.device))
                for i in range(len(moved))
            ]
            proprio = [row.proprio for row in rows if row.proprio is not None]
            return Latent(
                visual=torch.stack([row.visual for row in rows]), proprio=torch.stack(proprio) if proprio else None
            )

    def _rollout_problem(self, visual: Tensor, past: Tensor, actions: Tensor, body: Tensor | None) -> Latent:
        """Roll out the candidates (S, H, A) of one problem in blocks whose shape depends on S alone.

        The copies matter: a slice of a batch starts at another alignment than a tensor of its own, and matrix kernels
        choose their path by it.
        """
        context_z = visual.clone()[None]
        context_actions = self.action_normalizer(past.clone())[None]
        candidates = len(actions)
        size = min(candidates, self.candidate_block)
        visuals, bodies = [], []
        for start in range(0, candidates, size):
            block = actions[start : start + size]
            missing = size - len(block)
            block = torch.cat([block, block[-1:].expand(missing, -1, -1)]) if missing else block.clone()
            normal = self.action_normalizer(block)[None]
            if isinstance(self.predictor, ProprioPredictor) and body is not None:
                seen, felt = self.predictor.rollout_from(context_z, context_actions, normal, body.clone()[None])
                bodies.append(felt[0])
            else:
                seen = self.predictor.rollout(context_z, context_actions, normal)
            visuals.append(seen[0])
        return Latent(visual=_joined(visuals, candidates), proprio=_joined(bodies, candidates) if bodies else None)


def _joined(parts: list[Tensor], candidates: int) -> Tensor:
    """Blocks of candidates put together, without the padding of the last."""
    return torch.cat(parts)[:candidates] if len(parts) > 1 else parts[0]


def _parameters(module: nn.Module) -> str:
    """Their number, in thousands or millions where that is shorter."""
    count = sum(parameter.numel() for parameter in module.parameters())
    return str(count) if count < 1000 else f"{count / 1e3:.0f} k" if count < 1_000_000 else f"{count / 1e6:.1f} M"
