"""Text files as documents, read in chunks cut where no id can change.

A document ends at a separator. Text is bytes throughout: nothing is decoded,
so line endings, byte order marks and invalid UTF-8 come through unchanged.
"""

from __future__ import annotations

import contextlib
import io
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

# Equal as long as a file is neither written to nor replaced.
_IDENTITY = ("st_dev", "st_ino", "st_size", "st_mtime_ns")

# Text is held in memory until it can be cut; this is the limit.
MAX_UNCUT_BYTES = 256 << 20

# In the GPT-2 pattern, a visible ASCII character before ASCII white space always ends
# a pretoken, and the text after it is split the same way without it. So a document
# longer than a chunk can be cut there (tests/test_corpus.py sweeps every offset).
_BLANK = re.compile(rb"(?:\s|" + re.escape(SEPARATOR) + rb")*")
# Recognizing a place takes at most this many bytes before it.
_CONTEXT_BYTES = 16
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


def find_next_cut(file: IO[bytes], offset: int) -> int:
    """Find the first place from an offset on where a file can be cut.

    Returns:
        The place, or the size of the file if there is none. It does not depend on
        where reading began, so ranges of a file that are found independently tile it.

    Raises:
        ResourceError: More than `MAX_UNCUT_BYTES` without a place to cut.
    """
    if offset == 0:
        return 0
    begin = max(0, offset - _CONTEXT_BYTES)
    file.seek(begin)
    text, num_wanted = b"", 1 << 16
    while block := file.read(num_wanted):
        searched = max(offset - begin, len(text) - _CONTEXT_BYTES)
        text += block
        if (place := find_first_cut(text, searched)) is not None:
            return begin + place
        if len(text) > MAX_UNCUT_BYTES:
            raise _uncut(getattr(file, "name", "text"), len(text), begin + len(text))
        num_wanted = len(text)
    return begin + len(text)


def find_first_cut(text: bytes, start: int) -> int | None:
    """Find the first place at or after `start` where `text` can be cut.

    Returns:
        The length of the piece before the cut, or None if there is no place, or none
        that can be known without the bytes that follow.
    """
    places = []
    if (place := text.find(SEPARATOR, max(0, start - len(SEPARATOR)))) >= 0:
        places.append(place + len(SEPARATOR))
    if match := _SAFE_CUT.search(text, max(0, start - 1)):
        places.append(match.end())
    return min(places, default=None)


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
    after = os.stat(path)  # Of the path: the file may have been replaced.
    if any(getattr(before, name) != getattr(after, name) for name in _IDENTITY):
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
            raise _uncut(getattr(file, "name", "text"), len(rest), file.tell())
    if rest:
        yield rest


def _uncut(name: str, num_bytes: int, offset: int) -> ResourceError:
    return ResourceError(
        f"{name}: {num_bytes:,} bytes without white space or a separator before offset "
        f"{offset:,}; the limit is {MAX_UNCUT_BYTES:,}, so add separators "
        f"({SEPARATOR.decode()})"
    )


def chunks_of(text: bytes | Path) -> Iterator[bytes]:
    """Cut bytes in memory, or the content of a file, into chunks.

    Raises:
        ResourceError: More than `MAX_UNCUT_BYTES` without a place to cut.
    """
    with open(text, "rb") if isinstance(text, Path) else io.BytesIO(text) as file:
        yield from cut_chunks(file)


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
    """Convert `sample_mb` MiB to bytes, at least 1; "all" is more than any file has.

    Raises:
        ConfigError: `sample_mb` is not a number above 0 or "all".
    """
    if sample_mb == "all":
        return 1 << 62
    if (
        isinstance(sample_mb, bool)
        or not isinstance(sample_mb, int | float)
        or not 0 < sample_mb < 1 << 40
    ):
        raise ConfigError(
            f"sample_mb is {sample_mb!r}; give a number of MiB above 0, or all"
        )
    return max(1, int(sample_mb * (1 << 20)))


def has_text(text: bytes) -> bool:
    """Whether `text` holds more than separators and white space."""
    blank = _BLANK.match(text)
    return blank is None or blank.end() < len(text)


def no_document(path: str | os.PathLike[str], num_bytes: int) -> InputError:
    """Return the error for `num_bytes` bytes of separators and white space."""
    return InputError(
        f"{path} holds no document, only {num_bytes:,} bytes of separators and white "
        "space; give a file with text in it"
    )
