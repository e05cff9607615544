"""Text files as documents: chunks cut where no id can change.

A document ends at a separator. Text is bytes throughout: nothing is decoded,
so line ends, byte order marks and invalid UTF-8 come through unchanged.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from tiny_llm.checks import check_int
from tiny_llm.errors import ConfigError, InputError, ResourceError

SEPARATOR = b"<|endoftext|>"

# Larger chunks take more memory and are no faster (benchmarks/LOG.md).
CHUNK_BYTES = 1 << 19

# The longest piece of text without a place to cut it, held in memory at once.
MAX_UNCUT_BYTES = 256 << 20

# A visible ASCII character before ASCII white space always ends a pretoken of the
# GPT-2 pattern, and what follows is split the same without it: so a document
# longer than a chunk may be cut there (tests/test_corpus.py sweeps every offset).
_SAFE_CUT = re.compile(rb"[!-~](?=[ \t\n\r])")


def find_cut(text: bytes, start: int = 0) -> int:
    """The last place where `text` can be cut without changing any id.

    Args:
        text: Text that goes on after its end.
        start: Where to begin to look; nothing before it can be cut.

    Returns:
        The length of the piece before the cut: after the last separator if there
        is one, else before the last white space that follows a visible ASCII
        character, else 0.

    >>> find_cut(b"The end.<|endoftext|>Once upon")
    21
    >>> find_cut(b"Once upon a ti")
    11
    >>> find_cut(b"Once")
    0
    """
    place = text.rfind(SEPARATOR, max(0, start - len(SEPARATOR) + 1))
    if place >= 0:
        return place + len(SEPARATOR)
    last = 0
    for match in _SAFE_CUT.finditer(text, max(0, start - 1)):
        last = match.end()
    return last


@contextlib.contextmanager
def open_text(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Open a text file for reading.

    Raises:
        InputError: The file is missing, or it changed while it was open.
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file; give the path of a text file")
    with open(path, "rb") as file:
        before = os.fstat(file.fileno())
        yield file
        after = os.fstat(file.fileno())
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise InputError(
            f"{path} changed while it was read ({before.st_size:,} bytes at first, "
            f"{after.st_size:,} now); run again when nothing writes to it"
        )


def read_chunks(
    path: str | os.PathLike[str], chunk_bytes: int = CHUNK_BYTES
) -> Iterator[bytes]:
    """Read a file in pieces that can be encoded one by one.

    Args:
        path: The text file; never held in memory as a whole.
        chunk_bytes: How many bytes to read at a time. Ids do not depend on it.

    Yields:
        Consecutive pieces; joined they are the file's bytes.

    Raises:
        InputError: The file is missing, or it changed while it was read.
        ResourceError: More than `MAX_UNCUT_BYTES` without a place to cut.
    """
    with open_text(path) as file:
        yield from cut_chunks(file, chunk_bytes)


def cut_chunks(file: IO[bytes], chunk_bytes: int = CHUNK_BYTES) -> Iterator[bytes]:
    """Like `read_chunks`, from an open file, or from memory by way of io.BytesIO.

    Raises:
        ConfigError: `chunk_bytes` is below 1.
        ResourceError: More than `MAX_UNCUT_BYTES` without a place to cut.
    """
    chunk_bytes = check_int("chunk_bytes", chunk_bytes)
    rest = b""
    # Reading more while nothing can be cut keeps the work linear in the text.
    while block := file.read(max(chunk_bytes, len(rest))):
        text = rest + block
        cut = find_cut(text, len(rest))
        if cut:
            yield text[:cut]
        rest = text[cut:]
        if len(rest) > MAX_UNCUT_BYTES:
            raise ResourceError(
                f"{getattr(file, 'name', 'text')}: {len(rest):,} bytes without white "
                f"space or a separator end at offset {file.tell():,}; at most "
                f"{MAX_UNCUT_BYTES:,} fit in memory, so add separators "
                f"({SEPARATOR.decode()})"
            )
    if rest:
        yield rest


def read_sample(path: str | os.PathLike[str], num_bytes: int) -> bytes:
    """Read the first documents of a file.

    Args:
        path: The text file.
        num_bytes: How much to read; cut back to the last whole document. A
            first document that is longer is read to its end.

    Returns:
        The whole file if it is no longer than `num_bytes`, else a prefix of it
        that ends with a separator (or with the file).

    Raises:
        InputError: The file is missing, holds no document, or changed meanwhile.
    """
    with open_text(path) as file:
        sample = file.read(num_bytes)
        if len(sample) == num_bytes and file.read(1):
            file.seek(num_bytes)
            place = sample.rfind(SEPARATOR)
            sample = (
                sample[: place + len(SEPARATOR)]
                if place >= 0
                else _first_document(sample, file)
            )
    if not has_text(sample):
        raise InputError(
            f"{path}: the first {len(sample):,} bytes hold no document, only "
            "separators and white space; give a file with text in it"
        )
    return sample


def sample_bytes(sample_mb: object) -> int:
    """How many bytes `sample_mb` MiB are, at least one.

    Raises:
        ConfigError: It is not a number above 0.
    """
    if (
        isinstance(sample_mb, bool)
        or not isinstance(sample_mb, int | float)
        or not 0 < sample_mb < 1 << 40
    ):
        raise ConfigError(f"sample_mb is {sample_mb!r}; give a number of MiB above 0")
    return max(1, int(sample_mb * (1 << 20)))


def has_text(text: bytes) -> bool:
    """Whether a document in `text` is more than white space."""
    return bool(text.replace(SEPARATOR, b"").strip())


def _first_document(begun: bytes, file: IO[bytes]) -> bytes:
    """Read on from `begun` to the end of the first document."""
    text = bytearray(begun)
    while block := file.read(CHUNK_BYTES):
        searched = max(0, len(text) - len(SEPARATOR) + 1)
        text += block
        place = text.find(SEPARATOR, searched)
        if place >= 0:
            return bytes(text[: place + len(SEPARATOR)])
    return bytes(text)
