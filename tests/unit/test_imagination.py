"""Imagination shown as real frames: on a model that is exact, what is imagined is what comes true."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from worldmodel.analysis.decoder import LABEL, decoder_figure, fit_decoder
from worldmodel.analysis.frame_bank import FrameBank
from worldmodel.analysis.imagination import (
    Imagined,
    draw_clips,
    imagine,
    nearest_figure,
    path_figure,
    retrieval,
    retrieval_figure,
)
from worldmodel.analysis.samples import sample_episodes
from worldmodel.data.episodes import EpisodeDataset
from worldmodel.errors import ConfigError, DataError
from worldmodel.testing import POINT_MASS_ID, PointMassModel

MODEL = PointMassModel(action_block=2, image_size=32)


@pytest.fixture(scope="module", name="data")
def _data(tmp_path_factory: pytest.TempPathFactory) -> EpisodeDataset:
    path = tmp_path_factory.mktemp("data") / "dots.h5"
    return sample_episodes(path, POINT_MASS_ID, episodes=12, steps=16, image_size=32, expert_fraction=0)


@pytest.fixture(scope="module", name="bank")
def _bank(data: EpisodeDataset) -> FrameBank:
    return FrameBank.build(MODEL, data)


@pytest.fixture(scope="module", name="imagined")
def _imagined(data: EpisodeDataset) -> Imagined:
    return imagine(MODEL, data, [(0, 0), (5, 3), (7, 6)], horizon=4)


def test_a_file_of_samples_is_recorded_once(data: EpisodeDataset) -> None:
    before = data.content_hash
    again = sample_episodes(data.path, POINT_MASS_ID, episodes=12, steps=16, image_size=32, expert_fraction=0)
    assert again.content_hash == before
    assert len(again) == 12


def test_an_exact_model_imagines_what_comes_true(data: EpisodeDataset, imagined: Imagined) -> None:
    np.testing.assert_array_equal(imagined.frames[1], data.episode(5).pixels[3:12:2])
    np.testing.assert_allclose(imagined.real, imagined.truth, atol=0.02, err_msg="the latent is the place")
    np.testing.assert_allclose(imagined.imagined, imagined.real, atol=0.03)
    np.testing.assert_array_equal(imagined.imagined[:, 0], imagined.real[:, 0])


def test_a_bank_finds_its_own_frames_unless_they_are_left_out(data: EpisodeDataset, bank: FrameBank) -> None:
    assert len(bank) == data.num_frames
    near = bank.nearest(bank.latents[:20])
    np.testing.assert_allclose(near.distance, 0, atol=1e-3)
    others = bank.nearest(bank.latents[:20], count=3, leave_out=bank.episode[:20])
    assert (bank.episode[others.rows] != bank.episode[:20, None]).all()
    assert (np.diff(others.distance, axis=1) >= 0).all()
    expected = np.square(bank.latents[:20, None] - bank.latents[others.rows]).mean(axis=-1) ** 0.5
    np.testing.assert_allclose(others.distance, expected, atol=1e-3)


def test_a_small_bank_is_spread_over_episodes(data: EpisodeDataset) -> None:
    small = FrameBank.build(MODEL, data, np.array([1, 2, 3, 4]), max_frames=16)
    assert len(small) == 16
    assert len(set(small.episode.tolist())) == 2, "at least eight frames of each"
    assert set(small.episode.tolist()) <= {1, 2, 3, 4}
    row = int(data.index.start[small.episode[0]])
    assert small.truth[0].tolist() in data.privileged[row : row + 17].tolist()


def test_retrieved_frames_are_judged_by_true_places(imagined: Imagined, bank: FrameBank) -> None:
    found = retrieval(imagined, bank, names=("x", "y"), radius_m=0.2)
    near, _ = imagined.look_up(bank)
    last = near.rows[4::5, 0]
    expected = np.linalg.norm(bank.truth[last] - imagined.truth[:, -1], axis=1)
    np.testing.assert_allclose(found.error_m, expected, atol=1e-6)
    moved = np.linalg.norm(imagined.truth[:, 0] - imagined.truth[:, -1], axis=1)
    np.testing.assert_allclose(found.still_error_m, moved, atol=1e-6)
    record = found.to_json()
    assert record["all"]["imagined"]["clips"] == 3
    assert record["all"]["imagined"]["right"] == int((expected <= 0.2).sum())
    assert record["object_moved"]["real"]["clips"] == int((moved > 0.1).sum())
    with pytest.raises(ConfigError, match="records x, y, not object_x"):
        retrieval(imagined, bank, names=("object_x",))


def test_clips_are_drawn_from_every_episode_and_fit(data: EpisodeDataset) -> None:
    clips = draw_clips(data, np.array([2, 3, 9]), 8, horizon=4, action_block=2)
    assert [sorted(episode for episode, _ in clips[i : i + 3]) for i in (0, 3)] == [[2, 3, 9]] * 2
    assert len(clips) == 8
    assert all(0 <= start <= 16 - 8 for _, start in clips)
    with pytest.raises(DataError, match="no episode holds 9 model steps"):
        draw_clips(data, np.array([2]), 1, horizon=9, action_block=2)
    with pytest.raises(ConfigError, match=r"must be in \[0, 8\] in episode 2"):
        imagine(MODEL, data, [(2, 9)], horizon=4)


def test_pictures_of_imagination(imagined: Imagined, bank: FrameBank) -> None:
    figure = nearest_figure(imagined, bank, 1)
    assert figure.axes[-1].get_xlabel() == "imagined time (s)"
    assert len([axes for axes in figure.axes if axes.images]) == 3 * 5, "three rows of five frames"
    path = path_figure(imagined, bank, [0, 1]).axes[0]
    assert "%" in path.get_xlabel()
    assert path.get_legend() is not None
    shares = retrieval_figure(retrieval(imagined, bank, names=("x", "y")))
    assert [axes.get_xlabel() for axes in shares.axes] == ["distance of the object from where it was (cm)"] * 2
    with pytest.raises(ConfigError, match=r"clip must be in \[0, 3\), got 3"):
        nearest_figure(imagined, bank, 3)


def test_a_decoder_draws_what_the_latent_says_and_calls_itself_a_diagnostic(imagined: Imagined) -> None:
    rng = np.random.default_rng(0)
    places = rng.uniform(0.2, 0.8, (300, 2)).astype(np.float32)
    axis = (np.arange(32) + 0.5) / 32
    squared = (axis[None, None] - places[:, 0, None, None]) ** 2 + (axis[None, :, None] - places[:, 1, None, None]) ** 2
    pixels = np.round(255 * np.exp(-squared / 0.05)).astype(np.uint8)[..., None].repeat(3, axis=-1)
    bank = FrameBank(pixels=pixels, latents=places, episode=np.arange(300) // 10, truth=places, truth_names=("x", "y"))
    decoder = fit_decoder(bank, side=16, components=40, features=128)
    assert decoder.rmse < 0.3 * decoder.mean_rmse
    (picture,) = decoder.decode(np.array([[0.7, 0.3]], np.float32))
    row, column = np.unravel_index(picture[..., 0].argmax(), picture.shape[:2])
    assert abs(column + 0.5 - 0.7 * 16) <= 1.5
    assert abs(row + 0.5 - 0.3 * 16) <= 1.5
    assert LABEL in decoder_figure(decoder, imagined).get_suptitle()
    with pytest.raises(ConfigError, match="side must divide"):
        fit_decoder(bank, side=15)
    with pytest.raises(ConfigError, match=r"latents must be \(M, 2\)"):
        decoder.decode(np.zeros((1, 3), np.float32))
    with pytest.raises(DataError, match="at least five episodes"):
        fit_decoder(replace(bank, episode=np.zeros(300, np.int64)))
