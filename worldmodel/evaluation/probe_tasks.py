"""The four tasks of frozen evaluation, made from recorded episodes: pixels, exact labels, loss and score.

`kind`: which object is it (stills: recorded scenes drawn again with another object); `action`: what does the gripper do
to it; `pose`: where are gripper and object, and how fast; `contact`: in which frames do they touch, and where.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from worldmodel.errors import ConfigError
from worldmodel.evaluation.clip_choice import Ints
from worldmodel.evaluation.clip_labels import ACTIONS, POSES
from worldmodel.evaluation.detection import frame_average_precision

Outputs = NDArray[np.float32]
KINDS = ("box", "cylinder", "sphere")
TASKS = ("kind", "action", "pose", "contact")
_BOX_WEIGHT = 5.0  # of the L1 distance of boxes, as in DETR (arXiv:2005.12872)
_SCALE_FLOOR = 1e-6


@dataclass(frozen=True, kw_only=True)
class ProbeTask(ABC):
    """Clips with labels; the first `num_pool` may be labelled, the others test.

    Attributes:
        pixels: (M, T, Y, X, 3) uint8.
        episode: (M,) episode of each clip; the ones that test are of other episodes.
        classes: (M,) what the splits balance.
        num_pool: Clips whose labels may be given out.
    """

    name: ClassVar[str]
    metric: ClassVar[str]
    pixels: NDArray[np.uint8]
    episode: Ints
    classes: Ints
    num_pool: int

    @property
    @abstractmethod
    def targets(self) -> Tensor:
        """(M, ...) what is right."""

    @property
    @abstractmethod
    def num_outputs(self) -> int:
        """Outputs of each query."""

    @property
    def num_queries(self) -> int:
        """Queries of the probe."""
        return 1

    @property
    @abstractmethod
    def chance(self) -> float:
        """Score of the best guess that looks at nothing."""

    @property
    def test_rows(self) -> Ints:
        """Rows that test."""
        return np.arange(self.num_pool, len(self.pixels))

    def fitted_to(self, rows: Ints) -> ProbeTask:
        """The task in units fitted on some labelled rows."""
        return self

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Outputs (B, Q, O) and targets (B, ...) to a scalar."""

    @abstractmethod
    def score(self, outputs: Outputs, rows: Ints) -> float:
        """Score of outputs (n, Q, O) for the given rows (n,), which may repeat; NaN where it is not defined."""

    @abstractmethod
    def details(self, outputs: Outputs, rows: Ints) -> dict[str, float]:
        """More numbers about them, by name; those that are not defined are left out."""


@dataclass(frozen=True, kw_only=True)
class ClassTask(ProbeTask):
    """One class per clip; the score is accuracy.

    Attributes:
        names: Names of the classes.
    """

    metric: ClassVar[str] = "accuracy"
    names: tuple[str, ...]

    @property
    def targets(self) -> Tensor:
        """(M,) class."""
        return torch.from_numpy(self.classes)

    @property
    def num_outputs(self) -> int:
        """One per class."""
        return len(self.names)

    @property
    def chance(self) -> float:
        """Of one class, as they are balanced."""
        return 1 / len(self.names)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy."""
        return F.cross_entropy(outputs[:, 0], targets)

    def score(self, outputs: Outputs, rows: Ints) -> float:
        """Share of clips whose largest output is of their class."""
        return float((outputs[:, 0].argmax(axis=-1) == self.classes[rows]).mean())

    def details(self, outputs: Outputs, rows: Ints) -> dict[str, float]:
        """Accuracy of every class that is there."""
        right = outputs[:, 0].argmax(axis=-1) == self.classes[rows]
        of_class = {name: right[self.classes[rows] == number] for number, name in enumerate(self.names)}
        return {name: float(found.mean()) for name, found in of_class.items() if len(found)}


@dataclass(frozen=True, kw_only=True)
class KindTask(ClassTask):
    """Which object is it."""

    name: ClassVar[str] = "kind"
    names: tuple[str, ...] = KINDS


@dataclass(frozen=True, kw_only=True)
class ActionTask(ClassTask):
    """What does the gripper do."""

    name: ClassVar[str] = "action"
    names: tuple[str, ...] = ACTIONS


@dataclass(frozen=True, kw_only=True)
class PoseTask(ProbeTask):
    """Numbers per clip; the score is the share of variance explained, averaged over them.

    Attributes:
        values: (M, V) float32.
        mean: (V,) middle of the labelled values.
        scale: (V,) their standard deviation.
    """

    name: ClassVar[str] = "pose"
    metric: ClassVar[str] = "mean R2"
    values: NDArray[np.float32]
    mean: NDArray[np.float32] | None = None
    scale: NDArray[np.float32] | None = None

    @property
    def targets(self) -> Tensor:
        """(M, V) in units of the labelled values."""
        mean, scale = self._units()
        return torch.from_numpy((self.values - mean) / scale)

    @property
    def num_outputs(self) -> int:
        """One per quantity."""
        return int(self.values.shape[1])

    @property
    def chance(self) -> float:
        """Of the mean."""
        return 0.0

    def fitted_to(self, rows: Ints) -> ProbeTask:
        """Standardised by the labelled values alone."""
        known = self.values[rows]
        return replace(self, mean=known.mean(axis=0), scale=np.maximum(known.std(axis=0), _SCALE_FLOOR))

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Squared error of standardised values."""
        return F.mse_loss(outputs[:, 0], targets)

    def score(self, outputs: Outputs, rows: Ints) -> float:
        """Mean R2 over the quantities that vary in these rows."""
        found = [value for value in self._r2(outputs, rows).values() if np.isfinite(value)]
        return float(np.mean(found)) if found else float("nan")

    def details(self, outputs: Outputs, rows: Ints) -> dict[str, float]:
        """R2 of every quantity that varies."""
        return {name: value for name, value in self._r2(outputs, rows).items() if np.isfinite(value)}

    def _units(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        if self.mean is None or self.scale is None:
            raise ConfigError("the units of the poses are those of the labelled clips: call fitted_to first")
        return self.mean, self.scale

    def _r2(self, outputs: Outputs, rows: Ints) -> dict[str, float]:
        mean, scale = self._units()
        true = self.values[rows].astype(np.float64)
        squared = np.square(outputs[:, 0].astype(np.float64) * scale + mean - true).mean(axis=0)
        variance = true.var(axis=0)
        varies = variance > _SCALE_FLOOR**2
        r2 = np.where(varies, 1 - squared / np.where(varies, variance, 1.0), np.nan)
        return dict(zip(POSES, r2.tolist(), strict=True))


@dataclass(frozen=True, kw_only=True)
class ContactTask(ProbeTask):
    """In which frames gripper and object touch, and where; the score is average precision at an overlap.

    Every frame gives one detection: a score and a box around the object. See `frame_average_precision`.

    Attributes:
        present: (M, T) whether a frame shows contact.
        boxes: (M, T, 4) left, top, right, bottom of the object as shares of the picture.
        overlap: Least intersection over union of a detection that counts.
    """

    name: ClassVar[str] = "contact"
    metric: ClassVar[str] = "average precision"
    present: NDArray[np.bool_]
    boxes: NDArray[np.float32]
    overlap: float

    @property
    def targets(self) -> Tensor:
        """(M, T, 5): whether, and the box."""
        return torch.from_numpy(np.concatenate([self.present[..., None], self.boxes], axis=-1, dtype=np.float32))

    @property
    def num_queries(self) -> int:
        """One per frame."""
        return int(self.present.shape[1])

    @property
    def num_outputs(self) -> int:
        """Logit of contact, and centre and size of the box."""
        return 5

    @property
    def chance(self) -> float:
        """Share of test frames that show contact: of random scores, were every box right."""
        return float(self.present[self.num_pool :].mean())

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Binary cross-entropy of contact, and L1 distance of the boxes of frames that show it."""
        shown = targets[..., 0]
        when = F.binary_cross_entropy_with_logits(outputs[..., 0], shown)
        distance = (corners(outputs[..., 1:].sigmoid()) - targets[..., 1:]).abs().mean(dim=-1)
        return when + _BOX_WEIGHT * (distance * shown).sum() / shown.sum().clamp(min=1.0)

    def score(self, outputs: Outputs, rows: Ints) -> float:
        """Average precision at `overlap`."""
        return self._precision(outputs, rows, self.overlap)

    def details(self, outputs: Outputs, rows: Ints) -> dict[str, float]:
        """Average precision of when alone, and at other overlaps."""
        found = {f"ap_{overlap:g}": self._precision(outputs, rows, overlap) for overlap in (0.3, 0.5, 0.75)}
        found["ap_when"] = self._precision(outputs, rows, 0.0)
        return {name: value for name, value in found.items() if np.isfinite(value)}

    def _precision(self, outputs: Outputs, rows: Ints, overlap: float) -> float:
        where = corners(torch.from_numpy(outputs[..., 1:]).sigmoid()).numpy()
        return frame_average_precision(outputs[..., 0], where, self.present[rows], self.boxes[rows], overlap)


def corners(boxes: Tensor) -> Tensor:
    """Boxes (..., 4) as centre x, centre y, width, height -> left, top, right, bottom."""
    middle, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat([middle - size / 2, middle + size / 2], dim=-1)
