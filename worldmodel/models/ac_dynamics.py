"""V-JEPA 2-AC as dynamics of a `WorldModel`: env actions and proprioception become poses and changes of poses.

Kept apart from `ac_predictor.py`, which is the published network and knows 7-DoF poses only. Here is what an
environment must say about its arm for that network to serve it (`PoseMap`), and the seam to `WorldModel`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from worldmodel.errors import ConfigError
from worldmodel.models.ac_predictor import ACPredictor, ACPredictorConfig
from worldmodel.models.action_predictor import ProprioPredictor
from worldmodel.models.pose import POSE_DIM, propagate_pose


@dataclass(kw_only=True)
class PoseMap:
    """How proprioception and actions of an environment read as poses; the hand's orientation is fixed.

    The defaults are those of the tabletop environments, whose hand points down and whose proprioception is position
    (m) and opening of a finger (m).

    Attributes:
        position: Entries of the proprioception with the position of the hand, metres.
        opening: Entry with the opening of the gripper, metres; None without a gripper.
        max_opening_m: Opening at which the gripper counts as open (closedness 0).
        rotation_rad: Extrinsic xyz Euler angles of the hand.
        shift: Entries of an env action that shift the hand along x, y and z.
        shift_m: Metres per unit of them.
        grip: Entry that changes the opening; None without a gripper.
        grip_m: Metres per unit of it, positive when positive opens.
    """

    position: tuple[int, ...] = (0, 1, 2)
    opening: int | None = 3
    max_opening_m: float = 0.04
    rotation_rad: tuple[float, ...] = (math.pi, 0.0, 0.0)
    shift: tuple[int, ...] = (0, 1, 2)
    shift_m: float = 0.04
    grip: int | None = 3
    grip_m: float = 0.01

    def __post_init__(self) -> None:
        for name in ("position", "rotation_rad", "shift"):
            setattr(self, name, tuple(getattr(self, name)))  # OmegaConf hands over lists
            if len(getattr(self, name)) != 3:
                raise ConfigError(f"{name} must be three numbers, got {getattr(self, name)}")
        if (self.opening is None) != (self.grip is None):
            raise ConfigError(f"opening and grip are both entries or both None, got {self.opening} and {self.grip}")
        if not self.max_opening_m > 0:
            raise ConfigError(f"max_opening_m must be > 0, got {self.max_opening_m}")

    def check(self, proprio_dim: int, action_dim: int) -> None:
        """Refuse entries that proprioception or env actions do not have.

        Raises:
            ConfigError: An entry is out of range.
        """
        for name, entries, size in (
            ("proprioception", (*self.position, *_one(self.opening)), proprio_dim),
            ("actions", (*self.shift, *_one(self.grip)), action_dim),
        ):
            if any(not 0 <= entry < size for entry in entries):
                raise ConfigError(f"the pose map reads entries {entries} of {name} that have {size} numbers")

    def poses(self, proprio: Tensor) -> Tensor:
        """Proprioception (..., P), env units -> poses (..., 7)."""
        closed = proprio.new_zeros(proprio.shape[:-1])
        if self.opening is not None:
            closed = (1 - proprio[..., self.opening] / self.max_opening_m).clamp(0, 1)
        turn = proprio.new_tensor(self.rotation_rad).expand(*proprio.shape[:-1], 3)
        return torch.cat([proprio[..., list(self.position)], turn, closed.unsqueeze(-1)], dim=-1)

    def proprio(self, poses: Tensor, like: Tensor) -> Tensor:
        """Poses (..., 7) -> proprioception (..., P); entries no pose tells are those of `like`, which broadcasts."""
        known = like.expand(*poses.shape[:-1], like.shape[-1]).clone()
        known[..., list(self.position)] = poses[..., :3]
        if self.opening is not None:
            known[..., self.opening] = self.max_opening_m * (1 - poses[..., 6])
        return known

    def changes(self, actions: Tensor, action_dim: int) -> Tensor:
        """Flat model actions (..., A), env units -> commanded changes of the pose (..., 7), without rotation."""
        total = actions.unflatten(-1, (-1, action_dim)).sum(dim=-2)
        change: Tensor = total.new_zeros(*total.shape[:-1], POSE_DIM)
        change[..., :3] = self.shift_m * total[..., list(self.shift)]
        if self.grip is not None:
            change[..., 6] = -self.grip_m / self.max_opening_m * total[..., self.grip]
        return change


@dataclass(kw_only=True)
class ACDynamicsConfig(ACPredictorConfig, PoseMap):
    """The published network, and how an environment's numbers read as poses.

    Attributes:
        window: Frames a rollout starts from, fewer than those of the training clips. The released controller starts
            from the present one alone.
        env_action_dim: Numbers in one env action.
    """

    window: int = 1
    env_action_dim: int = 4

    def __post_init__(self) -> None:
        ACPredictorConfig.__post_init__(self)
        PoseMap.__post_init__(self)
        if self.window < 1 or self.env_action_dim < 1:
            raise ConfigError(f"window and env_action_dim must be >= 1, got {self.window} and {self.env_action_dim}")
        if self.uses_extrinsics:
            raise ConfigError("uses_extrinsics=true needs camera poses, which no environment gives; set it to false")


class ACDynamics(ProprioPredictor):
    """`ACPredictor` behind the interface of action predictors; latents are layer-normed patch tokens.

    Args:
        config: Sizes and pose map.
        num_tokens: N, a square number.
        latent_dim: D; must be the config's.
        action_dim: A; a multiple of the config's `env_action_dim`.
        seed: Seed of the initial weights.

    Raises:
        ConfigError: The sizes do not belong together.
    """

    def __init__(
        self, config: ACDynamicsConfig, *, num_tokens: int, latent_dim: int, action_dim: int, seed: int = 0
    ) -> None:
        super().__init__()
        if latent_dim != config.latent_dim or math.isqrt(num_tokens) ** 2 != num_tokens:
            raise ConfigError(
                f"V-JEPA 2-AC takes a square number of tokens of width {config.latent_dim}, got {num_tokens} of width "
                f"{latent_dim}"
            )
        if action_dim % config.env_action_dim:
            raise ConfigError(
                f"flat actions of {action_dim} numbers are no whole env actions of {config.env_action_dim}"
            )
        self.config = config
        self.window, self.num_tokens = config.window, num_tokens
        self.latent_dim, self.action_dim = latent_dim, action_dim
        self.network = ACPredictor(config, seed=seed)

    @property
    def candidate_bytes(self) -> int:
        """See `ActionPredictor.candidate_bytes`: activations of one block, and its attention scores, in fp32."""
        tokens = (self.window + 1) * (self.num_tokens + self.network.num_conditions)
        width = self.config.embed_dim
        hidden = round((4 + 2 * self.config.mlp_ratio) * width) + self.latent_dim
        return 4 * tokens * (hidden + self.config.num_heads * tokens)

    def rollout_from(
        self, context_z: Tensor, context_actions: Tensor, actions: Tensor, context_proprio: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See `ProprioPredictor.rollout_from`; actions and proprioception are in env units (identity normalisers)."""
        self.check_rollout(context_z, context_actions, actions)
        size = self.config.env_action_dim
        poses = self.config.poses(context_proprio)
        future = self.config.changes(actions, size)
        past = self.config.changes(context_actions, size)
        visual = self.network.rollout(context_z, poses, past, future)
        pose, path = poses[:, -1:].expand(-1, actions.shape[1], -1), []
        for step in range(actions.shape[2]):
            pose = propagate_pose(pose, future[:, :, step])
            path.append(pose)
        return visual, self.config.proprio(torch.stack(path, dim=2), context_proprio[:, -1:, None])


def _one(entry: int | None) -> tuple[int, ...]:
    return () if entry is None else (entry,)
