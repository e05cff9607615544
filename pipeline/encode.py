"""Stages encode-train and encode-valid: turn a split's text into token ids, once.

Writes build/tokens/SPLIT.bin with its manifest SPLIT.json and its index
SPLIT.documents, build/id_counts-SPLIT.npy, metrics, and plot data.
"""

from __future__ import annotations

import argparse

import numpy as np

from pipeline.stage import (
    progress_bar,
    show_warnings,
    write_csv,
    write_rank_plot,
)
from tiny_llm.atomic import atomic_write, write_json
from tiny_llm.encoding import Encoded, encode_and_measure
from tiny_llm.layout import (
    CORPUS_DIR,
    ID_COUNTS_PATHS,
    REPORTS_DIR,
    SPLITS,
    TOKENIZER_PATH,
    TOKENS_DIR,
)
from tiny_llm.tokenize import BPETokenizer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the split to encode."""
    parser.add_argument("split", choices=SPLITS, help="which split to encode")


def run(split: str) -> str:
    """Encode one split and report on its ids."""
    source = CORPUS_DIR / f"{split}.txt"
    target = TOKENS_DIR / f"{split}.bin"
    tokenizer = BPETokenizer.load(TOKENIZER_PATH)
    num_bytes = source.stat().st_size if source.is_file() else 0
    with (
        show_warnings("python -m pipeline encode"),
        progress_bar(f"encode {split}", num_bytes) as bar,
    ):
        encoded = encode_and_measure(tokenizer, source, target, on_progress=bar.update)
    _report(split, encoded)
    manifest = encoded.manifest
    noun = "document" if manifest.num_documents == 1 else "documents"
    return (
        f"wrote {target}: {manifest.num_documents:,} {noun}, "
        f"{manifest.num_tokens:,} ids ({manifest.dtype}), "
        f"{manifest.num_bytes / manifest.num_tokens:.2f} bytes/token"
    )


def _report(split: str, encoded: Encoded) -> None:
    manifest, stats = encoded.manifest, encoded.stats
    write_json(
        REPORTS_DIR / f"encode-{split}.json",
        {
            "num_tokens": manifest.num_tokens,
            "num_documents": manifest.num_documents,
            "num_invalid_bytes": encoded.text.num_invalid_bytes,
            "bytes_per_token": round(manifest.num_bytes / manifest.num_tokens, 4),
            "tokens_per_document": {
                "mean": round(stats.mean_length, 2),
                "p50": stats.length_percentile(50),
                "p95": stats.length_percentile(95),
                "max": stats.length_percentile(100),
            },
            "vocab_used": round(stats.vocab_used, 4),
        },
    )
    with atomic_write(ID_COUNTS_PATHS[split]) as file:
        np.save(file, stats.id_counts, allow_pickle=False)
    write_rank_plot(
        REPORTS_DIR / f"token_frequency-{split}.csv", count=stats.counts_by_rank()
    )
    write_csv(
        REPORTS_DIR / f"document_lengths-{split}.csv",
        ("num_tokens", "num_documents"),
        stats.length_histogram(),
    )
