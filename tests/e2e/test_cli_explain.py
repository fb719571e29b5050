"""`worldmodel explain` on a model that has learned nothing: every part runs, continues, and says what it did."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from worldmodel.cli import main
from worldmodel.evaluation.attribution import VERDICTS

SEARCH = ["planner.num_samples=4", "planner.num_elites=2", "planner.num_iterations=1", "planner.horizon=2"]
ORACLES = [f"{name}.{key}" for name in ("latent_oracle", "oracle") for key in ("num_samples=2", "num_elites=1")]
SMALL = [*ORACLES, "latent_oracle.num_iterations=1", "latent_oracle.horizon=2", "oracle.num_iterations=1", "factor=1"]


@pytest.fixture(name="run", scope="module")
def _run(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path, small_manifest: Path) -> Path:
    folder = tmp_path_factory.mktemp("run") / "evaluation"
    where = ["env=reach", f"checkpoint={tiny_checkpoint}", f"manifest={small_manifest}", "episodes=2"]
    assert main(["evaluate", *where, *SEARCH, f"run_dir={folder}", "--json"]) == 0
    return folder


def test_failures_get_a_verdict_with_evidence(
    run: Path, small_manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("worldmodel.evaluation.attribution.CEM", _SmallDefault)
    out = tmp_path / "why"
    argv = ["explain", str(run), f"manifest={small_manifest}", "max_failures=1", *SMALL, f"run_dir={out}"]
    assert main([*argv, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["episodes"], record["failures"], record["explained"]) == (2, 2, 1)
    assert list(record["verdicts"]) == list(VERDICTS)
    assert sum(entry["count"] for entry in record["verdicts"].values()) == 1
    (failure,) = record["failures_table"]
    assert failure["verdict"] in VERDICTS
    assert len(failure["evidence"]["open_loop"]) == 2
    assert json.loads((out / "explain.json").read_text()) == record
    assert (out / "explain.png").stat().st_size > 10_000
    before = {path: path.read_bytes() for path in out.rglob("episodes.jsonl")}
    assert main(argv) == 0
    shown = capsys.readouterr().out
    assert "sampled: 1 of 2 failures" in shown
    assert "merely run again" in shown
    assert {path: path.read_bytes() for path in out.rglob("episodes.jsonl")} == before


class _SmallDefault:
    """Stands for the shipped default search, which is too slow for a test."""

    num_calls = 0

    def __init__(self, action_repeat: int) -> None:
        self.action_repeat = action_repeat


def test_what_cannot_be_explained_is_told_in_one_line(
    run: Path, small_manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*argv: str) -> str:
        assert main(["explain", *argv, f"run_dir={tmp_path / 'why'}"]) == 2
        message = capsys.readouterr().err
        assert message.count("\n") == 1
        return message

    assert "give manifest=FILE" in refused(str(run))
    assert "holds no result.json" in refused(str(tmp_path), f"manifest={small_manifest}")
    assert "max_failures must be >= 1" in refused(str(run), f"manifest={small_manifest}", "max_failures=0")
    record = json.loads((run / "result.json").read_text())
    for change, message in (
        ({"checkpoint_hash": "0" * 64}, "is not the checkpoint of"),
        ({"type": "PolicyAgents"}, "only plans can be explained"),
        ({"planner": {"type": "Unknown"}}, "'Unknown' is no planner"),
        ({"mystery": 1}, "written by another version"),
    ):
        damaged = json.dumps({**record, "agent": {**record["agent"], **change}})
        (tmp_path / "result.json").write_text(damaged)
        assert message in refused(str(tmp_path), f"manifest={small_manifest}")
