"""`worldmodel plan`: watch the model plan one episode."""

from __future__ import annotations

from dataclasses import dataclass

from rich.table import Table

from worldmodel.analysis.episode import WatchedEpisode, watch
from worldmodel.analysis.rerun_view import save_rerun
from worldmodel.commands.run import Outcome, Run, RunSettings, busy, check_sinks
from worldmodel.control.objectives import Objective
from worldmodel.errors import ConfigError
from worldmodel.planners import Planner


@dataclass(kw_only=True)
class Settings(RunSettings):
    """What to watch.

    Attributes:
        env: Environment, short name or id.
        checkpoint: Folder of a checkpoint, the name of a shipped one, or "shipped".
        task: Number of the demonstration task, which no training or evaluation uses.
        planner: Search in latent space; None means the library's default.
        objective: What the search minimises; None means the model's default.
        replan_every: Model steps carried out between plans.
        sinks: ("rerun",) also writes a recording for the Rerun viewer.
    """

    env: str = "push"
    checkpoint: str = "shipped"
    task: int = 3
    planner: Planner | None = None
    objective: Objective | None = None
    replan_every: int = 1
    sinks: tuple[str, ...] = ()


def run(settings: Settings, run: Run) -> Outcome:
    """Plan, then write the video and the picture of the plan."""
    if settings.task < 0:
        raise ConfigError(f"task must be >= 0, got {settings.task}")
    check_sinks(settings.sinks, "rerun")
    run.note(
        f"Planning {settings.env} task {settings.task} toward a goal image: the model ({settings.checkpoint}) imagines "
        "what action sequences lead to, the planner keeps the best and looks again after every model step"
    )
    with busy("planning", run.progress):
        episode = watch(
            settings.checkpoint,
            settings.env,
            settings.task,
            planner=settings.planner,
            objective=settings.objective,
            replan_every=settings.replan_every,
        )
    with busy("drawing", run.progress):
        video = episode.save_video(run.folder / "episode.mp4")
        figure = episode.save_plan_figure(run.folder / "plan.png")
    log = episode.log.save(run.folder / "plans.safetensors")
    record = {**episode.summary(), "video": str(video), "figure": str(figure), "plans": str(log)}
    shown = [f"video: {video}", f"plan:  {figure}", f"plans: {log} (worldmodel replay plans={log})"]
    if settings.sinks:
        record["rerun"] = str(save_rerun(run.folder / "episode.rrd", episode))
        shown.append(f"rerun: {record['rerun']} (rerun {record['rerun']})")
    return Outcome(record=record, report=(_table(episode), *shown))


def _table(episode: WatchedEpisode) -> Table:
    facts = episode.summary()
    table = Table(title=f"{episode.env_id}, demonstration task {episode.seed}", show_header=False)
    table.add_column("what")
    table.add_column("value", justify="right")
    reached = facts["steps_to_success"]
    verdict = "held at the end" if facts["success"] else "reached, not held" if facts["success_ever"] else "not reached"
    table.add_row("goal", verdict, style="bold green" if facts["success"] else "bold")
    table.add_row("steps", str(facts["steps"]) if reached is None else f"{facts['steps']} (reached after {reached})")
    table.add_row("distance", f"{100 * facts['start_distance_m']:.1f} -> {100 * facts['final_distance_m']:.1f} cm")
    latency = facts["replan_s"]
    if latency["p50"] is not None:
        table.add_row("replan latency", f"{latency['p50']:.2f} s (p50), {latency['p95']:.2f} s (p95)")
    table.add_row("replans", str(facts["replans"]))
    cost = facts["latent_cost"]
    table.add_row("latent cost", f"{cost['start']:.3f} -> {cost['end']:.3f}")
    return table
