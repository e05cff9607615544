"""Token files: flat arrays of ids beside a JSON manifest and an index of documents.

Written by encoding, read by batching; neither knows the other. `NAME.bin` holds
little-endian uint16 (uint32 when vocab_size is above 65,536) and nothing else;
`NAME.json` says what it must hold; `NAME.documents` says where documents start: the
manifest's digest (32 bytes), then positions as little-endian int64.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from tiny_llm.atomic import (
    atomic_write,
    copy_bytes,
    explain_full_disk,
    flushing,
    held_lock,
)
from tiny_llm.errors import ConfigError, InputError, IntegrityError
from tiny_llm.manifest import (
    DTYPES,
    FORMAT_VERSION,
    Manifest,
    check_size,
    check_tokenizer,
    digest_of_ranges,
    documents_path,
    dtype_for,
    format_manifest,
    manifest_path,
    read_format,
    read_manifest,
)

__all__ = [
    "DIGEST_BYTES",
    "DTYPES",
    "Manifest",
    "TokenWriter",
    "check_size",
    "check_tokenizer",
    "documents_path",
    "dtype_for",
    "manifest_path",
    "open_documents",
    "open_tokens",
    "read_manifest",
    "write_tokens",
]

DIGEST_BYTES = 32  # of an index

# How many ids are read at a time.
_BLOCK_TOKENS = 1 << 18


class TokenWriter:
    """Appends ranges of ids to a token file; see `write_tokens`.

    Attributes:
        num_bytes: Size of the encoded text; set by the caller.
        rest_is_document: Whether the ids after the last separator are a document that
            lacks its separator; set by the caller.
    """

    def __init__(
        self,
        file: IO[bytes],
        index: IO[bytes],
        start_flush: Callable[[], None],
        *,
        vocab_size: int,
        separator_id: int,
        tokenizer_sha256: str,
    ) -> None:
        self._file, self._index, self._start_flush = file, index, start_flush
        self._dtype = dtype_for(vocab_size)
        self._vocab_size = vocab_size
        self._separator_id = separator_id
        self._tokenizer_sha256 = tokenizer_sha256
        self._range_tokens: list[int] = []
        self._range_sha256: list[str] = []
        self._num_tokens = self._num_ends = self._last_end = 0
        self._index.write(bytes(DIGEST_BYTES))
        self.num_bytes = 0
        self.rest_is_document = False

    def append(self, ids: npt.NDArray[Any]) -> None:
        """Write a range of ids, shape (n,).

        Raises:
            TypeError: Their dtype is wider than that of the file.
        """
        data = ids.astype(self._dtype, order="C", casting="safe", copy=False)
        self._file.write(data.data.cast("B"))
        ends = np.flatnonzero(data == self._separator_id) + 1
        self._add(len(data), hashlib.sha256(data.data.cast("B")).hexdigest(), ends)

    def append_file(
        self, source: IO[bytes], num_tokens: int, sha256: str, ends: npt.NDArray[Any]
    ) -> None:
        """Copy a range of ids from an open file.

        Args:
            source: Holds the ids at its position, in the dtype of this file.
            num_tokens: Number of ids.
            sha256: Their digest.
            ends: Shape (k,): the positions in the range just after each separator.

        Raises:
            IntegrityError: The file is too short.
        """
        num_bytes = num_tokens * self._dtype.itemsize
        if copy_bytes(source, self._file, num_bytes) != num_bytes:
            raise IntegrityError(
                f"{source.name} holds fewer than {num_tokens:,} ids; encode again"
            )
        self._add(num_tokens, sha256, ends)
        self._start_flush()

    def _add(self, num_tokens: int, sha256: str, ends: npt.NDArray[Any]) -> None:
        if len(ends):  # A document starts where the one before it ends.
            ends = ends + self._num_tokens
            starts = np.concatenate([[self._last_end], ends[:-1]])
            self._index.write(starts.astype("<i8").data.cast("B"))
            self._last_end = int(ends[-1])
            self._num_ends += len(ends)
        self._num_tokens += num_tokens
        self._range_tokens.append(num_tokens)
        self._range_sha256.append(sha256)

    def finish(self) -> Manifest:
        """Complete the index, and describe what has been written."""
        if self.rest_is_document:
            self._index.write(self._last_end.to_bytes(8, "little"))
        if not self._range_tokens:
            self.append(np.empty(0, self._dtype))
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            dtype=self._dtype.name,
            num_tokens=self._num_tokens,
            num_documents=self._num_ends + int(self.rest_is_document),
            num_bytes=self.num_bytes,
            vocab_size=self._vocab_size,
            separator_id=self._separator_id,
            sha256=digest_of_ranges(self._range_sha256),
            tokenizer_sha256=self._tokenizer_sha256,
            range_tokens=self._range_tokens,
            range_sha256=self._range_sha256,
        )
        self._index.seek(0)
        self._index.write(bytes.fromhex(manifest.sha256))
        return manifest


@contextlib.contextmanager
def write_tokens(
    path: str | os.PathLike[str],
    *,
    vocab_size: int,
    separator_id: int,
    tokenizer_sha256: str,
) -> Iterator[TokenWriter]:
    """Write a token file, its manifest and its index: all complete, or none.

    The caller appends ids range by range, and sets `num_bytes` and `rest_is_document`.
    The old token file is removed before the new manifest and index come, and the new
    token file comes last, so a run that is killed leaves no token file beside the
    manifest of another. Of two runs that finish together, one waits for the other.

    Args:
        path: The token file, `NAME.bin`; the manifest is `NAME.json` beside it, the
            index `NAME.documents`.
        vocab_size: Every id will be below it; decides the dtype.
        separator_id: The id that ends a document.
        tokenizer_sha256: `BPETokenizer.sha256` of the tokenizer that makes the ids.

    Raises:
        ConfigError: `path` does not end in .bin.
        ResourceError: The disk is full.
    """
    target = Path(path)
    if target.suffix != ".bin":
        raise ConfigError(
            f"{path}: a token file must be called NAME.bin, as its manifest will be "
            "NAME.json; give such a path"
        )
    with contextlib.ExitStack() as stack:
        # Left in reverse order: the manifest gets its name first, the token file last.
        lock = stack.enter_context(contextlib.ExitStack())
        file = stack.enter_context(atomic_write(target))
        index = stack.enter_context(atomic_write(documents_path(target)))
        manifest_file = stack.enter_context(atomic_write(manifest_path(target)))
        writer = TokenWriter(
            file,
            index,
            stack.enter_context(flushing(file)),
            vocab_size=vocab_size,
            separator_id=separator_id,
            tokenizer_sha256=tokenizer_sha256,
        )
        try:
            yield writer
            manifest_file.write(format_manifest(writer.finish()))
            for output in (file, index, manifest_file):
                output.flush()
                os.fsync(output.fileno())  # Before, not while, there is no token file.
        except OSError as error:
            explain_full_disk(error, target, Path(file.name))
            raise
        lock.enter_context(held_lock(target.with_suffix(".lock")))
        target.unlink(missing_ok=True)


def open_tokens(
    path: str | os.PathLike[str],
) -> tuple[npt.NDArray[Any], Manifest | None]:
    """Map a token file into memory, read-only.

    Its size must match the manifest; `verify` checks the bytes as well. A .bin file
    without a manifest is read as uint16, unless it begins with an llm.c header, which
    gives the dtype. If there is an index beside it, the manifest was lost.

    Returns:
        The ids, shape (N,), little-endian uint16 or uint32, whose pages are read when
        touched; and the manifest, or None if there is none.

    Raises:
        InputError: The file is missing, empty, or not a token file.
        IntegrityError: The file and its manifest (or header) disagree, or the manifest
            was lost.
    """
    if not Path(path).is_file():
        raise InputError(
            f"{path}: no such token file; `dvc repro` makes those of the pipeline"
        )
    dtype, offset, manifest = read_format(path)
    return np.memmap(path, dtype=dtype, mode="r", offset=offset), manifest


def open_documents(
    path: str | os.PathLike[str], manifest: Manifest
) -> npt.NDArray[Any]:
    """Return where the documents of a token file start.

    A document starts at 0 and after each separator, so a newline after a separator
    belongs to the next document. White space after the last separator is not a
    document.

    Returns:
        Shape (num_documents,), int64, increasing from 0: the index, mapped into memory
        read-only. Without an index (format version 1), the ids are read instead.

    Raises:
        IntegrityError: The index belongs to other ids or is damaged.
    """
    index = documents_path(path)
    if not index.is_file():
        return _scan_documents(path, manifest)
    with open(index, "rb") as file:
        digest = file.read(DIGEST_BYTES).hex()
    expected = DIGEST_BYTES + 8 * manifest.num_documents
    starts = np.empty(0, "<i8")
    if digest == manifest.sha256 and index.stat().st_size == expected:
        if manifest.num_documents == 0:
            return starts
        starts = np.memmap(index, dtype="<i8", mode="r", offset=DIGEST_BYTES)
    if len(starts) == 0 or starts[0] != 0 or starts[-1] >= manifest.num_tokens:
        raise IntegrityError(
            f"{index} is not the index of {path}: it is damaged or of other ids; "
            "encode the text again"
        )
    return starts


def _scan_documents(
    path: str | os.PathLike[str], manifest: Manifest
) -> npt.NDArray[np.int64]:
    """Find where documents start by reading all ids, block by block."""
    starts, begin = [np.zeros(1, np.int64)], 0
    # Read, not mapped: mapped pages count as memory of the process.
    with open(path, "rb") as file:
        while len(ids := np.fromfile(file, DTYPES[manifest.dtype], _BLOCK_TOKENS)):
            starts.append(np.flatnonzero(ids == manifest.separator_id) + (begin + 1))
            begin += len(ids)
    return np.concatenate(starts)[: manifest.num_documents]
