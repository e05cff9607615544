"""Learns merges, and encodes and decodes with them, with one of two libraries.

The environment variable TINY_LLM_ENGINE names the library: gigatoken (the default,
MIT, Marcel Rød) or tokenizers (Apache-2.0, Hugging Face). Each has a module of its own,
engine_NAME.py, that no other module imports. They give equal merges, ids and files,
so what DVC built with one need not be rebuilt with the other.

There is one exception. What counts as a letter or a number depends on the version of
Unicode: 17 in gigatoken 0.10, 16 in tokenizers 0.23. So text with the 4,657 letters and
numbers that are new in Unicode 17, such as Sidetic (U+10940), may get other merges and
ids. gigatoken is right about them: to tokenizers they are unassigned, so it treats them
like punctuation. tests/test_engines.py compares the two on every character.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from tiny_llm.anytext import IdSink, Sink, encode_any
from tiny_llm.errors import ConfigError
from tiny_llm.tokenizer_json import Merge, token_lengths

_VARIABLE = "TINY_LLM_ENGINE"
_PACKAGES = {"gigatoken": "gigatoken", "tokenizers": "tokenizers>=0.21"}


class Worker(Protocol):
    """Encodes valid UTF-8 and decodes, in one thread at a time."""

    def encode(self, data: bytes) -> npt.NDArray[np.uint32]:
        """Encode valid UTF-8 to ids, shape (number of tokens,)."""

    def decode(self, ids: npt.NDArray[np.uint32]) -> bytes:
        """Decode ids, shape (n,), which are all in the vocab."""

    def is_small(self) -> bool:
        """Whether its caches are small enough to keep it for the next call."""


class Library(Protocol):
    """What each engine_NAME.py offers. Text is always valid UTF-8."""

    def learn_merges(self, text: bytes | Path, num_merges: int) -> list[Merge]:
        """Learn from documents with separators between them."""

    def split(self, text: bytes) -> Iterator[bytes]:
        """Split text without separators into pretokens."""

    def new_worker(self, file_bytes: bytes) -> Worker:
        """Make a worker from the content of a tokenizer.json."""


def library() -> Library:
    """Import the library that TINY_LLM_ENGINE names.

    Raises:
        ConfigError: It names no library that is known, or one that is not installed.
    """
    return _load(os.environ.get(_VARIABLE) or "gigatoken")


@functools.cache
def _load(name: str) -> Library:
    if name not in _PACKAGES:
        raise ConfigError(
            f"{_VARIABLE} is {name!r}; set it to {' or '.join(_PACKAGES)}, or unset it"
        )
    try:
        if name == "tokenizers":
            import tiny_llm.engine_tokenizers

            return tiny_llm.engine_tokenizers
        import tiny_llm.engine_gigatoken
    except ImportError as error:
        raise ConfigError(
            f"{sys.executable} lacks the packages for {_VARIABLE}={name} ({error}); "
            f"install them with `{sys.executable} -m pip install '{_PACKAGES[name]}'`"
        ) from error
    return tiny_llm.engine_gigatoken


def learn_merges(text: bytes | Path, num_merges: int) -> list[Merge]:
    """Learn merges from a sample of text.

    Args:
        text: Documents, with separators between them; valid UTF-8. A file is not
            read into memory.
        num_merges: The number of merges wanted.

    Returns:
        At most `num_merges` pairs of token bytes in order of rank. When the sample
        runs out of pairs, gigatoken appends merges that occur nowhere in it.

    Raises:
        ConfigError: See `library`; or gigatoken has another version than expected.
    """
    if num_merges == 0:
        return []
    merges = library().learn_merges(text, num_merges)
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
    call takes an idle worker or makes a new one (30 ms).
    """

    def __init__(self, file_bytes: bytes) -> None:
        self._file_bytes = file_bytes
        self._idle: list[Worker] = []

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
        # would depend on how a file is cut; tokenizers takes only str. So both get only
        # valid text.
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
        data = worker.decode(ids)
        self._idle.append(worker)
        return data

    def _take(self) -> Worker:
        try:
            return self._idle.pop()
        except IndexError:
            return library().new_worker(self._file_bytes)


def _return_freed_memory() -> None:
    """Make glibc return freed memory to the system; do nothing without glibc."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
