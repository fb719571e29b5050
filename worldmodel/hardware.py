"""The machine and the versions that a measured number belongs to."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    "worldmodel",
    "torch",
    "timm",
    "mujoco",
    "gymnasium",
    "numpy",
    "hydra-core",
    "omegaconf",
    "h5py",
    "safetensors",
    "lightning-fabric",
    "joblib",
    "imageio-ffmpeg",
)


def hardware_facts() -> dict[str, Any]:
    """Machine and versions a measured number belongs to, JSON-ready."""
    return {
        "device": describe_device(),
        "processor": processor(),
        "cores": available_cores(),
        "python": platform.python_version(),
        "versions": package_versions(),
    }


def package_versions() -> dict[str, str | None]:
    """Installed version of every package that matters for reproducing a run."""
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def available_cores() -> int:
    """CPU cores this process may use (affinity and container limits respected where the system tells)."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return os.cpu_count() or 1


def describe_device() -> str:
    """Kind of the accelerator that is used by default, with its product name, or "cpu"."""
    import torch

    if not torch.accelerator.is_available():
        return "cpu"
    kind = str(torch.accelerator.current_accelerator())
    return f"{kind} ({torch.cuda.get_device_name()})" if torch.cuda.is_available() else kind


def processor() -> str:
    """Product name of the processor where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
