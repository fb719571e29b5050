"""Episodes of a finished evaluation as videos: run again through the agent that ran them, with somebody looking on.

A record holds outcomes, not pictures. The same agent with the same streams gives the same episode, bit for bit on the
same machine; elsewhere, or under a limit of time, it may end otherwise, and then the film says so.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from worldmodel.analysis.episode import Judge
from worldmodel.analysis.video import Film, write_video
from worldmodel.control.threads import torch_threads
from worldmodel.control.workers import parallel_map
from worldmodel.envs import make_env
from worldmodel.errors import ConfigError
from worldmodel.evaluation.attribution import Subject
from worldmodel.evaluation.episodes import Block, EpisodeResult, agent_seed, run_block

_SIDE = 320


@dataclass(frozen=True, kw_only=True)
class FilmedEpisode:
    """One episode, run again.

    Attributes:
        recorded: Its outcome in the evaluation.
        again: Its outcome in front of the camera.
        mp4: The video: camera beside goal, latent cost below.
    """

    recorded: EpisodeResult
    again: EpisodeResult
    mp4: bytes

    @property
    def is_same(self) -> bool:
        """Whether it ended as it was recorded."""
        seen = [(row.held, row.ever, row.steps_to_success) for row in (self.recorded, self.again)]
        return seen[0] == seen[1]


def chosen_rows(rows: Sequence[EpisodeResult], count: int, episodes: Sequence[int] = ()) -> list[EpisodeResult]:
    """The first so many failures and the first so many successes, failures first, then the episodes that were named.

    Raises:
        ConfigError: `count` is negative, or the run has no such episode.
    """
    if count < 0:
        raise ConfigError(f"videos must be >= 0, got {count}")
    failed, held = ([row for row in rows if row.held is outcome][:count] for outcome in (False, True))
    numbered = {row.episode: row for row in rows}
    if missing := [number for number in episodes if number not in numbered]:
        raise ConfigError(f"episodes to film must be among the {len(rows)} of the run, got {missing}")
    first = {row.episode: row for row in failed + held}
    return list((first | {number: numbered[number] for number in episodes}).values())


def film_episodes(subject: Subject, rows: Sequence[EpisodeResult], *, workers: int = 1) -> list[FilmedEpisode]:
    """Run episodes of an evaluation again and film them.

    Args:
        subject: The evaluation.
        rows: Recorded outcomes of the episodes to film.
        workers: Processes, one thread each.

    Raises:
        CheckpointError: The checkpoint is gone or has changed.
        RenderingError: No OpenGL backend works.
    """
    return list(parallel_map(partial(_film_one, subject), list(rows), workers=workers, ordered=True))


def _film_one(subject: Subject, row: EpisodeResult) -> FilmedEpisode:
    manifest, factory = subject.manifest, subject.factory
    task = manifest.tasks[row.episode]
    block = Block(
        env=manifest.env_id,
        image_size=factory.image_size,
        episodes=(row.episode,),
        tasks=(task,),
        seeds=(agent_seed(manifest.seeds[row.episode], subject.seed),),
    )
    env = make_env(manifest.env_id, image_size=factory.image_size)
    camera = _Camera()
    try:
        with torch_threads(1):
            (run,) = run_block(block, factory.build(), [env], observer=camera)
            goal = env.render_goal(task)
            judge = Judge(factory.world_model(), factory.objective, goal)
            film = Film(
                frames=np.stack(camera.frames),
                goal=goal,
                costs=judge.seen(camera.frames, camera.proprio),
                success=np.array(camera.success),
                title=f"{manifest.env_id.rpartition('/')[2]} {row.episode}",
                dt_s=1 / float(env.metadata["render_fps"]),
            )
    finally:
        env.close()
    with tempfile.TemporaryDirectory() as folder:
        mp4 = write_video(Path(folder) / "episode.mp4", film, side=_SIDE).read_bytes()
    return FilmedEpisode(recorded=row, again=run.result, mp4=mp4)


class _Camera:
    """Observer of `run_block` that keeps what was seen."""

    def __init__(self) -> None:
        self.frames: list[NDArray[np.uint8]] = []
        self.proprio: list[NDArray[np.float32]] = []
        self.success: list[bool] = []

    def __call__(self, step: int, obs: dict[str, Any], infos: Sequence[dict[str, Any]]) -> None:
        self.frames.append(obs["pixels"][0].copy())
        self.proprio.append(obs["proprio"][0].copy())
        self.success.append(bool(infos[0]["is_success"]))
