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
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from tiny_llm.errors import ConfigError
from tiny_llm.tokenizer_json import Merge

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

    def encode(self, data: bytes) -> tuple[npt.NDArray[np.uint32], int]:
        """Encode any bytes; each byte that is not UTF-8 becomes its own id.

        Returns:
            Ids, shape (number of tokens,), and the number of bytes that are not UTF-8.
        """
        worker = self._take()
        num_invalid = 0
        if is_utf8(data):
            ids = worker.encode(data)
        else:
            pieces = split_at_invalid(data)
            ids = np.concatenate(
                [
                    np.frombuffer(piece, np.uint8)
                    if place % 2
                    else worker.encode(piece)
                    for place, piece in enumerate(pieces)
                ]
            )
            num_invalid = len(pieces) // 2
        if worker.is_small():
            self._idle.append(worker)
        else:
            del worker  # The last reference; only freed memory can be returned.
            _return_freed_memory()
        return ids, num_invalid

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


# Where gigatoken splits invalid UTF-8 depends on its address in memory, so ids would
# depend on how a file is cut; tokenizers takes only str. So both get only valid text.
def is_utf8(data: bytes) -> bool:
    """Whether bytes are valid UTF-8; on mostly ASCII, 3 times as fast as decoding.

    Each block of pure ASCII is replaced by a space, which does not change whether the
    bytes around it are valid.
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
    """Split bytes into pieces: valid UTF-8 and single invalid bytes alternate.

    >>> [list(piece) for piece in split_at_invalid(bytes([0x61, 0x62, 0xFF, 0x63]))]
    [[97, 98], [255], [99]]
    """
    text = data.decode("utf-8", "surrogateescape")
    pieces = re.split("([\udc80-\udcff])", text)
    return [piece.encode("utf-8", "surrogateescape") for piece in pieces]
