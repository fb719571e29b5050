"""Recordings that a trained model plans: mixed with scripted ones, the same however they are cut, refused early."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from worldmodel.control.collect import CollectConfig, collect, record_block
from worldmodel.errors import CheckpointError, ConfigError


def test_episodes_of_a_model_are_planned_recorded_and_the_same_for_all_workers(
    tiny_checkpoint: Path,
) -> None:
    """Every third on average; those of the others are as they are without a model in the recording."""
    shared: dict[str, Any] = {"env": "reach", "steps": 5, "image_size": 32, "expert_fraction": 0.3}
    model = {"planned_fraction": 0.4, "checkpoint": str(tiny_checkpoint)}
    plain = record_block(CollectConfig(**shared), 0, 10)
    mixed = record_block(CollectConfig(**shared, **model), 0, 10)
    labels = [episode.policy for episode in mixed]
    assert set(labels) == {"expert", "planned", "play"}
    for before, after in zip(plain, mixed, strict=True):
        same = np.array_equal(before.action, after.action)
        assert same == (after.policy != "planned")
        assert np.array_equal(before.pixels[0], after.pixels[0])  # the task is the same either way
    number = labels.index("planned")
    (alone,) = record_block(CollectConfig(**shared, **model), number, number + 1)
    assert np.array_equal(alone.action, mixed[number].action)


def test_a_model_that_cannot_plan_here_is_refused_before_the_first_episode(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    config = partial(CollectConfig, env="reach", out=str(tmp_path / "a.h5"), checkpoint=str(tiny_checkpoint))
    with pytest.raises(CheckpointError, match="image_size"):
        collect(config(planned_fraction=0.5, image_size=48))
    with pytest.raises(ConfigError, match=r"expert_fraction \+ planned_fraction must be <= 1, got 0.8 \+ 0.5"):
        collect(config(expert_fraction=0.8, planned_fraction=0.5))
    assert not (tmp_path / "a.h5").exists()
