from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from worldmodel.envs import make_env
from worldmodel.envs.tabletop import OBJECT_HALF_M
from worldmodel.errors import ConfigError, DataError
from worldmodel.evaluation.clip_choice import balanced, label_order, labelled_rows, resamples
from worldmodel.evaluation.clip_labels import (
    ACTIONS,
    NO_ACTION,
    POSES,
    action_labels,
    frame_contacts,
    object_boxes,
    pose_targets,
)
from worldmodel.evaluation.detection import average_precision, box_overlap, frame_average_precision

STEPS = 9


def path(start: tuple[float, float, float], end: tuple[float, float, float]) -> np.ndarray:
    return np.linspace(start, end, STEPS)


def label(gripper: np.ndarray, thing: np.ndarray, touches: int = 0) -> str:
    contact = np.arange(STEPS) < touches
    number = int(action_labels(gripper[None], thing[None], contact[None])[0])
    return "none" if number == NO_ACTION else ACTIONS[number]


STILL = path((0.5, 0.0, 0.035), (0.5, 0.0, 0.035))
NEAR = path((0.56, 0.0, 0.035), (0.56, 0.0, 0.035))


@pytest.mark.parametrize(
    ("end", "name"),
    [
        ((0.5, -0.05, 0.035), "push_left"),
        ((0.5, 0.05, 0.035), "push_right"),
        ((0.45, 0.0, 0.035), "push_away"),
        ((0.55, 0.01, 0.035), "push_towards"),
        ((0.55, 0.05, 0.035), "none"),  # diagonal
        ((0.5, 0.02, 0.035), "none"),  # neither at rest nor pushed
        ((0.5, 0.005, 0.035), "touch"),
    ],
)
def test_pushes_are_named_as_the_camera_sees_them(end: tuple[float, float, float], name: str) -> None:
    assert label(NEAR, path((0.5, 0.0, 0.035), end), touches=3) == name


def test_an_object_that_moves_untouched_has_no_name() -> None:
    assert label(NEAR, path((0.5, 0.0, 0.035), (0.5, 0.05, 0.035))) == "none"


@pytest.mark.parametrize(
    ("start", "end", "name"),
    [
        ((0.5, 0.2, 0.035), (0.5, 0.1, 0.035), "approach"),
        ((0.5, 0.1, 0.035), (0.5, 0.2, 0.035), "retreat"),
        ((0.5, 0.1, 0.035), (0.5, 0.1, 0.2), "retreat"),  # upwards counts, too
        ((0.4, 0.1, 0.035), (0.6, 0.1, 0.035), "pass"),
        ((0.5, 0.1, 0.035), (0.5, 0.1, 0.035), "none"),  # stands still
        ((0.5, 0.14, 0.035), (0.5, 0.1, 0.035), "none"),  # too little to say
    ],
)
def test_without_contact_the_distance_decides(
    start: tuple[float, float, float], end: tuple[float, float, float], name: str
) -> None:
    assert label(path(start, end), STILL) == name


def test_the_same_frames_backwards_are_another_action() -> None:
    """Labels need the video: the pictures of a push to the left, in the other order, are one to the right."""
    thing = path((0.5, 0.03, 0.035), (0.5, -0.03, 0.035))
    assert label(NEAR, thing, touches=STEPS) == "push_left"
    assert label(NEAR[::-1], thing[::-1], touches=STEPS) == "push_right"


def test_poses_of_the_last_frame() -> None:
    gripper = np.array([[[0.4, 0.0, 0.1], [0.42, -0.02, 0.06]]])
    thing = np.array([[[0.5, 0.1, 0.035], [0.55, 0.2, 0.035]]])
    yaw = np.array([[0.0, np.pi / 8]])
    found = dict(zip(POSES, pose_targets(gripper, thing, yaw, step_s=0.2)[0].tolist(), strict=True))
    expected = {"gripper_x": 0.42, "gripper_y": -0.02, "gripper_z": 0.06, "object_x": 0.55, "object_y": 0.2}
    expected |= {"object_turn_cos": 0.0, "object_turn_sin": 1.0}
    expected |= {"gripper_vx": 0.1, "gripper_vy": -0.1, "gripper_vz": -0.2}
    assert found == pytest.approx(expected, abs=1e-6)
    turned = pose_targets(gripper, thing, yaw + np.pi / 2, step_s=0.2)[0]
    assert turned == pytest.approx(list(expected.values()), abs=1e-6)
    with pytest.raises(DataError, match="at least 2 frames"):
        pose_targets(gripper[:, :1], thing[:, :1], yaw[:, :1], step_s=0.2)


def test_a_frame_shows_contact_until_the_next_one() -> None:
    contact = np.array([[0, 1, 0, 0, 1, 1]], bool)
    assert frame_contacts(contact, 2).tolist() == [[True, False, True]]
    assert frame_contacts(contact, 3).tolist() == [[True, True]]


def test_boxes_lie_around_the_object_in_the_picture() -> None:
    """The red cube, found by its colour, against its computed box."""
    env = make_env("push", image_size=128)
    try:
        pixels = env.reset(seed=3)[0]["pixels"].astype(int)
        position, yaw = env.object_pose()  # type: ignore[attr-defined]
        box = object_boxes(env.project, position, np.array(yaw), OBJECT_HALF_M, 128) * 128  # type: ignore[attr-defined]
    finally:
        env.close()
    red = (pixels[..., 0] > 70) & (pixels[..., 1] < 0.5 * pixels[..., 0]) & (pixels[..., 2] < 0.5 * pixels[..., 0])
    rows, columns = np.nonzero(red)
    assert len(rows) > 50
    seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert box == pytest.approx(seen, abs=1.5)


def test_overlap_of_boxes() -> None:
    one = np.array([0.0, 0.0, 2.0, 2.0])
    others = np.array([[0, 0, 2, 2], [1, 0, 3, 2], [1, 1, 3, 3], [2, 0, 3, 1], [1, 1, 1, 1], [1.5, 0, 0.5, 2]])
    assert box_overlap(one, others) == pytest.approx([1.0, 1 / 3, 1 / 7, 0.0, 0.0, 0.0])
    assert box_overlap(others[4], others[4]) == 0.0


def test_average_precision_by_hand() -> None:
    """Ranked hit, miss, hit, miss with 3 to be found: precision 1 up to recall 1/3, then 2/3 up to 2/3, then none."""
    scores = np.array([0.9, 0.8, 0.7, 0.1])
    hits = np.array([True, False, True, False])
    assert average_precision(scores, hits, 3) == pytest.approx(1 / 3 * 1 + 1 / 3 * 2 / 3)
    order = np.array([2, 0, 3, 1])
    assert average_precision(scores[order], hits[order], 3) == pytest.approx(5 / 9)
    # A miss before two hits: the precision at recall 1/2 is raised to the 2/3 reached later.
    assert average_precision(np.array([3.0, 2, 1]), np.array([False, True, True]), 2) == pytest.approx(2 / 3)


def test_detections_of_one_score_enter_together() -> None:
    for hits in ([True, False], [False, True]):
        assert average_precision(np.array([0.5, 0.5]), np.array(hits), 1) == pytest.approx(0.5)


def test_average_precision_of_random_scores_is_the_share_of_positives() -> None:
    rng = np.random.default_rng(0)
    hits = rng.random(20_000) < 0.3
    assert average_precision(rng.random(20_000), hits, int(hits.sum())) == pytest.approx(0.3, abs=0.02)


def test_nothing_to_be_found_has_no_average_precision() -> None:
    assert np.isnan(average_precision(np.array([0.5]), np.array([False]), 0))
    with pytest.raises(ConfigError, match="count each at most once"):
        average_precision(np.array([0.5]), np.array([True]), 0)
    with pytest.raises(ConfigError, match="NaN"):
        average_precision(np.array([np.nan]), np.array([True]), 1)


def test_a_detection_needs_the_right_moment_and_the_right_place() -> None:
    """Two clips of two frames, by hand: one hit, one in the wrong place, one at the wrong time, one rejected."""
    true = np.tile([0.0, 0.0, 0.4, 0.4], (2, 2, 1))
    boxes = true.copy()
    boxes[0, 1] = [0.3, 0.3, 0.7, 0.7]
    present = np.array([[True, True], [False, False]])
    scores = np.array([[0.9, 0.8], [0.7, 0.1]])
    assert frame_average_precision(scores, boxes, present, true, 0.5) == pytest.approx(0.5)
    assert frame_average_precision(scores, boxes, present, true, 0.0) == pytest.approx(1.0)
    scores = np.array([[0.7, 0.8], [0.9, 0.1]])
    assert frame_average_precision(scores, boxes, present, true, 0.5) == pytest.approx(1 / 3 / 2)


def test_classes_are_balanced_or_the_shortage_is_named() -> None:
    classes = np.array([0] * 50 + [1] * 9 + [2] * 30 + [-1] * 20)
    rng = np.random.default_rng(0)
    rows = balanced(classes, 25, ("a", "b", "c"), rng, "here")
    assert Counter(classes[rows].tolist()) == {0: 9, 1: 8, 2: 8}
    assert len(set(rows.tolist())) == 25
    with pytest.raises(DataError, match=r"here .*\(b 9 of 10\); record more, or take at most 27"):
        balanced(classes, 30, ("a", "b", "c"), rng, "here")


def test_fewer_labels_are_a_balanced_part_of_more() -> None:
    classes = np.repeat(np.arange(4), 25)
    small, large = (labelled_rows(classes, share, split=1, seed=0) for share in (0.2, 0.5))
    assert len(small) == 20
    assert len(large) == 50
    assert set(small) <= set(large)
    assert Counter(classes[small].tolist()) == dict.fromkeys(range(4), 5)
    assert sorted(labelled_rows(classes, 1.0, split=1, seed=0)) == list(range(100))
    assert set(small) != set(labelled_rows(classes, 0.2, split=2, seed=0))
    assert np.array_equal(small, labelled_rows(classes, 0.2, split=1, seed=0))
    assert len(labelled_rows(classes, 0.001, split=0, seed=0)) == 2
    with pytest.raises(ConfigError, match=r"in \(0, 1\], got 5"):
        labelled_rows(classes, 5, split=0, seed=0)


def test_label_order_is_balanced_from_the_beginning() -> None:
    classes = np.array([0] * 30 + [1] * 30 + [2] * 30)
    order = label_order(classes, np.random.default_rng(0))
    for stop in range(3, 91, 3):
        counts = np.bincount(classes[order[:stop]], minlength=3)
        assert counts.max() - counts.min() <= 1


def test_bootstrap_keeps_the_clips_of_an_episode_together() -> None:
    episode = np.array([5, 5, 7, 9, 9, 9])
    for rows in resamples(episode, 20, seed=0):
        counts = Counter(rows.tolist())
        assert counts[0] == counts[1]
        assert counts[3] == counts[4] == counts[5]
        assert counts[0] + counts[2] + counts[3] == 3
    first, again = resamples(episode, 3, seed=0), resamples(episode, 3, seed=0)
    assert all(np.array_equal(one, two) for one, two in zip(first, again, strict=True))
