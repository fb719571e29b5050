"""Random colours: each frame by itself, anything to anything, and features that are told apart."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from worldmodel.data.episodes import EpisodeDataset
from worldmodel.data.recolour import Recolouring, mapped_colours, recolour
from worldmodel.envs.base import Appearance
from worldmodel.errors import ConfigError
from worldmodel.learning.features import FrameStore, TrajectorySampler, cached_features, frame_store
from worldmodel.models.frozen_encoders import PatchEncoderConfig, build_encoder

ROWS = np.arange(8)


def scene() -> NDArray[np.uint8]:
    """Table, object and arm in the trained colours, a third of the picture each; the same in all frames."""
    look = Appearance()
    picture = np.zeros((9, 9, 3))
    for place, colour in enumerate((look.table_rgb, look.object_rgb, look.arm_rgb)):
        picture[3 * place : 3 * place + 3] = colour
    return np.repeat((255 * picture).round().astype(np.uint8)[None], len(ROWS), axis=0)


def test_every_frame_has_colours_of_its_own_and_keeps_its_shapes() -> None:
    out = recolour(scene(), Recolouring(), rows=ROWS)
    assert out.dtype == np.uint8
    parts = out.reshape(len(ROWS), 3, 27, 3)
    assert (parts == parts[:, :, :1]).all()  # what had one colour has one colour
    for first, second in pairwise(out):
        assert np.abs(first.astype(int) - second).max() > 60


def test_a_frame_looks_the_same_however_it_is_read() -> None:
    whole = recolour(scene(), Recolouring(seed=3), rows=ROWS)
    assert np.array_equal(recolour(scene()[5:6], Recolouring(seed=3), rows=ROWS[5:6]), whole[5:6])
    assert not np.array_equal(recolour(scene(), Recolouring(seed=4), rows=ROWS), whole)


def test_no_strength_changes_nothing_and_half_of_it_less() -> None:
    assert np.array_equal(recolour(scene(), Recolouring(strength=0), rows=ROWS), scene())
    changes = [
        np.abs(recolour(scene(), Recolouring(strength=strength), rows=ROWS).astype(float) - scene()).mean()
        for strength in (0.2, 1.0)
    ]
    assert 0 < changes[0] < 0.5 * changes[1]


def test_the_object_mostly_stays_visible_on_the_table() -> None:
    """A map that gives both one colour would teach nothing; few of those that are drawn come close."""
    many = np.repeat(scene()[:1], 500, axis=0)
    out = recolour(many, Recolouring(), rows=np.arange(500)).astype(float) / 255
    distance = np.linalg.norm(out[:, 0, 0] - out[:, 4, 0], axis=-1)
    assert np.quantile(distance, 0.1) > 0.2
    assert np.median(distance) > 0.4


def test_some_affine_map_gives_any_new_look() -> None:
    """What the docstring promises: table, object and arm of a held-out task are a map of the trained ones."""
    old, new = Appearance(), Appearance.new_colours(np.random.default_rng(0))
    names = ("table_rgb", "object_rgb", "arm_rgb")
    before = np.array([[*getattr(old, name), 1.0] for name in names])
    after = np.array([getattr(new, name) for name in names])
    found, *_ = np.linalg.lstsq(before, after, rcond=None)
    np.testing.assert_allclose(before @ found, after, atol=1e-9)


def test_colours_are_cut_off_at_black_and_white() -> None:
    bright = torch.full((2, 3, 16), 0.9)
    normal, uniform = torch.eye(3).expand(2, -1, -1) * 50, torch.full((2, 3), 0.5)
    mapped = mapped_colours(bright, normal, uniform, 1.0)
    assert np.allclose(mapped_colours(bright.numpy(), normal.numpy(), uniform.numpy(), 1.0), mapped)
    assert mapped.min() >= 0
    assert mapped.max() == 1


@pytest.mark.parametrize(("changes", "message"), [({"strength": 1.2}, "strength"), ({"seed": -1}, "seed")])
def test_bad_settings(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Recolouring(**changes)  # type: ignore[arg-type]


def test_a_data_set_in_other_colours(episode_file: EpisodeDataset, tmp_path: Path) -> None:
    """Reads the same however it is cut, and neither its hash nor its cached features are those of the file."""
    seen = EpisodeDataset.open(episode_file.path, recolouring=Recolouring(seed=2))
    first = int(episode_file.index.start[1])
    plain = episode_file.load_pixels(first, first + 3)
    expected = recolour(plain, Recolouring(seed=2), rows=np.arange(first, first + 3))
    assert np.array_equal(seen.load_pixels(first, first + 3), expected)
    assert np.array_equal(seen.pixels[first : first + 3], expected)
    assert len({dataset.content_hash for dataset in (episode_file, seen, reopened(seen, 3))}) == 3
    encoder = build_encoder(PatchEncoderConfig(image_size=episode_file.spec.image_size))
    features = [cached_features(dataset, encoder, tmp_path) for dataset in (episode_file, seen)]
    assert len(list(tmp_path.glob("*.npy"))) == 2
    assert not np.array_equal(*features)
    few = frame_store(seen, np.array([1]))
    assert np.array_equal(few.features[:3], expected)


def reopened(dataset: EpisodeDataset, seed: int) -> EpisodeDataset:
    return EpisodeDataset.open(dataset.path, recolouring=Recolouring(seed=seed))


def coloured_store() -> FrameStore:
    """Features that say which frame, and in thousands which colours, they are of."""
    number = np.arange(40, dtype=np.float16)[:, None, None] * np.ones((1, 2, 3), np.float16)
    return FrameStore(
        features=number,
        recoloured=(number + np.float16(1000), number + np.float16(2000)),
        action=np.zeros((40, 2), np.float32),
        proprio=np.zeros((40, 1), np.float32),
        privileged=np.zeros((40, 1), np.float32),
        privileged_names=("a",),
        episode_start=np.array([0]),
        episode_len=np.array([40]),
    )


def test_frames_of_a_batch_are_drawn_in_colours_of_their_own() -> None:
    def sampler(store: FrameStore) -> TrajectorySampler:
        return TrajectorySampler(store, np.array([0]), num_frames=3, action_block=2, batch_size=64, seed=0)

    store = coloured_store()
    batch = sampler(store).next_batch()
    assert batch.original is not None
    assert torch.equal(batch.original[..., 0, 0].long(), batch.frames)
    assert torch.equal(batch.features[..., 0, 0].long() % 1000, batch.frames)
    looks = batch.features[..., 0, 0].long() // 1000
    assert set(looks.unique().tolist()) == {0, 1, 2}
    assert (looks != looks[:, :1]).any(dim=1).float().mean() > 0.5  # not one colour a trajectory
    plain = sampler(replace(store, recoloured=())).next_batch()
    assert plain.original is None
    assert torch.equal(plain.frames, batch.frames)  # the choice of frames does not depend on the colours
