"""Copies of the notebooks with what they show: `python docs/render_notebooks.py [02 ...]`.

Executes `notebooks/*.ipynb` at the size they are committed with (the shipped checkpoint; minutes each on two cores) and
writes docs/notebooks/NAME.md with its pictures beside it. Data and runs go into outputs/notebooks, where a second call
finds them; the minutes of every notebook are written into its page.
"""

from __future__ import annotations

import argparse
import io
import re
import time
from datetime import date
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbconvert import MarkdownExporter
from PIL import Image

from worldmodel.hardware import hardware_facts

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "docs" / "notebooks"
WORK = ROOT / "outputs" / "notebooks"
_COLOURS = 128
_ANSI = re.compile(r"\x1b\[[\d;]*m")


def render(path: Path, folder: Path) -> None:
    """Execute a notebook in `folder` and write its page."""
    notebook = nbformat.read(path, as_version=4)
    (settings,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    written = settings.source
    if "EXAMPLES" in written:
        settings.source += f"\nEXAMPLES = {str(ROOT / 'docs' / 'examples')!r}"
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=1800, kernel_name="python3", resources=resources).execute()
    minutes = (time.monotonic() - started) / 60
    settings.source = written
    facts = hardware_facts()
    machine = f"{facts['cores']} cores ({facts['processor']}, {facts['device']})"
    write_page(notebook, path.stem, f"{minutes:.1f} minutes on {machine}, {date.today().isoformat()}")


def write_page(notebook: nbformat.NotebookNode, name: str, note: str) -> None:
    """docs/notebooks/NAME.md and its pictures, reduced to a palette."""
    for cell in notebook.cells:
        outputs = cell.get("outputs", [])
        cell.outputs = [output for output in outputs if output.get("name") != "stderr"]  # progress bars
        for output in cell.outputs:
            if "text" in output:
                output["text"] = _ANSI.sub("", output["text"])
            if (html := output.get("data", {}).get("text/html")) is not None:
                output["data"]["text/html"] = f"\n<div>\n{html}\n</div>\n"
    exporter = MarkdownExporter()
    body, resources = exporter.from_notebook_node(notebook, {"output_files_dir": name, "unique_key": name})
    title, rest = body.strip().split("\n", 1)
    PAGES.mkdir(parents=True, exist_ok=True)
    (PAGES / f"{name}.md").write_text(
        f"{title}\n\n*`notebooks/{name}.ipynb` as executed by `docs/render_notebooks.py` ({note}).*\n{rest}\n",
        encoding="utf-8",
    )
    for old in (PAGES / name).glob("*"):
        old.unlink()
    for file, data in resources["outputs"].items():
        target = PAGES / file
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(_small(data) if file.endswith(".png") else data)


def _small(data: bytes) -> bytes:
    """The same PNG with a palette, a third of the size."""
    image = Image.open(io.BytesIO(data)).convert("RGB").quantize(_COLOURS, dither=Image.Dither.NONE)
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return file.getvalue()


def main() -> None:
    """Render the notebooks whose numbers are given, all without."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("numbers", nargs="*", help="such as 02; all notebooks without")
    numbers = parser.parse_args().numbers
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        if not numbers or path.name[:2] in numbers:
            render(path, WORK / path.stem)
            print(f"{path.stem} done", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
