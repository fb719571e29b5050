from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from worldmodel.data.distractor import DistractorConfig, distract
from worldmodel.data.episodes import EpisodeDataset
from worldmodel.errors import ConfigError

GREY = np.full((6, 20, 20, 3), 128, np.uint8)
STEPS = np.arange(6)


@pytest.mark.parametrize("kind", ["flicker", "sway"])
def test_a_patch_changes_from_frame_to_frame_and_the_rest_stays(kind: str) -> None:
    config = DistractorConfig(kind=kind, height=0.5, width=0.5)
    out = distract(GREY, config, episode=3, steps=STEPS)
    changed = (out != 128).any(axis=(0, 3))
    rows, columns = np.nonzero(changed)
    assert rows.max() < 10
    assert np.ptp(columns) < 10
    assert changed.mean() > 0.2
    changes = sum((out[t] != out[t + 1]).any() for t in range(5))
    assert changes >= (5 if kind == "flicker" else 3)  # a texture may pause
    assert (GREY == 128).all()


@pytest.mark.parametrize("kind", ["flicker", "sway"])
def test_a_frame_looks_the_same_however_it_is_read_and_episodes_differ(kind: str) -> None:
    config = DistractorConfig(kind=kind)
    whole = distract(GREY, config, episode=3, steps=STEPS)
    assert np.array_equal(distract(GREY[4:5], config, episode=3, steps=STEPS[4:5]), whole[4:5])
    assert np.array_equal(distract(GREY[1::2], config, episode=3, steps=STEPS[1::2]), whole[1::2])
    assert not np.array_equal(distract(GREY, config, episode=4, steps=STEPS), whole)
    other = DistractorConfig(kind=kind, seed=1)
    assert not np.array_equal(distract(GREY, other, episode=3, steps=STEPS), whole)


def test_flicker_cannot_be_predicted_from_the_frame_before() -> None:
    many = np.repeat(GREY[:1], 400, axis=0)
    patch = distract(many, DistractorConfig(kind="flicker", height=1, width=1), episode=0, steps=np.arange(400))
    series = patch[:, 0, 0, 0].astype(float)
    assert abs(np.corrcoef(series[1:], series[:-1])[0, 1]) < 0.15
    assert series.std() > 60


def test_none_leaves_everything() -> None:
    assert distract(GREY, DistractorConfig(), episode=0, steps=STEPS) is GREY
    assert DistractorConfig().facts is None


def test_a_data_set_read_through_it(episode_file: EpisodeDataset, tmp_path: Path) -> None:
    """Windows across episodes, single frames and the whole file agree; the hash tells it from the plain file."""
    config = DistractorConfig(kind="flicker")
    seen = EpisodeDataset.open(episode_file.path, distractor=config)
    first, length = int(episode_file.index.start[2]), int(episode_file.index.length[2])
    plain = episode_file.load_pixels(first, first + length)
    expected = distract(plain, config, episode=2, steps=np.arange(length))
    assert np.array_equal(seen.pixels[first : first + length], expected)
    assert np.array_equal(seen.load_pixels(first - 1, first + 2)[1:], expected[:2])
    assert np.array_equal(seen.episode(2).pixels, expected)
    assert seen.content_hash != episode_file.content_hash
    assert (
        EpisodeDataset.open(episode_file.path, distractor=DistractorConfig()).content_hash == episode_file.content_hash
    )


@pytest.mark.parametrize("wrong", [{"kind": "rain"}, {"height": 0.0}, {"width": 1.5}, {"seed": -1}])
def test_settings_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=f"distractor.{next(iter(wrong))} must be"):
        DistractorConfig(**wrong)  # type: ignore[arg-type]
