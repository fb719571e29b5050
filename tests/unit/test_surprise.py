"""Surprise of judges whose answers are known by hand, accuracies, and continuing an interrupted run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from worldmodel.analysis.surprise import film_strip, surprise_figure
from worldmodel.envs.tabletop import TabletopEnv
from worldmodel.envs.violations import Clip, Timing
from worldmodel.errors import ConfigError, DataError
from worldmodel.evaluation.surprise import (
    FrameDifference,
    LatentChange,
    ModelSurprise,
    PairScores,
    SurpriseConfig,
    SurpriseResult,
    judge_pairs,
    pair_of,
    tabletop,
)
from worldmodel.models.world_model import ModelSpec
from worldmodel.types import Context, Latent

TIMING = Timing(before=1, after=2, action_block=2)


class Counter:
    """A world whose latent is the grey level of the frame, and whose dynamics add the first action of each block."""

    spec: ModelSpec
    window = 1
    device = torch.device("cpu")

    def encode(self, pixels: Tensor, proprio: Tensor | None = None) -> Latent:
        """See `PlanningModel.encode`."""
        return Latent(visual=pixels.float().mean(dim=(-3, -2, -1))[..., None, None])

    def encode_batch(self, pixels: Tensor) -> Tensor:
        """See `PlanningModel.encode_batch`."""
        return pixels.float().mean(dim=(-3, -2, -1))[:, None, None]

    def rollout(self, context: Context, actions: Tensor) -> Latent:
        """See `PlanningModel.rollout`."""
        now = context.latent.visual[:, None, -1:]
        return Latent(visual=now + actions[..., :1].cumsum(dim=2).unsqueeze(-1))


def clip_of(levels: list[int], adds: list[float]) -> Clip:
    """Clip of grey frames; `adds` are the first actions of the blocks."""
    actions = np.zeros((len(adds) * TIMING.action_block, 4), np.float32)
    actions[:: TIMING.action_block, 0] = adds
    nothing: Any = np.zeros(0)
    pixels: NDArray[np.uint8] = np.broadcast_to(np.array(levels, np.uint8)[:, None, None, None], (len(levels), 4, 4, 3))
    return Clip(pixels=pixels, actions=actions, states=nothing, gripper=nothing, object=nothing, contact=nothing)


def test_surprise_is_the_error_of_the_predictions_that_reach_a_frame() -> None:
    clip = clip_of([10, 12, 20, 23], [2, 3, 3])  # expected from the frame before: 12, 15, 23; the second comes as 20
    assert ModelSurprise(Counter(), 1)(clip, TIMING).tolist() == [0, 25, 0]
    # Two ahead: frame 2 from frame 0 is expected at 15, frame 3 from frame 1 at 18; each is a mean of two errors.
    assert ModelSurprise(Counter(), 2)(clip, TIMING).tolist() == [0, 25, (0 + 25) / 2]
    assert ModelSurprise(Counter(), 9)(clip, TIMING).tolist() == [0, 25, pytest.approx(50 / 3)]


def test_judges_without_physics_measure_change_alone() -> None:
    clip = clip_of([10, 12, 20, 23], [2, 3, 3])
    assert LatentChange(Counter())(clip, TIMING).tolist() == [4, 64, 9]
    assert FrameDifference()(clip, TIMING).tolist() == pytest.approx([2 / 255, 8 / 255, 3 / 255])


def test_frames_between_model_steps_are_left_out() -> None:
    fine = clip_of([10, 99, 12, 99, 20, 99, 23], [2, 3, 3])
    timing = replace(TIMING, every=1)
    assert ModelSurprise(Counter(), 1)(fine, timing).tolist() == [0, 25, 0]


def scores(kind: str, index: int, **clips: list[float]) -> PairScores:
    return PairScores(kind=kind, index=index, surprise={name: {"m": values} for name, values in clips.items()})


def test_accuracy_counts_pairs_and_ties_are_wrong() -> None:
    pairs = [
        scores("vanish", 0, possible=[9, 1, 1], impossible=[9, 5, 0], held=[9, 0, 1], always=[0, 1, 1]),
        scores("vanish", 1, possible=[9, 1, 1], impossible=[99, 1, 1], held=[9, 2, 1], always=[0, 9, 9]),
        scores("pass_through", 0, possible=[9, 1, 1], impossible=[9, 0, 0]),
    ]
    result = SurpriseResult(pairs=pairs, judges=["m"], timing=TIMING)
    found = {
        (kind, comparison): (entry.right, entry.pairs) if (entry := result.accuracy("m", kind, comparison)) else None
        for kind in ("vanish", "pass_through", None)
        for comparison in ("same_actions", "arm_held", "same_pictures")
    }
    assert found == {
        ("vanish", "same_actions"): (1, 2),  # before the event nothing counts
        ("vanish", "arm_held"): (1, 2),
        ("vanish", "same_pictures"): (1, 2),
        ("pass_through", "same_actions"): (0, 1),
        ("pass_through", "arm_held"): None,
        ("pass_through", "same_pictures"): None,
        (None, "same_actions"): (1, 3),
        (None, "arm_held"): (1, 2),
        (None, "same_pictures"): (1, 2),
    }
    record = result.to_json()["accuracy"]["same_actions"]["m"]
    assert set(record) == {"vanish", "pass_through", "overall"}
    assert record["overall"]["rate"] == pytest.approx(1 / 3)
    assert record["overall"]["above_chance"] is False
    mean, half = result.curve("m", "vanish", "impossible") or (None, None)
    assert mean is not None
    assert mean.tolist() == [54, 3, 0.5]
    assert half[1] == pytest.approx(1.96 * np.std([5, 1], ddof=1) / np.sqrt(2))
    assert result.curve("m", "pass_through", "held") is None


@pytest.fixture(scope="module")
def env() -> Iterator[TabletopEnv]:
    made = tabletop("push", 32)
    yield made
    made.close()


class Forbidden:
    """A judge that must not be asked again."""

    def __call__(self, clip: Clip, timing: Timing) -> NDArray[np.float64]:
        """Refuse."""
        raise AssertionError("judged again")


def test_an_interrupted_run_goes_on_and_mixes_nothing(env: TabletopEnv, tmp_path: Path) -> None:
    config = SurpriseConfig(pairs=1, kinds=("vanish",), before=1, after=2)
    timing = Timing(before=1, after=2)
    identity = {"checkpoints": ["a"]}
    first = judge_pairs(env, config, {"f": FrameDifference()}, timing, folder=tmp_path, identity=identity)
    told: list[tuple[int, int]] = []
    again = judge_pairs(
        env,
        config,
        {"f": Forbidden()},
        timing,
        folder=tmp_path,
        identity=identity,
        progress=lambda done, total: told.append((done, total)),
    )
    assert again.to_json() == first.to_json()
    assert told == [(1, 1)]
    more = judge_pairs(
        env, replace(config, kinds=("vanish", "recolour")), {"f": FrameDifference()}, timing, folder=tmp_path,
        identity=identity,
    )  # fmt: skip
    assert more.kinds == ["vanish", "recolour"]
    assert more.of("vanish")[0] == first.of("vanish")[0]
    with pytest.raises(ConfigError, match=r"vanish\.json was made with seed=0, this run has 3; choose another run_dir"):
        judge_pairs(env, replace(config, seed=3), {"f": Forbidden()}, timing, folder=tmp_path, identity=identity)
    with pytest.raises(ConfigError, match=r"was made with checkpoints=\['a'\], this run has \['b'\]"):
        judge_pairs(env, config, {"f": Forbidden()}, timing, folder=tmp_path, identity={"checkpoints": ["b"]})
    two = replace(config, pairs=2)
    longer = judge_pairs(env, two, {"f": FrameDifference()}, timing, folder=tmp_path, identity=identity)
    assert [pair.index for pair in longer.pairs] == [0, 1]
    assert longer.pairs[0] == first.pairs[0]
    fewer = judge_pairs(env, config, {"f": Forbidden()}, timing, folder=tmp_path, identity=identity)
    assert fewer.to_json() == first.to_json()
    (tmp_path / "vanish.json").write_text("{")
    with pytest.raises(DataError, match=r"vanish\.json is no record of judged pairs"):
        judge_pairs(env, config, {"f": Forbidden()}, timing, folder=tmp_path, identity=identity)


def test_surprise_that_is_no_number_is_refused(env: TabletopEnv) -> None:
    class Lost:
        """Predicts nonsense."""

        def __call__(self, clip: Clip, timing: Timing) -> NDArray[np.float64]:
            """See `Judge`."""
            return np.full(3, np.nan)

    config = SurpriseConfig(pairs=1, kinds=("vanish",), before=1, after=2)
    with pytest.raises(DataError, match="surprise of lost is not finite in the possible clip of pair 0 of vanish"):
        judge_pairs(env, config, {"lost": Lost()}, Timing(before=1, after=2))


def test_figures_show_every_kind(env: TabletopEnv) -> None:
    config = SurpriseConfig(pairs=1, kinds=("vanish", "pass_through"), before=1, after=2)
    timing = Timing(before=1, after=2)
    result = judge_pairs(env, config, {"f": FrameDifference()}, timing)
    assert [axes.get_title().split(":")[0] for axes in surprise_figure(result, 0.3).axes[:2]] == list(config.kinds)
    strip = film_strip({kind: pair_of(env, config, kind, 0, timing) for kind in config.kinds})
    assert len(strip.axes) == 2 * 2 * 4


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"pairs": 0}, "pairs must be >= 1, got 0"),
        ({"horizon": 0}, "horizon must be >= 1, got 0"),
        ({"kinds": ()}, r"kinds must be among vanish, .*, got \[\]"),
        ({"kinds": ("vanish", "vanis")}, "got vanis$"),
        ({"kinds": ("vanish", "vanish")}, "kinds must differ"),
        ({"looks": "odd"}, "looks must be one of trained, new_colours"),
        ({"seed": -1}, "seed must be >= 0, got -1"),
    ],
)
def test_bad_settings_are_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        SurpriseConfig(**values)
