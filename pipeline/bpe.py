"""Stage bpe: learn a tokenizer from the first documents of the train split, or all.

Writes build/tokenizer.json and build/tokenizer_config.json, metrics, and for each merge
how often it joined a pair and how many bytes the sample then has per token.
"""

from __future__ import annotations

import sys

import numpy as np

from pipeline.stage import read_param, write_rank_plot
from tiny_llm.atomic import write_json
from tiny_llm.layout import CORPUS_DIR, REPORTS_DIR, TOKENIZER_PATH
from tiny_llm.training import train_on_file


def run() -> str:
    """Train on the sample that params.yaml asks for."""
    vocab_size = read_param("bpe", "vocab_size")
    sample_mb = read_param("bpe", "sample_mb")
    training = train_on_file(CORPUS_DIR / "train.txt", vocab_size, sample_mb)
    if training.left_out:
        sys.stderr.write(f"python -m pipeline bpe: warning: {training.left_out}\n")
    tokenizer = training.tokenizer
    tokenizer.save(TOKENIZER_PATH)

    counts = [] if tokenizer.merge_counts is None else tokenizer.merge_counts.tolist()
    write_json(
        REPORTS_DIR / "bpe.json",
        {
            "vocab_size_asked": vocab_size,
            "vocab_size": tokenizer.vocab_size,
            "num_merges": len(counts),
            "sample_bytes": training.num_bytes,
            "sample_documents": training.num_documents,
            "sample_bytes_left_out": training.num_giant_bytes,
            "last_merge_count": counts[-1] if counts else 0,
        },
    )
    learned_bytes = training.num_bytes - training.num_giant_bytes
    bytes_per_token = np.round(learned_bytes / training.num_tokens_by_rank(), 4)
    write_rank_plot(
        REPORTS_DIR / "merge_counts.csv",
        count=counts,
        bytes_per_token=bytes_per_token.tolist(),
    )
    line = (
        f"wrote {TOKENIZER_PATH}: vocab_size {tokenizer.vocab_size:,}, learned from "
        f"{training.num_bytes:,} bytes"
    )
    return f"{line}; {training.shortfall}" if training.shortfall else line
