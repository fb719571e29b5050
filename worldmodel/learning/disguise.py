"""What visible tokens look like when colours are not to be relied on; what is predicted stays as it is."""

from __future__ import annotations

import torch
from torch import Tensor

from worldmodel.data.recolour import mapped_colours

_CANDIDATES = 256  # pixels among which the colours to move are drawn
_MOST_COLOURS = 5
_WIDTHS = (0.08, 0.25)  # how far, in colours from 0 to 1, a move is felt


def recoloured(video: Tensor, strength: float, tubelet: int, generator: torch.Generator) -> Tensor:
    """Clips under a random affine map of the colours, one for each tubelet.

    Args:
        video: (B, T, 3, Y, X) in [0, 1].
        strength: In [0, 1].
        tubelet: Frames of a tubelet; T is a multiple of it.
        generator: Stream of the maps.
    """
    shape = (len(video), video.shape[1] // tubelet, 3)
    normal = torch.randn((*shape, 3), generator=generator, device=video.device)
    uniform = torch.rand(shape, generator=generator, device=video.device)
    normal, uniform = (draw.repeat_interleave(tubelet, dim=1) for draw in (normal, uniform))
    mapped: Tensor = mapped_colours(video.flatten(3), normal, uniform, strength)
    return mapped.view_as(video)


def recoloured_parts(video: Tensor, tubelet: int, generator: torch.Generator) -> Tensor:
    """Clips in which what has one colour gets another, shades included, and the rest keeps its own.

    A few colours of a tubelet, as different as possible (seeded as in k-means++), each move somewhere else and take
    along what is near them in colour space: what an object of a new colour looks like, without knowing any object. One
    map for all colours, as in `recoloured`, leaves the relations between them as they were.

    Args:
        video: (B, T, 3, Y, X) in [0, 1].
        tubelet: Frames of a tubelet, which share their colours; T is a multiple of it.
        generator: Stream of the colours.
    """
    frames = video[:, ::tubelet].flatten(0, 1).flatten(2)  # (F, 3, P)
    device, count = video.device, len(frames)
    sizes = count, _CANDIDATES
    chosen = torch.randint(frames.shape[-1], sizes, generator=generator, device=device)
    colours = frames.gather(2, chosen[:, None].expand(-1, 3, -1))  # (F, 3, C)
    moved = torch.randint(1, _MOST_COLOURS + 1, (count,), generator=generator, device=device)
    everything = video.unflatten(1, (-1, tubelet)).flatten(0, 1).transpose(1, 2).flatten(2)  # (F, 3, tubelet * P)
    change, odds = torch.zeros_like(everything), torch.ones(sizes, device=device)
    for number in range(_MOST_COLOURS):
        pick = torch.multinomial(odds + 1e-9, 1, generator=generator)
        old = colours.gather(2, pick[:, None].expand(-1, 3, -1))  # (F, 3, 1)
        distance = (colours - old).square().sum(dim=1)
        odds = distance if number == 0 else torch.minimum(odds, distance)
        new, width = (torch.rand((count, rows, 1), generator=generator, device=device) for rows in (3, 1))
        width = _WIDTHS[0] + (_WIDTHS[1] - _WIDTHS[0]) * width
        near = torch.exp(-(everything - old).square().sum(dim=1, keepdim=True) / (2 * width.square()))
        change += near * (number < moved)[:, None, None] * (new - old)
    shape = (count, 3, tubelet, *video.shape[-2:])
    mapped: Tensor = (everything + change).clamp(0, 1).view(shape).transpose(1, 2).reshape(video.shape)
    return mapped


def in_other_colours(
    video: Tensor, strength: float, tubelet: int, generator: torch.Generator, *, share: float = 1.0, parts: float = 0.0
) -> Tensor:
    """Clips of which some tubelets are recoloured, all colours by one map or some colours each by itself.

    Args:
        video: (B, T, 3, Y, X) in [0, 1].
        strength: In [0, 1], as for `recoloured`; where colours move by themselves, the share of the way they go.
        tubelet: Frames of a tubelet; T is a multiple of it.
        generator: Stream of the colours.
        share: Of the tubelets that are recoloured; the others stay as they are.
        parts: Share of the recoloured tubelets in which `recoloured_parts` draws the colours.
    """
    mapped = recoloured(video, strength, tubelet, generator)
    if share == 1 and parts == 0:
        return mapped
    draw = torch.rand(mapped[:, ::tubelet].shape[:2], generator=generator, device=video.device)
    draw = draw.repeat_interleave(tubelet, dim=1)[..., None, None, None]
    if parts > 0:
        moved = video.lerp(recoloured_parts(video, tubelet, generator), strength)
        mapped = torch.where(draw < share * parts, moved, mapped)
    return torch.where(draw < share, mapped, video)


def jittered(video: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Clips with contrast and brightness changed by up to `strength`, drawn for each frame and colour.

    Args:
        video: (B, T, 3, Y, X) in [0, 1].
        strength: Largest relative change of contrast and, over full scale, of brightness.
        generator: Stream of the changes.
    """
    shape = (*video.shape[:3], 1, 1)
    draw = torch.rand((2, *shape), generator=generator, device=video.device) * 2 - 1
    contrast, brightness = 1 + strength * draw[0], strength * draw[1]
    middle = video.mean(dim=(-2, -1), keepdim=True)
    return ((video - middle) * contrast + middle + brightness).clamp(0, 1)
