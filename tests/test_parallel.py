"""Jobs in worker processes."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from tests.conftest import ROOT
from tiny_llm.cluster import _describe, _run
from tiny_llm.errors import ClusterError, ConfigError, InputError, ResourceError
from tiny_llm.parallel import (
    Job,
    _cgroup_quota,
    count_workers,
    map_jobs,
    run_in_worker,
)
from tiny_llm.worker import result_of


def double(number):
    os.write(1, b"on stdout, which belongs to the answers\n")
    return {"twice": 2 * number, "process": os.getpid()}


def refuse(number):
    if number == 3:
        raise InputError(f"number {number} is odd; give an even one")
    return number


def stumble(number):
    return 1 // (3 - number)


def die(number, how):
    if number == 3:
        os.kill(os.getpid(), how)
    return number


def wait(number):
    time.sleep(60 if number else 0)
    return number


def jobs(count, **arguments):
    return [Job(f"job {n}", {"number": n, **arguments}) for n in range(count)]


@pytest.mark.parametrize("num_workers", [1, 2, 5, None])
def test_results_come_in_the_order_of_the_jobs(num_workers):
    results = list(map_jobs(double, jobs(50), num_workers))
    assert [result["twice"] for result in results] == list(range(0, 100, 2))
    processes = {result["process"] for result in results}
    assert os.getpid() not in processes
    assert len(processes) <= (num_workers or count_workers())


def test_few_jobs_run_in_this_process():
    [result] = map_jobs(double, jobs(1), max_in_process=1)
    assert result["process"] == os.getpid()
    results = map_jobs(double, jobs(2), max_in_process=1)
    assert os.getpid() not in {result["process"] for result in results}


def test_workers_import_what_their_parent_imports(tmp_path, monkeypatch):
    """Not another version in the current folder, as `python -m` would."""
    (tmp_path / "tiny_llm").mkdir()
    (tmp_path / "tiny_llm" / "__init__.py").write_text("raise ImportError")
    monkeypatch.chdir(tmp_path)
    assert [result["twice"] for result in map_jobs(double, jobs(2))] == [0, 2]


def test_one_job_can_run_in_a_worker():
    [job] = jobs(1)
    assert run_in_worker(double, job)["process"] != os.getpid()
    with pytest.raises(ResourceError, match=r"killed by SIGABRT.*or take less, and"):
        run_in_worker(die, Job("it", {"number": 3, "how": signal.SIGABRT}, "take less"))


def test_an_error_of_ours_is_raised_as_it_was():
    with pytest.raises(InputError, match="number 3 is odd; give an even one"):
        list(map_jobs(refuse, jobs(9), 2))


def test_a_programming_error_comes_with_its_traceback():
    with pytest.raises(RuntimeError, match=r"(?s)in stumble.*ZeroDivisionError"):
        list(map_jobs(stumble, jobs(9), 2))


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGABRT])
def test_a_worker_that_dies_is_an_error_that_names_its_job(how):
    message = f"process on job 3 was killed by {how.name}, probably because memory"
    with pytest.raises(ResourceError, match=message):
        list(map_jobs(die, jobs(9, how=how), 2))


def test_closing_ends_workers_that_are_busy():
    with contextlib.closing(map_jobs(wait, jobs(9), 3)) as results:
        assert next(results) == 0
        begin = time.monotonic()
    assert time.monotonic() - begin < 30  # Each job takes 60 s.


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="reads /proc")
def test_workers_end_with_a_parent_that_is_killed():
    code = (
        "import sys\n"
        "from tests.test_parallel import double, jobs\n"
        "from tiny_llm.parallel import map_jobs\n"
        "results = map_jobs(double, jobs(9999), 2)\n"
        "print(*{next(results)['process'] for _ in range(50)}, flush=True)\n"
        "sys.stdin.read()\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    workers = list(map(int, parent.stdout.readline().split()))
    assert workers
    parent.kill()
    parent.communicate()
    while any(map(_is_alive, workers)):
        time.sleep(0.01)


def _is_alive(process):
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().split(") ")[1][0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5"])
def test_a_wrong_number_of_workers_is_refused(monkeypatch, value):
    monkeypatch.setenv("TINY_LLM_WORKERS", value)
    with pytest.raises(ConfigError, match=f"TINY_LLM_WORKERS is .?{value}.?; give"):
        list(map_jobs(double, jobs(3)))


def test_workers_are_as_many_as_asked_for_or_as_there_are_cores(monkeypatch):
    monkeypatch.setenv("TINY_LLM_WORKERS", "7")
    assert count_workers() == 7
    monkeypatch.delenv("TINY_LLM_WORKERS")
    assert 1 <= count_workers() <= os.cpu_count()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux only")
def test_cores_outside_the_affinity_do_not_count(monkeypatch):
    monkeypatch.delenv("TINY_LLM_WORKERS", raising=False)
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert count_workers() == 1
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize(
    ("quotas", "num_cores"),
    [
        *(({}, None), ({"a/b": "max 100000"}, None), ({"a/b": "nonsense"}, None)),
        *(({"a/b": "150000 100000"}, 2), ({"a/b": "1000 100000"}, 1)),
        *(({"a": "300000 100000", "a/b": "max 100000"}, 3), ({".": "4 1"}, 4)),
        ({".": "900000 100000", "a": "200000 100000", "a/b": "500000 100000"}, 2),
    ],
)
def test_the_smallest_cgroup_quota_above_this_process_counts(
    tmp_path, quotas, num_cores
):
    (tmp_path / "root" / "a" / "b").mkdir(parents=True)
    (tmp_path / "membership").write_text("1:name=x:/y\n0::/a/b\n")
    for folder, quota in quotas.items():
        (tmp_path / "root" / folder / "cpu.max").write_text(f"{quota}\n")
    assert _cgroup_quota(tmp_path / "membership", tmp_path / "root") == num_cores
    assert _cgroup_quota(tmp_path / "gone", tmp_path / "root") is None


@pytest.fixture
def on_cluster(monkeypatch):
    """As if a cluster had been chosen; check_cluster.py has one that runs."""
    monkeypatch.setenv("TINY_LLM_CLUSTER", "ray")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    return monkeypatch


def test_an_unknown_cluster_is_refused(on_cluster):
    on_cluster.setenv("TINY_LLM_CLUSTER", "dask")
    with pytest.raises(ConfigError, match="TINY_LLM_CLUSTER is 'dask'; set it to ray"):
        list(map_jobs(double, jobs(1)))


@pytest.mark.parametrize(
    "address", ["", "local", "auto", "ray://127.0.0.1:10001", "head:", ":6379"]
)
def test_a_cluster_needs_host_and_port(on_cluster, address):
    on_cluster.setenv("RAY_ADDRESS", address)
    with pytest.raises(ConfigError, match=f"RAY_ADDRESS is '{address}'; .* HOST:PORT"):
        list(map_jobs(double, jobs(1)))


def test_a_cluster_on_other_machines_needs_authentication(on_cluster):
    on_cluster.setenv("RAY_ADDRESS", "192.0.2.1:6379")  # Nobody's: RFC 5737.
    with pytest.raises(ConfigError, match=r"get-auth-token --generate.*RAY_AUTH_MODE"):
        list(map_jobs(double, jobs(1)))


def test_a_cluster_that_does_not_answer_is_an_error_even_for_few_jobs(on_cluster):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    on_cluster.setenv("RAY_ADDRESS", address)
    with pytest.raises(ClusterError, match=f"no Ray head answers at {address}"):
        list(map_jobs(double, jobs(1)))


def test_a_cluster_without_ray_says_what_to_install(on_cluster):
    on_cluster.setitem(sys.modules, "ray", None)
    with socket.create_server(("127.0.0.1", 0)) as server:
        on_cluster.setenv("RAY_ADDRESS", f"127.0.0.1:{server.getsockname()[1]}")
        with pytest.raises(ConfigError, match="pip install 'tiny-llm\\[cluster\\]'"):
            list(map_jobs(double, jobs(1)))


def test_a_worker_without_authentication_refuses_its_job(on_cluster):
    """Without a cluster: one without authentication is open to the whole network."""
    on_cluster.setenv("RAY_AUTH_MODE", "token")
    expected = json.dumps(_describe.__wrapped__())
    on_cluster.delenv("RAY_AUTH_MODE")
    _describe.cache_clear()
    try:
        said = json.loads(_run("tests.test_parallel:double", '{"number": 3}', expected))
    finally:
        _describe.cache_clear()
    with pytest.raises(
        ConfigError, match="has RAY_AUTH_MODE '', and this process 'tok"
    ):
        result_of(said)
