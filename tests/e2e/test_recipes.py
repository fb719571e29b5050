"""The recipes of the documentation: short, shown as they are, and they run."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import gymnasium
import pytest

from worldmodel import cli
from worldmodel.evaluation.manifest import load_manifest
from worldmodel.learning.run_state import read_metrics
from worldmodel.models import frozen_encoders
from worldmodel.models.checkpoint import load_checkpoint

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "docs" / "examples"
RECIPES = ("cart", "fifth_rule", "grid_encoder", "own_data", "stay_away")
_main = cli.main


def _checked(argv: Sequence[str]) -> int:
    """The program, whose failure is the recipe's."""
    assert _main(argv) == 0, argv
    return 0


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder to run a recipe in; what recipes register is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "main", _checked)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setattr("worldmodel.envs._own_modules", [])
    yield tmp_path
    gymnasium.registry.pop("mine/Cart-v0", None)
    sys.modules.pop("cart", None)
    frozen_encoders.REGISTERED.pop("GridConfig", None)


def _execute(name: str) -> dict[str, object]:
    return runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")


def test_every_recipe_is_short_shown_and_run_here() -> None:
    files = sorted(path.stem for path in EXAMPLES.glob("*.py"))
    assert files == sorted(RECIPES), "add a test that runs the new recipe"
    pages = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "recipes").glob("*.md"))
    for name in files:
        assert len((EXAMPLES / f"{name}.py").read_text(encoding="utf-8").splitlines()) <= 40, name
        assert f'--8<-- "docs/examples/{name}.py"' in pages, name


def test_environment(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _execute("cart")
    assert (run / "cart_plan" / "episode.mp4").is_file()
    assert load_checkpoint(run / "cart" / "checkpoint").spec.env_ids == ("mine/Cart-v0",)
    gymnasium.registry.pop("mine/Cart-v0")
    commands = re.findall(r"^worldmodel (.*)$", (ROOT / "docs/recipes/environment.md").read_text(), re.MULTILINE)
    small = {
        "collect": "out=more.h5 episodes=2 workers=1",
        "manifest": "episodes=1 workers=1",
        "evaluate": "episodes=1 planner.num_samples=20 planner.num_elites=5",
    }
    for line in commands:  # that workers import the module, too, is in tests/unit/test_state_env.py
        assert _main([*shlex.split(line), *shlex.split(small[line.split()[0]])]) == 0, capsys.readouterr().err
    assert load_manifest(run / "cart_tasks.json.gz").env_id == "mine/Cart-v0"


def test_data(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And its training runs tell TensorBoard what they tell metrics.jsonl."""
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="tensorboard is not installed"
    )

    def watched(argv: Sequence[str]) -> int:
        return _checked([*argv, *["sinks=[tensorboard]"] * (argv[0] in ("pretrain", "train"))])

    monkeypatch.setattr(cli, "main", watched)
    _execute("own_data")
    assert load_checkpoint(run / "robot" / "checkpoint").spec.proprio_names == ("shoulder", "elbow")
    for folder in (run / "eyes", run / "robot", run / "robot" / "temporal_distance"):
        events = accumulator.EventAccumulator(str(folder / "tensorboard"))
        events.Reload()
        last = [row for row in read_metrics(folder) if row["kind"] == "train"][-1]
        written = events.Scalars("train/loss")[-1]
        assert (written.step, written.value) == (last["step"], pytest.approx(last["loss"], rel=1e-6))


def test_encoder(run: Path) -> None:
    _execute("grid_encoder")
    encoder = load_checkpoint(run / "grid" / "checkpoint").encoder
    assert (encoder.num_tokens, encoder.embed_dim) == (64, 6)
    assert (run / "grid_plan" / "plan.png").is_file()


def test_planner(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _execute("fifth_rule")
    assert "success: True" in capsys.readouterr().out


def test_objective(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _execute("stay_away")
    (near, reached), (far, also) = (
        [float(number) for number in re.findall(r"[\d.]+(?= m)", line)] for line in capsys.readouterr().out.splitlines()
    )
    assert near < 0.05
    assert far > 0.1
    assert max(reached, also) <= 0.05
