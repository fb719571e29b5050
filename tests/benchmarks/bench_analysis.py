"""Do the pictures tell the truth? Two measurements of the shipped model, as JSON.

    python tests/benchmarks/bench_analysis.py outputs/quick/episodes.h5 outputs/bench_analysis 50 300 8192

(episodes the model was trained on, of which the validation split is held out; folder for the record and the figures;
states, rollouts, frames to look up in). About four minutes of one core.

Landscape: on Reach, for a goal one model step away, how far the minimum of the energy landscape lies from the true
displacement, 50 held-out states. Retrieval: after five imagined steps on held-out Push episodes, how far the object in
the closest real frame of other episodes is from where it really was. Bars: 2 cm and one block width, on 80 % each.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from worldmodel.analysis.figures import save_figure
from worldmodel.analysis.frame_bank import FrameBank
from worldmodel.analysis.imagination import (
    draw_clips,
    imagine,
    nearest_figure,
    path_figure,
    retrieval,
    retrieval_figure,
)
from worldmodel.analysis.landscape import landscape_figure
from worldmodel.analysis.one_step import BAR_M, OneStepCheck, check_landscapes, one_step_figure, one_step_problems
from worldmodel.control.objectives import GoalDistance, Objective
from worldmodel.data.episodes import EpisodeDataset
from worldmodel.evaluation.stats import success_interval
from worldmodel.hardware import hardware_facts
from worldmodel.models.checkpoint import load_checkpoint, resolve_checkpoint
from worldmodel.models.world_model import WorldModel

PUSH, REACH = "worldmodel/Push-v0", "worldmodel/Reach-v0"
VALIDATION_FRACTION, SPLIT_SEED = 0.05, 0  # of the shipped training run
HORIZON = 5
_CONSOLE = Console(width=150)


def landscapes(model: WorldModel, folder: Path, states: int) -> list[dict[str, Any]]:
    """Every pair of axes and both costs; figures of the default cost over x and y."""
    problems = list(one_step_problems(states, action_block=model.spec.action_block, moving=True))
    rows = []
    costs: dict[str, Objective | None] = {"the model's default": None, "latent distance": GoalDistance()}
    for name, objective in costs.items():
        for axes in (("x", "y"), ("x", "z"), ("y", "z")):
            checks = check_landscapes(model, problems, axes=axes, objective=objective)
            rows.append(_landscape_row(checks) | {"cost": name, "axes": list(axes)})
            _CONSOLE.print(rows[-1])
            if objective is None and axes == ("x", "y"):
                save_figure(one_step_figure(checks), folder / "one_step.png")
                save_figure(landscape_figure([check.landscape for check in checks[:3]]), folder / "landscapes.png")
    return rows


def _landscape_row(checks: list[OneStepCheck]) -> dict[str, Any]:
    within = [check.error_m <= BAR_M for check in checks]
    reached = [check.reached_error_m <= BAR_M for check in checks]
    return {
        "right": sum(within),
        "states": len(within),
        "interval": list(success_interval(within)),
        "median_error_m": float(np.median([check.error_m for check in checks])),
        "right_when_carried_out": sum(reached),
        "interval_when_carried_out": list(success_interval(reached)),
    }


def retrievals(model: WorldModel, dataset: EpisodeDataset, folder: Path, rollouts: int, frames: int) -> dict[str, Any]:
    """Five imagined steps on held-out Push episodes, looked up in training episodes."""
    train, held_out = dataset.split(VALIDATION_FRACTION, SPLIT_SEED)
    is_push = dataset.index.env_id == PUSH
    bank = FrameBank.build(model, dataset, train[is_push[train]], max_frames=frames)
    held_out = held_out[is_push[held_out]]
    clips = draw_clips(dataset, held_out, rollouts, horizon=HORIZON, action_block=model.spec.action_block)
    imagined = imagine(model, dataset, clips, horizon=HORIZON)
    found = retrieval(imagined, bank)
    most_moved = np.argsort(-found.still_error_m)
    save_figure(nearest_figure(imagined, bank, int(most_moved[len(most_moved) // 20])), folder / "nearest.png")
    save_figure(path_figure(imagined, bank, [int(row) for row in most_moved[:3]]), folder / "path.png")
    save_figure(retrieval_figure(found), folder / "retrieval.png")
    return {"bank_frames": len(bank), "held_out_episodes": len(held_out), **found.to_json()}


def main(data: Path, folder: Path, states: int, rollouts: int, frames: int) -> None:
    """Measure, draw and write `bench_analysis.json`."""
    model = load_checkpoint(resolve_checkpoint("shipped", REACH))
    dataset = EpisodeDataset.open(data)
    record = {
        "data": {"hash": dataset.content_hash, "episodes": len(dataset)},
        "retrieval": retrievals(model, dataset, folder, rollouts, frames),
        "landscape": landscapes(model, folder, states),
        "hardware": hardware_facts(),
    }
    _CONSOLE.print_json(json.dumps(record["retrieval"]))
    (folder / "bench_analysis.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:6]))
