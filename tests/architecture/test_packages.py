"""What is on disk and what is packaged are the same thing."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def setuptools_table(root: Path) -> dict[str, object]:
    with (root / "pyproject.toml").open("rb") as file:
        table = tomllib.load(file)["tool"]["setuptools"]
    assert isinstance(table, dict)
    return table


def code_folders(root: Path) -> set[str]:
    """Import names of every folder below the four source directories that holds Python files."""
    found = set()
    for top, prefix in (
        ("worldmodel", "worldmodel"),
        ("envs", "worldmodel.envs"),
        ("planners", "worldmodel.planners"),
        ("configs", "worldmodel.configs"),
    ):
        for path in (root / top).rglob("*.py"):
            if "__pycache__" not in path.parts:
                found.add(".".join((prefix, *path.parent.relative_to(root / top).parts)))
    return found


def test_every_code_folder_is_packaged(root: Path, setuptools_table: dict[str, object]) -> None:
    """An unlisted folder works in an editable install and is absent from the wheel."""
    packages = setuptools_table["packages"]
    assert isinstance(packages, list)
    assert sorted(packages) == sorted(code_folders(root))


def test_every_package_folder_has_an_init(root: Path, setuptools_table: dict[str, object]) -> None:
    mapping = setuptools_table["package-dir"]
    assert isinstance(mapping, dict)
    assert set(mapping) == {"worldmodel", "worldmodel.envs", "worldmodel.planners", "worldmodel.configs"}
    for name in code_folders(root):
        prefix = max((key for key in mapping if name == key or name.startswith(key + ".")), key=len)
        rest = name.removeprefix(prefix).strip(".").replace(".", "/")
        assert (root / mapping[prefix] / rest / "__init__.py").is_file(), name


def test_tracked_tree_is_small(root: Path) -> None:
    """The whole tracked tree stays under 40 MiB, and no shipped file is above 16 MiB."""
    skip = {".git", ".venv", ".typecheck", "outputs", "multirun", "shared", "build", "dist", "__pycache__"}
    sizes = {
        path: path.stat().st_size
        for top in root.iterdir()
        if top.name not in skip and not top.name.startswith(".")
        for path in (top.rglob("*") if top.is_dir() else [top])
        if path.is_file() and not skip & set(path.relative_to(root).parts)
    }
    assert sum(sizes.values()) < 40 * 2**20
    assert max(sizes.values()) < 16 * 2**20
