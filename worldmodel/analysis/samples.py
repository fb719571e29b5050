"""A few freshly recorded episodes to look at, where no data set is at hand: installations come with weights only."""

from __future__ import annotations

from pathlib import Path

from worldmodel.control.collect import CollectConfig, collect
from worldmodel.data.episodes import EpisodeDataset

SEED = 20_000
"""Of the recording; no training run that is shipped used it."""


def sample_episodes(
    path: str | Path,
    env: str = "push",
    *,
    episodes: int = 24,
    steps: int | None = None,
    image_size: int = 64,
    expert_fraction: float = 0.3,
) -> EpisodeDataset:
    """Open an episode file, recording what is missing in it first.

    Args:
        path: HDF5 file; continued when it holds fewer episodes of the environment.
        env: Environment.
        episodes: Episodes of the environment that the file should hold.
        steps: Control steps per episode; None means the limit of the environment.
        image_size: Side of the frames, pixels.
        expert_fraction: Share of episodes in which the scripted expert acts; 0 where there is none.

    Raises:
        ConfigError: A value is out of range, or the environment is unknown.
        DataError: The file belongs to other data.
        RenderingError: No OpenGL backend works.
    """
    config = CollectConfig(
        env=env,
        episodes=episodes,
        out=str(path),
        workers=1,
        seed=SEED,
        image_size=image_size,
        expert_fraction=expert_fraction,
        steps=steps,
        append=True,
    )
    collect(config)
    return EpisodeDataset.open(path)
