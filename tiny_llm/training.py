"""Learn a tokenizer from the beginning of a text file, or from all of it.

A worker process learns, because native code aborts its process if memory runs out.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tiny_llm.corpus import SEPARATOR, sample_bytes
from tiny_llm.parallel import Job, run_in_worker
from tiny_llm.sample import file_sample
from tiny_llm.tokenize import BPETokenizer, check_vocab_size, explain_shortfall


@dataclass(frozen=True)
class Training:
    """A tokenizer and what it was learned from.

    Attributes:
        tokenizer: With `merge_counts`.
        num_bytes: Number of bytes in the sample.
        num_documents: Number of documents in the sample.
        num_separators: Number of separators in the sample.
        num_giant_bytes: Number of bytes left out, see `tiny_llm.sample`.
        left_out: One line about them, or "".
        shortfall: One line if the vocab is smaller than asked for, or "".
    """

    tokenizer: BPETokenizer
    num_bytes: int
    num_documents: int
    num_separators: int
    num_giant_bytes: int
    left_out: str
    shortfall: str

    def num_tokens_by_rank(self) -> npt.NDArray[np.int64]:
        """Return how many tokens the sample has after each merge, exactly.

        Before the first merge, each byte and each separator is a token; each time a
        merge is applied, two tokens become one. Bytes that were left out do not count.

        Returns:
            Shape (number of merges,), int64, decreasing.
        """
        counts = self.tokenizer.merge_counts
        without_merges = (
            self.num_bytes
            - self.num_giant_bytes
            - self.num_separators * (len(SEPARATOR) - 1)
        )
        joined = np.cumsum([] if counts is None else counts, dtype=np.int64)
        return without_merges - joined


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
        ResourceError: Memory ran out, or the disk is full.
    """
    check_vocab_size(vocab_size)
    with tempfile.TemporaryDirectory(prefix="tiny_llm-") as folder:
        arguments = {
            "path": os.fspath(path),
            "folder": folder,
            "vocab_size": int(vocab_size),
            "num_bytes": sample_bytes(sample_mb),
        }
        job = Job(f"the sample of {path}", arguments, remedy="lower sample_mb")
        found = run_in_worker(learn_from_file, job)
    merges = [
        (left.encode("latin-1"), right.encode("latin-1"))
        for left, right in found.pop("merges")
    ]
    tokenizer = BPETokenizer(merges)
    tokenizer.merge_counts = np.array(found.pop("merge_counts"), dtype=np.int64)
    shortfall = ""
    if tokenizer.vocab_size < vocab_size:
        more_text = os.path.getsize(path) > found["num_bytes"]
        shortfall = explain_shortfall(vocab_size, tokenizer.vocab_size, more_text)
    return Training(tokenizer, shortfall=shortfall, **found)


def learn_from_file(
    path: str, folder: str, vocab_size: int, num_bytes: int
) -> dict[str, Any]:
    """Learn from at most `num_bytes` of a file, with copies of text in a folder.

    Returns:
        JSON: the merges with bytes as Latin-1, their counts, and what a `Training` says
        about the sample.
    """
    tokenizer = BPETokenizer()
    with file_sample(path, num_bytes, folder) as sample:
        tokenizer.train_on_sample(sample, vocab_size)
    counts = tokenizer.merge_counts
    return {
        "merges": [
            (left.decode("latin-1"), right.decode("latin-1"))
            for left, right in tokenizer.merges
        ],
        "merge_counts": [] if counts is None else counts.tolist(),
        "num_bytes": sample.num_bytes,
        "num_documents": sample.num_documents,
        "num_separators": sample.num_separators,
        "num_giant_bytes": sample.num_giant_bytes,
        "left_out": sample.explain_left_out(),
    }
