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
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from tiny_llm.errors import ResourceError

if sys.platform != "win32":
    import fcntl


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Open a temporary file that becomes `path` when the block succeeds.

    The file is flushed to disk before it is renamed; an exception inside the
    block deletes it and leaves `path` as it was. Missing folders are created, and
    temporary files that killed writers of `path` left behind are removed.

    Raises:
        ResourceError: The disk is full, or a quota or file size limit is reached.
    """
    target = Path(path)
    part = part_path(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(target)
        with _open_locked(part) as file:
            yield file
            file.flush()
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
    if sys.platform != "win32":
        pattern = f"{glob.escape(target.name)}.{'[0-9a-f]' * 8}.tmp"
        for part in target.parent.glob(pattern):
            with contextlib.suppress(OSError), open(part, "r+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_at(file, part):
                    part.unlink()


def _open_locked(part: Path) -> IO[bytes]:
    """Create a temporary file and lock it, so that no other run removes it."""
    while True:
        file = open(part, "wb")  # noqa: SIM115 - the caller closes it
        if sys.platform == "win32":
            return file
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            return file  # This filesystem has no locks, so nothing is removed here.
        if _is_at(file, part):
            return file
        file.close()  # Another run removed it before it was locked.


def _is_at(file: IO[bytes], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


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
