"""Every notebook runs from top to bottom, at a small size, and is committed without output."""

from __future__ import annotations

import ast
import os
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
EXAMPLES = FOLDER.parent / "docs" / "examples"
NOTEBOOKS = sorted(path.name for path in FOLDER.glob("*.ipynb"))


def _with_parameters(notebook: Any, values: dict[str, object]) -> Any:
    """Append assignments to the cell tagged "parameters", as papermill would; unknown names are a mistake."""
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    known = {target.id for node in ast.parse(cell.source).body for target in node.targets}  # type: ignore[attr-defined]
    assert set(values) <= known, f"the notebook has no settings {sorted(set(values) - known)}"
    cell.source += "".join(f"\n{name} = {value!r}" for name, value in values.items())
    return notebook


def _outputs(notebook: Any, kind: str) -> list[str]:
    """Everything of one MIME type that the cells displayed."""
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return [output["data"][kind] for output in outputs if kind in output.get("data", {})]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebooks_are_committed_without_output(name: str) -> None:
    notebook = nbformat.read(FOLDER / name, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    assert [cell.id for cell in notebook.cells] == [str(place) for place in range(len(notebook.cells))], (
        "run nbstripout"
    )
    assert all(set(cell.metadata) <= {"tags"} for cell in notebook.cells), "run nbstripout"
    assert all(len(cell.source.splitlines()) <= 10 for cell in code), "prose and calls only: put code into the library"


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_rendered_copy_is_of_this_notebook(name: str) -> None:
    """Made by docs/render_notebooks.py; a notebook that changed has to be rendered again."""
    page = (FOLDER.parent / "docs" / "notebooks" / name).with_suffix(".md").read_text(encoding="utf-8")
    place = 0
    for cell in nbformat.read(FOLDER / name, as_version=4).cells:
        text = cell.source
        if cell.id == "0":  # a line about the rendering follows the title
            text = text.split("\n", 1)[1].strip()
        place = page.index(text, place) + len(text)
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page)
    assert pictures
    assert all((FOLDER.parent / "docs" / "notebooks" / picture).is_file() for picture in pictures)


def _run(name: str, folder: Path, wheel_path: Path, values: dict[str, object]) -> Any:
    """Execute a notebook in an empty folder with other settings, against the package of the wheel."""
    notebook = _with_parameters(nbformat.read(FOLDER / name, as_version=4), values)
    notebook.cells.append(nbformat.v4.new_code_cell("import worldmodel\nprint(worldmodel.__file__)"))
    client = NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}})
    client.execute(env={**os.environ, "PYTHONPATH": str(wheel_path)})
    where = notebook.cells.pop()
    assert where.outputs[0]["text"].startswith(str(wheel_path))
    return notebook


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebooks_define_nothing(name: str) -> None:
    cells = [cell for cell in nbformat.read(FOLDER / name, as_version=4).cells if cell.cell_type == "code"]
    source = "\n".join(line for cell in cells for line in cell.source.splitlines() if not line.startswith("%"))
    nodes = list(ast.walk(ast.parse(source)))
    assert not [node for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Lambda)]
    assert "%%" not in "".join(cell.source for cell in cells), "a cell magic may hide a definition"


def test_plan_and_watch(tmp_path: Path, wheel_path: Path, tiny_checkpoint: Path, small_manifest: Path) -> None:
    notebook = _run(
        "01_plan_and_watch.ipynb",
        tmp_path,
        wheel_path,
        {
            "CHECKPOINT": str(tiny_checkpoint),
            "ENV": "reach",
            "MANIFEST": str(small_manifest),
            "EPISODES": 1,
            "WORKERS": 1,
            "SAMPLES": 30,
            "FOLDER": str(tmp_path),
        },
    )
    assert any("data:video/mp4;base64," in shown for shown in _outputs(notebook, "text/html"))
    assert len(_outputs(notebook, "image/png")) == 2
    assert {path.name for path in tmp_path.glob("*.png")} == {"first_plan.png", "last_plan.png"}
    assert any("held at end" in shown for shown in _outputs(notebook, "text/plain"))


def test_what_the_encoder_sees(tmp_path: Path, wheel_path: Path, tiny_checkpoint: Path) -> None:
    notebook = _run(
        "02_what_the_encoder_sees.ipynb",
        tmp_path,
        wheel_path,
        {
            "CHECKPOINT": str(tiny_checkpoint),
            "ENV": "reach",
            "EPISODES": 8,
            "STEPS": 18,
            "ROLLOUTS": 4,
            "FOLDER": str(tmp_path),
        },
    )
    assert len(_outputs(notebook, "image/png")) == 7
    shown = "".join(_outputs(notebook, "text/html"))
    assert all(text in shown for text in ("world model", "first frames of the first episodes", "effective rank"))
    assert (tmp_path / "features.mp4").stat().st_size > 1000


def test_energy_landscapes(tmp_path: Path, wheel_path: Path, tiny_checkpoint: Path) -> None:
    notebook = _run(
        "03_energy_landscapes.ipynb",
        tmp_path,
        wheel_path,
        {
            "CHECKPOINT": str(tiny_checkpoint),
            "ENV": "reach",
            "SAMPLES": 20,
            "RESOLUTION": 7,
            "STATES": 2,
            "FOLDER": str(tmp_path),
        },
    )
    assert len(_outputs(notebook, "image/png")) == 6
    assert any("elites" in shown for shown in _outputs(notebook, "text/html"))


def test_compare_planners(tmp_path: Path, wheel_path: Path, tiny_checkpoint: Path, small_manifest: Path) -> None:
    notebook = _run(
        "04_compare_planners.ipynb",
        tmp_path,
        wheel_path,
        {
            "CHECKPOINT": str(tiny_checkpoint),
            "MANIFEST": str(small_manifest),
            "EPISODES": 2,
            "SAMPLES": 10,
            "ITERATIONS": 2,
            "WORKERS": 1,
            "FOLDER": str(tmp_path / "compare"),
        },
    )
    assert len(_outputs(notebook, "image/png")) == 1
    assert any("2 held-out episodes" in shown for shown in _outputs(notebook, "text/plain"))
    assert sorted(path.name for path in (tmp_path / "compare").iterdir()) == ["cem", "shooting"]


def test_new_environment(tmp_path: Path, wheel_path: Path) -> None:
    notebook = _run(
        "05_new_environment.ipynb",
        tmp_path,
        wheel_path,
        {
            "EXAMPLES": str(EXAMPLES),
            "EPISODES": 24,
            "PRETRAIN_STEPS": 4,
            "TRAIN_STEPS": 10,
            "DISTANCE_STEPS": 4,
            "TASKS": 2,
            "SAMPLES": 8,
            "FOLDER": str(tmp_path / "cart"),
        },
    )
    assert len(_outputs(notebook, "image/png")) == 4
    assert (tmp_path / "cart" / "train" / "checkpoint").is_dir()
    assert any("mine/Cart-v0, 2 held-out episodes" in shown for shown in _outputs(notebook, "text/html"))


def test_own_planner_and_objective(tmp_path: Path, wheel_path: Path, tiny_checkpoint: Path) -> None:
    notebook = _run(
        "06_own_planner_and_objective.ipynb",
        tmp_path,
        wheel_path,
        {
            "EXAMPLES": str(EXAMPLES),
            "CHECKPOINT": str(tiny_checkpoint),
            "SAMPLES": 12,
            "ITERATIONS": 2,
        },
    )
    assert len(_outputs(notebook, "image/png")) == 2
    assert sum("data:video/mp4;base64," in shown for shown in _outputs(notebook, "text/html")) == 2


def test_every_notebook_is_run_here() -> None:
    tested = (
        "01_plan_and_watch",
        "02_what_the_encoder_sees",
        "03_energy_landscapes",
        "04_compare_planners",
        "05_new_environment",
        "06_own_planner_and_objective",
    )
    assert [f"{name}.ipynb" for name in tested] == NOTEBOOKS, "add a test that runs the new notebook"
