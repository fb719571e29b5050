"""The training loop: resuming is exact, settings are guarded, schedules have the published shape."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from worldmodel.errors import CheckpointError, ConfigError
from worldmodel.learning.fit import DivergenceError, FitConfig, fit, to_device
from worldmodel.learning.fit_config import has_native_bf16, learning_rate, step_generator, weight_decay
from worldmodel.learning.run_state import read_metrics


@dataclass(frozen=True, kw_only=True)
class Batch:
    x: Tensor
    y: Tensor


class Source:
    """Regression batches whose position is one integer."""

    def __init__(self, seed: int = 0) -> None:
        self.seed, self.index = seed, 0

    def next_batch(self) -> Batch:
        generator = torch.Generator().manual_seed(1000 * self.seed + self.index)
        self.index += 1
        x = torch.randn(16, 4, generator=generator)
        return Batch(x=x, y=x.sum(dim=1, keepdim=True))

    def state_dict(self) -> dict[str, Any]:
        return {"index": self.index}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.index = state["index"]


class Task(nn.Module):
    """Noisy regression with an EMA copy, to exercise generator, hook and buffers."""

    average: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        for index, parameter in enumerate(self.net.parameters()):
            nn.init.normal_(parameter, std=0.5, generator=torch.Generator().manual_seed(index))
        self.register_buffer("average", torch.zeros(8, 4))
        self.blow_up_at = -1
        self.calls = 0

    def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, Any]:
        self.calls += 1
        noise = 0.01 * torch.randn(batch.x.shape, generator=generator)
        error = (self.net(batch.x + noise) - batch.y).square().mean()
        if self.calls == self.blow_up_at:
            error = error * float("nan")
        return {"loss": error, "noise": noise.std(), "constant": 2.0}

    def after_step(self, step: int, total_steps: int) -> None:
        assert 1 <= step <= total_steps
        with torch.no_grad():
            self.average.lerp_(self.net[0].weight, 0.1)


class KilledError(Exception):
    """Stands for a kill signal."""


def config(run_dir: Path | None, **changes: Any) -> FitConfig:
    values = {"steps": 30, "lr": 1e-2, "warmup_steps": 5, "log_every": 4, "checkpoint_every": 10, "clip_norm": 1.0}
    return FitConfig(run_dir=None if run_dir is None else str(run_dir), precision="32-true", **{**values, **changes})


def kill_at(step: int) -> Any:
    def evaluate(done: int) -> dict[str, float]:
        if done == step:
            raise KilledError
        return {"done": done}

    return evaluate


def rows_without_time(run_dir: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in ("seconds", "loader_share")} for row in read_metrics(run_dir)]


class FakeClock:
    """Stands for the `time` module; moves only when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


class SlowSource(Source):
    """A batch takes a second."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__()
        self.clock = clock

    def next_batch(self) -> Batch:
        self.clock.now += 1
        return super().next_batch()


class SlowTask(Task):
    """A step takes three seconds beside the batch, and ten times as long after step 20."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__()
        self.clock = clock

    def after_step(self, step: int, total_steps: int) -> None:
        super().after_step(step, total_steps)
        self.clock.now += 3 if step <= 20 else 30


def test_rows_say_which_share_of_the_time_the_batches_took(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock()
    monkeypatch.setattr("worldmodel.learning.fit.time", clock)

    def evaluate(done: int) -> dict[str, float]:
        clock.now += 1000  # is no part of training
        return kill_at(17)(done) if len(killed) == 0 else {}

    killed: list[int] = []
    settings = config(tmp_path, eval_every=1)
    with pytest.raises(KilledError):
        fit(SlowTask(clock), SlowSource(clock), settings, evaluate=evaluate)
    killed.append(17)
    report = fit(SlowTask(clock), SlowSource(clock), settings, evaluate=evaluate)
    assert report.resumed_from == 10
    assert report.seconds == 20 * 4 + 10 * 31
    shares = {row["step"]: row["loader_share"] for row in read_metrics(tmp_path) if row["kind"] == "train"}
    slow = round(1 / 31, 4)
    assert shares == {4: 0.25, 8: 0.25, 12: 0.25, 16: 0.25, 20: 0.25, 24: slow, 28: slow, 30: slow}
    assert "loader_share" not in report.metrics  # it is no property of what was trained


def test_a_killed_run_resumes_to_the_same_bits(tmp_path: Path) -> None:
    settings = {"eval_every": 1, "final_weight_decay": 0.4, "stretch": 1.25}
    whole, half = Task(), Task()
    fit(whole, Source(), config(tmp_path / "whole", **settings), evaluate=kill_at(-1))
    with pytest.raises(KilledError):
        fit(half, Source(), config(tmp_path / "half", **settings), evaluate=kill_at(17))
    resumed = Task()
    report = fit(resumed, Source(), config(tmp_path / "half", **settings), evaluate=kill_at(-1))
    assert report.resumed_from == 10
    assert report.step == 30
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert rows_without_time(tmp_path / "half") == rows_without_time(tmp_path / "whole")
    states = [load_file(next((tmp_path / run).glob("state-*.safetensors"))) for run in ("whole", "half")]
    assert any(key.startswith("optimizer.net.0.weight.") for key in states[0])
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_a_finished_run_is_loaded_not_trained_again(tmp_path: Path) -> None:
    first = Task()
    fit(first, Source(), config(tmp_path))
    again = Task()
    report = fit(again, Source(), config(tmp_path))
    assert report.resumed_from == 30
    assert again.calls == 0
    assert report.metrics["step"] == 30
    assert torch.equal(first.net[0].weight, again.net[0].weight)


def test_only_the_newest_state_is_kept(tmp_path: Path) -> None:
    fit(Task(), Source(), config(tmp_path))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["metrics.jsonl", "state-00000030.safetensors", "state.json"]


def test_other_settings_are_refused_and_named(tmp_path: Path) -> None:
    fit(Task(), Source(), config(tmp_path))
    with pytest.raises(ConfigError, match=r"lr=0\.01, this one has 0\.02"):
        fit(Task(), Source(), config(tmp_path, lr=2e-2))


@pytest.mark.parametrize("name", ["state.json", "state-00000030.safetensors"])
def test_damaged_files_are_reported(tmp_path: Path, name: str) -> None:
    fit(Task(), Source(), config(tmp_path))
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CheckpointError, match="damaged"):
        fit(Task(), Source(), config(tmp_path))


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    fit(Task(), Source(), config(tmp_path))
    path = tmp_path / "state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))
    with pytest.raises(CheckpointError, match="format 99"):
        fit(Task(), Source(), config(tmp_path))


def test_a_broken_loss_stops_the_run_and_keeps_the_last_state(tmp_path: Path) -> None:
    task = Task()
    task.blow_up_at = 14
    with pytest.raises(DivergenceError, match="nan"):
        fit(task, Source(), config(tmp_path))
    assert (tmp_path / "state-00000010.safetensors").is_file()
    report = fit(Task(), Source(), config(tmp_path))
    assert report.resumed_from == 10


def test_it_learns_and_reports_without_a_folder() -> None:
    task = Task()
    report = fit(task, Source(), config(None, steps=300, lr=3e-2), evaluate=lambda step: {"step_seen": step})
    assert report.metrics["loss"] < 0.1
    assert report.metrics["constant"] == 2.0
    assert report.evaluation == {"kind": "eval", "step": 300, "step_seen": 300.0}
    assert not task.training


def test_a_line_cut_short_by_a_kill_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"st')
    assert read_metrics(tmp_path) == [{"step": 1}]


def test_learning_rate_warms_up_then_follows_the_stretched_cosine() -> None:
    settings = FitConfig(steps=100, lr=1.0, final_lr=0.0, warmup_steps=10, stretch=1.25)
    rates = [learning_rate(settings, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.19)
    assert rates[9] == rates[10] == pytest.approx(1.0)
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))
    # three quarters of the cosine, not all of it: 89 of 115 steps
    assert rates[-1] == pytest.approx(0.5 * (1 + np.cos(np.pi * 89 / 115)))


def test_learning_rate_may_stay_constant_and_cool_down() -> None:
    """V-JEPA 2: from start_lr up, constant, then linear to final_lr, which the last step reaches."""
    settings = FitConfig(steps=100, lr=1.0, start_lr=0.2, final_lr=0.1, warmup_steps=8, cooldown_steps=9)
    rates = [learning_rate(settings, step) for step in range(100)]
    assert rates[:8] == pytest.approx([0.2 + 0.1 * step for step in range(1, 9)])
    assert rates[8:91] == [1.0] * 83
    assert rates[91:] == pytest.approx([1.0 - 0.1 * step for step in range(1, 10)])


def test_weight_decay_is_constant_or_follows_the_stretched_cosine() -> None:
    assert weight_decay(FitConfig(steps=10), 7) == 0.04
    settings = FitConfig(steps=100, weight_decay=0.04, final_weight_decay=0.4, stretch=1.25)
    assert weight_decay(settings, 0) == pytest.approx(0.04)
    assert weight_decay(settings, 100) == pytest.approx(0.4 - 0.18 * (1 + np.cos(np.pi * 0.8)))


@pytest.mark.parametrize(
    "changes", [{"start_lr": 2.0}, {"start_lr": -1.0}, {"cooldown_steps": 91}, {"cooldown_steps": -1}]
)
def test_bad_schedules_are_named(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(changes))):
        FitConfig(steps=100, lr=1.0, warmup_steps=10, **changes)


def test_a_run_without_the_younger_settings_may_go_on() -> None:
    assert not {"start_lr", "cooldown_steps"} & set(FitConfig().fingerprint())
    assert FitConfig(cooldown_steps=0).fingerprint()["cooldown_steps"] == 0


def test_step_streams_are_a_function_of_seed_step_and_rank() -> None:
    def draw(*key: int) -> float:
        return torch.rand((), generator=step_generator(key[0], key[1], torch.device("cpu"), key[2])).item()

    assert draw(0, 5, 0) == draw(0, 5, 0)
    assert len({draw(0, 5, 0), draw(1, 5, 0), draw(0, 6, 0), draw(0, 5, 1)}) == 4


def test_weight_decay_spares_vectors() -> None:
    class Still(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.matrix, self.vector = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))

        def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, Any]:
            return {"loss": 0.0 * (self.matrix.sum() + self.vector.sum())}

    task = Still()
    fit(task, Source(), config(None, steps=3, weight_decay=0.5))
    assert torch.all(task.matrix < 1)
    assert torch.equal(task.vector, torch.ones(2))


def test_nothing_to_train_is_an_error() -> None:
    task = Task().requires_grad_(False)
    with pytest.raises(ConfigError, match="nothing to train"):
        fit(task, Source(), config(None))


@pytest.mark.parametrize(
    ("field", "value"),
    [("steps", 0), ("lr", 0.0), ("stretch", 0.5), ("clip_norm", -1.0), ("precision", "16"), ("checkpoint_every", 0)],
)
def test_bad_settings_are_named(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=field):
        FitConfig(**{field: value})


def test_batches_are_rebuilt_on_the_device() -> None:
    batch = {"a": np.ones((2, 3), np.float32), "b": (Batch(x=torch.zeros(1), y=torch.ones(1)), "name")}
    moved = to_device(batch, torch.device("meta"))
    assert moved["a"].is_meta
    assert moved["b"][0].y.is_meta
    assert moved["b"][1] == "name"


def test_mixed_precision_passes_frozen_batches_through() -> None:
    task = Task()
    report = fit(task, Source(), FitConfig(steps=2, precision="bf16-mixed", accelerator="cpu"))
    assert np.isfinite(report.metrics["loss"])
    assert task.net[0].weight.dtype == torch.float32


def test_auto_precision_asks_the_processor() -> None:
    expected = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    assert has_native_bf16(torch.device("cpu")) == expected
    assert not has_native_bf16(torch.device("meta"))
