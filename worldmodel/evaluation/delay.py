"""How long a replan takes on this machine, in control steps: what `evaluate delay=measured` works with."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from worldmodel.control.threads import torch_threads
from worldmodel.envs import make_env
from worldmodel.evaluation.episodes import agent_seed
from worldmodel.evaluation.manifest import Manifest
from worldmodel.evaluation.stats import quantile
from worldmodel.types import Goal

if TYPE_CHECKING:
    from worldmodel.evaluation.evaluate import ModelAgents

_TIMED_REPLANS = 10
_DELAY_FILE = "delay.json"


def measured_delay(factory: ModelAgents, manifest: Manifest) -> int:
    """Control steps that a replan takes on this machine: 95th percentile of ten on the first task, rounded up."""
    task, seed = manifest.tasks[0], agent_seed(manifest.seeds[0], 0)
    env = make_env(manifest.env_id, image_size=factory.image_size)
    try:
        with torch_threads(1):
            agent = replace(factory, delay=0).build()
            obs, _ = env.reset(seed=seed, options={"task": task})
            agent.reset([Goal(pixels=env.render_goal(task))], seeds=[seed])
            cold = agent.world_model.window  # the first plans start from ever longer contexts, each new to the machine
            while len(agent.replan_s) < cold + _TIMED_REPLANS:
                obs = env.step(agent.act({key: value[None] for key, value in obs.items()})[0])[0]
        seconds = quantile(agent.replan_s[cold:], 0.95)
        assert seconds is not None
        return math.ceil(seconds * float(env.metadata["render_fps"]))
    finally:
        env.close()


def kept_delay(factory: ModelAgents, manifest: Manifest, run_dir: str | None) -> int:
    """The measured delay; a run folder keeps its first measurement, so that the run can be continued."""
    if run_dir is None:
        return measured_delay(factory, manifest)
    path = Path(run_dir) / _DELAY_FILE
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"delay": measured_delay(factory, manifest)}) + "\n", encoding="utf-8")
    return int(json.loads(path.read_text(encoding="utf-8"))["delay"])
