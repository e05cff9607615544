"""Stage leakage: say what of valid also occurs in train.

Writes build/leakage.json with the worst examples as text, and metrics. If params.yaml
says so, it writes valid without the leaked documents to build/clean, which otherwise
holds only a list of them, or fails with status 3 if more than leakage.max_share is
leaked.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from pipeline.stage import progress_bar, read_param
from tiny_llm.atomic import write_json
from tiny_llm.duplicates import Documents
from tiny_llm.errors import ConfigError
from tiny_llm.layout import LEAKAGE_PATH, REPORTS_DIR, TOKENIZER_PATH, TOKENS_DIR
from tiny_llm.leakage import check_window, find_leakage, num_passes
from tiny_llm.leakage_files import (
    check_max_share,
    describe,
    require_at_most,
    write_clean,
)
from tiny_llm.tokenize import BPETokenizer

CLEAN_DIR = Path("build/clean")


def run() -> str:
    """Compare valid with train, and report."""
    window = check_window(read_param("leakage", "window"))
    max_share = check_max_share(read_param("leakage", "max_share"))
    clean_valid = read_param("leakage", "clean_valid")
    if not isinstance(clean_valid, bool):
        raise ConfigError(f"leakage.clean_valid is {clean_valid!r}; give true or false")
    tokenizer = BPETokenizer.load(TOKENIZER_PATH)
    train = Documents(TOKENS_DIR / "train.bin", tokenizer)
    valid = Documents(TOKENS_DIR / "valid.bin", tokenizer)
    with progress_bar("leakage", train.num_bytes * num_passes(valid)) as bar:
        found = find_leakage(train, valid, tokenizer, window, on_progress=bar.update)

    shutil.rmtree(CLEAN_DIR, ignore_errors=True)
    CLEAN_DIR.mkdir(parents=True)
    leaked = np.flatnonzero(found.is_leaked).tolist()
    write_json(CLEAN_DIR / "leaked_documents.json", leaked)
    clean = ""
    if clean_valid:
        path = CLEAN_DIR / "valid.bin"
        manifest = write_clean(path, valid, found.is_leaked, tokenizer)
        clean = f", and {path} without: {manifest.num_tokens:,} ids"
    write_json(
        LEAKAGE_PATH,
        describe(
            found,
            train,
            valid,
            tokenizer,
            window=window,
            max_share=max_share,
            clean_valid=clean_valid,
        ),
    )
    write_json(REPORTS_DIR / "leakage.json", found.metrics())
    require_at_most(max_share, found, valid, is_clean=clean_valid)
    noun = "document" if len(leaked) == 1 else "documents"
    return (
        f"wrote {LEAKAGE_PATH}: {found.share:.2%} of valid's tokens occur in train, "
        f"{len(leaked):,} leaked {noun}{clean}"
    )
