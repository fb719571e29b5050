"""Means, intervals and tables of probe cells with known numbers; losses and scores of the tasks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from worldmodel.analysis.probe_curves import label_curves
from worldmodel.commands.probe_arms import parse_arms
from worldmodel.errors import ConfigError, DataError
from worldmodel.evaluation.clip_labels import POSES
from worldmodel.evaluation.probe_results import ProbeCell, ProbeResults, ProbeRow, read_cells, split_interval
from worldmodel.evaluation.probe_tasks import ActionTask, ContactTask, PoseTask, corners
from worldmodel.learning.probe_training import ProbeFitConfig

NOISE = np.random.default_rng(0).normal(0, 0.01, 200)


def row(arm: str, split: int, score: float, share: float = 0.1, task: str = "action") -> ProbeRow:
    return ProbeRow(
        cell=ProbeCell(task=task, arm=arm, share=share, split=split),
        settings={"data": "x"},
        metric="accuracy",
        chance=0.125,
        labelled=20,
        score=score,
        draws=[score + float(value) for value in NOISE],
        details={"touch": 0.5},
        lr=1e-3,
        weight_decay=0.01,
        validation=(0.5, None),
        seconds=1.0,
    )


ROWS = [
    *(row("ours", split, score) for split, score in enumerate((0.60, 0.62, 0.64))),
    *(row("theirs", split, score) for split, score in enumerate((0.50, 0.52, 0.54))),
    row("ours", 0, 0.8, share=1.0),
]
RESULTS = ProbeResults(rows=ROWS, arms=("ours", "theirs", "absent"), candidate="ours")


def test_mean_spread_and_interval_of_a_place() -> None:
    found = RESULTS.summary("action", "ours", 0.1)
    assert found is not None
    assert found.mean == pytest.approx(0.62)
    assert found.std == pytest.approx(0.02)
    low, high = found.interval
    assert 0.58 < low < 0.61
    assert 0.63 < high < 0.66
    assert RESULTS.summary("action", "theirs", 1.0) is None
    single = RESULTS.summary("action", "ours", 1.0)
    assert single is not None
    assert single.std is None


def test_what_is_lost_on_harder_clips_is_paired_too() -> None:
    harder = ProbeResults(
        rows=[row("ours", split, score) for split, score in enumerate((0.40, 0.42, 0.44))],
        arms=("ours", "theirs"),
        candidate="ours",
    )
    found = RESULTS.drop(harder, "action", "ours", 0.1)
    assert found is not None
    assert found[0] == pytest.approx(0.20)
    assert found[1] == pytest.approx((0.20, 0.20))
    assert RESULTS.drop(harder, "action", "theirs", 0.1) is None
    assert RESULTS.drop(harder, "action", "absent", 0.1) is None


def test_an_arm_may_bring_learning_rates_and_ask_for_a_snapshot() -> None:
    pretrained = {"pretrain": ["target=pixels"]}
    arms = parse_arms({"a": pretrained, "b": {"like": "a", "step": 5, "lr": [1e-4]}}, "a")
    common = ProbeFitConfig(lr=(1e-2, 1e-3))
    assert arms["a"].fit(common) is common
    assert arms["b"].fit(common).lr == (1e-4,)
    for wrong in ({"like": "a", "lr": []}, {"encoder": "x", "step": 5}, {"like": "a", "fresh": True, "step": 5}):
        with pytest.raises(ConfigError, match=r"lr must list|step=5 needs like=ARM"):
            parse_arms({"a": pretrained, "b": wrong}, "a")


def test_contrasts_are_paired_by_sample_and_split() -> None:
    """Both arms share the noise of the samples and the level of the splits: their difference has none of either."""
    (found,) = RESULTS.contrasts()
    assert (found["against"], found["labels"], found["splits"], found["shown"]) == ("theirs", 0.1, 3, "better")
    assert found["difference"] == pytest.approx(0.10)
    assert found["interval"] == pytest.approx([0.10, 0.10])
    equal = ProbeResults(rows=[*ROWS[:3], *(replace(r, cell=replace(r.cell, arm="theirs")) for r in ROWS[:3])],
                         arms=("ours", "theirs"), candidate="ours")  # fmt: skip
    assert equal.contrasts()[0]["shown"] == "no difference shown"


def test_interval_covers_the_mean_as_often_as_it_says() -> None:
    """Splits and test clips both vary, twelve splits: 95 % intervals hold the truth in most of 200 experiments."""
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(200):
        splits = rng.normal(0, 1, (12, 1))
        clips = rng.normal(0, 1, 100)
        samples = clips[rng.integers(100, size=(300, 100))].mean(axis=1)
        low, high = split_interval(splits + samples)
        held += low <= 0 <= high
    assert 0.85 <= held / 200 <= 1.0


def test_samples_without_a_score_are_left_out() -> None:
    draws = np.full((2, 50), 0.5)
    draws[0, :10] = np.nan
    assert split_interval(draws) == (0.5, 0.5)
    with pytest.raises(DataError, match="test on more clips"):
        split_interval(np.full((1, 5), np.nan))


def test_cells_survive_the_disk(tmp_path: Path) -> None:
    for each in ROWS:
        each.save(tmp_path)
    found = read_cells(tmp_path)
    assert {entry.cell for entry in found} == {entry.cell for entry in ROWS}
    assert next(entry for entry in found if entry.cell == ROWS[0].cell).draws == pytest.approx(ROWS[0].draws)
    assert not list(tmp_path.glob("*.partial"))
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(DataError, match="not a finished cell"):
        read_cells(tmp_path)


def test_tables_in_every_form() -> None:
    markdown, table = RESULTS.to_markdown(), RESULTS.to_csv().splitlines()
    assert "| encoder | 10 % labels | 100 % labels |" in markdown
    assert "| ours | 62.0 ± 2.0 [" in markdown
    assert "| theirs | 52.0 ± 2.0 [" in markdown
    assert "absent" not in markdown
    assert table[0].startswith("task,arm,labels,labelled,mean,std,low,high")
    assert len(table) == 4
    record = RESULTS.to_json()
    assert [entry["mean"] for entry in record["scores"]] == pytest.approx([0.62, 0.8, 0.52])
    assert "draws" not in record["cells"][0]
    assert len(RESULTS.tables()) == 2
    assert len(label_curves(RESULTS).axes) == 1


def test_class_score_is_accuracy() -> None:
    classes = np.array([0, 1, 2, 3])
    task = ActionTask(pixels=np.zeros((4, 1, 1, 1, 3), np.uint8), episode=classes, classes=classes, num_pool=2)
    outputs = F.one_hot(torch.tensor([0, 1, 2, 0]), 8).float().unsqueeze(1).numpy()
    assert task.score(outputs, np.arange(4)) == 0.75
    assert task.score(outputs[[3, 3]], np.array([3, 3])) == 0.0
    assert task.details(outputs, np.arange(4))["push_towards"] == 0.0
    assert task.chance == 1 / 8


def test_pose_score_is_the_share_of_variance_in_the_units_of_the_labelled_clips() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(3.0, 2.0, (40, len(POSES))).astype(np.float32)
    values[:, 1] = 7.0  # never varies: no R2, and no division by zero
    common = {"pixels": np.zeros((40, 1, 1, 1, 3), np.uint8), "episode": np.arange(40), "classes": np.zeros(40, int)}
    task = PoseTask(**common, num_pool=30, values=values)
    with pytest.raises(ConfigError, match="fitted_to"):
        _ = task.targets
    known = task.fitted_to(np.arange(10))
    assert known.targets[:10].mean(dim=0).abs().max() < 1e-5
    rows = np.arange(30, 40)
    right = known.targets[rows].numpy()[:, None]
    assert known.score(right, rows) == pytest.approx(1.0, abs=1e-5)
    middle = values[rows].mean(axis=0)
    guess = np.tile((middle - values[:10].mean(axis=0)) / values[:10].std(axis=0).clip(1e-6), (10, 1, 1))
    assert known.score(guess.astype(np.float32), rows) == pytest.approx(0.0, abs=1e-4)
    assert POSES[1] not in known.details(right, rows)


def test_contact_loss_and_score() -> None:
    present = np.array([[True, False], [False, True]])
    boxes = np.tile(np.array([0.2, 0.2, 0.6, 0.4], np.float32), (2, 2, 1))
    task = ContactTask(
        pixels=np.zeros((2, 2, 1, 1, 3), np.uint8),
        episode=np.arange(2),
        classes=np.ones(2, int),
        num_pool=1,
        present=present,
        boxes=boxes,
        overlap=0.5,
    )
    where = torch.logit(torch.tensor([0.4, 0.3, 0.4, 0.2]))  # centre and size of that box
    outputs = torch.cat([torch.tensor(present)[..., None] * 20.0 - 10.0, where.expand(2, 2, 4)], dim=-1)
    assert corners(where.sigmoid()).tolist() == pytest.approx(boxes[0, 0].tolist())
    assert float(task.loss(outputs, task.targets)) < 1e-3
    assert task.score(outputs.numpy(), np.arange(2)) == pytest.approx(1.0)
    elsewhere = outputs.clone()
    elsewhere[..., 1] = 3.0
    assert task.score(elsewhere.numpy(), np.arange(2)) == 0.0
    assert task.details(elsewhere.numpy(), np.arange(2))["ap_when"] == pytest.approx(1.0)
    assert float(task.loss(elsewhere, task.targets)) > 0.5
    assert task.chance == 0.5
    hidden = outputs.clone()
    hidden[0, 1, 1:] = 9.0  # boxes of frames without contact are not asked for
    assert float(task.loss(hidden, task.targets)) == pytest.approx(float(task.loss(outputs, task.targets)))


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        ({}, "no arm to compare"),
        ({"a": {"encoder": "x"}, "b": None}, "candidate='c' is none of the arms a"),
        ({"c": {"encoder": "x", "timm": "resnet18"}}, "needs one of encoder, pretrain, like or timm, got encoder and"),
        ({"c": {}}, "got none of them"),
        ({"c": {"like": "d"}}, "like=d is no arm"),
        ({"c": {"encoder": "x", "fresh": True}}, "fresh=true needs like"),
        ({"c": {"encodr": "x"}}, "some of the keys encoder, pretrain"),
        ({"c": {"encoder": "x", "seeds": 0}}, "seeds must be >= 1"),
        ({"c/d": {"encoder": "x"}}, "letters, digits"),
    ],
)
def test_arms_that_make_no_sense_are_refused(arms: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_arms(arms, "c")
