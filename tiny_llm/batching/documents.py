"""Documents: find where they start, and number those in a batch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from tiny_llm.atomic import atomic_write
from tiny_llm.batching.permutation import Ints
from tiny_llm.tokens import Manifest, scan_documents


def document_ids(x: torch.Tensor, separator_id: int) -> torch.Tensor:
    """Number the documents of each row, for a mask that keeps attention inside them.

    Args:
        x: Ids, shape (B, T).
        separator_id: The id that ends a document, as in the manifest.

    Returns:
        int64, shape (B, T): how many documents ended before each id. A separator
        belongs to the document that it ends.

    >>> document_ids(torch.tensor([[5, 256, 7, 8, 256, 256, 9]]), separator_id=256)
    tensor([[0, 0, 1, 1, 1, 2, 3]])
    """
    ends = x == separator_id
    return ends.cumsum(1) - ends.long()


def load_document_starts(path: str | os.PathLike[str], manifest: Manifest) -> Ints:
    """Return where the documents of a token file start, from an index beside it.

    A document starts at 0 and after each separator, so a newline after a separator
    belongs to the next document. The index is built once as NAME.documents: the SHA-256
    of the ids it belongs to, 32 bytes, then the positions as little-endian int64. If
    the folder cannot be written, the index stays in memory.

    Returns:
        Shape (num_documents,), increasing from 0; usually a read-only memmap.
    """
    index = Path(path).with_suffix(".documents")
    digest = bytes.fromhex(manifest.sha256)
    try:
        if not _is_index(index, digest, manifest.num_documents):
            with atomic_write(index) as file:
                file.write(digest)
                for starts in _find_starts(path):
                    file.write(starts.astype("<i8").tobytes())
    except OSError:  # The folder is read-only or full.
        return np.concatenate(list(_find_starts(path)))
    return np.memmap(index, dtype="<i8", mode="r", offset=len(digest))


def _is_index(path: Path, digest: bytes, num_documents: int) -> bool:
    if not path.is_file() or path.stat().st_size != len(digest) + 8 * num_documents:
        return False
    with open(path, "rb") as file:
        return file.read(len(digest)) == digest


def _find_starts(path: str | os.PathLike[str]) -> Iterator[Ints]:
    """Yield document starts, block by block: each is where the one before ends."""
    last = np.zeros(1, dtype=np.int64)
    for _, ends in scan_documents(path):
        starts = np.concatenate([last, ends])
        yield starts[:-1]
        last = starts[-1:]
