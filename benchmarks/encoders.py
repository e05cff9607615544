"""Encoders for bench_encode.py: ours and those of other libraries.

    python benchmarks/encoders.py NAME TEXT TARGET

Encodes a text file with the tokenizer.json beside it. Each function imports what it
needs: the whole process is timed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np


def encode_ours(source: Path, target: Path) -> None:
    from tiny_llm.encoding import encode_file
    from tiny_llm.tokenize import BPETokenizer

    tokenizer = BPETokenizer.load(source.with_name("tokenizer.json"))
    encode_file(tokenizer, source, target)


def encode_gigatoken(source: Path, target: Path) -> None:
    import gigatoken

    tokenizer = gigatoken.Tokenizer(source.with_name("tokenizer.json"))
    documents = tokenizer.encode_files(gigatoken.TextFileSource([source]))
    # Without a separator, the file is a single document: one array of uint32.
    np.asarray(documents[0]).astype(np.uint16).tofile(target)


def encode_tiktoken(source: Path, target: Path) -> None:
    import harness
    import tiktoken

    from tiny_llm.corpus import SEPARATOR
    from tiny_llm.tokenize import FIRST_MERGE_ID, SEPARATOR_ID, BPETokenizer

    merges = BPETokenizer.load(source.with_name("tokenizer.json")).merges
    ranks = {bytes([byte]): byte for byte in range(256)}
    # Ranks need not be dense: skipping the separator's makes them equal to our ids.
    ranks |= {
        left + right: rank for rank, (left, right) in enumerate(merges, FIRST_MERGE_ID)
    }
    tokenizer = tiktoken.Encoding(
        "ours",
        pat_str=harness.GPT2_PATTERN,
        mergeable_ranks=ranks,
        special_tokens={SEPARATOR.decode(): SEPARATOR_ID},
    )
    documents = harness.read_documents(source)
    rows = tokenizer.encode_ordinary_batch(documents, num_threads=os.cpu_count() or 1)
    write_rows(rows, target)


def encode_hf(source: Path, target: Path) -> None:
    import harness
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(source.with_name("tokenizer.json")))
    documents = harness.read_documents(source)
    write_rows((row.ids for row in tokenizer.encode_batch_fast(documents)), target)


def write_rows(rows: Iterable[list[int]], path: Path) -> None:
    """Write the ids of documents, with a separator id between them."""
    from tiny_llm.tokenize import SEPARATOR_ID

    separator = np.array([SEPARATOR_ID], dtype=np.uint16)
    with open(path, "wb") as file:
        for number, row in enumerate(rows):
            if number:
                separator.tofile(file)
            np.array(row, dtype=np.uint16).tofile(file)


ENCODERS = {
    "ours": encode_ours,
    "gigatoken": encode_gigatoken,
    "tiktoken": encode_tiktoken,
    "hf": encode_hf,
}

if __name__ == "__main__":
    ENCODERS[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
