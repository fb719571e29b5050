"""A pretraining run as it ended: encoder, predictor and statistics, where a checkpoint keeps the encoder alone."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file

from worldmodel.commands.pretrain import Settings
from worldmodel.commands.run import RUN_FILE
from worldmodel.config import load
from worldmodel.errors import CheckpointError, ConfigError
from worldmodel.learning.masked import MaskedTask
from worldmodel.learning.run_state import STATE_NAME
from worldmodel.learning.targets import build_task
from worldmodel.learning.teacher import TeacherConfig
from worldmodel.models.vit import ViTConfig


def pretrained_task(folder: Path) -> tuple[MaskedTask, Settings]:
    """Rebuild the task of a `worldmodel pretrain` run, or of the `pretrain` folder of `worldmodel reproduce`.

    Args:
        folder: Its run folder. The settings come from the overrides that were given then.

    Returns:
        The task with the weights last saved, and its settings.

    Raises:
        ConfigError: The folder is no such run, or its target needs a teacher.
        CheckpointError: The saved state is damaged, or was made by other settings.
    """
    settings = _settings_of(folder)
    if isinstance(settings.target, TeacherConfig) or not isinstance(settings.encoder, ViTConfig):
        raise ConfigError(f"{folder} was pretrained on a teacher's targets, which are not kept; give another run")
    task = build_task(settings.encoder, settings.target, seed=settings.fit.seed)
    try:
        record = json.loads((folder / STATE_NAME).read_text(encoding="utf-8"))
        tensors = load_file(folder / record["tensors"])
        task.load_state_dict({k.removeprefix("task."): v for k, v in tensors.items() if k.startswith("task.")})
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"the state in {folder} cannot be read ({error}); is the run finished?") from error
    except RuntimeError as error:  # torch says so when names or shapes differ
        first = str(error).splitlines()[-1].strip()
        raise CheckpointError(f"the state in {folder} was made with other settings: {first}") from error
    return task, settings


def _settings_of(folder: Path) -> Settings:
    """Settings from the record of the run, or of the `reproduce` run that it is a stage of."""
    for place, command in ((folder, "pretrain"), (folder.parent, "reproduce")):
        path = place / RUN_FILE
        if not path.is_file():
            continue
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            found, overrides = record["command"], record["overrides"]
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path} is not the record of a run ({error})") from error
        if found == command:
            settings = load(command, overrides).settings
            chosen = settings if command == "pretrain" else settings.pretrain
            assert isinstance(chosen, Settings)
            return chosen
    raise ConfigError(f"{folder} is no run folder of `worldmodel pretrain`; give the folder that holds {STATE_NAME}")
