"""Does `explain` find what is broken? Three systems, each broken in one known way, on tasks the intact one solves.

    python tests/benchmarks/bench_explain.py outputs/bench_explain 24 2

(run folder, validation tasks, workers). Prints a table and writes bench_explain.json; an interrupted run continues.

The systems: a predictor that gets shuffled actions (expected verdict: model error), a cost that sees the gripper and
not the block (cost error), a search with 4 candidates (optimiser gap). Only failures on tasks that the intact system
solves count: what the intact system fails at may have other causes.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from worldmodel.control.objectives import Objective, step_weights
from worldmodel.envs import make_env
from worldmodel.envs.scripted import play
from worldmodel.evaluation.attribution import COST, MODEL, OPTIMISER, Counterfactuals, Subject, explain
from worldmodel.evaluation.baselines import ManifestConfig
from worldmodel.evaluation.evaluate import EvaluateConfig, ModelAgents, model_agents
from worldmodel.evaluation.manifest import Manifest, build_manifest
from worldmodel.evaluation.model_baselines import ModelBaselinesConfig
from worldmodel.evaluation.runlog import RunLog
from worldmodel.evaluation.runs import Schedule, identity_of, run_manifest
from worldmodel.evaluation.stats import wilson_interval
from worldmodel.hardware import hardware_facts
from worldmodel.models.world_model import WorldModel
from worldmodel.planners.cem import CEM
from worldmodel.types import Context, Latent

ENV = "worldmodel/Push-v0"
_PLAY_EPISODES, _RIDGE = 60, 1e-2
_CONSOLE = Console(width=150)


class Shuffled:
    """A world model whose predictor is told that the hand moves along other axes than it does."""

    def __init__(self, model: WorldModel) -> None:
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def rollout(self, context: Context, actions: Tensor) -> Latent:
        """See `PlanningModel.rollout`; dx, dy, dz and gripper change places."""
        by_step = actions.unflatten(-1, (self._model.spec.action_block, -1)).roll(1, dims=-1)
        return self._model.rollout(context, by_step.flatten(-2))


@dataclass(frozen=True, kw_only=True)
class ShuffledAgents(ModelAgents):
    """`ModelAgents` with that model."""

    def world_model(self) -> Any:
        """The shuffled model."""
        return Shuffled(super().world_model())


@dataclass(kw_only=True)
class GripperDistance(Objective):
    """Distance of the gripper alone, read from the latent by a linear probe.

    Attributes:
        weight: (D, 3) of the probe.
    """

    weight: tuple[tuple[float, ...], ...]

    def __call__(self, latent: Latent, goal: Latent, actions: Tensor) -> Tensor:
        """See `Objective.__call__`."""
        probe = torch.tensor(self.weight, dtype=torch.float32)
        apart = ((latent.visual - goal.visual).float().flatten(-2) @ probe).norm(dim=-1)
        return (apart * step_weights(apart.shape[-1], 1.0, 0.3)).sum(dim=-1)


def gripper_probe(model: WorldModel) -> tuple[tuple[float, ...], ...]:
    """Weights of a ridge probe from the latent to the gripper's place (metres), from scripted play."""
    env = make_env(ENV, image_size=model.spec.image_size)
    latents, places = [], []
    for episode in range(_PLAY_EPISODES):
        rng = np.random.default_rng([11, episode])
        policy = play(ENV, rng)
        obs, _ = env.reset(seed=episode)
        for _ in range(30):
            obs = env.step(policy.act(env))[0]
            latents.append(model.encode(torch.from_numpy(obs["pixels"])[None, None]).visual.flatten().double())
            places.append(obs["proprio"][:3].astype(np.float64))
    env.close()
    x, y = torch.stack(latents), torch.from_numpy(np.stack(places))
    x, y = x - x.mean(0), y - y.mean(0)
    gram = x.T @ x + _RIDGE * len(x) * torch.eye(x.shape[1], dtype=x.dtype)
    weight = torch.linalg.solve(gram, x.T @ y)
    _CONSOLE.print(f"gripper probe: R2 {float(1 - (y - x @ weight).square().sum() / y.square().sum()):.3f}")
    return tuple(tuple(float(value) for value in row) for row in weight)


def outcomes(manifest: Manifest, factory: ModelAgents, folder: Path, workers: int) -> list[bool]:
    """Whether each task is held at the end."""
    schedule = Schedule(episodes=len(manifest), workers=workers)
    log = RunLog(folder, identity_of(manifest, factory, schedule))
    return [run.result.held for run in run_manifest(manifest, factory, schedule, log=log, label=folder.name)]


def main(folder: Path, tasks: int, workers: int) -> None:
    """Run the four systems, explain the failures of three."""
    env = make_env(ENV, render=False)
    manifest = build_manifest(env, episodes=tasks, split="validation")
    env.close()
    fast = CEM(num_samples=100, num_elites=10, num_iterations=4, action_repeat=3)
    intact = model_agents(EvaluateConfig(env=ENV, planner=fast), ENV)
    settings = {name: getattr(intact, name) for name in ModelAgents.__dataclass_fields__}
    blind = GripperDistance(weight=gripper_probe(intact.world_model()))
    systems: dict[str, tuple[str, ModelAgents]] = {
        "shuffled actions": (MODEL, ShuffledAgents(**settings)),
        "cost without the block": (
            COST,
            replace(intact, objective=blind),
        ),
        "4 candidates": (OPTIMISER, replace(intact, planner=replace(fast, num_samples=4, num_elites=2))),
    }
    solved = outcomes(manifest, intact, folder / "intact", workers)
    replays = Counterfactuals(
        factor=10,
        latent_oracle=ModelBaselinesConfig(names=("oracle_latent",)).oracle,
        latent_replan_every=2,
        oracle=ManifestConfig().oracle,
    )
    table = Table(title=f"Push, {tasks} validation tasks, the intact system solves {sum(solved)}")
    for heading in ("system", "solves", "failures it should not have", "expected verdict", "given", "95 % interval"):
        table.add_column(heading)
    rows = []
    for name, (expected, factory) in systems.items():
        place = folder / name.replace(" ", "_")
        held = outcomes(manifest, factory, place, workers)
        failures = tuple(i for i in range(tasks) if solved[i] and not held[i])
        subject = Subject(manifest=manifest, factory=factory, seed=0, failures=failures, num_episodes=tasks)
        found = explain(
            subject, replays, max_failures=tasks, workers=workers, run_dir=place / "explain", note=_CONSOLE.print
        )
        right = found.counts()[expected]
        interval = wilson_interval(right, len(failures))
        rows.append({"system": name, "solves": sum(held), "expected": expected, "right": right, "interval": interval})
        rows[-1] |= found.to_json()
        shown = f"{right} of {len(failures)} ({100 * right / len(failures):.0f} %)"
        span = f"{100 * interval[0]:.0f}-{100 * interval[1]:.0f} %"
        table.add_row(name, str(sum(held)), str(len(failures)), expected, shown, span)
    _CONSOLE.print(table)
    record = {"tasks": tasks, "intact_solves": sum(solved), "systems": rows, "hardware": hardware_facts()}
    (folder / "bench_explain.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
