"""Other people's planners, driving our networks: what the latency report compares with when they are installed.

Each adapter hands its planner the dynamics as that package asks for them and runs the whole window again for every
step, as the models of these packages do. Frames are encoded outside, once. Nothing is imported before it is used.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor

from worldmodel.models.action_predictor import ActionPredictor


def is_installed(package: str) -> bool:
    """Whether a package can be imported."""
    return find_spec(package) is not None


@dataclass(frozen=True, kw_only=True)
class PeerProblem:
    """One planning problem, as both adapters need it.

    Attributes:
        predictor: Network.
        normalize: Standardises actions.
        context_z: (1, T0, N, D) latents seen.
        context_actions: (1, T0 - 1, A) actions between them, env units.
        goal: (1, 1, N, D).
        low: (A,) bounds, env units; `high` likewise.
        num_samples: Candidates.
        horizon: Steps.
    """

    predictor: ActionPredictor
    normalize: Callable[[Tensor], Tensor]
    context_z: Tensor
    context_actions: Tensor
    goal: Tensor
    low: Tensor
    high: Tensor
    num_samples: int
    horizon: int


def recompute_window(predictor: ActionPredictor, frames: Tensor, taken: Tensor) -> Tensor:
    """Rollout that runs the whole window again for every step.

    Args:
        predictor: Network.
        frames: (R, T0, N, D) latents seen.
        taken: (R, T0 - 1 + H, A) standardised actions, those between the frames first.

    Returns:
        (R, H, N, D).
    """
    first = frames.shape[1]
    for newest in range(first, taken.shape[1] + 1):
        start = max(newest - predictor.window, 0)
        following = predictor(frames[:, start:], taken[:, start:newest])[:, -1:]
        frames = torch.cat([frames, following], dim=1)
    return frames[:, first:]


class _WindowCost:
    """stable-worldmodel's protocol of a cost model: `get_cost(info, candidates) -> (B, S)`.

    Mean squared distance to the goal over the horizon, weighted as `GoalDistance` does by default.
    """

    def __init__(self, predictor: ActionPredictor, normalize: Callable[[Tensor], Tensor]) -> None:
        self._predictor = predictor
        self._normalize = normalize

    def parameters(self) -> Any:
        """The solver takes its dtype from these."""
        return self._predictor.parameters()

    def get_cost(self, info: dict[str, Tensor], candidates: Tensor) -> Tensor:
        """Costs (B, S) of candidates (B, S, H, A); `info` holds context, past and goal, repeated per candidate."""
        problems, samples, horizon, _ = candidates.shape
        taken = self._normalize(torch.cat([info["past"], candidates], dim=2).flatten(0, 1))
        imagined = recompute_window(self._predictor, info["context"].flatten(0, 1), taken)
        distance = (imagined - info["goal"].flatten(0, 1)).square().mean(dim=(-2, -1))
        weights = torch.full((horizon,), 0.3, dtype=distance.dtype, device=distance.device)
        weights[-1] = 1.0
        return (distance @ (weights / weights.sum())).view(problems, samples)


class StableWorldModelCEM:
    """stable-worldmodel's `CEMSolver` on one problem; calling it plans once. The solver ignores the bounds.

    Args:
        problem: What is planned.
        num_elites: Elites.
        num_iterations: Iterations.
        seed: Of the solver's stream.
    """

    def __init__(self, problem: PeerProblem, *, num_elites: int, num_iterations: int, seed: int) -> None:
        self._info = {"context": problem.context_z, "past": problem.context_actions, "goal": problem.goal}
        self._solver = import_module("stable_worldmodel.solver").CEMSolver(
            _WindowCost(problem.predictor, problem.normalize),
            num_samples=problem.num_samples,
            n_steps=num_iterations,
            topk=num_elites,
            device=problem.low.device,
            seed=seed,
        )
        low, high = (bound.cpu().numpy()[None] for bound in (problem.low, problem.high))
        box = gymnasium.spaces.Box(low, high, dtype=np.float32)
        config = SimpleNamespace(horizon=problem.horizon, action_block=1)
        self._solver.configure(action_space=box, n_envs=1, config=config)

    def __call__(self) -> Tensor:
        """The plan (1, H, A)."""
        with contextlib.redirect_stdout(io.StringIO()):  # it prints its time
            found: Tensor = self._solver.solve(self._info)["actions"]
        return found


class PytorchMPPI:
    """pytorch-mppi's `MPPI` on one problem; calling it plans once (one iteration, from the nominal sequence so far).

    Its state is a vector, so the window of latents and the actions between them travel flattened.

    Args:
        problem: What is planned.
        temperature: Divides the cost.
        seed: The package draws from torch's global stream; it is seeded for the call and left as it was found.
    """

    def __init__(self, problem: PeerProblem, *, temperature: float, seed: int) -> None:
        context = problem.context_z
        self._frames, self._action_dim = context.shape[1], len(problem.low)
        self._shape = context.shape[1:]
        self._predictor, self._normalize = problem.predictor, problem.normalize
        self._goal = problem.goal[0, 0].flatten()
        self._state = torch.cat([context.flatten(), problem.normalize(problem.context_actions).flatten()])
        self._seed = seed
        deviation = 0.3 * (problem.high - problem.low)
        with self._stream():
            self._solver = import_module("pytorch_mppi").MPPI(
                self._step,
                self._cost,
                len(self._state),
                torch.diag(deviation.square()),
                num_samples=problem.num_samples,
                horizon=problem.horizon,
                lambda_=temperature,
                u_min=problem.low,
                u_max=problem.high,
                U_init=torch.zeros(problem.horizon, len(problem.low), device=problem.low.device),
                device=problem.low.device,
            )

    @torch.no_grad()
    def __call__(self) -> Tensor:
        """The first action (A,)."""
        with self._stream():
            found: Tensor = self._solver.command(self._state)
        return found

    @contextlib.contextmanager
    def _stream(self) -> Any:
        """The package draws from torch's global stream; nobody else shall notice."""
        with torch.random.fork_rng():
            torch.random.manual_seed(self._seed)
            self._seed += 1
            yield

    def _unpack(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """(K, T0, N, D) frames and (K, T0 - 1, A) actions of flat states."""
        size = self._frames * self._shape[1] * self._shape[2]
        taken = state[:, size:].view(len(state), self._frames - 1, self._action_dim)
        return state[:, :size].view(len(state), *self._shape), taken

    def _step(self, state: Tensor, action: Tensor) -> Tensor:
        frames, taken = self._unpack(state)
        taken = torch.cat([taken, self._normalize(action).unsqueeze(1)], dim=1)
        following = self._predictor(frames, taken)[:, -1:]
        newest = torch.cat([frames[:, 1:], following], dim=1)
        return torch.cat([newest.flatten(1), taken[:, 1:].flatten(1)], dim=1)

    def _cost(self, state: Tensor, action: Tensor) -> Tensor:
        frames, _ = self._unpack(state)
        return (frames[:, -1].flatten(1) - self._goal).square().mean(dim=1)
