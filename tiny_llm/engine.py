"""gigatoken, silenced, bounded in memory, and fed only valid UTF-8.

Learns merges, and encodes and decodes with them. `tokenize` is built on it; no other
module knows that gigatoken (MIT, Marcel Rød) does the work.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import sys
import threading
from collections.abc import Callable, Iterator

import gigatoken
import numpy as np
import numpy.typing as npt
import psutil

from tiny_llm.anytext import IdSink, Sink, encode_any, is_utf8, separate_invalid
from tiny_llm.corpus import SEPARATOR
from tiny_llm.tokenizer_json import FIRST_MERGE_ID, Merge, token_lengths

# gigatoken 0.10 caches every distinct pretoken without limit: 10 to 16 bytes of memory
# per byte of text if every word is new. So the memory of the process is sampled
# periodically, and a gigatoken tokenizer is replaced (30 ms) once the process has grown
# by more than this since it was built. With half of that, ordinary text replaces them
# over and over and takes twice as long (benchmarks/LOG.md).
# TODO(gigatoken): the release after 0.10.0 has `set_max_cache_bytes`. It replaces the
# sampling, `_return_freed_memory` and the dependency on psutil.
_CACHE_BYTES = 48 << 20
_CACHE_CHECK_BYTES = 1 << 19


def learn_merges(sample: bytes, num_merges: int) -> list[Merge]:
    """Learn merges from a sample of text.

    Args:
        sample: Documents, with separators between them.
        num_merges: The number of merges wanted.

    Returns:
        At most `num_merges` pairs of token bytes in order of rank. When the sample
        runs out of pairs, gigatoken appends merges that occur nowhere in it.
    """
    if num_merges == 0:
        return []
    if not is_utf8(sample):
        sample = separate_invalid(sample)
    with _silenced():
        _, merges = gigatoken.train_bpe(
            sample,
            FIRST_MERGE_ID + num_merges,
            [SEPARATOR.decode()],
            separator=SEPARATOR,
        )
    # In BPE, exactly one merge makes each token. Once a token is made a second time,
    # the merges from there on join nothing.
    known: set[bytes] = set()
    for rank, (left, right) in enumerate(merges):
        if left + right in known:
            return merges[:rank]
        known.add(left + right)
    return merges


class Engine:
    """Encodes and decodes; several threads may call it at once.

    Two threads that share one gigatoken tokenizer are slower than one thread, so each
    call takes an idle tokenizer or builds a new one (30 ms).
    """

    def __init__(self, file_bytes: bytes) -> None:
        self._file_bytes = file_bytes
        self._idle: list[_Worker] = []

    def encode(
        self, data: bytes, dtype: npt.DTypeLike = np.uint32
    ) -> tuple[npt.NDArray[np.unsignedinteger], int]:
        """Encode any bytes; each byte that is not UTF-8 becomes its own id.

        Memory is bounded, apart from the ids, for text of any length and kind.

        Args:
            data: The text.
            dtype: Of the ids; must be able to hold all of them.

        Returns:
            Ids, shape (number of tokens,), and the number of bytes that are not UTF-8.
        """
        sink = IdSink(len(data), dtype)
        self.encode_to(sink, lambda begin, end: data[begin:end], len(data))
        return sink.ids, sink.num_invalid

    def encode_to(
        self, sink: Sink, read: Callable[[int, int], bytes], num_bytes: int
    ) -> None:
        """Encode a text that need not be in memory; see `encode_any`."""
        # Where gigatoken splits invalid UTF-8 depends on its address in memory, so ids
        # would depend on how a file is cut. That is why it only gets valid text.
        encode_any(
            self._encode_valid, read, num_bytes, lambda: self._token_lengths, sink
        )

    def _encode_valid(self, data: bytes) -> npt.NDArray[np.uint32]:
        worker = self._take()
        ids = worker.encode(data)
        if worker.is_small():
            self._idle.append(worker)
        else:
            del worker  # The last reference; only freed memory can be returned.
            _return_freed_memory()
        return ids

    @functools.cached_property
    def _token_lengths(self) -> npt.NDArray[np.int64]:
        return token_lengths(self._file_bytes)

    def decode(self, ids: npt.NDArray[np.uint32]) -> bytes:
        """Decode ids, shape (n,), which must all be in the vocab."""
        worker = self._take()
        data: bytes = worker.tokenizer.decode(ids)
        self._idle.append(worker)
        return data

    def _take(self) -> _Worker:
        try:
            return self._idle.pop()
        except IndexError:
            return _Worker(self._file_bytes)


class _Worker:
    """A gigatoken tokenizer, and the memory of the process before it was built."""

    def __init__(self, file_bytes: bytes) -> None:
        self._process = psutil.Process()
        self._base_bytes: int = self._process.memory_info().rss
        self._text_bytes = 0
        self.tokenizer = gigatoken.Tokenizer.from_json(file_bytes)

    def encode(self, data: bytes) -> npt.NDArray[np.uint32]:
        # gigatoken's `encode` holds the GIL; its batch calls release it, so threads
        # help (benchmarks/LOG.md). This one returns a plain array, and a BytesSource
        # instead of a list avoids importing awkward (0.3 s, 25 MB).
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
        # Other workers may have been dropped since this one was built.
        self._base_bytes = min(self._base_bytes, resident)
        return resident - self._base_bytes <= _CACHE_BYTES


def _return_freed_memory() -> None:
    """Make glibc return freed memory to the system; do nothing without glibc."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


_silence_lock = threading.Lock()


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Discard what native code prints: gigatoken prints while it trains.

    This silences the whole process, so the output of other threads is lost too.
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
