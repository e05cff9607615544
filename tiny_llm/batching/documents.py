"""Documents: where they begin, for windows that do, and which one an id belongs to."""

from __future__ import annotations

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
        ValueError: As of `check_choices`.
    """
    if align is None:
        return draw_starts(len(data), seq_len, samples)
    check_choices(data, seq_len, align)
    starts = document_starts(data)
    num_choices = int(np.searchsorted(starts, count_windows(len(data), seq_len)))
    return starts[draw(num_choices, samples)]


def check_choices(data: Data, seq_len: int, align: str | None) -> None:
    """Refuse data from which no window can be drawn.

    Raises:
        ValueError: There is none; `align` is neither None nor "document", or needs a
            manifest which `data` lacks.
    """
    count_windows(len(data), seq_len)
    if align == "document":
        check_size(document_starts(data))
    elif align is not None:
        raise ValueError(f"align is {align!r}; give 'document' or None")


def document_starts(data: Data) -> Ints:
    """Where the documents of token files begin.

    That is at 0 and behind each separator; so in text where a line ends after the
    separator, a document begins with the end of that line. Found once and kept beside
    the token file: NAME.documents holds the SHA-256 of the ids that it belongs to, 32
    bytes, and then the positions as little-endian int64. Where that cannot be written
    it is kept in memory alone.

    Returns:
        Shape (num_documents,), rising from 0.

    Raises:
        ValueError: `data` has no manifest, which would name the separator.
    """
    starts: Ints | None = getattr(data, "documents", None)
    if starts is not None:
        return starts
    if isinstance(data, JoinedArray):
        begins = zip(data.parts, data.begins, strict=True)
        starts = np.concatenate([document_starts(part) + b for part, b in begins])
        data.documents = starts
    elif isinstance(data, TokenArray) and data.path and data.manifest:
        starts = data.documents = _load(data, data.path, data.manifest)
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
                for starts in _find(ids, manifest):
                    file.write(starts.astype("<i8").tobytes())
    except OSError:  # A folder that is read-only or full.
        return np.concatenate(list(_find(ids, manifest)))
    return np.memmap(index, dtype="<i8", mode="r", offset=len(digest))


def _is_index(path: Path, digest: bytes, num_documents: int) -> bool:
    if not path.is_file() or path.stat().st_size != len(digest) + 8 * num_documents:
        return False
    with open(path, "rb") as file:
        return file.read(len(digest)) == digest


def _find(ids: TokenArray, manifest: Manifest) -> Iterator[Ints]:
    check_size(ids)
    # Only white space may follow the last document: no document begins there.
    num_left = manifest.num_documents - 1
    yield np.zeros(1, dtype=np.int64)
    for begin in range(0, len(ids), _CHUNK):
        chunk = ids[begin : begin + _CHUNK]
        starts = np.flatnonzero(chunk == manifest.separator_id) + (begin + 1)
        yield starts[:num_left]
        num_left -= len(starts[:num_left])
