"""Documents: where they begin, for windows that do, and which one an id belongs to."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tiny_llm.atomic import atomic_write
from tiny_llm.batching.arrays import Data, JoinedArray, TokenArray, check_size
from tiny_llm.batching.windows import Ints, Samples, count_windows, draw, draw_starts
from tiny_llm.tokens import Manifest

if TYPE_CHECKING:
    import torch

_CHUNK = 1 << 24
_lock = threading.Lock()


def document_ids(x: torch.Tensor, separator_id: int) -> torch.Tensor:
    """Number the documents of each row, for a mask that keeps attention inside them.

    Args:
        x: Ids, shape (B, T).
        separator_id: The id that ends a document, as the manifest has it.

    Returns:
        int64, shape (B, T): how many documents ended before each id. A separator
        belongs to the document that it ends.

    >>> import torch
    >>> document_ids(torch.tensor([[5, 256, 7, 8, 256, 256, 9]]), separator_id=256)
    tensor([[0, 0, 1, 1, 1, 2, 3]])
    """
    ends = x == separator_id
    return ends.cumsum(1) - ends.long()


def sample_starts(
    data: Data, seq_len: int, align: str | None, samples: Samples
) -> Ints:
    """Start positions of samples: any, or beginnings of documents only.

    Returns:
        Shape (num_rows,), each in [0, N - T).

    Raises:
        ValueError: There is no window; `align` is neither None nor "document".
    """
    if align is None:
        return draw_starts(len(data), seq_len, samples)
    if align != "document":
        raise ValueError(f"align is {align!r}; give 'document' or None")
    num_windows = count_windows(len(data), seq_len)
    starts = document_starts(data)
    return starts[draw(int(np.searchsorted(starts, num_windows)), samples)]


def document_starts(data: Data) -> Ints:
    """Where the documents of token files begin.

    Found once and kept beside the token file: NAME.documents holds the SHA-256 of the
    ids that it belongs to, 32 bytes, and then the positions as little-endian int64.
    Where that cannot be written it is kept in memory alone.

    Returns:
        Shape (num_documents,), rising from 0.

    Raises:
        ValueError: `data` has no manifest, which would name the separator.
    """
    starts: Ints | None = getattr(data, "document_starts", None)
    if starts is not None:
        return starts
    if isinstance(data, JoinedArray):
        begins = zip(data.parts, data.begins, strict=True)
        starts = np.concatenate([document_starts(part) + b for part, b in begins])
        data.document_starts = starts
    elif isinstance(data, TokenArray) and data.path and data.manifest:
        with _lock:
            starts = data.document_starts = _load(data, data.path, data.manifest)
    else:
        raise ValueError(
            "align needs to know the separator, and data has no manifest; give what "
            "load_token_array returns for a token file with one, without a device"
        )
    return starts


def _load(ids: TokenArray, path: str, manifest: Manifest) -> Ints:
    index = Path(path).with_suffix(".documents")
    digest = bytes.fromhex(manifest.sha256)
    try:
        if not _is_index(index, digest, manifest.num_documents):
            with atomic_write(index) as file:
                file.write(digest)
                for starts in _find(ids, manifest.separator_id):
                    file.write(starts.astype("<i8").tobytes())
    except OSError:  # A folder that is read-only or full.
        return np.concatenate(list(_find(ids, manifest.separator_id)))
    return np.memmap(index, dtype="<i8", mode="r", offset=len(digest))


def _is_index(path: Path, digest: bytes, num_documents: int) -> bool:
    if not path.is_file() or path.stat().st_size != len(digest) + 8 * num_documents:
        return False
    with open(path, "rb") as file:
        return file.read(len(digest)) == digest


def _find(ids: TokenArray, separator_id: int) -> Iterator[Ints]:
    check_size(ids)
    yield np.zeros(1, dtype=np.int64)
    for begin in range(0, len(ids), _CHUNK):
        # What follows the last separator is the end.
        chunk = ids[begin : min(begin + _CHUNK, len(ids) - 1)]
        yield np.flatnonzero(chunk == separator_id) + (begin + 1)
