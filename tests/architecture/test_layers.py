"""An import between packages may only point down (docs/architecture.md)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

LAYERS = {
    "__init__": 5,
    "__main__": 5,
    "cli": 5,
    "commands": 5,
    "config": 5,
    "configs": 5,
    "doctor": 5,
    "schema": 5,
    "testing": 4.5,
    "analysis": 4,
    "evaluation": 3,
    "control": 2,
    "learning": 2,
    "models": 1,
    "data": 1,
    "planners": 1,
    "envs": 1,
    "display": 0,
    "errors": 0,
    "hardware": 0,
    "types": 0,
}
# Columns of one layer: packages in different columns never import each other.
COLUMNS = {"models": "learned", "data": "learned", "planners": "planners", "envs": "envs"}
FORBIDDEN = {
    "envs": {"torch", "timm", "hydra", "omegaconf"},
    "planners": {"mujoco", "gymnasium", "hydra", "omegaconf", "timm", "h5py"},
    "models": {"mujoco", "gymnasium", "hydra", "omegaconf", "h5py"},
}
HYDRA_USERS = {"config", "cli"}
UNSAFE = {"pickle", "cloudpickle", "dill", "shelve"}


def source_files(root: Path) -> list[tuple[str, Path]]:
    """Every module of the package as (component, path); the component is the first part below `worldmodel`."""
    files = []
    for path in sorted((root / "worldmodel").rglob("*.py")):
        relative = path.relative_to(root / "worldmodel")
        files.append((relative.parts[0] if len(relative.parts) > 1 else relative.stem, path))
    for top in ("envs", "planners", "configs"):
        files += [(top, path) for path in sorted((root / top).rglob("*.py"))]
    return files


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Absolute module names a file imports, anywhere in it, with their lines."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import; write worldmodel.<package> in full"
            if node.module == "worldmodel":
                yield from ((f"worldmodel.{alias.name}", node.lineno) for alias in node.names)
            elif node.module is not None:
                yield node.module, node.lineno


def violation(component: str, name: str) -> str | None:
    """Why `component` may not import module `name`, or None."""
    top = name.split(".")[0]
    if top in FORBIDDEN.get(component, set()):
        return f"{component} must not import {top}"
    if top in {"hydra", "omegaconf"} and component not in HYDRA_USERS:
        return f"only {', '.join(sorted(HYDRA_USERS))} may import {top}"
    if top in UNSAFE:
        return "nothing here unpickles"
    if top != "worldmodel" or name == "worldmodel":
        return None
    target = name.split(".")[1]
    if target not in LAYERS:
        return None if target.startswith("_") else f"{target} has no layer"
    if target == component:
        return None
    if component == "envs" and target != "errors":
        return "envs imports nothing of this package but errors (types imports torch)"
    if LAYERS[target] > LAYERS[component]:
        return f"{component} (layer {LAYERS[component]}) imports {target} (layer {LAYERS[target]})"
    if LAYERS[target] == LAYERS[component] == 2:
        return f"{component} and {target} do not import each other"
    if LAYERS[target] == LAYERS[component] == 1 and COLUMNS[target] != COLUMNS[component]:
        return f"{component} and {target} are different columns of layer 1"
    return None


def test_every_component_has_a_layer(root: Path) -> None:
    assert {component for component, _ in source_files(root)} <= set(LAYERS)


def test_imports_point_down(root: Path) -> None:
    """Imports inside functions count too: a lazy import upwards is still a cycle."""
    found = [
        f"{path.relative_to(root)}:{line}: {reason}"
        for component, path in source_files(root)
        for name, line in imports(path)
        if (reason := violation(component, name))
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("component", "name"),
    [
        ("envs", "torch.nn"),
        ("planners", "mujoco"),
        ("models", "hydra.core"),
        ("evaluation", "hydra"),
        ("models", "worldmodel.learning.fit"),
        ("control", "worldmodel.learning"),
        ("planners", "worldmodel.models.vit"),
        ("envs", "worldmodel.data.episodes"),
        ("errors", "worldmodel.models"),
    ],
)
def test_the_rule_refuses(component: str, name: str) -> None:
    """The rule itself can fail: each of these is refused."""
    assert violation(component, name)


def test_the_program_starts_without_heavy_imports(root: Path) -> None:
    """`worldmodel --help` answers at once: the entry modules import no torch, mujoco or hydra at module level."""
    heavy = {"torch", "mujoco", "hydra", "omegaconf", "gymnasium", "timm", "matplotlib"}
    for name in ("__init__", "__main__", "cli"):
        tree = ast.parse((root / "worldmodel" / f"{name}.py").read_text(encoding="utf-8"))
        for node in tree.body:
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for module in modules:
                assert module.split(".")[0] not in heavy, f"{name}.py imports {module} at module level"
