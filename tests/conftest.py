"""Shared fixtures, and a guard: every test must run against this checkout, not against another installation."""

from __future__ import annotations

import importlib
import os
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
SOURCES = {
    "worldmodel": ROOT / "worldmodel",
    "worldmodel.configs": ROOT / "configs",
    "worldmodel.envs": ROOT / "envs",
    "worldmodel.planners": ROOT / "planners",
}


def pytest_sessionstart(session: pytest.Session) -> None:
    """Stop at once when the import name resolves anywhere else than under this checkout."""
    for name, folder in SOURCES.items():
        found = Path(str(importlib.import_module(name).__file__)).resolve().parent
        if found != folder:
            pytest.exit(
                f"{name} is imported from {found}, not from {folder}: install this checkout with `make venv`",
                returncode=4,
            )
    torch.set_num_threads(1)  # xdist workers share the cores; more threads than cores slow every test down
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # also in the processes that tests start


@pytest.fixture(scope="session")
def root() -> Path:
    """Root folder of the checkout."""
    return ROOT
