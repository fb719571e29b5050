"""Where the action predictor looks: its attention, frame by frame and patch by patch.

Weights are computed again from what the blocks are given, because the fused kernel keeps none. They say what was mixed,
not what mattered.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from worldmodel.analysis.style import CHOSEN, frame_grid, row_label, show_frame, tidy
from worldmodel.errors import ConfigError
from worldmodel.models.action_transformer import ModulatedBlock, TransformerPredictor
from worldmodel.models.vit import apply_rope
from worldmodel.models.world_model import WorldModel

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class PredictorAttention:
    """Attention of the last of T frames.

    Attributes:
        frames: (T, Y, X, 3) uint8 frames the predictor was given.
        weights: (L, M, N, T, N): block, head, patch that asks (of the last frame), frame and patch that answer; sums
            to 1 over the last two.
    """

    frames: NDArray[np.uint8]
    weights: Array

    @property
    def by_age(self) -> Array:
        """(L, T) share of each block's attention that goes to each frame, the oldest first."""
        shares: Array = self.weights.sum(axis=-1).mean(axis=(1, 2))
        return shares


def predictor_attention(
    model: WorldModel, pixels: NDArray[np.uint8], actions: NDArray[np.float32]
) -> PredictorAttention:
    """Attention of the last frame of a clip, in every block and head.

    Args:
        model: Its predictor must be a transformer over patch latents; a compact latent is predicted without attention.
        pixels: (T, Y, X, 3) uint8 frames, one per model step, T at most the predictor's window.
        actions: (T, A) flat model actions, env units; actions[t] is taken at frame t.

    Raises:
        ConfigError: The predictor has no attention, or frames and actions do not fit it.
    """
    predictor = model.predictor
    if not isinstance(predictor, TransformerPredictor):
        raise ConfigError(
            f"a {type(predictor).__name__} has no attention to show; train one with `worldmodel train latent=patch`"
        )
    count = len(pixels)
    if not 1 <= count <= predictor.window or actions.shape != (count, predictor.action_dim):
        expected = f"1 to {predictor.window} frames and as many actions of {predictor.action_dim} numbers"
        raise ConfigError(f"attention needs {expected}, got {count} frames and actions {actions.shape}")
    with torch.no_grad(), _Listener(predictor) as heard:
        latent = model.encode(torch.from_numpy(np.ascontiguousarray(pixels))[None]).visual
        predictor(latent, model.action_normalizer(torch.from_numpy(actions).to(latent)[None]))
    tokens = predictor.num_tokens
    rows = [weights[0, :, -tokens:].unflatten(-1, (count, tokens)) for weights in heard.weights]
    return PredictorAttention(frames=pixels, weights=torch.stack(rows).double().cpu().numpy())


def attention_figure(attention: PredictorAttention, *, patch: tuple[int, int] | None = None) -> Figure:
    """Which frames the predictor looks at in every block, and which patches it looks at in the last one.

    Args:
        attention: From `predictor_attention`.
        patch: Row and column of the patch that asks; None takes the mean over all.

    Raises:
        ConfigError: There is no such patch.
    """
    layers, _, tokens, count, _ = attention.weights.shape
    side = math.isqrt(tokens)
    rows = side if side * side == tokens else 1
    maps = attention.weights[-1].mean(axis=0)  # (N, T, N) of the last block, mean over heads
    asked = maps.mean(axis=0) if patch is None else maps[_index(patch, rows, tokens // rows)]
    figure, grid = frame_grid(3, max(count, 2))
    for place, name in enumerate(("camera", "attention of the\nlast block")):
        row_label(grid[place, 0], name)
    for age in range(count):
        show_frame(grid[0, age], attention.frames[age], f"{age - count + 1} model steps" if age < count - 1 else "now")
        picture = grid[1, age].imshow(
            asked[age].reshape(rows, -1) * tokens * count, cmap="gray", vmin=0, vmax=float(asked.max()) * tokens * count
        )
        grid[1, age].set(xticks=[], yticks=[])
        if patch is not None and age == count - 1:
            grid[1, age].plot(patch[1], patch[0], "s", markerfacecolor="none", markeredgecolor=CHOSEN, markersize=9)
    for axes in grid[:2, count:].ravel():
        axes.set_visible(False)
    figure.colorbar(picture, ax=list(grid[1]), label="times the mean", shrink=0.9)
    below = figure.add_subplot(grid[-1, 0].get_gridspec()[-1, :])
    for axes in grid[-1]:
        axes.remove()
    steps = np.arange(count) - count + 1
    for layer, shares in enumerate(attention.by_age):
        style: dict[str, Any] = {"marker": "osD^vP*X"[layer % 8], "color": str(0.7 * layer / max(1, layers - 1))}
        below.plot(steps, 100 * shares, label=f"block {layer + 1}", **style)
    below.axhline(100 / count, color="0.4", linestyle=":", linewidth=1, label="evenly")
    below.set(xlabel="frame (model steps before now)", ylabel="attention (%)", ylim=(0, 103), xticks=steps)
    below.legend(frameon=False, fontsize=8, ncols=2)
    tidy(below)
    who = "all patches of the newest frame" if patch is None else f"patch {patch}"
    figure.suptitle(f"what {who} look{'s' if patch else ''} at to predict the next frame", fontsize=10)
    return figure


def _index(patch: tuple[int, int], rows: int, columns: int) -> int:
    if not (0 <= patch[0] < rows and 0 <= patch[1] < columns):
        raise ConfigError(f"patch must be (row, column) inside ({rows}, {columns}), got {patch}")
    return patch[0] * columns + patch[1]


class _Listener:
    """Keeps the attention weights (1, heads, queries, keys) of every block while it is open.

    Args:
        predictor: Its blocks are listened to.
    """

    def __init__(self, predictor: TransformerPredictor) -> None:
        self._blocks = [block for block in predictor.blocks if isinstance(block, ModulatedBlock)]
        self._handles: list[Any] = []
        self._given: tuple[Any, ...] = ()
        self.weights: list[Tensor] = []

    def __enter__(self) -> _Listener:
        for block in self._blocks:
            self._handles.append(block.register_forward_pre_hook(self._before))
            self._handles.append(block.qkv.register_forward_hook(self._after))
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _before(self, block: Any, given: tuple[Any, ...]) -> None:
        self._given = (block.num_heads, *given)

    def _after(self, _layer: Any, _given: tuple[Any, ...], projected: Tensor) -> None:
        heads, _, _, rope, mask, past = self._given
        flat = projected.flatten(1, -2)  # (1, T * N, 3 * D)
        q, k, _ = flat.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        q, k = apply_rope(q, rope), apply_rope(k, rope)
        k = k if past is None else torch.cat([past[0], k], dim=2)
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        self.weights.append((scores if mask is None else scores.masked_fill(~mask, -torch.inf)).softmax(dim=-1))
