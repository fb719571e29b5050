"""The best matrix-product rate of this machine: what every speed here is held against, in the same run.

An absolute rate says little on a shared machine; the share of what the best product reached in the same minutes does.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

Shape = tuple[int, int, int]
"""Rows, summed dimension and columns of a matrix product."""


def matmul_flops(work: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products in `work`, two per multiplication and addition.

    The backward pass of fused attention computes the scores again; that is not counted as work. Compiled functions run
    as they were written meanwhile: the counter does not see into what they are compiled to.
    """
    aten = torch.ops.aten
    fused = (
        aten._scaled_dot_product_flash_attention_for_cpu_backward,
        aten._scaled_dot_product_flash_attention_backward,
        aten._scaled_dot_product_efficient_attention_backward,
    )

    def forward(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
        return int(sdpa_flop_count(q, k, v))

    def backward(_gradient: Any, q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
        return 2 * int(sdpa_flop_count(q, k, v))

    # torch 2.14 counts nothing for the forward pass on a CPU; later releases count the same.
    mapping = {**dict.fromkeys(fused, backward), aten._scaled_dot_product_flash_attention_for_cpu: forward}
    counter = FlopCounterMode(display=False, custom_mapping=mapping)
    with torch.compiler.set_stance("force_eager"), counter:
        work()
    return int(counter.get_total_flops())


@dataclass
class Products:
    """Times matrix products and remembers the best rate of each shape and, per processor second, of all, FLOP/s.

    Attributes:
        shapes: What is multiplied.
        dtype: In which precision.
        device: Where; None means the CPU.
        best: Best rate of each shape so far.
        best_cpu: Best rate per second of processor time, all shapes.
    """

    shapes: list[Shape]
    dtype: torch.dtype
    device: torch.device | None = None
    best: dict[Shape, float] = field(default_factory=dict)
    best_cpu: float = 0.0

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(0)

        def matrix(rows: int, columns: int) -> torch.Tensor:
            return torch.randn(rows, columns, generator=generator).to(dtype=self.dtype, device=self.device)

        # Weights lie transposed, as in a linear layer; the result is there already, so no memory is asked for.
        self._operands = [(matrix(m, k), matrix(n, k).t(), matrix(m, n)) for m, k, n in self.shapes]

    def round(self, repeats: int = 3) -> float:
        """Multiply every shape `repeats` times; the best rate of this round, FLOP/s."""
        rates = []
        for (m, k, n), (left, right, out) in zip(self.shapes, self._operands, strict=True):
            for _ in range(repeats):
                synchronize(self.device)
                started, busy = time.perf_counter(), time.process_time()
                torch.mm(left, right, out=out)
                synchronize(self.device)
                seconds, busy = time.perf_counter() - started, time.process_time() - busy
                rates.append(2 * m * k * n / seconds)
                self.best_cpu = max(self.best_cpu, 2 * m * k * n / max(busy, 1e-9))
            self.best[m, k, n] = max(self.best.get((m, k, n), 0.0), *rates[-repeats:])
        return max(rates)

    def to_json(self) -> dict[str, float]:
        """Best rate of each shape, GFLOP/s."""
        return {"x".join(map(str, shape)): round(rate / 1e9, 1) for shape, rate in self.best.items()}


def synchronize(device: torch.device | None) -> None:
    """Wait for an accelerator; the CPU is never behind."""
    if device is not None and device.type != "cpu":
        torch.accelerator.synchronize(device)
