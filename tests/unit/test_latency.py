"""The latency report: what it counts, what it compares with, and that it leaves no trace."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from worldmodel.errors import ConfigError
from worldmodel.evaluation.latency import (
    MODELS,
    LatencyConfig,
    Sizes,
    TimedCost,
    cached_error,
    measure,
    table_of,
)
from worldmodel.evaluation.peers import PeerProblem, PytorchMPPI, StableWorldModelCEM
from worldmodel.evaluation.scenes import Recomputing, Scene, build_scene
from worldmodel.models.action_transformer import TransformerPredictorConfig, build_predictor
from worldmodel.planners import CEM

TINY = Sizes(num_samples=4, num_elites=2, num_iterations=1, horizon=3, rounds=1)


@pytest.fixture(scope="module")
def patch() -> Scene:
    return build_scene("patch")


def test_the_report_has_the_keys_of_the_contract_and_restores_the_threads() -> None:
    before, state = torch.get_num_threads(), torch.get_rng_state()
    told: list[tuple[int, int]] = []
    record = measure(
        LatencyConfig(model="patch", num_samples=4, num_iterations=1, horizon=2, rounds=2, threads=1),
        tell=lambda done, total: told.append((done, total)),
    )
    assert torch.get_num_threads() == before
    assert torch.equal(torch.get_rng_state(), state)
    assert told == [(0, 2), (1, 2), (2, 2)]
    contract = {"model", "replan_s", "ratio_recompute", "ratio_swm", "ratio_pytorch_mppi", "gemm_share"}
    assert contract | {"overhead_share"} <= record.keys()
    assert 0 < record["replan_s"]["p50"] <= record["replan_s"]["p95"]
    assert 0 < record["gemm_share"] < 1
    assert 0 <= record["overhead_share"] < 1
    assert record["model_calls"] == 4
    assert record["threads"] == 1
    assert record["cached_error"] < 1e-4
    assert "patch" in str(table_of(record).title)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "huge"}, "model must be one of shipped, patch, wide, got 'huge'"),
        ({"rounds": 0}, "rounds must be >= 1"),
        ({"num_samples": 1}, "num_samples must be >= 2"),
    ],
)
def test_bad_settings(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LatencyConfig(**changes)


def test_sizes_are_the_models_unless_given() -> None:
    assert LatencyConfig(model="wide").sizes() == MODELS["wide"]
    own = LatencyConfig(model="shipped", num_samples=5, horizon=2).sizes()
    assert (own.num_samples, own.num_elites, own.horizon, own.rounds) == (5, 5, 2, MODELS["shipped"].rounds)


def test_wide_is_as_wide_as_the_contract_says() -> None:
    config = TransformerPredictorConfig(embed_dim=1024, depth=6, num_heads=16)
    with torch.device("meta"):
        scene_predictor = build_predictor(config, num_tokens=256, latent_dim=768, action_dim=6)
    assert (scene_predictor.num_tokens, scene_predictor.window) == (256, 3)
    assert MODELS["wide"].num_samples == 8
    assert MODELS["wide"].horizon == MODELS["patch"].horizon == 8


@pytest.mark.parametrize("depth", [1, 3])
def test_recomputing_a_cropped_window_is_the_same_only_at_depth_one(depth: int) -> None:
    generator = torch.Generator().manual_seed(0)
    predictor = build_predictor(
        TransformerPredictorConfig(embed_dim=16, depth=depth, num_heads=2), num_tokens=4, latent_dim=6, action_dim=2
    )
    with torch.no_grad():
        predictor.out.weight.normal_(generator=generator)
        seen = torch.randn(1, 3, 4, 6, generator=generator)
        past, actions = torch.randn(1, 2, 2, generator=generator), torch.randn(1, 5, 4, 2, generator=generator)
        cached = predictor.rollout(seen, past, actions)
        slow = Recomputing(predictor).rollout(seen, past, actions)
    assert slow.shape == cached.shape
    # the first step sees the same three frames in both
    torch.testing.assert_close(slow[:, :, 0], cached[:, :, 0], rtol=1e-4, atol=1e-5)
    assert torch.allclose(slow, cached, rtol=1e-3, atol=1e-4) == (depth == 1)


def test_the_cached_rollout_is_checked_against_one_banded_pass(patch: Scene) -> None:
    assert cached_error(patch, TINY) < 1e-4
    wrong = patch.model.with_predictor(Recomputing(patch.model.predictor))
    other = Scene(model=wrong, frame=patch.frame, earlier=patch.earlier, past=patch.past, goal=patch.goal)
    assert cached_error(other, TINY) > 1e-4


def test_time_inside_the_cost_is_told_from_the_planners_own() -> None:
    timed = TimedCost(lambda actions: actions.square().sum(dim=(-2, -1)), torch.device("cpu"))
    bound = torch.ones(2)
    planner = CEM(num_samples=8, num_elites=2, num_iterations=3, horizon=2)
    plan = planner.plan(timed, -bound, bound, rng=[torch.Generator(), torch.Generator().manual_seed(1)])
    assert timed.calls == 2 * 8 * 3
    assert 0 < timed.seconds < plan.seconds


def problem(scene: Scene, horizon: int = 3) -> PeerProblem:
    low, high = scene.model.spec.flat_bounds()
    context = scene.context()
    return PeerProblem(
        predictor=scene.model.predictor,
        normalize=scene.model.action_normalizer,
        context_z=context.latent.visual,
        context_actions=context.actions,
        goal=scene.goal.visual,
        low=low,
        high=high,
        num_samples=6,
        horizon=horizon,
    )


@pytest.mark.parametrize("name", ["patch", "shipped"])
def test_pytorch_mppi_sees_the_rollout_that_we_recompute(name: str) -> None:
    pytest.importorskip("pytorch_mppi")
    scene = build_scene(name)
    task = problem(scene)
    state = torch.get_rng_state()
    peer = PytorchMPPI(task, temperature=1.0, seed=0)
    assert peer().shape == task.low.shape
    assert torch.equal(torch.get_rng_state(), state)
    solver = peer._solver
    taken = solver.perturbed_action
    with torch.no_grad():
        flat = task.normalize(taken)[None]
        past = task.normalize(task.context_actions)
        ours = Recomputing(task.predictor).rollout(task.context_z, past, flat)
        cost = (ours[0] - task.goal[0, 0]).square().mean(dim=(-2, -1)).sum(dim=1)
        # they start from zeros, so that their price of leaving the nominal sequence is zero
        torch.testing.assert_close(solver.cost_total, cost, rtol=1e-4, atol=1e-5)


class FakeSolver:
    """stable-worldmodel's CEM solver as far as the adapter uses it: asks for the cost of two fixed candidates."""

    def __init__(self, model: Any, **options: Any) -> None:
        self.model, self.options = model, options
        assert next(model.parameters()).dtype == torch.float32

    def configure(self, *, action_space: Any, n_envs: int, config: Any) -> None:
        self.shape = (n_envs, self.options["num_samples"], config.horizon, action_space.shape[1] * config.action_block)

    def solve(self, info: dict[str, Tensor]) -> dict[str, Tensor]:
        print("CEM solve time")  # noqa: T201  as theirs does
        expanded = {key: value.unsqueeze(1).expand(-1, self.shape[1], *value.shape[1:]) for key, value in info.items()}
        generator = torch.Generator().manual_seed(0)
        self.candidates = torch.rand(self.shape, generator=generator)
        with torch.inference_mode():
            self.costs = self.model.get_cost(expanded, self.candidates)
        return {"actions": self.candidates[:, 0]}


def test_stable_worldmodel_is_given_the_cost_of_our_objective(
    patch: Scene, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from worldmodel.control.costs import LatentCost
    from worldmodel.control.objectives import GoalDistance

    module = ModuleType("stable_worldmodel.solver")
    module.CEMSolver = FakeSolver  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "stable_worldmodel", ModuleType("stable_worldmodel"))
    monkeypatch.setitem(sys.modules, "stable_worldmodel.solver", module)
    peer = StableWorldModelCEM(problem(patch), num_elites=2, num_iterations=1, seed=0)
    assert peer().shape == (1, 3, 6)
    assert capsys.readouterr().out == ""
    slow = patch.model.with_predictor(Recomputing(patch.model.predictor))
    ours = LatentCost(slow, GoalDistance(), patch.context(), patch.goal)(peer._solver.candidates)
    torch.testing.assert_close(peer._solver.costs, ours, rtol=1e-4, atol=1e-6)


def test_the_installed_stable_worldmodel_plans_with_the_adapter(patch: Scene) -> None:
    pytest.importorskip("stable_worldmodel.solver")
    peer = StableWorldModelCEM(problem(patch), num_elites=2, num_iterations=1, seed=0)
    assert peer().shape == (1, 3, 6)


def test_the_matrix_work_of_a_compact_rollout_is_counted() -> None:
    scene = build_scene("shipped")
    from worldmodel.evaluation.products import matmul_flops

    predictor = scene.model.predictor
    state, action = predictor.state, predictor.action
    width, latent, flat = state.out_features, state.in_features, action.in_features
    blocks = len(predictor.blocks)
    actions = torch.zeros(1, 4, 2, flat)
    per_step = 2 * 4 * (2 * width * width * blocks + width * latent)
    states = 2 * width * latent * (1 + 4)  # the first step starts from one latent for all candidates
    with torch.no_grad():
        found = matmul_flops(lambda: predictor.rollout(scene.context().latent.visual, torch.zeros(1, 0, flat), actions))
        encoding = matmul_flops(scene.context)
    assert found - encoding == 2 * per_step + states + 2 * 8 * flat * width
