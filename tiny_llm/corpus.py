"""Text files as documents, read in chunks cut where no id can change.

A document ends at a separator. Text is bytes throughout: nothing is decoded,
so line endings, byte order marks and invalid UTF-8 come through unchanged.
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
from tiny_llm.filekind import HEAD_BYTES, check_is_text

SEPARATOR = b"<|endoftext|>"

# Larger chunks take more memory and are no faster (benchmarks/LOG.md).
CHUNK_BYTES = 1 << 19

# Text is held in memory until it can be cut; this is the limit.
MAX_UNCUT_BYTES = 256 << 20

# In the GPT-2 pattern, a visible ASCII character before ASCII white space always ends
# a pretoken, and the text after it is split the same way without it. So a document
# longer than a chunk can be cut there (tests/test_corpus.py sweeps every offset).
_SAFE_CUT = re.compile(rb"[!-~](?=[ \t\n\r])")


def find_cut(text: bytes, start: int = 0) -> int:
    """Find the last place where `text` can be cut without changing any id.

    Args:
        text: The beginning of a longer text.
        start: Where to start searching; the text before it has no such place.

    Returns:
        The length of the piece before the cut. The cut is after the last separator
        or, if there is none, before the last white space that follows a visible ASCII
        character. 0 if there is neither.

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
        InputError: The file is missing, is not plain text (`check_is_text`), or
            changed while it was open.
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file; give the path of a text file")
    with open(path, "rb") as file:
        before = os.fstat(file.fileno())
        # Not file.read: its buffering would move the descriptor, which fetch copies
        # from, past the position of the file object.
        check_is_text(path, os.read(file.fileno(), HEAD_BYTES))
        os.lseek(file.fileno(), 0, os.SEEK_SET)
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
    """Read a file in chunks that can be encoded one by one.

    Args:
        path: The text file; never held in memory as a whole.
        chunk_bytes: How many bytes to read at a time. Ids do not depend on it.

    Yields:
        Consecutive chunks; joined, they are the bytes of the file.

    Raises:
        ConfigError: `chunk_bytes` is below 1.
        InputError: The file is missing, is not plain text, or changed while it was
            read.
        ResourceError: More than `MAX_UNCUT_BYTES` without a place to cut.
    """
    with open_text(path) as file:
        yield from cut_chunks(file, chunk_bytes)


def cut_chunks(file: IO[bytes], chunk_bytes: int = CHUNK_BYTES) -> Iterator[bytes]:
    """Like `read_chunks`, but from an open file or an io.BytesIO.

    Raises:
        ConfigError: `chunk_bytes` is below 1.
        ResourceError: More than `MAX_UNCUT_BYTES` without a place to cut.
    """
    chunk_bytes = check_int("chunk_bytes", chunk_bytes)
    rest = b""
    # Doubling the read size while nothing can be cut keeps the work linear.
    while block := file.read(max(chunk_bytes, len(rest))):
        text = rest + block
        cut = find_cut(text, len(rest))
        if cut:
            yield text[:cut]
        rest = text[cut:]
        if len(rest) > MAX_UNCUT_BYTES:
            raise ResourceError(
                f"{getattr(file, 'name', 'text')}: {len(rest):,} bytes without white "
                f"space or a separator before offset {file.tell():,}; the limit is "
                f"{MAX_UNCUT_BYTES:,}, so add separators ({SEPARATOR.decode()})"
            )
    if rest:
        yield rest


def read_sample(path: str | os.PathLike[str], num_bytes: int) -> bytes:
    """Read a sample from the beginning of a file: as many whole documents as fit.

    Args:
        path: The text file.
        num_bytes: The maximum size of the sample.

    Returns:
        The whole file if it is no longer than `num_bytes`, else a prefix of it that
        ends with a separator. If there is no separator in it, the first document is
        cut before white space, or at `num_bytes` if there is none either.

    Raises:
        InputError: The file is missing, is not plain text, holds no document, or
            changed while it was read.
    """
    with open_text(path) as file:
        file_bytes = os.fstat(file.fileno()).st_size
        # `read` allocates as much as it is asked for, even for a smaller file.
        sample = file.read(min(num_bytes, file_bytes))
        if len(sample) < file_bytes:
            sample = sample[: find_cut(sample) or len(sample)]
    if not has_text(sample):
        raise no_document(path, len(sample))
    return sample


def require_text(path: str | os.PathLike[str]) -> None:
    """Refuse a file without a document; reads no further than the first one.

    Raises:
        InputError: The file is missing, is not plain text, or holds no document.
        ResourceError: More than `MAX_UNCUT_BYTES` without a place to cut.
    """
    if not any(map(has_text, read_chunks(path))):
        raise no_document(path, os.path.getsize(path))


def sample_bytes(sample_mb: object) -> int:
    """Convert `sample_mb` MiB to bytes, at least 1.

    Raises:
        ConfigError: `sample_mb` is not a number above 0.
    """
    if (
        isinstance(sample_mb, bool)
        or not isinstance(sample_mb, int | float)
        or not 0 < sample_mb < 1 << 40
    ):
        raise ConfigError(f"sample_mb is {sample_mb!r}; give a number of MiB above 0")
    return max(1, int(sample_mb * (1 << 20)))


def has_text(text: bytes) -> bool:
    """Whether `text` holds more than separators and white space."""
    return bool(text.replace(SEPARATOR, b"").strip())


def no_document(path: str | os.PathLike[str], num_bytes: int) -> InputError:
    """Return the error for `num_bytes` bytes of separators and white space."""
    return InputError(
        f"{path} holds no document, only {num_bytes:,} bytes of separators and white "
        "space; give a file with text in it"
    )
