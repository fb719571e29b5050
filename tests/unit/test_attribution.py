"""Verdicts on systems that are broken in one known way each, and the evidence beside them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from worldmodel.analysis.attribution import attribution_figure
from worldmodel.control.agents import MPCAgent
from worldmodel.control.costs import PlanningModel
from worldmodel.control.objectives import ActionCost, GoalDistance, Objective
from worldmodel.errors import ConfigError
from worldmodel.evaluation.attribution import (
    COST,
    MODEL,
    OPTIMISER,
    UNREACHABLE,
    Counterfactuals,
    Explanation,
    Subject,
    explain,
)
from worldmodel.evaluation.manifest import Manifest, build_manifest
from worldmodel.evaluation.runs import Schedule, run_manifest
from worldmodel.planners import CEM, Gradient, Planner
from worldmodel.testing import PointMassEnv, PointMassModel
from worldmodel.types import Context, Latent

GOOD = CEM(num_samples=40, num_elites=8, num_iterations=3, horizon=3)
REPLAYS = Counterfactuals(factor=10, latent_oracle=GOOD, latent_replan_every=1, oracle=GOOD)


class Backwards(PointMassModel):
    """Predicts the opposite of what actions do."""

    def rollout(self, context: Context, actions: Tensor) -> Latent:
        """See `PlanningModel.rollout`."""
        return super().rollout(context, -actions)


@dataclass(kw_only=True)
class OnlyAcross(Objective):
    """A cost that does not see how high the dot is."""

    def __call__(self, latent: Latent, goal: Latent, actions: Tensor) -> Tensor:
        """See `Objective.__call__`."""
        return (latent.visual - goal.visual)[..., 0].square().mean(dim=(-2, -1))


@dataclass(frozen=True, kw_only=True)
class PointAgents:
    """What explaining asks of `ModelAgents`, around the exact model of the point mass."""

    planner: Planner = field(default_factory=lambda: GOOD)
    objective: Objective = field(default_factory=GoalDistance)
    model: type[PointMassModel] = PointMassModel
    time_budget_s: float | None = None
    image_size: int = 64
    checkpoint_hash: str = "point"
    needs_pixels: bool = True

    def world_model(self) -> PlanningModel:
        """Its model."""
        return self.model()

    def identity(self) -> dict[str, Any]:
        """Its settings."""
        return {
            "planner": asdict(self.planner),
            "objective": type(self.objective).__name__,
            "budget": self.time_budget_s,
        }

    def build(self) -> MPCAgent:
        """Its agent."""
        return MPCAgent(self.model(), self.planner, self.objective)


@pytest.fixture(name="manifest", scope="module")
def _manifest() -> Manifest:
    return build_manifest(PointMassEnv(render=False), episodes=8, seed=2)


def failures_of(manifest: Manifest, factory: Any) -> Subject:
    """A run and its failures."""
    runs = run_manifest(manifest, factory, Schedule(episodes=len(manifest)), progress=False)
    failed = tuple(run.result.episode for run in runs if not run.result.held)
    return Subject(manifest=manifest, factory=factory, seed=0, failures=failed, num_episodes=len(manifest))


BROKEN = {
    OPTIMISER: PointAgents(planner=CEM(num_samples=1, num_elites=1, num_iterations=1, horizon=1, init_std=0.1)),
    MODEL: PointAgents(model=Backwards),
    COST: PointAgents(objective=OnlyAcross()),
}


@pytest.mark.parametrize("verdict", BROKEN)
def test_a_system_broken_in_one_way_gets_that_verdict(manifest: Manifest, verdict: str) -> None:
    assert failures_of(manifest, PointAgents()).failures == (), "the intact system solves every task"
    subject = failures_of(manifest, BROKEN[verdict])
    assert len(subject.failures) >= 5
    found = explain(subject, REPLAYS, progress=False)
    assert [entry.episode for entry in found.verdicts] == list(subject.failures)
    assert found.counts()[verdict] >= 0.8 * len(subject.failures), found.counts()


def test_what_nobody_reaches_is_unreachable(manifest: Manifest) -> None:
    beyond = np.array([1.1, 0.5])  # in the picture, outside the walls
    task = replace(manifest.tasks[0], goal=np.append(beyond, 0.0), goal_state=beyond)
    outside = replace(manifest, tasks=(task, *manifest.tasks[1:]))
    subject = failures_of(outside, PointAgents())
    assert subject.failures == (0,)
    found = explain(subject, REPLAYS, progress=False)
    assert found.counts()[UNREACHABLE] == 1
    assert found.num_again == 0


def test_evidence_tells_a_wrong_model_from_a_wrong_cost(manifest: Manifest) -> None:
    wrong_model, wrong_cost = (
        explain(failures_of(manifest, BROKEN[name]), REPLAYS, progress=False) for name in (MODEL, COST)
    )
    for entry in wrong_model.verdicts:
        assert min(entry.evidence.open_loop) > 1.5, "worse than standing still"
    for entry in wrong_cost.verdicts:
        assert max(entry.evidence.open_loop) < 0.1, "the model is exact but for the pixels"
        assert entry.evidence.cost_reached < 0.1 * max(entry.evidence.cost_at_start, 0.01), "the cost was satisfied"
        assert entry.evidence.final_distance_m > 0.03, "the task was not"
    ranks = [entry.evidence.rank_correlation for entry in wrong_model.verdicts]
    assert np.mean([rank for rank in ranks if rank is not None]) > 0.9, "its cost is right"


def test_the_same_episode_is_measured_and_cost_at_the_goal_is_lowest(manifest: Manifest) -> None:
    subject = failures_of(manifest, BROKEN[OPTIMISER])
    runs = run_manifest(manifest, BROKEN[OPTIMISER], Schedule(episodes=len(manifest)), progress=False)
    for entry in explain(subject, REPLAYS, progress=False).verdicts:
        assert entry.evidence.final_distance_m == runs[entry.episode].result.final_distance_m
        assert entry.evidence.cost_at_goal < entry.evidence.cost_reached


def test_a_cost_that_never_changes_has_no_rank(manifest: Manifest) -> None:
    subject = failures_of(manifest, PointAgents(objective=ActionCost()))
    found = explain(subject.sampled(2, 0), REPLAYS, progress=False)
    assert [entry.evidence.rank_correlation for entry in found.verdicts] == [None, None]


def test_replays_continue_and_a_sample_is_the_same_every_time(manifest: Manifest, tmp_path: Path) -> None:
    subject = failures_of(manifest, BROKEN[MODEL])
    options: dict[str, Any] = {"max_failures": 3, "sample_seed": 5, "run_dir": tmp_path, "progress": False}
    notes: list[str] = []
    first = explain(subject, REPLAYS, note=notes.append, **options)
    logs = {path: path.read_bytes() for path in tmp_path.rglob("episodes.jsonl")}
    assert len(logs) == 3, "two kinds of replay and the run itself; no failure was left for the true cost"
    assert explain(subject, REPLAYS, **options) == first
    assert {path: path.read_bytes() for path in tmp_path.rglob("episodes.jsonl")} == logs
    assert len(first.verdicts) == 3
    assert first.num_failures == len(subject.failures)
    record = first.to_json()
    assert record["sample_seed"] == 5
    assert record["verdicts"][MODEL]["count"] == 3
    assert record["verdicts"][MODEL]["interval"][0] == pytest.approx(0.4385, abs=1e-3)
    assert "3 failures" in notes[0]


def test_the_larger_search_is_never_smaller_than_the_default() -> None:
    default = CEM(action_repeat=2)
    tiny = PointAgents(planner=CEM(num_samples=4, num_elites=2, num_iterations=1))
    assert REPLAYS.larger_search(tiny) == default  # type: ignore[arg-type]
    wide = REPLAYS.larger_search(PointAgents(planner=default))  # type: ignore[arg-type]
    assert (wide.num_calls, wide.num_elites) == (10 * default.num_calls, 10 * default.num_elites)  # type: ignore[attr-defined]
    descents = REPLAYS.larger_search(PointAgents(planner=Gradient(num_restarts=20, num_iterations=30)))  # type: ignore[arg-type]
    assert descents == Gradient(num_restarts=200, num_iterations=30)
    with pytest.raises(ConfigError, match="max_failures"):
        Subject(manifest=None, factory=None, seed=0, failures=(1,), num_episodes=1).sampled(0, 0)  # type: ignore[arg-type]


def test_the_figure_shows_every_verdict(manifest: Manifest) -> None:
    found: Explanation = explain(failures_of(manifest, BROKEN[COST]), REPLAYS, progress=False)
    figure = attribution_figure(found)
    bars = [patch.get_width() for patch in figure.axes[0].patches]
    assert bars == list(found.counts().values())
    assert len(figure.axes[1].lines) == len(found.verdicts) + 1
