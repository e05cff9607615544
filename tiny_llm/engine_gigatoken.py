"""gigatoken, silenced and bounded in memory; `engine` calls it with valid UTF-8 only.

Another version may give other merges or ids. So this module names the version: the
stages that learn or encode depend on this file, and DVC reruns them when it changes.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import gigatoken
import numpy as np
import numpy.typing as npt
import psutil

from tiny_llm.corpus import SEPARATOR
from tiny_llm.errors import ConfigError
from tiny_llm.tokenizer_json import FIRST_MERGE_ID, Merge

# To change it, change pyproject.toml too and run `make lock`.
VERSION = "0.10.0"

# gigatoken 0.10 caches every distinct pretoken without limit: 10 to 16 bytes of memory
# per byte of text if every word is new. So the memory of the process is sampled
# periodically, and a gigatoken tokenizer is replaced (30 ms) once the process has grown
# by more than this since it was built. With half of that, ordinary text replaces them
# over and over and takes twice as long (benchmarks/LOG.md).
# TODO(gigatoken): the release after 0.10.0 has `set_max_cache_bytes`. It replaces the
# sampling, engine's `_return_freed_memory` and the dependency on psutil.
_CACHE_BYTES = 48 << 20
_CACHE_CHECK_BYTES = 1 << 19


@functools.cache
def _check_version() -> None:
    found = importlib.metadata.version("gigatoken")
    if found != VERSION:
        raise ConfigError(
            f"gigatoken {found} is installed, but tiny_llm/engine_gigatoken.py expects "
            f"{VERSION}, and ids may differ; run `{sys.executable} -m pip install "
            f"gigatoken=={VERSION}`, or change VERSION there and the pin in "
            "pyproject.toml, run `make lock` and `dvc repro`"
        )


def learn_merges(text: bytes | Path, num_merges: int) -> list[Merge]:
    """Learn from documents with separators between them.

    A file is mapped, not read: its pages are not memory in use. This takes all cores.
    """
    _check_version()
    # A plain path would not do: gigatoken guesses the format of a file by its name.
    source: bytes | gigatoken.TextFileSource
    if isinstance(text, Path):
        source = gigatoken.TextFileSource([text], SEPARATOR)
    else:
        source = text
    with _silenced():
        _, merges = gigatoken.train_bpe(
            source,
            FIRST_MERGE_ID + num_merges,
            [SEPARATOR.decode()],
            separator=SEPARATOR,
        )
    return merges


def split(text: bytes) -> Iterator[bytes]:
    """Split text without separators into pretokens."""
    return gigatoken.pretokenizer(text)


class _Worker:
    """A gigatoken tokenizer, and the memory of the process before it was built."""

    def __init__(self, file_bytes: bytes) -> None:
        _check_version()
        self._process = psutil.Process()
        self._base_bytes: int = self._process.memory_info().rss
        self._text_bytes = 0
        self._tokenizer = gigatoken.Tokenizer.from_json(file_bytes)

    def encode(self, data: bytes) -> npt.NDArray[np.uint32]:
        # gigatoken's `encode` holds the GIL; its batch calls release it, so threads
        # help (benchmarks/LOG.md). This one returns a plain array, and a BytesSource
        # instead of a list avoids importing awkward (0.3 s, 25 MB).
        source = gigatoken.BytesSource(data)
        rows, _ = self._tokenizer.encode_batch_padded(source, 0, parallel=False)
        ids: npt.NDArray[np.uint32] = rows.reshape(-1)
        self._text_bytes += len(data)
        return ids

    def decode(self, ids: npt.NDArray[np.uint32]) -> bytes:
        return self._tokenizer.decode(ids)

    def is_small(self) -> bool:
        if self._text_bytes < _CACHE_CHECK_BYTES:
            return True
        self._text_bytes = 0
        resident: int = self._process.memory_info().rss
        # Other workers may have been dropped since this one was built.
        self._base_bytes = min(self._base_bytes, resident)
        return resident - self._base_bytes <= _CACHE_BYTES


def new_worker(file_bytes: bytes) -> _Worker:
    """Make a worker from the content of a tokenizer.json."""
    return _Worker(file_bytes)


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
