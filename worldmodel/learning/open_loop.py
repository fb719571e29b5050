"""What a trained predictor knows, measured on held-out episodes without planning.

Two questions. Does the rollout beat the two things it must beat: repeating the last frame, and the right frames under
the wrong actions? And do the latent, and the imagined latent, still hold where gripper and object are?
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table
from torch import Tensor

from worldmodel.learning.dynamics import DynamicsTask
from worldmodel.learning.features import FrameStore, TrajectorySampler, head_input
from worldmodel.learning.frames import FrameTask
from worldmodel.learning.probes import fit_ridge
from worldmodel.models.world_model import WorldModel

PROBE_FRAMES = 8192
PROBE_DIM = 1024
"""Wider latents (patches) are projected at random to this width before the probe."""
RIDGE = 1e-2
_CHUNK = 512


@dataclass(kw_only=True)
class OpenLoopReport:
    """Open-loop errors and probes. Lists run over the horizon, from one model step on.

    True quantities are clipped to their middle 99 % in the training episodes.

    Attributes:
        num_clips: Held-out clips measured.
        action_block: Env steps per model step.
        model: Mean squared latent error of the rollout over the variance of the latent: 1 is as bad as the mean.
        copy_last: The same for repeating the context frame.
        shuffled: The same for the rollout under the actions of another clip.
        variables: Names of the probed quantities.
        spread: Standard deviation of each in the held-out clips, its own unit: the error of knowing nothing.
        probe_true: RMSE of a ridge probe on true latents, per variable.
        probe_model: RMSE of the same probe on imagined latents, per variable and step.
        probe_copy_last: RMSE of the probe on the context frame against the later truth, per variable and step.
    """

    num_clips: int
    action_block: int
    model: list[float]
    copy_last: list[float]
    shuffled: list[float]
    variables: list[str]
    spread: list[float]
    probe_true: list[float]
    probe_model: list[list[float]]
    probe_copy_last: list[list[float]]

    def to_json(self) -> str:
        """The report as JSON text."""
        return json.dumps(asdict(self), indent=2)

    def scalars(self) -> dict[str, float]:
        """The few numbers worth a curve: errors at the last step and the probes on true latents."""
        probes = {f"probe_{name}": value for name, value in zip(self.variables, self.probe_true, strict=True)}
        last = {"open_loop": self.model[-1], "copy_last": self.copy_last[-1], "shuffled": self.shuffled[-1]}
        return {**last, **probes}

    def tables(self) -> list[Table]:
        """Rich tables: errors by step, then probes by variable."""
        errors = Table(title=f"Open-loop latent error / variance, {self.num_clips} held-out clips")
        for column in ("model step", "model", "copy last frame", "shuffled actions"):
            errors.add_column(column, justify="right")
        for step, values in enumerate(zip(self.model, self.copy_last, self.shuffled, strict=True), start=1):
            errors.add_row(str(step), *(f"{value:.3f}" for value in values))
        horizon = len(self.model)
        probes = Table(title="Ridge probe RMSE (unit of the variable)")
        probes.add_column("variable")
        for column in ("spread", "true latent", "imagined, 1 step", f"imagined, {horizon}", f"copy last, {horizon}"):
            probes.add_column(column, justify="right")
        for i, name in enumerate(self.variables):
            cells = (self.spread[i], self.probe_true[i], self.probe_model[i][0], self.probe_model[i][-1])
            probes.add_row(name, *(f"{value:.4f}" for value in (*cells, self.probe_copy_last[i][-1])))
        return [errors, probes]


@torch.no_grad()
def open_loop_report(
    model: DynamicsTask | FrameTask | WorldModel,
    store: FrameStore,
    *,
    train_ids: NDArray[np.int64],
    val_ids: NDArray[np.int64],
    horizon: int = 5,
    num_clips: int = 512,
    seed: int = 0,
) -> OpenLoopReport:
    """Measure a model on held-out episodes, from a single context frame.

    Args:
        model: Task in training or finished model; only its head and predictor are used.
        store: Features and true quantities.
        train_ids: Episodes the probe is fitted on.
        val_ids: Episodes everything is measured on.
        horizon: Model steps.
        num_clips: Clips to draw from `val_ids`.
        seed: Of the draw of clips and probe frames.

    Raises:
        DataError: No held-out episode is long enough for the horizon.
    """
    sampler = TrajectorySampler(
        store,
        val_ids,
        num_frames=horizon + 1,
        action_block=model.spec.action_block,
        batch_size=num_clips,
        seed=seed,
    )
    batch = sampler.next_batch()
    device = model.action_normalizer.mean.device
    z = _latents(model, batch.features.split(64))
    actions = model.action_normalizer(batch.actions.to(device))
    imagined = _rollout(model, z, actions)
    wrong = _rollout(model, z, actions.roll(1, dims=0))
    truth, still = z[:, 1:], z[:, :1].expand(-1, horizon, -1, -1)
    variance = float(z[:, 0].var(dim=0).mean().clamp_min(1e-12))

    def error(predicted: Tensor) -> list[float]:
        squares = (predicted - truth).square().mean(dim=(0, 2, 3))
        return [float(value) / variance for value in squares]

    probe = _Probe(model, store, train_ids, seed)
    measured = np.clip(store.privileged[batch.frames.numpy()], *probe.limits)  # (B, H + 1, G)
    future = measured[:, 1:]
    return OpenLoopReport(
        num_clips=num_clips,
        action_block=model.spec.action_block,
        model=error(imagined),
        copy_last=error(still),
        shuffled=error(wrong),
        variables=list(store.privileged_names),
        spread=measured.std(axis=(0, 1)).tolist(),
        probe_true=_rmse(probe(z) - measured, (0, 1)).tolist(),
        probe_model=_rmse(probe(imagined) - future, (0,)).T.tolist(),
        probe_copy_last=_rmse(probe(still) - future, (0,)).T.tolist(),
    )


def _latents(model: DynamicsTask | FrameTask | WorldModel, parts: Iterable[Tensor]) -> Tensor:
    """Latents (B, T, N, D), a few clips at a time: in float32 the features of all would fill a gigabyte."""
    device = model.action_normalizer.mean.device
    return torch.cat([model.head(head_input(part.to(device))).float() for part in parts])


def _rollout(model: DynamicsTask | FrameTask | WorldModel, z: Tensor, actions: Tensor) -> Tensor:
    """Imagined latents (B, H, N, D) from the first frame of z (B, H + 1, N, D)."""
    rolled = []
    for i in range(0, len(z), _CHUNK):
        start, block = z[i : i + _CHUNK, :1], actions[i : i + _CHUNK]
        rolled.append(model.predictor.rollout(start, block[:, :0], block[:, None])[:, 0])
    return torch.cat(rolled).float()


def _rmse(error: NDArray[np.float64], axes: tuple[int, ...]) -> NDArray[np.float64]:
    root: NDArray[np.float64] = np.sqrt(np.square(error).mean(axis=axes))
    return root


class _Probe:
    """Ridge regression from a latent to the true quantities of its frame."""

    def __init__(
        self, model: DynamicsTask | FrameTask | WorldModel, store: FrameStore, ids: NDArray[np.int64], seed: int
    ) -> None:
        frames = store.frames_of(ids)
        rng = np.random.default_rng([seed, 1])
        chosen = np.sort(rng.choice(frames, size=min(len(frames), PROBE_FRAMES), replace=False))
        device = model.action_normalizer.mean.device
        width = model.head.num_tokens * model.head.latent_dim
        self.project: Tensor | None = None
        if width > PROBE_DIM:
            generator = torch.Generator().manual_seed(seed)
            self.project = (torch.randn(width, PROBE_DIM, generator=generator) / width**0.5).to(device)
        blocks = []
        for part in np.array_split(chosen, max(1, len(chosen) // _CHUNK)):
            features = torch.from_numpy(store.features[part])[:, None].to(device)
            blocks.append(self._flat(model.head(head_input(features))[:, 0]))
        true = store.privileged[chosen]
        # One block that fell off the table (metres away) would rule the squared error of fit and score.
        self.limits: NDArray[np.float32] = np.percentile(true, [0.5, 99.5], axis=0).astype(np.float32)
        self.ridge = fit_ridge(np.concatenate(blocks), np.clip(true, *self.limits), penalty=RIDGE)

    def _flat(self, z: Tensor) -> NDArray[np.float32]:
        flat = z.float().flatten(-2)
        rows: NDArray[np.float32] = (flat if self.project is None else flat @ self.project).cpu().numpy()
        return rows

    def __call__(self, z: Tensor) -> NDArray[np.float64]:
        """Quantities (B, T, G) of latents (B, T, N, D)."""
        return self.ridge.predict(self._flat(z))
