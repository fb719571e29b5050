"""Optional listeners: TensorBoard events and Rerun recordings hold what was measured, and say what is missing."""

from __future__ import annotations

import sys
from io import StringIO
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from worldmodel.analysis.episode import PlannedStep, WatchedEpisode
from worldmodel.analysis.rerun_view import save_rerun
from worldmodel.cli import main
from worldmodel.commands import run as commands_run
from worldmodel.errors import ConfigError, DataError
from worldmodel.evaluation.episodes import EpisodeResult
from worldmodel.learning import fit as fit_module
from worldmodel.learning.fit import FitConfig, fit
from worldmodel.learning.run_state import read_metrics
from worldmodel.learning.tensorboard import TensorBoardWriter


class Line(nn.Module):
    """The slope of a line."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.zeros(1))

    def forward(self, batch: Tensor, generator: torch.Generator) -> dict[str, Any]:
        return {"loss": (self.slope * batch - 2 * batch).square().mean()}


class Numbers:
    """The same numbers for ever."""

    def next_batch(self) -> Tensor:
        return torch.linspace(-1, 1, 8)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def train(folder: Path, listener: Any, **changes: Any) -> None:
    config = FitConfig(run_dir=str(folder), steps=6, log_every=2, eval_every=3, lr=0.1, warmup_steps=1)
    for name, value in changes.items():
        setattr(config, name, value)
    fit(Line(), Numbers(), config, evaluate=lambda step: {"double": 2.0 * step, "status": "fine"}, listener=listener)


def events(folder: Path) -> Any:
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="tensorboard is not installed"
    )
    found = accumulator.EventAccumulator(str(folder))
    found.Reload()
    return found


def test_every_number_of_the_metrics_is_an_event(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    with TensorBoardWriter(tmp_path / "tensorboard") as writer:
        train(tmp_path, writer)
    found = events(tmp_path / "tensorboard")
    rows = read_metrics(tmp_path)
    for kind, name in (("train", "loss"), ("train", "lr"), ("eval", "double")):
        written = [(event.step, event.value) for event in found.Scalars(f"{kind}/{name}")]
        expected = [(row["step"], row[name]) for row in rows if row["kind"] == kind]
        assert [step for step, _ in written] == [step for step, _ in expected]
        np.testing.assert_allclose([value for _, value in written], [value for _, value in expected], rtol=1e-6)
    numbers = {f"{row['kind']}/{name}" for row in rows for name in row if name not in ("kind", "step", "status")}
    assert set(found.Tags()["scalars"]) == numbers
    assert found.Tensors("eval/status/text_summary")[0].tensor_proto.string_val[0] == b"fine"


def test_a_resumed_run_replaces_what_it_repeats(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    for first, value in ((0, 1.0), (20, 2.0)):
        with TensorBoardWriter(tmp_path) as writer:
            for step in range(first, 50, 10):
                writer({"kind": "train", "step": step, "loss": value})
    read = [(event.step, event.value) for event in events(tmp_path).Scalars("train/loss")]
    assert read == [(0, 1.0), (10, 1.0), (20, 2.0), (30, 2.0), (40, 2.0)]


def test_nothing_is_written_before_the_first_row(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    with TensorBoardWriter(tmp_path / "none"):
        pass
    assert not (tmp_path / "none").exists()


def test_a_missing_package_is_named_with_its_pip_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match="pip install tensorboard"):
        TensorBoardWriter(tmp_path)
    monkeypatch.setitem(sys.modules, "rerun", None)
    with pytest.raises(ConfigError, match="pip install rerun-sdk"):
        save_rerun(tmp_path / "a.rrd", episode())
    with pytest.raises(DataError, match=r"must end in \.rrd"):
        save_rerun(tmp_path / "a.mp4", episode())


@pytest.mark.parametrize(
    ("argv", "word"),
    [
        (["plan", "sinks=[rerun]"], "sinks=[rerun] needs a package that is not installed: pip install rerun-sdk"),
        (["train", "data=none.h5", "sinks=[tensorboard]"], "pip install tensorboard"),
        (["pretrain", "data=none.h5", "sinks=tensorboard"], "pip install tensorboard"),
        (["plan", "sinks=[tensorboard]"], "unknown sink 'tensorboard'; this command has: rerun"),
        (["train", "data=none.h5", "sinks=[wandb]"], "unknown sink 'wandb'; this command has: tensorboard"),
    ],
)
def test_the_program_refuses_before_it_works(
    argv: list[str],
    word: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(commands_run, "find_spec", lambda name: None)
    assert main([*argv, "run_dir=run"]) == 2
    assert word in capsys.readouterr().err


def episode() -> WatchedEpisode:
    """Seven frames with plans at the first, the fourth and the last but one, made by hand."""
    rng = np.random.default_rng(0)
    plans = tuple(
        PlannedStep(
            step=step,
            actions=rng.uniform(-1, 1, (2, 6)),
            elites=rng.uniform(-1, 1, (3, 2, 6)),
            best_cost=np.array([3.0, 2.0 + step]),
            elite_cost=np.array([4.0, 3.0]),
            imagined_cost=np.array([5.0, 4.0, 1.0 + step]),
            seconds=0.1 * (step + 1),
        )
        for step in (0, 3)
    )
    distances = {"start_distance_m": 0.2, "final_distance_m": 0.01, "min_distance_m": 0.01}
    result = EpisodeResult(episode=0, held=True, ever=True, steps_to_success=5, steps=6, replans=2, **distances)
    return WatchedEpisode(
        env_id="worldmodel/Push-v0",
        seed=0,
        frames=rng.integers(0, 256, (7, 16, 16, 3), dtype=np.uint8),
        goal=rng.integers(0, 256, (16, 16, 3), dtype=np.uint8),
        costs=np.array([6.0, 5.0, np.nan, 3.0, 2.0, 1.0, 0.5]),
        success=np.array([False] * 5 + [True] * 2),
        result=result,
        plans=plans,
        env_action_dim=3,
        replan_steps=3,
        dt_s=0.1,
        step_m=0.04,
        log=cast(Any, None),
    )


def test_a_rerun_recording_holds_the_episode_on_one_time_line(tmp_path: Path) -> None:
    pytest.importorskip("rerun", reason="rerun-sdk (optional, 500 MB) is not installed")
    chunk = pytest.importorskip("rerun.chunk", reason="this rerun-sdk cannot read recordings back")
    shown = episode()
    path = save_rerun(tmp_path / "new" / "episode.rrd", shown)
    assert [entry.name for entry in path.parent.iterdir()] == ["episode.rrd"]
    read: dict[str, dict[int, Any]] = {}
    static = set()
    for part in chunk.RrdReader(path).stream():
        batch = part.to_record_batch()
        if part.is_static:
            static.add(part.entity_path)
            continue
        steps = batch.column("step").to_pylist()
        (values,) = [c for c, f in zip(batch.columns, batch.schema, strict=True) if _holds_values(f.name)][:1]
        read.setdefault(part.entity_path, {}).update(zip(steps, values.to_pylist(), strict=True))
    assert {"/goal", "/summary"} <= static
    assert sorted(read["/camera"]) == list(range(7))
    for step, frame in enumerate(shown.frames):
        assert bytes(read["/camera"][step][0]) == frame.tobytes()
    assert {step: value[0] for step, value in read["/cost/frame"].items()} == {
        step: cost for step, cost in enumerate(shown.costs) if np.isfinite(cost)
    }
    assert {step: value[0] for step, value in read["/cost/plan"].items()} == {0: 2.0, 3: 5.0}
    assert {step: value[0] for step, value in read["/cost/imagined"].items()} == {0: 1.0, 3: 4.0}
    assert {step: len(value) for step, value in read["/plan/elites"].items()} == {0: 3, 3: 3}
    (chosen,) = read["/plan/chosen"][3]
    np.testing.assert_allclose(np.array(chosen)[-1], 4 * shown.plans[1].actions.reshape(4, 3)[:, :2].sum(0), atol=1e-4)


def _holds_values(name: str) -> bool:
    """Whether a column is the buffer, the scalars or the strips of an entity."""
    return any(word in name for word in (":buffer", ":scalars", ":strips"))


def test_the_bar_of_a_training_tells_loss_health_and_time_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = StringIO()
    console = Console(file=screen, force_terminal=True, width=140, color_system=None)
    monkeypatch.setattr(fit_module, "Console", lambda **_: console)
    train(tmp_path, None)
    last = screen.getvalue().rsplit("\n", 2)[-2]
    loss = read_metrics(tmp_path)[-2]["loss"]
    for word in ("6/6", f"loss {loss:.4f}", "steps/s", "ETA 0:00:00", "fine"):
        assert word in last, last
