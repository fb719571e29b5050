"""What would an encoder that sees everything hold? The recipe of `low_label`, on pictures that are the true state.

    python tests/benchmarks/bench_state.py outputs/push.h5 outputs/bench_state 200 0 1 2

(Push recording, folder, labelled episodes or "all", seeds). Seeds draw the same labelled episodes as those of
`worldmodel reproduce experiment=low_label` do from the same recording, and the tasks are the same: what is missing
here is missing for every encoder, and is not to be had from pretraining. An interrupted run continues in its folder.
Prints a table and one JSON object; minutes of two cores per seed.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table
from state_pictures import STATE_PUSH_ID, StateConfig, state_manifest, state_recording

from worldmodel.commands import evaluate, train
from worldmodel.commands.run import Run
from worldmodel.config import load
from worldmodel.data.episodes import EpisodeDataset
from worldmodel.evaluation.manifest import load_manifest
from worldmodel.evaluation.stats import wilson_interval
from worldmodel.hardware import hardware_facts


def run(folder: Path) -> Run:
    """A run in a folder, without bars."""
    folder.mkdir(parents=True, exist_ok=True)
    return Run(folder=folder, console=Console(stderr=True), progress=False)


def main() -> None:
    """Train and evaluate every seed."""
    data, out, labels, *seeds = sys.argv[1:]
    folder = Path(out)
    recording, tasks = folder / "state.h5", folder / "manifest.json.gz"
    source = EpisodeDataset.open(data)
    if not recording.is_file():
        partial = recording.with_suffix(".partial")
        partial.unlink(missing_ok=True)
        state_recording(source, str(partial))
        partial.rename(recording)
    state_manifest(load_manifest("push")).save(tasks)
    recipe = load("reproduce", ["experiment=low_label"]).settings.low_label
    found = {}
    for seed in seeds:
        part = folder / f"{labels}-s{seed}"
        overrides = [*recipe.train, f"seed={seed}", f"labelled_episodes={'null' if labels == 'all' else labels}"]
        settings = load("train", [*overrides, f"data={recording}"]).settings
        paths = {"out": str(part / "model"), "cache_dir": str(folder / "features")}
        train.run(replace(settings, encoder=StateConfig(), **paths), run(part / "train"))
        asked = [f"env=state_pictures:{STATE_PUSH_ID}", f"checkpoint={part / 'model'}", f"manifest={tasks}"]
        judged = load("evaluate", [*recipe.evaluate, *asked, f"episodes={recipe.episodes}", "workers=2"]).settings
        result = evaluate.run(judged, run(part / "evaluate")).record
        found[seed] = [bool(row["held"]) for row in result["episodes_table"]]
    table = Table("seed", "held, %", "95 %", title=f"True state, {labels} labelled episodes, n = {recipe.episodes}")
    for seed, held in found.items():
        low, high = wilson_interval(sum(held), len(held))
        table.add_row(seed, f"{100 * sum(held) / len(held):.1f}", f"{100 * low:.0f}-{100 * high:.0f}")
    Console(stderr=True).print(table)
    record = {"recording": source.content_hash, "labels": labels, "held": found, "hardware": hardware_facts()}
    sys.stdout.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
