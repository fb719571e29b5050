"""Which clips a probe task is made of: windows that do not overlap, balanced classes, and the order of their labels.

Separate from `probe_tasks.py`: nothing here knows what a label means.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from worldmodel.data.episodes import EpisodeDataset
from worldmodel.errors import ConfigError, DataError

Ints = NDArray[np.int64]
NO_CLASS = -1


@dataclass(kw_only=True)
class ClipChoice:
    """How many clips, and of what length.

    Attributes:
        clips: Clips whose labels may be given out (100 %).
        test_clips: Clips of other episodes on which every probe is tested.
        num_frames: Frames T of a clip.
        frame_step: Env steps from one to the next.
        test_fraction: Share of the episodes kept for testing where no separate file is.
        seed: Root of every choice.
    """

    clips: int = 2000
    test_clips: int = 500
    num_frames: int = 8
    frame_step: int = 2
    test_fraction: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("clips", 2), ("test_clips", 1), ("num_frames", 2), ("frame_step", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be >= {least}, got {getattr(self, name)}")
        if not 0 < self.test_fraction < 1:
            raise ConfigError(f"test_fraction must be in (0, 1), got {self.test_fraction}")

    @property
    def reach(self) -> int:
        """Env steps that a clip stands for, the ones after its last frame included."""
        return self.num_frames * self.frame_step


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Stretches of episodes.

    Attributes:
        episode: (C,) episode of each.
        first: (C,) its first row in the data set.
    """

    episode: Ints
    first: Ints

    def __getitem__(self, chosen: NDArray[np.int64] | NDArray[np.bool_]) -> Windows:
        return Windows(episode=self.episode[chosen], first=self.first[chosen])

    def __len__(self) -> int:
        return len(self.first)

    def steps(self, reach: int) -> Ints:
        """(C, reach) rows of every env step."""
        return self.first[:, None] + np.arange(reach)


def windows_of(dataset: EpisodeDataset, episodes: Ints, choice: ClipChoice) -> Windows:
    """Stretches of `choice.reach` env steps of some episodes, one after another from a beginning drawn for each.

    Raises:
        DataError: No episode is long enough.
    """
    owners: list[Ints] = []
    firsts: list[Ints] = []
    for i in episodes:
        spare = int(dataset.index.length[i]) - choice.reach
        if spare < 0:
            continue
        # every position within a stretch is a beginning that leaves as many stretches as possible
        begin = np.random.default_rng([choice.seed, int(i)]).integers(spare % choice.reach + 1)
        starts = np.arange(begin, spare + 1, choice.reach)
        owners.append(np.full(len(starts), i, np.int64))
        firsts.append(starts + dataset.index.start[i])
    if not owners:
        longest = int(dataset.index.length[episodes].max()) if len(episodes) else 0
        raise DataError(
            f"clips of {choice.num_frames} frames, {choice.frame_step} steps apart, need episodes of "
            f"{choice.reach} frames; the longest of the {len(episodes)} in {dataset.path} has {longest}"
        )
    return Windows(episode=np.concatenate(owners), first=np.concatenate(firsts).astype(np.int64))


def balanced(classes: Ints, count: int, names: Sequence[str], rng: np.random.Generator, where: str) -> Ints:
    """Places of `count` entries, as many of every class as of any other (to within one), in a random order.

    Args:
        classes: (C,) class of every entry, `NO_CLASS` for one that is not to be used.
        count: How many.
        names: Names of the classes 0, 1, ...
        rng: Stream of the choice.
        where: What the entries are, for the message.

    Raises:
        DataError: Too few of a class; says how many clips would do.
    """
    wanted = [count // len(names) + (number < count % len(names)) for number in range(len(names))]
    there = [np.flatnonzero(classes == number) for number in range(len(names))]
    short = [
        f"{name} {len(rows)} of {most}"
        for name, rows, most in zip(names, there, wanted, strict=True)
        if len(rows) < most
    ]
    if short:
        least = min(len(rows) for rows in there) * len(names)
        raise DataError(
            f"{where} has too few clips of some classes ({', '.join(short)}); record more, or take at most {least}"
        )
    parts = [rng.permutation(rows)[:most] for rows, most in zip(there, wanted, strict=True)]
    return rng.permutation(np.concatenate(parts))


def label_order(classes: Ints, rng: np.random.Generator) -> Ints:
    """A random order of the clips in which every stretch from the beginning is balanced (to within one of a class).

    The labelled clips of a split are the beginning of its order, so those of 5 % are among those of 10 %.

    Args:
        classes: (C,) class of every clip.
        rng: Stream of the split.
    """
    order = rng.permutation(len(classes))
    shuffled = classes[order]
    rank = np.empty(len(classes), np.int64)
    for number in np.unique(classes):
        rows = shuffled == number
        rank[rows] = np.arange(rows.sum())
    ordered: Ints = order[np.argsort(rank, kind="stable")]
    return ordered


def labelled_rows(classes: Ints, share: float, split: int, seed: int) -> Ints:
    """Rows of the clips whose labels are given out.

    Args:
        classes: (C,) class of every clip that has a label to give.
        share: Of them, in (0, 1].
        split: Which of the random splits.
        seed: Root of all splits.

    Raises:
        ConfigError: The share is out of range.
    """
    if not 0 < share <= 1:
        raise ConfigError(f"a share of labels must be in (0, 1], got {share}")
    order = label_order(classes, np.random.default_rng([seed, split]))
    return order[: max(2, round(share * len(order)))]


def resamples(episode: Ints, draws: int, seed: int) -> list[Ints]:
    """Bootstrap samples of clips by whole episodes: those of one episode are no independent evidence.

    Args:
        episode: (n,) episode of every clip.
        draws: Number of samples.
        seed: Of the stream; the same for every encoder, so that their scores are compared on the same samples.
    """
    rng = np.random.default_rng(seed)
    groups = [np.flatnonzero(episode == number) for number in np.unique(episode)]
    return [
        np.concatenate([groups[k] for k in rng.integers(len(groups), size=len(groups))]).astype(np.int64)
        for _ in range(draws)
    ]
