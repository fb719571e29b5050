from __future__ import annotations

import re
import subprocess
from dataclasses import replace
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest

from worldmodel.analysis.video import Film, compose, upscale, write_video
from worldmodel.errors import DataError


@pytest.fixture(name="film")
def _film() -> Film:
    rng = np.random.default_rng(0)
    return Film(
        frames=rng.integers(0, 256, (5, 16, 16, 3), dtype=np.uint8),
        goal=rng.integers(0, 256, (16, 16, 3), dtype=np.uint8),
        costs=np.array([4.0, 3.0, np.nan, 1.0, 0.5]),
        success=np.array([False, False, False, True, True]),
        title="Test-v0",
    )


def test_upscale_repeats_pixels() -> None:
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    large = upscale(image, 5)
    assert large.shape == (6, 6, 3)
    assert (large[:3, :3] == image[0, 0]).all()
    assert (large[3:, 3:] == image[1, 1]).all()


def test_pictures_hold_camera_and_goal_and_a_moving_marker(film: Film) -> None:
    pictures = list(compose(film, side=96))
    assert len(pictures) == 5
    assert all(side % 16 == 0 for side in pictures[0].shape[:2])
    for frame, picture in zip(film.frames, pictures, strict=True):
        np.testing.assert_array_equal(picture[48 : 48 + 96, 16 : 16 + 96], upscale(frame, 96))
        np.testing.assert_array_equal(picture[48 : 48 + 96, 128 : 128 + 96], upscale(film.goal, 96))
    curve = [picture[48 + 96 :].astype(int) for picture in pictures]
    orange = [np.argwhere((part[..., 0] > 200) & (part[..., 2] < 20)) for part in curve]
    assert orange[0][:, 1].mean() < orange[1][:, 1].mean() < orange[4][:, 1].mean()
    assert orange[0][:, 0].mean() < orange[1][:, 0].mean() < orange[4][:, 0].mean()
    assert len(orange[2]) == 0, "an unknown cost has no marker"


def test_video_is_h264_that_browsers_play(tmp_path: Path, film: Film) -> None:
    path = write_video(tmp_path / "new" / "episode.mp4", film, hold_s=0.3)
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(path), "-f", "null", "-"]
    report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    stream = re.search(r"Video: (h264).*?(yuv420p).*?(\d+)x(\d+).*?(\d+) fps", report)
    assert stream, report
    assert int(stream[3]) >= 2 * 384
    assert int(stream[4]) >= 384
    assert stream[5] == "10"
    assert re.findall(r"frame=\s*(\d+)", report)[-1] == str(5 + 3)
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat"), "the index must come first for playback while loading"
    assert [entry.name for entry in path.parent.iterdir()] == ["episode.mp4"]


def test_costs_may_be_unknown_throughout(film: Film) -> None:
    assert len(list(compose(replace(film, costs=np.full(5, np.nan)), side=32))) == 5


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"frames": np.zeros((5, 16, 16, 3))}, "frames"),
        ({"goal": np.zeros((8, 8, 3), dtype=np.uint8)}, "goal"),
        ({"costs": np.zeros(4)}, "costs"),
        ({"success": np.zeros(6, dtype=bool)}, "success"),
        ({"dt_s": 0.0}, "dt_s"),
    ],
)
def test_film_refuses_what_does_not_fit(film: Film, change: dict[str, object], named: str) -> None:
    with pytest.raises(DataError, match=named):
        replace(film, **change)


def test_other_containers_are_refused(tmp_path: Path, film: Film) -> None:
    with pytest.raises(DataError, match="mp4"):
        write_video(tmp_path / "episode.gif", film)
