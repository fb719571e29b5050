"""How fast `collect` records rendered frames at the default resolution; prints one JSON object with the hardware.

    python tests/benchmarks/bench_collect.py [episodes] [workers]

Run it on an idle machine: other work on the same cores is all the number will show.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

from worldmodel.control.collect import CollectConfig, collect
from worldmodel.hardware import hardware_facts

BAR_FRAMES_PER_S = 400


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
        "load": round(os.getloadavg()[0], 1),
        "hardware": hardware_facts(),
    }
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
