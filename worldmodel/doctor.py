"""What this machine has and what is missing, for `worldmodel doctor`, run folders and bug reports."""

from __future__ import annotations

import platform
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from worldmodel.errors import RenderingError, WorldModelError
from worldmodel.hardware import available_cores, describe_device, package_versions, processor

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
        machine=f"{platform.system()} {platform.machine()} {processor()}".strip(),
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
