"""Stage fetch from manifests: files of any shape, --pin, --check, what users see."""

import contextlib
import gzip
import json
import os
import re
import struct
import subprocess
import sys

import pyarrow as pa
import pytest
import yaml
from pyarrow import parquet

from tests.conftest import SEP, built, expect
from tests.faulty_server import answer, serve


@pytest.fixture
def server(text):
    with serve(body=text) as server:
        yield server


def as_entry(pin):
    return {"url": pin.url, "size": pin.size, "sha256": pin.sha256}


def test_a_manifest_lists_several_files_of_any_shape_for_each_split(
    workspace, server, text
):
    """From a server and from disk, in the order of the manifest."""
    lines = b"".join(b'{"text": "line %d"}\n' % i for i in range(3))
    (workspace.path / "b.jsonl").write_bytes(lines)
    parquet.write_table(pa.table({"text": ["row 0"]}), workspace.path / "c.parquet")
    (workspace.path / "d.txt").write_bytes(b"A text without separators.\n")
    with serve(body=gzip.compress(lines)) as other:
        urls = [f"{other.base}/a.jsonl.gz?download=true", "d.txt", "c.parquet"]
        urls += [server.url, "b.jsonl"]
        done = workspace.stage("fetch", "--pin", *urls)
    entries = yaml.safe_load(done.stdout)
    manifest = {"train": entries[:4], "valid": entries[4]}
    (workspace.path / "pins.yaml").write_text(yaml.safe_dump(manifest))
    workspace.set_param("source", "pins.yaml")
    assert workspace.stage("fetch").returncode == 0
    found = {
        split: (workspace.path / f"build/corpus/{split}.txt").read_bytes()
        for split in manifest
    }
    documents = [b"line 0", b"line 1", b"line 2"]
    assert found["valid"].split(SEP)[:-1] == documents
    documents += [b"A text without separators.\n", b"row 0"]
    assert found["train"].split(SEP)[:5] == documents
    stories = [story for story in text.split(SEP) if story.strip()]
    assert found["train"].split(SEP)[5:-1] == stories


@pytest.mark.parametrize("name", ["stories", "stories.txt", "get?file=a.txt.gz"])
def test_a_compressed_download_whose_url_does_not_say_so_is_refused(
    workspace, text, name
):
    with serve(body=gzip.compress(text)) as server:
        pin = as_entry(server.pin(f"{server.base}/{name}"))
        (workspace.path / "pins.yaml").write_text(yaml.safe_dump({"train": pin}))
        workspace.set_param("source", "pins.yaml")
        done = workspace.stage("fetch")
    expect(done, 3, "is a gzip file, but", "a name (or URL) that ends in .gz")
    assert built(workspace) == []


def test_a_manifest_without_valid_is_divided(workspace):
    documents = [b"Story %d." % number for number in range(100)]
    with serve(body=b"".join(document + SEP for document in documents)) as server:
        manifest = {"train": as_entry(server.pin())}
        (workspace.path / "pins.yaml").write_text(json.dumps(manifest))
        workspace.set_param("source", "pins.yaml\n  valid_fraction: 0.5")
        assert workspace.stage("fetch").returncode == 0
    train, valid = (
        (workspace.path / f"build/corpus/{split}.txt").read_bytes().split(SEP)[:-1]
        for split in ("train", "valid")
    )
    assert sorted(train + valid) == sorted(documents)
    assert 30 < len(valid) < 70


def test_pinning_prints_entries_that_a_manifest_takes(workspace, server, text):
    (workspace.path / "more.txt").write_bytes(text)
    done = workspace.stage("fetch", "--pin", server.url, "more.txt")
    assert done.returncode == 0, done.stderr
    entries = yaml.safe_load(done.stdout)
    assert entries == [as_entry(server.pin()), as_entry(server.pin("more.txt"))]
    assert done.stderr.startswith("pinned 2 file(s)")
    assert built(workspace) == []
    manifest = {"train": entries[:1], "valid": entries[1:]}
    (workspace.path / "pins.yaml").write_text(json.dumps(manifest))
    workspace.set_param("source", "pins.yaml")
    assert workspace.stage("fetch").returncode == 0
    assert len(server.requests) == 1  # Pinning has filled the cache.


def test_pinning_fails_in_one_line(workspace, server):
    expect(workspace.stage("fetch", "--pin", "ftp://a/b"), 2, "scheme 'ftp'")
    expect(workspace.stage("fetch", "--pin", "gone.txt"), 3, "gone.txt: no such file")
    server.faults = ["404"]
    expect(workspace.stage("fetch", "--pin", server.url), 4, "404 Not Found")


def test_a_missing_pin_is_printed_after_the_download(workspace, server, text):
    manifest = {"train": as_entry(server.pin()), "valid": as_entry(server.pin())}
    del manifest["valid"]["sha256"]
    (workspace.path / "pins.yaml").write_text(json.dumps(manifest))
    workspace.set_param("source", "pins.yaml")
    words = ("pins.yaml: valid lacks sha256", f"size: {len(text)}", server.pin().sha256)
    expect(workspace.stage("fetch"), 2, *words)
    assert built(workspace) == []


def test_checking_verifies_the_cache_without_the_network(workspace, text):
    with serve(body=text) as server:
        pins = [as_entry(server.pin()), as_entry(server.pin(f"{server.base}/x.jsonl"))]
        (workspace.path / "pins.yaml").write_text(json.dumps({"train": pins}))
        expect(workspace.stage("fetch", "--check", "pins.yaml"), 4, "2 of 2", "missing")
        assert server.requests == []
        workspace.stage("fetch", "--pin", *[pin["url"] for pin in pins])
    done = workspace.stage("fetch", "--check", "pins.yaml")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == "verified 2 file(s) of pins.yaml in the cache\n"
    [path] = (workspace.path.parent / "home").rglob("*.jsonl")
    path.unlink()
    path.write_bytes(b"x" * len(text))
    done = workspace.stage("fetch", "--check", "pins.yaml")
    expect(done, 4, "1 of 2", "x.jsonl is damaged", str(path))


def test_each_retry_is_shown_while_it_happens(workspace, server):
    pins = {"train": as_entry(server.pin()), "valid": as_entry(server.pin())}
    (workspace.path / "pins.yaml").write_text(json.dumps(pins))
    workspace.set_param("source", "pins.yaml")
    server.faults = ["short", answer(503, Retry_After="3600")]
    done = workspace.stage("fetch")
    first, last = done.stderr.splitlines()
    assert first.startswith("fetch: 127.0.0.1:")
    assert re.search(r" closed the connection; try 2 of 6 in (0\.\d|1\.0) s$", first)
    assert "asks to wait 3,600 s" in last
    assert done.returncode == 4


def test_a_download_into_a_file_says_nothing(workspace, server):
    def pause(handler):
        handler.start_answer(0, len(server.body))
        handler.send_header("Content-Length", str(len(server.body)))
        handler.end_headers()
        handler.send_body(server.body[:20])
        server.closing.wait(1.5)  # A bar is shown after one second.
        handler.send_body(server.body[20:])

    server.faults = [pause]
    pins = {"train": as_entry(server.pin()), "valid": as_entry(server.pin())}
    (workspace.path / "pins.yaml").write_text(json.dumps(pins))
    workspace.set_param("source", "pins.yaml")
    done = workspace.stage("fetch")
    [line] = done.stderr.splitlines()
    assert line.startswith("wrote build/corpus/train.txt")


@pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")
def test_a_download_on_a_terminal_shows_its_rate_and_the_time_left(workspace):
    import fcntl
    import pty
    import termios

    main, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    with serve() as server:
        server.rate = 1 << 20  # Two seconds; a bar is shown after one.
        pins = {"train": as_entry(server.pin()), "valid": as_entry(server.pin())}
        (workspace.path / "pins.yaml").write_text(json.dumps(pins))
        workspace.set_param("source", "pins.yaml")
        process = subprocess.Popen(
            [sys.executable, "-m", "pipeline", "fetch"],
            cwd=workspace.path,
            env=workspace.env,
            stderr=terminal,
        )
        os.close(terminal)
        shown = b""
        with contextlib.suppress(OSError):  # At the end, on Linux.
            while block := os.read(main, 4096):
                shown += block
        process.wait()
    os.close(main)
    pattern = (
        rb"download train: .*\d\d%.* \d\.\d\dM/2\.10M \[00:0\d<00:0\d, \S+[kM]B/s\]"
    )
    assert re.search(pattern, shown), shown


def test_a_cache_folder_that_cannot_be_written_is_named(workspace, server, tmp_path):
    (tmp_path / "not a folder").write_text("")
    done = workspace.stage(
        "fetch", "--pin", server.url, XDG_CACHE_HOME=str(tmp_path / "not a folder")
    )
    expect(done, 5, "not a folder")
