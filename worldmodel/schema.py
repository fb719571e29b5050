"""From library dataclasses to composable schemas and back.

OmegaConf composes structured configs only from a subset of Python's annotations: no `Literal`, no union of
dataclasses, no abstract base, no frozen class, and tuples come back as lists. The library should not bend its
dataclasses to that, so each one is mirrored by a class OmegaConf accepts, and the composed values are built into the
real class afterwards.
Separate from `config.py` because nothing here knows Hydra.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, field, fields, is_dataclass, make_dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from worldmodel.errors import ConfigError

MANDATORY = "???"
"""OmegaConf's mark for a value that must be given."""

_SCALARS = (int, float, str, bool)
_REAL: dict[type, type] = {}


@cache
def mirror(cls: type) -> type:
    """Schema class with the fields and defaults of `cls`, in annotations OmegaConf composes.

    Args:
        cls: A dataclass; nested dataclasses, optionals, tuples, paths and literals are understood.
    """
    hints = get_type_hints(cls)
    members: list[tuple[str, Any, Any]] = []
    for item in _init_fields(cls):
        annotation = _annotation(hints[item.name])
        default = field(default=MANDATORY) if _is_choice(hints[item.name]) else _default(item, annotation)
        members.append((item.name, annotation, default))
    schema = make_dataclass(f"{cls.__name__}Schema", members, kw_only=True)
    _REAL[schema] = cls
    return schema


def real_class(schema: type | None) -> type | None:
    """The library class a schema mirrors, or None for anything else."""
    return _REAL.get(schema) if schema is not None else None


def field_names(cls: type) -> list[str]:
    """Names that may be set on `cls`."""
    return [item.name for item in _init_fields(cls)]


def build(cls: type, values: Mapping[str, Any], key: str = "") -> Any:
    """Construct `cls` from composed values.

    Args:
        cls: A library dataclass.
        values: Field values; nested dataclasses are already built.
        key: Dotted position in the config, for messages.

    Raises:
        ConfigError: A mandatory value is missing, a value is none of its literals, or `cls` refuses it.
    """
    hints = get_type_hints(cls)
    for name, value in values.items():
        if isinstance(value, str) and value == MANDATORY:
            raise ConfigError(f"{_join(key, name)} is missing: give it as {_join(key, name)}=VALUE")
    return cls(**{name: _coerce(value, hints[name], _join(key, name)) for name, value in values.items()})


def _init_fields(cls: type) -> list[Field[Any]]:
    return [item for item in fields(cls) if item.init]


def _join(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def _composable(hint: Any) -> bool:
    """Whether a hint is a concrete dataclass, which is mirrored; abstract ones are chosen by a config group."""
    return isinstance(hint, type) and is_dataclass(hint) and not inspect.isabstract(hint)


def _is_choice(hint: Any) -> bool:
    """Whether a config group has to choose the class: an abstract dataclass, or one of several."""
    if get_origin(hint) in (Union, UnionType):
        return sum(is_dataclass(arg) for arg in get_args(hint)) > 1
    return is_dataclass(hint) and not _composable(hint)


def _annotation(hint: Any) -> Any:
    """The closest annotation OmegaConf accepts; Any where there is none."""
    origin, args = get_origin(hint), get_args(hint)
    if hint in _SCALARS or (isinstance(hint, type) and issubclass(hint, Enum)):
        return hint
    if _composable(hint):
        return mirror(hint)
    if hint is Path:
        return str
    if origin is Literal:
        return str if all(isinstance(arg, str) for arg in args) else Any
    if origin in (Union, UnionType):
        inner = [arg for arg in args if arg is not NoneType]
        simple = _annotation(inner[0]) if len(inner) == 1 else Any
        return simple | None if simple in _SCALARS else Any
    if origin in (tuple, list, Sequence):
        entry: Any = _annotation(args[0]) if args and len({*args} - {Ellipsis}) == 1 else Any
        return list[entry] if entry in _SCALARS else list[Any]
    return Any


def _default(item: Field[Any], annotation: Any) -> Any:
    """Dataclass field holding the default of `item` in plain containers."""
    if item.default is not MISSING:
        value = item.default
    elif item.default_factory is not MISSING:
        value = item.default_factory()
    elif isinstance(annotation, type) and annotation in _REAL:
        return field(default_factory=annotation)
    else:
        return field(default=MANDATORY)
    plain = _plain(value)
    return (
        field(default=plain) if isinstance(plain, (*_SCALARS, NoneType, Enum)) else field(default_factory=lambda: plain)
    )


def _plain(value: Any) -> Any:
    """Values as OmegaConf stores them: schema instances, lists and strings."""
    if is_dataclass(value) and not isinstance(value, type):
        return mirror(type(value))(**{n: _plain(getattr(value, n)) for n in field_names(type(value))})
    if isinstance(value, (tuple, list)):
        return [_plain(entry) for entry in value]
    if isinstance(value, Mapping):
        return {str(name): _plain(entry) for name, entry in value.items()}
    return str(value) if isinstance(value, Path) else value


def _coerce(value: Any, hint: Any, key: str) -> Any:
    """Composed value to what the annotation of the real class promises."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        if value is None:
            return None
        inner = [arg for arg in args if arg is not NoneType]
        return _coerce(value, inner[0], key) if len(inner) == 1 else value
    if origin is Literal:
        if value not in args:
            raise ConfigError(f"{key} must be one of {', '.join(map(repr, args))}, got {value!r}")
        return value
    if hint is Path and isinstance(value, str):
        return Path(value)
    if origin in (tuple, list, Sequence) and isinstance(value, list):
        kinds = args[:1] * len(value) if not args or args[-1] is Ellipsis or origin is not tuple else args
        if args and len(kinds) != len(value):
            raise ConfigError(f"{key} must hold {len(kinds)} values, got {value}")
        entries = [_coerce(entry, kind, key) for entry, kind in zip(value, kinds, strict=True)] if args else value
        return tuple(entries) if origin is not list else list(entries)
    return value
