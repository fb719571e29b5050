"""Entry point of `python -m worldmodel` and of the `worldmodel` script."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line and exit with its status."""
    from worldmodel.cli import main as run

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
