"""Whatever the windows and the invalid bytes, ids are those of the whole text."""

import random
import re
import subprocess
import sys

import numpy as np
import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.conftest import PRINT_PEAK_KIB, needs_proc
from tiny_llm import anytext
from tiny_llm.anytext import IdSink, encode_any, is_utf8, separate_invalid
from tiny_llm.engine import Engine
from tiny_llm.tokenize import BPETokenizer
from tiny_llm.tokenizer_json import format_merges, token_lengths

SEP = b"<|endoftext|>"
UTF8_ALPHABET = [
    *(0x41, 0x20, 0x80, 0x90, 0xA0, 0xBF, 0xC1, 0xC3, 0xE0, 0xE2, 0xED, 0xF0),
    *(0xF4, 0xF5, 0xFF),
]
PIECES = [
    *(b"a", b"b", b"ab", b"Z", b"'", b"'s", b"'re", b"'ll", b"1", b"23", b".", b"!?"),
    *(b" ", b"  ", b"\n", b"\r\n", b"\t", b"\0", b"|", b"<", b"<|endoftext", SEP),
    *(
        "\u00a0 \u3000 \u00e9 \u4f60\u597d \u0e2a\u0e31 \U0001f600 \u0301".encode()
    ).split(),
    *(b"\xff", b"\xff\xfe", b"\xe4\xb8", b"\x80", b"\xc3", b"\xf0\x9f\x98", b"\x85"),
]
MERGES = [
    *((b" ", b"a"), (b"a", b"a"), (b"a", b"b"), (b"aa", b"aa"), (b"b", b"aa")),
    *((b"'", b"s"), (b"\n", b"\n"), (b" ", b" "), (b"  ", b"  "), (b"!", b"?")),
    *((b"\xe4", b"\xbd"), (b"\xe4\xbd", b"\xa0"), (b"\xa0", b"\xe5"), (b"1", b"1")),
    *((b"aaaa", b"aaaa"), (b"\xff", b"\xff"), (b"!?", b"!?"), (b".", b".")),
]


def python_decodes(data):
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


@settings(max_examples=300, deadline=None)
@given(*[st.lists(st.sampled_from(UTF8_ALPHABET)).map(bytes)] * 2)
@example(b"\xc3", b"\x80")
def test_is_utf8_agrees_with_python(data, other):
    assert is_utf8(data) == python_decodes(data)
    # Also at any place in a word of 8 bytes, and with words of pure ASCII around.
    for before in range(16, 24):
        for between in (16, 21, 24 - (before + len(data)) % 8):
            text = b"x" * before + data + b"x" * between + other
            assert is_utf8(text) == python_decodes(text)
            assert is_utf8(text + b"x" * 19) == python_decodes(text)


@settings(max_examples=500, deadline=None)
@given(st.lists(st.sampled_from(UTF8_ALPHABET)).map(bytes))
def test_invalid_bytes_are_those_that_python_finds(data):
    text = data.decode("utf-8", "surrogateescape")
    assert (
        separate_invalid(data)
        == re.sub("[\udc80-\udcff]+", SEP.decode(), text).encode()
    )


def encode_in_pieces(engine, data):
    """The definition: valid pieces on their own, and single invalid bytes."""
    text = data.decode("utf-8", "surrogateescape")
    ids = []
    for piece in re.split("([\udc80-\udcff])", text):
        raw = piece.encode("utf-8", "surrogateescape")
        is_valid = not re.match("[\udc80-\udcff]", piece)
        ids += engine._encode_valid(raw).tolist() if is_valid and raw else list(raw)
    return ids


@settings(max_examples=500, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=40).map(b"".join))
def test_valid_text_between_invalid_bytes_is_encoded_on_its_own(data):
    engine = Engine(format_merges(MERGES))
    ids, num_invalid = engine.encode(data)
    assert ids.tolist() == encode_in_pieces(engine, data)
    assert num_invalid == len(
        re.findall("[\udc80-\udcff]", data.decode("utf-8", "surrogateescape"))
    )


RUNS = st.lists(
    st.tuples(
        st.lists(st.sampled_from(PIECES), min_size=1, max_size=4).map(b"".join),
        st.sampled_from([1, 2, 7, 50, 900]),
    ),
    min_size=1,
    max_size=12,
).map(lambda runs: b"".join(piece * count for piece, count in runs))


def in_tiny_windows(monkeypatch, overlap=140):
    """Windows of 16 * overlap bytes, the smallest there are."""
    for name in ("_WINDOW_BYTES", "_SMALL_WINDOW_BYTES"):
        monkeypatch.setattr(anytext, name, 1000)
    monkeypatch.setattr(anytext, "_OVERLAP_BYTES", overlap)


class Recorder:
    """Encodes whole texts, and in windows, whose sizes it keeps."""

    def __init__(self, merges):
        self.engine = Engine(format_merges(merges))
        self.lengths = token_lengths(format_merges(merges))
        self.sizes = []

    def encode_valid(self, data):
        self.sizes.append(len(data))
        return self.engine._encode_valid(data)

    def encode(self, data):
        sink = IdSink(len(data), np.uint32)
        encode_any(
            self.encode_valid,
            lambda begin, end: data[begin:end],
            len(data),
            lambda: self.lengths,
            sink,
        )
        return sink.ids.tolist(), sink.num_invalid


@pytest.mark.parametrize("num_merges", [0, 8, len(MERGES)])
def test_ids_in_windows_are_those_of_the_whole_text(monkeypatch, num_merges):
    recorder = Recorder(MERGES[:num_merges])
    in_tiny_windows(monkeypatch)
    num_windows = []

    @settings(max_examples=300, deadline=None)
    @given(RUNS)
    def check(data):
        recorder.sizes.clear()
        ids, num_invalid = recorder.encode(data)
        num_windows.append(len(recorder.sizes))
        assert ids == encode_in_pieces(recorder.engine, data)
        text = data.decode("utf-8", "surrogateescape")
        assert num_invalid == len(re.findall("[\udc80-\udcff]", text))

    check()
    assert max(num_windows) > 3


def test_ids_in_windows_are_those_of_the_whole_text_with_learned_merges(monkeypatch):
    in_tiny_windows(monkeypatch)
    letters = "".join(random.Random(1).choices("abc", [6, 2, 1], k=40_000))
    spaced = re.sub("(.{1,90})", r"\1 ", letters)
    sample = (
        spaced + "aaaa" * 400 + " " * 900 + "!?" * 300 + "\u4f60\u597d" * 300
    ).encode()
    tokenizer = BPETokenizer()
    tokenizer.train(sample, 600)
    recorder = Recorder(tokenizer.merges)
    for data in (sample, letters.encode(), sample[7:] + b"\n" * 5000 + b"x" + sample):
        assert recorder.encode(data)[0] == recorder.engine._encode_valid(data).tolist()


@pytest.mark.parametrize("num_chars", [501, 2000, 2001, 5003])
def test_windows_grow_when_the_end_of_a_window_decides_far_before_it(
    monkeypatch, num_chars
):
    """Pairs of a chain of characters are joined from its end, where ranks are low.

    Two windows that both end inside a long chain may agree on the wrong pairs.
    """
    in_tiny_windows(monkeypatch)
    chain = [chr(0x4E00 + place) for place in range(num_chars)]
    merges, known = [], set()
    for char in chain:
        raw = char.encode()
        for pair in ((raw[:1], raw[1:2]), (raw[:2], raw[2:])):
            if pair not in known:
                merges.append(pair)
                known.add(pair)
    pairs = zip(reversed(chain[:-1]), reversed(chain[1:]), strict=True)
    merges += [(left.encode(), right.encode()) for left, right in pairs]
    recorder = Recorder(merges)
    for first in range(4):
        data = "".join(chain[first:] + chain * 5).encode()
        assert recorder.encode(data)[0] == recorder.engine._encode_valid(data).tolist()
    assert max(recorder.sizes) > 2 * 15 * 140


@st.composite
def any_merges(draw):
    """Merges in any order that a user could give, most of which no text would teach."""
    tokens, merges = [b"a", b"b", b"c", b" "], []
    for _ in range(draw(st.integers(0, 25))):
        pair = draw(st.sampled_from(tokens)), draw(st.sampled_from(tokens))
        if b"".join(pair) not in tokens and len(b"".join(pair)) <= 30:
            merges.append(pair)
            tokens.append(b"".join(pair))
    return merges


def test_ids_in_windows_are_those_of_the_whole_text_with_any_merges(monkeypatch):
    in_tiny_windows(monkeypatch)

    @settings(max_examples=60, deadline=None)
    @given(any_merges(), st.text("abc", min_size=1, max_size=40), st.integers(0, 99))
    def check(merges, unit, seed):
        recorder = Recorder(merges)
        for data in (
            (unit * 6000)[:6001].encode(),
            "".join(random.Random(seed).choices(unit, k=6000)).encode(),
        ):
            whole = recorder.engine._encode_valid(data).tolist()
            assert recorder.encode(data)[0] == whole

    check()


def test_a_token_that_does_not_encode_to_itself_does_not_disturb_windows(monkeypatch):
    in_tiny_windows(monkeypatch)
    recorder = Recorder([(b"a", b"b"), (b"b", b"c"), (b"a", b"bc"), (b"c", b"abc")])
    letters = "".join(random.Random(2).choices("abc", k=20_000)).encode()
    ids = recorder.encode(letters)[0]
    assert ids == recorder.engine._encode_valid(letters).tolist()
    assert 259 not in ids


def test_a_token_longer_than_a_window_is_found(monkeypatch):
    in_tiny_windows(monkeypatch)
    merges = [(b"a" * (1 << power), b"a" * (1 << power)) for power in range(13)]
    recorder = Recorder(merges)
    data = b"b" + b"a" * 700_001
    assert recorder.encode(data)[0] == recorder.engine._encode_valid(data).tolist()


def test_ids_of_long_runs_match_hf_tokenizers(tmp_path):
    tokenizer = BPETokenizer(MERGES)
    tokenizer.save(tmp_path / "tokenizer.json")
    hf = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for run in (
        "a",
        "ab",
        "1",
        "!?",
        "'",
        "'s",
        " ",
        "\n",
        "\u4f60",
        "\u0e2a\u0e31",
        "\0",
    ):
        text = f"x {run * 150_000}'s {run * 70_000}x{SEP.decode()}'re"
        assert tokenizer.encode(text).tolist() == hf.encode(text).ids


@pytest.mark.parametrize("unit", [b"a", b"ab\xff", b"\x80", b" ", b"\xe4\xbd\xa0"])
def test_work_is_linear_in_a_text_that_cannot_be_cut(unit):
    recorder = Recorder([])
    data = unit * (4_000_000 // len(unit))
    recorder.encode(data)
    # Windows overlap by little, and no text becomes more than 7 times as long.
    assert max(recorder.sizes) <= 7 * (1 << 20)
    assert sum(recorder.sizes) < (1.1 * len(data))


# Encodes 12 MB made of one expression, in one call.
ENCODE_ODD_TEXT = """
import base64, sys, numpy as np
from tiny_llm.engine import Engine
from tiny_llm.tokenizer_json import format_merges
engine, rng = Engine(format_merges([])), np.random.default_rng(0)
data = (eval(sys.argv[1]))[:12_000_000]
ids, _ = engine.encode(data, np.uint16)
"""


@needs_proc
@pytest.mark.parametrize(
    "odd",
    [
        *("b'a' * 12_000_000", "b' ' * 12_000_000", "rng.bytes(12_000_000)"),
        *("base64.b64encode(rng.bytes(9_000_000))", "b'a\\xff' * 6_000_000"),
        "rng.integers(128, 256, 12_000_000, np.uint8).tobytes()",
    ],
)
def test_memory_stays_bounded_on_odd_text(odd):
    """It took 370 MB to 5.5 GB. Text and ids take 36 MB."""
    command = [sys.executable, "-c", ENCODE_ODD_TEXT + PRINT_PEAK_KIB, odd]
    done = subprocess.run(command, capture_output=True, check=True)
    assert int(done.stdout) < 260_000
