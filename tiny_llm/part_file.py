"""Part files: downloads in progress, which outlive the process that writes them.

`KEY.part` holds the beginning of a file, `KEY.part.etag` what the server called that
version of it. One process at a time writes a part file: it holds a lock, which the
kernel drops when the process dies.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import IO

from tiny_llm.atomic import atomic_write, open_locked, try_lock

_BLOCK_BYTES = 1 << 20
_POLL_S = 0.1


class PartFile:
    """The bytes received so far, and their SHA-256.

    Attributes:
        path: Of the file.
        size: In bytes.
        etag: What the server called the version of the file that the bytes are from;
            empty if it has no name for it.
    """

    def __init__(self, path: Path, file: IO[bytes], hasher: Executor) -> None:
        self.path = path
        self.size = 0
        self._file = file
        self._digest = hashlib.sha256()
        self._hasher = hasher
        self._etag_path = path.with_name(f"{path.name}.etag")
        # Past the buffer of `file`, in which bytes would be lost if we are killed.
        while block := os.read(file.fileno(), _BLOCK_BYTES):
            self._digest.update(block)
            self.size += len(block)
        self.etag = ""
        if self.size and self._etag_path.is_file():
            self.etag = self._etag_path.read_text("latin-1")

    def restart(self, etag: str = "") -> None:
        """Drop all bytes; those to come are from the version that `etag` names."""
        os.truncate(self._file.fileno(), 0)
        os.lseek(self._file.fileno(), 0, os.SEEK_SET)
        self.size, self.etag, self._digest = 0, etag, hashlib.sha256()
        self._etag_path.unlink(missing_ok=True)
        if etag:
            with atomic_write(self._etag_path, sync=False) as file:
                file.write(etag.encode("latin-1"))

    def append(self, block: bytes) -> None:
        """Write bytes to the end of the file."""
        # Writing and hashing take as long as receiving does; all three release the GIL.
        hashing = self._hasher.submit(self._digest.update, block)
        while block:
            written = os.write(self._file.fileno(), block)
            self.size += written
            block = block[written:]
        hashing.result()

    def sha256(self) -> str:
        """Return the digest of all bytes, in hexadecimal."""
        return self._digest.hexdigest()

    def begin(self) -> bytes:
        """Return the first bytes, for messages."""
        with open(self.path, "rb") as file:
            return file.read(64)

    def finish(self, target: Path) -> None:
        """Give the file its final name.

        It is not flushed to disk: after a power failure its digest would not match,
        and `download` checks that before each use.
        """
        self._close_on_windows()
        os.replace(self.path, target)
        self._etag_path.unlink(missing_ok=True)

    def discard(self) -> None:
        """Delete the file."""
        self._close_on_windows()
        self._etag_path.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)

    def _close_on_windows(self) -> None:
        if sys.platform == "win32":
            self._file.close()  # Windows cannot rename or delete an open file.


@contextlib.contextmanager
def open_part(path: Path, on_wait: Callable[[], object]) -> Iterator[PartFile]:
    """Open a part file once no other process writes it; delete it if it stays empty.

    Without locks (see `atomic.remove_leftovers`) the part file gets a random name and
    is deleted at the end: processes then cannot disturb each other, but a later run
    cannot resume.

    Args:
        path: `KEY.part`, in a folder that exists.
        on_wait: Called every 0.1 s while another process holds the file. May raise.
    """
    while True:
        try:
            file = open_locked(path, wait=False)
            break
        except BlockingIOError:
            on_wait()
            time.sleep(_POLL_S)
    has_lock = try_lock(file, path)
    if not has_lock:
        file.close()
        path = path.with_name(f"{path.stem}.{secrets.token_hex(4)}.part")
        file = open_locked(path)
    with file, ThreadPoolExecutor(1) as hasher:
        part = PartFile(path, file, hasher)
        try:
            yield part
        finally:
            if not part.size or not has_lock:
                part.discard()
