"""What this machine has and what is missing, for `worldmodel doctor`, run folders and bug reports."""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from worldmodel.errors import RenderingError, WorldModelError

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
MIN_FREE_GIB = 2.0


@dataclass(kw_only=True)
class Report:
    """State of the installation.

    Attributes:
        versions: Package name to version, or None when it is not installed.
        python: Interpreter version.
        machine: Operating system and processor.
        device: What computations run on by default, e.g. "cpu" or "cuda (NVIDIA H200)".
        cores: CPU cores this process may use.
        threads: Threads torch uses for one operation.
        has_bf16: Whether matrix products in bfloat16 are fast here.
        gl_backend: OpenGL backend that works ("egl", "osmesa", "glfw"), or None.
        free_gib: Free disk space in the current folder, GiB.
        problems: What is missing, each with what to do; empty when all is well.
    """

    versions: dict[str, str | None]
    python: str
    machine: str
    device: str
    cores: int
    threads: int
    has_bf16: bool
    gl_backend: str | None
    free_gib: float
    problems: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """JSON-ready form."""
        return asdict(self)


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


def find_gl_backend() -> str:
    """Create and free an OpenGL context.

    Returns:
        Name of the backend that works.

    Raises:
        RenderingError: None works; the message names the packages to install.
    """
    from worldmodel.envs.rendering import create_context

    context, backend = create_context(64, 64)
    context.free()
    return backend


def describe_device() -> str:
    """Kind of the accelerator that is used by default, with its product name, or "cpu"."""
    import torch

    if not torch.accelerator.is_available():
        return "cpu"
    kind = str(torch.accelerator.current_accelerator())
    return f"{kind} ({torch.cuda.get_device_name()})" if torch.cuda.is_available() else kind


def hardware_facts() -> dict[str, Any]:
    """Machine and versions a measured number belongs to, JSON-ready."""
    return {
        "device": describe_device(),
        "processor": _processor(),
        "cores": available_cores(),
        "python": platform.python_version(),
        "versions": package_versions(),
    }


def diagnose() -> Report:
    """Inspect the installation; never raises for something missing, but lists it in `problems`."""
    import torch

    from worldmodel.learning.fit_config import has_native_bf16

    versions = package_versions()
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    device = accelerator if accelerator is not None else torch.device("cpu")
    problems = [f"{name} is not installed: pip install {name}" for name, found in versions.items() if found is None]
    backend = None
    try:
        backend = find_gl_backend()
    except RenderingError as error:
        problems.append(str(error))
    cores, threads = available_cores(), torch.get_num_threads()
    if threads > cores:
        problems.append(f"torch uses {threads} threads on {cores} cores: set OMP_NUM_THREADS={cores}")
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    if free < MIN_FREE_GIB:
        problems.append(f"only {free:.1f} GiB of disk are free here; a `reproduce` run wants {MIN_FREE_GIB:.0f}")
    problems += _checkpoint_problems()
    return Report(
        versions=versions,
        python=platform.python_version(),
        machine=f"{platform.system()} {platform.machine()} {_processor()}".strip(),
        device=describe_device(),
        cores=cores,
        threads=threads,
        has_bf16=has_native_bf16(device),
        gl_backend=backend,
        free_gib=round(free, 1),
        problems=problems,
    )


def _checkpoint_problems() -> list[str]:
    """Whether a checkpoint is shipped, and whether every shipped one loads."""
    from worldmodel.models.checkpoint import load_checkpoint, shipped_checkpoints

    shipped = shipped_checkpoints()
    problems = [] if shipped else ["no checkpoint is shipped with this installation; make one: worldmodel reproduce"]
    for folder in shipped.values():
        try:
            load_checkpoint(folder)
        except WorldModelError as error:
            problems.append(str(error))
    return problems


def _processor() -> str:
    """Product name of the processor where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
