"""The same files for any range size, any number of workers, and after any kill."""

import collections
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import SEP
from tiny_llm.encoding import encode_file
from tiny_llm.tokenize import BPETokenizer

TOKENIZER = BPETokenizer([(b"t", b"h"), (b"th", b"e"), (b" ", b"the")])
TEXT = b"".join(b"%d. " % n + b"Story %d of the cat. " % n * 9 + SEP for n in range(40))
RANGE_BYTES = 500
NUM_RANGES = -(-len(TEXT) // RANGE_BYTES)
PIECES = [
    SEP,
    b"the",
    b" ",
    b"\n",
    b"\r\n",
    "\u00e9\U0001f600".encode(),
    b"<|end",
    b"7",
]


def read_files(target):
    """All three files of a token file."""
    return [target.with_suffix(s).read_bytes() for s in (".bin", ".documents", ".json")]


@settings(deadline=None, max_examples=30)
@given(st.lists(st.sampled_from(PIECES), max_size=60), st.integers(1, 400))
def test_ids_and_index_are_equal_for_any_range_size(pieces, range_bytes):
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr("tiny_llm.encoding._MAX_RANGES_IN_PROCESS", 1000)
        source, target = Path(folder, "in.txt"), Path(folder, "out.bin")
        source.write_bytes(b"x" + b"".join(pieces))
        encode_file(TOKENIZER, source, target)
        ids, index, _ = read_files(target)
        encode_file(TOKENIZER, source, target, range_bytes=range_bytes)
        found, found_index, _ = read_files(target)
    assert (found, found_index[32:]) == (ids, index[32:])


# Run in the worker processes: writes a line before a range is encoded.
LOGGING = """
import hashlib, os
from tiny_llm import encoding
from tiny_llm.engine import Engine
encode_to = Engine.encode_to
original = encoding.encode_range
def encode_and_log(self, sink, read, num_bytes):
    text = read(0, num_bytes)
    with open(os.environ["LOG"], "ab", buffering=0) as log:
        log.write(hashlib.sha256(text).hexdigest().encode() + b"\\n")
    encode_to(self, sink, read, num_bytes)
Engine.encode_to = encode_and_log
def encode_range(**job):
    return original(**job)
"""
RUN = """
import sys
import logging_ranges
from tiny_llm import encoding
from tiny_llm.tokenize import BPETokenizer
encoding.encode_range = logging_ranges.encode_range
tokenizer = BPETokenizer.load("bpe.json")
workers = int(sys.argv[1])
options = {"range_bytes": 500, "num_workers": workers}
encoding.encode_file(tokenizer, "in.txt", "out.bin", **options)
"""


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
@pytest.mark.parametrize("num_workers", [1, 2, 3, 7, 16])
def test_a_killed_run_repeats_at_most_one_range_per_worker(tmp_path, num_workers):
    """And the files are those of a run in one process that was not killed."""
    (tmp_path / "in.txt").write_bytes(TEXT)
    (tmp_path / "logging_ranges.py").write_text(LOGGING)
    TOKENIZER.save(tmp_path / "bpe.json")
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, str(num_workers)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path, "LOG": str(tmp_path / "log")},
        start_new_session=True,
    )
    while len(list(tmp_path.glob("out.parts/*/*.part"))) < NUM_RANGES // 2:
        assert process.poll() is None
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "out.bin").exists()
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(num_workers)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path, "LOG": str(tmp_path / "log")},
        check=False,
    )
    assert done.returncode == 0
    counts = collections.Counter((tmp_path / "log").read_bytes().splitlines())
    assert len(counts) >= NUM_RANGES // 2  # Some are empty.
    assert sum(counts.values()) - len(counts) <= num_workers
    found = read_files(tmp_path / "out.bin")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tiny_llm.encoding._MAX_RANGES_IN_PROCESS", 1000)
        encode_file(
            TOKENIZER, tmp_path / "in.txt", tmp_path / "x.bin", range_bytes=RANGE_BYTES
        )
    assert found == read_files(tmp_path / "x.bin")
