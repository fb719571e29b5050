"""Every notebook runs from top to bottom, at a small size, and is committed without output."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
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
    assert all(len(cell.source.splitlines()) <= 10 for cell in code), "prose and calls only: put code into the library"


def test_plan_and_watch(tmp_path: Path, tiny_checkpoint: Path, small_manifest: Path) -> None:
    notebook = _with_parameters(
        nbformat.read(FOLDER / "01_plan_and_watch.ipynb", as_version=4),
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
    NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    assert any("data:video/mp4;base64," in shown for shown in _outputs(notebook, "text/html"))
    assert len(_outputs(notebook, "image/png")) == 2
    assert {path.name for path in tmp_path.glob("*.png")} == {"first_plan.png", "last_plan.png"}
    assert any("held at end" in shown for shown in _outputs(notebook, "text/plain"))


def test_every_notebook_is_run_here() -> None:
    assert NOTEBOOKS == ["01_plan_and_watch.ipynb"], "add a test that runs the new notebook"
