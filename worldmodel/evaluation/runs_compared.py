"""`worldmodel compare`: finished evaluations side by side, on the episodes they share.

A run folder is one arm. So is the folder of a multirun over checkpoints: its runs are training seeds, and what is said
about it holds for training again, not only for the weights at hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from worldmodel.errors import ConfigError, DataError
from worldmodel.evaluation.comparison import (
    Arm,
    arm_cells,
    arm_headings,
    differing_settings,
    p_text,
    short_names,
    verdict,
)
from worldmodel.evaluation.result import EvalResult
from worldmodel.evaluation.runlog import RESULT
from worldmodel.evaluation.stats import Difference

CHECKPOINT = "checkpoint_hash"


@dataclass(frozen=True, kw_only=True)
class RunArm(Arm):
    """An arm with the results it is made of.

    Attributes:
        folder: Where they were read.
        results: One per training seed.
        curve: Share of episodes with success after each number of steps, mean over training seeds; None when a row does
            not say.
    """

    folder: str
    results: tuple[EvalResult, ...]
    curve: tuple[float, ...] | None

    @classmethod
    def of(cls, name: str, folder: str, results: Sequence[EvalResult], episodes: int) -> RunArm:
        """Put the first so many episodes of every result together."""
        rows = [result.rows[:episodes] for result in results]
        moments = [row.success for seed in rows for row in seed]
        curve = None
        if all(moments) and len({len(text or "") for text in moments}) == 1:
            curve = tuple(np.mean([[step == "1" for step in text or ""] for text in moments], axis=0).tolist())
        return cls(
            name=name,
            held=tuple(tuple(row.held for row in seed) for seed in rows),
            ever=tuple(tuple(row.ever for row in seed) for seed in rows),
            folder=folder,
            results=tuple(results),
            curve=curve,
        )

    @property
    def description(self) -> dict[str, Any]:
        """Settings of the agent; of several training seeds the list of their checkpoints."""
        hashes = [str(result.agent.get(CHECKPOINT, "")) for result in self.results]
        return {**self.results[0].agent, CHECKPOINT: hashes[0] if len(hashes) == 1 else hashes}

    def to_json(self, reference: Arm | None = None) -> dict[str, Any]:
        """JSON-ready form."""
        record = super().to_json(reference)
        if reference is not None and reference is not self:
            record["verdict"] = verdict(self.difference(reference))
        return {
            **record,
            "folder": self.folder,
            "training_seeds": len(self.results),
            "episodes_run": [len(result.rows) for result in self.results],
            "seed_rates": [float(np.mean(seed)) for seed in self.held],
            "success_curve": None if self.curve is None else list(self.curve),
        }


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Runs on the same tasks.

    Attributes:
        env_id: Environment.
        manifest_hash: Of the tasks.
        episodes: The first so many of them, which all runs have.
        arms: In the order they were named.
        reference: The arm the others are compared with.
    """

    env_id: str
    manifest_hash: str
    episodes: int
    arms: tuple[RunArm, ...]
    reference: RunArm

    @property
    def settings(self) -> dict[str, list[Any]]:
        """Settings in which the arms differ, one value per arm."""
        return differing_settings([arm.description for arm in self.arms])

    @property
    def differences(self) -> dict[str, Difference]:
        """Every arm but the reference minus the reference."""
        return {arm.name: arm.difference(self.reference) for arm in self.arms if arm is not self.reference}

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader must know to read the numbers."""
        notes = []
        counts = {arm.name: sorted({len(result.rows) for result in arm.results}) for arm in self.arms}
        if {count for found in counts.values() for count in found} != {self.episodes}:
            listed = ", ".join(f"{name} has {'-'.join(map(str, found))}" for name, found in counts.items())
            notes.append(f"compared on the first {self.episodes} episodes, which all runs have: {listed}")
        seeds = {arm.name: len(arm.results) for arm in self.arms if len(arm.results) > 1}
        if seeds:
            listed = ", ".join(f"{count} of {name}" for name, count in seeds.items())
            notes.append(
                f"training seeds: {listed}; their intervals and p-values come from a bootstrap over seeds and tasks, "
                "not from McNemar's test, and are too narrow when seeds are few"
            )
        return tuple(notes)

    def to_json(self) -> dict[str, Any]:
        """The machine-readable record."""
        return {
            "env": self.env_id,
            "manifest_hash": self.manifest_hash,
            "episodes": self.episodes,
            "reference": self.reference.name,
            "arms": [arm.to_json(self.reference) for arm in self.arms],
            "settings": self.settings,
            "notes": list(self.notes),
        }

    def table(self) -> Table:
        """Rates, differences and p-values for a terminal."""
        caption = f"95 % intervals (Wilson; differences paired, bootstrap); manifest {self.manifest_hash[:12]}"
        table = Table(title=f"{self.env_id}, {self.episodes} held-out episodes", caption=caption)
        table.add_column("run")
        for heading in (*arm_headings(self.reference), "p"):
            table.add_column(heading, justify="right")
        for arm in self.arms:
            p = "-" if arm is self.reference else p_text(arm.difference(self.reference).p)
            table.add_row(arm.name, *arm_cells(arm, self.reference), p)
        return table

    def settings_table(self) -> Table | None:
        """What the arms differ in, None when that is nothing."""
        if not self.settings:
            return None
        table = Table(title="settings that differ")
        for heading in ("setting", *(arm.name for arm in self.arms)):
            table.add_column(heading)
        for key, values in self.settings.items():
            table.add_row(key, *(setting_text(key, value) for value in values))
        return table

    def verdicts(self) -> list[str]:
        """One sentence per arm beside the reference."""
        return [f"{name}: {verdict(found)}" for name, found in self.differences.items()]


def compare_runs(folders: Sequence[str], reference: str | None = None) -> Comparison:
    """Read finished evaluations and put them side by side.

    Args:
        folders: Run folders of `worldmodel evaluate`, or of its multirun over checkpoints; at least two.
        reference: Name or number (from 0) of the one the others are compared with; None means the first.

    Raises:
        ConfigError: Fewer than two, one of them twice, different manifests, or no such reference.
        DataError: A folder holds no finished evaluation.
    """
    if len(folders) < 2:
        raise ConfigError(f"a comparison needs at least two run folders, got {list(folders)}")
    if len({Path(folder).resolve() for folder in folders}) < len(folders):
        raise ConfigError(f"the same run folder is named twice: {', '.join(folders)}")
    found = [load_results(Path(folder)) for folder in folders]
    names = short_names(folders)
    for name, results in zip(names, found, strict=True):
        for result in results:
            _check_manifest(names[0], found[0][0], name, result)
    episodes = min(len(result.rows) for results in found for result in results)
    arms = tuple(
        RunArm.of(name, folder, results, episodes) for name, folder, results in zip(names, folders, found, strict=True)
    )
    return Comparison(
        env_id=found[0][0].env_id,
        manifest_hash=found[0][0].manifest_hash,
        episodes=episodes,
        arms=arms,
        reference=_chosen(arms, reference),
    )


def load_results(folder: Path) -> list[EvalResult]:
    """The result of a run folder, or those of a multirun over checkpoints.

    Raises:
        ConfigError: The runs of a multirun differ in more than the checkpoint, or do not differ at all.
        DataError: The folder, or one below it, holds no finished evaluation.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder; give the run folder of a `worldmodel evaluate`")
    below = sorted((path for path in folder.iterdir() if path.name.isdecimal() and path.is_dir()), key=_number)
    if (folder / RESULT).exists() or not below:
        return [EvalResult.load(folder)]
    results = [EvalResult.load(path) for path in below]
    differing = differing_settings([describe_run(result) for result in results])
    more = [key for key in differing if key != CHECKPOINT]
    if more:
        listed = " ".join(map(str, below))
        raise ConfigError(f"the runs in {folder} differ in {', '.join(more[:4])}: compare them by name, {listed}")
    if len({str(result.agent.get(CHECKPOINT)) for result in results}) < len(results):
        raise ConfigError(f"the runs in {folder} are not of different training seeds: a checkpoint occurs twice")
    return results


def setting_text(key: str, value: Any) -> str:
    """A setting for a table: hashes are cut short."""
    if isinstance(value, list) and key == CHECKPOINT:
        return f"{len(value)} checkpoints"
    return str(value)[:12] if key.endswith("_hash") else str(value)


def describe_run(result: EvalResult) -> dict[str, Any]:
    """Everything that was chosen for an evaluation: tasks and agent."""
    return {"env": result.env_id, "manifest_hash": result.manifest_hash, **result.agent}


def _number(path: Path) -> int:
    return int(path.name)


def _check_manifest(first_name: str, first: EvalResult, name: str, result: EvalResult) -> None:
    if result.manifest_hash != first.manifest_hash:
        there, here = (f"{r.manifest_hash[:12]} ({r.env_id})" for r in (first, result))
        raise ConfigError(
            f"runs on different manifests cannot be compared: {first_name} was evaluated on {there}, {name} on {here}"
        )


def _chosen(arms: Sequence[RunArm], reference: str | None) -> RunArm:
    by_name = {arm.name: arm for arm in arms} | {arm.folder: arm for arm in arms}
    if reference is None:
        return arms[0]
    if reference in by_name:
        return by_name[reference]
    if reference.isdecimal() and int(reference) < len(arms):
        return arms[int(reference)]
    listed = ", ".join(arm.name for arm in arms)
    raise ConfigError(f"reference must be one of {listed} or a number from 0 to {len(arms) - 1}, got {reference!r}")
