from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiny_llm import tokens
from tiny_llm.stats import TokenStats, measure_tokens
from tiny_llm.tokens import write_tokens


def measure(tmp_path, ids, extra_documents=0):
    with write_tokens(
        tmp_path / "x.bin", vocab_size=300, separator_id=256, tokenizer_sha256=""
    ) as writer:
        writer.append(np.array(ids, dtype=np.uint16))
        writer.num_documents += extra_documents
    return measure_tokens(tmp_path / "x.bin")


def count(lengths) -> TokenStats:
    return TokenStats(np.ones(1), dict(Counter(map(int, lengths))))


@pytest.mark.parametrize("block_tokens", [1, 2, 3, 1000])
def test_each_separator_ends_a_document(tmp_path, monkeypatch, block_tokens):
    monkeypatch.setattr(tokens, "_BLOCK_TOKENS", block_tokens)
    ids = [1, 2, 256, 256, 7, 256, 9]
    assert measure(tmp_path, ids).document_lengths == {3: 1, 1: 1, 2: 1}
    assert measure(tmp_path, ids, 1).document_lengths == {3: 1, 1: 2, 2: 1}


def test_id_counts_and_share_of_the_vocab(tmp_path):
    found = measure(tmp_path, [1, 1, 2, 256])
    assert found.id_counts[[1, 2, 256]].tolist() == [2, 1, 1]
    assert found.vocab_used == 3 / 300
    assert found.counts_by_rank() == [2, 1, 1]


def test_mean_matches_numpy():
    lengths = np.random.default_rng(0).integers(1, 2000, size=1001)
    assert count(lengths).mean_length == pytest.approx(lengths.mean())


@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=300),
    st.sampled_from([1, 50, 95, 100]) | st.integers(1, 100),
)
def test_a_percentile_is_the_shortest_length_that_suffices(lengths, percent):
    shortest = next(
        length
        for length in sorted(lengths)
        if sum(other <= length for other in lengths) * 100 >= percent * len(lengths)
    )
    assert count(lengths).length_percentile(percent) == shortest


def test_a_percent_above_100_is_refused():
    with pytest.raises(ValueError, match="in the range"):
        count([3]).length_percentile(101)


def test_histogram_counts_every_document_in_the_bin_it_belongs_to():
    found = TokenStats(np.ones(1), {1: 5, 4: 2, 5: 1, 100: 3})
    histogram = found.length_histogram()
    begins = [begin for begin, _ in histogram]
    assert begins == sorted(set(begins))
    assert [row for row in histogram if row[1]] == [(1, 5), (4, 2), (5, 1), (91, 3)]
