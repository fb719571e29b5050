"""The low-label comparison: which encoder needs the fewest episodes with actions, and whether new colours break it.

A cell is one arm, one training seed and one number of labelled episodes: train, then plan on the same held-out tasks
under every look. Everything a cell runs is an ordinary command, whose overrides are kept in its file, and every
finished cell is kept: the same call goes on with the next one, and a folder of cells alone is enough for the tables.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from worldmodel.analysis.figures import save_figure
from worldmodel.analysis.success_curves import low_label_figure
from worldmodel.commands import evaluate, pretrain, train
from worldmodel.commands.low_label_grid import LowLabelConfig
from worldmodel.commands.material import PretrainedEncoder
from worldmodel.commands.run import Outcome, Run
from worldmodel.config import load
from worldmodel.data.episodes import EpisodeDataset
from worldmodel.envs import ENV_IDS, make_env, resolve_env_id
from worldmodel.errors import ConfigError, DataError
from worldmodel.evaluation.baselines import ManifestConfig, OracleAgents, make_manifest
from worldmodel.evaluation.low_label import Cell, Results, Row, read_rows
from worldmodel.evaluation.manifest import Manifest, build_manifest, load_manifest
from worldmodel.models.vit import ViTConfig

FIGURE, RECORD = "low_label.png", "low_label.json"
ORACLE = ManifestConfig().oracle
"""Budget of the oracle beside the arms, that of `worldmodel manifest`."""
_VALIDATION = "validation"


class Comparison:
    """The grid at work: what each cell runs, and where.

    Args:
        config: The grid.
        data: Episode file of one environment; it gives the video and the labelled episodes.
        workers: Processes of the evaluations.
        run: Run folder.
    """

    def __init__(self, config: LowLabelConfig, data: str, workers: int, run: Run) -> None:
        self._config, self._data, self._workers, self._run = config, data, workers, run
        self._arms = config.parsed()
        self.folder = Path(config.cells) if config.cells is not None else run.folder / "cells"
        self.cells = [
            Cell(arm=name, seed=seed, labels=labels)
            for labels in config.labels
            for seed in range(max(arm.seeds for arm in self._arms.values()))  # every arm once before one twice
            for name, arm in self._arms.items()
            if seed < (1 if labels in config.first_seed else arm.seeds) and (arm.labels is None or labels in arm.labels)
        ]

    def run(self) -> Outcome:
        """Run the cells that are not there yet, then compare all that are.

        Raises:
            DataError: No cell is finished, or one was made from another recording.
        """
        self._check_recording()
        begin, missing, only = time.perf_counter(), self.missing(), self._config.only
        self._run.note(f"{len(self.cells)} cells, {len(self.cells) - len(missing)} of them done before")
        if only is not None:
            missing = [cell for cell in missing if cell.arm in only]
            self._run.note(f"{len(missing)} of the others belong to {', '.join(only)}")
        for number, cell in enumerate(missing, start=1):
            minutes = (time.perf_counter() - begin) / 60
            if self._config.max_minutes is not None and minutes >= self._config.max_minutes:
                self._run.note(
                    f"{self._config.max_minutes} minutes are over; the same command goes on with {cell.name}"
                )
                break
            folder = self._run.folder
            self._run.kept = f"finished cells are in {self.folder}; continue with the same command and run_dir={folder}"
            self._run.note(f"[{number}/{len(missing)}] {cell.name}, after {minutes:.0f} minutes")
            self.make(cell)
        return self._outcome()

    def _outcome(self) -> Outcome:
        rows = read_rows(self.folder)
        if not rows:
            raise DataError(f"{self.folder} holds no finished cell yet; raise low_label.max_minutes")
        results = Results(rows=rows, floors=self.floors(), candidate=self._config.candidate)
        record = {**results.to_json(), "cells": str(self.folder), "missing": [cell.name for cell in self.missing()]}
        path = self._run.folder / RECORD
        path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        picture = save_figure(low_label_figure(results), self._run.folder / FIGURE)
        return Outcome(record=record, report=(*results.tables(), f"plot: {picture}", f"record: {path}"))

    def check(self) -> None:
        """Compose every command before the first one runs, and refuse to mix settings.

        Raises:
            ConfigError: An override is wrong, or a finished cell was made with others.
        """
        for cell in self.cells:
            for variant in self._config.variants or (None,):
                self._check_commands(cell, self._commands(cell, variant))
        for row in read_rows(self.folder):
            known = row.variant is None or row.variant in self._config.variants
            if row.cell in self.cells and not (
                known and _effective(row.commands) == _effective(self._commands(row.cell, row.variant))
            ):
                raise ConfigError(
                    f"{self.folder / row.cell.name}.json was made with other settings; choose another run_dir or "
                    "low_label.cells"
                )

    def _check_commands(self, cell: Cell, commands: dict[str, list[str]]) -> None:
        settings = {name: self._settings(name, commands[name]) for name in commands if name != "student"}
        if "student" in commands:
            self._student_settings(commands["student"], self._folder(cell))
            if "pretrain" not in commands and not isinstance(settings["train"].encoder, ViTConfig):
                raise ConfigError(f"arm {cell.arm}: a student takes the place of a ViT, so the arm needs encoder=vit")

    def _recording(self) -> str:
        """Content hash of the episode file."""
        return EpisodeDataset.open(self._data).content_hash

    def _check_recording(self) -> None:
        """Refuse to put cells of two recordings side by side: who is labelled would differ."""
        recording = self._recording()
        for row in read_rows(self.folder):
            if row.data not in ("", recording):
                raise DataError(
                    f"{self.folder / row.cell.name}.json was made from recording {row.data[:12]}, {self._data} is "
                    f"{recording[:12]}; choose another run_dir or low_label.cells. The same command records other last "
                    "bits where NumPy's kernels differ: on AVX-512 collect with OPENBLAS_CORETYPE=Haswell"
                )

    def missing(self) -> list[Cell]:
        """Cells that lack a look, in order."""
        done = {row.cell for row in read_rows(self.folder) if set(self._looks(row.cell)) <= row.held.keys()}
        return [cell for cell in self.cells if cell not in done]

    def make(self, cell: Cell) -> None:
        """Pretrain if that has not been done, train, evaluate under every look that is missing, and write the cell.

        A model that is no longer in the run folder is trained again for a look that was added later.
        """
        known = {row.cell: row for row in read_rows(self.folder)}.get(cell)
        self._pretrain(cell)
        variant = self._best_variant(cell) if known is None else known.variant
        commands = self._commands(cell, variant)
        folder = self._folder(cell)
        trained = self._train(cell, commands, folder)
        looks = [look for look in self._looks(cell) if known is None or look not in known.held]
        found = {look: self._evaluate(folder, look, self._config.episodes) for look in looks}
        tables = {look: record["episodes_table"] for look, record in found.items()}
        row = Row(
            cell=cell,
            variant=variant,
            commands=commands,
            train_minutes=float(trained["minutes"]),
            held={look: [bool(task["held"]) for task in table] for look, table in tables.items()},
            ever={look: [bool(task["ever"]) for task in table] for look, table in tables.items()},
            manifests={look: str(record["manifest_hash"]) for look, record in found.items()},
            data=self._recording(),
        )
        (row if known is None else known.with_looks_of(row)).save(self.folder)
        if not self._config.keep_features:
            shutil.rmtree(self._run.folder / "features", ignore_errors=True)

    def floors(self) -> dict[str, list[bool]]:
        """What random, no-op and oracle agents hold; they see no picture, so looks are all the same to them."""
        manifest = load_manifest(self._manifest(self._config.looks[0]))
        return {name: [row.held for row in baseline.rows] for name, baseline in manifest.baselines.items()}

    def _looks(self, cell: Cell) -> tuple[str, ...]:
        return self._config.looks[:1] if cell.labels in self._config.first_look else self._config.looks

    def _commands(self, cell: Cell, variant: str | None) -> dict[str, list[str]]:
        """Overrides of every command of a cell, without paths: all that its outcome depends on."""
        config, arm = self._config, self._arms[cell.arm]
        source = self._arms[arm.like] if arm.like is not None else arm
        chosen = [] if variant is None else list(config.variants[variant])
        labels = "null" if cell.labels is None else cell.labels
        commands = {
            "train": [*config.train, *arm.train, *chosen, f"seed={cell.seed}", f"labelled_episodes={labels}"],
            "evaluate": [f"env={config.env}", *config.evaluate, f"episodes={config.episodes}"],
        }
        if source.pretrain is not None:
            commands["pretrain"] = [*config.pretrain, *source.pretrain, f"fit.seed={cell.seed}"]
        if arm.student is not None:
            commands["student"] = ["target=any_colour", *arm.student, f"fit.seed={cell.seed}"]
        return commands

    def _settings(self, command: str, overrides: list[str], **paths: Any) -> Any:
        """Settings of a command, with paths filled in."""
        data = [] if command == "evaluate" else [f"data={self._data}"]
        return replace(load(command, [*overrides, *data]).settings, **paths)

    def _encoder(self, cell: Cell) -> Path:
        return self._run.folder / "encoders" / f"{self._arms[cell.arm].like or cell.arm}-s{cell.seed}"

    def _folder(self, cell: Cell) -> Path:
        return self._run.folder / "runs" / cell.name

    def _part(self, folder: Path) -> Run:
        folder.mkdir(parents=True, exist_ok=True)
        return replace(self._run, folder=folder)

    def _pretrain(self, cell: Cell) -> None:
        """Pretrain the encoder of a cell unless it is there."""
        overrides, out = self._commands(cell, None).get("pretrain"), self._encoder(cell)
        if overrides is None or out.is_dir():
            return
        self._run.note(f"pretraining {out.name}")
        partial = out.with_name(f"{out.name}.partial")
        part = self._part(self._run.folder / "pretrain" / out.name)
        pretrain.run(self._settings("pretrain", overrides, out=str(partial)), part)
        partial.replace(out)

    def _best_variant(self, cell: Cell) -> str | None:
        """Name of the recipe that is best for the arm of a cell on validation tasks; the first of equals."""
        variants = list(self._config.variants)
        if len(variants) < 2:
            return variants[0] if variants else None
        record = self._run.folder / "selection" / f"{cell.arm}.json"
        if not record.is_file():
            judged = Cell(arm=cell.arm, seed=0, labels=self._config.validation_labels)
            self._pretrain(judged)
            scores = {}
            for name in variants:
                self._run.note(f"validating {name} for {cell.arm}")
                folder = self._run.folder / "selection" / f"{cell.arm}-{name}"
                self._train(judged, self._commands(judged, name), folder)
                found = self._evaluate(folder, _VALIDATION, self._config.validation_episodes)
                scores[name] = float(found["success_rate"])
            record.write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")
        known: dict[str, float] = json.loads(record.read_text(encoding="utf-8"))
        return max(known, key=known.__getitem__)

    def _train(self, cell: Cell, commands: dict[str, list[str]], folder: Path) -> dict[str, Any]:
        """Train one model into `folder`/model; returns the record of the command that trains on labelled episodes."""
        cache = str(self._run.folder / "features")
        model = folder / ("host" if "student" in commands else "model")
        settings = self._settings("train", commands["train"], out=str(model), cache_dir=cache)
        if "pretrain" in commands:
            settings = replace(settings, encoder=PretrainedEncoder(path=str(self._encoder(cell))))
        command = train.clone if self._arms[cell.arm].clone else train.run
        record = command(settings, self._part(folder / "train")).record
        if "student" in commands:
            self._run.note(f"a student for {folder.name}")
            pretrain.run(self._student_settings(commands["student"], folder), self._part(folder / "student"))
        return record

    def _student_settings(self, overrides: list[str], folder: Path) -> Any:
        """Settings by which `folder`/host gets a student as its encoder and becomes `folder`/model."""
        paths = {"out": str(folder / "student_encoder"), "model_out": str(folder / "model")}
        return self._settings("pretrain", [*overrides, f"target.path={folder / 'host'}"], **paths)

    def _evaluate(self, folder: Path, manifest: str, episodes: int) -> dict[str, Any]:
        """Outcomes of the model in a folder on the first tasks of a manifest."""
        settings = self._settings(
            "evaluate",
            [f"env={self._config.env}", *self._config.evaluate],
            checkpoint=str(folder / "model"),
            manifest=str(self._manifest(manifest)),
            episodes=episodes,
            workers=self._workers,
        )
        return evaluate.run(settings, self._part(folder / f"evaluate_{manifest}")).record

    def _manifest(self, name: str) -> Path:
        """Tasks by the name of their look, or those for validation; made when missing.

        Random, no-op and oracle agents see no picture: what they did on one look stands beside every one.
        """
        path = self._run.folder / "manifests" / f"{name}.json.gz"
        if path.is_file():
            return path
        if name == _VALIDATION:
            env = make_env(self._config.env, render=False)
            try:
                build_manifest(env, episodes=self._config.validation_episodes, split="validation").save(path)
            finally:
                env.close()
        elif (shipped := self._shipped()) is not None:
            shipped.with_looks(name).save(path)
        elif name == self._config.looks[0]:
            self._run_floors(name, path)
        else:
            load_manifest(self._manifest(self._config.looks[0])).with_looks(name).save(path)
        return path

    def _shipped(self) -> Manifest | None:
        """The shipped tasks if there are as many as asked for, with an oracle of the budget of this comparison.

        They are the same on every machine; tasks that are drawn again may differ in the last bit of a coordinate.
        """
        env_id = resolve_env_id(self._config.env)
        if env_id not in ENV_IDS.values():
            return None
        shipped = load_manifest(env_id)
        oracle = OracleAgents(env=env_id, planner=ORACLE, action_block=ManifestConfig().oracle_action_block)
        is_same = len(shipped) == self._config.episodes and shipped.baselines["oracle"].budget == oracle.identity()
        return shipped if is_same else None

    def _run_floors(self, look: str, path: Path) -> None:
        """Draw the tasks and run what they are compared with."""
        config = self._config
        self._run.note(f"random, no-op and oracle agents on {config.episodes} tasks of {config.env}")
        wanted = ManifestConfig(
            env=config.env,
            episodes=config.episodes,
            looks=look,
            workers=self._workers,
            out=str(path),
            run_dir=str(self._run.folder / "manifests"),
            oracle=ORACLE,
        )
        make_manifest(wanted, progress=self._run.progress)


def _effective(commands: Mapping[str, list[str]]) -> dict[str, dict[str, str]]:
    """Overrides by name, the last of a name: where one stands in the list makes no difference to what it does."""
    return {
        command: dict(override.partition("=")[::2] for override in overrides) for command, overrides in commands.items()
    }
