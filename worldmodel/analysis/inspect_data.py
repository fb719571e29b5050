"""What is in an episode file, and what looks wrong with it.

Every check here is for a mistake that shows up much later as a model that does not learn: pictures that do not move,
actions that are cut off, an object nobody touches, episodes recorded twice.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import numpy as np
from numpy.typing import NDArray

from worldmodel.data.episodes import EpisodeDataset
from worldmodel.errors import ConfigError, DataError

MAX_DUPLICATE_SHARE = 0.2
"""Largest share of frames equal to the one before that is not warned about."""
MAX_CLIPPED_SHARE = 0.3
"""Largest share of action entries on a bound that is not warned about."""
MIN_CONTACT_SHARE = 0.02
"""Smallest share of frames in contact that is not warned about."""
MAX_STRAY_M = 1.0
"""Distance from its median, metres, beyond which a thing is taken to have left the scene."""
_GRID_CELLS = 10
_NAMED_EPISODES = 8


@dataclass(frozen=True, kw_only=True)
class EntryStats:
    """Statistics of one entry of an array over all frames, in its own units.

    Attributes:
        array: Array it is from.
        name: Name of the entry.
        mean: Mean.
        std: Standard deviation.
        low: Minimum.
        high: Maximum.
    """

    array: str
    name: str
    mean: float
    std: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class PixelFindings:
    """What one pass over the pictures found.

    Attributes:
        mean: Mean brightness in [0, 255].
        std: Standard deviation over pixels and frames.
        duplicate_share: Share of frames equal to the frame before them.
        static: Episodes in which no pixel ever changes.
        repeated: Pairs (later, earlier) of episodes with the same pictures.
    """

    mean: float
    std: float
    duplicate_share: float
    static: list[int] = field(default_factory=list)
    repeated: list[tuple[int, int]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class DataSummary:
    """Summary of an episode file.

    Attributes:
        path: The file.
        size_bytes: Its size on disk.
        content_hash: Identity of its content.
        episodes: Number of episodes.
        frames: Number of frames.
        minutes: Simulated time.
        episodes_per_env: Episodes by environment id.
        episodes_per_policy: Episodes by policy.
        episode_len: Shortest and longest episode, frames.
        shapes: Shape and dtype of every array.
        stats: Statistics of every proprioceptive, action and privileged entry.
        pixel_mean: Mean brightness in [0, 255].
        pixel_std: Standard deviation of brightness.
        contact_rate: Share of frames in which the gripper touches the object.
        success_rate: Share of successful episodes by "environment, policy".
        coverage: For everything with an x and a y among the privileged entries: share of a 10 x 10 grid
            between the 1st and 99th percentiles that was visited.
        clipped_share: Share of action entries on a bound.
        duplicate_share: Share of frames equal to the frame before them.
        warnings: What looks wrong, one sentence each.
    """

    path: str
    size_bytes: int
    content_hash: str
    episodes: int
    frames: int
    minutes: float
    episodes_per_env: dict[str, int]
    episodes_per_policy: dict[str, int]
    episode_len: tuple[int, int]
    shapes: dict[str, str]
    stats: list[EntryStats]
    pixel_mean: float
    pixel_std: float
    contact_rate: float
    success_rate: dict[str, float]
    coverage: dict[str, float]
    clipped_share: float
    duplicate_share: float
    warnings: list[str]


def inspect(path: str | Path) -> DataSummary:
    """Read a whole episode file, verify it against its digests and summarise it.

    Raises:
        DataError: The file is missing, damaged, altered, empty or holds NaN.
    """
    dataset = EpisodeDataset.open(path)
    if not len(dataset):
        raise DataError(f"{dataset.path} holds no episodes; record some with `worldmodel collect`")
    pixels = _scan_pixels(dataset)
    clipped_share = _clipped_share(dataset)
    index = dataset.index
    return DataSummary(
        path=str(dataset.path),
        size_bytes=dataset.path.stat().st_size,
        content_hash=dataset.content_hash,
        episodes=len(dataset),
        frames=dataset.num_frames,
        minutes=float((index.length - 1).sum()) * dataset.spec.control_dt_s / 60,
        episodes_per_env=dict(Counter(index.env_id.tolist())),
        episodes_per_policy=dict(Counter(index.policy.tolist())),
        episode_len=(int(index.length.min()), int(index.length.max())),
        shapes={
            name: f"{(dataset.num_frames, *row)} {np.dtype(dtype)}"
            for name, (row, dtype) in dataset.spec.array_layout().items()
        },
        stats=_entry_stats(dataset),
        pixel_mean=pixels.mean,
        pixel_std=pixels.std,
        contact_rate=float(dataset.contact.mean()),
        success_rate=_success_rate(dataset),
        coverage=_coverage(dataset),
        clipped_share=clipped_share,
        duplicate_share=pixels.duplicate_share,
        warnings=_warnings(dataset, pixels, clipped_share),
    )


def contact_sheet(path: str | Path, out_png: str | Path, *, rows: int = 8, columns: int = 8, scale: int = 2) -> Path:
    """Write a picture of episodes spread over the file (rows), each at equal intervals in time (columns).

    Args:
        path: Episode file.
        out_png: PNG to write.
        rows: Episodes shown, fewer when the file has fewer.
        columns: Frames shown of each.
        scale: Whole-number enlargement.

    Raises:
        DataError: The file is unusable or empty.
        ConfigError: A number is below 1.
    """
    for name, value in (("rows", rows), ("columns", columns), ("scale", scale)):
        if value < 1:
            raise ConfigError(f"{name} must be >= 1, got {value}")
    dataset = EpisodeDataset.open(path)
    if not len(dataset):
        raise DataError(f"{dataset.path} holds no episodes; record some with `worldmodel collect`")
    chosen = np.unique(np.linspace(0, len(dataset) - 1, rows).round().astype(int))
    strips = []
    for i in chosen:
        frames = dataset.episode(int(i)).pixels
        shown = frames[np.linspace(0, len(frames) - 1, columns).round().astype(int)]
        framed = np.pad(shown, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=255)
        strips.append(np.concatenate(list(framed), axis=1))
    sheet = np.concatenate(strips).repeat(scale, axis=0).repeat(scale, axis=1)
    out = Path(out_png)
    out.parent.mkdir(parents=True, exist_ok=True)
    imageio.imwrite(out, sheet, extension=".png")
    return out


def _scan_pixels(dataset: EpisodeDataset) -> PixelFindings:
    """One pass over all pictures, one episode in memory at a time."""
    total = squares = 0.0
    duplicates = steps = 0
    static: list[int] = []
    repeated: list[tuple[int, int]] = []
    seen: dict[bytes, int] = {}
    for i in range(len(dataset)):
        frames = dataset.verified_episode(i).pixels
        values = frames.astype(np.float32)
        total += float(values.mean(dtype=np.float64)) * len(frames)
        squares += float(np.square(values).mean(dtype=np.float64)) * len(frames)
        moved = (frames[1:] != frames[:-1]).any(axis=(1, 2, 3))
        duplicates += int((~moved).sum())
        steps += len(moved)
        if not moved.any():
            static.append(i)
        first = seen.setdefault(hashlib.sha256(frames.data).digest(), i)
        if first != i:
            repeated.append((i, first))
    mean = total / dataset.num_frames
    std = max(squares / dataset.num_frames - mean**2, 0.0) ** 0.5
    return PixelFindings(mean=mean, std=std, duplicate_share=duplicates / steps, static=static, repeated=repeated)


def _taken_actions(dataset: EpisodeDataset) -> NDArray[np.float32]:
    """Actions without the zero rows that fill the last frame of each episode."""
    is_last = np.zeros(dataset.num_frames, np.bool_)
    is_last[dataset.index.start + dataset.index.length - 1] = True
    return dataset.action[~is_last]


def _clipped_share(dataset: EpisodeDataset) -> float:
    actions = _taken_actions(dataset)
    low, high = np.array(dataset.spec.action_low), np.array(dataset.spec.action_high)
    return float(((actions <= low) | (actions >= high)).mean())


def _entry_stats(dataset: EpisodeDataset) -> list[EntryStats]:
    spec = dataset.spec
    tables: list[tuple[str, tuple[str, ...], NDArray[Any]]] = [
        ("proprio", spec.proprio_names, dataset.proprio),
        ("action", tuple(f"action_{i}" for i in range(spec.action_dim)), _taken_actions(dataset)),
        ("privileged", spec.privileged_names, dataset.privileged),
    ]
    return [
        EntryStats(
            array=array,
            name=name,
            mean=float(column.mean(dtype=np.float64)),
            std=float(column.std(dtype=np.float64)),
            low=float(column.min()),
            high=float(column.max()),
        )
        for array, names, values in tables
        for name, column in zip(names, values.T, strict=True)
    ]


def _success_rate(dataset: EpisodeDataset) -> dict[str, float]:
    index = dataset.index
    rates = {}
    for env_id, policy in sorted(set(zip(index.env_id.tolist(), index.policy.tolist(), strict=True))):
        chosen = (index.env_id == env_id) & (index.policy == policy)
        rates[f"{env_id}, {policy}"] = float(index.success[chosen].mean())
    return rates


def _coverage(dataset: EpisodeDataset) -> dict[str, float]:
    names = dataset.spec.privileged_names
    shares = {}
    for name in names:
        thing, axis = name[:-2], name[-2:]
        if axis != "_x" or f"{thing}_y" not in names:
            continue
        xy = dataset.privileged[:, [names.index(name), names.index(f"{thing}_y")]]
        low, high = np.percentile(xy, [1, 99], axis=0)
        ranges = [(a, b) if b > a else (a - 0.5, a + 0.5) for a, b in zip(low, high, strict=True)]
        counts, _, _ = np.histogram2d(xy[:, 0], xy[:, 1], bins=_GRID_CELLS, range=ranges)
        shares[thing] = float((counts > 0).mean())
    return shares


def _strays(dataset: EpisodeDataset) -> dict[str, list[int]]:
    """By thing: episodes in which a position among the privileged entries (metres) is far from the usual."""
    strays: dict[str, set[int]] = {}
    for name, values in zip(dataset.spec.privileged_names, dataset.privileged.T, strict=True):
        if name[-2:] in ("_x", "_y", "_z"):
            is_far = np.abs(values - np.median(values)) > MAX_STRAY_M
            episodes = np.searchsorted(dataset.index.start, np.flatnonzero(is_far), side="right") - 1
            strays.setdefault(name[:-2], set()).update(episodes.tolist())
    return {thing: sorted(episodes) for thing, episodes in strays.items() if episodes}


def _warnings(dataset: EpisodeDataset, pixels: PixelFindings, clipped_share: float) -> list[str]:
    found = []
    if pixels.static:
        found.append(f"{len(pixels.static)} episodes in which no pixel changes: {_some(pixels.static)}")
    if pixels.repeated:
        later = [pair[0] for pair in pixels.repeated]
        found.append(f"{len(later)} episodes show the same pictures as an earlier one: {_some(later)}")
    if pixels.duplicate_share > MAX_DUPLICATE_SHARE:
        found.append(f"{pixels.duplicate_share:.0%} of frames equal the frame before them")
    if clipped_share > MAX_CLIPPED_SHARE:
        found.append(f"{clipped_share:.0%} of action entries lie on a bound: the policy asks for more than is allowed")
    contact_rate = float(dataset.contact.mean())
    if contact_rate < MIN_CONTACT_SHARE:
        found.append(f"the object is touched in {contact_rate:.1%} of frames: too rarely to learn how it moves")
    for name, strays in _strays(dataset).items():
        found.append(f"{name} strays over {MAX_STRAY_M:g} m from its median in {len(strays)} episodes: {_some(strays)}")
    constant = [entry.name for entry in _entry_stats(dataset) if entry.array != "privileged" and entry.std < 1e-6]
    if constant:
        found.append(f"entries that never change: {', '.join(constant)}")
    return found


def _some(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:_NAMED_EPISODES]))
    return shown + (", ..." if len(numbers) > _NAMED_EPISODES else "")
