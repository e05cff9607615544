"""Atomic writing: a file has its final name only when it is whole.

Two writers of the same file each use a temporary file of their own beside it, so the
result is one or the other, never a mixture.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from tiny_llm.errors import ResourceError


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Open a temporary file that becomes `path` when the block ends well.

    The file is flushed to disk before it is renamed; an exception inside the
    block deletes it and leaves `path` as it was. Missing folders are made.

    Raises:
        ResourceError: The disk is full, or a limit is used up.
    """
    target = Path(path)
    part = part_path(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, target)
    except OSError as error:
        explain_full_disk(error, target, part)
        raise
    finally:
        part.unlink(missing_ok=True)


def part_path(target: Path) -> Path:
    """A new name beside a file. Process ids would be equal in two containers."""
    return target.with_name(f"{target.name}.{secrets.token_hex(4)}.tmp")


def atomic_link(source: Path, target: Path) -> bool:
    """Give a file a second name, replacing what had that name.

    Returns:
        Whether it worked; not every filesystem can, and none across two of them.
    """
    part = part_path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, part)
    except OSError:
        return False
    os.replace(part, target)
    part.unlink(missing_ok=True)  # Renaming onto the same file leaves both names.
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
    """Readable JSON with a newline at the end."""
    return json.dumps(value, indent=2).encode() + b"\n"


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as JSON, atomically."""
    with atomic_write(path) as file:
        file.write(to_json(value))
