"""A light decoder from latents to small pictures, as a diagnostic and nothing else.

No part of the model and never used to plan: it is fitted afterwards, knows the data set's frames, and fills in what the
latent does not say with what frames look like on average. Sharp places are read from the latent; blurred ones are not.
`frame_bank` shows real frames instead and should be believed first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from worldmodel.analysis.frame_bank import FrameBank
from worldmodel.analysis.imagination import Imagined
from worldmodel.analysis.style import frame_grid, row_label, show_frame
from worldmodel.errors import ConfigError, DataError
from worldmodel.learning.probes import RidgeProbe, fit_ridge

LABEL = "diagnostic decoder: fitted afterwards, no part of the model"
_PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class DiagnosticDecoder:
    """Random features of a latent, ridge regression to principal components of small pictures.

    Attributes:
        side: Height and width of what it draws, pixels.
        mean: (side * side * 3,) mean picture, in [0, 1].
        components: (C, side * side * 3) principal components of pictures.
        mix: (N * D, R) random directions; `shift` (R,) and `centre`, `scale` (N * D,) belong to them.
        shift: See `mix`.
        centre: See `mix`.
        scale: See `mix`.
        ridge: Random features to components.
        rmse: Error per colour value on frames of episodes it was not fitted on, full scale 1.
        mean_rmse: The same of always drawing the mean picture.
    """

    side: int
    mean: Array
    components: Array
    mix: Array
    shift: Array
    centre: Array
    scale: Array
    ridge: RidgeProbe
    rmse: float = float("nan")
    mean_rmse: float = float("nan")

    def decode(self, latents: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Pictures (M, side, side, 3) uint8 of latents (M, N * D).

        Raises:
            ConfigError: Wrong width.
        """
        if latents.ndim != 2 or latents.shape[1] != len(self.centre):
            raise ConfigError(f"latents must be (M, {len(self.centre)}), got {latents.shape}")
        pictures = self.mean + self.ridge.predict(_features(latents, self)) @ self.components
        shape = (len(latents), self.side, self.side, 3)
        return np.round(255 * np.clip(pictures, 0, 1)).astype(np.uint8).reshape(shape)


def fit_decoder(
    bank: FrameBank, *, side: int = 32, components: int = 128, features: int = 1024, seed: int = 0
) -> DiagnosticDecoder:
    """Fit a decoder on four fifths of the episodes of a bank and measure it on the others.

    Args:
        bank: Frames and latents.
        side: Height and width of what is drawn; must divide that of the frames.
        components: Principal components of pictures that are regressed to.
        features: Random features.
        seed: Of the random features and of the division of episodes.

    Raises:
        ConfigError: `side` does not divide the frames.
        DataError: Fewer than five episodes.
    """
    height, width = bank.pixels.shape[1:3]
    if side < 1 or height % side or width % side:
        raise ConfigError(f"side must divide the frames of {height} x {width} pixels, got {side}")
    episodes = np.unique(bank.episode)
    if len(episodes) < 5:
        raise DataError(f"a decoder is fitted on four fifths of at least five episodes, the bank has {len(episodes)}")
    rng = np.random.default_rng([seed, 11])
    held_out = np.isin(bank.episode, rng.permutation(episodes)[: len(episodes) // 5])
    blocks = bank.pixels.reshape(len(bank), side, height // side, side, width // side, 3)
    pictures = blocks.mean(axis=(2, 4)).reshape(len(bank), -1) / 255
    train = pictures[~held_out]
    mean = train.mean(axis=0)
    _, _, directions = np.linalg.svd(train - mean, full_matrices=False)
    kept = directions[:components]
    latents = bank.latents.astype(np.float64)
    scale = latents[~held_out].std(axis=0).clip(1e-6)
    parts: dict[str, Any] = {
        "side": side,
        "mean": mean,
        "components": kept,
        "mix": rng.normal(size=(latents.shape[1], features)) / np.sqrt(latents.shape[1]),
        "shift": rng.normal(size=features),
        "centre": latents[~held_out].mean(axis=0),
        "scale": scale,
    }
    empty = DiagnosticDecoder(**parts, ridge=RidgeProbe(weight=np.zeros((features, 1)), offset=np.zeros(1)))
    ridge = _fit(_features(bank.latents[~held_out], empty), (train - mean) @ kept.T, bank.episode[~held_out])
    drawn = mean + ridge.predict(_features(bank.latents[held_out], empty)) @ kept
    rmse, mean_rmse = (float(np.sqrt(np.square(pictures[held_out] - guess).mean())) for guess in (drawn, mean))
    return DiagnosticDecoder(**parts, ridge=ridge, rmse=rmse, mean_rmse=mean_rmse)


def decoder_figure(decoder: DiagnosticDecoder, imagined: Imagined, clip: int = 0) -> Figure:
    """A rollout as the decoder draws it: what came true, its latent drawn, and the imagined latent drawn.

    Args:
        decoder: Fitted on other episodes.
        imagined: Rollouts.
        clip: Which rollout.

    Raises:
        ConfigError: There is no such rollout, or the decoder is of another model.
    """
    if not 0 <= clip < len(imagined):
        raise ConfigError(f"clip must be in [0, {len(imagined)}), got {clip}")
    rows = {
        "camera": imagined.frames[clip],
        "decoded from the\nreal latent": decoder.decode(imagined.real[clip]),
        "decoded from the\nimagined latent": decoder.decode(imagined.imagined[clip]),
    }
    figure, grid = frame_grid(len(rows), imagined.horizon + 1)
    for place, (name, frames) in enumerate(rows.items()):
        row_label(grid[place, 0], name)
        for column, frame in enumerate(frames):
            show_frame(grid[place, column], frame, f"{column * imagined.step_s:.1f} s" if place == 0 else "")
    errors = f"error {decoder.rmse:.3f} on held-out episodes, {decoder.mean_rmse:.3f} for the mean picture"
    figure.suptitle(f"{LABEL}\n({errors}, full scale 1)", fontsize=10)
    return figure


def _fit(features: Array, targets: Array, episode: NDArray[np.int64]) -> RidgeProbe:
    """Ridge regression whose penalty does best on every fourth episode."""
    tuning = np.isin(episode, np.unique(episode)[::4])
    errors = {
        penalty: np.square(
            fit_ridge(features[~tuning], targets[~tuning], penalty=penalty).predict(features[tuning]) - targets[tuning]
        ).mean()
        for penalty in _PENALTIES
    }
    return fit_ridge(features, targets, penalty=min(errors, key=errors.__getitem__))


def _features(latents: NDArray[np.float32], decoder: DiagnosticDecoder) -> Array:
    """Standardised latents and rectified random mixtures of them (M, N * D + R)."""
    standard = (latents.astype(np.float64) - decoder.centre) / decoder.scale
    return np.concatenate([standard, np.maximum(standard @ decoder.mix + decoder.shift, 0)], axis=1)
