"""Windows that begin with documents, and the numbering of documents."""

import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import save_tokens
from tiny_llm.batching import Mixture, document_ids, get_batch, load_token_array
from tiny_llm.encoding import encode_file
from tiny_llm.errors import IntegrityError
from tiny_llm.tokenize import BPETokenizer

SEP = 256


def test_windows_begin_with_documents(tmp_path):
    # Documents begin at 0, 3, 4 and 7; a window of 3 + 1 ids fits at all but 7.
    ids = [1, 2, SEP, SEP, 4, 5, SEP, 6, 7, SEP]
    path = save_tokens(tmp_path / "x.bin", ids)
    data = load_token_array(path)
    x, _ = get_batch(data, 200, 3, seed=1, align="document")
    rows = {tuple(row) for row in x.tolist()}
    assert rows == {(1, 2, SEP), (SEP, 4, 5), (4, 5, SEP)}
    x, _ = get_batch(data, 3, 3, seed=1, replace=False, align="document")
    assert {tuple(row) for row in x.tolist()} == rows
    x, _ = get_batch(data, 200, 3, align="document")
    assert {tuple(row) for row in x.tolist()} == rows
    joined = load_token_array([path, path])
    assert joined.document_starts().tolist() == [0, 3, 4, 7, 10, 13, 14, 17]
    x, _ = get_batch(joined, 7, 3, seed=1, replace=False, align="document")
    assert sorted(x.tolist()) == sorted(
        [[1, 2, SEP], [SEP, 4, 5], [4, 5, SEP]] * 2 + [[6, 7, SEP]]
    )


@settings(deadline=None)
@given(st.lists(st.integers(SEP - 1, SEP), min_size=1, max_size=40))
def test_document_starts_follow_separators(ids):
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr("tiny_llm.tokens._BLOCK_TOKENS", 4)
        data = load_token_array(save_tokens(Path(folder) / "x.bin", ids))
        found = data.document_starts().tolist()
    assert found == [0] + [i + 1 for i, id_ in enumerate(ids[:-1]) if id_ == SEP]


def test_a_newline_after_the_last_separator_starts_no_document(tmp_path):
    text, path = tmp_path / "x.txt", tmp_path / "x.bin"
    text.write_text("One day.\n<|endoftext|>\nTwo days.\n<|endoftext|>\n")
    manifest = encode_file(BPETokenizer(), text, path)
    starts = load_token_array(path).document_starts()
    assert starts.tolist() == [0, 10]
    assert manifest.num_documents == 2


def test_an_index_cut_short_while_open_is_refused(tmp_path):
    data = load_token_array(save_tokens(tmp_path / "x.bin", [1, SEP] * 5000))
    get_batch(data, 1, 1, align="document")
    os.truncate(tmp_path / "x.documents", 40)
    with pytest.raises(ValueError, match=r"x\.documents had .* bytes when opened"):
        get_batch(data, 1, 1, align="document")


def test_the_index_is_written_with_the_ids(tmp_path):
    path = save_tokens(tmp_path / "x.bin", [1, SEP, 2, 3, SEP])
    raw = (tmp_path / "x.documents").read_bytes()
    assert raw[:32].hex() == load_token_array(path).manifest.sha256
    assert np.frombuffer(raw[32:], "<i8").tolist() == [0, 2]


@pytest.mark.parametrize("spoil", ["other tokens", "cut short", "empty", "beyond"])
def test_an_index_that_is_visibly_wrong_is_refused(tmp_path, spoil):
    path = save_tokens(tmp_path / "x.bin", [1, SEP, 2, 3, SEP])
    index = tmp_path / "x.documents"
    whole = index.read_bytes()
    wrong = {
        "other tokens": b"?" + whole[1:],
        "cut short": whole[:20],
        "empty": b"",
        "beyond": whole[:-8] + (5).to_bytes(8, "little"),
    }
    index.write_bytes(wrong[spoil])
    with pytest.raises(IntegrityError, match=r"x\.documents is not the index of"):
        load_token_array(path).document_starts()


@pytest.mark.parametrize("data", ["file", "random", "joined", "mixture"])
@pytest.mark.parametrize(
    "starts",
    [
        *([0, -3, 4, 7], [0, 3, 1 << 60, 7], [0, 3, -(1 << 63), 7], [0, 3, 3, 7]),
        *([0, 4, 3, 7], [0, 3, 5, 7], [0, 0, 4, 7], [0, 3, 9, 7], [0, 3, 7, 7]),
    ],
)
def test_a_wrong_entry_of_the_index_is_refused_when_it_is_drawn(tmp_path, data, starts):
    path = save_tokens(tmp_path / "x.bin", [1, 2, SEP, SEP, 4, 5, SEP, 6, 7, SEP])
    whole = save_tokens(tmp_path / "y.bin", [1, SEP, 2, SEP] * 9)
    index = tmp_path / "x.documents"
    digest = index.read_bytes()[:32]
    index.write_bytes(digest + np.array(starts, "<i8").tobytes())
    opened = {
        "file": lambda: load_token_array(path),
        "random": lambda: load_token_array(path, access="random"),
        "joined": lambda: load_token_array([whole, path]),
        "mixture": lambda: Mixture([(load_token_array([whole, path]), 1), (whole, 1)]),
    }[data]()
    with pytest.raises(IntegrityError, match=r"the index of .* does not say") as caught:
        get_batch(opened, 900, 2, seed=1, align="document")
    assert "\n" not in str(caught.value)


def test_documents_that_lack_a_separator_can_be_joined(tmp_path):
    path = save_tokens(tmp_path / "x.bin", [1, SEP, 2])
    joined = load_token_array([path, path])
    x, _ = get_batch(joined, 3, 1, seed=1, replace=False, align="document")
    assert sorted(x.tolist()) == [[1], [1], [2]]


def test_without_an_index_the_ids_are_read(tmp_path):
    path = save_tokens(tmp_path / "x.bin", [1, SEP, 2, 3, SEP])
    (tmp_path / "x.documents").unlink()
    assert load_token_array(path).document_starts().tolist() == [0, 2]


def test_alignment_without_a_manifest_is_refused():
    for data in (np.zeros(9, np.uint16), torch.zeros(9, dtype=torch.uint16)):
        with pytest.raises(ValueError, match="data has no manifest"):
            get_batch(data, 1, 2, align="document")


def test_an_unknown_alignment_is_refused(tmp_path):
    path = save_tokens(tmp_path / "x.bin", [1, SEP, 2, 3, SEP])
    with pytest.raises(ValueError, match="align is 'story'; give 'document' or None"):
        get_batch(path, 1, 2, align="story")


def test_document_ids_keep_attention_inside_documents(tmp_path):
    x = torch.tensor([[5, SEP, 7, 8, SEP], [SEP, SEP, 1, 2, 3]])
    numbers = document_ids(x, SEP)
    assert numbers.tolist() == [[0, 0, 1, 1, 1], [0, 1, 2, 2, 2]]
    mask = numbers[:, :, None] == numbers[:, None, :]
    assert mask[0, 2].tolist() == [False, False, True, True, True]
