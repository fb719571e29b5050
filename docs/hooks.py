"""Pages of the site that follow from the code or from records: API reference, decisions, results.

mkdocs calls `on_config`, `on_files` and `on_page_markdown`, with this folder on the path; the results are computed in
results_page.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from results_page import results_page

DOCS = Path(__file__).resolve().parent
API = {
    "worldmodel": "Records, errors, conformance checks and configuration",
    "envs": "Environments: the contract, the tasks, scripted policies, rendering",
    "data": "Episodes on disk, clips, normalisation",
    "models": "What is learned: encoders, heads, predictors, the world model, checkpoints",
    "learning": "How it is learned: targets, dynamics, the training loop, probes, health",
    "planners": "Searches for cheap action sequences",
    "control": "From a model to actions: objectives, costs, agents, collection",
    "evaluation": "What is claimed: manifests, episodes, statistics, comparisons, verdicts",
    "analysis": "What can be seen: figures, videos, reports",
    "commands": "The commands of the program and their settings",
}
_TOP_LEVEL = {"envs", "planners"}
_TOP_MODULES = ("types", "errors", "testing", "config", "display", "doctor", "cli")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fill the parts of the navigation that follow from files."""
    api: list[Any] = ["api/index.md", *({name: f"api/{name}.md"} for name in API)]
    decisions: list[Any] = ["decisions/index.md", *({_title(path): f"decisions/{path.name}"} for path in _decisions())]
    notebooks: list[Any] = [
        {_title(path): f"notebooks/{path.name}"} for path in sorted((DOCS / "notebooks").glob("*.md"))
    ]
    _fill(config.nav, {"API reference": api, "Decisions": decisions, "Notebooks": notebooks})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are written here."""
    pages = {"results.md": results_page(), "decisions/index.md": decisions_page(), **api_pages(DOCS.parent)}
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Make links that are right in the repository right on the site."""
    if page.file.src_uri in ("changelog.md", "contributing.md"):  # files of the root, whose links begin there
        text = (DOCS.parent / f"{page.file.src_uri.removesuffix('.md').upper()}.md").read_text(encoding="utf-8")
        return text.replace("](docs/", "](")
    return markdown.replace("](decisions/)", "](decisions/index.md)")


def _fill(nav: Any, filled: Mapping[str, list[Any]]) -> None:
    """Replace the entries of some names, anywhere in a navigation."""
    for entry in nav if isinstance(nav, list) else []:
        for name in entry if isinstance(entry, dict) else ():
            entry[name] = filled.get(name, entry[name])
            _fill(entry[name], filled)


def api_pages(root: Path) -> dict[str, str]:
    """Source name to text: one page per package, one section per public module, and an index."""
    index = "".join(f"- [`{_import_name(name)}`]({name}.md): {text}.\n" for name, text in API.items())
    pages = {"api/index.md": f"# API reference\n\nGenerated from the docstrings.\n\n{index}"}
    for name, text in API.items():
        folder = root / name if name in _TOP_LEVEL else root / "worldmodel" / ("" if name == "worldmodel" else name)
        modules = _TOP_MODULES if name == "worldmodel" else _modules(folder)
        sections = "".join(
            f"\n::: {_import_name(name)}.{module}\n    options: {{heading_level: 2}}\n" for module in modules
        )
        pages[f"api/{name}.md"] = f"# {_import_name(name)}\n\n{text}.\n{sections}"
    return pages


def _import_name(name: str) -> str:
    return name if name == "worldmodel" else f"worldmodel.{name}"


def _modules(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))


def _decisions() -> list[Path]:
    return sorted((DOCS / "decisions").glob("[0-9]*.md"))


def _title(path: Path) -> str:
    return path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")


def decisions_page() -> str:
    """Index of the decisions."""
    lines = "".join(f"- [{_title(path)}]({path.name})\n" for path in _decisions())
    return f"# Decisions\n\nChoices with a cost: what was chosen, why, and what it costs.\n\n{lines}"
