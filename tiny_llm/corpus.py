"""Text files as documents, read in chunks cut where no id can change.

A document ends at a separator. Text is bytes throughout: nothing is decoded,
so line endings, byte order marks and invalid UTF-8 come through unchanged.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from tiny_llm.checks import check_int
from tiny_llm.errors import ConfigError, InputError, ResourceError
from tiny_llm.filekind import HEAD_BYTES, check_is_text

SEPARATOR = b"<|endoftext|>"

_SEPARATOR = re.compile(re.escape(SEPARATOR))

# Larger chunks take more memory and are no faster (benchmarks/LOG.md).
CHUNK_BYTES = 1 << 19

# Equal as long as a file is neither written to nor replaced.
_IDENTITY = ("st_dev", "st_ino", "st_size", "st_mtime_ns")

# `read_chunks` holds text in memory until it can be cut; this is the limit. Encoding
# has no such limit (anytext.py).
MAX_UNCUT_BYTES = 256 << 20

# Whether text can be cut at a place depends on this many bytes before it and after it.
CUT_CONTEXT = 16
_BYTES_AFTER = 4

# Classes of characters in the GPT-2 pattern. Only characters that have had their class
# for long, in all versions of Unicode that engines use, get one of the last three.
_UNSURE, _SPACE, _VISIBLE, _OTHER, _NUMBER, _LETTER, _INVALID = range(7)
_RANGES = [
    (_OTHER, "00-08 0e-1b 21-2f 3a-40 5b-60 7b-7f a1-a9 ab-b1 b4 b6-b8 bb bf d7 f7"),
    (_NUMBER, "30-39 b2-b3 b9 bc-be 660-669 966-96f e50-e59 ff10-ff19"),
    (_LETTER, "41-5a 61-7a aa b5 ba c0-d6 d8-f6 f8-17f 3b1-3c9 410-44f 5d0-5ea"),
    (_LETTER, "621-63a 641-64a 905-939 e01-e30 e32-e33 e40-e46"),
    (_OTHER, "64b-652 93e-94d e31 e34-e3a e3f e47-e4f"),
    (_LETTER, "3041-3096 30a1-30fa 3400-4db5 4e00-9fa5 ac00-d7a3 ff21-ff3a ff41-ff5a"),
    (_OTHER, "2010-2027 2030-203e 3001-3003 3008-3011 3014-301b ff01-ff0f ff1a-ff20"),
    (_OTHER, "1f300-1f320 1f400-1f43e 1f600-1f640"),
    (_SPACE, "09-0d 20 a0 1680 2000-200a 2028-2029 202f 205f 3000"),
    (_UNSURE, "1c-1f 80-9f 180e 200b-200f 2060-206f feff"),
    (_INVALID, "dc80-dcff"),  # As decoding with `surrogateescape` marks such bytes.
]


def _fill_classes() -> npt.NDArray[np.uint8]:
    classes = np.full(0x110000, _VISIBLE, np.uint8)
    for kind, ranges in _RANGES:
        for span in ranges.split():
            first, _, last = span.partition("-")
            classes[int(first, 16) : int(last or first, 16) + 1] = kind
    return classes


_CLASSES = _fill_classes()

_BLANK = re.compile(rb"(?:\s|" + re.escape(SEPARATOR) + rb")*")


def find_cut(text: bytes, start: int = 0) -> int:
    """Find the last place where `text` can be cut without changing any id.

    Args:
        text: The beginning of a longer text.
        start: The text before it, on its own, has no such place.

    Returns:
        The length of the piece before the cut. The cut is after the last separator
        or, if there is none, before the last white space that follows a visible ASCII
        character or, if there is none either, at the last of the places that
        `find_first_cut` knows. 0 if there is no place at all.

    >>> find_cut(b"The end.<|endoftext|>Once upon")
    21
    >>> find_cut(b"Once upon a ti")
    11
    >>> find_cut(b"Once,upon")
    5
    >>> find_cut(b"Once")
    0
    """
    place = text.rfind(SEPARATOR, max(0, start - len(SEPARATOR) + 1))
    if place >= 0:
        return place + len(SEPARATOR)
    for find, first, stop in (
        (_places_before_space, max(1, start), len(text)),
        (_safe_places, max(1, start - _BYTES_AFTER + 1), len(text) - _BYTES_AFTER + 1),
    ):
        size = 1 << 10
        while first < stop:
            begin = max(first, stop - size)
            places = find(text, begin, stop)
            if len(places):
                return int(places[-1])
            stop, size = begin, min(2 * size, 1 << 16)
    return 0


def find_first_cut(text: bytes, start: int) -> int | None:
    """Find the first place at or after `start` where no cut changes any id.

    It depends only on the text near the place, wherever `text` begins and ends: the
    result is the same or, if `text` ends too early, None.

    Args:
        text: Part of a longer text, with at least `CUT_CONTEXT` bytes before `start`
            if it has that many.
        start: Where to start searching.

    Returns:
        The place, 0 for 0. It is after a separator; between a visible character and
        white space; beside a byte that is not valid UTF-8; or between a letter, a
        number and a character that is neither. None if `text` has no such place with
        four bytes after it.

    >>> find_first_cut(b"Once upon a time", 5)
    9
    """
    if start == 0:
        return 0
    stop, size = len(text) - _BYTES_AFTER + 1, 64
    while start < stop:
        end = min(stop, start + size)
        places = _safe_places(text, start, end)
        if len(places):
            return int(places[0])
        start, size = end, min(2 * size, 1 << 16)
    return None


def _places_before_space(text: bytes, begin: int, end: int) -> npt.NDArray[np.int64]:
    """Find places between visible ASCII and ASCII white space, in [begin, end)."""
    part = np.frombuffer(text, np.uint8, end - begin + 1, begin - 1)
    before, after = part[:-1], part[1:]
    is_space = (after == 0x20) | (after == 0x0A) | (after == 0x0D) | (after == 0x09)
    return np.flatnonzero((before > 0x20) & (before < 0x7F) & is_space) + begin


def _safe_places(text: bytes, begin: int, end: int) -> npt.NDArray[np.int64]:
    """Find the places of `find_first_cut` in [begin, end), all of them sorted.

    No pretoken of the GPT-2 pattern holds white space after another character or two
    of letters, numbers and other characters, but for contractions such as 's. Where a
    pretoken ends, the text after it is split the same way without it. So all of these
    places are safe (tests/test_corpus.py sweeps every offset).
    """
    start = max(0, begin - CUT_CONTEXT)
    part = text[start : end + _BYTES_AFTER]
    chars: npt.NDArray[np.unsignedinteger] = np.frombuffer(part, np.uint8)
    lengths = np.ones(len(part), np.int64)
    if not part.isascii():
        decoded = part.decode("utf-8", "surrogateescape")
        chars = np.frombuffer(decoded.encode("utf-32-le", "surrogatepass"), "<u4")
        lengths = 1 + (chars > 0x7F) + (chars > 0x7FF) + (chars > 0xFFFF)
    kinds = _CLASSES[chars]
    if kinds.min() == kinds.max() != _INVALID:
        return np.empty(0, np.int64)  # A long run is searched fast.
    lengths[kinds == _INVALID] = 1
    left, right = kinds[:-1], kinds[1:]
    is_safe = (np.minimum(left, right) >= _OTHER) & (left != right)
    for pair in ("'", None), ("|", "e"), ("t", "|"):  # Contractions and separators.
        is_pair = chars[:-1] == ord(pair[0])
        is_pair &= right == _LETTER if pair[1] is None else chars[1:] == ord(pair[1])
        is_safe &= ~is_pair
    is_safe |= (right == _SPACE) & (left >= _VISIBLE)
    is_safe |= (left == _INVALID) | (right == _INVALID)
    places = (start + np.cumsum(lengths)[:-1])[is_safe]
    separators = [
        match.end()
        for match in _SEPARATOR.finditer(text, max(0, begin - len(SEPARATOR)), end)
    ]
    places = np.union1d(places, np.array(separators, np.int64))
    return places[(places >= begin) & (places < end)]


def find_next_cut(file: IO[bytes], offset: int) -> int:
    """Find the first place from an offset on where a file can be cut.

    The last search is remembered: if a file has no such place, each of its ranges
    would search the rest of it again.

    Returns:
        The place, or the size of the file if there is none. It does not depend on
        where reading began, so ranges of a file that are found independently tile it.
    """
    state = os.fstat(file.fileno())
    search = _last_search(tuple(getattr(state, name) for name in _IDENTITY))
    if not search.offset <= offset <= search.place:
        search.place = min(_search_file(file, offset), state.st_size)
        search.offset = offset
    return search.place


@dataclasses.dataclass
class _Search:
    """There is no cut in [offset, place)."""

    offset: int = 0
    place: int = 0


@functools.lru_cache(maxsize=1)
def _last_search(_identity: tuple[int, ...]) -> _Search:
    return _Search()


def _search_file(file: IO[bytes], offset: int) -> int:
    begin = max(0, offset - CUT_CONTEXT)
    file.seek(begin)
    text, start, num_wanted = b"", offset - begin, 1 << 12
    while block := file.read(num_wanted):
        text += block
        if (place := find_first_cut(text, start)) is not None:
            return begin + place
        start = max(start, len(text) - _BYTES_AFTER + 1)
        num_dropped = max(0, start - CUT_CONTEXT)
        text, begin = text[num_dropped:], begin + num_dropped
        start -= num_dropped
        num_wanted = min(2 * num_wanted, 1 << 20)
    return begin + len(text)


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
        del block
        if cut:
            yield text[:cut]
        rest = text[cut:]
        if len(rest) > MAX_UNCUT_BYTES:
            raise _uncut(getattr(file, "name", "text"), len(rest), file.tell())
    if rest:
        yield rest


def _uncut(name: str, num_bytes: int, offset: int) -> ResourceError:
    return ResourceError(
        f"{name}: {num_bytes:,} bytes without a word end or a separator before offset "
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
