"""What is done about leakage: examples as text, a limit, a valid split without it."""

from __future__ import annotations

import itertools
import math
import os
from typing import Any

import numpy as np
import numpy.typing as npt

from tiny_llm.duplicates import MIN_SIMILARITY, SHINGLE_WORDS, Documents
from tiny_llm.errors import ConfigError, InputError
from tiny_llm.leakage import Example, Leakage
from tiny_llm.overlap import WindowIndex
from tiny_llm.tokenize import SEPARATOR_ID, BPETokenizer
from tiny_llm.tokens import Manifest, read_manifest, write_tokens

FORMAT_VERSION = 1
EXAMPLE_CHARS = 2000


def describe(
    leakage: Leakage,
    train: Documents,
    valid: Documents,
    tokenizer: BPETokenizer,
    *,
    window: int,
    max_share: float | None,
    clean_valid: bool,
) -> dict[str, Any]:
    """Return the content of build/leakage.json, for `atomic.write_json`.

    The worst examples come first. Each has the texts of both documents, at most
    `EXAMPLE_CHARS` characters, from the first shared window on if they are longer; and
    `shared`, the ranges of characters that are in windows of ids which both documents
    have. Invalid UTF-8 is shown as U+FFFD.
    """
    return {
        "format_version": FORMAT_VERSION,
        "window": window,
        "max_share": max_share,
        "clean_valid": clean_valid,
        "shingle_words": SHINGLE_WORDS,
        "min_similarity": MIN_SIMILARITY,
        "train": _describe_split(train),
        "valid": _describe_split(valid),
        "metrics": leakage.metrics(),
        "examples": [
            _describe_example(example, train, valid, tokenizer, window)
            for example in leakage.examples
        ],
    }


def _describe_split(documents: Documents) -> dict[str, Any]:
    manifest = documents.manifest
    return {
        "num_tokens": manifest.num_tokens,
        "num_documents": manifest.num_documents,
        "sha256": manifest.sha256,
    }


def _describe_example(
    example: Example,
    train: Documents,
    valid: Documents,
    tokenizer: BPETokenizer,
    window: int,
) -> dict[str, Any]:
    ours = valid.ids(*example.valid_bounds)
    theirs = train.ids(*example.train_bounds)
    index = WindowIndex(ours, window)
    entries, places, _ = index.find(theirs)
    index.mark(entries, places, 0)
    runs = index.runs()
    return {
        "kind": example.kind,
        "valid_document": example.valid_document,
        "train_document": example.train_document,
        "num_tokens": example.num_tokens,
        "num_shared": example.num_shared,
        "similarity": example.similarity,
        "valid": _show(ours, runs.begins, runs.lengths, tokenizer),
        "train": _show(theirs, runs.sources, runs.lengths, tokenizer),
    }


def _show(
    ids: npt.NDArray[Any],
    begins: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
    tokenizer: BPETokenizer,
) -> dict[str, Any]:
    """Return the text of a document, and which of its characters are in runs of ids."""
    edges: list[list[int]] = []
    for begin, end in sorted(np.stack([begins, begins + lengths], 1).tolist()):
        if edges and begin <= edges[-1][1]:
            edges[-1][1] = max(edges[-1][1], end)
        else:
            edges.append([begin, end])
    parts = np.split(ids, [*itertools.chain(*edges)])
    data = [tokenizer.decode_bytes(part) for part in parts]
    text = b"".join(data).decode("utf-8", "replace")
    places = [
        min(len(text), len(b"".join(data[:count]).decode("utf-8", "replace")))
        for count in range(1, len(data))
    ]
    skipped = 0
    if len(text) > EXAMPLE_CHARS and places:
        skipped = min(places[0], len(text) - EXAMPLE_CHARS)
    shown = text[skipped : skipped + EXAMPLE_CHARS]
    ranges = [
        [max(0, begin - skipped), min(len(shown), end - skipped)]
        for begin, end in zip(places[::2], places[1::2], strict=True)
        if begin - skipped < len(shown)
    ]
    return {"text": shown, "shared": ranges, "is_cut": len(shown) < len(text)}


def check_max_share(value: object) -> float | None:
    """Return a share from 0 to 1, or None.

    Raises:
        ConfigError: It is neither.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        share = math.nan
    else:
        share = value
    if not 0 <= share <= 1:
        raise ConfigError(
            f"leakage.max_share is {value!r}; give a number from 0 to 1, or null"
        )
    return float(share)


def require_at_most(
    max_share: float | None, leakage: Leakage, valid: Documents, *, is_clean: bool
) -> None:
    """Refuse a valid split of which too much is leaked.

    Args:
        max_share: The share of ids that may be leaked; None: any.
        leakage: What was found.
        valid: The documents of valid.
        is_clean: Whether to judge what remains without the leaked documents.

    Raises:
        InputError: More is leaked; names the worst documents. Or all is, so that none
            remains.
    """
    if is_clean and len(valid) and leakage.is_leaked.all():
        raise InputError(
            "every document of valid is leaked, so build/clean/valid.bin is empty; "
            "see build/leakage.json, and correct the source"
        )
    share = leakage.share_left if is_clean else leakage.share
    if max_share is None or share <= max_share:
        return
    worst = "; ".join(
        f"document {example.valid_document:,} of valid "
        f"({_brief(valid.text(*example.valid_bounds))}) and document "
        f"{example.train_document:,} of train are {_RELATIONS[example.kind]}"
        for example in leakage.examples[:3]
    )
    raise InputError(
        f"{share:.2%} of valid's tokens {'still ' if is_clean else ''}occur in train, "
        f"more than leakage.max_share ({max_share:.2%}): {worst}; see "
        "build/leakage.json, and "
        + ("raise leakage.max_share" if is_clean else "set leakage.clean_valid")
        + " or correct the source"
    )


_RELATIONS = {
    "exact": "the same",
    "near": "nearly the same",
    "overlap": "the same in part",
}


def _brief(text: bytes) -> str:
    words = " ".join(text.decode("utf-8", "replace").split())
    return repr(words if len(words) <= 50 else f"{words[:50]}...")


def write_clean(
    path: str | os.PathLike[str],
    valid: Documents,
    is_leaked: npt.NDArray[np.bool_],
    tokenizer: BPETokenizer,
) -> Manifest:
    """Write valid without its leaked documents, as a token file with its manifest.

    Args:
        path: The token file, NAME.bin.
        valid: The documents of valid.
        is_leaked: Which of them to leave out, bool, shape (len(valid),).
        tokenizer: Made the ids.

    Returns:
        The manifest. The file is empty if all documents are leaked.
    """
    with write_tokens(
        path,
        vocab_size=tokenizer.vocab_size,
        separator_id=tokenizer.separator_id,
        tokenizer_sha256=tokenizer.sha256,
    ) as writer:
        for block in valid.blocks():
            ids = valid.read(block.begin, block.end)
            owners = block.document_of(np.arange(len(ids)))
            ids = ids[~is_leaked[owners]]
            if len(ids):
                writer.append(ids)
                writer.num_bytes += len(tokenizer.decode_bytes(ids))
        if len(valid) and not is_leaked[-1]:
            last = valid.read(*valid.bounds(len(valid) - 1))
            writer.rest_is_document = SEPARATOR_ID not in last
    return read_manifest(path)
