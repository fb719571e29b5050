"""A watched episode for the Rerun viewer: camera, goal, plan and cost on one time line (`worldmodel plan`).

Rerun (rerun-sdk, about 500 MB on disk) is optional; only this module knows it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from worldmodel.analysis.episode import PlannedStep, WatchedEpisode
from worldmodel.analysis.figures import cumulative_xy
from worldmodel.errors import ConfigError, DataError

TIMELINE, CLOCK = "step", "time"
_CHOSEN, _ELITE = (213, 94, 0), (150, 150, 150)


def save_rerun(path: str | Path, episode: WatchedEpisode) -> Path:
    """Write a recording that `rerun FILE.rrd` opens; nothing is sent anywhere.

    Entities, on the time lines `step` (environment steps) and `time` (seconds): `camera`, `goal`, `plan/chosen` and
    `plan/elites` (commanded displacement from above, cm), `cost/frame` (latent cost of the camera frame), `cost/plan`
    (cost of the chosen plan), `cost/imagined` (latent cost that the model expects at its end), `replan/seconds`,
    `success`, and `summary`.

    Args:
        path: Target, ending in .rrd; parents are created. An interrupted run leaves no half file under this name.
        episode: What to show.

    Returns:
        `path`.

    Raises:
        ConfigError: The package rerun-sdk is not installed.
        DataError: `path` does not end in .rrd.
    """
    target = Path(path)
    if target.suffix != ".rrd":
        raise DataError(f"a Rerun recording's name must end in .rrd, got {target}")
    rr = _rerun()
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.stem + ".partial.rrd")
    recording = rr.RecordingStream("worldmodel", recording_id=f"{episode.env_id}-{episode.seed}")
    recording.save(partial)
    recording.log("goal", rr.Image(episode.goal), static=True)
    facts = "".join(f"- {name}: {value}\n" for name, value in episode.summary().items())
    recording.log("summary", rr.TextDocument(facts, media_type="text/markdown"), static=True)
    plans = {plan.step: plan for plan in episode.plans}
    for step, frame in enumerate(episode.frames):
        recording.set_time(TIMELINE, sequence=step)
        recording.set_time(CLOCK, duration=step * episode.dt_s)
        recording.log("camera", rr.Image(frame))
        if np.isfinite(episode.costs[step]):
            recording.log("cost/frame", rr.Scalars(float(episode.costs[step])))
        recording.log("success", rr.Scalars(float(episode.success[step])))
        if step in plans:
            _log_plan(rr, recording, episode, plans[step])
    recording.flush()
    recording.disconnect()
    os.replace(partial, target)
    return target


def _log_plan(rr: Any, recording: Any, episode: WatchedEpisode, plan: PlannedStep) -> None:
    """Everything about one replan, at the time that is set."""
    for name, actions, colour in (("chosen", plan.actions[None], _CHOSEN), ("elites", plan.elites, _ELITE)):
        paths = 100 * cumulative_xy(actions, episode.env_action_dim, episode.step_m)
        recording.log(f"plan/{name}", rr.LineStrips2D(list(paths), colors=[colour] * len(paths)))
    recording.log("cost/plan", rr.Scalars(float(plan.best_cost[-1])))
    recording.log("cost/imagined", rr.Scalars(float(plan.imagined_cost[-1])))
    recording.log("replan/seconds", rr.Scalars(plan.seconds))


def _rerun() -> Any:
    try:
        import rerun
    except ImportError as error:
        raise ConfigError(f"Rerun recordings need a package ({error}): pip install rerun-sdk") from error
    return rerun
