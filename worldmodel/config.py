"""Configuration: Hydra composes, the library gets dataclasses.

Hydra and OmegaConf stop here. `load` composes a preset of `worldmodel/configs` with overrides, checks it
strictly and builds the settings class of the command; nothing below this layer ever sees a `DictConfig`. Defaults live
in the dataclasses alone: presets hold deviations and composition.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module, resources
from pathlib import Path
from typing import Any

import hydra
from hydra import compose, initialize_config_module
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from worldmodel.commands import COMMANDS, settings_class
from worldmodel.errors import ConfigError
from worldmodel.schema import MANDATORY, build, field_names, mirror, real_class

CONFIG_MODULE = "worldmodel.configs"
_SCHEMA_PREFIX = "base_"
# Schemas of the config groups: group -> option -> dataclass. Presets in configs/<group>/ start from base_<option>.
_OPTIONS = {
    "encoder": {
        "pretrained": "worldmodel.commands.material:PretrainedEncoder",
        "official": "worldmodel.models.pretrained:OfficialEncoderConfig",
        "vit": "worldmodel.models.vit:ViTConfig",
        "timm": "worldmodel.models.frozen_encoders:TimmEncoderConfig",
        "pixels": "worldmodel.models.frozen_encoders:PatchEncoderConfig",
        "conv": "worldmodel.models.frozen_encoders:ConvEncoderConfig",
    },
    "objective": {
        "goal_distance": "worldmodel.control.objectives:GoalDistance",
        "steps_to_goal": "worldmodel.control.objectives:StepsToGoal",
    },
    "planner": {
        "cem": "worldmodel.planners:CEM",
        "settling_cem": "worldmodel.planners:SettlingCEM",
        "icem": "worldmodel.planners:ICEM",
        "mppi": "worldmodel.planners:MPPI",
        "predictive_sampling": "worldmodel.planners:PredictiveSampling",
        "random_shooting": "worldmodel.planners:RandomShooting",
        "gradient": "worldmodel.planners:Gradient",
        "cem_gradient": "worldmodel.planners:CEMGradient",
        "cmaes": "worldmodel.planners:CMAES",
    },
    "target": {
        "ema": "worldmodel.learning.vjepa:VJEPAConfig",
        "teacher": "worldmodel.learning.teacher:TeacherConfig",
        "any_colour": "worldmodel.learning.any_colour:AnyColourConfig",
        "online": "worldmodel.learning.online:OnlineConfig",
        "pixels": "worldmodel.learning.pixels:PixelsConfig",
    },
}


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A checked configuration of one run.

    Attributes:
        command: Name of the command.
        settings: Its settings, an instance of the command's settings class.
        resolved: The same as plain containers, every default written out.
    """

    command: str
    settings: Any
    resolved: dict[str, Any]

    def to_yaml(self) -> str:
        """The resolved values as YAML, in the order of the dataclass."""
        return OmegaConf.to_yaml(OmegaConf.create(self.resolved))


def load(name: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Compose, check and build the configuration of a command.

    Args:
        name: Command, e.g. "evaluate".
        overrides: Hydra overrides, e.g. ["env=push", "planner.num_samples=64"].

    Raises:
        ConfigError: Unknown command, group option or key (with or without a leading `+`), a value of the wrong type or
            out of range, or an override that cannot be parsed.
    """
    register_schemas(name)
    parsed = _parse(overrides)
    groups = [item.input_line or "" for item in parsed if _is_group(item)]
    values = [item for item in parsed if not _is_group(item)]
    GlobalHydra.instance().clear()
    with initialize_config_module(CONFIG_MODULE, version_base="1.3"):
        base = _groups_composed(name, tuple(groups))
        lines = [_checked_line(item, base, name) for item in values]
        config = _composed(name, [*groups, *lines]) if lines else deepcopy(base)
    return from_composed(name, config)


def combinations(name: str, overrides: Sequence[str]) -> list[RunConfig]:
    """Configuration of every combination of the listed values (`a=1,2`), each checked as by `load`.

    Raises:
        ConfigError: As for `load`.
    """
    own = [line for line in overrides if not line.lstrip("+").startswith(("hydra.", "hydra/"))]
    try:
        batches = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(list(own)), None)
    except HydraException as error:
        raise ConfigError(f"cannot read the overrides {' '.join(own)}: {_first_line(error)}") from error
    return [load(name, combination) for combination in batches[0]]


def sweep(name: str, overrides: Sequence[str], job: Callable[[RunConfig, Path], None], folder: Path) -> None:
    """Run a command once per combination of the listed values, through Hydra's multirun.

    Every combination is checked before the first one runs.

    Args:
        name: Command.
        overrides: Hydra overrides; `a=1,2` lists values, `hydra/launcher=joblib` runs them side by side.
        job: Called with the configuration of one combination and its folder.
        folder: Parent of the folders `0`, `1`, ...

    Raises:
        ConfigError: As for `load`.
    """
    combinations(name, overrides)

    def task(config: DictConfig) -> None:
        job(from_composed(name, config), Path(HydraConfig.get().runtime.output_dir))

    quiet = ["hydra/job_logging=disabled", "hydra/hydra_logging=disabled"]
    arguments = [name, "--multirun", *overrides, *quiet, f"hydra.sweep.dir={folder}", "hydra.output_subdir=null"]
    GlobalHydra.instance().clear()
    before, full_error = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv, os.environ["HYDRA_FULL_ERROR"] = arguments, "1"  # raise errors instead of printing them and exiting
    try:
        hydra.main(config_path=f"pkg://{CONFIG_MODULE}", config_name=name, version_base="1.3")(task)()
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_explain(error)) from error
    finally:
        sys.argv = before
        if full_error is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = full_error


def from_composed(name: str, config: DictConfig) -> RunConfig:
    """Check a composed config strictly and build it; the way multirun joins `load`.

    Raises:
        ConfigError: As for `load`.
    """
    check_keys(config)
    try:
        resolved = OmegaConf.to_container(config, resolve=True)
        OmegaConf.resolve(config)
    except OmegaConfBaseException as error:
        raise ConfigError(_first_line(error)) from error
    assert isinstance(resolved, dict)
    return RunConfig(
        command=name, settings=_build(config), resolved={str(key): value for key, value in resolved.items()}
    )


def check_keys(config: DictConfig) -> None:
    """Refuse keys that no dataclass knows, however they got in (`+key=`, `++key=`, a preset).

    Raises:
        ConfigError: Names the unknown key and the nearest known one.
    """
    known = list(_keys(config))
    for key in known:
        node: Any = config
        for part in key.split("."):
            cls = real_class(OmegaConf.get_type(node)) if isinstance(node, DictConfig) else None
            if cls is not None and part not in field_names(cls):
                raise _unknown_key(key, [name for name in known if name != key])
            node = OmegaConf.select(node, part) if isinstance(node, DictConfig) and not _is_open(node, part) else None


def register_schemas(name: str) -> None:
    """Put the schema of a command and of every group option into Hydra's store.

    Raises:
        ConfigError: Unknown command.
    """
    if name not in COMMANDS:
        raise unknown_name("command", name, list(COMMANDS))
    store = ConfigStore.instance()
    store.store(name=f"{_SCHEMA_PREFIX}{name}", node=mirror(settings_class(name)))
    for part in COMMANDS[name].includes:
        register_schemas(part)
    for group in (entry.partition("@")[0] for entry in COMMANDS[name].groups):
        for option, where in _OPTIONS.get(group, {}).items():
            module, _, attribute = where.partition(":")
            schema = mirror(getattr(import_module(module), attribute))
            store.store(group=group, name=f"{_SCHEMA_PREFIX}{option}", node=schema)


def presets() -> list[str]:
    """Names of all presets and group options, e.g. "evaluate", "planner/cem"."""
    root = resources.files(CONFIG_MODULE)
    found = [item.name for item in root.iterdir() if item.name.endswith(".yaml")]
    for folder in (item for item in root.iterdir() if item.is_dir() and item.name != "__pycache__"):
        found += [f"{folder.name}/{item.name}" for item in folder.iterdir() if item.name.endswith(".yaml")]
    return sorted(item.removesuffix(".yaml") for item in found)


def unknown_name(kind: str, name: str, valid: Sequence[str]) -> ConfigError:
    """Error for a name that is none of `valid`: lists them and the nearest."""
    near = difflib.get_close_matches(name, valid, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return ConfigError(f"unknown {kind} {name!r}; valid: {', '.join(valid)}{hint}")


def _parse(overrides: Sequence[str]) -> list[Override]:
    parser = OverridesParser.create()
    parsed = []
    for line in overrides:
        try:
            parsed += parser.parse_overrides([line])
        except OverrideParseException as error:
            raise ConfigError(
                f"cannot read the override {line!r}: expected key=value ({_first_line(error)})"
            ) from error
    for item in parsed:
        if item.is_sweep_override():
            raise ConfigError(
                f"{item.input_line} lists several values: add -m to run one after another, or write [a,b] for a list"
            )
    return parsed


def _is_group(item: Override) -> bool:
    return item.package is not None or resources.files(CONFIG_MODULE).joinpath(item.key_or_group).is_dir()


@lru_cache(maxsize=32)
def _groups_composed(name: str, groups: tuple[str, ...]) -> DictConfig:
    """Half of the time of a command that is called again and again from Python; read only."""
    return _composed(name, groups)


def _composed(name: str, overrides: Sequence[str]) -> DictConfig:
    try:
        return compose(config_name=name, overrides=list(overrides))
    except MissingConfigException as error:
        raise _unknown_option(error) from error
    except (HydraException, OmegaConfBaseException, ValueError) as error:  # Hydra's own for planner=null
        raise ConfigError(_explain(error)) from error


def _unknown_option(error: MissingConfigException) -> ConfigError:
    group, _, option = (error.missing_cfg_file or "").strip("/").rpartition("/")
    options = [name for name in error.options or [] if not name.startswith(_SCHEMA_PREFIX)]
    if not group:
        return ConfigError(_first_line(error))
    return unknown_name(group, option, options)


def _explain(error: Exception) -> str:
    """Hydra says where, its cause says why; both on one line."""
    reason = _first_line(error)
    cause = error.__cause__ or error.__context__
    if isinstance(cause, OmegaConfBaseException):
        reason = f"{reason}: {_first_line(cause)}"
    match = re.match(r"Could not override '([^']+)'\.?\s*No match in the defaults list", str(error))
    if match:
        return f"unknown key {match.group(1)!r}: this command has no such config group"
    return reason.replace("Error merging override ", "cannot set ")


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _checked_line(item: Override, base: DictConfig, command: str) -> str:
    """The override as text once its key is known; a lone value for a list becomes a list of one."""
    key, line = item.key_or_group, item.input_line or ""
    if not _exists(base, key):
        raise _unknown_key(key, list(_keys(base)), command)
    if item.is_delete():
        raise ConfigError(f"{line} would remove a setting; leave it out to keep its default")
    target = OmegaConf.select(base, key, throw_on_missing=False)
    value = line.split("=", 1)[1]
    if isinstance(target, ListConfig) and not value.strip().startswith(("[", "$", "null")):
        value = f"[{value}]"
    # An ordinary override, with or without a +, as the key is known; only a free mapping may grow by new entries.
    return f"{'++' if _is_free(base, key) else ''}{key}={value}"


def _exists(base: DictConfig, key: str) -> bool:
    node: Any = base
    for part in key.split("."):
        if not isinstance(node, DictConfig):
            return False
        if OmegaConf.get_type(node) is dict and part not in node:
            return node is not base  # a free mapping takes any key
        if part not in set(node.keys()):
            return False
        node = None if _is_open(node, part) else node[part]
    return True


def _is_free(base: DictConfig, key: str) -> bool:
    """Whether an existing key is a mapping without a schema, or lies in one."""
    node: Any = base
    for part in key.split("."):
        if OmegaConf.get_type(node) is dict and node is not base:
            return True
        node = None if _is_open(node, part) else node[part]
    return isinstance(node, DictConfig) and OmegaConf.get_type(node) is dict


def _is_open(node: DictConfig, part: str) -> bool:
    """Whether a key holds nothing to descend into: missing, null or an unresolved reference."""
    return OmegaConf.is_missing(node, part) or OmegaConf.is_interpolation(node, part) or node[part] is None


def _keys(node: DictConfig, prefix: str = "") -> list[str]:
    """Dotted names of everything in a config, inner nodes included."""
    found = []
    for part in map(str, node):
        key = f"{prefix}{part}"
        found.append(key)
        if not _is_open(node, part) and isinstance(node[part], DictConfig):
            found += _keys(node[part], f"{key}.")
    return found


def _unknown_key(key: str, known: Sequence[str], command: str | None = None) -> ConfigError:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.75)
    if not near:  # right name in the wrong place, or misspelt below the wrong parent
        leaves = {name.rpartition(".")[2]: name for name in reversed(known)}
        near = [leaves[leaf] for leaf in difflib.get_close_matches(key.rpartition(".")[2], list(leaves), n=1)]
    hint = f"did you mean {near[0]!r}?" if near else f"top-level keys: {', '.join(k for k in known if '.' not in k)}"
    where = f" of {command}" if command else ""
    return ConfigError(f"unknown key {key!r}{where}; {hint}")


def _build(node: Any, key: str = "") -> Any:
    """Schema nodes to library objects, bottom up."""
    if isinstance(node, ListConfig):
        return [_build(entry, key) for entry in node]
    if not isinstance(node, DictConfig):
        return node
    values: dict[str, Any] = {}
    for part in map(str, node):
        inner = f"{key}.{part}" if key else part
        values[part] = MANDATORY if OmegaConf.is_missing(node, part) else _build(node[part], inner)
    cls = real_class(OmegaConf.get_type(node))
    return values if cls is None else build(cls, values, key)
