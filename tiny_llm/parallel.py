"""Parallel jobs: call a function once per job, with results in order.

Few jobs run in this process; more run in worker processes, or all on a cluster. Jobs
and results are JSON, so a job names its data (a path and a range of bytes) instead of
holding it. Results do not depend on the number of workers or on where they are.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

from tiny_llm.checks import check_int
from tiny_llm.cluster import is_cluster_chosen, map_on_cluster
from tiny_llm.errors import ResourceError
from tiny_llm.worker import Job, result_of

__all__ = ["Job", "count_workers", "is_cluster_chosen", "map_jobs", "run_in_worker"]

WORKERS_VARIABLE = "TINY_LLM_WORKERS"

# Not `python -m`, which would import what lies in the current folder first.
_START_WORKER = """\
import sys
sys.path[:] = sys.argv[2:]
from tiny_llm.worker import main
main()
"""

# How much freed memory a worker keeps, if its libc is glibc.
_KEPT_BYTES = 8 << 20

# How far ahead of the next result to work, in jobs per worker.
_WINDOW = 8


def count_workers() -> int:
    """Return how many workers to start: TINY_LLM_WORKERS, or the usable cores.

    Cores that the CPU affinity or the cgroup quota of this process excludes do not
    count.

    Raises:
        ConfigError: TINY_LLM_WORKERS is not an integer of at least 1.
    """
    if value := os.environ.get(WORKERS_VARIABLE):
        return check_int(WORKERS_VARIABLE, int(value) if value.isdigit() else value)
    if hasattr(os, "sched_getaffinity"):
        num_cores = len(os.sched_getaffinity(0))
    else:
        num_cores = os.cpu_count() or 1
    return min(num_cores, _cgroup_quota() or num_cores)


def _cgroup_quota(
    membership: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> int | None:
    """Return the CPU quota of this process in whole cores, rounded up, if it has one.

    Linux with cgroup v2; a quota of any folder above limits it as well.
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return None
    inside = next((line[3:] for line in lines if line.startswith("0::")), None)
    if inside is None:
        return None
    folder = root / inside.strip("/")
    quotas = []
    for place in (folder, *folder.parents):
        try:
            quota, period = (place / "cpu.max").read_text().split()
            quotas.append(-(-int(quota) // int(period)))
        except (OSError, ValueError):  # No such file, or "max": no quota here.
            pass
        if place == root:
            break
    return max(1, min(quotas)) if quotas else None


def map_jobs(
    function: Callable[..., Any],
    jobs: Sequence[Job],
    num_workers: int | None = None,
    *,
    max_in_process: int = 0,
) -> Generator[Any, None, None]:
    """Call `function` with the arguments of each job.

    Close the iterator to end the workers at once, for instance with
    `contextlib.closing`.

    Args:
        function: A function of a module, which workers import. What it returns must
            be JSON.
        jobs: One call each.
        num_workers: By default `count_workers()`; a cluster has its own.
        max_in_process: So many jobs are done sooner by this process than by workers
            that are started for them.

    Yields:
        Results in the order of the jobs.

    Raises:
        ConfigError: `num_workers` is below 1.
        ResourceError: A worker was killed or ran out of memory; names the job.
        ClusterError: The cluster that TINY_LLM_CLUSTER asks for cannot be used, or
            fails at a job each time; names the job.
        Exception: Whatever `function` raised first; a RuntimeError with its traceback
            if it is none of tiny_llm.errors.
    """
    if num_workers is None:
        num_workers = count_workers()
    num_workers = check_int("num_workers", num_workers)
    if is_cluster_chosen():
        yield from map_on_cluster(function, jobs)
        return
    if len(jobs) <= max_in_process:
        for job in jobs:
            yield function(**job.arguments)
        return
    workers = _Workers(function, min(num_workers, len(jobs)))
    try:
        yield from workers.map(jobs)
    finally:
        workers.kill()


def run_in_worker(function: Callable[..., Any], job: Job) -> Any:
    """Like `map_jobs` with one job, but always in a worker process.

    Native code that aborts the process when memory runs out ends only the worker.
    """
    workers = _Workers(function, 1)
    try:
        return next(workers.map([job]))
    finally:
        workers.kill()


class _Workers:
    """Worker processes, each with at most one job."""

    def __init__(self, function: Callable[..., Any], num_workers: int) -> None:
        self._workers: list[_Worker] = []
        self._selector = selectors.DefaultSelector()
        try:
            for _ in range(num_workers):
                worker = _Worker(function)
                self._workers.append(worker)
                self._selector.register(worker.answers, selectors.EVENT_READ, worker)
        except BaseException:
            self.kill()
            raise

    def map(self, jobs: Sequence[Job]) -> Iterator[Any]:
        results: dict[int, Any] = {}
        idle = list(self._workers)
        num_sent = num_yielded = 0
        while num_yielded < len(jobs):
            limit = min(len(jobs), num_yielded + _WINDOW * len(self._workers))
            while idle and num_sent < limit:
                idle.pop().send(num_sent, jobs[num_sent])
                num_sent += 1
            for key, _ in self._selector.select():
                worker: _Worker = key.data
                results[worker.number] = worker.receive()
                idle.append(worker)
            while num_yielded in results:
                yield results.pop(num_yielded)
                num_yielded += 1

    def kill(self) -> None:
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.close()
        self._selector.close()


class _Worker:
    """One process; see `tiny_llm.worker`.

    Not a `multiprocessing.Process`: that would run the caller's script again in each
    worker unless the script guards its main part.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.number = -1
        self._job: Job | None = None
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `close`
        name = f"{function.__module__}:{function.__qualname__}"
        environment = {
            # Or glibc returns the memory of each window and gets it again.
            "MALLOC_MMAP_THRESHOLD_": f"{_KEPT_BYTES}",
            "MALLOC_TRIM_THRESHOLD_": f"{_KEPT_BYTES}",
            **os.environ,
            "OPENBLAS_NUM_THREADS": "1",  # The threads would cost memory, unused.
        }
        self.process = subprocess.Popen(
            [sys.executable, "-c", _START_WORKER, name, *sys.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=environment,
            start_new_session=True,  # Ctrl-C is for the parent, which kills workers.
        )
        if self.process.stdin is None or self.process.stdout is None:
            raise RuntimeError("Popen opened no pipes")
        self._jobs, self.answers = self.process.stdin, self.process.stdout

    def send(self, number: int, job: Job) -> None:
        self.number, self._job = number, job
        # A broken pipe: it is dead, and `receive` will say how it died.
        with contextlib.suppress(BrokenPipeError):
            self._jobs.write(json.dumps(job.arguments).encode() + b"\n")
            self._jobs.flush()

    def receive(self) -> Any:
        line = self.answers.readline()
        if not line.endswith(b"\n"):
            raise ResourceError(self._explain_death())
        return result_of(json.loads(line))

    def _explain_death(self) -> str:
        status = self.process.wait()
        self._stderr.seek(0)
        said = self._stderr.read().decode(errors="replace").strip().splitlines()
        how = f"exited with status {status}"
        if status < 0:
            how = f"was killed by {signal.Signals(-status).name}"
        if status in (-signal.SIGKILL, -signal.SIGABRT):
            how += ", probably because memory ran out"
        job = self._job or Job("no job", {})
        return (
            f"the worker process on {job.name} {how}"
            + (f" ({said[-1]})" if said else "")
            + f"; free memory or {job.remedy}, and run again"
        )

    def close(self) -> None:
        self.process.wait()
        with contextlib.suppress(BrokenPipeError):
            self._jobs.close()
        self.answers.close()
        self._stderr.close()
