"""Run a recipe as the program it is: `run_recipe.py RECIPE [SETTING ...] < COMMANDS`.

The settings are added to the recipe's trainings. The lines of the standard input are commands that follow. What fails
ends the program, and so does a package that is not the one of the first entry of PYTHONPATH.
"""

from __future__ import annotations

import os
import runpy
import shlex
import sys
from collections.abc import Sequence

import worldmodel
from worldmodel import cli

program = cli.main


def checked(argv: Sequence[str]) -> int:
    """The program, whose failure is the recipe's."""
    more = sys.argv[2:] if argv[0] in ("pretrain", "train") else []
    if status := program([*argv, *more]):
        sys.exit(f"worldmodel {' '.join(argv)} ended with {status}")
    return 0


if __name__ == "__main__":
    where, first = str(worldmodel.__file__), os.environ["PYTHONPATH"].split(os.pathsep)[0]
    if not where.startswith(first):
        sys.exit(f"worldmodel comes from {where}, not from {first}")
    if sys.argv[1] != "-":
        cli.main = checked
        runpy.run_path(sys.argv[1], run_name="__main__")
    for line in sys.stdin:
        checked(shlex.split(line))
