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

_NUM_OTHERS = 256 + 1  # bytes and the separator

# gigatoken 0.10 remembers every distinct pretoken it has seen, without limit: on text
# of ever new words 10 to 16 bytes of memory for each byte of text. So the memory of the
# process is looked at now and then, and gigatoken is built anew (30 ms) when it has
# grown by more than this since it was built.
_CACHE_BYTES = 24 << 20
_CACHE_CHECK_BYTES = 1 << 19


def learn_merges(sample: bytes, num_merges: int) -> list[Merge]:
    """Learn merges from a sample of text.

    Args:
        sample: Documents, parted by separators.
        num_merges: How many are wanted.

    Returns:
        Pairs of token bytes in order of rank, at most `num_merges`. Once no pair is
        left, gigatoken goes on with merges that occur nowhere in the sample.
    """
    if num_merges == 0:
        return []
    if not is_utf8(sample):
        sample = SEPARATOR.join(split_at_invalid(sample)[::2])
    with _silenced():
        _, merges = gigatoken.train_bpe(
            sample, _NUM_OTHERS + num_merges, [SEPARATOR.decode()], separator=SEPARATOR
        )
    # A token that is made a second time marks the end of the merges that join
    # something: in BPE a token has one way to come about.
    known: set[bytes] = set()
    for rank, (left, right) in enumerate(merges):
        if left + right in known:
            return merges[:rank]
        known.add(left + right)
    return merges


class Engine:
    """Encodes and decodes in any number of threads at once.

    One gigatoken shared by two threads is slower than one thread, so each call takes
    one that is idle, or builds one (30 ms).
    """

    def __init__(self, file_bytes: bytes) -> None:
        self._file_bytes = file_bytes
        self._idle: list[_Worker] = []

    def encode(self, data: bytes) -> tuple[npt.NDArray[np.uint32], int]:
        """Ids of any bytes, shape (n,), and how many bytes are not valid UTF-8.

        Each of those becomes its own id.
        """
        with self._borrow() as worker:
            if is_utf8(data):
                return worker.encode(data), 0
            pieces = split_at_invalid(data)
            return np.concatenate([worker.encode(p) for p in pieces]), len(pieces) // 2

    def decode(self, ids: npt.NDArray[np.uint32]) -> bytes:
        """Bytes of ids, shape (n,), that are known to be in the vocab."""
        with self._borrow() as worker:
            return worker.tokenizer.decode(ids)

    @contextlib.contextmanager
    def _borrow(self) -> Iterator[_Worker]:
        try:
            worker = self._idle.pop()
        except IndexError:
            worker = _Worker(self._file_bytes)
        yield worker
        if worker.is_small():
            self._idle.append(worker)
        else:
            del worker
            _return_freed_memory()


class _Worker:
    """One gigatoken, and how much memory the process had before it."""

    def __init__(self, file_bytes: bytes) -> None:
        self._process = psutil.Process()
        self._base_bytes: int = self._process.memory_info().rss
        self._text_bytes = 0
        self.tokenizer = gigatoken.Tokenizer.from_json(file_bytes)

    def encode(self, data: bytes) -> npt.NDArray[np.uint32]:
        # Unlike gigatoken's `encode`, its batch calls release the GIL, so that threads
        # help (benchmarks/LOG.md). This one gives a plain array, and a BytesSource
        # in place of a list spares the import of awkward (0.3 s, 25 MB).
        source = gigatoken.BytesSource(data)
        rows, _ = self.tokenizer.encode_batch_padded(source, 0, parallel=False)
        ids: npt.NDArray[np.uint32] = rows.reshape(-1)
        self._text_bytes += len(data)
        return ids

    def is_small(self) -> bool:
        if self._text_bytes < _CACHE_CHECK_BYTES:
            return True
        self._text_bytes = 0
        resident: int = self._process.memory_info().rss
        # Another worker may have gone since this one was built.
        self._base_bytes = min(self._base_bytes, resident)
        return resident - self._base_bytes <= _CACHE_BYTES


def _return_freed_memory() -> None:
    """Make glibc give back what it keeps of freed small pieces; elsewhere nothing."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


# gigatoken splits invalid UTF-8 differently from one place in memory to the next, so
# that ids would depend on how a file is cut: it is given valid text only.
def is_utf8(data: bytes) -> bool:
    """Whether bytes are valid UTF-8; three times as fast as decoding mostly ASCII.

    Pure ASCII blocks are left out: for what stands around them, a space does as well.
    """
    if data.isascii():
        return True
    blocks = (data[i : i + 4096] for i in range(0, len(data), 4096))
    try:
        b"".join(b" " if block.isascii() else block for block in blocks).decode()
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
    """Send what native code prints to nowhere: gigatoken prints while it trains.

    For that while the whole process is silent, other threads too.
    """
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
