"""What a model imagines along recorded actions, beside what came true: retrieved frames, and paths in latent space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from worldmodel.analysis.frame_bank import FrameBank, Ids, Neighbours, encode_start, flat_latents
from worldmodel.analysis.style import CHOSEN, MUTED, SECOND, frame_grid, row_label, show_frame, tidy
from worldmodel.control.costs import PlanningModel
from worldmodel.data.episodes import EpisodeDataset
from worldmodel.errors import ConfigError, DataError
from worldmodel.evaluation.stats import success_interval
from worldmodel.types import Context

Array = NDArray[np.float64]
Floats = NDArray[np.float32]
BLOCK_WIDTH_M = 0.07
_CHUNK = 64


@dataclass(frozen=True, kw_only=True)
class Imagined:
    """Rollouts of C clips from one real frame each, along the actions that were recorded.

    Attributes:
        frames: (C, H+1, Y, X, 3) uint8 real frames at model-step rate, the context frame first.
        real: (C, H+1, N * D) latents of these frames.
        imagined: (C, H+1, N * D) what the model expected; entry 0 is the real one.
        episode: (C,) episode of each clip.
        truth: (C, H+1, G) true quantities of the real frames.
        step_s: Seconds of a model step.
    """

    frames: NDArray[np.uint8]
    real: Floats
    imagined: Floats
    episode: Ids
    truth: Floats
    step_s: float

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def horizon(self) -> int:
        """H, model steps."""
        return int(self.frames.shape[1] - 1)

    def look_up(self, bank: FrameBank, *, count: int = 1) -> tuple[Neighbours, Neighbours]:
        """Closest frames of other episodes, to what was imagined and to what came true.

        Args:
            bank: Frames to choose from.
            count: K, frames for each latent.

        Returns:
            Two records with rows (C * (H+1), K).

        Raises:
            ConfigError: The bank is of another model, or too small.
        """
        own = np.repeat(self.episode, self.horizon + 1)
        imagined, real = (
            bank.nearest(latents.reshape(len(own), -1), count=count, leave_out=own)
            for latents in (self.imagined, self.real)
        )
        return imagined, real


def imagine(
    model: PlanningModel, dataset: EpisodeDataset, clips: Sequence[tuple[int, int]], *, horizon: int = 5
) -> Imagined:
    """Roll the model out along recorded actions.

    Args:
        model: World model.
        dataset: Episodes it was not trained on, if the result is to mean something.
        clips: Episode and first frame of each clip.
        horizon: H, model steps.

    Raises:
        ConfigError: `horizon` or a first frame is out of range.
        DataError: There are no clips.
    """
    if horizon < 1:
        raise ConfigError(f"horizon must be >= 1, got {horizon}")
    if not clips:
        raise DataError("imagination needs at least one clip, got none")
    block = model.spec.action_block
    frames, actions, truth, body = [], [], [], []
    for number, start in clips:
        episode = dataset.episode(number)
        last = episode.num_frames - 1 - horizon * block
        if not 0 <= start <= last:
            raise ConfigError(
                f"the first frame of a clip of {horizon} model steps must be in [0, {last}] in episode {number}, "
                f"got {start}"
            )
        stop = start + horizon * block
        frames.append(episode.pixels[start : stop + 1 : block])
        actions.append(episode.action[start:stop].reshape(horizon, -1))
        truth.append(episode.privileged[start : stop + 1 : block])
        body.append(episode.proprio[start])
    pixels = np.stack(frames)
    real = flat_latents(model, pixels.reshape(-1, *pixels.shape[2:])).reshape(len(clips), horizon + 1, -1)
    expected = _rollouts(model, pixels[:, 0], np.stack(body), np.stack(actions))
    return Imagined(
        frames=pixels,
        real=real,
        imagined=np.concatenate([real[:, :1], expected], axis=1),
        episode=np.array([number for number, _ in clips], np.int64),
        truth=np.stack(truth),
        step_s=block * dataset.spec.control_dt_s,
    )


def draw_clips(
    dataset: EpisodeDataset, episodes: Ids, count: int, *, horizon: int, action_block: int, seed: int = 0
) -> list[tuple[int, int]]:
    """Clips for `imagine`: first every episode once, in an order drawn by the seed, each at a random frame.

    Args:
        dataset: Where they are.
        episodes: Episodes to draw from.
        count: Clips.
        horizon: Model steps of a clip.
        action_block: Environment steps in a model step.
        seed: Of order and frames.

    Raises:
        DataError: No episode is long enough.
    """
    lengths = dataset.index.length[episodes] - horizon * action_block
    usable = episodes[lengths > 0]
    if not len(usable):
        raise DataError(f"no episode holds {horizon} model steps of {action_block} actions; record longer ones")
    rng = np.random.default_rng([seed, 5])
    order = np.concatenate([rng.permutation(usable) for _ in range(-(-count // len(usable)))])[:count]
    return [(int(e), int(rng.integers(dataset.index.length[e] - horizon * action_block))) for e in order]


@dataclass(frozen=True, kw_only=True)
class Retrieval:
    """Whether retrieved frames show the object where it really was, at the last step of each of C rollouts.

    Attributes:
        error_m: (C,) distance of the object in the frame closest to the imagined latent from where it really was.
        real_error_m: (C,) the same for the frame closest to the real latent: what the bank can do at best.
        still_error_m: (C,) how far the object moved: what "nothing happens" would get wrong.
        radius_m: Distance that counts as right.
        horizon: Model steps.
    """

    error_m: Array
    real_error_m: Array
    still_error_m: Array
    radius_m: float
    horizon: int

    def to_json(self) -> dict[str, Any]:
        """Counts, shares and Wilson intervals, over all clips and over those in which the object moved."""
        moved = self.still_error_m > self.radius_m / 2
        record: dict[str, Any] = {"horizon": self.horizon, "radius_m": self.radius_m}
        for label, rows in (("all", np.ones_like(moved)), ("object_moved", moved)):
            arms = {"imagined": self.error_m, "real": self.real_error_m, "nothing_moves": self.still_error_m}
            record[label] = {name: self._count(errors[rows]) for name, errors in arms.items()}
        return record

    def _count(self, errors: Array) -> dict[str, Any]:
        right = [bool(error <= self.radius_m) for error in errors]
        interval = list(success_interval(right)) if right else None
        return {
            "right": sum(right),
            "clips": len(right),
            "interval": interval,
            "median_error_m": float(np.median(errors)) if right else None,
        }


def retrieval(
    imagined: Imagined,
    bank: FrameBank,
    *,
    names: tuple[str, ...] = ("object_x", "object_y"),
    radius_m: float = BLOCK_WIDTH_M,
) -> Retrieval:
    """Judge the retrieved frames by true positions, which neither model nor look-up has seen.

    Args:
        imagined: Rollouts.
        bank: Frames of other episodes.
        names: True quantities that make up a position, metres.
        radius_m: Distance that counts as right; a block is 7 cm wide.

    Raises:
        ConfigError: The data set does not record these quantities, or the bank is of another model.
    """
    columns = bank.columns(names)
    steps = imagined.horizon + 1
    end = np.arange(steps - 1, len(imagined) * steps, steps)
    true = imagined.truth[:, -1][:, columns]
    found, real = (bank.truth[near.rows[end, 0]][:, columns] for near in imagined.look_up(bank))
    start = imagined.truth[:, 0][:, columns]
    errors = [np.linalg.norm(position.astype(np.float64) - true, axis=1) for position in (found, real, start)]
    return Retrieval(
        error_m=errors[0],
        real_error_m=errors[1],
        still_error_m=errors[2],
        radius_m=radius_m,
        horizon=imagined.horizon,
    )


def nearest_figure(imagined: Imagined, bank: FrameBank, clip: int = 0) -> Figure:
    """One rollout: what came true, the real frames closest to what was imagined, and how close they are.

    Args:
        imagined: Rollouts.
        bank: Frames of other episodes.
        clip: Which rollout.

    Raises:
        ConfigError: There is no such rollout, or the bank is of another model or too small.
    """
    one = _only(imagined, clip)
    near, real = one.look_up(bank, count=min(2, len(bank)))
    columns = one.horizon + 1
    rows = {"what came true": one.frames[0]}
    for rank in range(near.rows.shape[1]):
        rows[("closest frame to\nwhat was imagined", "second closest")[rank]] = bank.pixels[near.rows[:, rank]]
    figure, grid = frame_grid(len(rows) + 1, columns)
    for place, (name, frames) in enumerate(rows.items()):
        row_label(grid[place, 0], name)
        for column in range(columns):
            title = f"{column * one.step_s:.1f} s" if place == 0 else f"distance {near.distance[column, place - 1]:.2f}"
            show_frame(grid[place, column], frames[column], title)
    figure.suptitle("nearest-frame imagination: real frames of other episodes, none is generated", fontsize=10)
    below = figure.add_subplot(grid[-1, 0].get_gridspec()[-1, :])
    for axes in grid[-1]:
        axes.remove()
    seconds = one.step_s * np.arange(columns)
    below.plot(seconds, near.distance[:, 0], "o-", color=CHOSEN, label="of the imagined latent")
    below.plot(seconds, real.distance[:, 0], "s--", color=SECOND, label="of the real latent (what the data allow)")
    room = 1.6 * float(
        max(near.distance[:, 0].max(), real.distance[:, 0].max(), 1e-6)
    )  # the legend's, above the curves
    below.set(xlabel="imagined time (s)", ylabel="distance to the\nclosest frame (a.u.)", ylim=(0, room))
    below.legend(frameon=False, fontsize=8, loc="upper right")
    tidy(below)
    return figure


def path_figure(imagined: Imagined, bank: FrameBank, clips: Sequence[int] = (0,)) -> Figure:
    """Imagined and real paths in the plane of the two largest principal components of the bank's latents.

    Args:
        imagined: Rollouts.
        bank: Gives the components and the background.
        clips: Rollouts to draw, at most four.

    Raises:
        ConfigError: No, too many or unknown rollouts.
    """
    if not 1 <= len(clips) <= 4:
        raise ConfigError(f"clips must be one to four rollouts, got {len(clips)}")
    mean = bank.latents.mean(axis=0)
    _, scale, directions = np.linalg.svd(bank.latents - mean, full_matrices=False)
    share = np.square(scale) / np.square(scale).sum()
    figure = Figure(figsize=(7.0, 5.6), layout="constrained")
    axes = figure.subplots()
    background = (bank.latents - mean) @ directions[:2].T
    axes.plot(*background.T, ".", color="0.85", markersize=3, label="frames of the data set", rasterized=True)
    for place, clip in enumerate(clips):
        one = _only(imagined, clip)
        real, expected = ((path[0] - mean) @ directions[:2].T for path in (one.real, one.imagined))
        names = ("real path", "imagined path", "frame it started from") if place == 0 else (None,) * 3
        axes.plot(*real.T, "s-", color=SECOND, markersize=5, linewidth=1.5, label=names[0])
        axes.plot(*expected.T, "o--", color=CHOSEN, markersize=6, markerfacecolor="none", linewidth=1.5, label=names[1])
        for then, now in zip(real, expected, strict=True):
            axes.plot(*np.stack([then, now]).T, "-", color=MUTED, linewidth=0.8, zorder=1)
        axes.plot(*real[0], "P", color="black", markersize=11, label=names[2])
    axes.set_xlabel(f"first principal component (a.u., {share[0]:.0%} of the variance)")
    axes.set_ylabel(f"second principal component (a.u., {share[1]:.0%})")
    axes.set_title(
        f"{imagined.horizon} model steps of {imagined.step_s:g} s; grey lines join the same moment", fontsize=10
    )
    axes.legend(frameon=True, framealpha=0.9, edgecolor="none", fontsize=9)
    tidy(axes)
    return figure


def retrieval_figure(found: Retrieval) -> Figure:
    """Share of rollouts whose retrieved frame shows the object within each distance of where it really was."""
    figure = Figure(figsize=(9.6, 4.2), layout="constrained")
    moved = found.still_error_m > found.radius_m / 2
    panels = (("all rollouts", np.ones_like(moved)), ("rollouts in which the object moved", moved))
    for axes, (title, rows) in zip(figure.subplots(1, 2, sharey=True), panels, strict=True):
        arms = (
            (found.error_m, "frame closest to what was imagined", CHOSEN, "-"),
            (found.real_error_m, "frame closest to what came true", SECOND, "--"),
            (found.still_error_m, "nothing moves", "0.5", "-."),
        )
        for errors, name, colour, dashes in arms:
            sorted_cm = 100 * np.sort(errors[rows])
            shares = np.arange(len(sorted_cm) + 1) * 100 / max(1, len(sorted_cm))
            axes.step(np.append(0, sorted_cm), shares, where="post", color=colour, linestyle=dashes, label=name)
        axes.axvline(
            100 * found.radius_m,
            color="0.3",
            linewidth=1.2,
            linestyle=":",
            label=f"counts as right ({100 * found.radius_m:g} cm)",
        )
        axes.set(xlabel="distance of the object from where it was (cm)", xlim=(0, 30), ylim=(0, 103))
        axes.set_title(f"{title}: {_share_text(found.error_m[rows] <= found.radius_m)}", fontsize=9)
        tidy(axes)
    figure.axes[0].set_ylabel(f"share of rollouts after {found.horizon} steps (%)")
    figure.axes[1].legend(frameon=False, fontsize=9, loc="lower right")
    return figure


def _share_text(right: NDArray[np.bool_]) -> str:
    if not len(right):
        return "none"
    low, high = success_interval([bool(value) for value in right])
    return f"{int(right.sum())} of {len(right)} right ({100 * low:.0f} to {100 * high:.0f} %)"


def _only(imagined: Imagined, clip: int) -> Imagined:
    if not 0 <= clip < len(imagined):
        raise ConfigError(f"clip must be in [0, {len(imagined)}), got {clip}")
    row = slice(clip, clip + 1)
    return Imagined(
        frames=imagined.frames[row],
        real=imagined.real[row],
        imagined=imagined.imagined[row],
        episode=imagined.episode[row],
        truth=imagined.truth[row],
        step_s=imagined.step_s,
    )


def _rollouts(model: PlanningModel, first: NDArray[np.uint8], body: Floats, actions: Floats) -> Floats:
    """(C, H, N * D) imagined from frames (C, Y, X, 3) and proprioception (C, P) along flat actions (C, H, A)."""
    parts = []
    for start in range(0, len(first), _CHUNK):
        rows = slice(start, start + _CHUNK)
        context = Context(
            latent=encode_start(model, first[rows], body[rows]),
            actions=torch.zeros(len(first[rows]), 0, actions.shape[2]),
        )
        future = model.rollout(context, torch.from_numpy(actions[rows])[:, None])
        parts.append(future.visual[:, 0].flatten(2).float().cpu().numpy())
    return np.concatenate(parts)
