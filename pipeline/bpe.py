"""Stage bpe: learn a tokenizer from the first documents of the train split.

Writes build/tokenizer.json and build/tokenizer_config.json, metrics, and merge counts.
"""

from __future__ import annotations

from pipeline.stage import read_param, write_rank_plot
from tiny_llm.atomic import write_json
from tiny_llm.corpus import read_sample, sample_bytes
from tiny_llm.layout import CORPUS_DIR, REPORTS_DIR, TOKENIZER_PATH
from tiny_llm.tokenize import BPETokenizer, check_vocab_size, explain_shortfall


def run() -> str:
    """Train on the sample that params.yaml asks for."""
    vocab_size = read_param("bpe", "vocab_size")
    check_vocab_size(vocab_size)
    source = CORPUS_DIR / "train.txt"
    sample = read_sample(source, sample_bytes(read_param("bpe", "sample_mb")))
    tokenizer = BPETokenizer()
    tokenizer.train(sample, vocab_size)
    tokenizer.save(TOKENIZER_PATH)

    counts = [] if tokenizer.merge_counts is None else tokenizer.merge_counts.tolist()
    write_json(
        REPORTS_DIR / "bpe.json",
        {
            "vocab_size_asked": vocab_size,
            "vocab_size": tokenizer.vocab_size,
            "num_merges": len(counts),
            "sample_bytes": len(sample),
            "last_merge_count": counts[-1] if counts else 0,
        },
    )
    write_rank_plot(REPORTS_DIR / "merge_counts.csv", counts)
    line = (
        f"wrote {TOKENIZER_PATH}: vocab_size {tokenizer.vocab_size:,}, learned from "
        f"{len(sample):,} bytes"
    )
    if tokenizer.vocab_size < vocab_size:
        more_text = source.stat().st_size > len(sample)
        line += f"; {explain_shortfall(vocab_size, tokenizer.vocab_size, more_text)}"
    return line
