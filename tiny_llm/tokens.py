"""Token files: flat arrays of ids beside a JSON manifest.

Written by encoding, read by batching; neither knows the other. `NAME.bin` holds
little-endian uint16 (uint32 when vocab_size is above 65,536) and nothing else;
`NAME.json` says what it must hold.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from tiny_llm.atomic import atomic_write, to_json
from tiny_llm.errors import ConfigError, InputError, IntegrityError

FORMAT_VERSION = 1
DTYPES: dict[str, np.dtype[Any]] = {
    "uint16": np.dtype("<u2"),
    "uint32": np.dtype("<u4"),
}

# A damaged file is narrowed down to blocks of this size.
BLOCK_BYTES = 16 << 20

# How many ids `scan_documents` reads at a time.
_BLOCK_TOKENS = 1 << 18


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a token file must hold.

    Attributes:
        format_version: 1.
        dtype: "uint16" or "uint32", little-endian on disk.
        num_tokens: Number of ids in the file.
        num_documents: Number of documents, blank ones included.
        num_bytes: Size of the text that was encoded, in bytes.
        vocab_size: Every id is below it.
        separator_id: The id that ends a document.
        sha256: Digest of the token file.
        tokenizer_sha256: `BPETokenizer.sha256` of the tokenizer that made the ids.
        block_crc32: CRC-32 of each 16 MiB of the file, to find damage.
    """

    format_version: int
    dtype: str
    num_tokens: int
    num_documents: int
    num_bytes: int
    vocab_size: int
    separator_id: int
    sha256: str
    tokenizer_sha256: str
    block_crc32: list[int]


def dtype_for(vocab_size: int) -> np.dtype[Any]:
    """Return the narrowest dtype that holds every id of a vocab: uint16 or uint32."""
    return DTYPES["uint16" if vocab_size <= 1 << 16 else "uint32"]


def manifest_path(path: str | os.PathLike[str]) -> Path:
    """Where the manifest of a token file lies: train.bin has train.json.

    >>> manifest_path("tokens/train.bin").as_posix()
    'tokens/train.json'
    """
    return Path(path).with_suffix(".json")


class TokenWriter:
    """Appends ids to a token file; see `write_tokens`.

    Attributes:
        num_tokens: Ids written so far.
        num_documents: Separators among them.
        num_bytes: Size of the encoded text; the caller adds it up.
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
        self._sha256 = hashlib.sha256()
        self._block_crc32: list[int] = []
        self._block_left = 0
        self.num_tokens = 0
        self.num_documents = 0
        self.num_bytes = 0

    def append(self, ids: npt.NDArray[Any]) -> None:
        """Write ids, shape (n,).

        Raises:
            TypeError: Their dtype is wider than the file's.
        """
        data = ids.astype(self._dtype, order="C", casting="safe", copy=False)
        self.num_tokens += len(data)
        self.num_documents += int(np.count_nonzero(data == self._separator_id))
        raw = data.data.cast("B")
        self._file.write(raw)
        self._sha256.update(raw)
        while raw:
            if self._block_left == 0:
                self._block_crc32.append(0)
                self._block_left = BLOCK_BYTES
            part = raw[: self._block_left]
            self._block_crc32[-1] = zlib.crc32(part, self._block_crc32[-1])
            self._block_left -= len(part)
            raw = raw[len(part) :]

    def manifest(self) -> Manifest:
        """Describe what was written so far."""
        return Manifest(
            format_version=FORMAT_VERSION,
            dtype=self._dtype.name,
            num_tokens=self.num_tokens,
            num_documents=self.num_documents,
            num_bytes=self.num_bytes,
            vocab_size=self._vocab_size,
            separator_id=self._separator_id,
            sha256=self._sha256.hexdigest(),
            tokenizer_sha256=self._tokenizer_sha256,
            block_crc32=self._block_crc32,
        )


@contextlib.contextmanager
def write_tokens(
    path: str | os.PathLike[str],
    *,
    vocab_size: int,
    separator_id: int,
    tokenizer_sha256: str,
) -> Iterator[TokenWriter]:
    """Write a token file and its manifest, both whole or neither.

    The caller appends ids, adds up `num_bytes`, and counts a last document that lacks
    its separator. An old manifest goes before the new ids come, so the two never
    belong to different runs.

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
            f"{path}: a token file is called NAME.bin, as its manifest takes "
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


def read_manifest(path: str | os.PathLike[str]) -> Manifest:
    """Read the manifest of the token file at `path`.

    Raises:
        InputError: There is none.
        IntegrityError: It is damaged, or of a format this version cannot read.
    """
    source = manifest_path(path)
    if not source.is_file():
        raise InputError(f"{source}: no manifest for {path}; encode the text again")
    try:
        manifest = Manifest(**json.loads(source.read_bytes()))
        _check_types(manifest)
        expected = dtype_for(manifest.vocab_size).name
    except (ValueError, TypeError) as error:
        raise IntegrityError(
            f"{source} is not the manifest of a token file ({error}); "
            "encode the text again"
        ) from error
    if manifest.format_version != FORMAT_VERSION:
        raise IntegrityError(
            f"{source} has format_version {manifest.format_version!r}, this version of "
            f"tiny_llm reads {FORMAT_VERSION}; encode the text again"
        )
    if manifest.dtype != expected:
        raise IntegrityError(
            f"{source} says dtype {manifest.dtype!r} where a vocab_size of "
            f"{manifest.vocab_size:,} takes {expected!r}; encode the text again"
        )
    return manifest


def open_tokens(path: str | os.PathLike[str]) -> npt.NDArray[Any]:
    """Map a token file into memory, read-only.

    Its size must be what the manifest says; `verify` checks the bytes as well. A
    .bin without a manifest is taken for uint16.

    Returns:
        Shape (N,), little-endian uint16 or uint32; pages are read when touched.

    Raises:
        InputError: No such file, or it is empty, or it is of another kind.
        IntegrityError: The file and its manifest disagree.
    """
    if not Path(path).is_file():
        raise InputError(
            f"{path}: no such token file; `dvc repro` makes those of the pipeline"
        )
    num_bytes = os.path.getsize(path)
    if manifest_path(path).is_file():
        manifest = read_manifest(path)
        dtype = DTYPES[manifest.dtype]
        _check_size(path, num_bytes, manifest)
    elif Path(path).suffix == ".bin":
        dtype = DTYPES["uint16"]
    else:
        raise InputError(
            f"{path} has no manifest and is not called NAME.bin; give a token file"
        )
    if num_bytes == 0 or num_bytes % dtype.itemsize:
        raise InputError(
            f"{path} holds {num_bytes:,} bytes, not a positive number of "
            f"{dtype.name} ids; encode the text again"
        )
    return np.memmap(path, dtype=dtype, mode="r")


def scan_documents(
    path: str | os.PathLike[str],
) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[np.int64]]]:
    """Read a token file block by block, with the places where its documents end.

    A document ends behind its separator, or with the file. White space after the last
    separator is no document of its own, which the manifest's count tells.

    Yields:
        The ids of a block, shape (n,), and where documents end in it, shape (k,),
        counted from the beginning of the file.

    Raises:
        InputError: The file or its manifest is missing.
        IntegrityError: The two disagree.
    """
    manifest = read_manifest(path)
    num_tokens = len(open_tokens(path))
    seen = num_ended = 0
    # Read, not mapped: pages of a map count as memory of the process.
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
    digest = hashlib.sha256()
    damaged = []
    with open(path, "rb") as file:
        _check_size(path, os.fstat(file.fileno()).st_size, manifest)
        for number, crc32 in enumerate(manifest.block_crc32):
            block = file.read(BLOCK_BYTES)
            digest.update(block)
            if zlib.crc32(block) != crc32:
                damaged.append(number)
    if digest.hexdigest() != manifest.sha256:
        where = ", ".join(
            f"block {number} (bytes {number * BLOCK_BYTES:,} to "
            f"{(number + 1) * BLOCK_BYTES:,})"
            for number in damaged[:5]
        )
        raise IntegrityError(
            f"{path}: sha256 is {digest.hexdigest()}, its manifest says "
            f"{manifest.sha256}; damaged: {where or 'the manifest'}; "
            "encode the text again"
        )
    return manifest


def _check_types(manifest: Manifest) -> None:
    for field in dataclasses.fields(manifest):
        value = getattr(manifest, field.name)
        kind = {"int": int, "str": str}.get(str(field.type), list)
        if type(value) is not kind:
            raise TypeError(f"{field.name} is {value!r}")


def check_tokenizer(
    path: str | os.PathLike[str], manifest: Manifest, tokenizer_sha256: str
) -> None:
    """Refuse ids that another tokenizer made.

    Raises:
        IntegrityError: The digests differ.
    """
    if manifest.tokenizer_sha256 != tokenizer_sha256:
        raise IntegrityError(
            f"{path} was made by the tokenizer with sha256 "
            f"{manifest.tokenizer_sha256[:12]}..., not by {tokenizer_sha256[:12]}...; "
            "use that tokenizer, or encode the text again"
        )


def _check_size(
    path: str | os.PathLike[str], num_bytes: int, manifest: Manifest
) -> None:
    expected = manifest.num_tokens * DTYPES[manifest.dtype].itemsize
    if num_bytes != expected:
        raise IntegrityError(
            f"{path} holds {num_bytes:,} bytes, its manifest says {expected:,} "
            f"({manifest.num_tokens:,} ids of {manifest.dtype}); encode the text again"
        )
