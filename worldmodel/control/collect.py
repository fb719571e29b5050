"""Recording episodes: scripted policies or a trained model, simulated in parallel, into one episode file.

Work is split into blocks of episodes. A worker builds one environment (and one renderer) per block and returns arrays;
the parent alone writes, in episode order. Every episode draws from its own stream, seeded by (seed, episode), so the
file does not depend on the number of workers, and a run continued after an interruption equals one that never stopped.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from worldmodel.control.noisy import Noisy, Watching
from worldmodel.control.workers import parallel_map
from worldmodel.data.episodes import EpisodeDataset, EpisodeWriter
from worldmodel.data.records import Episode, EpisodeSpec
from worldmodel.envs import make_env, resolve_env_id
from worldmodel.envs.base import GoalEnv
from worldmodel.envs.scripted import OwnExpert, Policy, expert, play
from worldmodel.errors import ConfigError, DataError


@dataclass(kw_only=True)
class CollectConfig:
    """What to record.

    Attributes:
        env: Environment: short name, id, or "module:id" (the module registers it).
        episodes: Episodes to record; with `append`, the number that the file holds of this environment in the end.
        out: HDF5 file.
        workers: Processes, each with one thread.
        seed: Root of all random streams; a non-negative integer.
        expert_fraction: Share of episodes acted by the scripted expert with action noise; play for the rest. 0 for
            environments without an expert.
        planned_fraction: Share of episodes in which a trained model plans (CEM 100 x 4), with the same noise: what its
            plans really lead to, for the next training.
        checkpoint: That model: a folder, the name of a shipped one, or "shipped".
        image_size: Height and width of the pictures, pixels.
        steps: Control steps per episode; None means the limit of the environment.
        append: Continue the file. Environments may share one file when their specs agree.
        episodes_per_block: Episodes a worker records before it hands them over to be written.
    """

    env: str = "push"
    episodes: int = 1000
    out: str = "outputs/episodes.h5"
    workers: int = 2
    seed: int = 0
    expert_fraction: float = 0.3
    planned_fraction: float = 0.0
    checkpoint: str = "shipped"
    image_size: int = 64
    steps: int | None = None
    append: bool = False
    episodes_per_block: int = 20

    def validate(self) -> None:
        """Raise ConfigError when a value is out of range; called by `collect`."""
        for name in ("episodes", "workers", "episodes_per_block"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be >= 1, got {getattr(self, name)}")
        if self.seed < 0:
            raise ConfigError(f"seed must be >= 0, got {self.seed}")
        for name in ("expert_fraction", "planned_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        if self.expert_fraction + self.planned_fraction > 1:
            got = f"{self.expert_fraction} + {self.planned_fraction}"
            raise ConfigError(f"expert_fraction + planned_fraction must be <= 1, got {got}")
        if self.steps is not None and self.steps < 1:
            raise ConfigError(f"steps must be >= 1 or null, got {self.steps}")


@dataclass(frozen=True, kw_only=True)
class CollectReport:
    """What a run of `collect` did.

    Attributes:
        path: The file.
        episodes: Episodes recorded by this run.
        frames: Frames recorded by this run.
        seconds: Wall time of recording and writing.
        frames_per_s: Frames over seconds; 0 when there was nothing to do.
        total_episodes: Episodes in the file now.
        content_hash: Of the file now.
    """

    path: Path
    episodes: int
    frames: int
    seconds: float
    frames_per_s: float
    total_episodes: int
    content_hash: str


def episode_seed(seed: int, episode: int) -> int:
    """Seed (63 bits) of one episode of a collection; stored with the episode and enough to record it again."""
    return int(np.random.SeedSequence([seed, episode]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def record_episode(env: GoalEnv, policy: Policy, *, seed: int, steps: int, label: str, env_id: str) -> Episode:
    """Run one policy for one episode and keep everything.

    Args:
        env: Environment; it is reset with `seed`, which samples the task.
        policy: What acts.
        seed: Passed to `reset` and stored.
        steps: Control steps T.
        label: Name stored for the policy.
        env_id: Environment id stored with the episode.

    Raises:
        SimulationError: No task could be sampled, or the simulation diverged.
    """
    low, high = env.action_space.low, env.action_space.high  # type: ignore[attr-defined]
    observation, info = env.reset(seed=seed)
    pixels, proprio = [observation["pixels"]], [observation["proprio"]]
    actions, privileged, contact = [], [env.privileged()], [bool(info["contact"])]
    for _ in range(steps):
        if isinstance(policy, Watching):
            policy.see(observation)
        action = np.clip(policy.act(env), low, high).astype(np.float32)
        observation, _, _, _, info = env.step(action)
        actions.append(action)
        pixels.append(observation["pixels"])
        proprio.append(observation["proprio"])
        privileged.append(env.privileged())
        contact.append(bool(info["contact"]))
    return Episode(
        pixels=np.stack(pixels),
        proprio=np.stack(proprio).astype(np.float32),
        action=np.stack(actions),
        privileged=np.stack(privileged).astype(np.float32),
        contact=np.array(contact, np.bool_),
        policy=label,
        seed=seed,
        success=bool(info["is_success"]),
        env_id=env_id,
    )


def record_block(config: CollectConfig, first: int, last: int) -> list[Episode]:
    """Record episodes [first, last) of a collection with one environment. This is the work of one worker task."""
    env_id = resolve_env_id(config.env)
    env = make_env(config.env, image_size=config.image_size)
    try:
        steps = _num_steps(config, env)
        plan = _planner(config, spec_of(env, env_id, config.image_size)) if config.planned_fraction > 0 else None
        episodes = []
        for number in range(first, last):
            seed = episode_seed(config.seed, number)
            # A child of the stored seed: reset(seed) already uses the seed itself to sample the task.
            rng = np.random.default_rng(np.random.SeedSequence(seed).spawn(1)[0])
            label, policy = _policy(config, plan, rng, seed)
            episodes.append(record_episode(env, policy, seed=seed, steps=steps, label=label, env_id=env_id))
        return episodes
    finally:
        env.close()


def _planner(config: CollectConfig, spec: EpisodeSpec) -> Callable[[int], Policy]:
    """What makes a planning policy from a seed; torch is loaded here, so that other recordings do without.

    Raises:
        CheckpointError: The model is missing, corrupt, or not made for the environment.
    """
    from worldmodel.control.planned import Planned
    from worldmodel.models.checkpoint import load_checkpoint

    return partial(Planned, load_checkpoint(config.checkpoint, env_spec=spec))


def _policy(
    config: CollectConfig, plan: Callable[[int], Policy] | None, rng: np.random.Generator, seed: int
) -> tuple[str, Policy]:
    """Who acts in an episode, drawn by its stream, and the name that is stored."""
    draw = rng.random()
    if draw < config.expert_fraction:
        return "expert", Noisy(expert(config.env), rng)
    if plan is not None and draw < config.expert_fraction + config.planned_fraction:
        return "planned", Noisy(plan(seed), rng)
    return "play", play(config.env, rng)


def spec_of(env: GoalEnv, env_id: str, image_size: int) -> EpisodeSpec:
    """Describe the episodes of an environment.

    Proprioceptive entries are named after the privileged quantities they equal, and numbered when they equal none.
    """
    observation, _ = env.reset(seed=0)
    proprio, truth = observation["proprio"], env.privileged()[: len(observation["proprio"])]
    is_named = truth.shape == proprio.shape and np.allclose(proprio, truth, atol=1e-6)
    names = env.privileged_names[: len(proprio)] if is_named else [f"proprio_{i}" for i in range(len(proprio))]
    return EpisodeSpec(
        env_id=env_id,
        image_size=image_size,
        action_low=tuple(env.action_space.low.tolist()),  # type: ignore[attr-defined]
        action_high=tuple(env.action_space.high.tolist()),  # type: ignore[attr-defined]
        proprio_names=tuple(names),
        privileged_names=tuple(env.privileged_names),
        control_dt_s=1.0 / env.metadata["render_fps"],
    )


def collect(config: CollectConfig, progress: bool = True) -> CollectReport:
    """Record episodes into one file.

    Interrupting is safe: what was handed over before stays in the file, and the same call with `append` continues it.

    Args:
        config: What to record.
        progress: Show a progress bar on stderr when that is a terminal.

    Raises:
        ConfigError: A value is out of range or the environment is unknown.
        CheckpointError: The model that is to plan is missing, corrupt, or not made for the environment.
        DataError: The file exists without `append`, belongs to another spec, or cannot be written.
        RenderingError: No OpenGL backend works.
        SimulationError: An episode could not be simulated.
    """
    config.validate()
    env_id = resolve_env_id(config.env)
    out = Path(config.out)
    if out.exists() and not config.append:
        raise DataError(f"{out} already exists; continue it with append=true, or choose another out=")
    env = make_env(config.env, image_size=config.image_size)
    try:
        steps = _num_steps(config, env)
        spec = spec_of(env, env_id, config.image_size)
        if config.expert_fraction > 0:
            _check_expert(config, env)
        if config.planned_fraction > 0:
            _planner(config, spec)
    finally:
        env.close()
    recorded = frames = 0
    begin = time.perf_counter()
    if out.exists() and _is_complete(config, EpisodeDataset.open(out), spec):
        return _report(out, 0, 0, time.perf_counter() - begin)  # without writing: others may be reading it
    with EpisodeWriter(out, spec, append=config.append) as writer:
        missing = config.episodes - writer.count(env_id)
        blocks = _blocks(len(writer), max(missing, 0), config.episodes_per_block)
        results = parallel_map(partial(_record_range, config), blocks, workers=config.workers, ordered=True)
        bar = _progress_bar(max(missing, 0), progress)
        with remembered_interrupt() as check, bar as advance, closing(results):
            for episodes in results:
                check()
                for episode in episodes:
                    writer.append(episode)
                writer.flush()
                recorded += len(episodes)
                frames += len(episodes) * (steps + 1)
                advance(len(episodes), frames / (time.perf_counter() - begin))
    return _report(out, recorded, frames, time.perf_counter() - begin)


def _is_complete(config: CollectConfig, dataset: EpisodeDataset, spec: EpisodeSpec) -> bool:
    """Whether a file holds all that is asked for already."""
    held = int(np.count_nonzero(dataset.index.env_id == spec.env_id))
    return held >= config.episodes and not dataset.spec.differences(spec)


def _report(out: Path, episodes: int, frames: int, seconds: float) -> CollectReport:
    dataset = EpisodeDataset.open(out)
    return CollectReport(
        path=out,
        episodes=episodes,
        frames=frames,
        seconds=seconds,
        frames_per_s=frames / seconds,
        total_episodes=len(dataset),
        content_hash=dataset.content_hash,
    )


def _check_expert(config: CollectConfig, env: GoalEnv) -> None:
    """Refuse a share of expert episodes where nobody wrote an expert; the environment has been reset."""
    if isinstance(expert(config.env), OwnExpert) and env.expert_action() is None:
        raise ConfigError(
            f"{config.env} has no scripted expert, so expert_fraction must be 0, got {config.expert_fraction}; or "
            f"define expert_action in {type(env).__name__}"
        )


def _num_steps(config: CollectConfig, env: GoalEnv) -> int:
    steps = env.max_steps if config.steps is None else config.steps
    if steps > env.max_steps:
        raise ConfigError(f"steps must be <= {env.max_steps}, the limit of {config.env}, got {steps}")
    return steps


def _blocks(start: int, count: int, size: int) -> list[tuple[int, int]]:
    """Ranges [first, last) that cover episodes start .. start + count."""
    stop = start + count
    return [(first, min(first + size, stop)) for first in range(start, stop, size)]


def _record_range(config: CollectConfig, block: tuple[int, int]) -> list[Episode]:
    """`record_block` of one range, as a function of one job."""
    return record_block(config, *block)


@contextmanager
def remembered_interrupt() -> Iterator[Callable[[], None]]:
    """Make Ctrl-C impossible to lose; yields a check that raises it again.

    Python drops a KeyboardInterrupt that lands in a destructor or a callback of a C library (seen: one in about ten
    recordings ran on). It is raised at once as always, and once more at the next check.
    """
    seen = False
    previous = signal.getsignal(signal.SIGINT)

    def remember(number: int, frame: FrameType | None) -> None:
        nonlocal seen
        seen = True
        if callable(previous):
            previous(number, frame)

    def check() -> None:
        if seen:
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread() or not callable(previous):
        yield check
        return
    signal.signal(signal.SIGINT, remember)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, previous)


@contextmanager
def _progress_bar(total: int, wanted: bool) -> Iterator[_Advance]:
    """A bar on stderr with frames per second; silent when stderr is not a terminal."""
    columns = (
        TextColumn("recording"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("episodes, {task.fields[rate]:.0f} frames/s"),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not (wanted and sys.stderr.isatty())) as bar:
        yield _Advance(bar, bar.add_task("recording", total=total, rate=0.0))


class _Advance:
    """Moves the bar."""

    def __init__(self, bar: Progress, task: TaskID) -> None:
        self._bar = bar
        self._task = task

    def __call__(self, episodes: int, rate: float) -> None:
        self._bar.update(self._task, advance=episodes, rate=rate)
