"""What visible tokens look like when colours are not to be relied on; what is predicted stays as it is."""

from __future__ import annotations

import torch
from torch import Tensor

from worldmodel.data.recolour import mapped_colours


def recoloured(
    video: Tensor, strength: float, tubelet: int, generator: torch.Generator, *, share: float = 1.0
) -> Tensor:
    """Clips under a random affine map of the colours, one for each tubelet.

    Args:
        video: (B, T, 3, Y, X) in [0, 1].
        strength: In [0, 1].
        tubelet: Frames of a tubelet; T is a multiple of it.
        generator: Stream of the maps.
        share: Of the tubelets whose colours are mapped, in [0, 1]; the others keep theirs.
    """
    shape = (len(video), video.shape[1] // tubelet, 3)
    normal = torch.randn((*shape, 3), generator=generator, device=video.device)
    uniform = torch.rand(shape, generator=generator, device=video.device)
    normal, uniform = (draw.repeat_interleave(tubelet, dim=1) for draw in (normal, uniform))
    mapped: Tensor = mapped_colours(video.flatten(3), normal, uniform, strength).view_as(video)
    if share == 1:
        return mapped
    chosen = torch.rand(shape[:2], generator=generator, device=video.device) < share
    return torch.where(chosen.repeat_interleave(tubelet, dim=1)[..., None, None, None], mapped, video)


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
