import json
from pathlib import Path

import numpy as np
import pytest
import torch

from worldmodel.data.episodes import Episode, EpisodeDataset, EpisodeSpec, EpisodeWriter
from worldmodel.errors import DataError
from worldmodel.learning import features as module
from worldmodel.learning.features import FrameStore, TrajectorySampler, cached_features, encoder_hash
from worldmodel.models.encoders import VideoViT
from worldmodel.models.vit import ViTConfig

SPEC = EpisodeSpec(
    env_id="test",
    image_size=16,
    action_low=(-1.0, -1.0),
    action_high=(1.0, 1.0),
    proprio_names=("x",),
    privileged_names=("px", "py"),
    control_dt_s=0.1,
)


def record(path: Path, lengths: list[int], *, append: bool = False, seed: int = 0) -> EpisodeDataset:
    rng = np.random.default_rng(seed)
    with EpisodeWriter(path, SPEC, append=append) as writer:
        for i, steps in enumerate(lengths):
            episode = Episode(
                pixels=rng.integers(0, 256, (steps + 1, 16, 16, 3), dtype=np.uint8),
                proprio=rng.normal(size=(steps + 1, 1)).astype(np.float32),
                action=rng.uniform(-1, 1, (steps, 2)).astype(np.float32),
                privileged=rng.normal(size=(steps + 1, 2)).astype(np.float32),
                contact=np.zeros(steps + 1, np.bool_),
                policy="random",
                seed=i,
                success=False,
            )
            writer.append(episode)
    return EpisodeDataset.open(path)


class CountingViT(VideoViT):
    """Counts the frames it encodes."""

    def __init__(self, seed: int = 0) -> None:
        config = ViTConfig(image_size=16, patch_size=8, num_frames=2, embed_dim=12, depth=1, num_heads=2, mlp_ratio=2.0)
        super().__init__(config, seed=seed)
        self.frames = 0

    def encode_frames(self, pixels: torch.Tensor) -> torch.Tensor:
        self.frames += pixels.shape[0] * pixels.shape[1]
        return super().encode_frames(pixels)


def test_features_are_those_of_the_encoder_and_are_computed_once(tmp_path: Path) -> None:
    dataset, encoder = record(tmp_path / "a.h5", [5, 7]), CountingViT()
    reported: list[tuple[int, int]] = []
    features = cached_features(
        dataset, encoder, tmp_path / "cache", batch_size=4, progress=lambda a, b: reported.append((a, b))
    )
    assert features.shape == (14, 4, 12)
    assert features.dtype == np.float16
    assert not features.flags.writeable
    assert reported == [(14, 14)]
    with torch.no_grad():
        expected = VideoViT.encode_frames(encoder, torch.from_numpy(dataset.load_pixels())[:, None])[:, 0]
    np.testing.assert_allclose(features, expected.numpy(), rtol=0, atol=3e-3)
    assert encoder.frames == 14
    again = cached_features(dataset, encoder, tmp_path / "cache")
    assert encoder.frames == 14
    np.testing.assert_array_equal(again, features)


def test_other_weights_or_data_are_other_entries(tmp_path: Path) -> None:
    dataset, other = record(tmp_path / "a.h5", [5]), record(tmp_path / "b.h5", [5], seed=1)
    encoder = CountingViT()
    first = np.array(cached_features(dataset, encoder, tmp_path))
    second = np.array(cached_features(other, encoder, tmp_path))
    assert not np.array_equal(first, second)
    with torch.no_grad():
        encoder.norm.bias.add_(0.1)
    assert encoder_hash(encoder) != encoder_hash(CountingViT())
    assert encoder_hash(CountingViT(seed=0)) == encoder_hash(CountingViT(seed=0))
    cached_features(dataset, encoder, tmp_path)
    assert encoder.frames == 18
    assert len(list(tmp_path.glob("*.npy"))) == 3


def test_an_interrupted_computation_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FRAMES_PER_FLUSH", 4)
    dataset, encoder = record(tmp_path / "a.h5", [5, 7]), CountingViT()

    def stop(done: int, total: int) -> None:
        if done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached_features(dataset, encoder, tmp_path, progress=stop)
    assert not list(tmp_path.glob("*.npy"))
    resumed = np.array(cached_features(dataset, encoder, tmp_path))
    assert encoder.frames == 14
    np.testing.assert_array_equal(resumed, cached_features(dataset, CountingViT(), tmp_path / "fresh"))
    assert not list(tmp_path.glob("*partial*"))


def test_a_grown_file_reuses_what_is_encoded(tmp_path: Path) -> None:
    encoder = CountingViT()
    cached_features(record(tmp_path / "a.h5", [5, 7]), encoder, tmp_path)
    grown = record(tmp_path / "a.h5", [3], append=True, seed=2)
    features = cached_features(grown, encoder, tmp_path)
    assert encoder.frames == 18
    np.testing.assert_array_equal(features, cached_features(grown, CountingViT(), tmp_path / "fresh"))


def test_broken_encoders_and_caches_are_refused(tmp_path: Path) -> None:
    dataset, encoder = record(tmp_path / "a.h5", [5]), CountingViT()
    cached_features(dataset, encoder, tmp_path)
    target = next(tmp_path.glob("*.npy"))
    np.save(target, np.zeros((6, 4, 5), np.float16))
    with pytest.raises(DataError, match="delete it"):
        cached_features(dataset, encoder, tmp_path)
    with torch.no_grad():
        encoder.patch_embed.proj.bias.fill_(torch.nan)
    with pytest.raises(DataError, match="NaN, infinite or beyond float16"):
        cached_features(dataset, encoder, tmp_path)


def store_of(lengths: list[int]) -> FrameStore:
    """Frames whose contents say which frame they are."""
    lens = np.array(lengths, np.int64)
    start = np.concatenate([[0], np.cumsum(lens)[:-1]])
    number = np.arange(lens.sum())
    return FrameStore(
        features=(number[:, None, None] * np.ones((1, 2, 3))).astype(np.float16),
        action=(number[:, None] + np.array([[0.0, 0.5]])).astype(np.float32),
        proprio=number[:, None].astype(np.float32),
        privileged=np.zeros((len(number), 1), np.float32),
        privileged_names=("a",),
        episode_start=start,
        episode_len=lens,
    )


def sampler_of(store: FrameStore, ids: list[int], **changes: int) -> TrajectorySampler:
    options = {"num_frames": 3, "action_block": 2, "batch_size": 64, "seed": 0} | changes
    return TrajectorySampler(store, np.array(ids, np.int64), **options)


def test_windows_start_at_every_offset_and_stay_inside_their_episode() -> None:
    store = store_of([8, 4, 6])
    sampler = sampler_of(store, [0, 2])
    assert sampler.starts.tolist() == [0, 1, 2, 3, 12, 13]
    drawn = {int(f) for _ in range(10) for f in sampler.next_batch().frames[:, 0]}
    assert drawn == {0, 1, 2, 3, 12, 13}


def test_a_batch_holds_the_frames_and_the_actions_between_them() -> None:
    batch = sampler_of(store_of([8, 8]), [0, 1]).batch_at(np.array([1, 10]))
    assert batch.frames.tolist() == [[1, 3, 5], [10, 12, 14]]
    assert batch.features[:, :, 0, 0].tolist() == batch.frames.tolist()
    assert batch.proprio[:, :, 0].tolist() == batch.frames.tolist()
    assert batch.actions[0].tolist() == [[1, 1.5, 2, 2.5], [3, 3.5, 4, 4.5]]
    assert batch.actions.shape == (2, 2, 4)


def test_the_stream_resumes_from_json() -> None:
    first, second = sampler_of(store_of([50]), [0]), sampler_of(store_of([50]), [0], seed=9)
    first.next_batch()
    state = json.loads(json.dumps(first.state_dict()))
    expected = [first.next_batch().frames for _ in range(3)]
    second.load_state_dict(state)
    for frames in expected:
        assert torch.equal(second.next_batch().frames, frames)
    assert not torch.equal(sampler_of(store_of([50]), [0], seed=1).next_batch().frames, expected[0])


def test_too_short_episodes_are_named() -> None:
    with pytest.raises(DataError, match="at least 5 frames; the longest of the 2 given has 4"):
        sampler_of(store_of([4, 3]), [0, 1])
    with pytest.raises(DataError, match="the 0 given"):
        sampler_of(store_of([9]), [])


def test_store_takes_the_small_arrays_of_the_data_set(tmp_path: Path) -> None:
    dataset = record(tmp_path / "a.h5", [5, 7])
    store = FrameStore.from_dataset(dataset, np.zeros((14, 4, 12), np.float16))
    np.testing.assert_array_equal(store.action[:5], dataset.episode(0).action)
    assert store.privileged_names == ("px", "py")
    assert store.frames_of(np.array([1])).tolist() == list(range(6, 14))
