"""Files of odd text: the same ids for any ranges, in bounded memory."""

import re
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import PRINT_PEAK_KIB, SEP, needs_proc
from tiny_llm import anytext, encode_range
from tiny_llm.encoding import encode_file
from tiny_llm.tokenize import BPETokenizer
from tiny_llm.tokens import open_tokens
from tiny_llm.verify import verify


@pytest.fixture
def tokenizer(text):
    tokenizer = BPETokenizer()
    tokenizer.train(text, 300)
    return tokenizer


def encode(tokenizer, tmp_path, content, **options):
    (tmp_path / "in.txt").write_bytes(content)
    return encode_file(tokenizer, tmp_path / "in.txt", tmp_path / "out.bin", **options)


ODD_PIECES = [
    *(b"a", b"ab", b" ", b"\n", b"'", b"1", b"!?", b"\xff", b"\x80", b"\xe4\xb8", SEP),
    *("\u4f60\u597d".encode(), "\u3000".encode(), b"the cat ", b"<|endoftext"),
]


@pytest.mark.filterwarnings("ignore:.*invalid UTF-8:UserWarning")
def test_ids_of_odd_text_are_those_of_one_call_for_any_range_size(
    tokenizer, tmp_path, monkeypatch
):
    """Also if runs without a place to cut are longer than ranges and windows."""
    runs = st.tuples(st.sampled_from(ODD_PIECES), st.sampled_from([1, 3, 40, 1500]))

    @settings(max_examples=40, deadline=None)
    @given(st.lists(runs, min_size=1, max_size=8), st.sampled_from([197, 1000, 30_000]))
    def check(runs, range_bytes):
        content = b"x" + b"".join(piece * count for piece, count in runs)
        # The engine itself, fed with what is valid, and single invalid bytes.
        text = content.decode("utf-8", "surrogateescape")
        expected = []
        for piece in re.split("([\udc80-\udcff])", text):
            raw = piece.encode("utf-8", "surrogateescape")
            is_valid = not re.match("[\udc80-\udcff]", piece)
            ids = tokenizer._engine._encode_valid(raw).tolist() if is_valid else raw
            expected += ids
        with monkeypatch.context() as patch:
            for name in ("_WINDOW_BYTES", "_SMALL_WINDOW_BYTES"):
                patch.setattr(anytext, name, 1000)
            patch.setattr(anytext, "_OVERLAP_BYTES", 100)
            encode(tokenizer, tmp_path, content, range_bytes=range_bytes, num_workers=1)
        assert open_tokens(tmp_path / "out.bin")[0].tolist() == expected
        verify(tmp_path / "out.bin")

    check()


def test_pieces_before_windows_that_do_not_fit_are_forgotten(tmp_path, monkeypatch):
    """The merges of a chain of characters apply from its end, so windows must grow."""
    chain = [chr(0x4E00 + place) for place in range(2001)]
    merges = []
    for char in chain:
        raw = char.encode()
        merges += [(raw[:1], raw[1:2]), (raw[:2], raw[2:])]
    merges = [*dict.fromkeys(merges)]
    pairs = zip(reversed(chain[:-1]), reversed(chain[1:]), strict=True)
    merges += [(left.encode(), right.encode()) for left, right in pairs]
    tokenizer = BPETokenizer(merges)
    content = "".join(chain[1:] + chain * 5).encode()
    expected = tokenizer._engine._encode_valid(content).tolist()
    starts = []
    clear = encode_range._PartSink.clear
    monkeypatch.setattr(
        encode_range._PartSink, "clear", lambda sink: (starts.append(sink), clear(sink))
    )
    for name in ("_WINDOW_BYTES", "_SMALL_WINDOW_BYTES"):
        monkeypatch.setattr(anytext, name, 1000)
    monkeypatch.setattr(anytext, "_OVERLAP_BYTES", 140)
    encode(tokenizer, tmp_path, content, num_workers=1)
    assert len(starts) > 1
    assert open_tokens(tmp_path / "out.bin")[0].tolist() == expected
    assert verify(tmp_path / "out.bin").num_bytes == len(content)


# Of a text that can be cut nowhere, one range is all there is.
ENCODE_ONE_RANGE = """
import sys
from pathlib import Path
from tiny_llm.encode_range import encode_range
from tiny_llm.tokenize import BPETokenizer
folder = Path(sys.argv[1])
BPETokenizer([(b"a", b"a")]).save(folder / "bpe.json")
source, options = folder / "in.txt", {"count": True, "sync": False}
options["vocab_size"] = 258
options["size"] = source.stat().st_size
part = encode_range(str(source), str(folder), 0, 1 << 20, **options)
assert part["num_tokens"] == 30_000_000
"""


@needs_proc
def test_memory_is_bounded_in_a_range_that_cannot_be_cut(tmp_path):
    """It took 2.6 GB for 100 MB. Text and ids are never all in memory."""
    (tmp_path / "in.txt").write_bytes(b"a" * 60_000_000)
    command = [sys.executable, "-c", ENCODE_ONE_RANGE + PRINT_PEAK_KIB, tmp_path]
    done = subprocess.run(command, capture_output=True, check=True)
    assert int(done.stdout) < 150_000
