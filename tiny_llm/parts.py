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
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from tiny_llm.atomic import atomic_write, open_locked, try_lock
from tiny_llm.errors import ConfigError, InputError

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


def write_part(
    path: Path,
    text: dict[str, Any],
    text_sha256: str,
    ids: npt.NDArray[Any],
    ends: npt.NDArray[np.int64],
    counts: npt.NDArray[np.int64],
    *,
    sync: bool,
) -> Part:
    """Write a part atomically.

    Args:
        path: Where to write it.
        text: What a `TextScan` found.
        text_sha256: Digest of the text.
        ids: Shape (num_tokens,), in the dtype of the token file.
        ends: Shape (num_ends,): where documents end, counted from the first id.
        counts: Shape (vocab_size,), or (0,): how often each id occurs.
        sync: Whether to flush it to disk, for readers on other machines.
    """
    arrays = ends.astype("<i8").tobytes() + counts.astype("<i8").tobytes()
    part = Part(
        text=text,
        text_sha256=text_sha256,
        num_tokens=len(ids),
        num_ends=len(ends),
        num_counts=len(counts),
        itemsize=ids.dtype.itemsize,
        sha256=hashlib.sha256(ids.data).hexdigest(),
        arrays_sha256=hashlib.sha256(arrays).hexdigest(),
    )
    footer = json.dumps(dataclasses.asdict(part)).encode()
    with atomic_write(path, sync=sync) as file:
        file.write(ids.data)
        file.write(arrays + footer + len(footer).to_bytes(_FOOTER_BYTES, "little"))
    return part


def find_part(path: Path, text_sha256: str) -> Part | None:
    """Return the part of a text if an earlier run left it whole at `path`."""
    try:
        content = path.read_bytes()
        size = int.from_bytes(content[-_FOOTER_BYTES:], "little")
        part = Part(**json.loads(content[-_FOOTER_BYTES - size : -_FOOTER_BYTES]))
        ids = content[: part.num_tokens * part.itemsize]
        arrays = content[len(ids) : -_FOOTER_BYTES - size]
        found = [hashlib.sha256(data).hexdigest() for data in (ids, arrays)]
    except (OSError, ValueError, TypeError):
        return None
    is_whole = found == [part.sha256, part.arrays_sha256]
    return part if is_whole and part.text_sha256 == text_sha256 else None


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
    try:
        lock = _lock(folder)
    except BlockingIOError:
        folder = folder.with_name(f"{folder.name}.{secrets.token_hex(4)}")
        lock = _lock(folder)
    with lock:
        for other in parent.iterdir():
            if other != folder:
                _remove_if_abandoned(other)
        try:
            yield folder
        except (ConfigError, InputError):
            _remove(folder)
            raise
        except BaseException:
            if not any(folder.glob("*.part")):
                _remove(folder)
            raise
        _remove(folder)


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
