"""The recipes of the documentation: short, shown as they are, and they run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

from worldmodel.evaluation.manifest import load_manifest
from worldmodel.learning.run_state import read_metrics
from worldmodel.models import frozen_encoders
from worldmodel.models.checkpoint import load_checkpoint

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "docs" / "examples"
RECIPES = ("cart", "fifth_rule", "grid_encoder", "own_data", "stay_away")
Execute = Callable[..., str]


@pytest.fixture
def execute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wheel_path: Path) -> Execute:
    """Run a recipe from the installed wheel in an empty folder, which becomes the current one; returns its output."""
    monkeypatch.chdir(tmp_path)
    path = os.pathsep.join([str(wheel_path), str(EXAMPLES)])
    program = [sys.executable, str(Path(__file__).with_name("run_recipe.py"))]

    def run(name: str, *settings: str, commands: str = "") -> str:
        recipe = "-" if name == "-" else str(EXAMPLES / f"{name}.py")
        done = subprocess.run(
            [*program, recipe, *settings],
            input=commands,
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def test_every_recipe_is_short_shown_and_run_here() -> None:
    files = sorted(path.stem for path in EXAMPLES.glob("*.py"))
    assert files == sorted(RECIPES), "add a test that runs the new recipe"
    pages = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "recipes").glob("*.md"))
    for name in files:
        assert len((EXAMPLES / f"{name}.py").read_text(encoding="utf-8").splitlines()) <= 40, name
        assert f'--8<-- "docs/examples/{name}.py"' in pages, name


def test_environment(execute: Execute) -> None:
    execute("cart")
    assert Path("cart_plan/episode.mp4").is_file()
    assert load_checkpoint("cart/checkpoint").spec.env_ids == ("mine/Cart-v0",)
    shown = re.findall(r"^worldmodel (.*)$", (ROOT / "docs/recipes/environment.md").read_text(), re.MULTILINE)
    small = {
        "collect": "out=more.h5 episodes=2 workers=1",
        "manifest": "episodes=1 workers=1",
        "evaluate": "episodes=1 planner.num_samples=20 planner.num_elites=5",
    }
    # that workers import the module, too, is in tests/unit/test_state_env.py
    execute("-", commands="\n".join(f"{line} {small[line.split()[0]]}" for line in shown))
    assert load_manifest("cart_tasks.json.gz").env_id == "mine/Cart-v0"


def test_data(execute: Execute) -> None:
    """And its training runs tell TensorBoard what they tell metrics.jsonl."""
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="tensorboard is not installed"
    )
    execute("own_data", "sinks=[tensorboard]")
    assert load_checkpoint("robot/checkpoint").spec.proprio_names == ("shoulder", "elbow")
    for folder in map(Path, ("eyes", "robot", "robot/temporal_distance")):
        events = accumulator.EventAccumulator(str(folder / "tensorboard"))
        events.Reload()
        last = [row for row in read_metrics(folder) if row["kind"] == "train"][-1]
        written = events.Scalars("train/loss")[-1]
        assert (written.step, written.value) == (last["step"], pytest.approx(last["loss"], rel=1e-6))


def test_encoder(execute: Execute, monkeypatch: pytest.MonkeyPatch) -> None:
    execute("grid_encoder")
    assert Path("grid_plan/plan.png").is_file()
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import_module("grid_encoder")  # registers it
    try:
        encoder = load_checkpoint("grid/checkpoint").encoder
    finally:
        frozen_encoders.REGISTERED.pop("GridConfig")
        sys.modules.pop("grid_encoder")
    assert (encoder.num_tokens, encoder.embed_dim) == (64, 6)


def test_planner(execute: Execute) -> None:
    assert "success: True" in execute("fifth_rule")


def test_objective(execute: Execute) -> None:
    (near, reached), (far, also) = (
        [float(number) for number in re.findall(r"[\d.]+(?= m)", line)] for line in execute("stay_away").splitlines()
    )
    assert near < 0.05
    assert far > 0.1
    assert max(reached, also) <= 0.05
