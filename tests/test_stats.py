from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiny_llm.stats import TokenCounter, TokenStats


def measure(ids, rest_is_document=False, range_tokens=1000) -> TokenStats:
    counter = TokenCounter(300)
    for begin in range(0, len(ids), range_tokens):
        part = np.array(ids[begin : begin + range_tokens])
        counts = np.bincount(part, minlength=300)
        counter.add(len(part), np.flatnonzero(part == 256) + 1, counts)
    return counter.finish(rest_is_document=rest_is_document)


def count(lengths) -> TokenStats:
    return TokenStats(np.ones(1), dict(Counter(map(int, lengths))))


@pytest.mark.parametrize("range_tokens", [1, 2, 3, 1000])
def test_each_separator_ends_a_document(range_tokens):
    ids = [1, 2, 256, 256, 7, 256, 9]
    found = measure(ids, range_tokens=range_tokens)
    assert found.document_lengths == {3: 1, 1: 1, 2: 1}
    found = measure(ids, rest_is_document=True, range_tokens=range_tokens)
    assert found.document_lengths == {3: 1, 1: 2, 2: 1}


def test_id_counts_and_share_of_the_vocab():
    found = measure([1, 1, 2, 256])
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
