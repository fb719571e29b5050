"""Training of attentive probes: a sweep judged on a part of the labelled clips, then once more on all of them.

One procedure for every encoder and every task: what is read (frozen tokens, or pixels through an encoder that is
trained along) and what is predicted come in as a `ProbeProblem`.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from worldmodel.errors import ConfigError, DataError
from worldmodel.learning.attentive_probe import AttentiveProbe, AttentiveProbeConfig, Grid, clip_tokens
from worldmodel.models.encoders import Encoder

Rows = NDArray[np.int64]
Outputs = NDArray[np.float32]
_PREDICT_CLIPS = 64


@dataclass(kw_only=True)
class ProbeFitConfig:
    """Optimisation of a probe: AdamW, cosine to zero without warm-up, as V-JEPA's (arXiv:2404.08471).

    V-JEPA 2 sweeps 5e-3 to 1e-4 by 0.01 to 0.8. The sweep here is thinner and reaches higher, and there is a least
    number of steps: with a few hundred clips, 250 steps at 1e-3 left probes far from fitting even the labelled clips.
    No augmentation, which would move what the labels name.

    Attributes:
        lr: Learning rates that are tried.
        weight_decay: Weight decays that are tried; biases and norms have none.
        epochs: Passes over the labelled clips.
        min_steps: Least optimiser steps.
        batch_size: Clips per step; all of them where there are fewer.
        clip_norm: Largest norm of the gradient.
        validation_fraction: Share of the labelled clips on which the sweep is judged.
    """

    lr: tuple[float, ...] = (1e-2, 3e-3, 1e-3, 3e-4)
    weight_decay: tuple[float, ...] = (0.01, 0.4)
    epochs: int = 20
    min_steps: int = 600
    batch_size: int = 64
    clip_norm: float = 1.0
    validation_fraction: float = 0.2

    def __post_init__(self) -> None:
        self.lr, self.weight_decay = tuple(self.lr), tuple(self.weight_decay)
        if not self.lr or min(self.lr) <= 0:
            raise ConfigError(f"lr must list learning rates > 0, got {self.lr}")
        if not self.weight_decay or min(self.weight_decay) < 0:
            raise ConfigError(f"weight_decay must list values >= 0, got {self.weight_decay}")
        for name in ("epochs", "min_steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be >= 1, got {getattr(self, name)}")
        if not self.clip_norm > 0:
            raise ConfigError(f"clip_norm must be > 0, got {self.clip_norm}")
        if not 0 < self.validation_fraction < 1:
            raise ConfigError(f"validation_fraction must be in (0, 1), got {self.validation_fraction}")

    @property
    def candidates(self) -> list[tuple[float, float]]:
        """Learning rate and weight decay of every candidate."""
        return list(itertools.product(self.lr, self.weight_decay))

    def steps(self, clips: int) -> int:
        """Optimiser steps on a number of clips."""
        return max(self.min_steps, math.ceil(self.epochs * clips / min(self.batch_size, clips)))


@dataclass(frozen=True, kw_only=True)
class ProbeProblem:
    """What a probe reads and what it is to say.

    Attributes:
        inputs: (M, K, D) tokens of an encoder that stays as it is, or (M, T, Y, X, 3) uint8 clips for one in training.
        encoder: The encoder to train along, from the weights it has; None for frozen tokens.
        grid: Tokens of a clip along time, rows and columns.
        embed_dim: Their width D.
        targets: (M, ...) what is right; only those of labelled rows are read in training.
        num_queries: Queries Q of the probe.
        num_outputs: Outputs O of each.
        loss: Outputs (B, Q, O) and targets (B, ...) to a scalar.
        score: Outputs (n, Q, O) of the given rows (n,) to a number, higher is better; NaN where it is not defined.
    """

    inputs: Tensor
    encoder: Encoder | None
    grid: Grid
    embed_dim: int
    targets: Tensor
    num_queries: int
    num_outputs: int
    loss: Callable[[Tensor, Tensor], Tensor]
    score: Callable[[Outputs, Rows], float]


@dataclass(frozen=True, kw_only=True)
class FittedProbe:
    """A probe that was chosen and trained.

    Attributes:
        reader: It, with the encoder it was trained with.
        lr: Its learning rate.
        weight_decay: Its weight decay.
        validation: Score of every candidate on the validation part, None for one that diverged or has no score; empty
            where there was nothing to choose.
    """

    reader: Reader
    lr: float
    weight_decay: float
    validation: tuple[float | None, ...]


class Reader(nn.Module):
    """A probe, and the encoder in front of it where that is trained, too."""

    def __init__(self, problem: ProbeProblem, config: AttentiveProbeConfig, seed: int) -> None:
        super().__init__()
        self.probe = AttentiveProbe(
            config,
            grid=problem.grid,
            embed_dim=problem.embed_dim,
            num_queries=problem.num_queries,
            num_outputs=problem.num_outputs,
            seed=seed,
        )
        self.encoder = None if problem.encoder is None else copy.deepcopy(problem.encoder).requires_grad_(True)
        self.to(problem.inputs.device)

    def forward(self, inputs: Tensor) -> Tensor:
        """Tokens (B, K, D) or clips (B, T, Y, X, 3) -> (B, Q, O)."""
        tokens = inputs.float() if self.encoder is None else clip_tokens(self.encoder, inputs)
        out: Tensor = self.probe(tokens)
        return out

    @torch.no_grad()
    def predict(self, inputs: Tensor, rows: Rows) -> Outputs:
        """Outputs (n, Q, O) for some rows of the inputs."""
        self.eval()
        blocks = torch.from_numpy(rows).split(_PREDICT_CLIPS)
        parts = [self(inputs[block.to(inputs.device)]).cpu() for block in blocks]
        found: Outputs = torch.cat(parts).numpy()
        return found


def fit_probe(
    problem: ProbeProblem,
    labelled: Rows,
    head: AttentiveProbeConfig,
    config: ProbeFitConfig,
    *,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> FittedProbe:
    """Choose learning rate and weight decay on a part of the labelled clips, then train on all of them.

    The best score on the validation part wins; of equal scores, the lower loss. With a single candidate there is
    nothing to choose, and no clip is set apart.

    Args:
        problem: What is read and predicted.
        labelled: (n,) rows whose labels may be used, in an order of which every stretch is balanced.
        head: Sizes of the probe.
        config: Sweep and optimisation.
        seed: Of initial weights and order of the clips; equal seeds give equal bits on the CPU.
        progress: Told the optimiser steps done and in total.

    Raises:
        DataError: Too few clips to set some apart, or every candidate diverged.
    """
    candidates = config.candidates
    train, validation = hold_out(labelled, config.validation_fraction) if len(candidates) > 1 else (labelled, labelled)
    each, last = config.steps(len(train)), config.steps(len(labelled))
    total = last + (each * len(candidates) if len(candidates) > 1 else 0)
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    ranks: list[tuple[float, float]] = []
    scores: list[float | None] = []
    for lr, weight_decay in candidates if len(candidates) > 1 else []:
        reader = _train(problem, train, Reader(problem, head, seed), (lr, weight_decay), config, seed, tick)
        if reader is None:
            ranks.append((-math.inf, -math.inf))
            scores.append(None)
            continue
        score, loss = _judge(problem, reader, validation)
        ranks.append((score, -loss))
        scores.append(score if math.isfinite(score) else None)
    best = max(range(len(ranks)), key=ranks.__getitem__) if ranks else 0
    reader = _train(problem, labelled, Reader(problem, head, seed), candidates[best], config, seed, tick)
    if reader is None:
        raise DataError(f"the probe diverged with lr={candidates[best][0]:g} on {len(labelled)} clips; add a lower lr")
    lr, weight_decay = candidates[best]
    return FittedProbe(reader=reader, lr=lr, weight_decay=weight_decay, validation=tuple(scores))


def hold_out(labelled: Rows, fraction: float) -> tuple[Rows, Rows]:
    """Divide rows into those that are trained on and, evenly spread among them, those that are held out.

    Raises:
        DataError: Fewer than two rows.
    """
    if len(labelled) < 2:
        raise DataError(f"a sweep needs at least 2 labelled clips, got {len(labelled)}; use more, or a single lr")
    place = np.arange(len(labelled))
    held = np.floor((place + 1) * fraction) > np.floor(place * fraction)
    if not held.any():
        held[-1] = True
    if held.all():
        held[0] = False
    return labelled[~held], labelled[held]


def _judge(problem: ProbeProblem, reader: Reader, rows: Rows) -> tuple[float, float]:
    """Score and loss on some rows; a score that is not defined there ranks below every other."""
    outputs = reader.predict(problem.inputs, rows)
    wanted = problem.targets[torch.from_numpy(rows).to(problem.targets.device)]
    loss = float(problem.loss(torch.from_numpy(outputs).to(wanted.device), wanted))
    score = problem.score(outputs, rows)
    return (score if math.isfinite(score) else -math.inf), loss


def _train(
    problem: ProbeProblem,
    rows: Rows,
    reader: Reader,
    candidate: tuple[float, float],
    config: ProbeFitConfig,
    seed: int,
    tick: Callable[[], None],
) -> Reader | None:
    """Train in place; None when the loss is no longer finite."""
    lr, weight_decay = candidate
    steps = config.steps(len(rows))
    matrices = [value for value in reader.parameters() if value.ndim > 1]
    vectors = [value for value in reader.parameters() if value.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    reader.train()
    batches = _batches(rows, min(config.batch_size, len(rows)), seed)
    device = problem.inputs.device
    finite = torch.ones((), dtype=torch.bool, device=device)
    for _ in range(steps):
        index = next(batches).to(device)
        loss = problem.loss(reader(problem.inputs[index]), problem.targets[index])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(reader.parameters(), config.clip_norm)
        optimizer.step()
        schedule.step()
        finite &= torch.isfinite(loss.detach())  # read once at the end: asking at every step would stall a GPU
        tick()
    if not (finite and all(torch.isfinite(value).all() for value in reader.parameters())):
        return None
    return reader.eval()


def _batches(rows: Rows, size: int, seed: int) -> Iterator[Tensor]:
    """Endless batches; every row once before one twice."""
    rng = np.random.default_rng(seed)
    waiting = np.empty(0, np.int64)
    while True:
        while len(waiting) < size:
            waiting = np.concatenate([waiting, rng.permutation(rows)])
        yield torch.from_numpy(waiting[:size])
        waiting = waiting[size:]
