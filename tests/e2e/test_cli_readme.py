"""What README.md shows works: its commands compose, its Python runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from worldmodel.cli import main
from worldmodel.models.checkpoint import shipped_checkpoints


def blocks(root: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (root / "README.md").read_text(encoding="utf-8"), re.DOTALL)


def commands(root: Path) -> list[str]:
    text = (root / "README.md").read_text(encoding="utf-8")
    lines = [line for block in blocks(root, "sh") for line in block.splitlines()]
    return [line for line in [*lines, *re.findall(r"`(worldmodel [^`]+)`", text)] if line.startswith("worldmodel ")]


def test_every_command_of_the_readme_composes(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    found = commands(root)
    assert len(found) >= 8
    for line in found:
        assert main([*shlex.split(line, comments=True)[1:], "--dry-run"]) == 0, (line, capsys.readouterr().err)
        capsys.readouterr()


@pytest.mark.slow
@pytest.mark.skipif(not shipped_checkpoints(), reason="this checkout ships no checkpoint")
def test_the_python_of_the_readme_runs(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for block in blocks(root, "python"):
        exec(compile(block, "README.md", "exec"), {})
    assert (tmp_path / "episode.mp4").is_file()
    assert (tmp_path / "plan.png").is_file()
    assert "success" in capsys.readouterr().out
