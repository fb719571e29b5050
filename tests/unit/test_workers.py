from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from worldmodel.control.workers import parallel_map
from worldmodel.errors import ConfigError

PROGRAM = """
import sys
from functools import partial
from operator import mul
from worldmodel.control.workers import parallel_map

if sys.argv[1] == "sum":
    print(sum(parallel_map(partial(mul, 2), range(6), workers=2)))
else:
    for pid in parallel_map(eval, ["__import__('os').getpid()", *["__import__('time').sleep(600)"] * 2], workers=2):
        print(pid, flush=True)
"""


def _program(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", PROGRAM, *arguments], stdout=subprocess.PIPE, text=True)


def test_one_worker_stays_in_this_process() -> None:
    assert list(parallel_map(lambda job: (job, os.getpid()), [1, 2], workers=1)) == [(1, os.getpid()), (2, os.getpid())]
    assert list(parallel_map(lambda job: (job, os.getpid()), [3], workers=4)) == [(3, os.getpid())]
    with pytest.raises(ConfigError, match="workers must be >= 1, got 0"):
        next(parallel_map(abs, [1], workers=0))


def test_several_workers_do_every_job_once() -> None:
    child = _program("sum")
    assert child.communicate()[0].strip() == "30"


def test_workers_end_when_the_caller_was_killed() -> None:
    child = _program("sleep")
    assert child.stdout is not None
    worker = int(child.stdout.readline())
    assert Path(f"/proc/{worker}").exists()
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    child.stdout.close()
    while Path(f"/proc/{worker}").exists():  # a worker that stays hangs here, and the suite's time limit says so
        time.sleep(0.1)
