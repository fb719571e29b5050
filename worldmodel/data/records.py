"""What an episode is in memory, and the checks and digest that belong to it.

Kept apart from the file format so that collectors, importers and tests can make episodes without touching HDF5.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from worldmodel.display import facts_table, film_strip, html_of
from worldmodel.errors import DataError

ARRAYS = ("pixels", "proprio", "action", "privileged", "contact")
"""Names of the per-frame arrays, in the order in which they are hashed."""
_SHOWN = 6  # frames that a notebook shows


@dataclass(frozen=True, kw_only=True)
class EpisodeSpec:
    """What every episode of a file has in common.

    Attributes:
        env_id: Environment of the first episode; others may follow when everything below agrees.
        image_size: Height and width of a frame, pixels.
        action_low: Lower bounds of the env action (A_env numbers).
        action_high: Upper bounds of the env action.
        proprio_names: Names of the proprioceptive entries.
        privileged_names: Names of the true quantities kept for probes.
        control_dt_s: Seconds between two frames.
    """

    env_id: str
    image_size: int
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    proprio_names: tuple[str, ...]
    privileged_names: tuple[str, ...]
    control_dt_s: float

    def __post_init__(self) -> None:
        if self.image_size < 1:
            raise DataError(f"image_size must be >= 1, got {self.image_size}")
        if not self.action_low or len(self.action_low) != len(self.action_high):
            raise DataError(
                "action_low and action_high must be non-empty and of one length, "
                f"got {self.action_low} and {self.action_high}"
            )
        if not self.control_dt_s > 0:
            raise DataError(f"control_dt_s must be > 0, got {self.control_dt_s}")

    @property
    def action_dim(self) -> int:
        """Length of one env action."""
        return len(self.action_low)

    def array_layout(self) -> dict[str, tuple[tuple[int, ...], type[np.generic]]]:
        """Shape of one row and dtype of every array."""
        return {
            "pixels": ((self.image_size, self.image_size, 3), np.uint8),
            "proprio": ((len(self.proprio_names),), np.float32),
            "action": ((self.action_dim,), np.float32),
            "privileged": ((len(self.privileged_names),), np.float32),
            "contact": ((), np.bool_),
        }

    def differences(self, other: EpisodeSpec) -> list[str]:
        """Fields other than `env_id` in which two specs disagree, one readable entry each."""
        mine, theirs = asdict(self), asdict(other)
        return [f"{k}: {mine[k]} against {theirs[k]}" for k in mine if k != "env_id" and mine[k] != theirs[k]]

    def to_json(self) -> str:
        """Canonical JSON text."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> EpisodeSpec:
        """Inverse of `to_json`.

        Raises:
            DataError: The text is not the JSON of a spec.
        """
        try:
            record = json.loads(text)
            return cls(
                env_id=str(record["env_id"]),
                image_size=int(record["image_size"]),
                action_low=tuple(float(bound) for bound in record["action_low"]),
                action_high=tuple(float(bound) for bound in record["action_high"]),
                proprio_names=tuple(str(name) for name in record["proprio_names"]),
                privileged_names=tuple(str(name) for name in record["privileged_names"]),
                control_dt_s=float(record["control_dt_s"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            reason = f"no {error} in it" if isinstance(error, KeyError) else str(error)
            raise DataError(f"episode spec is not readable: {reason}") from error


@dataclass(kw_only=True)
class Episode:
    """One recorded episode of T steps, hence T + 1 frames.

    Attributes:
        pixels: (T+1, Y, X, 3) uint8.
        proprio: (T+1, P) float32, env units.
        action: (T, A_env) float32, the action taken after frame t.
        privileged: (T+1, G) float32 true quantities, for probes only.
        contact: (T+1,) bool, gripper touches object.
        policy: Name of what acted, e.g. "play".
        seed: Seed of the episode's own random stream.
        success: Success predicate at the last frame.
        env_id: Environment id; empty means the one of the file's spec.
    """

    pixels: NDArray[np.uint8]
    proprio: NDArray[np.float32]
    action: NDArray[np.float32]
    privileged: NDArray[np.float32]
    contact: NDArray[np.bool_]
    policy: str
    seed: int
    success: bool
    env_id: str = ""

    @property
    def num_frames(self) -> int:
        """Number of frames, T + 1."""
        return len(self.pixels)

    def __rich__(self) -> Table:
        facts = {
            "steps": self.num_frames - 1,
            "policy": self.policy,
            "ends in": "success" if self.success else "failure",
            "contact": f"in {int(self.contact.sum())} of {self.num_frames} frames",
            "seed": self.seed,
        }
        return facts_table(f"episode {self.env_id}".strip(), facts)

    def _repr_html_(self) -> str:
        chosen = np.linspace(0, self.num_frames - 1, min(_SHOWN, self.num_frames)).astype(int)
        listed = ", ".join(map(str, chosen))
        return html_of(self.__rich__(), film_strip(self.pixels[chosen], f"frames {listed}"))


def frame_rows(episode: Episode) -> dict[str, NDArray[Any]]:
    """The arrays as stored: all row-aligned with frames, the action padded with a zero row."""
    pad = np.zeros((1, episode.action.shape[1]), np.float32)
    return {
        "pixels": episode.pixels,
        "proprio": episode.proprio,
        "action": np.concatenate([episode.action, pad]),
        "privileged": episode.privileged,
        "contact": episode.contact,
    }


def episode_digest(episode: Episode) -> bytes:
    """SHA-256 over the values and the index entries of one episode, whatever the chunking."""
    sha = hashlib.sha256()
    head = [episode.env_id, episode.policy, int(episode.seed), bool(episode.success), episode.num_frames]
    sha.update(json.dumps(head).encode())
    for name, values in frame_rows(episode).items():
        sha.update(f"|{name}{values.shape}{values.dtype.str}|".encode())
        sha.update(np.ascontiguousarray(values).data)
    return sha.digest()


def check_episode(episode: Episode, spec: EpisodeSpec, where: str) -> None:
    """Raise DataError unless shapes, dtypes and values fit the spec."""
    num_frames = episode.num_frames
    if num_frames < 2:
        raise DataError(f"{where} has {num_frames} frames, expected at least 2")
    if episode.action.ndim != 2:
        raise DataError(f"array action of {where} must be (T, {spec.action_dim}), got shape {episode.action.shape}")
    for name, values in frame_rows(episode).items():
        row_shape, dtype = spec.array_layout()[name]
        if values.shape != (num_frames, *row_shape):
            raise DataError(f"array {name} of {where} has shape {values.shape}, expected {(num_frames, *row_shape)}")
        if values.dtype != dtype:
            raise DataError(f"array {name} of {where} has dtype {values.dtype}, expected {np.dtype(dtype)}")
        if dtype is np.float32 and not np.isfinite(values).all():
            raise DataError(f"array {name} of {where} holds NaN or infinite values; record that episode again")
