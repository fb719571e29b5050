"""Open-loop error by horizon: how long a rollout is worth believing, on episodes that were not trained on."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from worldmodel.analysis.style import CHOSEN, SECOND, tidy
from worldmodel.data.episodes import EpisodeDataset
from worldmodel.errors import ConfigError, DataError
from worldmodel.learning.features import FrameStore, encode_all, frame_store
from worldmodel.learning.open_loop import OpenLoopReport, open_loop_report
from worldmodel.models.world_model import WorldModel


def measure_open_loop(
    model: WorldModel,
    dataset: EpisodeDataset,
    episodes: NDArray[np.int64],
    *,
    probe_episodes: NDArray[np.int64] | None = None,
    horizon: int = 5,
    num_clips: int = 128,
    seed: int = 0,
) -> OpenLoopReport:
    """Measure a model on some episodes of a file, without a cache of features.

    Args:
        model: World model.
        dataset: Recorded episodes.
        episodes: Which to measure on; the model should not have been trained on them.
        probe_episodes: Which to fit the probes of true quantities on; None fits them on the measured ones, which
            flatters the probes but not the errors.
        horizon: Model steps.
        num_clips: Clips.
        seed: Of the draw of clips and of the probes' frames.

    Raises:
        DataError: No episode is long enough, or the frames are not of the model's size.
    """
    fitted = episodes if probe_episodes is None else probe_episodes
    ids = np.unique(np.concatenate([episodes, fitted]))
    if not len(ids):
        raise DataError("an open-loop error needs at least one episode, got none")
    frames = frame_store(dataset, ids)
    features = encode_all(model.encoder, np.asarray(frames.features, np.uint8))
    store = FrameStore(**{**vars(frames), "features": features})
    places = {int(number): place for place, number in enumerate(ids)}
    renumbered = [np.array([places[int(number)] for number in chosen]) for chosen in (fitted, episodes)]
    return open_loop_report(
        model, store, train_ids=renumbered[0], val_ids=renumbered[1], horizon=horizon, num_clips=num_clips, seed=seed
    )


def open_loop_figure(report: OpenLoopReport, *, step_s: float, variables: tuple[str, ...] = ()) -> Figure:
    """Error by horizon beside the two things a model must beat, and what probes read from imagined latents.

    Args:
        report: Measured.
        step_s: Seconds of a model step.
        variables: Probed quantities to draw; empty means those in metres.

    Raises:
        ConfigError: A quantity was not probed.
    """
    chosen = variables or tuple(name for name in report.variables if name.endswith(("_x", "_y", "_z")))
    if unknown := sorted(set(chosen) - set(report.variables)):
        raise ConfigError(f"the report probes {', '.join(report.variables)}, not {', '.join(unknown)}")
    seconds = step_s * np.arange(1, len(report.model) + 1)
    figure = Figure(figsize=(10.0, 4.2), layout="constrained")
    errors, probes = figure.subplots(1, 2)
    for values, name, line, colour in (
        (report.model, "model", "o-", CHOSEN),
        (report.copy_last, "repeating the last frame", "s--", SECOND),
        (report.shuffled, "model under the wrong actions", "^-.", "0.4"),
    ):
        errors.plot(seconds, values, line, color=colour, label=name)
    errors.axhline(1, color="0.3", linestyle=":", linewidth=1, label="as bad as the mean")
    errors.set(xlabel="imagined time (s)", ylabel="squared latent error / variance", yscale="log")
    errors.legend(frameon=False, fontsize=8)
    for name, marker in zip(chosen, "osD^vP*X" * len(chosen), strict=False):
        index = report.variables.index(name)
        points = [report.probe_true[index], *report.probe_model[index]]
        style: dict[str, Any] = {"marker": marker, "color": str(0.75 * chosen.index(name) / len(chosen))}
        probes.plot(np.append(0, seconds), 100 * np.array(points), label=name.replace("_", " "), **style)
    probes.set(xlabel="imagined time (s); 0 is the real frame", ylabel="error of a linear probe (cm)", ylim=(0, None))
    if chosen:
        probes.legend(frameon=False, fontsize=8, ncols=2)
    figure.suptitle(f"open loop, {report.num_clips} held-out clips", fontsize=11)
    for axes in (errors, probes):
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    tidy(probes)
    return figure
