"""The planner seam: a planner sees a function of actions, nothing else."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

CostFn = Callable[[Tensor], Tensor]
"""Maps actions (B, S, H, A) in env units to costs (B, S), lower is better. Always called with all B rows."""
