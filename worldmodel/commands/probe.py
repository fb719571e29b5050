"""`worldmodel probe`: frozen evaluation. What attentive probes read from encoders, by number of labels.

A cell is one task, one encoder, one share of the labels and one random split: sweep, train, test. Every finished cell
is kept: the same command goes on with the next one, and a folder of cells alone is enough for tables and plot.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldmodel.analysis.figures import save_figure
from worldmodel.analysis.probe_curves import label_curves
from worldmodel.commands.probe_arms import ArmEncoders, parse_arms
from worldmodel.commands.probe_cost import plan
from worldmodel.commands.run import Outcome, Run, RunSettings, counted
from worldmodel.data.distractor import DistractorConfig
from worldmodel.data.episodes import EpisodeDataset
from worldmodel.errors import ConfigError, DataError
from worldmodel.evaluation.clip_choice import ClipChoice, labelled_rows, resamples
from worldmodel.evaluation.probe_clips import build_task, check_data
from worldmodel.evaluation.probe_results import DRAWS, ProbeCell, ProbeResults, ProbeRow, read_cells
from worldmodel.evaluation.probe_tasks import TASKS, ProbeTask
from worldmodel.learning.attentive_probe import AttentiveProbeConfig, clip_tokens, token_grid
from worldmodel.learning.probe_training import ProbeFitConfig, ProbeProblem, fit_probe
from worldmodel.models.encoders import Encoder
from worldmodel.models.runtime import default_device

__all__ = ["Evaluation", "Settings", "frozen_tokens", "plan", "run"]

FIGURE, RECORD, TABLE, MARKDOWN = "probe.png", "probe.json", "probe.csv", "probe.md"
_ENCODE_CLIPS = 32


@dataclass(kw_only=True)
class Settings(RunSettings, ClipChoice):
    """What is compared, on which clips, and how.

    Attributes:
        data: Episode file; its labels are computed from the true states in it.
        test_data: Episode file of the test clips; None keeps `test_fraction` of `data` for them.
        tasks: Some of kind, action, pose and contact.
        arms: Encoders by name, each a mapping of the fields of `ProbeArm`; null takes one of the preset out.
        labels: Shares of the labels that are given out, each in (0, 1].
        splits: Random splits of the labels.
        candidate: Arm that is compared with every other one.
        overlap: For `contact`: least intersection over union of a detection that counts.
        head: Sizes of the probe.
        fit: Sweep and optimisation, the same for every arm that does not bring learning rates of its own.
        distractor: Drawn over every frame of every clip, and over the video of encoders that are pretrained here.
        pretrain: Overrides of `worldmodel pretrain` for every arm that is pretrained here.
        max_minutes: No new cell is begun after this many minutes; None runs all.
        cells: Folder of finished cells; None means `cells` in the run folder.
        encoders: Folder of the encoders pretrained here, their runs in `pretrain` beside it; None means `encoders` in
            the run folder. Another grid with the same pretraining may share it.
    """

    data: str
    test_data: str | None = None
    tasks: tuple[str, ...] = TASKS
    arms: dict[str, Any] = field(default_factory=dict)
    labels: tuple[float, ...] = (0.05, 0.1, 0.5, 1.0)
    splits: int = 3
    candidate: str = "vjepa"
    overlap: float = 0.5
    head: AttentiveProbeConfig = field(default_factory=AttentiveProbeConfig)
    fit: ProbeFitConfig = field(default_factory=ProbeFitConfig)
    distractor: DistractorConfig = field(default_factory=DistractorConfig)
    pretrain: list[str] = field(default_factory=list)
    max_minutes: float | None = None
    cells: str | None = None
    encoders: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if unknown := sorted(set(self.tasks) - set(TASKS)):
            raise ConfigError(f"tasks must be among {', '.join(TASKS)}, got {', '.join(unknown)}")
        for name in ("tasks", "labels"):
            value = getattr(self, name)
            if not value or len(set(value)) < len(value):
                raise ConfigError(f"{name} must list different values, at least one, got {list(value)}")
        if not all(0 < share <= 1 for share in self.labels):
            raise ConfigError(f"labels must be shares in (0, 1], got {list(self.labels)}")
        if self.splits < 1:
            raise ConfigError(f"splits must be >= 1, got {self.splits}")
        if not 0 < self.overlap <= 1:
            raise ConfigError(f"overlap must be in (0, 1], got {self.overlap}")
        parse_arms(self.arms, self.candidate)

    @property
    def choice(self) -> ClipChoice:
        """The part that says which clips are taken."""
        return ClipChoice(**{item.name: getattr(self, item.name) for item in fields(ClipChoice)})

    @property
    def pretraining(self) -> list[str]:
        """Overrides of every pretraining, the distractor among them."""
        facts = self.distractor.facts or {}
        return [*self.pretrain, *(f"distractor.{name}={value}" for name, value in facts.items())]

    def cell_list(self) -> list[ProbeCell]:
        """Every cell, in the order in which they are run: clips and frozen tokens are made once and used in a row."""
        return [
            ProbeCell(task=task, arm=arm, share=share, split=split)
            for task in self.tasks
            for arm in parse_arms(self.arms, self.candidate)
            for split in range(self.splits)
            for share in self.labels
        ]


@dataclass(frozen=True, kw_only=True)
class _Read:
    """What the probes of one arm read in one task.

    Attributes:
        key: Task, arm and number of the encoder.
        inputs: Frozen tokens, or clips for an encoder in training.
        encoder: The encoder.
    """

    key: tuple[str, str, int]
    inputs: Tensor
    encoder: Encoder


class Evaluation:
    """The grid at work.

    Args:
        settings: The grid.
        run: Run folder.

    Raises:
        ConfigError: An override of a pretraining is wrong, or a finished cell was made with other settings.
        CheckpointError: A checkpoint is missing.
        DataError: An episode file is missing or does not hold what the labels need.
    """

    def __init__(self, settings: Settings, run: Run) -> None:
        self._settings, self._run = settings, run
        self._arms = parse_arms(settings.arms, settings.candidate)
        folder = Path(settings.encoders) if settings.encoders is not None else run.folder / "encoders"
        self.encoders = ArmEncoders(self._arms, settings.pretraining, settings.data, folder)
        self.encoders.check()
        look = settings.distractor
        self._data = EpisodeDataset.open(settings.data, distractor=look)
        # the episodes of both files are numbered from 0, and must not share their streams
        other = replace(look, seed=look.seed + 1)
        path = settings.test_data
        self._test_data = None if path is None else EpisodeDataset.open(path, distractor=other)
        check_data(self._data, self._test_data)
        self.folder = Path(settings.cells) if settings.cells is not None else run.folder / "cells"
        self.cells = settings.cell_list()
        self._task: ProbeTask | None = None
        self._read: _Read | None = None
        self._refuse_others()

    def _refuse_others(self) -> None:
        for row in read_cells(self.folder):
            if row.cell in self.cells and row.settings != self._identity(row.cell):
                raise ConfigError(
                    f"{self.folder / row.cell.name}.json was made with other settings or data; choose another run_dir"
                )

    def _identity(self, cell: ProbeCell) -> dict[str, Any]:
        """Everything that the outcome of a cell depends on, as it is after a round trip through JSON."""
        settings = self._settings
        facts = {
            "data": self._data.content_hash,
            "test_data": None if self._test_data is None else self._test_data.content_hash,
            "clips": asdict(settings.choice),
            "overlap": settings.overlap if cell.task == "contact" else None,
            "head": asdict(settings.head),
            "fit": asdict(self._arms[cell.arm].fit(settings.fit)),
            "encoder": self.encoders.identity(cell.arm, cell.split),
        }
        found: dict[str, Any] = json.loads(json.dumps(facts))
        return found

    def missing(self) -> list[ProbeCell]:
        """Cells that are not finished, in order."""
        done = {row.cell for row in read_cells(self.folder)}
        return [cell for cell in self.cells if cell not in done]

    def run(self) -> Outcome:
        """Run the cells that are not there yet, then put all that are into tables.

        Raises:
            DataError: No cell is finished.
        """
        self.fill()
        return self._outcome()

    def fill(self) -> None:
        """Run the cells that are not there yet, as far as `max_minutes` allows."""
        begin, missing = time.perf_counter(), self.missing()
        run, limit = self._run, self._settings.max_minutes
        run.note(f"{len(self.cells)} cells, {len(self.cells) - len(missing)} of them done before")
        for number, cell in enumerate(missing, start=1):
            minutes = (time.perf_counter() - begin) / 60
            if limit is not None and minutes >= limit:
                run.note(f"{limit:g} minutes are over; the same command goes on with {cell.name}")
                break
            run.kept = f"finished cells are in {self.folder}; continue with the same command, run_dir={run.folder}"
            run.note(f"[{number}/{len(missing)}] {cell.name}, after {minutes:.0f} minutes")
            self.make(cell)

    def make(self, cell: ProbeCell) -> None:
        """Train and test one probe, and write its cell."""
        settings, task = self._settings, self._task_of(cell.task)
        read = self._read_of(cell, task)
        labelled = labelled_rows(task.classes[: task.num_pool], cell.share, cell.split, settings.seed)
        known = task.fitted_to(labelled)
        began = time.perf_counter()
        problem = ProbeProblem(
            inputs=read.inputs,
            encoder=read.encoder if self._arms[cell.arm].finetune else None,
            grid=token_grid(read.encoder, task.pixels.shape[1]),
            embed_dim=read.encoder.embed_dim,
            targets=known.targets.to(read.inputs.device),
            num_queries=task.num_queries,
            num_outputs=task.num_outputs,
            loss=known.loss,
            score=known.score,
        )
        with counted(cell.name, self._run.progress) as update:
            fit = self._arms[cell.arm].fit(settings.fit)
            found = fit_probe(problem, labelled, settings.head, fit, seed=cell.split, progress=update)
        seconds = time.perf_counter() - began
        rows = task.test_rows
        outputs = found.reader.predict(read.inputs, rows)
        score = known.score(outputs, rows)
        if not np.isfinite(score):
            raise DataError(f"the test clips of {cell.task} have no score: nothing is there to be found; test on more")
        samples = resamples(task.episode[rows], DRAWS, settings.seed)
        draws = [known.score(outputs[sample], rows[sample]) for sample in samples]
        row = ProbeRow(
            cell=cell,
            settings=self._identity(cell),
            metric=task.metric,
            chance=task.chance,
            labelled=len(labelled),
            score=score,
            draws=[round(value, 6) if np.isfinite(value) else None for value in draws],
            details=known.details(outputs, rows),
            lr=found.lr,
            weight_decay=found.weight_decay,
            validation=found.validation,
            seconds=round(seconds, 2),
        )
        row.save(self.folder)

    def _task_of(self, name: str) -> ProbeTask:
        if self._task is None or self._task.name != name:
            self._task = self._read = None  # hundreds of megabytes each
            self._run.note(f"choosing, labelling and reading the clips of {name}")
            with counted(f"clips of {name}", self._run.progress) as update:
                self._task = build_task(
                    name,
                    self._data,
                    self._settings.choice,
                    test_dataset=self._test_data,
                    overlap=self._settings.overlap,
                    progress=update,
                )
        return self._task

    def _read_of(self, cell: ProbeCell, task: ProbeTask) -> _Read:
        key = (cell.task, cell.arm, self.encoders.seed(cell.arm, cell.split))
        if self._read is None or self._read.key != key:
            self._read = None
            self.encoders.ensure(cell.arm, cell.split, self._run)
            arm, device = self._arms[cell.arm], default_device()
            encoder = self.encoders.build(cell.arm, cell.split).to(device)
            pixels = torch.from_numpy(task.pixels)
            if arm.still:
                pixels = pixels[:, -1:].expand_as(pixels).contiguous()
            if arm.finetune:
                inputs = pixels.to(device)
            else:
                with counted(f"tokens of {cell.arm}", self._run.progress) as update:
                    inputs = frozen_tokens(encoder, pixels, update)
            self._read = _Read(key=key, inputs=inputs, encoder=encoder)
        return self._read

    def rows(self) -> list[ProbeRow]:
        """Finished cells of the grid.

        Raises:
            DataError: There is none.
        """
        rows = [row for row in read_cells(self.folder) if row.cell in set(self.cells)]
        if not rows:
            raise DataError(f"{self.folder} holds no finished cell yet; raise max_minutes")
        return rows

    def _outcome(self) -> Outcome:
        rows = self.rows()
        results = ProbeResults(rows=rows, arms=list(self._arms), candidate=self._settings.candidate)
        missing = [cell.name for cell in self.missing()]
        record = {**results.to_json(), "folder": str(self.folder), "missing": missing}
        folder = self._run.folder
        for name, text in (
            (RECORD, json.dumps(record, indent=2) + "\n"),
            (TABLE, results.to_csv()),
            (MARKDOWN, results.to_markdown() + "\n"),
        ):
            partial = folder / f"{name}.partial"
            partial.write_text(text, encoding="utf-8")
            partial.replace(folder / name)
        picture = save_figure(label_curves(results), folder / FIGURE)
        left = f"{len(missing)} cells are left; the same command goes on" if missing else "every cell is finished"
        lines = (f"plot: {picture}", f"record: {folder / RECORD} (also {TABLE}, {MARKDOWN})", left)
        return Outcome(record=record, report=(*results.tables(), *lines))


def run(settings: Settings, run: Run) -> Outcome:
    """Run what is missing of the grid and report all of it."""
    return Evaluation(settings, run).run()


@torch.no_grad()
def frozen_tokens(encoder: Encoder, pixels: Tensor, progress: Callable[[int, int], None] | None = None) -> Tensor:
    """Tokens (M, K, D) float16 of clips (M, T, Y, X, 3) uint8, on the device of the encoder.

    Raises:
        DataError: A token is not finite in float16.
    """
    device = next(iter(encoder.state_dict().values())).device
    blocks, done = [], 0
    for block in pixels.split(_ENCODE_CLIPS):
        blocks.append(clip_tokens(encoder, block.to(device)).half())
        if not torch.isfinite(blocks[-1]).all():
            raise DataError("the encoder gives tokens that are NaN, infinite or beyond float16; check its weights")
        done += len(block)
        if progress is not None:
            progress(done, len(pixels))
    return torch.cat(blocks)
