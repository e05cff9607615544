"""What a report is about: one run of the pipeline, already read from its files."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tiny_llm.report.scale import format_percent
from tiny_llm.tokenizer_json import FIRST_MERGE_ID, Merge
from tiny_llm.tokens import Manifest


@dataclasses.dataclass(frozen=True)
class Document:
    """The beginning of one document.

    Attributes:
        number: Its place in the split, from 0.
        num_tokens: Its length, separator included.
        ids: As many of its ids as are shown.
    """

    number: int
    num_tokens: int
    ids: Sequence[int]


@dataclasses.dataclass(frozen=True)
class Split:
    """One split.

    Attributes:
        manifest: Of its token file.
        metrics: reports/encode-SPLIT.json.
        frequency: (rank, count), most frequent first; some ranks are left out.
        lengths: (shortest length in a bin, number of documents), without gaps.
        id_counts: How often each id occurs, int64, shape (vocab_size,).
        documents: Those to show.
    """

    manifest: Manifest
    metrics: dict[str, Any]
    frequency: Sequence[tuple[int, int]]
    lengths: Sequence[tuple[int, int]]
    id_counts: npt.NDArray[np.int64]
    documents: Sequence[Document]

    @property
    def bytes_per_token(self) -> float:
        """Bytes of text per token, separators included."""
        return self.manifest.num_bytes / max(1, self.manifest.num_tokens)

    @property
    def is_used(self) -> npt.NDArray[np.bool_]:
        """Which ids occur, shape (vocab_size,)."""
        return self.id_counts > 0


@dataclasses.dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        params: params.yaml.
        fetch: reports/fetch.json.
        bpe: reports/bpe.json.
        merges: (merge rank from 1, how often it joined a pair, bytes per token of the
            sample after it); some ranks are left out.
        token_bytes: The bytes of each id, shape (vocab_size,).
        splits: "train" and "valid".
        leakage: build/leakage.json.
    """

    params: dict[str, Any]
    fetch: dict[str, Any]
    bpe: dict[str, Any]
    merges: Sequence[tuple[int, int, float]]
    token_bytes: Sequence[bytes]
    splits: dict[str, Split]
    leakage: dict[str, Any]

    @property
    def vocab_size(self) -> int:
        """Number of tokens in the vocab."""
        return len(self.token_bytes)


def list_token_bytes(merges: Sequence[Merge], separator: bytes) -> list[bytes]:
    """Return the bytes of each id: the 256 bytes, the separator, the merges.

    >>> list_token_bytes([(b"t", b"h")], b"<|endoftext|>")[-2:]
    [b'<|endoftext|>', b'th']
    """
    bytes_and_separator = [*(bytes([byte]) for byte in range(256)), separator]
    return bytes_and_separator + [left + right for left, right in merges]


def find_warnings(run: Run) -> list[str]:
    """Return what may spoil training on this data, in one line each.

    The limits are rules of thumb: a reader should look, not obey.
    """
    train, valid = run.splits["train"], run.splits["valid"]
    found = []
    share = run.leakage["metrics"]["leaked_share"]
    if share > 0.001:
        found.append(
            f"{format_percent(share)} of valid's tokens are in text that train also "
            "has: the loss on valid will look better than it is."
        )
    for name, split in run.splits.items():
        if num_invalid := split.metrics["num_invalid_bytes"]:
            found.append(
                f"{name} has {num_invalid:,} bytes that are not valid UTF-8: is it all "
                "text?"
            )
    if run.bpe["sample_bytes_left_out"]:
        found.append(
            f"{run.bpe['sample_bytes_left_out']:,} bytes of the sample were left out "
            "when merges were learned: they have no spaces between words."
        )
    if run.vocab_size < run.bpe["vocab_size_asked"]:
        found.append(
            f"The vocabulary has {run.vocab_size:,} tokens, not the "
            f"{run.bpe['vocab_size_asked']:,} asked for: the sample has no more pairs "
            "to merge."
        )
    elif run.bpe["num_merges"] and run.bpe["last_merge_count"] < 10:
        found.append(
            f"The last merge joined only {run.bpe['last_merge_count']} pairs of the "
            "sample: the vocabulary is large for so little text."
        )
    unused = 1 - float(train.is_used[FIRST_MERGE_ID:].mean() if run.merges else 1)
    if unused > 0.25:
        found.append(
            f"{format_percent(unused)} of the merges never occur in train: their "
            "embeddings will not be trained."
        )
    ratio = valid.bytes_per_token / train.bytes_per_token
    if not 0.95 < ratio < 1.05:
        found.append(
            f"valid has {valid.bytes_per_token:.2f} bytes per token and train "
            f"{train.bytes_per_token:.2f}: the splits hold different text."
        )
    return found
