"""The wheel holds everything and stands alone, also in a folder that has an `envs/` of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest


def command(*argv: str | Path, cwd: Path) -> str:
    env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    done = subprocess.run(list(map(str, argv)), cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_wheel_holds_every_file_the_checkout_has(wheel: Path, root: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert {name.split("/")[0] for name in names} == {"worldmodel"}
    expected = set()
    for top, prefix in (
        ("worldmodel", ""),
        ("envs", "worldmodel/"),
        ("planners", "worldmodel/"),
        ("configs", "worldmodel/"),
    ):
        for path in (root / top).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                expected.add(prefix + path.relative_to(root).as_posix())
    assert names == expected


@pytest.mark.slow
def test_the_wheel_runs_outside_the_checkout(wheel_path: Path, tmp_path: Path) -> None:
    home = tmp_path / "venv"
    venv.create(home, with_pip=False)
    python = home / "bin" / "python"
    site = Path(command(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip())
    shutil.copytree(wheel_path, site, dirs_exist_ok=True)
    # Dependencies come from this environment. A plain path entry, not addsitedir: the editable hook must stay away.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    for name in ("envs", "planners", "configs"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('the wrong package')\n")
    where = command(python, "-c", "import worldmodel.envs, worldmodel.planners as p; print(p.__file__)", cwd=tmp_path)
    assert where.startswith(str(site))
    assert "evaluate" in command(python, "-m", "worldmodel", "--help", cwd=tmp_path)
    assert "num_samples" in command(python, "-m", "worldmodel", "evaluate", "--dry-run", cwd=tmp_path)
