from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import imageio.v3 as imageio
import numpy as np
import pytest

from worldmodel.analysis.inspect_data import contact_sheet, inspect
from worldmodel.data.episodes import Episode, EpisodeDataset, EpisodeSpec, EpisodeWriter, write_episodes
from worldmodel.errors import ConfigError, DataError

MakeEpisode = Callable[..., Episode]
Write = Callable[..., list[str]]


@pytest.fixture
def warnings_of(tmp_path: Path, episode_spec: EpisodeSpec) -> Write:
    def write(*episodes: Episode) -> list[str]:
        return inspect(write_episodes(tmp_path / "w.h5", episode_spec, episodes).path).warnings

    return write


def test_counts_and_rates(tmp_path: Path, episode_spec: EpisodeSpec, make_episode: MakeEpisode) -> None:
    reach = "worldmodel/Reach-v0"
    episodes = [make_episode(0, 7), make_episode(1, 11, policy="expert"), make_episode(2, 9, env_id=reach)]
    summary = inspect(write_episodes(tmp_path / "a.h5", episode_spec, episodes).path)
    assert (summary.episodes, summary.frames, summary.episode_len) == (3, 27, (7, 11))
    assert summary.minutes == pytest.approx(24 * 0.1 / 60)
    assert summary.episodes_per_env == {"worldmodel/Push-v0": 2, reach: 1}
    assert summary.episodes_per_policy == {"play": 2, "expert": 1}
    assert summary.success_rate == {
        "worldmodel/Push-v0, expert": 0.0,
        "worldmodel/Push-v0, play": 1.0,
        f"{reach}, play": 1.0,
    }
    assert summary.contact_rate == np.concatenate([e.contact for e in episodes]).mean()
    assert summary.shapes["pixels"] == "(27, 8, 8, 3) uint8"
    assert summary.shapes["contact"] == "(27,) bool"
    assert summary.warnings == []


def test_statistics_match_numpy_and_skip_the_filling_row(episode_file: EpisodeDataset) -> None:
    summary = inspect(episode_file.path)
    actions = np.concatenate([episode_file.episode(i).action for i in range(10)])
    stats = {(entry.array, entry.name): entry for entry in summary.stats}
    entry = stats["action", "action_1"]
    assert (entry.low, entry.high) == (actions[:, 1].min(), actions[:, 1].max())
    assert entry.mean == pytest.approx(actions[:, 1].mean(), rel=1e-4)
    assert entry.std == pytest.approx(actions[:, 1].std(), rel=1e-4)
    assert stats["proprio", "opening"].mean == pytest.approx(episode_file.proprio[:, 2].mean(), rel=1e-4)
    assert summary.pixel_mean == pytest.approx(episode_file.pixels.mean(), rel=1e-6)
    assert summary.pixel_std == pytest.approx(episode_file.pixels.std(), rel=1e-5)


def test_coverage_of_a_line_and_of_a_plane(
    tmp_path: Path, episode_spec: EpisodeSpec, make_episode: MakeEpisode
) -> None:
    episode = make_episode(0, 1000)
    rng = np.random.default_rng(0)
    gripper, line = rng.uniform(0, 1, (1000, 2)), np.repeat(np.linspace(0, 1, 1000)[:, None], 2, axis=1)
    episode = replace(episode, privileged=np.concatenate([gripper, line], axis=1).astype(np.float32))
    coverage = inspect(write_episodes(tmp_path / "a.h5", episode_spec, [episode]).path).coverage
    assert coverage["gripper"] > 0.95
    assert coverage["object"] == pytest.approx(0.1, abs=0.02)


def test_warns_of_static_episodes(warnings_of: Write, make_episode: MakeEpisode) -> None:
    still = make_episode(1)
    still = replace(still, pixels=np.repeat(still.pixels[:1], 7, axis=0))
    found = warnings_of(make_episode(0, 40), still)
    assert found == ["1 episodes in which no pixel changes: 1"]


def test_warns_of_repeated_frames(warnings_of: Write, make_episode: MakeEpisode) -> None:
    episode = make_episode(0, 11)
    episode = replace(episode, pixels=episode.pixels[np.arange(11) // 2 * 2])
    assert warnings_of(episode) == ["50% of frames equal the frame before them"]


def test_warns_of_repeated_episodes(warnings_of: Write, make_episode: MakeEpisode) -> None:
    found = warnings_of(make_episode(0), make_episode(1), replace(make_episode(0), seed=77))
    assert found == ["1 episodes show the same pictures as an earlier one: 2"]


def test_warns_of_clipped_actions(warnings_of: Write, make_episode: MakeEpisode) -> None:
    episode = make_episode(0)
    clipped = episode.action.copy()
    clipped[:, 1] = np.sign(clipped[:, 1])
    found = warnings_of(replace(episode, action=clipped))
    assert len(found) == 1
    assert found[0].startswith("50% of action entries lie on a bound")


def test_warns_when_nothing_is_touched(warnings_of: Write, make_episode: MakeEpisode) -> None:
    found = warnings_of(replace(make_episode(0), contact=np.zeros(7, np.bool_)))
    assert found == ["the object is touched in 0.0% of frames: too rarely to learn how it moves"]


def test_warns_of_constant_entries(warnings_of: Write, make_episode: MakeEpisode) -> None:
    episode = make_episode(0)
    episode.proprio[:, 2] = 0.25
    assert warnings_of(episode) == ["entries that never change: opening"]


def test_warns_of_things_that_left_the_scene(warnings_of: Write, make_episode: MakeEpisode) -> None:
    lost = make_episode(2)
    lost.privileged[5:, 3] = -36.0
    found = warnings_of(make_episode(0), make_episode(1), lost)
    assert found == ["object strays over 1 m from its median in 1 episodes: 2"]


def test_nan_is_an_error_that_names_the_episode(episode_file: EpisodeDataset) -> None:
    with h5py.File(episode_file.path, "r+") as file:
        file["proprio"][0, 0] = np.nan
    with pytest.raises(DataError, match="array proprio holds NaN or infinite values in episode 0"):
        inspect(episode_file.path)


def test_altered_pixels_are_an_error(episode_file: EpisodeDataset) -> None:
    with h5py.File(episode_file.path, "r+") as file:
        file["pixels"][0] = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(DataError, match="episode 0 differs from its digest"):
        inspect(episode_file.path)


def test_empty_file(tmp_path: Path, episode_spec: EpisodeSpec) -> None:
    EpisodeWriter(tmp_path / "a.h5", episode_spec).close()
    for call in (inspect, lambda path: contact_sheet(path, tmp_path / "a.png")):
        with pytest.raises(DataError, match="holds no episodes"):
            call(tmp_path / "a.h5")


def test_contact_sheet_shows_first_and_last_frames(episode_file: EpisodeDataset, tmp_path: Path) -> None:
    out = contact_sheet(episode_file.path, tmp_path / "deep" / "sheet.png", rows=3, columns=4, scale=2)
    sheet = imageio.imread(out)
    assert sheet.shape == (3 * 10 * 2, 4 * 10 * 2, 3)
    first, last = episode_file.episode(0).pixels[0], episode_file.episode(9).pixels[-1]
    np.testing.assert_array_equal(sheet[2:18:2, 2:18:2], first)
    np.testing.assert_array_equal(sheet[42:58:2, 62:78:2], last)


def test_contact_sheet_has_no_more_rows_than_episodes(episode_file: EpisodeDataset, tmp_path: Path) -> None:
    out = contact_sheet(episode_file.path, tmp_path / "sheet.png", rows=50, columns=2, scale=1)
    assert imageio.imread(out).shape == (100, 20, 3)


@pytest.mark.parametrize("name", ["rows", "columns", "scale"])
def test_contact_sheet_needs_positive_numbers(episode_file: EpisodeDataset, tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} must be >= 1, got 0"):
        contact_sheet(episode_file.path, tmp_path / "sheet.png", **{name: 0})
