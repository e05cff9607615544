import os
import random
import subprocess
import sys
import threading
import time

import pytest

from tiny_llm import atomic
from tiny_llm.atomic import (
    atomic_link,
    atomic_write,
    flushing,
    part_path,
    write_json,
)
from tiny_llm.errors import ResourceError

needs_locks = pytest.mark.skipif(
    sys.platform == "win32", reason="Windows has no fcntl, so nothing is removed"
)

# Writes a file again and again, slowly enough to be killed while it does.
WRITE_FOREVER = (
    "import sys, time\n"
    "from tiny_llm.atomic import atomic_write\n"
    "print(flush=True)\n"
    "while True:\n"
    "    with atomic_write(sys.argv[1]) as file:\n"
    "        file.write(b'x' * 10_000)\n"
    "        time.sleep(0.002)\n"
)


def start(code, *arguments):
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE
    )
    process.stdout.readline()
    return process


def kill(process):
    process.kill()
    process.communicate()


def test_a_file_appears_only_when_it_is_whole(tmp_path):
    path = tmp_path / "new" / "file"
    with atomic_write(path) as file:
        file.write(b"whole")
        assert not path.exists()
    assert path.read_bytes() == b"whole"
    assert os.listdir(path.parent) == ["file"]


def test_a_failure_keeps_the_old_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), atomic_write(path) as file:
        file.write(b"half" * (1 // 0))
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has /dev/full")
def test_a_full_disk_is_named_with_its_size(tmp_path, monkeypatch):
    """The temporary file is a symbolic link to /dev/full, where every write fails."""
    monkeypatch.setattr(
        "tiny_llm.atomic.part_path",
        lambda target: target.with_name(f"{target.name}.tmp"),
    )
    os.symlink("/dev/full", tmp_path / "file.tmp")
    with (
        pytest.raises(ResourceError, match=r"file: No space left .* bytes are free"),
        atomic_write(tmp_path / "file") as file,
    ):
        file.write(b"x" * 100_000)
    assert os.listdir(tmp_path) == []


def test_two_processes_that_write_one_file_leave_one_whole(tmp_path):
    code = (
        "import sys\n"
        "from tiny_llm.atomic import atomic_write\n"
        "for _ in range(200):\n"
        "    with atomic_write(sys.argv[1]) as file:\n"
        "        for _ in range(50): file.write(sys.argv[2].encode() * 100)\n"
    )
    path = tmp_path / "file"
    writers = [
        subprocess.Popen([sys.executable, "-c", code, str(path), letter])
        for letter in "ab"
    ]
    while any(writer.poll() is None for writer in writers):
        if path.exists():
            assert path.read_bytes() in (b"a" * 5000, b"b" * 5000)
    assert [writer.returncode for writer in writers] == [0, 0]
    assert os.listdir(tmp_path) == ["file"]


@needs_locks
def test_what_killed_writers_left_is_removed_by_the_next(tmp_path):
    path = tmp_path / "file [1]"  # Brackets are special to glob.
    dice = random.Random(0)
    for _ in range(8):
        writers = [start(WRITE_FOREVER, path) for _ in range(3)]
        time.sleep(dice.random() / 50)
        for writer in writers:
            kill(writer)
    assert len(os.listdir(tmp_path)) > 1, "no writer was killed in the middle"
    write_json(path, 1)
    assert os.listdir(tmp_path) == [path.name]


@needs_locks
def test_the_file_of_a_live_writer_is_left_alone(tmp_path):
    path = tmp_path / "file"
    code = (
        "import sys\n"
        "from tiny_llm.atomic import atomic_write\n"
        "with atomic_write(sys.argv[1]) as file:\n"
        "    file.write(b'slow')\n"
        "    print(flush=True)\n"
        "    sys.stdin.readline()\n"
    )
    writer = subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    writer.stdout.readline()
    part_path(path).write_bytes(b"of a killed writer")
    with atomic_write(path) as file:
        file.write(b"quick")
    assert path.read_bytes() == b"quick"
    assert len(os.listdir(tmp_path)) == 2  # Only the killed one's is gone.
    writer.communicate(b"\n")
    assert writer.returncode == 0
    assert path.read_bytes() == b"slow"
    assert os.listdir(tmp_path) == ["file"]


@needs_locks
def test_a_file_removed_before_it_is_locked_is_made_again(tmp_path, monkeypatch):
    """Another run removes it between creating and locking."""
    path, real_flock, calls = tmp_path / "file", atomic.fcntl.flock, []

    def flock(file, operation):
        calls.append(operation)
        if len(calls) == 1:  # The writer's own lock comes next.
            atomic.remove_leftovers(path)
        real_flock(file, operation)

    monkeypatch.setattr("tiny_llm.atomic.fcntl.flock", flock)
    with atomic_write(path) as file:
        file.write(b"whole")
    assert len(calls) == 3
    assert path.read_bytes() == b"whole"
    assert os.listdir(tmp_path) == ["file"]


@needs_locks
def test_without_locks_files_are_written_and_nothing_is_removed(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError("no locks available")

    monkeypatch.setattr("tiny_llm.atomic.fcntl.flock", flock)
    other = part_path(tmp_path / "file")
    other.write_bytes(b"perhaps live")
    write_json(tmp_path / "file", 1)
    assert sorted(os.listdir(tmp_path)) == ["file", other.name]


def test_files_of_other_targets_are_left_alone(tmp_path):
    names = ["other.0123abcd.tmp", "file.bak.0123abcd.tmp", "file.tmp", "file.abc.tmp"]
    for name in names:
        (tmp_path / name).write_bytes(b"")
    write_json(tmp_path / "file", 1)
    assert sorted(os.listdir(tmp_path)) == sorted([*names, "file"])


@needs_locks
def test_links_and_writers_of_one_file_do_not_disturb_each_other(tmp_path):
    source, path = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"x" * 10_000)
    part_path(path).hardlink_to(source)  # Left by a killed run.
    failures = []

    def work(action):
        try:
            for _ in range(300):
                action()
        except Exception as error:
            failures.append(error)

    def write():
        with atomic_write(path) as file:
            file.write(b"x" * 10_000)

    def link():
        assert atomic_link(source, path)

    threads = [
        threading.Thread(target=work, args=[action])
        for action in (write, link, write, link)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert path.read_bytes() == source.read_bytes() == b"x" * 10_000
    assert sorted(os.listdir(tmp_path)) == ["source", "target"]


def test_a_link_replaces_what_had_the_name(tmp_path):
    (tmp_path / "source").write_bytes(b"text")
    (tmp_path / "target").write_bytes(b"old")
    for _ in range(2):
        assert atomic_link(tmp_path / "source", tmp_path / "target")
        assert sorted(os.listdir(tmp_path)) == ["source", "target"]
    assert os.path.samefile(tmp_path / "source", tmp_path / "target")


def test_json_is_readable_and_ends_with_a_newline(tmp_path):
    write_json(tmp_path / "x.json", {"a": 1})
    assert (tmp_path / "x.json").read_bytes() == b'{\n  "a": 1\n}\n'


@pytest.mark.parametrize("num_flushes", [1, 5])
def test_a_flush_in_a_thread_that_fails_is_an_error(num_flushes):
    def flush(file):
        with flushing(file) as start_flush:
            for _ in range(num_flushes):
                start_flush()
                time.sleep(0.01)

    read_end, write_end = os.pipe()  # A pipe cannot be flushed to disk.
    with (
        open(read_end, "rb"),
        open(write_end, "wb") as file,
        pytest.raises(OSError, match="Invalid argument"),
    ):
        flush(file)


def test_a_file_can_be_written_while_it_is_flushed(tmp_path):
    with open(tmp_path / "x", "wb") as file, flushing(file) as start_flush:
        for _ in range(50):
            file.write(b"x" * 10_000)
            start_flush()
    assert (tmp_path / "x").read_bytes() == b"x" * 500_000
