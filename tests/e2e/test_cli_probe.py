"""Frozen evaluation at a tiny size, on staged episodes: every kind of arm and task, stopped, continued, refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from worldmodel.cli import main
from worldmodel.commands import efficiency
from worldmodel.commands import probe as command
from worldmodel.data.distractor import DistractorConfig
from worldmodel.data.episodes import Episode, EpisodeDataset, EpisodeSpec, write_episodes
from worldmodel.errors import DataError
from worldmodel.evaluation.clip_choice import ClipChoice
from worldmodel.evaluation.clip_labels import ACTIONS
from worldmodel.evaluation.probe_clips import build_task
from worldmodel.evaluation.probe_tasks import TASKS, ContactTask
from worldmodel.models.checkpoint import load_encoder, read_card, save_encoder
from worldmodel.models.encoders import VideoViT
from worldmodel.models.vit import ViTConfig

SIZE, STEPS = 32, 8  # one clip of 4 frames, 2 steps apart, fills an episode
MOVES: dict[str, tuple[tuple[float, float], tuple[float, float], bool]] = {
    "push_left": ((0.0, -0.05), (0.0, -0.05), True),
    "push_right": ((0.0, 0.05), (0.0, 0.05), True),
    "push_away": ((-0.05, 0.0), (-0.05, 0.0), True),
    "push_towards": ((0.05, 0.0), (0.05, 0.0), True),
    "touch": ((0.0, 0.0), (0.0, 0.0), True),
    "approach": ((0.0, -0.08), (0.0, 0.0), False),
    "retreat": ((0.0, 0.08), (0.0, 0.0), False),
    "pass": ((0.16, 0.0), (0.0, 0.0), False),
}
"""How gripper and object move in the plane, and whether they touch."""
STARTS = {"approach": (0.0, 0.14), "retreat": (0.0, 0.06), "pass": (-0.08, 0.08)}
TINY = [
    "encoder.embed_dim=24",
    "encoder.depth=1",
    "encoder.num_heads=2",
    "encoder.num_frames=4",
    "encoder.image_size=32",
]
PRETRAIN = [
    *TINY,
    *("target=pixels", "batch_size=4", "frame_step=2", "validation_fraction=0.1", "fit.steps=2", "fit.warmup_steps=1"),
    *("target.predictor.embed_dim=24", "target.predictor.depth=1", "target.predictor.num_heads=2"),
    "target.mask.max_target_tokens=8",
]


def staged(number: int, seed: int = 0) -> Episode:
    """An episode of one action, drawn as a red and a black square."""
    rng = np.random.default_rng([seed, number])
    name = ACTIONS[number % len(ACTIONS)]
    moves = np.array(MOVES[name][:2])
    begin = np.array([0.5, 0.0]) + rng.uniform(-0.03, 0.03, 2)
    share = np.linspace(0, 1, STEPS - 1).clip(0, 1)  # the last frame of a clip is step 6
    share = np.append(share, 1.0)[:, None]
    privileged = np.zeros((STEPS, 8), np.float32)
    privileged[:, 0:2] = begin + np.array(STARTS.get(name, (0.0, 0.05))) + share * moves[0]
    privileged[:, 4:6] = begin + share * moves[1]
    privileged[:, [2, 6]] = 0.035
    privileged[:, 7] = rng.uniform(-0.7, 0.7)
    pixels = np.full((STEPS, SIZE, SIZE, 3), 180, np.uint8)
    for step in range(STEPS):
        for (x, y), colour in ((privileged[step, 4:6], (200, 40, 30)), (privileged[step, 0:2], (10, 10, 10))):
            row, column = int((x - 0.3) * 80), int((y + 0.2) * 80)
            pixels[step, max(row - 2, 0) : row + 3, max(column - 2, 0) : column + 3] = colour
    return Episode(
        pixels=pixels,
        proprio=privileged[:, :4].copy(),
        action=np.zeros((STEPS - 1, 4), np.float32),
        privileged=privileged,
        contact=np.full(STEPS, MOVES[name][2]),
        policy="staged",
        seed=number,
        success=False,
    )


SPEC = EpisodeSpec(
    env_id="worldmodel/Push-v0",
    image_size=SIZE,
    action_low=(-1.0,) * 4,
    action_high=(1.0,) * 4,
    proprio_names=("gripper_x", "gripper_y", "gripper_z", "opening"),
    privileged_names=(
        *("gripper_x", "gripper_y", "gripper_z", "opening"),
        *("object_x", "object_y", "object_z", "object_yaw"),
    ),
    control_dt_s=0.1,
)
CHOICE = ClipChoice(clips=48, test_clips=16, num_frames=4, frame_step=2)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> EpisodeDataset:
    return write_episodes(tmp_path_factory.mktemp("data") / "staged.h5", SPEC, [staged(i) for i in range(120)])


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = ViTConfig(image_size=SIZE, num_frames=4, embed_dim=24, depth=1, num_heads=2)
    return save_encoder(tmp_path_factory.mktemp("encoder") / "tiny", VideoViT(config), {"note": "untrained"})


def argv(data: EpisodeDataset, encoder: Path, folder: Path, *more: str) -> list[str]:
    return [
        "probe",
        f"data={data.path}",
        f"arms.vjepa.encoder={encoder}",
        f"run_dir={folder}",
        *("clips=48", "test_clips=16", "num_frames=4", "frame_step=2", "splits=1", "labels=[0.5,1.0]"),
        *("fit.epochs=1", "fit.min_steps=2", "fit.batch_size=32", "fit.lr=[1e-2,1e-3]", "fit.weight_decay=[0.01]"),
        *more,
    ]


def only(*arms: str) -> list[str]:
    every = ("vjepa", "pixels", "pixels_finetuned", "supervised", "random")
    return [f"arms.{name}=null" for name in every if name not in arms]


def cells(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (folder / "cells").glob("*.json")}


def score(folder: Path, name: str) -> Any:
    return json.loads((folder / "cells" / f"{name}.json").read_text())["score"]


@pytest.fixture
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bootstrap samples enough to go through everything."""
    monkeypatch.setattr(command, "DRAWS", 20)


@pytest.mark.slow
@pytest.mark.usefixtures("few_draws")
def test_every_arm_and_task_and_an_interruption(
    data: EpisodeDataset,
    encoder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = argv(
        *(data, encoder, tmp_path / "run", f"arms.pixels.pretrain={PRETRAIN}", "pretrain=[]"),
        *("arms.image.timm=resnet10t", "arms.image.fresh=true", "arms.image.input_size=32"),
        *("arms.still.like=vjepa", "arms.still.still=true", "labels=[1.0]"),
    )
    real, count = command.fit_probe, 0

    def stops(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        if count > 5:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(command, "fit_probe", stops)
    assert main(line) == 130
    assert "continue with the same command" in capsys.readouterr().err
    before = cells(tmp_path / "run")
    assert len(before) == 5
    monkeypatch.setattr(command, "fit_probe", real)
    assert main([*line, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    after = cells(tmp_path / "run")
    arms = {"vjepa", "pixels", "pixels_finetuned", "supervised", "random", "image", "still"}
    assert record["missing"] == []
    assert len(after) == len(TASKS) * len(arms)
    assert {name: after[name] for name in before} == before  # what was finished was left alone
    assert {(entry["task"], entry["arm"]) for entry in record["scores"]} == {
        (task, arm) for task in TASKS for arm in arms
    }
    assert {entry["against"] for entry in record["contrasts"]} == arms - {"vjepa"}
    assert [path.name for path in (tmp_path / "run" / "encoders").iterdir()] == ["pixels-s0"]
    rows = list(csv.DictReader((tmp_path / "run" / "probe.csv").read_text().splitlines()))
    assert len(rows) == len(record["scores"])
    assert json.loads((tmp_path / "run" / "probe.json").read_text())["scores"] == record["scores"]
    assert "| vjepa |" in (tmp_path / "run" / "probe.md").read_text()
    assert (tmp_path / "run" / "probe.png").stat().st_size > 10_000

    assert main([*line, "fit.lr=[1e-3]"]) == 2
    assert "was made with other settings or data; choose another run_dir" in capsys.readouterr().err


@pytest.mark.usefixtures("few_draws")
def test_the_same_cell_in_another_folder_has_the_same_bits(data: EpisodeDataset, encoder: Path, tmp_path: Path) -> None:
    for folder in ("one", "two"):
        assert main(argv(data, encoder, tmp_path / folder, *only("vjepa"), "tasks=[pose]", "labels=[0.5]")) == 0
    assert score(tmp_path / "one", "pose-vjepa-50pct-s0") == score(tmp_path / "two", "pose-vjepa-50pct-s0")


def test_labels_are_those_of_the_staged_scenes(data: EpisodeDataset) -> None:
    pool, held_out = data.split(CHOICE.test_fraction, CHOICE.seed)
    for name in TASKS:
        task = build_task(name, data, CHOICE)
        assert len(task.pixels) == 64
        assert task.num_pool == 48
        assert set(task.episode[:48]) <= set(pool)
        assert set(task.episode[48:]) <= set(held_out)
        assert np.ptp(np.bincount(task.classes[:48])) <= 1
        if name == "action":
            assert [ACTIONS[i % 8] for i in task.episode] == [ACTIONS[k] for k in task.classes]
            assert np.array_equal(task.pixels[5], staged(int(task.episode[5])).pixels[::2])
        if isinstance(task, ContactTask):
            touching = np.array([MOVES[ACTIONS[i % 8]][2] for i in task.episode])
            assert np.array_equal(task.present, np.tile(touching[:, None], (1, 4)))
            assert ((task.boxes[..., 2:] - task.boxes[..., :2]) > 0.05).all()
        if name == "kind":
            assert task.pixels.shape[1] == 1
            kinds = [sizes_of_red(task.pixels[task.classes == k, 0]) for k in range(3)]
            assert kinds[0] > kinds[1] > kinds[2]  # a box covers more of the picture than a cylinder, than a sphere
        again = build_task(name, data, CHOICE)
        assert np.array_equal(again.pixels, task.pixels)


def sizes_of_red(pixels: NDArray[np.uint8]) -> float:
    values = pixels.astype(int)
    return float(((values[..., 0] > 90) & (values[..., 1] < 0.6 * values[..., 0])).sum(axis=(1, 2)).mean())


def test_a_distractor_hangs_over_every_clip_of_every_task(data: EpisodeDataset) -> None:
    seen = EpisodeDataset.open(data.path, distractor=DistractorConfig(kind="flicker", height=0.3, width=1.0))
    for name in ("kind", "pose"):
        plain, task = build_task(name, data, CHOICE), build_task(name, seen, CHOICE)
        changed = (plain.pixels != task.pixels).any(axis=(1, 4))  # (M, Y, X)
        assert changed[:, :10].mean() > 0.9
        assert not changed[:, 10:].any()


def test_a_file_of_its_own_for_the_test_clips(data: EpisodeDataset, tmp_path: Path) -> None:
    other = write_episodes(tmp_path / "other.h5", SPEC, [staged(i, seed=1) for i in range(24)])
    task = build_task("action", data, CHOICE, test_dataset=other)
    assert np.array_equal(task.pixels[-1], staged(int(task.episode[-1]), seed=1).pixels[::2])
    with pytest.raises(DataError, match="holds the episodes of"):
        build_task("action", data, CHOICE, test_dataset=data)
    overlapping = write_episodes(tmp_path / "both.h5", SPEC, [staged(0), staged(1, seed=1)])
    with pytest.raises(DataError, match=r"1 episodes of .* are in .* as well"):
        build_task("action", data, CHOICE, test_dataset=overlapping)


@pytest.mark.usefixtures("few_draws")
def test_snapshots_of_a_pretraining_are_arms(
    data: EpisodeDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A pretraining under a distractor keeps the encoder of every check; each can be probed beside the last one."""
    kept = tmp_path / "pretrained"
    looks = ["distractor.kind=sway", "snapshots=true", "fit.eval_every=1"]
    assert main(["pretrain", f"data={data.path}", *PRETRAIN, *looks, f"run_dir={kept}"]) == 0
    names = sorted(path.name for path in (kept / "snapshots").iterdir())
    assert names == ["0000001", "0000002"]
    first, last = (load_encoder(kept / "snapshots" / name).state_dict() for name in names)
    final = load_encoder(kept / "encoder").state_dict()
    assert all(torch.equal(last[key], final[key]) for key in final)
    assert any(not torch.equal(first[key], final[key]) for key in final)
    assert read_card(kept / "snapshots" / "0000002")["training"] == {"step": 2, "samples": 8}
    capsys.readouterr()
    more = [f"arms.early.encoder={kept / 'snapshots' / '0000001'}", "tasks=[kind]", "labels=[1.0]"]
    line = argv(data, kept / "encoder", tmp_path / "run", *only("vjepa"), *more, "distractor.kind=sway", "--json")
    assert main(line) == 0
    assert {entry["arm"] for entry in json.loads(capsys.readouterr().out)["scores"]} == {"vjepa", "early"}


@pytest.mark.usefixtures("few_draws")
def test_efficiency_goes_on_where_it_stopped_and_shares_its_encoders(
    data: EpisodeDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two pretrainings of 3 steps, probed after steps 1 and 3; then the few-shot table from the same encoders."""
    place = tmp_path / "run"
    sizes = [*argv(data, tmp_path, place)[3:], "tasks=[kind]", "labels=[1.0]", "splits=2"]
    overrides = [item for item in PRETRAIN if not item.startswith(("target=", "fit.steps"))]
    shared = [
        *(
            f"arms.{name}.pretrain=['target={target}']"
            for name, target in (("vjepa", "ema_repaired"), ("pixels", "pixels"))
        ),
        *("arms.vjepa.seeds=2", "arms.pixels.seeds=2"),
        f"pretrain={[*overrides, 'fit.steps=3', 'fit.eval_every=1']}",
    ]
    line = ["efficiency", f"data={data.path}", *sizes, *shared, "steps=[1]"]
    assert main([*line, "max_minutes=0"]) == 2
    assert "no finished cell yet" in capsys.readouterr().err
    real = command.fit_probe
    monkeypatch.setattr(efficiency, "_ROUNDS", 1)
    monkeypatch.setattr(command, "fit_probe", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    assert main(line) == 130
    monkeypatch.setattr(command, "fit_probe", real)
    capsys.readouterr()
    assert main([*line, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["missing"] == []
    assert set(record["step_cost"]) == {"vjepa", "pixels"}
    assert all(cost["flops"] > 0 and cost["seconds"] > 0 for cost in record["step_cost"].values())
    curve = record["tasks"]["kind"]["curves"]["vjepa"]
    assert curve["steps"] == [0, 1, 3]
    assert np.mean([score(place, f"kind-vjepa.1-100pct-s{split}") for split in (0, 1)]) == pytest.approx(
        curve["mean"][1]
    )
    assert json.loads((place / "efficiency.json").read_text()) == record
    assert (place / "efficiency.png").stat().st_size > 10_000
    assert main(line) == 0
    assert "pretraining of pixels over that of vjepa" in " ".join(capsys.readouterr().out.split())
    with_encoders = [f"encoders={place / 'encoders'}", *sizes, *shared, *only("vjepa", "pixels"), "labels=[0.5]"]
    begun = {path: path.stat().st_mtime_ns for path in (place / "encoders").rglob("*")}
    assert main(["probe", f"data={data.path}", *with_encoders, f"run_dir={tmp_path / 'probe'}"]) == 0
    assert {path: path.stat().st_mtime_ns for path in (place / "encoders").rglob("*")} == begun
    for more, words in (
        (["steps=[1,9]"], "keeps its encoder every 1 of 3 steps, not at step 9"),
        (["steps=[2,1]"], "steps must be ascending"),
        (["labels=[0.5,1.0]"], "at one share of the labels"),
        (["reference=random"], "must be an arm that is pretrained here"),
        (["untrained=pixels"], "must be an arm of random weights"),
        (["reference=vjepa"], "are the same arm"),
    ):
        assert main([*line, *more]) == 2
        assert words in capsys.readouterr().err


def test_wrong_requests_are_refused_before_work_starts(
    data: EpisodeDataset, encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for more, words in (
        (["tasks=[colour]"], "tasks must be among kind, action, pose, contact, got colour"),
        (["labels=[5]"], "labels must be shares in (0, 1], got [5"),
        (["arms.vjepa.encoder=nowhere"], "no checkpoint at nowhere"),
        (["clips=480", "tasks=[action]", *only("vjepa")], "record more, or take at most 96"),
        (["pretrain=['encodr.depth=3']"], "encodr"),
        (["max_minutes=0", *only("vjepa")], "raise max_minutes"),
    ):
        assert main(argv(data, encoder, tmp_path / "run", *more)) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "run" / "cells").exists()


def test_a_dry_run_says_how_much_it_would_be(
    data: EpisodeDataset, encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = argv(data, encoder, tmp_path / "run", *only("vjepa", "random", "supervised"), "splits=3", "--dry-run")
    assert main([*line, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)["plan"]
    assert plan["cells"] == 4 * 3 * 3 * 2
    # two learning rates and the better one once more; `supervised` brings one of its own
    assert plan["probes_trained"] == 2 * 24 * 3 + 24
    assert plan["pretrainings"] == []
    assert plan["teraflop_of_arms"]["supervised"] >= plan["teraflop_of_arms"]["vjepa"]
    assert plan["hours_without_pretraining"] >= 0
    assert main(line) == 0
    assert "# cells: 72" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()
