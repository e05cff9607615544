"""Learn a tokenizer from the beginning of a text file, or from all of it."""

from __future__ import annotations

import os
from dataclasses import dataclass

from tiny_llm.corpus import sample_bytes
from tiny_llm.sample import file_sample
from tiny_llm.tokenize import BPETokenizer, check_vocab_size, explain_shortfall


@dataclass(frozen=True)
class Training:
    """A tokenizer and what it was learned from.

    Attributes:
        tokenizer: With `merge_counts`.
        num_bytes: Number of bytes in the sample.
        num_documents: Number of documents in the sample.
        num_giant_bytes: Number of bytes left out, see `tiny_llm.sample`.
        left_out: One line about them, or "".
        shortfall: One line if the vocab is smaller than asked for, or "".
    """

    tokenizer: BPETokenizer
    num_bytes: int
    num_documents: int
    num_giant_bytes: int
    left_out: str
    shortfall: str


def train_on_file(
    path: str | os.PathLike[str], vocab_size: int, sample_mb: float | str
) -> Training:
    """Learn merges from whole documents at the beginning of a file.

    Args:
        path: Text; "<|endoftext|>" ends each document.
        vocab_size: 256 bytes, the separator and the merges, 257 to 2**20.
        sample_mb: How many MiB to learn from, read into memory; or "all", to learn from
            the whole file in little memory.

    Raises:
        InputError: The file is missing, is not plain text, holds no document, or
            changed while it was read.
        ConfigError: An argument is out of range, or see `engine.library`.
    """
    check_vocab_size(vocab_size)
    tokenizer = BPETokenizer()
    with file_sample(path, sample_bytes(sample_mb)) as sample:
        tokenizer.train_on_sample(sample, vocab_size)
    shortfall = ""
    if tokenizer.vocab_size < vocab_size:
        more_text = os.path.getsize(path) > sample.num_bytes
        shortfall = explain_shortfall(vocab_size, tokenizer.vocab_size, more_text)
    return Training(
        tokenizer,
        num_bytes=sample.num_bytes,
        num_documents=sample.num_documents,
        num_giant_bytes=sample.num_giant_bytes,
        left_out=sample.explain_left_out(),
        shortfall=shortfall,
    )
