"""A finished planning run as something that can be run again: its agent, tasks and failures, read from its folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from worldmodel.errors import CheckpointError, ConfigError, DataError
from worldmodel.evaluation.attribution import Subject
from worldmodel.evaluation.evaluate import ModelAgents, checkpoint_hash
from worldmodel.evaluation.manifest import Manifest, find_manifest
from worldmodel.evaluation.plan_records import rebuild
from worldmodel.evaluation.runlog import IDENTITY, RESULT
from worldmodel.models.checkpoint import resolve_checkpoint


def read_subject(folder: Path, *, manifest: str = "shipped", checkpoint: str | None = None) -> Subject:
    """The agent, tasks and failures of a finished `worldmodel evaluate`.

    Args:
        folder: Its run folder.
        manifest: "shipped", "validation", or the path of the manifest it ran on.
        checkpoint: Where the checkpoint lies now, when it was moved.

    Raises:
        ConfigError: The run did not plan in a world model, or the manifest is not the run's.
        CheckpointError: The checkpoint is gone or has changed.
        DataError: The folder holds no finished evaluation.
    """
    identity, result = _read(folder / IDENTITY), _read(folder / RESULT)
    try:
        agent = dict(identity["agent"])
        if agent.pop("type") != ModelAgents.__name__:
            raise ConfigError(f"{folder} is no run of a world model that plans; only plans can be explained")
        tasks = _manifest_of(folder, identity, manifest)
        place = resolve_checkpoint(result["agent"]["checkpoint"] if checkpoint is None else checkpoint, tasks.env_id)
        found = checkpoint_hash(place)
        if found != agent["checkpoint_hash"]:
            raise CheckpointError(
                f"{place} is not the checkpoint of {folder}: hash {found[:12]}, the run had "
                f"{agent['checkpoint_hash'][:12]}; give checkpoint=FOLDER"
            )
        searches = {name: rebuild(agent.pop(name)) for name in ("planner", "objective")}
        factory = ModelAgents(checkpoint=place.resolve(), **searches, **agent)
        rows = result["episodes_table"]
        return Subject(
            manifest=tasks,
            factory=factory,
            seed=int(identity["seed"]),
            failures=tuple(int(row["episode"]) for row in rows if not row["held"]),
            num_episodes=len(rows),
        )
    except (KeyError, TypeError) as error:
        raise DataError(f"{folder} was written by another version or damaged ({error}); evaluate again") from error


def _manifest_of(folder: Path, identity: Mapping[str, Any], given: str) -> Manifest:
    found = find_manifest(given, identity["env"])
    if found.hash != identity["manifest_hash"]:
        raise ConfigError(
            f"manifest {given} (hash {found.hash[:12]}) is not the one of {folder} ({identity['manifest_hash'][:12]}); "
            "give manifest=FILE"
        )
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path.parent} holds no finished evaluation ({path.name} is missing or unreadable); finish it with "
            f"worldmodel evaluate run_dir={path.parent}"
        ) from error
    if not isinstance(record, dict):
        raise DataError(f"{path} does not hold a JSON object; evaluate again")
    return record
