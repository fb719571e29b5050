"""The record of an evaluation: every number against a count by hand, and back from its run folder unchanged."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from worldmodel.control.objectives import GoalDistance
from worldmodel.errors import DataError
from worldmodel.evaluation.episodes import EpisodeResult, EpisodeRun
from worldmodel.evaluation.flops import ModelFlops, measure_flops
from worldmodel.evaluation.manifest import Baseline, Manifest
from worldmodel.evaluation.products import matmul_flops
from worldmodel.evaluation.result import BASELINES, EvalResult, Score, summarise
from worldmodel.evaluation.runlog import RunLog
from worldmodel.evaluation.scenes import build_scene
from worldmodel.evaluation.stats import episodes_needed, mcnemar_p, wilson_interval

FLOPS = ModelFlops(encoding=100, candidate=7, window=1, action_block=3)


def row(episode: int, success: str, distance: float = 0.1) -> EpisodeResult:
    first = success.find("1")
    return EpisodeResult(
        episode=episode,
        held=success[-1] == "1",
        ever="1" in success,
        steps_to_success=None if first < 0 else first,
        start_distance_m=0.2,
        final_distance_m=distance,
        min_distance_m=0.01,
        steps=len(success) - 1,
        replans=2,
        success=success,
    )


ROWS = (row(0, "0001", 0.01), row(1, "0110", 0.2), row(2, "0000", 0.4), row(3, "0011", 0.03))


class Stored(Manifest):
    """A manifest without tasks, for what is stored with one."""

    def __init__(self, baselines: dict[str, Baseline]) -> None:
        checks = {"start_distance_m": [0.2, 0.3, 0.1, 0.25, 0.15, 0.35]}
        for name, value in {"env_id": "worldmodel/Push-v0", "baselines": baselines, "checks": checks}.items():
            object.__setattr__(self, name, value)

    @property
    def hash(self) -> str:
        return "f" * 64


def result(extra: dict[str, Baseline] | None = None, **change: Any) -> EvalResult:
    stored = {"random": Baseline(rows=tuple(row(i, "0000") for i in range(9)), budget={"action": "uniform"})}
    runs = [EpisodeRun(result=entry, replan_s=(0.1, 0.3), model_calls=30) for entry in ROWS]
    runs[0] = replace(runs[0], **change)
    return summarise(Stored(stored), {"checkpoint_hash": "abc", "seed": 0}, runs, extra=extra, flops=FLOPS)


def test_numbers_are_those_counted_by_hand() -> None:
    record = result().to_json()
    assert record["episodes"] == 4
    assert record["success_rate"] == 0.5
    assert record["success_ever"] == 0.75
    assert record["success_curve"] == [0.0, 0.25, 0.5, 0.5]
    assert record["success_curve_interval"] == [list(wilson_interval(count, 4)) for count in (0, 1, 2, 2)]
    assert record["steps_to_success"] == {"median": 2.0, "p25": 1.5, "p75": 2.5, "episodes": 3}
    assert record["final_distance_m"] == {"mean": pytest.approx(0.16), "median": pytest.approx(0.115)}
    assert record["replan_s"] == {"p50": pytest.approx(0.2), "p95": pytest.approx(0.3)}
    assert record["model_calls_per_episode"] == 30
    assert record["flops_per_episode"] == 3 * 100 + 30 * 7, "the goal, a frame per replan, and the candidates"


def test_success_by_difficulty_counts_what_was_run_in_thirds_of_the_whole_manifest() -> None:
    strata = result().to_json()["strata"]
    assert [(part["name"], part["tasks"]) for part in strata] == [("near", [2]), ("middle", [0, 3]), ("far", [1])]
    assert [(part["low_m"], part["high_m"]) for part in strata] == [(0.1, 0.15), (0.2, 0.25), (0.3, 0.35)]
    assert [part["success_rate"] for part in strata] == [0.0, 1.0, 0.0]
    assert strata[1]["success_interval"] == list(wilson_interval(2, 2))


def test_a_row_without_moments_leaves_the_curve_out() -> None:
    score = Score.of([*ROWS[:3], replace(ROWS[3], success=None)])
    assert score.at_step is None
    record = score.to_json()
    assert record["success_curve"] is record["success_curve_interval"] is None
    assert record["success_rate"] == 0.5
    assert Score.of([row(0, "01"), row(1, "001")]).at_step is None, "episodes of different lengths have no common curve"


def test_nobody_succeeds() -> None:
    record = Score.of([row(0, "000")]).to_json()
    assert record["steps_to_success"] == {"median": None, "p25": None, "p75": None, "episodes": 0}


def test_baselines_have_every_key_and_count_their_own_rows() -> None:
    short = Baseline(rows=tuple(row(i, "0011") for i in range(3)), budget={"candidates": 32})
    record = result({"oracle_latent": short}).to_json()
    assert tuple(record["baselines"]) == BASELINES == ("random", "noop", "oracle", "bc", "idm", "oracle_latent")
    assert [name for name, entry in record["baselines"].items() if entry is None] == ["noop", "oracle", "bc", "idm"]
    random, latent = record["baselines"]["random"], record["baselines"]["oracle_latent"]
    assert (random["episodes"], latent["episodes"]) == (4, 3), "of nine stored rows the four that the model has"
    assert latent["success_rate"] == 1.0
    assert latent["success_interval"] == list(wilson_interval(3, 3))
    ours, theirs = [True, False, False], [True, True, True]
    assert latent["difference"]["rate"] == pytest.approx(-2 / 3), "on the first three episodes, which both have"
    assert latent["difference"]["p"] == mcnemar_p(ours, theirs)
    assert latent["difference"]["episodes"] == 3
    assert latent["difference"]["episodes_needed"] == episodes_needed(ours, theirs)
    assert random["difference"]["rate"] == 0.5
    assert record["baseline_budgets"]["oracle_latent"] == {"candidates": 32}


def test_what_belongs_to_a_checkpoint_replaces_what_was_stored() -> None:
    record = result({"random": Baseline(rows=tuple(row(i, "0001") for i in range(4)))}).to_json()
    assert record["baselines"]["random"]["success_rate"] == 1.0


def test_calls_that_were_not_recorded_are_unknown_and_not_zero() -> None:
    unknown = result(model_calls=0)
    assert unknown.model_calls_per_episode is None
    assert unknown.flops_per_episode is None
    policy = result(model_calls=0, result=replace(ROWS[0], replans=0))
    assert policy.model_calls_per_episode == 22.5, "an agent that does not plan asks nothing"


def test_a_result_comes_back_from_its_folder(tmp_path: Path) -> None:
    found = result({"bc": Baseline(rows=ROWS)})
    RunLog(tmp_path, {"seed": 0}).finish(found.to_json(), [])
    assert EvalResult.load(tmp_path) == found
    assert EvalResult.load(tmp_path).to_json() == found.to_json()


def test_results_from_before_still_load(tmp_path: Path) -> None:
    record = json.loads(json.dumps(result().to_json()))
    for key in (
        "success_curve",
        "steps_to_success",
        "final_distance_m",
        "model_calls_per_episode",
        "flops_per_episode",
    ):
        del record[key]
    rates = ("success_rate", "success_interval", "success_ever", "success_ever_interval")
    record["baselines"] = {"random": {key: record["baselines"]["random"][key] for key in rates}, "noop": None}
    old = EvalResult.from_json(record)
    assert old.flops_per_episode is None
    entry = old.baselines["random"]
    assert entry is not None
    assert (entry.score.held, entry.score.episodes, entry.difference) == (0, 4, None)


def test_a_folder_without_a_result_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no result\.json: give the run folder"):
        EvalResult.load(tmp_path)
    log = RunLog(tmp_path, {"seed": 0})
    with pytest.raises(DataError, match=f"not finished: start it again with run_dir={tmp_path}"):
        EvalResult.load(tmp_path)
    for record in ({"env": "x"}, {**result().to_json(), "episodes_table": [{"episode": 0}]}):
        log.finish(record, [])
        with pytest.raises(DataError, match=r"result\.json cannot be read"):
            EvalResult.load(tmp_path)
    (tmp_path / "result.json").write_text('{"env":')
    with pytest.raises(DataError, match=r"result\.json cannot be read"):
        EvalResult.load(tmp_path)


def test_the_arithmetic_of_a_candidate_is_that_of_its_layers() -> None:
    model = build_scene("shipped").model
    predictor, horizon = model.predictor, 3
    width, latent = predictor.state.out_features, predictor.state.in_features
    step = 2 * (2 * width * width * len(predictor.blocks) + width * latent)
    start = 2 * width * latent  # of every step but the first, which all candidates begin from one latent
    found = measure_flops(model, GoalDistance(), horizon)
    flat = predictor.action.in_features
    assert found.candidate == horizon * step + (horizon - 1) * start + horizon * 2 * flat * width
    frames = torch.zeros(1, 1, model.spec.image_size, model.spec.image_size, 3, dtype=torch.uint8)
    with torch.no_grad():
        assert found.encoding == matmul_flops(lambda: model.head(model.encoder.encode_frames(frames))) > 0


def test_a_model_with_memory_encodes_every_model_step() -> None:
    run = EpisodeRun(result=row(0, "0" * 8), replan_s=(), model_calls=5)
    assert FLOPS.of_episode(run) == (1 + 2) * 100 + 35
    assert replace(FLOPS, window=2).of_episode(run) == (1 + 3) * 100 + 35, "seven control steps, three to a model step"
