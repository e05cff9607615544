"""Atomic writing: a file gets its final name only once it is complete.

Two writers of the same file each use their own temporary file beside it, so the
result is one or the other, never a mixture. A writer that is killed leaves its
temporary file behind; the next writer of the same file removes it.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

from tiny_llm.errors import ResourceError

if sys.platform != "win32":
    import fcntl

_COPY_BYTES = 32 << 20


@contextlib.contextmanager
def atomic_write(
    path: str | os.PathLike[str], *, sync: bool = True, tidy: bool = True
) -> Iterator[IO[bytes]]:
    """Open a temporary file that becomes `path` when the block succeeds.

    An exception inside the block deletes it and leaves `path` as it was. Missing
    folders are created, and temporary files that killed writers of `path` left behind
    are removed.

    Args:
        path: The final name.
        sync: Flush the file to disk before it is renamed, so that it is whole even
            after a power failure. Readers of a file without it must check its digest.
        tidy: Remove what killed writers left, for which the folder is listed. Not in a
            folder with very many files, which must be cleaned in another way.

    Raises:
        ResourceError: The disk is full, or a quota or file size limit is reached.
    """
    target = Path(path)
    part = part_path(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if tidy:
            remove_leftovers(target)
        with open_locked(part) as file:
            yield file
            file.flush()
            if sync:
                os.fsync(file.fileno())
            if sys.platform == "win32":
                file.close()  # Windows cannot rename an open file.
            os.replace(part, target)  # Still locked: see `remove_leftovers`.
    except OSError as error:
        explain_full_disk(error, target, part)
        raise
    finally:
        part.unlink(missing_ok=True)


def part_path(target: Path) -> Path:
    """Return a random name beside a file: containers may have equal process ids."""
    return target.with_name(f"{target.name}.{secrets.token_hex(4)}.tmp")


def remove_leftovers(target: Path) -> None:
    """Remove the temporary files that killed writers of `target` left beside it.

    A live writer, in this container or another, holds a lock on its temporary file;
    the kernel drops the lock when the writer dies. Without such locks (on Windows, on
    some network filesystems) nothing is removed.
    """
    pattern = f"{glob.escape(target.name)}.{'[0-9a-f]' * 8}.tmp"
    for part in target.parent.glob(pattern):
        with contextlib.suppress(OSError), open(part, "r+b") as file:
            if try_lock(file, part):
                part.unlink()


def open_locked(path: Path, *, wait: bool = True) -> IO[bytes]:
    """Open a file, creating it if need be, and lock it until it is closed.

    Without locks (see `remove_leftovers`) it is only opened.

    Raises:
        BlockingIOError: Another run has locked it, and `wait` is False.
    """
    while True:
        file = open(path, "r+b", opener=_create)  # noqa: SIM115 - the caller closes it
        try:
            if sys.platform == "win32" or not _lock(file, wait) or _is_at(file, path):
                return file
        except BaseException:
            file.close()
            raise
        file.close()  # Another run removed it before it was locked.


def _lock(file: IO[bytes], wait: bool) -> bool:
    """Lock a file; return False if its filesystem has no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return False
    return True


def _create(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CREAT, 0o666)


@contextlib.contextmanager
def held_lock(path: Path) -> Iterator[None]:
    """Wait for a lock file, hold it during the block, and remove it."""
    with open_locked(path):
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def try_lock(file: IO[bytes], path: Path) -> bool:
    """Lock a file unless another run has locked or removed it; say if it worked."""
    if sys.platform == "win32":
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return _is_at(file, path)


def _is_at(file: IO[bytes], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def copy_bytes(
    source: IO[bytes],
    target: IO[bytes],
    num_bytes: int,
    on_progress: Callable[[int], object] | None = None,
) -> int:
    """Copy from one open file to the end of another, in the kernel if it can.

    Filesystems such as Btrfs and XFS then share the blocks instead of copying them.

    Args:
        source: Copied from its position, which must not be buffered ahead.
        target: Flushed first.
        num_bytes: How much to copy; ends early where the source does.
        on_progress: Called with the number of bytes of each step.

    Returns:
        The number of bytes copied.
    """
    target.flush()
    left = num_bytes
    # Not supported on every system, nor between all filesystems.
    with contextlib.suppress(AttributeError, OSError):
        while left and (
            copied := os.copy_file_range(
                source.fileno(), target.fileno(), min(left, _COPY_BYTES)
            )
        ):
            left -= copied
            if on_progress:
                on_progress(copied)
    # The rest: usually nothing. Some filesystems stop early without an error.
    target.seek(0, os.SEEK_END)
    while left and (block := os.read(source.fileno(), min(left, _COPY_BYTES))):
        target.write(block)
        left -= len(block)
    return num_bytes - left


@contextlib.contextmanager
def flushing(file: IO[bytes]) -> Iterator[Callable[[], None]]:
    """Flush a file to disk in a thread while it is written.

    The flush before the file gets its name then has little left to do.

    Yields:
        A function that starts a flush, unless one is still running. It raises the
        OSError of the one before.
    """
    flushes: list[Future[None]] = []

    def start() -> None:
        if flushes and flushes[-1].done():
            flushes.pop().result()
        if not flushes:
            flushes.append(pool.submit(os.fsync, file.fileno()))

    with ThreadPoolExecutor(1) as pool:
        yield start
        for flush in flushes:
            flush.result()


def atomic_link(source: Path, target: Path) -> bool:
    """Hard-link `source` as `target`, replacing any file of that name.

    Returns:
        Whether it worked: some filesystems have no hard links, and none can cross
        from one filesystem to another.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(target)
    while True:
        part = part_path(target)
        try:
            os.link(source, part)
        except OSError:
            return False
        # The link is not locked, so another run may remove it; if so, try again.
        with contextlib.suppress(FileNotFoundError):
            os.replace(part, target)
            part.unlink(missing_ok=True)  # Renaming onto itself leaves both names.
            return True


def explain_full_disk(error: OSError, target: Path, part: Path) -> None:
    """Raise a ResourceError in place of `error` if it says that the disk is full."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return
    written = part.stat().st_size if part.exists() else 0
    free = shutil.disk_usage(target.parent).free
    raise ResourceError(
        f"{target}: {error.strerror} after {written:,} bytes; it needs more than that "
        f"and {free:,} bytes are free, so make room and run again"
    ) from error


def to_json(value: Any) -> bytes:
    """Return readable JSON with a newline at the end."""
    return json.dumps(value, indent=2).encode() + b"\n"


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as JSON, atomically."""
    with atomic_write(path) as file:
        file.write(to_json(value))
