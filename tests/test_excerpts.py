"""Excerpts: the documents they read are those of the file, and drawn fairly."""

from collections import Counter

import numpy as np
import pytest

from tests.conftest import save_tokens
from tiny_llm.errors import ConfigError
from tiny_llm.excerpts import read_excerpts, show_borders, split_text
from tiny_llm.tokenize import BPETokenizer

# Documents of 2, 1, 4 and 1 ids; the last lacks its separator.
IDS = [1, 256, 256, 2, 3, 4, 256, 5]


@pytest.fixture
def path(tmp_path):
    return save_tokens(tmp_path / "a.bin", IDS)


def test_excerpts_of_all_documents_are_the_file(path):
    parts = read_excerpts(path, num_documents=99)
    assert np.concatenate([part.ids for part in parts]).tolist() == IDS
    assert [part.document for part in parts] == [0, 1, 2, 3]
    assert [part.begin for part in parts] == [0, 2, 3, 7]
    assert not any(part.num_left_out for part in parts)


@pytest.mark.parametrize("at", range(len(IDS)))
def test_a_position_is_read_to_the_end_of_its_document(path, at):
    [part] = read_excerpts(path, at=at, num_documents=1)
    assert part.begin == at
    assert part.ids.tolist() == IDS[at : at + len(part.ids)]
    assert part.document_begin <= at
    assert part.document == IDS[:at].count(256)
    assert 256 not in part.ids[:-1]
    parts = read_excerpts(path, at=at, num_documents=99)
    assert np.concatenate([part.ids for part in parts]).tolist() == IDS[at:]


def test_a_long_document_is_cut_and_says_what_was_left_out(path):
    [part] = read_excerpts(path, at=4, num_documents=1, max_tokens=2)
    assert (part.ids.tolist(), part.num_left_out) == ([3, 4], 1)


def test_random_documents_differ_and_are_equally_likely(path):
    drawn = Counter()
    for seed in range(400):
        parts = read_excerpts(path, seed=seed, num_documents=2)
        assert parts[0].document != parts[1].document
        drawn.update(part.document for part in parts)
    assert set(drawn) == {0, 1, 2, 3}
    assert all(150 < count < 250 for count in drawn.values())
    everything = read_excerpts(path, seed=1, num_documents=99)
    assert sorted(part.document for part in everything) == [0, 1, 2, 3]


def test_the_documents_of_a_seed_never_change(path):
    drawn = [part.document for part in read_excerpts(path, seed=7, num_documents=4)]
    assert drawn == [1, 0, 2, 3]


def test_a_position_and_a_seed_exclude_each_other(path):
    with pytest.raises(ConfigError, match="at=1 and seed=2 exclude each other"):
        read_excerpts(path, at=1, seed=2)


def test_a_character_cut_by_a_border_shows_its_bytes():
    ids = BPETokenizer().encode("é!")
    pieces = split_text(BPETokenizer(), ids)
    assert b"".join(pieces) == "é!".encode()
    assert show_borders(pieces) == r"\xc3│\xa9│!"
