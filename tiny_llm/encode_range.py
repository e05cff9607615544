"""Encoding a range of a text: what a worker does with one.

It reads the text of its range and writes a part. Workers import this module and not
`encoding`, which plans ranges and joins parts, because each import delays their start.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tiny_llm.anytext import Piece
from tiny_llm.corpus import find_next_cut
from tiny_llm.engine import Engine
from tiny_llm.errors import InputError
from tiny_llm.manifest import dtype_for
from tiny_llm.parts import (
    Part,
    PartWriter,
    find_part,
    hash_bytes,
    part_path,
    write_part,
)
from tiny_llm.textscan import TextScan, scan_text
from tiny_llm.tokenizer_json import SEPARATOR_ID

TOKENIZER_NAME = "bpe.json"


def encode_range(
    source: str,
    folder: str,
    begin: int,
    end: int,
    *,
    size: int,
    vocab_size: int,
    count: bool,
    sync: bool,
) -> dict[str, Any]:
    """Encode the text of one range to a part, unless an earlier run left it.

    The range begins at the first cut from `begin` on, and ends at the first cut from
    `end` on; it is empty if they are the same.

    Args:
        source: The text file.
        folder: Holds the parts, and the tokenizer, called `TOKENIZER_NAME`.
        begin: Where the range nominally begins, in bytes.
        end: Where it nominally ends.
        size: Size of the text file, in bytes.
        vocab_size: Number of ids of the tokenizer.
        count: Whether to count how often each id occurs.
        sync: Whether to flush the part to disk, for readers on other machines.

    Returns:
        The `Part` that was written, as a dict.

    Raises:
        InputError: The text file has another size.
    """
    path = part_path(Path(folder), begin)
    with open(source, "rb") as file:
        _check_size(source, size, os.fstat(file.fileno()).st_size)
        first, last = find_next_cut(file, begin), find_next_cut(file, end)

        def read(begin: int, end: int) -> bytes:
            file.seek(first + begin)
            text = file.read(end - begin)
            if len(text) != end - begin:
                _check_size(source, size, os.fstat(file.fileno()).st_size)
            return text

        part = None
        if path.exists():
            file.seek(first)
            part = find_part(path, hash_bytes(file, last - first))
        if part is None:
            with write_part(path, sync=sync) as writer:
                sink = _PartSink(writer, first, vocab_size, count)
                _load_engine(folder).encode_to(sink, read, last - first)
                part = sink.finish()
    return dict(vars(part))


def _check_size(source: str, expected: int, found: int) -> None:
    if found != expected:
        raise InputError(
            f"{source} changed while it was read ({expected:,} bytes at first, "
            f"{found:,} now on {platform.node()}); run again when nothing writes to "
            "it, and if this is a cluster, when all its machines share the file"
        )


class _PartSink:
    """Writes ids to a part, and scans the text: neither is ever all in memory."""

    def __init__(
        self, writer: PartWriter, first: int, vocab_size: int, count: bool
    ) -> None:
        self._writer, self._first = writer, first
        self._dtype = dtype_for(vocab_size)
        self._num_counts = vocab_size if count else 0
        self.clear()

    def clear(self) -> None:
        self._writer.clear()
        self._scan, self._sha256 = TextScan(), hashlib.sha256()
        self._counts = np.zeros(self._num_counts, np.int64)

    def append(self, piece: Piece) -> None:
        ids = piece.ids.astype(self._dtype, copy=False)
        self._writer.append(ids, SEPARATOR_ID)
        if self._num_counts:
            self._counts += _count_ids(ids, self._num_counts)
        begin = self._first + self._scan.num_bytes
        self._scan.merge(scan_text(piece.text, begin, piece.invalid))
        self._sha256.update(piece.text)

    def finish(self) -> Part:
        return self._writer.finish(
            vars(self._scan), self._sha256.hexdigest(), self._counts
        )


@functools.lru_cache(maxsize=1)
def _load_engine(folder: str) -> Engine:
    return Engine(Path(folder, TOKENIZER_NAME).read_bytes())


def _count_ids(ids: npt.NDArray[np.integer], vocab_size: int) -> npt.NDArray[np.int64]:
    """Count how often each id occurs, block by block: bincount widens its input."""
    counts = np.zeros(vocab_size, dtype=np.int64)
    for begin in range(0, len(ids), 1 << 17):
        counts += np.bincount(ids[begin : begin + (1 << 17)], minlength=vocab_size)
    return counts
