"""`worldmodel reproduce` from nothing to the table, and again without doing anything twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from worldmodel.cli import main
from worldmodel.envs import make_env
from worldmodel.evaluation.manifest import build_manifest

STAGES = ["collect_reach", "collect_push", "pretrain", "train", "evaluate_reach", "evaluate_push"]


def manifest(folder: Path, name: str) -> Path:
    env = make_env(name, render=False)
    build_manifest(env, episodes=2).save(folder / f"{name}.json")
    env.close()
    return folder / f"{name}.json"


def test_a_missing_manifest_is_found_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    argv = ["reproduce", "experiment=tiny", "run_dir=run", "evaluate_reach.manifest=nowhere.json", "--json"]
    assert main(argv) == 2
    assert "nowhere.json" in capsys.readouterr().err
    assert not (tmp_path / "run" / "episodes.h5").exists()


@pytest.mark.slow
def test_the_chain_runs_and_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    argv = ["reproduce", "experiment=tiny", "run_dir=run", "workers=1", "--json"]
    argv += [f"evaluate_{name}.manifest={manifest(tmp_path, name)}" for name in ("reach", "push")]
    assert main(argv) == 0
    first = json.loads(capsys.readouterr().out)
    assert list(first["stages"]) == STAGES
    assert (tmp_path / "run" / "checkpoint").is_dir()
    assert first["stages"]["evaluate_push"]["episodes"] == 2

    stages = tmp_path / "run" / "stages.json"
    book = json.loads(stages.read_text())
    del book["evaluate_push"]
    stages.write_text(json.dumps(book))
    assert main(argv) == 0
    captured = capsys.readouterr()
    second = json.loads(captured.out)
    assert captured.err.count("done before") == len(STAGES) - 1
    table = "episodes_table"
    assert second["stages"]["evaluate_push"][table] == first["stages"]["evaluate_push"][table]

    assert main([*argv, "train.lr=0.5"]) == 2
    assert "train done with lr=0.001, asked for 0.5" in capsys.readouterr().err
