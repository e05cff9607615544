"""gigatoken, made silent, bounded in memory, and given valid UTF-8 only.

Learns merges, and encodes and decodes with them; `tokenize` is built on it, and nothing
else knows that gigatoken (MIT, Marcel Rød) does the work.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import sys
import threading
from collections.abc import Iterator

import gigatoken
import numpy as np
import numpy.typing as npt
import psutil

from tiny_llm.corpus import SEPARATOR

Merge = tuple[bytes, bytes]

# gigatoken remembers every distinct pretoken it has seen, without limit: on text
# of ever new words that is 45 bytes of memory for each byte of text. So the memory of
# the process is looked at now and then, and gigatoken is built anew (30 ms) when it
# has grown by more than this since it was built.
_CACHE_BYTES = 24 << 20
_CACHE_CHECK_BYTES = 1 << 19


def learn_merges(sample: bytes, num_merges: int) -> list[Merge]:
    """Learn up to `num_merges` merges; the last ones may join nothing.

    Once no pair is left, gigatoken goes on with merges that occur nowhere.
    """
    if num_merges == 0:
        return []
    if not is_utf8(sample):
        sample = SEPARATOR.join(split_at_invalid(sample)[::2])
    with _silenced():
        _, merges = gigatoken.train_bpe(
            sample, 257 + num_merges, [SEPARATOR.decode()], separator=SEPARATOR
        )
    # A token that is made a second time marks the end of the merges that join
    # something: in BPE a token has one way to come about.
    known: set[bytes] = set()
    for rank, (left, right) in enumerate(merges):
        if left + right in known:
            return merges[:rank]
        known.add(left + right)
    return merges


class Engine(threading.local):
    """gigatoken, one for each thread: one shared by two threads is slower than one."""

    def __init__(self, file_bytes: bytes) -> None:
        self._file_bytes = file_bytes
        self._tokenizer: gigatoken.Tokenizer | None = None

    def _build(self) -> gigatoken.Tokenizer:
        self._text_bytes = 0
        self._base_bytes = _resident_bytes()
        self._tokenizer = gigatoken.Tokenizer.from_json(self._file_bytes)
        return self._tokenizer

    def encode(self, data: bytes) -> npt.NDArray[np.uint32]:
        """Ids of any bytes; what is not UTF-8 becomes ids of its own."""
        if is_utf8(data):
            return self._encode_utf8(data)
        pieces = split_at_invalid(data)
        return np.concatenate([self._encode_utf8(piece) for piece in pieces])

    def decode(self, ids: npt.NDArray[np.uint32]) -> bytes:
        """Bytes of ids that are known to be in the vocab."""
        return (self._tokenizer or self._build()).decode(ids)

    def _encode_utf8(self, data: bytes) -> npt.NDArray[np.uint32]:
        tokenizer = self._tokenizer or self._build()
        # Unlike gigatoken's `encode`, its batch calls release the GIL, and this one
        # gives a plain array: two threads take half the time of one.
        rows, _ = tokenizer.encode_batch_padded([data], 0, parallel=False)
        ids: npt.NDArray[np.uint32] = rows[0]
        self._text_bytes += len(data)
        if self._text_bytes >= _CACHE_CHECK_BYTES:
            self._text_bytes = 0
            resident = _resident_bytes()
            # Another thread's engine may have gone since this one was built.
            self._base_bytes = min(self._base_bytes, resident)
            if resident - self._base_bytes > _CACHE_BYTES:
                self._tokenizer = None
                _return_freed_memory()
        return ids


def _resident_bytes() -> int:
    resident: int = psutil.Process().memory_info().rss
    return resident


def _return_freed_memory() -> None:
    """Make glibc give back what it keeps of freed small pieces; elsewhere nothing."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


# gigatoken splits invalid UTF-8 differently from one place in memory to the next, so
# that ids would depend on how a file is cut: it is given valid text only.
def is_utf8(data: bytes) -> bool:
    """Whether bytes are valid UTF-8; several times faster than decoding mostly ASCII.

    Only the words of 8 bytes that are not ASCII are decoded, parted by spaces where
    they do not lie side by side.
    """
    if data.isascii():
        return True
    words = np.frombuffer(data + b" " * (-len(data) % 8), dtype=np.uint64)
    places = np.flatnonzero(words & 0x8080808080808080)
    gaps = np.flatnonzero(np.diff(places) > 1) + 1
    try:
        np.insert(words[places], gaps, 0x2020202020202020).tobytes().decode()
    except UnicodeDecodeError:
        return False
    return True


def split_at_invalid(data: bytes) -> list[bytes]:
    """Cut out the bytes that are not UTF-8: valid and invalid pieces in turn.

    >>> [list(piece) for piece in split_at_invalid(bytes([0x61, 0x62, 0xFF, 0x63]))]
    [[97, 98], [255], [99]]
    """
    text = data.decode("utf-8", "surrogateescape")
    pieces = re.split("([\udc80-\udcff])", text)
    return [piece.encode("utf-8", "surrogateescape") for piece in pieces]


_silence_lock = threading.Lock()


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Send what native code prints to nowhere: gigatoken prints while it trains."""
    with _silence_lock, open(os.devnull, "wb") as nowhere:
        sys.stdout.flush()
        sys.stderr.flush()
        saved = [(number, os.dup(number)) for number in (1, 2)]
        try:
            for number, _ in saved:
                os.dup2(nowhere.fileno(), number)
            yield
        finally:
            for number, copy in saved:
                os.dup2(copy, number)
                os.close(copy)
