"""Many independent jobs in worker processes: the one place that calls joblib.

Which engine runs them is joblib's business: processes of this machine by default, Ray or Dask under
`joblib.parallel_config`. What is added here is manners: workers leave Ctrl-C to the caller, end when the caller was
killed, and none is left behind.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

import joblib
from joblib.externals.loky import get_reusable_executor

from worldmodel.envs import use_module, used_modules
from worldmodel.errors import ConfigError

Job = TypeVar("Job")
Result = TypeVar("Result")

_PARENT_CHECK_S = 1.0


def parallel_map(
    function: Callable[[Job], Result], jobs: Sequence[Job], *, workers: int, ordered: bool = False
) -> Generator[Result, None, None]:
    """Apply a function to every job, and yield each result as it arrives.

    Args:
        function: Importable by name; runs here when one worker or one job is enough.
        jobs: What it is applied to; each is sent to a worker.
        workers: Number of processes, >= 1.
        ordered: Yield in the order of the jobs instead of as they finish.

    Raises:
        ConfigError: `workers` is not positive.
    """
    if workers < 1:
        raise ConfigError(f"workers must be >= 1, got {workers}")
    if workers == 1 or len(jobs) <= 1:
        yield from map(function, jobs)
        return
    with _own_workers():
        order = "generator" if ordered else "generator_unordered"
        parallel = joblib.Parallel(n_jobs=min(workers, len(jobs)), return_as=order)
        parent = _Parent(pid=os.getpid(), modules=used_modules())
        with closing(parallel(joblib.delayed(_work)(function, parent, job) for job in jobs)) as results:
            yield from results


@contextmanager
def _own_workers() -> Iterator[None]:
    """Start from fresh worker processes and leave none behind.

    joblib keeps idle workers for the next call. One that did something small before and then loads a model grows by
    what loky takes for a memory leak: loky stops it and warns, from a thread of its own that a caller who turns
    warnings into errors would lose. Leaving none behind also gives the memory of the models back.
    """
    get_reusable_executor(reuse=True).shutdown(wait=True)
    try:
        yield
    finally:  # idle after the last result; busy only when the caller gave up, and then nobody wants their work
        get_reusable_executor(reuse=True).shutdown(wait=True, kill_workers=True)


@dataclass(frozen=True, kw_only=True)
class _Parent:
    """What a worker has to know of the process that wants its work.

    Attributes:
        pid: Its number.
        modules: Modules that register environments of the user's own.
    """

    pid: int
    modules: tuple[str, ...]


def _work(function: Callable[[Job], Result], parent: _Parent, job: Job) -> Result:
    """One job in a worker process: Ctrl-C is for the caller, which then stops the workers."""
    for module in parent.modules:
        use_module(module)
    if os.getpid() != parent.pid and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        # Mesa's software rasteriser would start threads in every worker; a worker that draws itself is faster.
        os.environ.setdefault("LP_NUM_THREADS", "0")
        _end_with(parent.pid)
    return function(job)


@cache
def _end_with(parent: int) -> None:
    """End this worker process soon after the caller was killed; it would wait for ever to hand over its result."""
    if os.getppid() != parent:  # on another machine, or under another engine, there is nothing to watch
        return

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_PARENT_CHECK_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
