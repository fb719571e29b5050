"""Average precision of detections: which frames show an event, and where. Pure functions of numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from worldmodel.errors import ConfigError

Floats = NDArray[np.float64]


def box_overlap(first: NDArray[Any], second: NDArray[Any]) -> Floats:
    """Intersection over union of boxes (..., 4) = (left, top, right, bottom), pair by pair -> (...).

    A box whose right edge is not right of its left one, or bottom not below its top, is empty and overlaps nothing.
    """
    low, high = np.maximum(first[..., :2], second[..., :2]), np.minimum(first[..., 2:], second[..., 2:])
    shared = np.clip(high - low, 0.0, None).prod(axis=-1)
    areas = [np.clip(box[..., 2:] - box[..., :2], 0.0, None).prod(axis=-1) for box in (first, second)]
    union = areas[0] + areas[1] - shared
    overlap: Floats = np.where(union > 0, shared / np.where(union > 0, union, 1.0), 0.0)
    return overlap


def average_precision(scores: NDArray[Any], hits: NDArray[np.bool_], positives: int) -> float:
    """Area under the curve of precision over recall, precision made monotone (PASCAL VOC since 2010).

    Detections of one score enter together: their order would be arbitrary.

    Args:
        scores: (M,) confidence of each detection.
        hits: (M,) whether it is right.
        positives: Things there are to be found, at least as many as hits.

    Returns:
        In [0, 1]; NaN when there is nothing to be found.

    Raises:
        ConfigError: Not as many hits as scores, a score is NaN, or more hits than positives.
    """
    if scores.shape != hits.shape or scores.ndim != 1:
        raise ConfigError(f"scores and hits must be (M,) each, got {scores.shape} and {hits.shape}")
    if np.isnan(scores).any():
        raise ConfigError("a detection has the score NaN; the probe diverged")
    if hits.sum() > positives:
        raise ConfigError(f"{int(hits.sum())} hits of {positives} things to be found; count each at most once")
    if positives == 0:
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    last_of_score = np.append(np.diff(scores[order]) != 0, True)
    found = np.cumsum(hits[order])[last_of_score]
    taken = np.arange(1, len(scores) + 1)[last_of_score]
    precision = np.maximum.accumulate((found / taken)[::-1])[::-1]
    recall = np.concatenate([[0.0], found / positives])
    return float(np.sum(np.diff(recall) * precision))


def frame_average_precision(
    scores: NDArray[Any], boxes: NDArray[Any], present: NDArray[np.bool_], true_boxes: NDArray[Any], overlap: float
) -> float:
    """Average precision of one detection per frame, as for spatio-temporal actions (AVA, arXiv:1705.08421).

    A detection is right when its frame shows the event and its box overlaps the true one by at least `overlap`.

    Args:
        scores: (...) confidence that a frame shows the event.
        boxes: (..., 4) where, as for `box_overlap`.
        present: (...) whether it does.
        true_boxes: (..., 4) where; not read where `present` is false.
        overlap: Least intersection over union, in [0, 1]; 0 asks only when.

    Raises:
        ConfigError: As for `average_precision`.
    """
    hits = present & (box_overlap(boxes, true_boxes) >= overlap)
    return average_precision(scores.reshape(-1), hits.reshape(-1), int(present.sum()))
