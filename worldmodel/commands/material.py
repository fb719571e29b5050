"""What `worldmodel train` works on: the encoder, the episodes that count as labelled, and their features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from worldmodel.commands.run import Run, busy, counted
from worldmodel.data.episodes import EpisodeDataset
from worldmodel.data.recolour import Recolouring, check_strength
from worldmodel.errors import ConfigError
from worldmodel.learning.features import FrameStore, cached_features, encode_all, frame_store
from worldmodel.learning.pseudo_labels import explained_variance, learn_inverse_dynamics, pseudo_labelled
from worldmodel.models.checkpoint import load_encoder
from worldmodel.models.encoders import Encoder
from worldmodel.models.frozen_encoders import EncoderConfig, build_encoder
from worldmodel.models.pretrained import OfficialEncoderConfig, load_official_encoder
from worldmodel.models.runtime import default_device
from worldmodel.models.vit import ViTConfig

if TYPE_CHECKING:
    from worldmodel.commands.train import Settings


@dataclass(kw_only=True)
class PretrainedEncoder:
    """An encoder that was trained before.

    Attributes:
        path: Folder written by `worldmodel pretrain` or `worldmodel train`, or the name of a shipped checkpoint.
        taps: Blocks whose outputs are concatenated, instead of the ones the encoder was saved with; None keeps those.
    """

    path: str = "shipped"
    taps: tuple[int, ...] | None = None


@dataclass(kw_only=True)
class RecolourConfig:
    """In which other colours training frames are seen as well (`data/recolour.py`).

    Attributes:
        copies: Times every frame is encoded again in random colours; 0 leaves it at those of the file.
        strength: From 0, colours as they are, to 1, colours that tell nothing about those of the file.
    """

    copies: int = 0
    strength: float = 1.0

    def __post_init__(self) -> None:
        check_strength("recolour.strength", self.strength)
        if self.copies < 0:
            raise ConfigError(f"recolour.copies must be >= 0, got {self.copies}")

    def views(self, dataset: EpisodeDataset) -> list[EpisodeDataset]:
        """The data set in each of the other colours."""
        colours = [Recolouring(strength=self.strength, seed=copy) for copy in range(self.copies)]
        return [
            EpisodeDataset.open(dataset.path, distractor=dataset.distractor, recolouring=colour) for colour in colours
        ]


@dataclass(kw_only=True)
class Material:
    """What a training works on.

    Attributes:
        encoder: Gives the features; trained with the dynamics where it is not frozen.
        store: Features, or frames for an encoder in training, with actions and proprioception.
        train_ids: Episodes of the store to train on.
        val_ids: Held-out episodes of the store.
        guesses: How good guessed labels are, where there are any.
    """

    encoder: Encoder
    store: FrameStore
    train_ids: NDArray[np.int64]
    val_ids: NDArray[np.int64]
    guesses: dict[str, float] = field(default_factory=dict)

    @property
    def measured(self) -> FrameStore:
        """What a task's head reads: the features, or the frames where these are what is predicted."""
        return self.store if self.store.pixels is None else replace(self.store, features=self.store.pixels)


def labelled(train_ids: NDArray[np.int64], count: int | None, seed: int) -> NDArray[np.int64]:
    """The first `count` of the training episodes in an order drawn by the seed, sorted; all of them for None.

    Raises:
        ConfigError: There are not as many.
    """
    if count is None:
        return train_ids
    if not 1 <= count <= len(train_ids):
        raise ConfigError(f"labelled_episodes must be in [1, {len(train_ids)}], the training episodes, got {count}")
    return np.sort(np.random.default_rng(seed).permutation(train_ids)[:count])


def make_encoder(config: PretrainedEncoder | OfficialEncoderConfig | EncoderConfig, seed: int) -> Encoder:
    """The encoder a setting asks for, frozen.

    Raises:
        CheckpointError: The pretrained one, or the file of released weights, is missing or corrupt.
        ConfigError: Its taps name no block.
    """
    if isinstance(config, OfficialEncoderConfig):
        return load_official_encoder(config)
    if not isinstance(config, PretrainedEncoder):
        return build_encoder(config, seed=seed).requires_grad_(False).eval()
    encoder = load_encoder(config.path)
    if config.taps is not None:
        encoder = retap(encoder, config.taps)
    return encoder


def retap(encoder: Encoder, taps: tuple[int, ...]) -> Encoder:
    """The same encoder, giving the outputs of other blocks.

    Raises:
        ConfigError: The encoder has no blocks to tap, or not these.
    """
    config: Any = encoder.config
    if not isinstance(config, ViTConfig):
        raise ConfigError(f"encoder.taps needs a ViT encoder, this one is a {type(config).__name__}")
    tapped = build_encoder(replace(config, taps=taps))
    tapped.load_state_dict(encoder.state_dict())
    return tapped.requires_grad_(False).eval()


def material_of(settings: Settings, dataset: EpisodeDataset, run: Run) -> Material:
    """Build the encoder, choose the episodes and encode their frames, in all colours that are asked for.

    Args:
        settings: Of the training.
        dataset: Its episode file.
        run: Where progress is shown, and models that guess labels are kept.

    Raises:
        CheckpointError: The encoder is missing or corrupt.
        ConfigError: There are fewer episodes than settings ask for, or none left to guess the labels of.
        DataError: The features are not finite.
    """
    encoder = make_encoder(settings.encoder, settings.seed).to(default_device())
    train_ids, val_ids = dataset.split(settings.validation_fraction, settings.seed)
    labelled_ids = labelled(train_ids, settings.labelled_episodes, settings.seed)
    views = [dataset, *settings.recolour.views(dataset)]
    if settings.is_guessing or (settings.frozen and settings.labelled_episodes is None):
        with counted("encoding frames", run.progress) as progress:
            seen = views if settings.frozen else views[:1]  # to guess, the colours of the file are enough
            looks = [cached_features(view, encoder, settings.cache_dir, progress=progress) for view in seen]
        store = replace(FrameStore.from_dataset(dataset, looks[0]), recoloured=tuple(looks[1:]))
        if settings.latent == "pixels":
            with busy("reading frames", run.progress):
                store = replace(store, pixels=dataset.load_pixels(0, dataset.num_frames))
        material = Material(encoder=encoder, store=store, train_ids=train_ids, val_ids=val_ids)
        if settings.is_guessing:
            material = _guessed(settings, dataset, material, labelled_ids, run)
        return material if settings.frozen else replace(material, store=_raw(material.store, views, run))
    return _few(settings, views, encoder, (labelled_ids, val_ids), run)


def _raw(store: FrameStore, views: Sequence[EpisodeDataset], run: Run) -> FrameStore:
    """The same with frames in place of features, for an encoder that is trained on what its first weights guessed."""
    with busy("reading frames", run.progress):
        frames = [view.load_pixels(0, view.num_frames) for view in views]
    return replace(store, features=frames[0], recoloured=tuple(frames[1:]))


def _few(
    settings: Settings,
    views: Sequence[EpisodeDataset],
    encoder: Encoder,
    ids: tuple[NDArray[np.int64], NDArray[np.int64]],
    run: Run,
) -> Material:
    """A few episodes, encoded sooner than the whole file would be into the cache; or frames to train the encoder on."""
    train_ids, val_ids = ids
    with busy("reading frames", run.progress):
        stores = [frame_store(view, np.concatenate(ids)) for view in views]
    store = replace(stores[0], recoloured=tuple(other.features for other in stores[1:]))
    if settings.frozen:
        frames = [np.asarray(look, np.uint8) for look in store.looks]
        with counted("encoding frames", run.progress) as progress:
            looks = [encode_all(encoder, look, progress=progress) for look in frames]
        store = replace(store, features=looks[0], recoloured=tuple(looks[1:]))
        if settings.latent == "pixels":
            store = replace(store, pixels=frames[0])
    train_ids, val_ids = np.split(np.arange(len(store.episode_len)), [len(train_ids)])
    return Material(encoder=encoder, store=store, train_ids=train_ids, val_ids=val_ids)


def _guessed(
    settings: Settings, dataset: EpisodeDataset, material: Material, labelled_ids: NDArray[np.int64], run: Run
) -> Material:
    """The same with guesses in place of the labels of all other training episodes."""
    unlabelled = np.setdiff1d(material.train_ids, labelled_ids)
    if len(unlabelled) == 0:
        raise ConfigError(
            f"labelled_episodes={settings.labelled_episodes} are all there are to train on, so there is nothing to "
            "guess; lower it, or set pseudo_labels.steps=0"
        )
    model = learn_inverse_dynamics(
        settings.pseudo_labels,
        material.store,
        labelled_ids,
        seed=settings.seed,
        run_dir=run.folder / "pseudo_labels",
        precision=settings.precision,
        progress=run.progress,
    )
    bounds = (dataset.spec.action_low, dataset.spec.action_high)
    held_out = pseudo_labelled(material.store, model, material.val_ids, bounds)
    action_r2, proprio_r2 = explained_variance(material.store, held_out, material.val_ids)
    run.note(
        f"Guessed the actions of {len(unlabelled)} episodes: of held-out episodes guesses explain "
        f"{action_r2:.0%} of the actions' variance and {proprio_r2:.0%} of proprioception's"
    )
    store = pseudo_labelled(material.store, model, unlabelled, bounds)
    return replace(material, store=store, guesses={"guessed_action_r2": action_r2, "guessed_proprio_r2": proprio_r2})
