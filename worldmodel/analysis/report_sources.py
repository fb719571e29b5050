"""What a report is made of: the folders of finished evaluations, and the explanations of their failures.

Separate from `report.py`, which writes the page: everything that can be missing, foreign or damaged is met here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from worldmodel.analysis.filmed import FilmedEpisode
from worldmodel.errors import ConfigError, DataError
from worldmodel.evaluation.attribution import VERDICTS, Explanation, Verdict
from worldmodel.evaluation.comparison import short_names
from worldmodel.evaluation.evidence import Evidence
from worldmodel.evaluation.result import EvalResult
from worldmodel.evaluation.runlog import RESULT
from worldmodel.evaluation.runs_compared import Comparison, RunArm, compare_runs, load_results

EXPLANATION, CONFIG, FACTS = "explain.json", "config.yaml", "run.json"
_USUAL_PLACE = Path("outputs") / "explain"


@dataclass(frozen=True, kw_only=True)
class Explained:
    """An explanation and where it was read.

    Attributes:
        path: Its file.
        run: Folder of the evaluation it is about, as it was named.
        explanation: The verdicts.
    """

    path: Path
    run: Path
    explanation: Explanation

    def fits(self, result: EvalResult) -> bool:
        """Whether its failures are those of this result."""
        failures = {row.episode for row in result.rows if not row.held}
        found = self.explanation
        return (
            found.num_episodes == len(result.rows)
            and found.num_failures == len(failures)
            and {entry.episode for entry in found.verdicts} <= failures
        )


@dataclass(frozen=True, kw_only=True)
class Source:
    """One finished evaluation.

    Attributes:
        name: In the report.
        arm: Number of the arm it belongs to.
        folder: Where it was read.
        result: What it found.
        config: Text of its resolved configuration, "" without one.
        facts: How it was started: command line, versions, device.
        explained: Why its failures failed, if that was looked into.
        films: Some of its episodes.
    """

    name: str
    arm: int
    folder: Path
    result: EvalResult
    config: str
    facts: Mapping[str, Any]
    explained: Explained | None = None
    films: tuple[FilmedEpisode, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Sources:
    """The evaluations of a report.

    Attributes:
        arms: What is compared: one run each, or several training seeds.
        comparison: Of two arms and more.
        runs: Every evaluation, those of one arm together.
    """

    arms: tuple[RunArm, ...]
    comparison: Comparison | None
    runs: tuple[Source, ...]

    @property
    def reference(self) -> RunArm:
        """The arm the others are compared with."""
        return self.arms[0] if self.comparison is None else self.comparison.reference


def read_sources(folders: Sequence[str], reference: str | None = None, explain: Sequence[str] = ()) -> Sources:
    """Read finished evaluations, compare them, and find the explanations of their failures.

    Args:
        folders: Run folders of `worldmodel evaluate`, or of its multirun over checkpoints.
        reference: Name or number of the one the others are compared with; None means the first.
        explain: Folders of `worldmodel explain`. An evaluation without one of these is looked up in its own folder and
            in the usual place.

    Raises:
        ConfigError: No folder, runs that cannot be compared, or an explanation that is about none of them.
        DataError: A folder holds no finished evaluation, or an explanation is damaged.
    """
    if not folders:
        raise ConfigError("a report needs at least one run folder of a `worldmodel evaluate`")
    comparison = compare_runs(folders, reference) if len(folders) > 1 else None
    if comparison is not None:
        arms = comparison.arms
    else:
        results = load_results(Path(folders[0]))
        episodes = min(len(result.rows) for result in results)
        arms = (RunArm.of(short_names(folders)[0], folders[0], results, episodes),)
    runs = [source for number, arm in enumerate(arms) for source in _sources_of(number, arm)]
    given = [read_explanation(Path(folder) / EXPLANATION) for folder in explain]
    return Sources(arms=arms, comparison=comparison, runs=tuple(_with_explanations(runs, given)))


def read_explanation(path: Path) -> Explained:
    """Read what `worldmodel explain` wrote.

    Raises:
        DataError: There is none, or it is damaged.
    """
    if not path.is_file():
        raise DataError(f"{path.parent} holds no {path.name}: give the run folder of a `worldmodel explain`")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        verdicts = tuple(_verdict(entry) for entry in record["failures_table"])
        explanation = Explanation(
            verdicts=verdicts,
            num_failures=int(record["failures"]),
            num_episodes=int(record["episodes"]),
            seed=int(record["sample_seed"] or 0),
            searches=record["searches"],
        )
        return Explained(path=path, run=Path(record["run"]), explanation=explanation)
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        raise DataError(f"{path} is no record of an explanation ({type(error).__name__} {error})") from error


def _sources_of(number: int, arm: RunArm) -> list[Source]:
    """The evaluations of one arm, in the order in which `load_results` reads them."""
    folder = Path(arm.folder)
    folders = [folder]
    if not (folder / RESULT).exists():
        folders = sorted((path for path in folder.iterdir() if path.name.isdecimal() and path.is_dir()), key=_number)
    return [
        Source(
            name=arm.name if len(folders) == 1 else f"{arm.name}/{place.name}",
            arm=number,
            folder=place,
            result=result,
            config=(place / CONFIG).read_text(encoding="utf-8") if (place / CONFIG).is_file() else "",
            facts=_facts(place / FACTS),
        )
        for place, result in zip(folders, arm.results, strict=True)
    ]


def _facts(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} cannot be read ({error})") from error
    if not isinstance(record, dict):
        raise DataError(f"{path} does not hold a JSON object")
    return record


def _verdict(record: Mapping[str, Any]) -> Verdict:
    if record["verdict"] not in VERDICTS:
        raise ValueError(f"unknown verdict {record['verdict']!r}")
    evidence = {**record["evidence"], "open_loop": tuple(record["evidence"]["open_loop"])}
    return Verdict(**{**record, "evidence": Evidence(**evidence)})


def _with_explanations(runs: Sequence[Source], given: Sequence[Explained]) -> list[Source]:
    """Give every run the explanation that is about it: one that was named, else one that lies where they usually do."""
    chosen: dict[int, Explained] = {}
    for entry in given:
        owner = _owner(runs, entry)
        if not entry.fits(runs[owner].result):
            raise ConfigError(f"{entry.path} does not fit the failures of {runs[owner].folder}: explain that run again")
        chosen[owner] = entry
    return [
        replace(run, explained=chosen.get(index) or _found(run.folder, run.result)) for index, run in enumerate(runs)
    ]


def _owner(runs: Sequence[Source], entry: Explained) -> int:
    """Number of the run that an explanation names; a lone run may have been moved since."""
    about = [index for index, run in enumerate(runs) if run.folder.resolve() == entry.run.resolve()]
    if about:
        return about[0]
    if len(runs) == 1:
        return 0
    listed = ", ".join(str(run.folder) for run in runs)
    raise ConfigError(f"{entry.path} is about {entry.run}, which is none of {listed}")


def _found(folder: Path, result: EvalResult) -> Explained | None:
    """The last explanation of a run that lies in its folder or in the usual place; nobody asked for damaged ones."""
    candidates = [*sorted(_USUAL_PLACE.glob(f"*/{EXPLANATION}")), *sorted(folder.glob(f"explain*/{EXPLANATION}"))]
    for path in reversed(candidates):
        try:
            entry = read_explanation(path)
        except DataError:
            continue
        if entry.run.resolve() == folder.resolve() and entry.fits(result):
            return entry
    return None


def _number(path: Path) -> int:
    return int(path.name)
