"""Violation of expectation: is a model surprised by what cannot happen, and by that alone?

Pairs of clips come from `envs.violations`; the surprise of a clip is the error of predictions of its frames after the
event. A judge is right about a pair when the impossible clip surprises it more than the one it is compared with. Beside
the models stand judges that know no physics: how much changes from frame to frame, in pixels and in the model's latent.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from worldmodel.control.costs import PlanningModel
from worldmodel.envs import make_env
from worldmodel.envs.base import Appearance
from worldmodel.envs.tabletop import TabletopEnv
from worldmodel.envs.violations import KINDS, Clip, Pair, Timing, draw_pair
from worldmodel.errors import ConfigError, DataError
from worldmodel.evaluation.manifest import LOOKS
from worldmodel.evaluation.stats import wilson_interval
from worldmodel.types import Context, Latent

Array = NDArray[np.float64]
CHANCE = 0.5
_PAIRS_PER_SAVE = 5
COMPARISONS: dict[str, tuple[str, str]] = {
    "same_actions": ("impossible", "possible"),
    "arm_held": ("held", "possible"),
    "same_pictures": ("impossible", "always"),
}
"""Clip that should surprise more, and the one it is compared with. The first is the claim. The second is a control for
counting change: the possible clip, whose arm moves on, changes more. The third is one for looks: after the event both
show the same."""
MATCHED = "same_actions"


@dataclass(kw_only=True)
class SurpriseConfig:
    """Which pairs, and how surprise is measured.

    Attributes:
        env: Environment, short name or id; one of the tabletop.
        pairs: Pairs per kind.
        kinds: Violations; see `worldmodel.envs.violations.KINDS`.
        before: Model steps up to the event.
        after: Model steps after it.
        horizon: Model steps that are predicted ahead: the surprise of a frame is the mean error of the predictions made
            1 ... horizon steps before it.
        looks: Look of the scenes, as in a manifest: "trained" or "new_colours".
        seed: Root of the streams of all pairs.
    """

    env: str = "push"
    pairs: int = 40
    kinds: tuple[str, ...] = tuple(KINDS)
    before: int = 3
    after: int = 4
    horizon: int = 4
    looks: str = "trained"
    seed: int = 0

    def __post_init__(self) -> None:
        self.kinds = tuple(self.kinds)
        for name in ("pairs", "before", "after", "horizon"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be >= 1, got {getattr(self, name)}")
        if not self.kinds or (unknown := sorted(set(self.kinds) - set(KINDS))):
            raise ConfigError(
                f"kinds must be among {', '.join(KINDS)}, got {', '.join(unknown) if self.kinds else '[]'}"
            )
        if len(set(self.kinds)) < len(self.kinds):
            raise ConfigError(f"kinds must differ from each other, got {', '.join(self.kinds)}")
        if self.looks not in LOOKS:
            raise ConfigError(f"looks must be one of {', '.join(LOOKS)}, got {self.looks!r}")
        if self.seed < 0:
            raise ConfigError(f"seed must be >= 0, got {self.seed}")


class Judge(Protocol):
    """Says how surprising every frame of a clip is."""

    def __call__(self, clip: Clip, timing: Timing) -> Array:
        """Surprise (before + after,) at the model steps 1, 2, ...; larger is more surprising."""
        ...


class ModelSurprise:
    """Prediction error of an action-conditioned world model in its own latent.

    Args:
        model: The world model.
        horizon: See `SurpriseConfig`.
    """

    def __init__(self, model: PlanningModel, horizon: int) -> None:
        self._model, self._horizon = model, horizon

    def __call__(self, clip: Clip, timing: Timing) -> Array:
        """See `Judge`."""
        z = latents_of(self._model, clip, timing)
        steps = len(z) - 1
        actions = torch.from_numpy(clip.actions).to(z.device).view(1, steps, -1)
        total, count = np.zeros(steps), np.zeros(steps)
        for now in range(steps):
            first, last = max(0, now + 1 - self._model.window), min(now + self._horizon, steps)
            context = Context(latent=Latent(visual=z[None, first : now + 1]), actions=actions[:, first:now])
            imagined = self._model.rollout(context, actions[:, None, now:last]).visual[0, 0]
            error = (imagined.float() - z[now + 1 : last + 1].float()).square().mean(dim=(-2, -1))
            total[now:last] += error.double().cpu().numpy()
            count[now:last] += 1
        surprise: Array = total / count
        return surprise


class LatentChange:
    """How far the latent moves in a model step: a world model that expects nothing to change.

    Args:
        model: Whose latent.
    """

    def __init__(self, model: PlanningModel) -> None:
        self._model = model

    def __call__(self, clip: Clip, timing: Timing) -> Array:
        """See `Judge`."""
        change: Array = (
            latents_of(self._model, clip, timing).double().diff(dim=0).square().mean(dim=(-2, -1)).cpu().numpy()
        )
        return change


class FrameDifference:
    """Mean absolute difference of consecutive frames, share of full scale."""

    def __call__(self, clip: Clip, timing: Timing) -> Array:
        """See `Judge`."""
        difference = np.abs(np.diff(model_frames(clip, timing).astype(np.float64), axis=0)) / 255
        change: Array = difference.mean(axis=(1, 2, 3))
        return change


def model_frames(clip: Clip, timing: Timing) -> NDArray[np.uint8]:
    """(before + after + 1, Y, X, 3): the frames of a clip that are a model step apart."""
    frames: NDArray[np.uint8] = clip.pixels[:: timing.action_block // timing.frame_step]
    return frames


def latents_of(model: PlanningModel, clip: Clip, timing: Timing) -> torch.Tensor:
    """Latents (before + after + 1, N, D) of the frames that are a model step apart."""
    return model.encode_batch(torch.from_numpy(np.ascontiguousarray(model_frames(clip, timing))))


@dataclass(frozen=True, kw_only=True)
class PairScores:
    """What every judge felt about the clips of a scene.

    Attributes:
        kind: Violation.
        index: Number of the pair within its kind.
        surprise: Clip ("possible", "impossible", and the controls of the kind) to judge to (before + after,).
    """

    kind: str
    index: int
    surprise: Mapping[str, Mapping[str, Sequence[float]]]


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """How often a judge is right.

    Attributes:
        right: Pairs in which the impossible clip surprises more; equal surprise counts as wrong.
        pairs: Pairs judged.
    """

    right: int
    pairs: int

    @property
    def rate(self) -> float:
        """Share of the pairs."""
        return self.right / self.pairs

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval."""
        return wilson_interval(self.right, self.pairs)

    def to_json(self) -> dict[str, Any]:
        """JSON-ready form."""
        low, high = self.interval
        above = low > CHANCE
        return {
            "rate": self.rate,
            "interval": [low, high],
            "right": self.right,
            "pairs": self.pairs,
            "above_chance": above,
        }


@dataclass(frozen=True, kw_only=True)
class SurpriseResult:
    """Judged pairs.

    Attributes:
        pairs: All of them.
        judges: Names of the judges, models first.
        timing: Length of the clips.
    """

    pairs: Sequence[PairScores]
    judges: Sequence[str]
    timing: Timing

    @property
    def kinds(self) -> list[str]:
        """Kinds that were judged."""
        return list(dict.fromkeys(pair.kind for pair in self.pairs))

    def of(self, kind: str | None) -> list[PairScores]:
        """Pairs of a kind; None for all."""
        return [pair for pair in self.pairs if kind in (None, pair.kind)]

    def accuracy(self, judge: str, kind: str | None, comparison: str = MATCHED) -> Accuracy | None:
        """How often a judge is right about a kind (None: about all); None where no pair has this comparison."""
        more, less = COMPARISONS[comparison]
        felt = [pair.surprise for pair in self.of(kind) if {more, less} <= pair.surprise.keys()]
        right = sum(self._after(clips[more][judge]) > self._after(clips[less][judge]) for clips in felt)
        return Accuracy(right=right, pairs=len(felt)) if felt else None

    def _after(self, surprise: Sequence[float]) -> float:
        """Surprise of a clip: the mean over the frames after the event."""
        return float(np.mean(surprise[self.timing.before :]))

    def curve(self, judge: str, kind: str, clip: str) -> tuple[Array, Array] | None:
        """Mean surprise of a clip and half the width of its 95 % interval (normal), (before + after,) each.

        Args:
            judge: Whose.
            kind: Violation.
            clip: "possible", "impossible", "held" or "always"; None comes back where the kind has no such clip.
        """
        found = [pair.surprise[clip][judge] for pair in self.of(kind) if clip in pair.surprise]
        if not found:
            return None
        values = np.array(found)
        spread = values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1])
        return values.mean(axis=0), 1.96 * spread / math.sqrt(len(values))

    def to_json(self) -> dict[str, Any]:
        """JSON-ready form: accuracies by comparison, judge and kind ("overall" among them), and every surprise."""
        accuracies: dict[str, Any] = {}
        for comparison in COMPARISONS:
            for judge in self.judges:
                found = {kind: self.accuracy(judge, kind, comparison) for kind in self.kinds}
                found["overall"] = self.accuracy(judge, None, comparison)
                rows = {kind: value.to_json() for kind, value in found.items() if value is not None}
                if rows:
                    accuracies.setdefault(comparison, {})[judge] = rows
        return {
            "chance": CHANCE,
            "timing": asdict(self.timing),
            "judges": list(self.judges),
            "accuracy": accuracies,
            "pairs": [asdict(pair) for pair in self.pairs],
        }


def pair_of(env: TabletopEnv, config: SurpriseConfig, kind: str, index: int, timing: Timing) -> Pair:
    """One pair; it depends on its arguments alone."""
    rng = np.random.default_rng([config.seed, list(KINDS).index(kind), index])
    look = Appearance() if config.looks == "trained" else Appearance.new_colours(rng)
    return draw_pair(env, kind, rng, timing, look)


def tabletop(env: str, image_size: int) -> TabletopEnv:
    """Environment whose simulator can be tampered with.

    Raises:
        ConfigError: It is none of the tabletop.
    """
    made = make_env(env, image_size=image_size)
    if not isinstance(made, TabletopEnv):
        made.close()
        raise ConfigError(f"env must be one of the tabletop family (reach, push), got {env!r}")
    return made


def judge_pairs(
    env: TabletopEnv,
    config: SurpriseConfig,
    judges: Mapping[str, Judge],
    timing: Timing,
    *,
    folder: Path | None = None,
    identity: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> SurpriseResult:
    """Draw and judge all pairs.

    Interrupting is safe when `folder` is given: the same call goes on, also with more pairs or other kinds.

    Args:
        env: Environment that draws pictures of the size the judges take.
        config: Which pairs.
        judges: By name, models first.
        timing: Length of the clips.
        folder: Keeps one file per kind; None keeps nothing.
        identity: JSON-ready description of what the judges are; files of other ones are refused.
        progress: Told pairs done and pairs in total.

    Raises:
        ConfigError: The folder holds pairs that were drawn or judged otherwise.
        DataError: A file in it is no record of pairs, or a judge's surprise is not finite.
        SimulationError: A violation cannot be staged.
    """
    drawn = {name: value for name, value in asdict(config).items() if name not in ("kinds", "pairs")}
    mark = json.loads(json.dumps({**drawn, **asdict(timing), "judges": list(judges), **(identity or {})}))
    pairs: list[PairScores] = []
    total = config.pairs * len(config.kinds)
    for kind in config.kinds:
        path = None if folder is None else folder / f"{kind}.json"
        known = [] if path is None else _read(path, mark)
        for index in range(len(known), config.pairs):
            known.append(_judge(pair_of(env, config, kind, index, timing), index, judges))
            if path is not None and (index + 1 == config.pairs or (index + 1) % _PAIRS_PER_SAVE == 0):
                _write(path, mark, known)
            progress(len(pairs) + len(known), total)
        pairs += known[: config.pairs]
        progress(len(pairs), total)
    return SurpriseResult(pairs=pairs, judges=list(judges), timing=timing)


def _judge(pair: Pair, index: int, judges: Mapping[str, Judge]) -> PairScores:
    surprise: dict[str, dict[str, list[float]]] = {}
    for clip_name, clip in pair.clips.items():
        felt = {name: judge(clip, pair.scene.timing) for name, judge in judges.items()}
        for name, values in felt.items():
            if not np.isfinite(values).all():
                where = f"the {clip_name} clip of pair {index} of {pair.scene.kind}"
                raise DataError(f"the surprise of {name} is not finite in {where}: {values.tolist()}")
        surprise[clip_name] = {name: values.tolist() for name, values in felt.items()}
    return PairScores(kind=pair.scene.kind, index=index, surprise=surprise)


def _write(path: Path, mark: Mapping[str, Any], pairs: Sequence[PairScores]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    record = {"settings": mark, "pairs": [asdict(pair) for pair in pairs]}
    partial.write_text(json.dumps(record, allow_nan=False) + "\n", encoding="utf-8")
    partial.replace(path)


def _read(path: Path, mark: Mapping[str, Any]) -> list[PairScores]:
    """Judged pairs of a kind."""
    if not path.is_file():
        return []
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        settings, pairs = record["settings"], [PairScores(**entry) for entry in record["pairs"]]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is no record of judged pairs ({error}); remove it to judge them again") from error
    differing = sorted(key for key in {*settings, *mark} if settings.get(key) != mark.get(key))
    if differing:
        key = differing[0]
        raise ConfigError(
            f"{path} was made with {key}={settings.get(key)!r}, this run has {mark.get(key)!r}; choose another run_dir"
        )
    return pairs
