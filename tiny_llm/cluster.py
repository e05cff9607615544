"""Jobs on a Ray cluster: the same calls as in worker processes, on more machines.

Set TINY_LLM_CLUSTER=ray and RAY_ADDRESS=HOST:PORT, the address of the head of a running
cluster; docs/cluster.md has the steps. Nothing is started here, and nothing runs
elsewhere if the cluster cannot be used. Tasks are strings of JSON: the name of a
function and its arguments. The paths in them mean the same file on every machine.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import logging
import os
import platform
import signal
import socket
import threading
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

from tiny_llm.errors import ClusterError, ConfigError
from tiny_llm.worker import Job, answer, result_of

CLUSTER_VARIABLE = "TINY_LLM_CLUSTER"

# How often a job is tried again after the death of its worker or an error of its disk.
_MAX_RETRIES = 3

# Per core of the cluster: jobs that run or wait there, and jobs ahead of the next
# result.
_IN_FLIGHT, _WINDOW = 2, 8

# How long to wait for a TCP connection, and how often to look for the head, in seconds.
_CONNECT_S, _LOOK_S = 5, 10

# Errors of Ray that mean that a worker or its machine is gone.
_DEATHS = {"WorkerCrashedError", "NodeDiedError", "LocalRayletDiedError"}
_DEATHS |= {"OutOfMemoryError", "ObjectLostError"}


def is_cluster_chosen() -> bool:
    """Return whether TINY_LLM_CLUSTER says that jobs run on a cluster.

    Raises:
        ConfigError: It is neither empty nor "ray".
    """
    value = os.environ.get(CLUSTER_VARIABLE, "")
    if value not in ("", "ray"):
        raise ConfigError(
            f"{CLUSTER_VARIABLE} is {value!r}; set it to ray, or unset it to use the "
            "cores of this machine"
        )
    return value == "ray"


def map_on_cluster(
    function: Callable[..., Any], jobs: Sequence[Job]
) -> Generator[Any, None, None]:
    """Call `function` once per job on the cluster; see `parallel.map_jobs`.

    Warns:
        UserWarning: A job is tried again.

    Raises:
        ConfigError: RAY_ADDRESS is missing or unsafe, ray is not installed, or workers
            have other versions than this process.
        ClusterError: The cluster cannot be used, or a job failed each time it was
            tried; names the job.
        Exception: Whatever `function` raised first.
    """
    address = _read_address()
    with _connection(address) as ray:
        task = ray.remote(num_cpus=1, max_retries=0)(_run)
        name = f"{function.__module__}:{function.__qualname__}"
        expected = json.dumps(_describe())
        num_cores = int(ray.cluster_resources().get("CPU", 0))
        if num_cores < 1:
            raise ClusterError(f"the cluster at {address} has no cores; start a node")
        pending: dict[Any, int] = {}
        num_tries = [0] * len(jobs)
        results: dict[int, Any] = {}

        def send(number: int) -> None:
            arguments = json.dumps(jobs[number].arguments)
            pending[task.remote(name, arguments, expected)] = number
            num_tries[number] += 1

        num_sent = num_yielded = 0
        while num_yielded < len(jobs):
            limit = min(len(jobs), num_yielded + _WINDOW * num_cores)
            while num_sent < limit and len(pending) < _IN_FLIGHT * num_cores:
                send(num_sent)
                num_sent += 1
            for done in _wait(ray, pending, address):
                number = pending.pop(done)
                failure = ""
                try:
                    results[number] = result_of(json.loads(ray.get(done)))
                except ray.exceptions.RayError as error:
                    if type(error).__name__ not in _DEATHS:
                        raise ClusterError(_explain(error)) from None
                    failure = f"its worker died ({str(error).partition('. ')[0]})"
                except OSError as error:
                    failure = str(error)
                if failure:
                    _count_failure(jobs[number].name, num_tries[number], failure)
                    send(number)
            while num_yielded in results:
                yield results.pop(num_yielded)
                num_yielded += 1


def _run(name: str, arguments: str, expected: str) -> str:
    """Do one job, on a worker; arguments and answer are JSON."""
    found = _describe()
    for key, value in json.loads(expected).items():
        if found[key] != value:
            message = (
                f"a worker on {socket.gethostname()} has {key} {found[key]!r}, and "
                f"this process {value!r}; give every machine the same"
            )
            return json.dumps({"error": ConfigError.__name__, "message": message})
    module, _, function = name.partition(":")
    called = getattr(importlib.import_module(module), function)
    return json.dumps(answer(called, json.loads(arguments)))


@functools.cache
def _describe() -> dict[str, str]:
    """Return what must be the same in this process and in every worker.

    A head without authentication accepts any token: only its workers tell.
    """
    from importlib.metadata import version  # 26 ms, which other runs need not spend.

    return {
        # Not imported by name: a new version alone would rerun stages.
        "tiny-llm": importlib.import_module("tiny_llm").__version__,
        "gigatoken": version("gigatoken"),
        "Python": platform.python_version(),
        "RAY_AUTH_MODE": os.environ.get("RAY_AUTH_MODE", ""),
    }


def _read_address() -> str:
    address = os.environ.get("RAY_ADDRESS", "")
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in host:
        raise ConfigError(
            f"RAY_ADDRESS is {address!r}; set it to the HOST:PORT of the head "
            f"of a running Ray cluster, or unset {CLUSTER_VARIABLE}"
        )
    if not _is_loopback(address) and os.environ.get("RAY_AUTH_MODE") != "token":
        raise ConfigError(
            f"RAY_ADDRESS is {address}, another machine, and Ray without "
            "authentication lets anybody on the network run code there; run `ray "
            "get-auth-token --generate`, copy ~/.ray/auth_token to every machine, and "
            "set RAY_AUTH_MODE=token there and here"
        )
    return address


def _is_loopback(address: str) -> bool:
    host = address.rpartition(":")[0].strip("[]")
    return host in ("localhost", "::1") or host.startswith("127.")


@contextlib.contextmanager
def _connection(address: str) -> Iterator[Any]:
    """Connect to the head; yields the module `ray`."""
    _look_for_head(address)
    # 20 tries take minutes if the head does not answer.
    os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_NUM_REDIS_GET_RETRIES="1")
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            f"{CLUSTER_VARIABLE} is ray, but ray cannot be imported ({error}); run "
            "`pip install 'tiny-llm[cluster]'`"
        ) from error
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with _no_stderr():  # Its C++ part writes there.
            ray.init(address, log_to_driver=False, logging_level=logging.CRITICAL)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        ray.shutdown()
        raise ClusterError(f"Ray at {address}: {_explain(error)}") from None
    finally:
        # Ray's own handler would exit with status 1.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)
    try:
        yield ray
    finally:
        ray.shutdown()  # Ends the tasks too.


@contextlib.contextmanager
def _no_stderr() -> Iterator[None]:
    saved = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def _look_for_head(address: str) -> None:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_S).close()
    except OSError as error:
        raise ClusterError(
            f"no Ray head answers at {address} ({error}); start one with `ray start`, "
            f"or set RAY_ADDRESS to its address"
        ) from None


def _wait(ray: Any, pending: dict[Any, int], address: str) -> list[Any]:
    """Wait until something is done; return all that is."""
    tasks = list(pending)
    while not ray.wait(tasks, num_returns=1, timeout=_LOOK_S)[0]:
        _look_for_head(address)  # Without a head, nothing would ever be done.
    done: list[Any] = ray.wait(tasks, num_returns=len(tasks), timeout=0)[0]
    return done


def _count_failure(name: str, num_tries: int, failure: str) -> None:
    """Warn of a failure; raise ClusterError if it was the last try."""
    if num_tries > _MAX_RETRIES:
        raise ClusterError(
            f"{name} failed {num_tries} times on the cluster, at last because {failure}"
            "; look for what is special about it, and run again"
        )
    warnings.warn(
        f"{name}: {failure}; retry {num_tries} of {_MAX_RETRIES}", stacklevel=3
    )


def _explain(error: BaseException) -> str:
    """Say in one line what Ray says in many."""
    said = " ".join(f"{error} {error.__cause__ or ''}".split())
    if "No module named" in said:
        return f"a worker cannot import the code ({said[-200:]}); install it everywhere"
    if "AuthToken" in said or "Unauthenticated" in said or "authentication" in said:
        return (
            "the token is missing or wrong; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN "
            "or RAY_AUTH_TOKEN_PATH as on the head"
        )
    if "Version mismatch" in said:
        return f"{said}; install the same versions of Ray and Python everywhere"
    return f"{said[:400]}; look at `ray status` on the head"
