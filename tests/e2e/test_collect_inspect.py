from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from worldmodel.analysis.inspect_data import contact_sheet, inspect
from worldmodel.control.collect import CollectConfig, collect
from worldmodel.data.clips import ClipSampler
from worldmodel.data.episodes import EpisodeDataset


def test_collect_then_inspect_then_clips(tmp_path: Path) -> None:
    """Both environments in one file, recorded by two processes, read back as training clips."""
    out = str(tmp_path / "both.h5")
    small = {"out": out, "workers": 2, "image_size": 32, "steps": 20, "episodes_per_block": 3}
    collect(CollectConfig(env="push", episodes=6, **small))
    collect(CollectConfig(env="reach", episodes=6, append=True, **small))
    summary = inspect(out)
    assert (summary.episodes, summary.frames) == (12, 12 * 21)
    assert summary.episodes_per_env == {"worldmodel/Push-v0": 6, "worldmodel/Reach-v0": 6}
    assert not [w for w in summary.warnings if "pixel" in w or "pictures" in w]
    assert contact_sheet(out, tmp_path / "sheet.png").stat().st_size > 1000
    dataset = EpisodeDataset.open(out)
    train, _ = dataset.split(0.2, seed=0)
    batch = next(ClipSampler(dataset, train, num_frames=4, frame_step=3, batch_size=2))
    assert batch.pixels.shape == (2, 4, 32, 32, 3)
    assert batch.actions.shape == (2, 3, 12)


def test_the_number_of_workers_does_not_change_the_file(tmp_path: Path) -> None:
    hashes = []
    for workers in (1, 3):
        config = CollectConfig(
            episodes=7,
            out=str(tmp_path / f"{workers}.h5"),
            workers=workers,
            image_size=16,
            steps=4,
            episodes_per_block=2,
        )
        hashes.append(collect(config).content_hash)
    assert hashes[0] == hashes[1]


INDEX_BYTES = 150_000
"""Less than the names in the index of the first block take (two columns of 1024 x 64 bytes), more than its frames."""

_ENDLESS = """
import signal, sys
from worldmodel.control.collect import CollectConfig, collect
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell starts with Ctrl-C ignored
collect(CollectConfig(episodes=10**6, out=sys.argv[1], workers=2, image_size=16, steps=2, episodes_per_block=2))
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_recording_can_be_continued(tmp_path: Path, how: signal.Signals) -> None:
    out = tmp_path / "a.h5"
    process = subprocess.Popen([sys.executable, "-c", _ENDLESS, str(out)], stderr=subprocess.DEVNULL)
    indexed = 0
    while process.poll() is None:
        size = out.stat().st_size if out.exists() else 0
        if indexed and size > indexed:  # a further block is being written, so the index of the first is complete
            break
        if size > INDEX_BYTES:
            indexed = indexed or size
        time.sleep(0.05)
    process.send_signal(how)
    assert process.wait(timeout=60) == -how
    stopped = EpisodeDataset.open(out)
    stopped.verify()
    assert len(stopped) >= 2
    goal = len(stopped) + 3
    collect(CollectConfig(episodes=goal, out=str(out), workers=1, image_size=16, steps=2, append=True))
    fresh = CollectConfig(episodes=goal, out=str(tmp_path / "fresh.h5"), workers=1, image_size=16, steps=2)
    assert EpisodeDataset.open(out).content_hash == collect(fresh).content_hash
