"""`worldmodel surprise`: intuitive physics by violation of expectation, on possible and impossible clips."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from rich.table import Table

from worldmodel.analysis.figures import save_figure
from worldmodel.analysis.surprise import film_strip, surprise_figure
from worldmodel.commands.pretrained_task import pretrained_task
from worldmodel.commands.run import Outcome, Run, RunSettings, counted
from worldmodel.control.collect import spec_of
from worldmodel.envs import resolve_env_id
from worldmodel.envs.violations import KINDS, Timing
from worldmodel.errors import ConfigError
from worldmodel.evaluation.evaluate import checkpoint_hash
from worldmodel.evaluation.masked_surprise import MaskedSurprise
from worldmodel.evaluation.surprise import (
    COMPARISONS,
    FrameDifference,
    Judge,
    LatentChange,
    ModelSurprise,
    SurpriseConfig,
    SurpriseResult,
    judge_pairs,
    pair_of,
    tabletop,
)
from worldmodel.models.checkpoint import check_spec, load_checkpoint, resolve_checkpoint
from worldmodel.models.world_model import WorldModel

RECORD, FIGURE, STRIP, PAIRS = "surprise.json", "surprise.png", "film_strip.png", "pairs"
_TITLES = {
    "same_actions": "impossible clip more surprising than its possible twin, same actions",
    "arm_held": "control: impossible clip with the arm held still against the possible twin, whose arm moves on",
    "same_pictures": "control: impossible clip against one that shows the same after the event, but from the start",
}
_FRAMES, _MASKED = "frame difference", "masked predictor"


@dataclass(kw_only=True)
class Settings(RunSettings, SurpriseConfig):
    """`SurpriseConfig`, and who is asked.

    Attributes:
        checkpoints: World models: "shipped", names of shipped ones, or folders. They must take frames of the same size
            and actions of the same block.
        pretraining: Run folder of `worldmodel pretrain` whose masked predictor is asked as well; None for none.
    """

    checkpoints: tuple[str, ...] = ("shipped",)
    pretraining: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.checkpoints = tuple(self.checkpoints)
        if not self.checkpoints:
            raise ConfigError("checkpoints is empty: there is nobody to surprise")


def run(settings: Settings, run: Run) -> Outcome:
    """Stage the pairs, ask the models, and show how often they are right."""
    env_id = resolve_env_id(settings.env)
    folders = {name: resolve_checkpoint(name, env_id).resolve() for name in settings.checkpoints}
    models = {label: load_checkpoint(folders[name]) for name, label in _labels(folders).items()}
    timing = _timing(settings, models)
    image_size = next(iter(models.values())).spec.image_size
    judges = _judges(models, settings.horizon)
    identity = {"env_id": env_id, "checkpoints": [checkpoint_hash(folder) for folder in folders.values()]}
    if settings.pretraining is not None:
        judges[_MASKED] = _masked(Path(settings.pretraining), image_size)
        identity["pretraining"] = settings.pretraining
        timing = replace(timing, every=1)
    config = SurpriseConfig(**{name: getattr(settings, name) for name in SurpriseConfig.__dataclass_fields__})
    run.note(
        f"{settings.pairs} pairs of clips for each of {len(settings.kinds)} violations, staged in {env_id}: "
        f"{settings.before} model steps, the event, {settings.after} model steps"
    )
    run.kept = f"judged pairs are in {run.folder / PAIRS}; continue with run_dir={run.folder}"
    env = tabletop(settings.env, image_size)
    try:
        for label, model in models.items():
            check_spec(model.spec, spec_of(env, env_id, image_size), label)
        with counted("judging pairs", run.progress) as progress:
            folder = run.folder / PAIRS
            result = judge_pairs(env, config, judges, timing, folder=folder, identity=identity, progress=progress)
        examples = {kind: pair_of(env, config, kind, 0, timing) for kind in settings.kinds}
    finally:
        env.close()
    record = {"env": env_id, "seed": settings.seed, "horizon": settings.horizon, **result.to_json()}
    path = run.folder / RECORD
    path.write_text(json.dumps(record, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    step_s = timing.action_block * 0.1
    figure = save_figure(surprise_figure(result, step_s), run.folder / FIGURE)
    strip = save_figure(film_strip(examples), run.folder / STRIP)
    lines = (f"record: {path}", f"figure: {figure}", f"examples: {strip}")
    return Outcome(record=record, report=(*_tables(result), *lines))


def _labels(folders: Mapping[str, Path]) -> dict[str, str]:
    """A short name for every checkpoint: how it was called, where that is short, else its folder."""
    labels: dict[str, str] = {}
    for name, folder in folders.items():
        short = name if "/" not in name else folder.parent.name if folder.name == "checkpoint" else folder.name
        labels[name] = short if list(labels.values()).count(short) == 0 else name
    return labels


def _timing(settings: Settings, models: Mapping[str, WorldModel]) -> Timing:
    """Length of the clips, which all models must be able to watch."""
    for name in ("action_block", "image_size"):
        found = {label: getattr(model.spec, name) for label, model in models.items()}
        if len(set(found.values())) > 1:
            raise ConfigError(f"the checkpoints differ in {name}: {found}; ask them in runs of their own")
    block = next(iter(models.values())).spec.action_block
    return Timing(before=settings.before, after=settings.after, action_block=block)


def _judges(models: Mapping[str, WorldModel], horizon: int) -> dict[str, Judge]:
    """Models first, then what knows no physics."""
    judges: dict[str, Judge] = {label: ModelSurprise(model, horizon) for label, model in models.items()}
    judges |= {f"{label}: latent change": LatentChange(model) for label, model in models.items()}
    return judges | {_FRAMES: FrameDifference()}


def _masked(folder: Path, image_size: int) -> MaskedSurprise:
    """The masked predictor of a pretraining run."""
    task, settings = pretrained_task(folder)
    if task.encoder.image_size != image_size:
        raise ConfigError(f"{folder} takes frames of {task.encoder.image_size} pixels, the models of {image_size}")
    return MaskedSurprise(task, settings.frame_step)


def _tables(result: SurpriseResult) -> list[Table]:
    """A table per comparison that some kind has."""
    tables = []
    for comparison in COMPARISONS:
        if all(result.accuracy(judge, None, comparison) is None for judge in result.judges):
            continue
        table = Table(title=_TITLES[comparison], caption="pairs judged right; 95 % Wilson intervals; chance is 50 %")
        table.add_column("violation")
        for judge in result.judges:
            table.add_column(judge, justify="right")
        for kind in (*result.kinds, None):
            found = [result.accuracy(judge, kind, comparison) for judge in result.judges]
            if found[0] is None:
                continue
            name = "overall" if kind is None else f"{kind}: {KINDS[kind]}"
            table.add_row(name, *("" if entry is None else _cell(entry.rate, entry.interval) for entry in found))
        tables.append(table)
    return tables


def _cell(rate: float, interval: tuple[float, float]) -> str:
    low, high = interval
    return f"{100 * rate:.0f} % [{100 * low:.0f}, {100 * high:.0f}]"
