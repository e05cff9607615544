"""Parts: finished ranges of an encoding, kept on disk until all are joined.

A part is one file: ids, document ends, id counts, and a JSON footer that describes
them. Parts of NAME.bin are in NAME.parts/KEY/, on the same filesystem, because joining
copies them and a cluster shares them. An encoding that is interrupted leaves them
there; a rerun uses those whose text has the same digest. Success removes them, and so
does the next encoding to NAME.bin with another key.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from tiny_llm.atomic import atomic_write, open_locked, try_lock
from tiny_llm.errors import ConfigError, InputError

_BLOCK_BYTES = 1 << 20

_FOOTER_BYTES = 8  # The size of the JSON before it, little-endian.


@dataclasses.dataclass(frozen=True)
class Part:
    """What the footer of a part says.

    Attributes:
        text: What a `TextScan` found in the range, as a dict.
        text_sha256: Digest of the text of the range.
        num_tokens: Number of ids.
        num_ends: Number of separators among the ids.
        num_counts: Length of the id counts: the vocab size, or 0 without counts.
        itemsize: Bytes per id.
        sha256: Digest of the ids.
        arrays_sha256: Digest of the ends and counts.
    """

    text: dict[str, Any]
    text_sha256: str
    num_tokens: int
    num_ends: int
    num_counts: int
    itemsize: int
    sha256: str
    arrays_sha256: str


def part_path(folder: Path, begin: int) -> Path:
    """Return the path of the part whose range begins at an offset."""
    return folder / f"{begin:016}.part"


class PartWriter:
    """Writes a part piece by piece; see `write_part`."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.clear()

    def clear(self) -> None:
        """Forget what was appended."""
        self._file.seek(0)
        self._file.truncate()
        self._num_tokens, self._itemsize, self._sha256 = 0, 0, hashlib.sha256()
        self._ends: list[npt.NDArray[np.int64]] = []

    def append(self, ids: npt.NDArray[Any], separator_id: int) -> None:
        """Write ids, shape (n,), in the dtype of the token file."""
        self._file.write(ids.data)
        self._sha256.update(ids.data)
        ends = np.flatnonzero(ids == separator_id) + (self._num_tokens + 1)
        self._ends.append(ends)
        self._num_tokens += len(ids)
        self._itemsize = ids.dtype.itemsize

    def finish(
        self, text: dict[str, Any], text_sha256: str, counts: npt.NDArray[np.int64]
    ) -> Part:
        """Write the rest.

        Args:
            text: What a `TextScan` found in the range, as a dict.
            text_sha256: Digest of the text of the range.
            counts: How often each id occurs, or empty.
        """
        ends = np.concatenate([np.empty(0, np.int64), *self._ends])
        arrays = ends.astype("<i8").tobytes() + counts.astype("<i8").tobytes()
        part = Part(
            text=text,
            text_sha256=text_sha256,
            num_tokens=self._num_tokens,
            num_ends=len(ends),
            num_counts=len(counts),
            itemsize=self._itemsize,
            sha256=self._sha256.hexdigest(),
            arrays_sha256=hashlib.sha256(arrays).hexdigest(),
        )
        footer = json.dumps(vars(part)).encode()
        size = len(footer).to_bytes(_FOOTER_BYTES, "little")
        self._file.write(arrays + footer + size)
        return part


@contextlib.contextmanager
def write_part(path: Path, *, sync: bool) -> Iterator[PartWriter]:
    """Write a part atomically; the caller appends ids and finishes it.

    Args:
        path: Where to write it.
        sync: Whether to flush it to disk, for readers on other machines.
    """
    with atomic_write(path, sync=sync, tidy=False) as file:
        yield PartWriter(file)


def find_part(path: Path, text_sha256: str) -> Part | None:
    """Return the part of a text if an earlier run left it whole at `path`."""
    try:
        with open(path, "rb") as file:
            end = file.seek(-_FOOTER_BYTES, os.SEEK_END)
            size = int.from_bytes(file.read(), "little")
            end = file.seek(end - size)
            part = Part(**json.loads(file.read(size)))
            num_id_bytes = part.num_tokens * part.itemsize
            file.seek(0)
            found = [
                hash_bytes(file, num_id_bytes),
                hash_bytes(file, end - file.tell()),
            ]
    except (OSError, ValueError, TypeError, OverflowError):
        return None
    is_whole = found == [part.sha256, part.arrays_sha256]
    return part if is_whole and part.text_sha256 == text_sha256 else None


def hash_bytes(file: IO[bytes], num_bytes: int) -> str:
    """Return the SHA-256 of the next bytes of a file, or of those there are."""
    digest = hashlib.sha256()
    while num_bytes > 0 and (block := file.read(min(num_bytes, _BLOCK_BYTES))):
        digest.update(block)
        num_bytes -= len(block)
    return digest.hexdigest()


def read_arrays(
    path: Path, part: Part
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return where documents end, shape (num_ends,), and the id counts."""
    offset = part.num_tokens * part.itemsize
    num_values = part.num_ends + part.num_counts
    arrays = np.fromfile(path, "<i8", num_values, offset=offset)
    return arrays[: part.num_ends], arrays[part.num_ends :]


@contextlib.contextmanager
def parts_folder(target: Path, key: str) -> Iterator[Path]:
    """Lock a folder for the parts of `target`, and remove it on success.

    Bad input or a wrong parameter removes it too; otherwise, finished parts are kept
    for a rerun with the same key. Folders that dead runs left with other keys are
    removed. If a live run has the folder, this run gets one of its own.
    """
    parent = target.with_suffix(".parts")
    folder = parent / hashlib.sha256(key.encode()).hexdigest()[:16]
    lock = None
    try:
        try:
            lock = _lock(folder)
        except BlockingIOError:
            folder = folder.with_name(f"{folder.name}.{secrets.token_hex(4)}")
            lock = _lock(folder)
        for other in parent.iterdir():
            if other != folder:
                _remove_if_abandoned(other)
        for left in folder.glob("*.tmp"):  # By killed writers; see `write_part`.
            left.unlink(missing_ok=True)
        yield folder
    except BaseException as error:
        is_useless = isinstance(error, ConfigError | InputError)
        if is_useless or not any(folder.glob("*.part")):
            if lock:
                _remove(folder)
            else:  # It was stopped while it took the lock.
                _remove_if_abandoned(folder)
        raise
    else:
        _remove(folder)
    finally:
        if lock:
            lock.close()


def _lock(folder: Path) -> IO[bytes]:
    while True:
        # Another run may remove the folder, or its parent, at this moment.
        with contextlib.suppress(FileNotFoundError):
            folder.mkdir(parents=True, exist_ok=True)
            return open_locked(folder / "lock", wait=False)


def _remove_if_abandoned(folder: Path) -> None:
    # A run that was killed while it removed the folder may have left it without a lock.
    with contextlib.suppress(OSError), open(folder / "lock", "a+b") as lock:
        if try_lock(lock, folder / "lock"):
            _remove(folder)


def _remove(folder: Path) -> None:
    """Remove a folder whose lock this run holds."""
    # Renamed first, so that a new folder of this name loses nothing.
    gone = folder.with_name(f"{folder.name}.{secrets.token_hex(4)}")
    with contextlib.suppress(OSError):  # Windows does not rename a folder in use.
        folder = folder.rename(gone)
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):  # Another run has its folder in it.
        folder.parent.rmdir()
