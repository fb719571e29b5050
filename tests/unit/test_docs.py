"""The site: pages for everything that has one, figures that follow from records, links that resolve."""

from __future__ import annotations

import importlib
import importlib.util
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from worldmodel.cli import main
from worldmodel.config import presets
from worldmodel.envs import ENV_IDS, make_env
from worldmodel.evaluation.manifest import load_manifest

pytest.importorskip("mkdocs", reason="mkdocs is not installed (pip install -e '.[docs]')")
ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
SHARED_PAGE = {"cem_fast", "cem_anytime", "vjepa2_ac", "oracle", "latent_oracle"}


def loaded(name: str) -> ModuleType:
    """A script of the docs folder as a module."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def records() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(DOCS)  # as mkdocs does for hooks
        yield importlib.import_module("results_records")


@pytest.fixture(scope="module")
def page(records: ModuleType) -> str:
    return str(importlib.import_module("results_page").results_page())


def test_every_planner_has_a_page() -> None:
    names = {name.partition("/")[2] for name in presets() if name.startswith("planner/")}
    index = (DOCS / "planners" / "index.md").read_text(encoding="utf-8")
    cem = (DOCS / "planners" / "cem.md").read_text(encoding="utf-8")
    for name in names - SHARED_PAGE:
        page = (DOCS / "planners" / f"{name}.md").read_text(encoding="utf-8")
        assert f"`planner={name}`" in page
        assert f"({name}.md)" in index
    for name in names & SHARED_PAGE:
        assert re.search(rf"`planner(@\w+)?={name}`", cem), name


@pytest.mark.parametrize("name", list(ENV_IDS))
def test_every_environment_has_a_page_with_its_success_predicate(name: str) -> None:
    page = (DOCS / "environments" / f"{name}.md").read_text(encoding="utf-8")
    env = make_env(name, render=False)
    assert ENV_IDS[name] in page
    assert "**Success predicate**" in page
    assert f"within {100 * env.success_radius_m:g} cm" in page
    assert f"env.goal_distance() <= {env.success_radius_m:g}" in page
    assert f"last of {env.max_steps} steps" in page


def test_every_record_is_described(records: ModuleType) -> None:
    left = records.undescribed(records.load_records())
    assert not left, f"say in docs/results/records.toml how these were made: {left}"


def test_results_are_computed_from_records(page: str) -> None:
    (row,) = [line for line in page.splitlines() if "shipped/push-200.csv" in line]
    for figure in ("| 200 |", "77.5 % [71, 83]", "83 % [77, 88]", "95912362342b", "worldmodel evaluate env=push"):
        assert figure in row, row
    (row,) = [line for line in page.splitlines() if "planners_400/icem.jsonl" in line]
    assert "-12 [-23, -1], p 0.05" in row
    assert "76d40ca4dfb2" in row
    tables = [line for line in page.splitlines() if line.startswith("|")]
    heads = {
        line.count(" | ") for line in tables if line.startswith(("| Row", "| Model", "| Part", "| Task", "| encoder"))
    }
    rows = [line for line in tables if not line.startswith(("| ---", "|---"))]
    assert all(re.sub(r"`[^`]*`", "", line).count(" | ") in heads for line in rows)
    assert "59.6 ± 1.2 [58, 61]" in page  # V-JEPA, pose, all labels: computed from the cells
    assert "| pose | 17 [15, 19] | 7 [-5, 14] | 11 [7, 16] |" in page  # lost under the distractor
    assert "none: random weights read as much" in page
    assert "| [pose](results/probe/efficiency.json) | 52.5 | 3.17 [0.92, 3.55] |" in page
    assert "without a description" not in page


def test_a_record_of_other_tasks_is_refused(records: ModuleType, tmp_path: Path) -> None:
    source = (DOCS / "results" / "shipped" / "reach-200.csv").read_text(encoding="utf-8").splitlines()
    first = tmp_path / "first.csv"
    first.write_text("\n".join(source[:11]) + "\n")
    outcomes = records.read_outcomes(first)
    facts: dict[str, Any] = {"file": "first.csv", "manifest": "reach"}
    assert records.check_tasks(outcomes, load_manifest("reach"), facts) == load_manifest("reach").hash
    with pytest.raises(records.RecordError, match="another list of tasks"):
        records.check_tasks(outcomes, load_manifest("push"), facts)
    gap = tmp_path / "gap.csv"
    gap.write_text("\n".join([source[0], *source[2:5]]) + "\n")
    with pytest.raises(records.RecordError, match="every episode from 0 on"):
        records.read_outcomes(gap)


def test_the_commands_of_the_pages_compose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = set()
    for path in [*DOCS.glob("*.md"), *(DOCS / "planners").glob("*.md"), *(DOCS / "environments").glob("*.md")]:
        if path.name != "log.md":
            blocks = re.findall(r"```sh\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)
            lines |= {line for block in blocks for line in block.splitlines() if line.startswith("worldmodel ")}
    assert len(lines) >= 30
    monkeypatch.chdir(tmp_path)
    for line in sorted(lines):
        assert main([*shlex.split(line, comments=True)[1:], "--dry-run"]) == 0, line


def test_links_resolve(tmp_path: Path) -> None:
    """The strict build without the API's bodies, which `make docs` adds: navigation, pages and links are all here."""
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    config = load_config(
        str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path / "site"), strict=True, plugins=[], theme={"name": "mkdocs"}
    )
    build(config)
    assert (tmp_path / "site" / "results.html").is_file()
    assert (tmp_path / "site" / "api" / "planners.html").is_file()


def test_a_recorded_screen_is_what_a_terminal_shows(tmp_path: Path) -> None:
    recorder = loaded("record_terminal")
    screen = recorder.Screen()
    for piece in ("busy\rdone \x1b[1;", "31mred\x1b[0m\r\nbar \x1b", "[38;5;70m━━\x1b[0m 1/2\r\n"):
        screen.write(piece)
    screen.write("\x1b[1A\x1b[2Kbar ━━ 2/2\r\nab\x08c\x1b[?25l\r\n" + "x" * 101)
    assert screen.text() == ["done red", "bar ━━ 2/2", "ac", "x" * 100, "x"]
    colours = [colour for character, colour in screen.lines[0] if character in "re"]
    assert colours[0] == recorder._INK
    assert set(colours[-2:]) == {(174, 92, 92)}  # (128, 0, 0) is too dark to read
    picture = recorder.draw({"plan": (screen, ["bar ━━ 1/2"])}, tmp_path / "terminal.png")
    assert 0 < picture.stat().st_size < 300_000
    shown, half = recorder.record("--version")
    assert shown.text()[0].startswith("worldmodel ")
    assert half == []
    with pytest.raises(RuntimeError, match="ended with status 2"):
        recorder.record("nonsense")
