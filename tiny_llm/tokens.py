"""Token files: flat arrays of ids beside a JSON manifest.

Written by encoding, read by batching; neither knows the other. `NAME.bin` holds
little-endian uint16 (uint32 when vocab_size is above 65,536) and nothing else;
`NAME.json` says what it must hold.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from tiny_llm.atomic import atomic_write, to_json
from tiny_llm.errors import ConfigError, InputError, IntegrityError
from tiny_llm.manifest import (
    DTYPES,
    FORMAT_VERSION,
    Manifest,
    check_tokenizer,
    dtype_for,
    manifest_path,
    read_manifest,
)

__all__ = [
    "DTYPES",
    "Manifest",
    "TokenWriter",
    "check_tokenizer",
    "dtype_for",
    "manifest_path",
    "open_tokens",
    "read_manifest",
    "scan_documents",
    "verify",
    "write_tokens",
]

# Damage is reported by blocks of this size.
BLOCK_BYTES = 16 << 20

# How many ids are read at a time.
_BLOCK_TOKENS = 1 << 18

# The files of llm.c (dev/data/data_common.py) and modded-nanogpt begin with 256 int32:
# a magic number, a version, the number of ids, and zeros.
_HEADER_BYTES = 256 * 4
_VERSIONS_AND_DTYPES = {20240520: (1, "uint16"), 20240801: (7, "uint32")}


class _Tally:
    """Computes what a manifest says about the bytes of a token file."""

    def __init__(self) -> None:
        self.num_tokens = 0
        self.sha256 = hashlib.sha256()
        self.block_crc32: list[int] = []
        self._block_left = 0

    def update(self, ids: npt.NDArray[Any]) -> None:
        """Add the next ids, shape (n,), in the dtype of the file."""
        self.num_tokens += len(ids)
        raw = ids.data.cast("B")
        self.sha256.update(raw)
        while raw:
            if self._block_left == 0:
                self.block_crc32.append(0)
                self._block_left = BLOCK_BYTES
            part = raw[: self._block_left]
            self.block_crc32[-1] = zlib.crc32(part, self.block_crc32[-1])
            self._block_left -= len(part)
            raw = raw[len(part) :]


class TokenWriter:
    """Appends ids to a token file; see `write_tokens`.

    Attributes:
        num_documents: Number of separators written so far; the caller adds 1 for a
            last document that lacks its separator.
        num_bytes: Size of the encoded text; set by the caller.
    """

    def __init__(
        self,
        file: IO[bytes],
        *,
        vocab_size: int,
        separator_id: int,
        tokenizer_sha256: str,
    ) -> None:
        self._file = file
        self._dtype = dtype_for(vocab_size)
        self._vocab_size = vocab_size
        self._separator_id = separator_id
        self._tokenizer_sha256 = tokenizer_sha256
        self._tally = _Tally()
        self.num_documents = 0
        self.num_bytes = 0

    def append(self, ids: npt.NDArray[Any]) -> None:
        """Write ids, shape (n,).

        Raises:
            TypeError: Their dtype is wider than that of the file.
        """
        data = ids.astype(self._dtype, order="C", casting="safe", copy=False)
        self._file.write(data.data.cast("B"))
        self._tally.update(data)
        self.num_documents += int(np.count_nonzero(data == self._separator_id))

    def manifest(self) -> Manifest:
        """Describe what has been written so far."""
        return Manifest(
            format_version=FORMAT_VERSION,
            dtype=self._dtype.name,
            num_tokens=self._tally.num_tokens,
            num_documents=self.num_documents,
            num_bytes=self.num_bytes,
            vocab_size=self._vocab_size,
            separator_id=self._separator_id,
            sha256=self._tally.sha256.hexdigest(),
            tokenizer_sha256=self._tokenizer_sha256,
            block_crc32=self._tally.block_crc32,
        )


@contextlib.contextmanager
def write_tokens(
    path: str | os.PathLike[str],
    *,
    vocab_size: int,
    separator_id: int,
    tokenizer_sha256: str,
) -> Iterator[TokenWriter]:
    """Write a token file and its manifest: both complete, or neither.

    The caller appends ids, sets `num_bytes`, and adds 1 to `num_documents` for a last
    document that lacks its separator. An old manifest is removed before the new token
    file replaces the old one, so the two are never from different runs.

    Args:
        path: The token file, `NAME.bin`; the manifest is `NAME.json` beside it.
        vocab_size: Every id will be below it; decides the dtype.
        separator_id: The id that ends a document.
        tokenizer_sha256: `BPETokenizer.sha256` of the tokenizer that makes the ids.

    Raises:
        ConfigError: `path` does not end in .bin.
        ResourceError: The disk is full.
    """
    if Path(path).suffix != ".bin":
        raise ConfigError(
            f"{path}: a token file must be called NAME.bin, as its manifest will be "
            "NAME.json; give such a path"
        )
    with atomic_write(manifest_path(path)) as manifest, atomic_write(path) as file:
        writer = TokenWriter(
            file,
            vocab_size=vocab_size,
            separator_id=separator_id,
            tokenizer_sha256=tokenizer_sha256,
        )
        yield writer
        manifest.write(to_json(dataclasses.asdict(writer.manifest())))
        manifest.flush()
        manifest_path(path).unlink(missing_ok=True)


def open_tokens(
    path: str | os.PathLike[str],
) -> tuple[npt.NDArray[Any], Manifest | None]:
    """Map a token file into memory, read-only.

    Its size must match the manifest; `verify` checks the bytes as well. A .bin file
    without a manifest is read as uint16, unless it begins with an llm.c header, which
    gives the dtype.

    Returns:
        The ids, shape (N,), little-endian uint16 or uint32, whose pages are read when
        touched; and the manifest, or None if there is none.

    Raises:
        InputError: The file is missing, empty, or not a token file.
        IntegrityError: The file and its manifest (or header) disagree.
    """
    if not Path(path).is_file():
        raise InputError(
            f"{path}: no such token file; `dvc repro` makes those of the pipeline"
        )
    manifest, offset = None, 0
    num_bytes = os.path.getsize(path)
    if manifest_path(path).is_file():
        manifest = read_manifest(path)
        dtype = DTYPES[manifest.dtype]
        _check_size(path, num_bytes, manifest)
    elif Path(path).suffix != ".bin":
        raise InputError(
            f"{path} has no manifest and is not called NAME.bin; give a token file"
        )
    elif header_dtype := _read_header(path, num_bytes):
        dtype, offset = header_dtype, _HEADER_BYTES
    else:
        dtype = DTYPES["uint16"]
    if num_bytes == offset or num_bytes % dtype.itemsize:
        raise InputError(
            f"{path} holds {num_bytes - offset:,} bytes, not a positive number of "
            f"{dtype.name} ids; encode the text again"
        )
    return np.memmap(path, dtype=dtype, mode="r", offset=offset), manifest


def _read_header(path: str | os.PathLike[str], num_bytes: int) -> np.dtype[Any] | None:
    """Return the dtype that an llm.c header gives, or None if there is no header."""
    header = np.fromfile(path, "<i4", _HEADER_BYTES // 4)
    if len(header) == 0 or int(header[0]) not in _VERSIONS_AND_DTYPES:
        return None
    magic, version, num_tokens = [*header.tolist(), 0, 0][:3]
    known_version, dtype_name = _VERSIONS_AND_DTYPES[magic]
    if version != known_version:
        raise IntegrityError(
            f"{path} is a token file of llm.c ({magic}) in version {version}; only "
            f"version {known_version} can be read, so write it again"
        )
    dtype = DTYPES[dtype_name]
    expected = _HEADER_BYTES + num_tokens * dtype.itemsize
    if num_bytes != expected:
        raise IntegrityError(
            f"{path} holds {num_bytes:,} bytes, its llm.c header says {expected:,} "
            f"({num_tokens:,} ids of {dtype.name}); copy or write it again"
        )
    return dtype


def scan_documents(
    path: str | os.PathLike[str],
) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[np.int64]]]:
    """Read a token file block by block, with the positions where documents end.

    A document ends after its separator, or at the end of the file. White space after
    the last separator is not a document, but other text is; the manifest's count tells
    which it is.

    Yields:
        The ids of a block, shape (n,), and the positions where documents end in it,
        shape (k,), int64, counted from the beginning of the file.

    Raises:
        InputError: The file or its manifest is missing.
        IntegrityError: The two disagree.
    """
    manifest = read_manifest(path)
    num_tokens = len(open_tokens(path)[0])
    seen = num_ended = 0
    # Read, not mapped: mapped pages count as memory of the process.
    with open(path, "rb") as file:
        while len(ids := np.fromfile(file, DTYPES[manifest.dtype], _BLOCK_TOKENS)):
            ends = np.flatnonzero(ids == manifest.separator_id) + (seen + 1)
            seen, num_ended = seen + len(ids), num_ended + len(ends)
            if seen == num_tokens and num_ended < manifest.num_documents:
                ends = np.append(ends, num_tokens)
            yield ids, ends


def verify(
    path: str | os.PathLike[str], tokenizer_sha256: str | None = None
) -> Manifest:
    """Check every byte of a token file against its manifest.

    Args:
        path: The token file.
        tokenizer_sha256: If given, the tokenizer that must have made the ids.

    Raises:
        InputError: The file or its manifest is missing.
        IntegrityError: They disagree; names the damaged blocks.
    """
    manifest = read_manifest(path)
    if tokenizer_sha256 is not None:
        check_tokenizer(path, manifest, tokenizer_sha256)
    if not Path(path).is_file():
        raise InputError(f"{path}: no such token file; encode the text again")
    _check_size(path, os.path.getsize(path), manifest)
    tally = _Tally()
    num_separators = largest_id = 0
    ends_in_separator = True
    with open(path, "rb") as file:
        while len(ids := np.fromfile(file, DTYPES[manifest.dtype], _BLOCK_TOKENS)):
            tally.update(ids)
            num_separators += int(np.count_nonzero(ids == manifest.separator_id))
            largest_id = max(largest_id, int(ids.max()))
            ends_in_separator = bool(ids[-1] == manifest.separator_id)
    found, said = tally.block_crc32, manifest.block_crc32
    if tally.sha256.hexdigest() != manifest.sha256:
        damaged = [i for i, crc32 in enumerate(found) if said[i : i + 1] != [crc32]]
        where = ", ".join(
            f"block {i} (bytes {i * BLOCK_BYTES:,} to {(i + 1) * BLOCK_BYTES:,})"
            for i in damaged[:5]
        )
        raise IntegrityError(
            f"{path}: sha256 is {tally.sha256.hexdigest()}, its manifest says "
            f"{manifest.sha256}; damaged: {where or 'the manifest'}; "
            "encode the text again"
        )
    # Text after the last separator may be a document, or only white space.
    num_unended = manifest.num_documents - num_separators
    if (
        found != said
        or not 0 <= num_unended <= (not ends_in_separator)
        or largest_id >= manifest.vocab_size
    ):
        raise IntegrityError(
            f"{manifest_path(path)} is damaged: {path} has the right sha256, but not "
            f"the same block checksums, {manifest.num_documents:,} documents (found "
            f"{num_separators:,} separators) or ids below {manifest.vocab_size:,} "
            f"(found {largest_id:,}); encode the text again"
        )
    return manifest


def _check_size(
    path: str | os.PathLike[str], num_bytes: int, manifest: Manifest
) -> None:
    expected = manifest.num_tokens * DTYPES[manifest.dtype].itemsize
    if num_bytes != expected:
        raise IntegrityError(
            f"{path} holds {num_bytes:,} bytes, its manifest says {expected:,} "
            f"({manifest.num_tokens:,} ids of {manifest.dtype}); encode the text again"
        )
