"""How fast `collect` records rendered frames at the default resolution; prints one JSON object with the hardware.

    python tests/benchmarks/bench_collect.py [episodes] [workers]

Run it on an idle machine: other work on the same cores is all the number will show.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
from pathlib import Path

import mujoco

from worldmodel.control.collect import CollectConfig, collect

BAR_FRAMES_PER_S = 400


def processor() -> str:
    """Model name of the CPU, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        if names:
            return names[0]
    return platform.processor() or platform.machine()


def main() -> None:
    """Record both environments into a temporary folder and print the rates."""
    episodes = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    workers = int(sys.argv[2]) if len(sys.argv) > 2 else 2
    rates = {}
    with tempfile.TemporaryDirectory() as folder:
        for env in ("reach", "push"):
            out = str(Path(folder) / f"{env}.h5")
            report = collect(CollectConfig(env=env, episodes=episodes, workers=workers, out=out))
            rates[env] = round(report.frames_per_s, 1)
    result = {
        "benchmark": "collect",
        "frames_per_s": rates,
        "bar_frames_per_s": BAR_FRAMES_PER_S,
        "episodes": episodes,
        "workers": workers,
        "image_size": CollectConfig().image_size,
        "hardware": f"{processor()}, {os.cpu_count()} logical cores, load {os.getloadavg()[0]:.1f}",
        "python": platform.python_version(),
        "mujoco": mujoco.__version__,
    }
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
