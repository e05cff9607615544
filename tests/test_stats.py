import numpy as np
import pytest

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


@pytest.mark.parametrize("block_tokens", [1, 2, 3, 1000])
def test_lengths_run_from_separator_to_separator(tmp_path, monkeypatch, block_tokens):
    monkeypatch.setattr(tokens, "_BLOCK_TOKENS", block_tokens)
    ids = [1, 2, 256, 256, 7, 256, 9]
    assert measure(tmp_path, ids).document_lengths == {3: 1, 1: 1, 2: 1}
    assert measure(tmp_path, ids, 1).document_lengths == {3: 1, 1: 2, 2: 1}


def test_id_counts_and_share_of_the_vocab(tmp_path):
    found = measure(tmp_path, [1, 1, 2, 256])
    assert found.id_counts[[1, 2, 256]].tolist() == [2, 1, 1]
    assert found.vocab_used == 3 / 300
    assert found.counts_by_rank() == [2, 1, 1]


def test_percentiles_and_mean_match_numpy():
    lengths = np.random.default_rng(0).integers(1, 2000, size=1001)
    values, counts = np.unique(lengths, return_counts=True)
    found = TokenStats(
        np.ones(1), dict(zip(values.tolist(), counts.tolist(), strict=True))
    )
    assert found.mean_length == pytest.approx(lengths.mean())
    for percent in (1, 50, 95, 100):
        expected = np.percentile(lengths, percent, method="inverted_cdf")
        assert found.length_percentile(percent) == expected


def test_histogram_counts_every_document_in_the_bin_it_belongs_to():
    found = TokenStats(np.ones(1), {1: 5, 4: 2, 5: 1, 100: 3})
    histogram = found.length_histogram()
    begins = [begin for begin, _ in histogram]
    assert begins == sorted(set(begins))
    assert [row for row in histogram if row[1]] == [(1, 5), (4, 2), (5, 1), (91, 3)]
