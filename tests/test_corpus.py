import bz2
import gzip
import io
import lzma
import os
import tracemalloc
import unicodedata
import zipfile

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from tiny_llm import corpus
from tiny_llm.corpus import (
    CUT_CONTEXT,
    SEPARATOR,
    cut_chunks,
    find_cut,
    find_first_cut,
    find_next_cut,
    has_text,
    open_text,
    read_chunks,
    read_sample,
    require_text,
)
from tiny_llm.errors import InputError, ResourceError
from tiny_llm.tokenize import BPETokenizer

PIECES = st.sampled_from(
    [  # Letters, white space of one to three bytes, digits, signs, and invalid UTF-8.
        *(
            b"a",
            b"Z",
            b"'s",
            b"'",
            b"1",
            b".",
            b"<",
            b"\xff",
            b"\x1c",
            b"\0",
            b"r",
            b"e",
        ),
        *(b" ", b"  ", b"\n", b"\r\n", b"\t", b"\xc2\xa0", b"\xe3\x80\x80"),
        *(b"\xc3\xa9", SEPARATOR, b"<|endoftext", b"|", b"endoftext", b"|>", b"\x85"),
        *"\u4f60 \u3002 \u30a2 \u0e2a \u0e31 \u0e51".encode().split(),
        *"\uff01 \U0001f600 \u0301 \u2028".encode().split(b" "),
        *(b"\xe4\xb8", b"\x80", b"\xc3", b"\xf0\x9f\x98", b"\xed\xa0\x80", b"\xc2\x85"),
    ]
)
TOKENIZER = BPETokenizer(
    [
        *((b" ", b"a"), (b"a", b"a"), (b"'", b"s"), (b"\n", b"\n"), (b"1", b"1")),
        *((b"'", b"r"), (b"r", b"e"), (b"'", b"re"), (b"t", b"|"), (b"|", b"e")),
        *((b".", b"a"), (b"a", b"."), (b"a", b"1"), (b" ", b" "), (b"a", b" ")),
        *((b"\x80", b"\x82"), (b"\xbd", b"\xa0"), (b"\xa0", b"\xe3"), (b">", b"a")),
    ]
)


@pytest.mark.parametrize("chunk_bytes", [1, 2, 7, 13, 64, 1 << 20])
def test_chunks_joined_are_the_file(tmp_path, text, chunk_bytes):
    path = tmp_path / "text.txt"
    path.write_bytes(text)
    assert b"".join(read_chunks(path, chunk_bytes)) == text


def test_ids_are_equal_for_every_chunk_size(tmp_path, text):
    tokenizer = BPETokenizer()
    tokenizer.train(text, 300)
    expected = tokenizer.encode(text).tolist()
    path = tmp_path / "text.txt"
    path.write_bytes(text)
    for chunk_bytes in range(1, len(text) + 2):
        ids = [
            token_id
            for chunk in read_chunks(path, chunk_bytes)
            for token_id in tokenizer.encode(chunk).tolist()
        ]
        assert ids == expected, chunk_bytes


def test_a_separator_across_a_chunk_border_is_found_at_every_offset(tmp_path):
    tokenizer = BPETokenizer()
    path = tmp_path / "text.txt"
    for offset in range(2 * len(SEPARATOR)):
        text = b"x" * offset + SEPARATOR + "\U0001f600y".encode()
        path.write_bytes(text)
        chunks = list(read_chunks(path, len(SEPARATOR)))
        ids = [i for chunk in chunks for i in tokenizer.encode(chunk).tolist()]
        assert ids == tokenizer.encode(text).tolist()
        assert ids.count(256) == 1


@settings(max_examples=300, deadline=None)
@given(st.lists(PIECES, max_size=30).map(b"".join))
def test_ids_are_equal_on_both_sides_of_every_cut(text):
    whole = TOKENIZER.encode(text).tolist()
    for end in range(len(text) + 1):
        cut = find_cut(text[:end])
        parts = TOKENIZER.encode(text[:cut]), TOKENIZER.encode(text[cut:])
        assert [*parts[0].tolist(), *parts[1].tolist()] == whole


@settings(max_examples=300, deadline=None)
@given(st.lists(PIECES, max_size=30).map(b"".join))
def test_ids_are_equal_on_both_sides_of_every_first_cut(text):
    whole = TOKENIZER.encode(text).tolist()
    for start in range(len(text) + 1):
        cut = find_first_cut(text, start)
        if cut is not None:
            assert start <= cut <= max(0, len(text) - 4)
            parts = TOKENIZER.encode(text[:cut]), TOKENIZER.encode(text[cut:])
            assert [*parts[0].tolist(), *parts[1].tolist()] == whole


@settings(max_examples=300, deadline=None)
@given(st.lists(PIECES, max_size=25).map(b"".join))
def test_the_first_cut_depends_only_on_the_text_near_it(text):
    for start in range(1, len(text) + 1):
        expected = find_first_cut(text, start)
        for first in {*range(start - CUT_CONTEXT + 1), 0}:
            found = find_first_cut(text[first:], start - first)
            assert (found if found is None else found + first) == expected
        first = max(0, start - CUT_CONTEXT)
        for end in range(start, len(text)):
            found = find_first_cut(text[first:end], start - first)
            is_seen = expected is not None and expected + 4 <= end
            assert found == (expected - first if is_seen else None)


@pytest.mark.parametrize("range_bytes", [1, 17, 100, 1000])
def test_ranges_between_first_cuts_are_the_text(corpus_text, range_bytes):
    text = corpus_text[:3000] + b"x" * 500 + "\u4f60\u597d\u3002".encode() * 50
    cuts = [find_first_cut(text, start) for start in range(0, len(text), range_bytes)]
    places = [len(text) if cut is None else cut for cut in cuts]
    assert places == sorted(places)
    ranges = zip(places, [*places[1:], len(text)], strict=True)
    ids = [i for a, b in ranges for i in TOKENIZER.encode(text[a:b]).tolist()]
    assert ids == TOKENIZER.encode(text).tolist()


@settings(max_examples=200, deadline=None)
@given(st.lists(PIECES, max_size=25).map(b"".join), st.integers(0, 9000))
def test_the_next_cut_of_a_file_is_the_first_cut_of_its_text(tmp_path_factory, text, n):
    text = text + b"x" * n + text
    path = tmp_path_factory.mktemp("cuts") / "text.txt"
    path.write_bytes(text)
    for offset in {0, 1, 17, len(text) // 2, len(text) - 3, len(text), len(text) + 9}:
        with path.open("rb") as file:
            expected = find_first_cut(text, max(0, offset))
            expected = len(text) if expected is None else expected
            assert find_next_cut(file, max(0, offset)) == expected


def test_a_stretch_without_a_cut_is_searched_once_for_all_ranges(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(b"some words " + b"x" * 5_000_000 + b" and more words")
    num_read = 0

    class Counted(io.FileIO):
        def read(self, size=-1):
            nonlocal num_read
            data = super().read(size)
            num_read += len(data)
            return data

    with Counted(path) as file:
        cuts = {find_next_cut(file, offset) for offset in range(100, 5_000_000, 10_000)}
    assert cuts == {5_000_011}
    assert num_read < 5_100_000


@pytest.mark.parametrize(
    "unit",
    [
        *("\u4f60\u597d\u3002", "\u3042\u3000", "\u0e2a\u0e31", "\U0001f600a", "ab12"),
        *("a+b", "\ucc28\uff01", "\u4f60\n", "'s1"),
    ],
)
def test_text_without_ascii_words_is_cut(unit):
    text = unit.encode() * 10_000
    assert len(text) - find_cut(text) < 20
    assert max(map(len, cut_chunks(io.BytesIO(text), 100))) < 200
    assert find_first_cut(text, 5000) < 5020


@pytest.mark.parametrize("unit", [b"\xff", b"\x80", b"\xe9a", b"\xe4\xb8", b"\xf0\x9f"])
def test_invalid_utf8_is_cut(unit):
    text = unit * 10_000
    assert len(text) - find_cut(text) < 10
    assert find_first_cut(text, 5000) < 5005


@pytest.mark.parametrize("unit", ["a", " ", "\n", "1", "!?", "\u4f60", "\U0001f600"])
def test_one_pretoken_is_never_cut(unit):
    text = unit.encode() * 3000
    assert find_cut(text) == 0
    assert find_first_cut(text, 1) is None


@settings(max_examples=200, deadline=None)
@given(st.lists(PIECES, max_size=12).map(b"".join))
def test_a_cut_is_found_when_the_search_starts_where_the_last_one_ended(text):
    for start in range(len(text)):
        if find_cut(text[:start]) == 0:
            for end in range(start, len(text) + 1):
                assert find_cut(text[:end], start) == find_cut(text[:end])


def test_classes_of_characters_are_those_of_hf_tokenizers_and_python():
    split = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    names = {corpus._LETTER: "L", corpus._NUMBER: "N", corpus._OTHER: "CMPS"}
    for kind, first in (
        (corpus._LETTER, "x"),
        (corpus._NUMBER, "1"),
        (corpus._OTHER, "!"),
    ):
        chars = [chr(code) for code in np.flatnonzero(kind == corpus._CLASSES)]
        assert {unicodedata.category(char)[0] for char in chars} <= {*names[kind]}
        # Each is in one pretoken with a character of its class.
        words = split.pre_tokenize_str("".join(f" {first}{char}" for char in chars))
        assert len(words) == len(chars)
    for code in np.flatnonzero(corpus._CLASSES == corpus._SPACE):
        words = split.pre_tokenize_str(f"x{chr(code)}")
        assert len(words) == 2
        assert chr(code).isspace()


def test_a_document_longer_than_a_chunk_is_cut_at_white_space(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(b"word " * 10_000)
    assert max(map(len, read_chunks(path, 100))) <= 200


def test_text_that_cannot_be_cut_is_refused_past_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "MAX_UNCUT_BYTES", 1000)
    path = tmp_path / "text.txt"
    path.write_bytes(b"x" * 5000)
    with pytest.raises(ResourceError, match="without a word end or a separator"):
        list(read_chunks(path, 100))


def test_a_file_that_grows_while_it_is_read_is_refused(tmp_path, text):
    path = tmp_path / "text.txt"
    path.write_bytes(text)
    chunks = read_chunks(path, 50)
    next(chunks)
    with path.open("ab") as file:
        file.write(b"more")
    with pytest.raises(InputError, match="changed while it was read"):
        list(chunks)


def test_sample_ends_with_the_last_whole_document(tmp_path):
    first, second = b"one" + SEPARATOR, b"two" + SEPARATOR
    path = tmp_path / "text.txt"
    path.write_bytes(first + second + b"three")
    for sample_bytes in range(len(first), len(first) + len(second)):
        assert read_sample(path, sample_bytes) == first
    assert read_sample(path, len(first) + len(second)) == first + second
    assert read_sample(path, len(first) + len(second) + 1) == first + second
    assert read_sample(path, 1000) == first + second + b"three"


def test_sample_without_a_separator_ends_before_white_space(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(b"once upon a time" + SEPARATOR + b"y")
    assert read_sample(path, 10) == b"once upon"
    assert read_sample(path, 15) == b"once upon a"
    # This one ends inside the separator; part of a separator is not text.
    assert read_sample(path, 28) == b"once upon a"


def test_sample_is_never_longer_than_asked(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(b"x" * 100)  # There is nowhere to cut.
    assert [len(read_sample(path, n)) for n in (1, 3, 99, 100)] == [1, 3, 99, 100]


def test_a_sample_larger_than_the_file_takes_no_more_memory_than_the_file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(b"word " * 1000)
    tracemalloc.start()
    assert read_sample(path, 100 << 30) == path.read_bytes()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize("text", [b"", b" \n", SEPARATOR, b"\n" + SEPARATOR * 3])
def test_a_text_without_a_document_is_refused(tmp_path, text):
    path = tmp_path / "text.txt"
    path.write_bytes(text)
    assert not has_text(text)
    message = rf"text\.txt holds no document, only {len(text)} bytes"
    with pytest.raises(InputError, match=message):
        read_sample(path, 1000)
    with pytest.raises(InputError, match=message):
        require_text(path)


def test_a_text_with_a_document_is_required_and_found(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(SEPARATOR + b"\n" * corpus.CHUNK_BYTES + b"x")
    require_text(path)


def zipped(text):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("train.txt", text)
    return file.getvalue()


STORY = "Once there was a little cat.\n<|endoftext|>\n"
OTHER_KINDS = {
    "a gzip file": gzip.compress(STORY.encode()),
    "a zstd file": b"\x28\xb5\x2f\xfd\x04\x58" + STORY.encode(),
    "an xz file": lzma.compress(STORY.encode()),
    "a bzip2 file": bz2.compress(STORY.encode()),
    "a zip file": zipped(STORY),
    "a Parquet file": b"PAR1\x15\x04\x15" + STORY.encode() + b"PAR1",
    "a PDF file": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n" + STORY.encode(),
    "UTF-16 text;": STORY.encode("utf-16"),
    "UTF-16 text; convert": b"\xfe\xff" + STORY.encode("utf-16-be"),
    "UTF-32 text;": STORY.encode("utf-32"),
    "UTF-32 text; convert": b"\0\0\xfe\xff" + STORY.encode("utf-32-be"),
    "UTF-16LE text without": STORY.encode("utf-16-le"),
    "UTF-16BE text without": STORY.encode("utf-16-be"),
    "UTF-32LE text without": STORY.encode("utf-32-le"),
    "UTF-32BE text without": STORY.encode("utf-32-be"),
}


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_a_file_that_is_not_plain_text_is_refused_by_every_reader(tmp_path, kind):
    path = tmp_path / "train.txt"
    path.write_bytes(OTHER_KINDS[kind])
    for read in (
        lambda: list(read_chunks(path)),
        lambda: read_sample(path, 10),
        lambda: require_text(path),
    ):
        with pytest.raises(InputError, match=rf"train\.txt is {kind}.* first"):
            read()


@pytest.mark.parametrize(
    "text",
    [
        *(b"PAR1", b"PAR1S is in France", b"BZh9 is a name", b"PK", b"PK\n", b"\x1f"),
        *(b"%PDF", b"\xef\xbb\xbfwith a byte order mark", b"a\0b\0", b"\0" * 4000),
        *(bytes(range(256)), b"NUL \0 in words\0 of text\0", "\u4f60".encode() * 2000),
    ],
)
def test_text_that_looks_a_little_like_another_kind_is_read(tmp_path, text):
    path = tmp_path / "train.txt"
    path.write_bytes(text)
    assert b"".join(read_chunks(path)) == text


def test_an_opened_text_is_at_its_beginning_for_the_kernel_too(tmp_path):
    """The fetch stage copies from the descriptor, not through Python's buffer."""
    path = tmp_path / "train.txt"
    path.write_bytes(b"x" * 10_000)
    with open_text(path) as file:
        assert (file.tell(), os.lseek(file.fileno(), 0, os.SEEK_CUR)) == (0, 0)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"gone\.txt: no such file"):
        list(read_chunks(tmp_path / "gone.txt"))
