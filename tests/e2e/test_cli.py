"""The program as a user meets it, in-process: help, JSON, dry runs, run folders, and every mistake as one line."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from worldmodel import __version__
from worldmodel.cli import help_text, main, parse
from worldmodel.commands import COMMANDS, spoken
from worldmodel.config import load
from worldmodel.control.collect import CollectConfig, collect
from worldmodel.models.checkpoint import load_checkpoint, save_checkpoint


@dataclass(frozen=True)
class Reply:
    """What one call left behind."""

    status: int
    out: str
    err: str


Call = Callable[..., Reply]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Call:
    """Run the program in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*argv: str) -> Reply:
        capsys.readouterr()
        status = main(argv)
        captured = capsys.readouterr()
        return Reply(status, captured.out, captured.err)

    return run


@pytest.fixture(scope="module")
def episodes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three short episodes."""
    path = tmp_path_factory.mktemp("data") / "reach.h5"
    collect(CollectConfig(env="reach", episodes=3, steps=6, image_size=32, workers=1, out=str(path)), progress=False)
    return path


def is_refused(reply: Reply, *words: str) -> bool:
    """Exit 2, nothing on stdout, one line on stderr that holds the words."""
    is_one_line = reply.err.count("\n") == 1 and "Traceback" not in reply.err
    return reply.status == 2 and reply.out == "" and is_one_line and all(word in reply.err for word in words)


def screen_lines(text: str, width: int = 100) -> int:
    """Lines that a terminal of that width takes for a text."""
    return sum(max(1, math.ceil(len(line) / width)) for line in text.splitlines())


def test_help_fits_a_screen_and_names_every_command(call: Call) -> None:
    for argv in ((), ("--help",), ("-h",)):
        reply = call(*argv)
        assert reply.status == 0
        assert all(spoken(name) in reply.out for name in COMMANDS)
        assert screen_lines(reply.out) <= 40


@pytest.mark.parametrize("command", list(COMMANDS))
def test_help_of_a_command_fits_a_screen(command: str, call: Call) -> None:
    reply = call(command, "--help")
    assert reply.status == 0
    assert reply.out.count("\n") <= 30
    assert screen_lines(reply.out) <= 40
    assert "examples:" in reply.out
    assert "--dry-run" in reply.out


@pytest.mark.parametrize("command", list(COMMANDS))
def test_examples_of_the_help_compose(command: str, call: Call) -> None:
    """Every example line in the help is a line that the program accepts (as a dry run)."""
    for line in COMMANDS[command].examples:
        argv = shlex.split(line)[1:]
        reply = call(*argv, *([] if "--dry-run" in argv else ["--dry-run"]))
        assert reply.status == 0, (line, reply.err)
    assert "worldmodel plan" in help_text()


def test_version(call: Call) -> None:
    assert __version__ in call("--version").out


def test_a_dry_run_shows_everything_and_does_nothing(call: Call, tmp_path: Path) -> None:
    reply = call("collect", "env=reach", "episodes=7", "--dry-run")
    assert reply.status == 0
    assert "episodes: 7" in reply.out
    assert "expert_fraction" in reply.out
    assert not list(tmp_path.iterdir())
    assert json.loads(call("collect", "env=reach", "--dry-run", "--json").out)["env"] == "reach"


def test_collect_json_is_one_object_and_the_run_folder_says_how(call: Call, tmp_path: Path) -> None:
    argv = ("collect", "env=reach", "episodes=2", "steps=4", "image_size=32", "workers=1", "out=a.h5", "run_dir=run")
    reply = call(*argv, "--json")
    assert reply.status == 0, reply.err
    record = json.loads(reply.out)
    assert record["frames"] == 10
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert facts["command"] == "collect"
    assert facts["seed"] == 0
    assert facts["versions"]["torch"]
    assert "steps: 4" in (tmp_path / "run" / "config.yaml").read_text()
    reply = call(*argv, "--json")
    assert reply.status == 2
    assert reply.out == ""
    assert "already exists" in reply.err
    assert "append=true" in reply.err


def test_a_run_folder_belongs_to_one_command(call: Call, episodes: Path) -> None:
    assert call("inspect", f"data={episodes}", "run_dir=run").status == 0
    assert is_refused(call("doctor", "run_dir=run"), "run_dir=run", "worldmodel inspect")


def test_inspect_reports_and_draws(call: Call, episodes: Path) -> None:
    reply = call("inspect", f"data={episodes}", "run_dir=run", "--json")
    record = json.loads(reply.out)
    assert record["episodes"] == 3
    assert Path(record["contact_sheet"]).is_file()
    assert "content hash" in call("inspect", f"data={episodes}", "run_dir=run").out


def test_multirun_gives_one_record_per_combination(call: Call) -> None:
    argv = ("collect", "-m", "env=reach,push", "episodes=1", "steps=3", "image_size=32", "workers=1", "run_dir=sweep")
    reply = call(*argv, "out=${run_dir}${env}.h5", "--json")
    assert reply.status == 0, reply.err
    records = json.loads(reply.out)
    assert [record["frames"] for record in records] == [4, 4]
    assert [Path(record["path"]).name for record in records] == ["Nonereach.h5", "Nonepush.h5"]


@pytest.mark.parametrize(
    "word",
    ["outputs/a", "with space", "./lr=0.1", "../x", "don't", "back\\", "a\\'b", "a,b", "[x]", "{y}", "~/run", "ü:1#2"],
)
def test_words_without_a_key_reach_the_setting_they_are_for(word: str) -> None:
    """Whatever a path may look like, it arrives as it was typed: in a list and alone, beside ordinary overrides."""
    request = parse(["compare", word, "reference=1", "plain"])
    settings = load("compare", request.overrides).settings
    assert (settings.runs, settings.reference) == ((word, "plain"), "1")
    assert load("explain", parse(["explain", word, "factor=3"]).overrides).settings.run == word


def test_words_without_a_key_have_a_place_or_are_refused(call: Call) -> None:
    assert is_refused(call("explain", "a", "b", "--dry-run"), "explain takes one RUN, got 2: a, b")
    assert is_refused(call("evaluate", "push", "--dry-run"), "'push'", "key=value")
    assert "usage: worldmodel compare RUN RUN ... [key=value" in call("compare", "--help").out
    assert "usage: worldmodel explain RUN [key=value" in call("explain", "--help").out
    assert "usage: worldmodel plan [key=value" in call("plan", "--help").out


def test_a_dry_multirun_shows_every_combination_and_does_nothing(call: Call, tmp_path: Path) -> None:
    reply = call("train", "-m", "data=x.h5", "latent=compact,patch", "--dry-run", "--json")
    assert reply.status == 0, reply.err
    assert [config["latent"] for config in json.loads(reply.out)] == ["compact", "patch"]
    assert "latent: patch" in call("train", "-m", "data=x.h5", "latent=compact,patch", "--dry-run").out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["evalute"], ["unknown command 'evalute'", "did you mean 'evaluate'"]),
        (["evaluate", "--jsno"], ["unknown option '--jsno'", "--json"]),
        (["evaluate", "planner.num_sample=3"], ["unknown key 'planner.num_sample'", "'planner.num_samples'"]),
        (["evaluate", "+planner.num_sample=3"], ["unknown key 'planner.num_sample'", "'planner.num_samples'"]),
        (["evaluate", "+colour=red"], ["unknown key 'colour'"]),
        (["evaluate", "planner=mppi2"], ["unknown planner 'mppi2'", "cem"]),
        (["evaluate", "planner.horizon=0"], ["horizon", "0"]),
        (["evaluate", "planner.num_samples=64", "planner.num_elites=999"], ["[1, num_samples=64], got 999"]),
        (["evaluate", "env=pusj"], ["unknown environment 'pusj'", "'push'"]),
        (["evaluate", "episodes=-3"], ["episodes", "-3"]),
        (["collect", "env=pusj"], ["unknown environment 'pusj'", "'push'"]),
        (["collect", "episodes=-3"], ["episodes must be >= 1, got -3"]),
        (["collect", "episodes=0"], ["episodes must be >= 1, got 0"]),
        (["collect", "episodes=many"], ["episodes=many"]),
        (["plan", "checkpoint=nowhere"], ["nowhere"]),
        (["plan", "task=-1"], ["task must be >= 0, got -1"]),
        (["plan", "env=pusj"], ["unknown environment 'pusj'"]),
        (["train", "data=nowhere.h5"], ["nowhere.h5"]),
        (["train"], ["data is missing"]),
        (["inspect", "data=nowhere.h5"], ["nowhere.h5"]),
        (["pretrain", "data=x.h5", "encoder=timm"], ["encoder=vit"]),
        (["pretrain", "data=x.h5", "fit.steps=0"], ["steps must be >= 1, got 0"]),
        (["reproduce", "experiment=quik"], ["unknown experiment 'quik'", "'quick'"]),
        (["manifest", "out=here.txt"], ["here.txt", ".json"]),
        (["-m", "evaluate", "episodes=1,x"], ["episodes=x"]),
    ],
)
def test_mistakes_end_as_one_line(argv: list[str], words: list[str], call: Call) -> None:
    reply = call(*argv, "--json") if argv[0] in ("evaluate", "plan", "collect", "train") else call(*argv)
    if reply.out:  # a note about what was about to happen may precede a mistake found later
        reply = Reply(reply.status, "", reply.err)
    errors = [line for line in reply.err.splitlines() if line.startswith("worldmodel: ")]
    assert len(errors) == 1, reply.err
    assert is_refused(Reply(reply.status, "", errors[0] + "\n"), *words)


def test_corrupt_data_is_refused(call: Call, tmp_path: Path, episodes: Path) -> None:
    broken = tmp_path / "broken.h5"
    broken.write_bytes(episodes.read_bytes()[: episodes.stat().st_size // 2])
    assert is_refused(call("inspect", f"data={broken}"), "broken.h5")
    (tmp_path / "text.h5").write_text("not HDF5")
    assert is_refused(call("inspect", "data=text.h5"), "text.h5")


def test_nan_in_data_is_refused(call: Call, tmp_path: Path, episodes: Path) -> None:
    bad = tmp_path / "nan.h5"
    bad.write_bytes(episodes.read_bytes())
    with h5py.File(bad, "r+") as file:
        file["proprio"][3, 0] = np.nan
    assert is_refused(call("inspect", f"data={bad}"), "nan.h5", "proprio", "NaN", "episode 0")


def test_a_corrupt_checkpoint_is_refused(call: Call, tmp_path: Path, tiny_checkpoint: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in tiny_checkpoint.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    weights = next(copy.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-7] + b"garbage")
    reply = call("plan", "env=reach", f"checkpoint={copy}", "--json")
    assert reply.status == 2
    assert reply.out == ""
    assert weights.name in reply.err.splitlines()[-1]


def test_a_checkpoint_for_something_else_is_refused(call: Call, tiny_checkpoint: Path, episodes: Path) -> None:
    reply = call("plan", "env=push", f"checkpoint={tiny_checkpoint}", "--json")
    assert reply.status == 2
    assert reply.out == ""
    assert "Reach-v0" in reply.err.splitlines()[-1]


def test_evaluate_json_keeps_its_contract(call: Call, tiny_checkpoint: Path, small_manifest: Path) -> None:
    argv = ("evaluate", "env=reach", "episodes=1", f"checkpoint={tiny_checkpoint}", f"manifest={small_manifest}")
    small = ("planner.num_samples=4", "planner.num_elites=2", "planner.num_iterations=1", "planner.horizon=1")
    reply = call(*argv, *small, "run_dir=run", "--json")
    assert reply.status == 0, reply.err
    record = json.loads(reply.out)
    assert 0 <= record["success_interval"][0] <= record["success_rate"] <= record["success_interval"][1] <= 1
    assert record["success_ever"] >= record["success_rate"]
    assert len(record["manifest_hash"]) == 64
    assert set(record["replan_s"]) == {"p50", "p95"}
    assert set(record["baselines"]) == {"random", "noop", "oracle", "bc", "idm", "oracle_latent"}
    assert record["model_calls_per_episode"] == 20 * 4, "a replan every three of sixty steps, four candidates each"
    assert record["flops_per_episode"] > record["model_calls_per_episode"]
    assert len(record["success_curve"]) == len(record["episodes_table"][0]["success"]) == 61
    assert [row["episode"] for row in record["episodes_table"]] == [0]
    assert not [key for row in record["episodes_table"] for key in row if "seconds" in key or key.endswith("_s")]
    again = call(*argv, *small, "run_dir=run", "--json")
    assert json.loads(again.out)["episodes_table"] == record["episodes_table"]
    other = call(*argv, *small, "run_dir=run", "seed=1", "--json")
    assert other.status == 2
    assert "run" in other.err


def test_training_seeds_are_summed_up_and_compared(
    call: Call, tiny_checkpoint: Path, small_manifest: Path, tmp_path: Path
) -> None:
    model = load_checkpoint(tiny_checkpoint)
    for parameter in model.predictor.parameters():
        parameter.data.add_(0.01)
    other = save_checkpoint(tmp_path / "other", model, {})
    small = ("planner.num_samples=4", "planner.num_elites=2", "planner.num_iterations=1", "planner.horizon=1")
    argv = ("evaluate", "env=reach", "episodes=2", f"manifest={small_manifest}", *small)
    both = ("-m", f"checkpoint={tiny_checkpoint},{other}", "run_dir=seeds")
    reply = call(*argv, *both)
    assert reply.status == 0, reply.err
    assert "between-seed std" in reply.out
    kept = json.loads((tmp_path / "seeds" / "summary.json").read_text())
    assert kept["training_seeds"]["checkpoints"] == 2
    reply = call(*argv, *both, "--json")
    records = json.loads(reply.out)
    assert [record["agent"]["checkpoint"] for record in records] == [str(tiny_checkpoint), str(other)]
    assert [job["success_rate"] for job in kept["jobs"]] == [record["success_rate"] for record in records]
    reply = call("compare", "seeds", "seeds/0", "--json", "run_dir=compared")
    assert reply.status == 0, reply.err
    first, second = json.loads(reply.out)["arms"]
    assert (first["training_seeds"], second["training_seeds"]) == (2, 1)
    assert second["difference"]["test"] == "bootstrap"
    table = (tmp_path / "seeds" / "0" / "episodes.csv").read_text().splitlines()
    assert len(table) == 3
    assert table[0].startswith("episode,held,ever")


def test_evaluate_refuses_what_is_not_there(call: Call, small_manifest: Path, tiny_checkpoint: Path) -> None:
    manifest = f"manifest={small_manifest}"
    for words, argv in {
        "nowhere": ("checkpoint=nowhere", manifest, "episodes=1"),
        "episodes must be in [1, 2], got 3": (f"checkpoint={tiny_checkpoint}", manifest, "episodes=3"),
        "nowhere.json": (f"checkpoint={tiny_checkpoint}", "manifest=nowhere.json", "episodes=1"),
    }.items():
        reply = call("evaluate", "env=reach", *argv, "--json")
        assert reply.status == 2
        assert reply.out == ""
        assert words in reply.err.splitlines()[-1]


def test_plan_ends_with_a_table_a_video_and_a_picture(call: Call, tiny_checkpoint: Path) -> None:
    small = ("planner.num_samples=4", "planner.num_elites=2", "planner.num_iterations=1", "planner.horizon=1")
    reply = call("plan", "env=reach", f"checkpoint={tiny_checkpoint}", *small, "run_dir=run")
    assert reply.status == 0, reply.err
    assert "replan latency" in reply.out
    assert "latent cost" in reply.out
    names = ("episode.mp4", "plan.png", "plans.safetensors")
    for line, name in zip(reply.out.splitlines()[-3:], names, strict=True):
        assert line.split()[1].endswith(name)
        assert Path(line.split()[1]).stat().st_size > 1000


def test_no_gl_backend_is_one_line(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "off")
    reply = call("collect", "env=reach", "episodes=1", "workers=1", "--json")
    assert reply.status == 2
    assert "MUJOCO_GL" in reply.err.splitlines()[-1]
    assert "Traceback" not in reply.err


def test_doctor_says_what_is_missing(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "off")
    reply = call("doctor", "--json")
    report: dict[str, Any] = json.loads(reply.out)
    assert reply.status == 2
    assert report["gl_backend"] is None
    assert any("MUJOCO_GL" in problem for problem in report["problems"])
    assert report["versions"]["mujoco"]


def test_an_interruption_says_what_was_kept(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    from worldmodel.commands import collect as command

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "collect", interrupt)
    reply = call("collect", "env=reach", "out=half.h5")
    assert reply.status == 130
    assert "half.h5" in reply.err
    assert "append=true" in reply.err


def test_an_unwritable_run_folder_is_one_line(call: Call, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert is_refused(call("doctor", "run_dir=file/run"), "file/run")
