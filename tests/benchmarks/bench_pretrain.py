"""Share of the best matrix-product rate that pretraining reaches, and what the loader costs; prints one JSON object.

    python tests/benchmarks/bench_pretrain.py [threads] [precision] [sizes, comma separated]

The steps are those of `fit` with the repaired V-JEPA target: masks, target encoder, context encoder, predictor,
backward, AdamW and EMA. Matrix products are timed between the steps, so that both see the same machine. Only the
products of a step count as work (linear layers and attention, without what a backward pass computes twice).

On two idle cores it takes about two minutes and less than 8 GB. Run it on an idle machine: other work makes both rates
smaller and noisy. `share` compares the median step with the best product of the whole run, `share_interleaved` each
step with the best product right before and after it. `share_cpu_time` is `share` per second of processor time: the one
to read with one thread on a busy machine, where a product is short enough to be left alone and a step is not.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from worldmodel.commands.pretrain import ClipSource, backgrounds
from worldmodel.data.clips import ClipBatch, ClipSampler
from worldmodel.data.episodes import Episode, EpisodeDataset, EpisodeSpec, write_episodes
from worldmodel.evaluation.products import Products, Shape, matmul_flops
from worldmodel.hardware import hardware_facts
from worldmodel.learning.fit import FitConfig, fit
from worldmodel.learning.vjepa import VJEPAConfig, VJEPATask
from worldmodel.models.masked_predictor import MaskedPredictorConfig
from worldmodel.models.vit import ViTConfig

BAR_SHARE = 0.5
BAR_LOADER_SHARE = 0.05
SQUARES = (1024, 2048)
EPISODES, EPISODE_FRAMES = 100, 51


@dataclass(frozen=True, kw_only=True)
class Size:
    """What is timed.

    Attributes:
        encoder: Architecture, and with it the clip.
        predictor: Sizes of the predictor.
        batch_size: Clips per step.
        frame_step: Env steps between the frames of a clip.
        steps_per_interval: Steps between two rounds of matrix products.
        intervals: Rounds; the first one warms up and is left out.
    """

    encoder: ViTConfig
    predictor: MaskedPredictorConfig
    batch_size: int
    frame_step: int = 1
    steps_per_interval: int = 1
    intervals: int = 4


SIZES = {
    "base": Size(
        encoder=ViTConfig(embed_dim=768, depth=12, num_heads=12),
        predictor=MaskedPredictorConfig(embed_dim=384, depth=12, num_heads=12),
        batch_size=8,
    ),
    # configs/experiment/quick.yaml
    "quick": Size(
        encoder=ViTConfig(embed_dim=96, depth=4, num_heads=3, num_frames=4),
        predictor=MaskedPredictorConfig(embed_dim=64, depth=3, num_heads=2),
        batch_size=32,
        frame_step=2,
        steps_per_interval=10,
    ),
}


def linear_shapes(size: Size) -> list[Shape]:
    """Products of an encoder block on all tokens of a batch: qkv, output projection and the two of the MLP."""
    width, hidden = size.encoder.embed_dim, int(size.encoder.embed_dim * size.encoder.mlp_ratio)
    rows = size.batch_size * int(np.prod(size.encoder.grid))
    return [(rows, width, 3 * width), (rows, width, width), (rows, width, hidden), (rows, hidden, width)]


class TimedSource(ClipSource):
    """Clips as in training, with the seconds they took."""

    def __init__(self, sampler: ClipSampler) -> None:
        super().__init__(sampler)
        self.seconds = 0.0

    def next_batch(self) -> ClipBatch:
        started = time.perf_counter()
        batch = super().next_batch()
        self.seconds += time.perf_counter() - started
        return batch


class Clock:
    """Called by `fit` between steps: takes the time of the steps before, then times a round of products."""

    def __init__(self, products: Products, source: TimedSource, steps: int) -> None:
        self.products, self.source, self.steps = products, source, steps
        self.step_s: list[float] = []
        self.cpu_s: list[float] = []
        self.load_s: list[float] = []
        self.rates: list[float] = []
        self._restart()

    def __call__(self, done: int) -> dict[str, float]:
        self.step_s.append((time.perf_counter() - self._started) / self.steps)
        self.cpu_s.append((time.process_time() - self._busy) / self.steps)
        self.load_s.append((self.source.seconds - self._loaded) / self.steps)
        self._restart()
        return {}

    def _restart(self) -> None:
        self.rates.append(self.products.round())
        self._loaded = self.source.seconds
        self._started, self._busy = time.perf_counter(), time.process_time()


def record(folder: Path, image_size: int) -> EpisodeDataset:
    """An episode file with a still, noisy background and a square that moves."""
    spec = EpisodeSpec(
        env_id="worldmodel/Push-v0",
        image_size=image_size,
        action_low=(-1.0, -1.0),
        action_high=(1.0, 1.0),
        proprio_names=("x", "y"),
        privileged_names=("x", "y"),
        control_dt_s=0.1,
    )
    rng = np.random.default_rng(0)
    episodes = []
    for number in range(EPISODES):
        scene = rng.integers(0, 256, (image_size, image_size, 3), dtype=np.uint8)
        pixels = np.repeat(scene[None], EPISODE_FRAMES, axis=0)
        place = (np.cumsum(rng.integers(-2, 3, (EPISODE_FRAMES, 2)), axis=0) + image_size // 2) % (image_size - 8)
        for frame, (y, x) in enumerate(place):
            pixels[frame, y : y + 8, x : x + 8] = (255, 0, 0)
        episodes.append(
            Episode(
                pixels=pixels,
                proprio=place.astype(np.float32),
                action=rng.uniform(-1, 1, (EPISODE_FRAMES - 1, 2)).astype(np.float32),
                privileged=place.astype(np.float32),
                contact=np.zeros(EPISODE_FRAMES, np.bool_),
                policy="synthetic",
                seed=number,
                success=False,
            )
        )
    return write_episodes(folder / f"{image_size}.h5", spec, episodes)


def measure(size: Size, precision: str, products: Products, dataset: EpisodeDataset) -> tuple[Clock, int]:
    """Train for a few steps; the times, and the matrix work of one step."""
    target = VJEPAConfig.repaired()
    target.predictor = size.predictor
    task = VJEPATask(size.encoder, target, background=backgrounds(dataset))
    sampler = ClipSampler(
        dataset,
        np.arange(len(dataset)),
        num_frames=size.encoder.num_frames,
        frame_step=size.frame_step,
        batch_size=size.batch_size,
    )
    batch = next(sampler)

    def step() -> None:
        task(batch, torch.Generator().manual_seed(0))["loss"].backward()

    flops = matmul_flops(step)  # no other part of a step multiplies matrices
    source = TimedSource(sampler)
    config = FitConfig(
        steps=size.steps_per_interval * size.intervals,
        eval_every=size.steps_per_interval,
        precision=precision,
        accelerator="cpu",
    )
    clock = Clock(products, source, size.steps_per_interval)
    fit(task, source, config, evaluate=clock, progress=False)
    return clock, flops


def summary(size: Size, clock: Clock, flops: int, products: Products) -> dict[str, Any]:
    """JSON-ready results of one size; the first interval is left out."""
    rates = [flops / seconds for seconds in clock.step_s[1:]]
    cpu_rate = statistics.median(flops / seconds for seconds in clock.cpu_s[1:])
    around = [max(pair) for pair in zip(clock.rates[1:-1], clock.rates[2:], strict=True)]
    encoder = size.encoder
    return {
        "encoder": asdict(encoder),
        "predictor": asdict(size.predictor),
        "batch_size": size.batch_size,
        "clip": [encoder.num_frames, encoder.image_size, encoder.image_size, 3],
        "tokens_per_clip": int(np.prod(encoder.grid)),
        "step_gflop": round(flops / 1e9, 1),
        "step_s": [round(seconds, 3) for seconds in clock.step_s[1:]],
        "gflops": round(statistics.median(rates) / 1e9, 1),
        "share": round(statistics.median(rates) / max(products.best.values()), 3),
        "share_interleaved": round(statistics.median(r / g for r, g in zip(rates, around, strict=True)), 3),
        "share_cpu_time": round(cpu_rate / products.best_cpu, 3),
        "loader_share": round(sum(clock.load_s[1:]) / sum(clock.step_s[1:]), 5),
    }


def main() -> None:
    """Time the sizes asked for and print the shares."""
    threads = int(sys.argv[1]) if len(sys.argv) > 1 else torch.get_num_threads()
    precision = sys.argv[2] if len(sys.argv) > 2 else "32-true"
    names = sys.argv[3].split(",") if len(sys.argv) > 3 else list(SIZES)
    torch.set_num_threads(threads)
    dtype = torch.bfloat16 if precision.startswith("bf16") else torch.float32
    load = os.getloadavg()[0]
    sizes = {name: SIZES[name] for name in names}
    shapes = [shape for size in sizes.values() for shape in linear_shapes(size)]
    products = Products([*shapes, *((side, side, side) for side in SQUARES)], dtype)
    clocks = {}
    with tempfile.TemporaryDirectory() as folder:
        dataset = record(Path(folder), 64)
        for name, size in sizes.items():
            clocks[name] = measure(size, precision, products, dataset)
    result = {
        "benchmark": "pretrain",
        "sizes": {name: summary(sizes[name], clock, flops, products) for name, (clock, flops) in clocks.items()},
        "best_gemm_gflops": round(max(products.best.values()) / 1e9, 1),
        "best_gemm_gflops_per_cpu_s": round(products.best_cpu / 1e9, 1),
        "gemm_gflops": products.to_json(),
        "bar_share": BAR_SHARE,
        "bar_loader_share": BAR_LOADER_SHARE,
        "dtype": str(dtype).removeprefix("torch."),
        "threads": threads,
        "load": [round(load, 1), round(os.getloadavg()[0], 1)],
        "hardware": hardware_facts(),
    }
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
