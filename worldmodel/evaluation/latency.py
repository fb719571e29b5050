"""How long a plan takes, where the time goes, and how that compares with doing it in another way, all in one run.

The same network, candidates, iterations, horizon, dtype and threads everywhere; the competitors take turns, so that a
machine that speeds up or slows down does so for all of them. Ratios are the medians of the rounds' ratios.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from rich.table import Table
from torch import Tensor

from worldmodel.control.costs import LatentCost
from worldmodel.control.objectives import GoalDistance, Objective, default_objective
from worldmodel.errors import ConfigError
from worldmodel.evaluation.peers import PeerProblem, PytorchMPPI, StableWorldModelCEM, is_installed
from worldmodel.evaluation.products import Products, Shape, matmul_flops, synchronize
from worldmodel.evaluation.scenes import Recomputing, Scene, build_scene
from worldmodel.evaluation.stats import quantile
from worldmodel.models.runtime import PRECISIONS, RuntimeConfig
from worldmodel.models.world_model import WorldModel
from worldmodel.planners import CEM, MPPI, CostFn, Plan, Planner
from worldmodel.planners.base import counts_steps

SQUARES = (1024, 2048)
"""Sides of the square products among the shapes that the best rate is taken from."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What is planned.

    Attributes:
        num_samples: Candidates per iteration.
        num_elites: Elites.
        num_iterations: Iterations.
        horizon: Model steps.
        rounds: Times that every competitor takes its turn.
    """

    num_samples: int
    num_elites: int
    num_iterations: int
    horizon: int
    rounds: int


MODELS = {
    "shipped": Sizes(num_samples=300, num_elites=30, num_iterations=6, horizon=5, rounds=20),
    "patch": Sizes(num_samples=64, num_elites=8, num_iterations=2, horizon=8, rounds=5),
    "wide": Sizes(num_samples=8, num_elites=2, num_iterations=1, horizon=8, rounds=1),
}
"""Sizes unless told otherwise."""


@dataclass(kw_only=True)
class LatencyConfig:
    """What to measure.

    Attributes:
        model: "shipped" (the checkpoint in the package), "patch" (the default patch predictor, 64 tokens a frame) or
            "wide" (256 tokens a frame, width 1024, 6 blocks); the latter two have random weights.
        num_samples: Candidates per iteration; None takes the model's (300, 64, 8).
        num_iterations: Iterations per plan; None takes the model's (6, 2, 1).
        horizon: Model steps; None takes the model's (5, 8, 8).
        rounds: Times that every competitor takes its turn; None takes the model's (20, 5, 1). Several are preceded by
            one more to warm up.
        threads: CPU threads; None leaves torch's own number.
        seed: Of weights, frames and candidates.
        runtime: Device, precision and compilation of the model, the same for every competitor.
    """

    model: str = "shipped"
    num_samples: int | None = None
    num_iterations: int | None = None
    horizon: int | None = None
    rounds: int | None = None
    threads: int | None = None
    seed: int = 0
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def __post_init__(self) -> None:
        if self.model not in MODELS:
            raise ConfigError(f"model must be one of {', '.join(MODELS)}, got {self.model!r}")
        for name in ("num_samples", "num_iterations", "horizon", "rounds", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be >= 1, got {value}")
        if self.num_samples is not None and self.num_samples < 2:
            raise ConfigError(
                f"num_samples must be >= 2 (the spread of the peers' elites needs two), got {self.num_samples}"
            )

    def sizes(self) -> Sizes:
        """The model's sizes with what was given instead."""
        base = MODELS[self.model]
        num_samples = self.num_samples or base.num_samples
        return Sizes(
            num_samples=num_samples,
            num_elites=max(2, min(base.num_elites, num_samples)),
            num_iterations=self.num_iterations or base.num_iterations,
            horizon=self.horizon or base.horizon,
            rounds=self.rounds or base.rounds,
        )


class TimedCost:
    """A cost function that knows how long it took.

    Args:
        cost_fn: The cost function.
        device: Where it computes.
    """

    def __init__(self, cost_fn: CostFn, device: torch.device) -> None:
        self._cost_fn = cost_fn
        self.counts_steps = counts_steps(cost_fn)
        self._device = device
        self.seconds = 0.0
        self.calls = 0

    def __call__(self, actions: Tensor) -> Tensor:
        """Cost of actions (B, S, H, A)."""
        started = time.perf_counter()
        cost = self._cost_fn(actions)
        synchronize(self._device)
        self.seconds += time.perf_counter() - started
        self.calls += actions.shape[0] * actions.shape[1]
        return cost


def cached_error(scene: Scene, sizes: Sizes, seed: int = 0) -> float:
    """Largest difference between the cached rollout and one banded forward pass over context and rollout.

    Relative to the standard deviation of the rollout. Two candidates are enough.
    """
    model = scene.model
    context = scene.context()
    low, high = model.spec.flat_bounds(model.device)
    generator = torch.Generator().manual_seed(seed)
    actions = low + (high - low) * torch.rand(1, 2, sizes.horizon, len(low), generator=generator).to(low)
    with torch.no_grad():
        imagined = model.rollout(context, actions).visual[0]
        seen = context.latent.visual.expand(2, -1, -1, -1)
        taken = torch.cat([context.actions.expand(2, -1, -1), actions[0]], dim=1)
        frames = torch.cat([seen, imagined], dim=1)
        whole = model.predictor(frames[:, :-1], model.action_normalizer(taken))[:, seen.shape[1] - 1 :]
        return float((whole - imagined).abs().max() / imagined.std())


def measure(config: LatencyConfig, *, tell: Callable[[int, int], None] | None = None) -> dict[str, Any]:
    """Run the competition.

    Args:
        config: What to measure.
        tell: Called with rounds done and rounds in total.

    Returns:
        The record of `worldmodel bench plan --json` without the hardware.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(config.threads or before)
    try:
        return _measure(config, tell or (lambda done, total: None))
    finally:
        torch.set_num_threads(before)


def _measure(config: LatencyConfig, tell: Callable[[int, int], None]) -> dict[str, Any]:
    sizes = config.sizes()
    scene = build_scene(config.model, config.seed, config.runtime)
    bench = _Bench(scene, sizes, config.seed)
    products = Products(bench.shapes(), PRECISIONS[config.runtime.precision], scene.model.device)
    flops = bench.count_flops()
    tell(0, sizes.rounds)
    if sizes.rounds > 1:
        bench.warm_up()
    for done in range(sizes.rounds):
        products.round()
        bench.round()
        tell(done + 1, sizes.rounds)
    products.round()
    best = max(products.best.values())
    return {
        "model": config.model,
        "replan_s": {"p50": quantile(bench.seconds["replan"], 0.5), "p95": quantile(bench.seconds["replan"], 0.95)},
        "ratio_recompute": bench.ratio("recompute", "replan"),
        "ratio_swm": bench.ratio("swm", "plain"),
        "ratio_pytorch_mppi": bench.ratio("pytorch_mppi", "mppi"),
        "gemm_share": statistics.median(flops / seconds for seconds in bench.cost_s) / best,
        "overhead_share": statistics.median(bench.overheads),
        "cached_error": cached_error(scene, sizes, config.seed),
        "flops": flops,
        "model_calls": sizes.num_samples * sizes.num_iterations,
        "replan_all_s": [round(seconds, 5) for seconds in bench.seconds["replan"]],
        "seconds_p50": {name: quantile(values, 0.5) for name, values in bench.seconds.items() if values},
        "best_gemm_gflops": round(best / 1e9, 1),
        "gemm_gflops": products.to_json(),
        "sizes": asdict(sizes),
        "window": scene.model.window,
        "dtype": config.runtime.precision,
        "compiled": config.runtime.compiled,
        "device": scene.model.device.type,
        "threads": torch.get_num_threads(),
    }


class _Bench:
    """The competitors around one scene, and their times."""

    def __init__(self, scene: Scene, sizes: Sizes, seed: int) -> None:
        self._scene, self._sizes, self._seed = scene, sizes, seed
        self._model = scene.model
        self._low, self._high = self._model.spec.flat_bounds(self._model.device)
        self._objective: Objective = default_objective(self._model).bind(self._model)
        self._plain: Objective = GoalDistance()
        shared: dict[str, Any] = {
            "num_samples": sizes.num_samples,
            "num_elites": sizes.num_elites,
            "horizon": sizes.horizon,
        }
        repeat = self._model.spec.action_block
        self._cem = CEM(**shared, num_iterations=sizes.num_iterations, action_repeat=repeat)
        self._free_cem = CEM(**shared, num_iterations=sizes.num_iterations)
        self._mppi = MPPI(**shared, num_iterations=1, temperature_unit="cost", temperature=1.0)
        self._slow = self._model.with_predictor(Recomputing(self._model.predictor))
        self._warm: Plan | None = None
        self._draws = 0
        self.seconds: dict[str, list[float]] = {}
        self.cost_s: list[float] = []
        self.overheads: list[float] = []
        self._turns: dict[str, Callable[[], object]] = {
            "replan": self._replan,
            "recompute": lambda: self._plan(self._cem, self._slow, self._objective),
        }
        context = scene.context()
        problem = PeerProblem(
            predictor=self._model.predictor,
            normalize=self._model.action_normalizer,
            context_z=context.latent.visual,
            context_actions=context.actions,
            goal=scene.goal.visual,
            low=self._low,
            high=self._high,
            num_samples=sizes.num_samples,
            horizon=sizes.horizon,
        )
        if is_installed("stable_worldmodel"):
            elites, iterations = sizes.num_elites, sizes.num_iterations
            self._turns["plain"] = lambda: self._plan(self._free_cem, self._model, self._plain)
            self._turns["swm"] = StableWorldModelCEM(problem, num_elites=elites, num_iterations=iterations, seed=seed)
        if is_installed("pytorch_mppi"):
            self._turns["mppi"] = lambda: self._plan(self._mppi, self._model, self._plain)
            self._turns["pytorch_mppi"] = PytorchMPPI(problem, temperature=1.0, seed=seed)

    def shapes(self) -> list[Shape]:
        """Products of one rollout step of the predictor on all candidates, and squares."""
        found = {(side, side, side) for side in SQUARES}
        rows = min(self._sizes.num_samples, self._model.candidate_block) * self._model.predictor.num_tokens
        for module in self._model.predictor.modules():
            if isinstance(module, torch.nn.Linear):
                found.add((rows, module.in_features, module.out_features))
        return sorted(found)

    def count_flops(self) -> int:
        """Matrix work of the costs of one replan."""
        cost = self._cost(self._model, self._objective)
        zeros = torch.zeros(1, self._sizes.num_samples, self._sizes.horizon, len(self._low), device=self._low.device)
        return self._sizes.num_iterations * matmul_flops(lambda: cost(zeros))

    def warm_up(self) -> None:
        """Every competitor once, not counted; the plan found is what later plans start from."""
        self.round()
        self._warm = self._replan().shifted(1)
        for measured in (self.seconds, self.cost_s, self.overheads):
            measured.clear()

    def round(self) -> None:
        """Every competitor once, timed."""
        for name, turn in self._turns.items():
            synchronize(self._model.device)
            started = time.perf_counter()
            turn()
            synchronize(self._model.device)
            self.seconds.setdefault(name, []).append(time.perf_counter() - started)

    def ratio(self, slow: str, fast: str) -> float | None:
        """How many times longer one takes than the other; None when it did not take part."""
        if slow not in self.seconds:
            return None
        pairs = zip(self.seconds[slow], self.seconds[fast], strict=True)
        return statistics.median(first / second for first, second in pairs)

    def _replan(self) -> Plan:
        timed = TimedCost(self._cost(self._model, self._objective), self._model.device)
        plan = self._search(self._cem, timed)
        self.cost_s.append(timed.seconds)
        self.overheads.append(1 - timed.seconds / plan.seconds)
        return plan

    def _plan(self, planner: Planner, model: WorldModel, objective: Objective) -> Plan:
        return self._search(planner, self._cost(model, objective))

    def _cost(self, model: WorldModel, objective: Objective) -> LatentCost:
        """Includes encoding the newest frame, as every replan does."""
        return LatentCost(model, objective, self._scene.context(), self._scene.goal)

    def _search(self, planner: Planner, cost_fn: CostFn) -> Plan:
        self._draws += 1
        stream = torch.Generator().manual_seed(
            int(np.random.SeedSequence([self._seed, self._draws]).generate_state(1)[0])
        )
        return planner.plan(cost_fn, self._low, self._high, rng=[stream], warm_start=self._warm)


def table_of(record: dict[str, Any]) -> Table:
    """The record for a terminal."""
    sizes, replan = record["sizes"], record["replan_s"]
    title = (
        f"{record['model']}: {sizes['num_samples']} candidates x {sizes['num_iterations']} iterations, "
        f"{sizes['horizon']} steps, window {record['window']}"
    )
    how = f"{record['dtype']}{', compiled' if record['compiled'] else ''}, {record['device']}"
    table = Table(title=title, caption=f"{sizes['rounds']} rounds, {how}, {record['threads']} threads")
    table.add_column("what")
    table.add_column("value", justify="right")
    rows: Sequence[tuple[str, str]] = (
        ("replan, p50 / p95", f"{1000 * replan['p50']:.1f} / {1000 * replan['p95']:.1f} ms"),
        ("candidates scored", f"{record['model_calls']}"),
        ("matrix work", f"{record['flops'] / 1e9:.2f} GFLOP"),
        ("share of the best product", f"{100 * record['gemm_share']:.0f} % of {record['best_gemm_gflops']} GFLOP/s"),
        ("planner outside the model", f"{100 * record['overhead_share']:.1f} %"),
        ("recomputing the window", _times(record["ratio_recompute"])),
        ("stable-worldmodel's CEM", _times(record["ratio_swm"])),
        ("pytorch-mppi", _times(record["ratio_pytorch_mppi"])),
        ("cached against one banded pass", f"{record['cached_error']:.1e}"),
    )
    for name, value in rows:
        table.add_row(name, value)
    return table


def _times(ratio: float | None) -> str:
    return "not installed" if ratio is None else f"{ratio:.2f} times as long"
