"""A finished planning run as something that can be run again: its agent, tasks and failures, read from its folder."""

from __future__ import annotations

from pathlib import Path

from worldmodel.errors import CheckpointError, ConfigError, DataError
from worldmodel.evaluation.attribution import Subject
from worldmodel.evaluation.evaluate import ModelAgents, checkpoint_hash
from worldmodel.evaluation.manifest import find_manifest
from worldmodel.evaluation.plan_records import rebuild
from worldmodel.evaluation.result import EvalResult
from worldmodel.models.checkpoint import resolve_checkpoint
from worldmodel.models.runtime import RuntimeConfig


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
    result = EvalResult.load(folder)
    agent = dict(result.agent)
    if agent.pop("type", None) != ModelAgents.__name__:
        raise ConfigError(f"{folder} is no run of a world model that plans; only plans can be explained")
    if "distractor" in agent:
        raise ConfigError(f"{folder} was run under a distractor, which its oracles would not see; explain a plain run")
    tasks = find_manifest(manifest, result.env_id)
    if tasks.hash != result.manifest_hash:
        raise ConfigError(
            f"manifest {manifest} (hash {tasks.hash[:12]}) is not the one of {folder} ({result.manifest_hash[:12]}); "
            "give manifest=FILE"
        )
    try:
        seed, place = int(agent.pop("seed")), agent.pop("checkpoint")
        place = resolve_checkpoint(place if checkpoint is None else checkpoint, tasks.env_id).resolve()
        _check_checkpoint(place, agent["checkpoint_hash"], folder)
        searches = {name: rebuild(agent.pop(name)) for name in ("planner", "objective")}
        runtime = {name: value for name, value in agent.pop("runtime", {}).items() if name != "type"}
        factory = ModelAgents(checkpoint=place, runtime=RuntimeConfig(**runtime), **searches, **agent)
    except (KeyError, TypeError) as error:
        raise DataError(f"{folder} was written by another version or damaged ({error}); evaluate again") from error
    return Subject(
        manifest=tasks,
        factory=factory,
        seed=seed,
        failures=tuple(row.episode for row in result.rows if not row.held),
        num_episodes=len(result.rows),
    )


def _check_checkpoint(place: Path, wanted: str, folder: Path) -> None:
    found = checkpoint_hash(place)
    if found != wanted:
        raise CheckpointError(
            f"{place} is not the checkpoint of {folder}: hash {found[:12]}, the run had {wanted[:12]}; give "
            "checkpoint=FOLDER"
        )
