import os
import subprocess
import sys

import pytest

from tiny_llm.atomic import atomic_link, atomic_write, write_json
from tiny_llm.errors import ResourceError


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
    """The temporary file is a link to /dev/full, which refuses every write."""
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
