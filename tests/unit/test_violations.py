"""Staged violations: every edit does what it says, leaves the rest bit-equal, and is undone by a reset."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from worldmodel.envs import Appearance, make_env
from worldmodel.envs.tabletop import OBJECT_HALF_M, TabletopEnv
from worldmodel.envs.violations import (
    CLEARANCE_M,
    CONTROLS,
    KINDS,
    MIN_JUMP_M,
    MIN_PUSHED_M,
    Pair,
    Timing,
    draw_pair,
    film,
    shows_violation,
)
from worldmodel.errors import ConfigError, SimulationError

TIMING = Timing(before=2, after=3)
EVENT = TIMING.event
FRAME = TIMING.before


@pytest.fixture(scope="module")
def env() -> Iterator[TabletopEnv]:
    made = make_env("push", image_size=32)
    assert isinstance(made, TabletopEnv)
    yield made
    made.close()


@pytest.fixture(scope="module")
def pairs(env: TabletopEnv) -> dict[str, Pair]:
    """One pair of every kind."""
    return {kind: draw_pair(env, kind, np.random.default_rng([0, i]), TIMING) for i, kind in enumerate(KINDS)}


@pytest.mark.parametrize("kind", KINDS)
def test_twins_are_bit_equal_up_to_the_event_and_differ_after_it(kind: str, pairs: dict[str, Pair]) -> None:
    pair = pairs[kind]
    assert set(pair.clips) == {"possible", "impossible", *CONTROLS[kind]}
    possible = pair.clips["possible"]
    for name in ("impossible", *[name for name in CONTROLS[kind] if name == "held"]):
        twin = pair.clips[name]
        assert np.array_equal(twin.pixels[: FRAME + 1], possible.pixels[: FRAME + 1])
        assert np.array_equal(twin.states[: FRAME + 1], possible.states[: FRAME + 1])
        assert np.array_equal(twin.actions[:EVENT], possible.actions[:EVENT])
        assert not np.array_equal(twin.pixels[-1], possible.pixels[-1])
    assert np.array_equal(pair.clips["impossible"].actions, possible.actions)
    if "held" in CONTROLS[kind]:
        assert not pair.clips["held"].actions[EVENT:].any()
        assert pair.clips["possible"].actions[EVENT:].any()


@pytest.mark.parametrize("kind", KINDS)
def test_the_possible_twin_is_reproduced_after_tampering(kind: str, env: TabletopEnv, pairs: dict[str, Pair]) -> None:
    film(env, pairs[kind].scene, "impossible")
    again, first = film(env, pairs[kind].scene, "possible"), pairs[kind].clips["possible"]
    assert np.array_equal(again.pixels, first.pixels)
    assert np.array_equal(again.states, first.states)


def test_a_pair_depends_on_its_stream_alone(env: TabletopEnv, pairs: dict[str, Pair]) -> None:
    again = draw_pair(env, "vanish", np.random.default_rng([0, 0]), TIMING)
    for name, clip in pairs["vanish"].clips.items():
        assert np.array_equal(again.clips[name].pixels, clip.pixels)
    other = draw_pair(env, "vanish", np.random.default_rng([0, 99]), TIMING)
    assert not np.array_equal(other.clips["possible"].pixels, pairs["vanish"].clips["possible"].pixels)


@pytest.mark.parametrize("kind", ["vanish", "recolour"])
def test_paint_changes_no_physics(kind: str, pairs: dict[str, Pair]) -> None:
    clips = pairs[kind].clips
    assert np.array_equal(clips["impossible"].states, clips["possible"].states)


def test_vanishing_changes_the_pixels_of_the_object_alone(env: TabletopEnv, pairs: dict[str, Pair]) -> None:
    scene = pairs["recolour"].scene
    coloured = pairs["recolour"].clips["impossible"].pixels
    possible = pairs["recolour"].clips["possible"].pixels
    gone = film(env, replace(scene, kind="vanish", rgba=(0.0, 0.0, 0.0, 0.0)), "impossible").pixels
    of_object = (gone != possible).any(axis=-1)
    recoloured = (coloured != possible).any(axis=-1)
    assert recoloured[FRAME + 1 :].any()
    assert not (recoloured & ~of_object).any()
    assert of_object[FRAME + 1].mean() < 0.2
    # What stands behind the object is what an empty table shows: the table's colour, not the object's.
    red = possible[FRAME + 1].astype(int)[..., 0] - possible[FRAME + 1].astype(int)[..., 1]
    left = gone[FRAME + 1].astype(int)[..., 0] - gone[FRAME + 1].astype(int)[..., 1]
    assert red.max() > 80 > left.max()


@pytest.mark.parametrize("kind", ["vanish", "recolour"])
def test_what_was_always_so_shows_the_same_after_the_event(kind: str, pairs: dict[str, Pair]) -> None:
    clips = pairs[kind].clips
    assert np.array_equal(clips["always"].pixels[FRAME + 1 :], clips["impossible"].pixels[FRAME + 1 :])
    assert not np.array_equal(clips["always"].pixels[FRAME], clips["impossible"].pixels[FRAME])


def test_teleport_moves_the_object_and_nothing_else(env: TabletopEnv, pairs: dict[str, Pair]) -> None:
    pair = pairs["teleport"]
    impossible, always = pair.clips["impossible"], pair.clips["always"]
    assert pair.scene.place is not None
    jump = np.linalg.norm(impossible.object[EVENT + 1] - impossible.object[EVENT])
    assert jump > MIN_JUMP_M - 0.01
    assert np.abs(impossible.object[EVENT + 1 :] - pair.scene.place).max() < 0.002
    assert np.abs(always.object[1:] - pair.scene.place).max() < 0.002
    env.reset(options={"task": pair.scene.task})
    env.simulate(pair.scene.actions[0])
    before, told = env.get_state(), env.privileged()
    env.place_object(pair.scene.place)
    assert np.array_equal(np.delete(env.privileged(), [4, 5, 6]), np.delete(told, [4, 5, 6]))
    assert np.allclose(env.object_pose()[0], pair.scene.place)
    changed = np.flatnonzero(env.get_state() != before)
    position, speed = 1 + env._object_qpos, 1 + env._model.nq + env._object_qvel  # after the time
    assert set(changed) <= {*range(position, position + 3), *range(speed, speed + 6)}
    assert set(changed) >= {position, position + 1}


def test_the_gripper_goes_through_an_object_that_stays(env: TabletopEnv, pairs: dict[str, Pair]) -> None:
    possible, impossible = pairs["pass_through"].clips["possible"], pairs["pass_through"].clips["impossible"]
    assert np.linalg.norm(possible.object[-1] - possible.object[EVENT]) >= MIN_PUSHED_M
    assert np.abs(impossible.object[EVENT:] - impossible.object[EVENT]).max() < 0.002
    through = np.abs(impossible.gripper - impossible.object)[EVENT:, :2].max(axis=1)
    assert through.min() < OBJECT_HALF_M
    assert possible.contact.any()
    assert not impossible.contact.any()
    env.reset(options={"task": pairs["pass_through"].scene.task})
    before = env.get_state()
    env.set_fingers_solid(False)
    assert np.array_equal(env.get_state(), before)


def test_a_slide_is_even_and_untouched(pairs: dict[str, Pair]) -> None:
    scene = pairs["no_contact"].scene
    possible, impossible = pairs["no_contact"].clips["possible"], pairs["no_contact"].clips["impossible"]
    assert scene.slide is not None
    assert np.allclose(np.diff(impossible.object[EVENT:], axis=0), scene.slide, atol=1e-9)
    assert not impossible.contact[EVENT + 1 :].any()
    distance = np.linalg.norm((impossible.gripper - impossible.object)[EVENT + 1 :, :2], axis=1)
    assert distance.min() > CLEARANCE_M
    assert np.allclose(impossible.gripper, possible.gripper, atol=1e-6)
    assert np.abs(possible.object[EVENT:] - possible.object[EVENT]).max() < 0.002


def test_a_reset_undoes_everything(env: TabletopEnv) -> None:
    fresh, _ = env.reset(seed=4)
    assert env._task is not None
    env.paint_object((0.1, 0.9, 0.1, 0.0))
    env.set_fingers_solid(False)
    env.place_object(np.array([0.5, 0.1, OBJECT_HALF_M]))
    assert not np.array_equal(env.picture(), fresh["pixels"])
    again, _ = env.reset(options={"task": env._task})
    assert np.array_equal(again["pixels"], fresh["pixels"])
    assert env._model.geom_contype[env._is_finger].tolist() == [1, 1]


def test_pictures_can_be_taken_more_often_than_model_steps(env: TabletopEnv, pairs: dict[str, Pair]) -> None:
    scene = pairs["vanish"].scene
    fine = film(env, replace(scene, timing=replace(TIMING, every=1)), "impossible")
    assert len(fine.pixels) == TIMING.steps + 1
    assert np.array_equal(fine.pixels[:: TIMING.action_block], pairs["vanish"].clips["impossible"].pixels)


def test_a_violation_that_cannot_be_seen_does_not_count(pairs: dict[str, Pair]) -> None:
    pair = pairs["vanish"]
    assert shows_violation(pair)
    unseen = {**pair.clips, "impossible": pair.clips["possible"]}
    assert not shows_violation(replace(pair, clips=unseen))
    pushed = pairs["pass_through"]
    early = replace(pushed.clips["possible"], contact=np.ones(TIMING.steps + 1, np.bool_))
    assert not shows_violation(replace(pushed, clips={**pushed.clips, "possible": early}))


def test_looks_are_kept(env: TabletopEnv) -> None:
    look = Appearance.new_colours(np.random.default_rng(0))
    pair = draw_pair(env, "vanish", np.random.default_rng(5), Timing(before=1, after=1), look)
    assert pair.scene.task.appearance == look
    assert pair.scene.rgba == (*look.object_rgb, 0.0)


@pytest.mark.parametrize(
    ("values", "words"),
    [({"before": 0}, "before must be >= 1, got 0"), ({"every": 2}, "every must divide action_block=3, got 2")],
)
def test_bad_lengths_are_refused(values: dict[str, int], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Timing(**values)


def test_what_cannot_be_staged_is_said(env: TabletopEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"kind must be one of vanish, .*, got 'explode'"):
        draw_pair(env, "explode", np.random.default_rng(0), TIMING)
    with pytest.raises(ConfigError, match="rgba must be four numbers"):
        env.paint_object((0.0, 0.0, 0.0, 2.0))
    monkeypatch.setattr("worldmodel.envs.violations.draw_scene", lambda *_: None)
    with pytest.raises(SimulationError, match=r"no scene of 400 showed the violation 'vanish' with 2 model steps"):
        draw_pair(env, "vanish", np.random.default_rng(0), TIMING)
