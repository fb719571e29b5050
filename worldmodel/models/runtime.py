"""How a world model computes while it plans: on which device, in which precision, compiled or not.

The defaults give the same bits on every run of a machine. Everything else is for speed and is told apart in results;
`worldmodel bench plan` shows whether it pays.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from worldmodel.errors import ConfigError
from worldmodel.models.action_predictor import ActionPredictor, ProprioPredictor
from worldmodel.models.world_model import WorldModel

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(kw_only=True)
class RuntimeConfig:
    """How the rollouts of a plan are computed.

    Attributes:
        device: torch device of the model, e.g. "cuda" or "cuda:1"; None leaves it where it was loaded, on the CPU.
        precision: Matrix products of the predictor in "float32" or "bfloat16"; latents between the model and the
            planner stay float32. Pays where `worldmodel doctor` finds fast bfloat16.
        compiled: Fuse the rollout with `torch.compile`, on CUDA captured as a graph. The first plan of every shape then
            takes up to a minute. Gradient planners differentiate through the rollout as it is.
    """

    device: str | None = None
    precision: str = "float32"
    compiled: bool = False

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ConfigError(f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}")
        if self.device is not None:
            try:
                torch.device(self.device)
            except RuntimeError as error:
                raise ConfigError(f"device must be a torch device, got {self.device!r}") from error


def default_device() -> torch.device:
    """The accelerator of this machine, else the CPU."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found if found is not None else torch.device("cpu")


def equipped(model: WorldModel, runtime: RuntimeConfig) -> WorldModel:
    """The model, computing as asked for; moved, not copied.

    Args:
        model: World model.
        runtime: How it is to compute.

    Raises:
        ConfigError: The device is not there.
    """
    if runtime.device is not None:
        try:
            model = model.to(runtime.device)
        except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch raises all three, by backend
            raise ConfigError(f"device {runtime.device} cannot be used here: {str(error).splitlines()[0]}") from error
    if runtime.precision == "float32" and not runtime.compiled:
        return model
    if isinstance(model.predictor, ProprioPredictor):
        return model.with_predictor(TunedProprioPredictor(model.predictor, runtime))
    return model.with_predictor(TunedPredictor(model.predictor, runtime))


class TunedPredictor(ActionPredictor):
    """A predictor that runs in another precision or compiled.

    Args:
        predictor: The network; shared, not copied.
        runtime: How it is to compute.
    """

    def __init__(self, predictor: ActionPredictor, runtime: RuntimeConfig) -> None:
        super().__init__()
        self.predictor = predictor
        self.window, self.action_dim = predictor.window, predictor.action_dim
        self.num_tokens, self.latent_dim = predictor.num_tokens, predictor.latent_dim
        self._dtype = PRECISIONS[runtime.precision]
        self._compiled = runtime.compiled
        self._forward, self._rollout = self._fused(predictor.forward), self._fused(predictor.rollout)

    @property
    def candidate_bytes(self) -> int:
        """See `ActionPredictor.candidate_bytes`."""
        return self.predictor.candidate_bytes

    def forward(self, z: Tensor, actions: Tensor) -> Tensor:
        """See `ActionPredictor.forward`."""
        with self._precision(z):
            return self._own(self._forward(z, actions))

    def rollout(self, context_z: Tensor, context_actions: Tensor, actions: Tensor) -> Tensor:
        """See `ActionPredictor.rollout`."""
        work = self.predictor.rollout if actions.requires_grad else self._rollout
        with self._precision(actions):
            return self._own(work(context_z, context_actions, actions))

    def _fused(self, work: Callable[..., Any]) -> Callable[..., Any]:
        # "reduce-overhead" means CUDA graphs, and on a CPU the same as the default.
        fused = torch.compile(work, dynamic=False, mode="reduce-overhead") if self._compiled else work
        return fused

    def _precision(self, like: Tensor) -> AbstractContextManager[None]:
        enabled = self._dtype != torch.float32
        return torch.autocast(like.device.type, dtype=self._dtype, enabled=enabled)

    def _own(self, found: Tensor) -> Tensor:
        """In float32, and a copy where the next call would overwrite it (the memory of a CUDA graph)."""
        return found.float().clone() if self._compiled else found.float()


class TunedProprioPredictor(TunedPredictor, ProprioPredictor):
    """The same for dynamics that carry proprioception along.

    Args:
        predictor: The network; shared, not copied.
        runtime: How it is to compute.
    """

    predictor: ProprioPredictor

    def __init__(self, predictor: ProprioPredictor, runtime: RuntimeConfig) -> None:
        super().__init__(predictor, runtime)
        self._rollout_from = self._fused(predictor.rollout_from)

    def rollout_from(
        self, context_z: Tensor, context_actions: Tensor, actions: Tensor, context_proprio: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See `ProprioPredictor.rollout_from`."""
        work = self.predictor.rollout_from if actions.requires_grad else self._rollout_from
        with self._precision(actions):
            seen, felt = work(context_z, context_actions, actions, context_proprio)
            return self._own(seen), self._own(felt)
