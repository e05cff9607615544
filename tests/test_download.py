"""Downloads from a real HTTP server on the loopback interface.

What servers do wrong is in test_download_faults.py.
"""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.faulty_server import BODY, IMPATIENT
from tiny_llm.download import download, is_cached, measure
from tiny_llm.errors import DownloadError, InputError, ResourceError
from tiny_llm.pins import Pin

FETCH = (
    "import sys\nfrom tiny_llm.download import download\n"
    "from tiny_llm.pins import Pin\n"
    "download(Pin(sys.argv[1], int(sys.argv[2]), sys.argv[3]), sys.argv[4])\n"
)


@pytest.fixture
def pin(server):
    return server.pin()


def start_download(pin, cache):
    command = [sys.executable, "-c", FETCH, pin.url, str(pin.size), pin.sha256, cache]
    return subprocess.Popen(command)


def wait_for(condition):
    deadline = time.monotonic() + 20
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)


def test_a_download_is_verified_and_kept(server, pin, tmp_path):
    seen = []
    path = download(pin, tmp_path / "cache", on_progress=seen.append)
    assert path.read_bytes() == BODY
    assert sum(seen) == len(BODY)
    assert download(pin, tmp_path / "cache") == path
    assert server.ranges == [None]
    assert list((tmp_path / "cache").iterdir()) == [path]


def test_the_file_keeps_the_ending_of_its_url(server, tmp_path):
    for name, ending in [
        ("stories.jsonl.gz?download=true", ".jsonl.gz"),
        ("v1.2/part-0.parquet", ".parquet"),
        ("V2-GPT4-train.txt", ".txt"),
        ("stories", ""),
    ]:
        pin = server.pin(f"{server.base}/{name}")
        assert download(pin, tmp_path) == tmp_path / f"{pin.sha256}{ending}"


def test_a_file_is_downloaded_once_whatever_its_url(server, pin, tmp_path):
    (tmp_path / pin.sha256).write_bytes(BODY)  # As earlier versions named it.
    first = download(pin, tmp_path)
    second = download(server.pin(f"{server.base}/mirror.jsonl"), tmp_path)
    assert (first.suffix, second.suffix) == (".txt", ".jsonl")
    assert second.read_bytes() == BODY
    assert server.ranges == []


def test_a_damaged_file_in_the_cache_is_downloaded_again(server, pin, tmp_path):
    (tmp_path / f"{pin.sha256}.txt").write_bytes(b"x" * len(BODY))
    assert not is_cached(pin, tmp_path)
    assert download(pin, tmp_path).read_bytes() == BODY
    assert is_cached(pin, tmp_path)


def test_a_part_longer_than_the_file_is_replaced(server, pin, tmp_path):
    (tmp_path / f"{pin.sha256}.part").write_bytes(b"x" * (len(BODY) + 1))
    assert download(pin, tmp_path).read_bytes() == BODY


def test_a_whole_part_needs_no_server(pin, tmp_path):
    (tmp_path / f"{pin.sha256}.part").write_bytes(BODY)
    nobody = Pin("http://127.0.0.1:9/stories.txt", pin.size, pin.sha256)
    assert download(nobody, tmp_path).read_bytes() == BODY


@pytest.mark.parametrize("size", [1000, len(BODY)])
def test_a_damaged_part_is_downloaded_again(server, pin, tmp_path, size):
    """After a power cut, say: the disk may hold zeros where bytes were written."""
    (tmp_path / f"{pin.sha256}.part").write_bytes(bytes(size))
    lines = []
    path = download(pin, tmp_path, on_wait=lines.append, patience=IMPATIENT)
    assert path.read_bytes() == BODY
    assert server.ranges == ([None] if size == len(BODY) else ["bytes=1000-", None])
    assert "starting over" in lines[0]


def test_a_killed_download_is_resumed(server, pin, tmp_path):
    server.etag, server.rate = '"v1"', 1 << 20
    process = start_download(pin, tmp_path)
    part = tmp_path / f"{pin.sha256}.part"
    wait_for(lambda: part.exists() and part.stat().st_size)
    process.send_signal(signal.SIGKILL)
    process.wait()
    have = part.stat().st_size
    assert 0 < have < len(BODY)
    assert sorted(os.listdir(tmp_path)) == [part.name, f"{part.name}.etag"]
    server.rate = None
    path = download(pin, tmp_path)
    assert path.read_bytes() == BODY
    assert os.listdir(tmp_path) == [path.name]
    assert server.ranges == [None, f"bytes={have}-"]
    assert server.requests[1]["If-Range"] == '"v1"'


def test_downloads_killed_at_random_end_right_and_fetch_nothing_twice(server, tmp_path):
    """In short form; benchmarks/bench_download.py kills hundreds of them."""
    server.etag, server.rate = '"v1"', 4 << 20
    pin = server.pin()
    target, part = tmp_path / f"{pin.sha256}.txt", tmp_path / f"{pin.sha256}.part"
    starts = [0]
    for delay in (0.02, 0.09, 0.13, 0.21):
        process = start_download(pin, tmp_path)
        wait_for(lambda: len(server.requests) >= len(starts))
        time.sleep(delay)
        process.kill()
        process.wait()
        assert not target.exists() or is_cached(pin, tmp_path)
        if target.exists():
            break
        starts.append(part.stat().st_size)
    assert download(pin, tmp_path).read_bytes() == BODY
    asked = [int(found[6:-1]) if found else 0 for found in server.ranges]
    assert asked == starts[: len(asked)]


def test_processes_share_one_download(server, pin, tmp_path):
    server.rate = 4 << 20
    processes = [start_download(pin, tmp_path) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert server.num_sent == len(BODY)
    assert (tmp_path / f"{pin.sha256}.txt").read_bytes() == BODY


def test_a_second_process_says_that_it_waits_and_goes_on_after_a_kill(
    server, pin, tmp_path
):
    server.rate = 1 << 20
    process = start_download(pin, tmp_path)
    part = tmp_path / f"{pin.sha256}.part"
    wait_for(lambda: part.exists() and part.stat().st_size)
    lines, seen = [], []

    def on_wait(line):
        lines.append(line)
        server.rate = None
        process.kill()

    path = download(pin, tmp_path, on_wait=on_wait, on_progress=seen.append)
    process.wait()
    assert path.read_bytes() == BODY
    assert lines == ["waiting for another process, which downloads it"]
    assert sum(seen) == len(BODY)


@pytest.mark.skipif(os.name == "nt", reason="needs SIGSTOP")
def test_a_process_that_holds_the_download_for_ever_is_named(server, pin, tmp_path):
    server.rate = 1 << 20
    process = start_download(pin, tmp_path)
    part = tmp_path / f"{pin.sha256}.part"
    wait_for(lambda: part.exists() and part.stat().st_size)
    process.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(DownloadError, match=r"another process holds .*\.part"):
            download(pin, tmp_path, patience=IMPATIENT)
    finally:
        process.kill()
        process.wait()


def test_without_file_locks_nothing_is_shared_nor_left_behind(
    server, pin, tmp_path, monkeypatch
):
    def refuse(*_):
        raise OSError("no locks here")

    monkeypatch.setattr("fcntl.flock", refuse)
    server.faults = ["short", "404"]
    with pytest.raises(DownloadError):
        download(pin, tmp_path, patience=IMPATIENT)
    path = download(pin, tmp_path)
    assert path.read_bytes() == BODY
    left = [other for other in tmp_path.iterdir() if other.stat().st_size]
    assert left == [path]
    assert server.ranges[-1] is None


def test_a_file_limit_is_named_as_a_full_disk_would_be(server, pin, tmp_path):
    shell = f"ulimit -f 1000; exec {sys.executable} -c '{FETCH}' \"$@\""
    done = subprocess.run(
        ["bash", "-c", shell, "-", pin.url, str(pin.size), pin.sha256, tmp_path],
        capture_output=True,
        text=True,
        check=False,
    )
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"{ResourceError.__module__}.ResourceError: ")
    assert "File too large after 1,024,000 bytes" in last
    assert download(pin, tmp_path).read_bytes() == BODY
    assert server.ranges == [None, "bytes=1024000-"]


def test_a_local_file_is_copied_to_the_cache_and_verified(server, tmp_path):
    source = tmp_path / "my stories.txt"
    source.write_bytes(BODY)
    pin = server.pin(source.as_uri())
    path = download(pin, tmp_path / "cache")
    assert path.read_bytes() == BODY
    source.write_bytes(BODY[:-1] + b"x")
    assert download(pin, tmp_path / "cache") == path
    path.unlink()
    with pytest.raises(DownloadError, match=r"my%20stories\.txt: got sha256"):
        download(pin, tmp_path / "cache")


@pytest.mark.parametrize("kind", ["nothing", "a folder", "a pipe"])
def test_a_local_file_that_is_none_is_refused(server, tmp_path, kind):
    path = tmp_path / "x.txt"
    if kind == "a folder":
        path.mkdir()
    elif kind == "a pipe":
        os.mkfifo(path)
    with pytest.raises(InputError, match=r"x\.txt: (no such|not a regular) file"):
        download(server.pin(path.as_uri()), tmp_path / "cache")


def test_measuring_a_file_pins_it_and_keeps_it(server, pin, tmp_path):
    seen = []
    assert measure(pin.url, tmp_path, on_progress=seen.append) == pin
    assert sum(seen) == pin.size
    assert download(pin, tmp_path).read_bytes() == BODY
    assert server.ranges == [None]


def test_measuring_trusts_no_bytes_of_an_earlier_run(server, pin, tmp_path):
    """Without a pin, nothing would tell that the disk damaged them."""
    server.etag, server.faults = '"v1"', ["short", "404"]
    with pytest.raises(DownloadError):
        measure(pin.url, tmp_path, patience=IMPATIENT)
    server.faults = ["short", None]
    assert measure(pin.url, tmp_path, patience=IMPATIENT) == pin
    assert server.ranges[2:] == [None, f"bytes={len(BODY) // 2}-"]
