import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiny_llm import corpus
from tiny_llm.corpus import SEPARATOR, find_cut, has_text, read_chunks, read_sample
from tiny_llm.errors import InputError, ResourceError
from tiny_llm.tokenize import BPETokenizer

PIECES = st.sampled_from(
    [  # Letters, white space of one to three bytes, digits, signs, and invalid UTF-8.
        *(b"a", b"Z", b"'s", b"'", b"1", b".", b"<", b"\xff", b"\x1c", b"\0"),
        *(b" ", b"  ", b"\n", b"\r\n", b"\t", b"\xc2\xa0", b"\xe3\x80\x80"),
        *(b"\xc3\xa9", SEPARATOR),
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
    tokenizer = BPETokenizer([(b" ", b"a"), (b"a", b"a"), (b"'", b"s"), (b"\n", b"\n")])
    whole = tokenizer.encode(text).tolist()
    for end in range(len(text) + 1):
        cut = find_cut(text[:end])
        parts = tokenizer.encode(text[:cut]), tokenizer.encode(text[cut:])
        assert [*parts[0].tolist(), *parts[1].tolist()] == whole


def test_a_document_longer_than_a_chunk_is_cut_at_white_space(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(b"word " * 10_000)
    assert max(map(len, read_chunks(path, 100))) <= 200


def test_text_that_cannot_be_cut_is_refused_past_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "MAX_UNCUT_BYTES", 1000)
    path = tmp_path / "text.txt"
    path.write_bytes(b"x" * 5000)
    with pytest.raises(ResourceError, match="without white space or a separator"):
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
    for sample_bytes in range(1, len(first) + len(second)):
        expected = first
        assert read_sample(path, sample_bytes) == expected
    assert read_sample(path, len(first) + len(second)) == first + second
    assert read_sample(path, len(first) + len(second) + 1) == first + second
    assert read_sample(path, 1000) == first + second + b"three"


def test_sample_holds_the_first_document_however_long(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "CHUNK_BYTES", 5)
    path = tmp_path / "text.txt"
    path.write_bytes(b"x" * 100 + SEPARATOR + b"y")
    assert read_sample(path, 3) == b"x" * 100 + SEPARATOR
    path.write_bytes(b"x" * 100)
    assert read_sample(path, 3) == b"x" * 100


@pytest.mark.parametrize("text", [b"", b" \n", SEPARATOR, b"\n" + SEPARATOR * 3])
def test_a_sample_without_a_document_is_refused(tmp_path, text):
    path = tmp_path / "text.txt"
    path.write_bytes(text)
    assert not has_text(text)
    with pytest.raises(InputError, match="hold no document"):
        read_sample(path, 1000)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"gone\.txt: no such file"):
        list(read_chunks(tmp_path / "gone.txt"))
