"""A Ray cluster of two nodes on this machine; `make cluster-check` runs these.

Each driver is a process of its own, as it is for users. Not named test_*.py: most
environments have no Ray.
"""

import contextlib
import itertools
import os
import platform
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from pipeline.stage import show_warnings
from tests.conftest import ROOT, SEP, expect
from tiny_llm import encoding
from tiny_llm.errors import ClusterError, ConfigError, InputError, IntegrityError
from tiny_llm.parts import part_path
from tiny_llm.tokenize import BPETokenizer
from tiny_llm.verify import verify

TEXT = b"".join(b"Story %d of the cat. " % n * 9 + SEP for n in range(40))
RANGE_BYTES = 400
NUM_RANGES = -(-len(TEXT) // RANGE_BYTES)
BAD = 4 * RANGE_BYTES  # Where the range of the tests of deaths begins.
BAD_NAME = f"bytes {BAD:,} to {BAD + RANGE_BYTES:,} of "

# Makes Python behave as if tiny_llm were not installed, in whatever environment.
LACKING = """\
import sys
class Finder:
    def find_spec(name, *_):
        if name == "tiny_llm":
            raise ModuleNotFoundError("No module named 'tiny_llm'")
sys.meta_path.insert(0, Finder)
"""

encode_range = encoding.encode_range


# Run by workers.
def log(source, begin):
    """Count an execution."""
    with open(Path(source).with_name("log"), "a") as file:
        file.write(f"{begin} {os.getpid()}\n")


def plain(source, **arguments):
    log(source, arguments["begin"])
    return encode_range(source, **arguments)


def slow(source, **arguments):
    log(source, arguments["begin"])
    time.sleep(0.15)
    return encode_range(source, **arguments)


def deadly(source, **arguments):
    log(source, arguments["begin"])
    if arguments["begin"] == BAD:
        os.kill(os.getpid(), signal.SIGKILL)
    return encode_range(source, **arguments)


def full(source, **arguments):
    log(source, arguments["begin"])
    if arguments["begin"] == BAD:
        raise OSError(28, "No space left on device")
    return encode_range(source, **arguments)


def damaging(source, **arguments):
    log(source, arguments["begin"])
    part = encode_range(source, **arguments)
    if arguments["begin"] == BAD:
        with open(part_path(Path(arguments["folder"]), BAD), "r+b") as file:
            first = file.read(1)[0]
            file.seek(0)
            file.write(bytes([first ^ 1]))
    return part


def drive(function, source):
    """Encode on the cluster, in a process of its own; prints as stages do."""
    source = Path(source)
    encoding.encode_range = globals()[function]
    tokenizer = BPETokenizer.load(source.with_name("bpe.json"))
    try:
        with show_warnings("driver"):
            encoding.encode_file(
                tokenizer, source, source.with_name("out.bin"), range_bytes=RANGE_BYTES
            )
    except (ClusterError, ConfigError, InputError, IntegrityError) as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_status)


def children(process):
    return psutil.Process(process.pid).children(recursive=True)


class Cluster:
    def __init__(self):
        # Short: the sockets in it have names of at most 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        self.env = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "TINY_LLM_CLUSTER": "ray",
            "RAY_ADDRESS": self.address,
            "RAY_AUTH_MODE": "token",  # Heads listen on all interfaces.
            "RAY_AUTH_TOKEN": secrets.token_hex(16),
        }
        self.head = self.start("head", "--head", "--port", str(port), "--temp-dir")
        self.node = None

    def start(self, name, *arguments, **env):
        said = self.folder / f"{name}.log"
        if "--head" in arguments:
            arguments = (*arguments, str(self.folder), "--include-dashboard=false")
        with open(said, "w") as file:
            node = subprocess.Popen(
                [
                    *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block"),
                    *arguments,
                    *("--node-ip-address", "127.0.0.1", "--num-cpus", "1"),
                    *("--object-store-memory", "80000000", "--disable-usage-stats"),
                ],
                env={k: v for k, v in self.env.items() if k != "RAY_ADDRESS"} | env,
                stdout=file,
                stderr=file,
            )
        while "Ray runtime started" not in said.read_text():
            assert node.poll() is None, said.read_text()
            time.sleep(0.1)
        return node

    def start_second_node(self, **env):
        if self.node is None:
            self.node = self.start("node", "--address", self.address, **env)

    def kill(self, node):
        """Kill a node with all its processes, as when its machine loses power."""
        for process in [node, *children(node)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        node.wait()

    def kill_second_node(self):
        self.kill(self.node)
        self.node = None

    def kill_head(self):
        self.kill(self.head)
        self.head = None


@pytest.fixture(scope="module")
def two_nodes():
    cluster = Cluster()
    try:
        cluster.start_second_node()
        yield cluster
    finally:
        for node in filter(None, (cluster.node, cluster.head)):
            cluster.kill(node)
        shutil.rmtree(cluster.folder, ignore_errors=True)


@pytest.fixture
def cluster(two_nodes):
    two_nodes.start_second_node()
    return two_nodes


@pytest.fixture
def source(tmp_path):
    BPETokenizer([(b"t", b"h"), (b"th", b"e")]).save(tmp_path / "bpe.json")
    path = tmp_path / "in.txt"
    path.write_bytes(TEXT)
    return path


def start(cluster, source, function="plain", prelude="", **env):
    code = f"{prelude}\nimport sys\nfrom tests.check_cluster import drive\n"
    code += "drive(*sys.argv[1:])"
    return subprocess.Popen(
        [sys.executable, "-c", code, function, source],
        env={**cluster.env, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    out, err = process.communicate(timeout=100)
    return subprocess.CompletedProcess([], process.returncode, out, err)


def encode(*arguments, **options):
    return finish(start(*arguments, **options))


def executions(source):
    """(begin, process) of each time that a range was begun."""
    path = source.with_name("log")
    lines = path.read_text().splitlines() if path.exists() else []
    return [tuple(map(int, line.split())) for line in lines]


def wait_for(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def assert_same_as_one_process(source, monkeypatch):
    monkeypatch.delenv("TINY_LLM_CLUSTER", raising=False)
    tokenizer = BPETokenizer.load(source.with_name("bpe.json"))
    alone = source.with_name("alone.bin")
    encoding.encode_file(tokenizer, source, alone, range_bytes=RANGE_BYTES)
    for suffix in (".bin", ".json", ".documents"):
        mine = source.with_name("out.bin").with_suffix(suffix)
        assert mine.read_bytes() == alone.with_suffix(suffix).read_bytes()
    verify(alone)
    assert not source.with_name("out.parts").exists()


def test_files_are_the_same_as_those_of_one_process(cluster, source, monkeypatch):
    done = encode(cluster, source, "slow")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert_same_as_one_process(source, monkeypatch)
    found = executions(source)
    assert sorted(begin for begin, _ in found) == [*range(0, len(TEXT), RANGE_BYTES)]
    assert len({process for _, process in found}) == 2


def test_a_killed_worker_is_replaced_and_reported(cluster, source, monkeypatch):
    run = start(cluster, source, "slow")
    wait_for(lambda: len(executions(source)) >= 4)
    _, process = executions(source)[-1]
    os.kill(process, signal.SIGKILL)
    done = finish(run)
    assert done.returncode == 0, done.stderr
    assert "its worker died" in done.stderr
    assert "retry 1 of 3" in done.stderr
    assert len(executions(source)) <= NUM_RANGES + 1
    assert_same_as_one_process(source, monkeypatch)


def test_a_node_that_is_killed_in_mid_run_costs_one_range(cluster, source, monkeypatch):
    run = start(cluster, source, "slow")

    def is_at_work():
        there = {child.pid for child in children(cluster.node)}
        return len([1 for _, process in executions(source) if process in there]) >= 3

    wait_for(is_at_work)
    cluster.kill_second_node()
    done = finish(run)
    assert done.returncode == 0, done.stderr
    assert all("in.txt: its worker died" in line for line in done.stderr.splitlines())
    assert len(executions(source)) <= NUM_RANGES + 1
    assert_same_as_one_process(source, monkeypatch)


def test_a_rerun_after_a_killed_driver_encodes_what_is_missing(
    cluster, source, monkeypatch
):
    run = start(cluster, source, "slow")
    wait_for(lambda: len(executions(source)) >= NUM_RANGES // 2)
    run.kill()
    run.communicate()
    kept = {
        path.name: path.stat().st_mtime_ns
        for path in source.parent.glob("out.parts/*/*.part")
    }
    assert len(kept) >= NUM_RANGES // 2 - 3
    run = start(cluster, source, "slow")
    seen = {}

    def look():
        for path in source.parent.glob("out.parts/*/*.part"):
            seen.setdefault(path.name, path.stat().st_mtime_ns)
        return run.poll() is not None

    wait_for(look)
    assert finish(run).returncode == 0
    assert {name: seen[name] for name in kept} == kept
    assert_same_as_one_process(source, monkeypatch)


@pytest.mark.parametrize(
    ("function", "reason"),
    [("deadly", "its worker died"), ("full", "[Errno 28] No space left on device")],
)
def test_a_range_that_fails_each_time_ends_the_run_with_its_bytes(
    cluster, source, function, reason
):
    done = encode(cluster, source, function)
    *warned, line = done.stderr.splitlines()
    assert done.returncode == 6, done.stderr
    assert f"error: {BAD_NAME}" in line
    assert f"failed 4 times on the cluster, at last because {reason}" in line
    assert [BAD_NAME in warning for warning in warned] == [True] * 3
    assert [begin for begin, _ in executions(source)].count(BAD) == 4
    assert not source.with_name("out.bin").exists()


def test_a_signal_ends_the_driver_as_it_ends_any_program(cluster, source):
    run = start(cluster, source, "slow")
    wait_for(lambda: executions(source))
    run.terminate()
    run.communicate()
    assert run.returncode == -signal.SIGTERM


@pytest.mark.parametrize("token", ["wrong" * 8, ""])
def test_a_wrong_or_missing_token_is_one_line(cluster, source, tmp_path, token):
    done = encode(cluster, source, RAY_AUTH_TOKEN=token, HOME=str(tmp_path))
    expect(done, 6, "the token is missing or wrong; set RAY_AUTH_MODE=token")


def test_another_version_of_ray_is_one_line(cluster, source):
    done = encode(cluster, source, prelude="import ray; ray.__version__ = '2.55.9'")
    expect(done, 6, "Version mismatch", "2.55.9", "install the same versions")


def test_another_version_of_our_code_is_one_line(cluster, source):
    change = "import tiny_llm; tiny_llm.__version__ = '9.9'"
    done = encode(cluster, source, prelude=change)
    host = platform.node()
    expect(done, 2, f"a worker on {host} has tiny-llm", "and this process '9.9'")


def test_another_version_of_python_is_one_line(cluster, source):
    change = "import ray, sys, tests.check_cluster\n"
    change += "sys.version_info = (3, 19, 0, 'final', 0)"
    done = encode(cluster, source, prelude=change)
    expect(done, 6, "Version mismatch", "3.19.0", "install the same versions")


def test_a_node_that_lacks_our_code_is_one_line(cluster, source, tmp_path):
    cluster.kill_second_node()
    (tmp_path / "sitecustomize.py").write_text(LACKING)
    cluster.start_second_node(PYTHONPATH=str(tmp_path))
    try:
        done = encode(cluster, source, "slow")
    finally:
        cluster.kill_second_node()
    expect(done, 6, "a worker cannot import the code", "No module named 'tiny_llm'")


def test_a_damaged_part_is_one_line_that_names_it(cluster, source):
    done = encode(cluster, source, "damaging")
    expect(done, 4, f"{BAD:016}.part is not what a worker wrote", "run again")
    assert not source.with_name("out.bin").exists()


def test_a_network_address_needs_authentication(cluster, source):
    found = itertools.chain(*psutil.net_if_addrs().values())
    hosts = [item.address for item in found if item.family == socket.AF_INET]
    hosts = [host for host in hosts if not host.startswith("127.")]
    if not hosts:
        pytest.skip("this machine has no address but loopback")
    address = f"{hosts[0]}:{cluster.address.rpartition(':')[2]}"
    done = encode(cluster, source, RAY_ADDRESS=address, RAY_AUTH_MODE="disabled")
    expect(done, 2, f"RAY_ADDRESS is {address}", "set RAY_AUTH_MODE=token")
    assert executions(source) == []
    assert encode(cluster, source, RAY_ADDRESS=address).returncode == 0


def test_a_killed_head_ends_the_run(cluster, source):
    """The last test: the cluster is gone."""
    run = start(cluster, source, "slow")
    wait_for(lambda: len(executions(source)) >= 4)
    cluster.kill_head()
    done = finish(run)
    *warned, line = done.stderr.splitlines()
    assert done.returncode == 6, done.stderr
    assert f"error: no Ray head answers at {cluster.address}" in line
    assert all("in.txt: its worker died" in warning for warning in warned)
    assert not source.with_name("out.bin").exists()
