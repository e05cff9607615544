"""Source files: the files that a source consists of, and their decompressed bytes.

A source is one file, or a folder that is searched recursively. The order of files is
that of their relative paths, on any filesystem. gzip and zstd files are decompressed if
their names say so, and refused otherwise.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import gzip
import io
import os
import stat
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tiny_llm.errors import ConfigError, InputError
from tiny_llm.filekind import GZIP, HEAD_BYTES, ZSTD, check_name, find_kind
from tiny_llm.layout import SPLITS

BLOCK_BYTES = 1 << 20

# Text compresses 3 to 20 times; a gzip file of zeros, 1,029 times. A small bomb is
# harmless.
_MAX_RATIO = 100
_MAX_UNCHECKED_BYTES = 64 << 20

# Linux rounds file times to ticks of up to 10 ms: two changes may get the same time.
_TICK_NS = 20_000_000

OnProgress = Callable[[int], object]
_Signatures = dict[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class SourceFiles:
    """The files of a source.

    Attributes:
        splits: The files of train and valid, each in order; only train if the source
            has no valid of its own.
        source: Where `find_files` found them; None if they cannot change.
    """

    splits: dict[str, list[Path]]
    source: Path | None = None
    _patterns: Sequence[str] = ()
    _signatures: _Signatures = dataclasses.field(default_factory=dict)

    def check_unchanged(self) -> None:
        """Check that the source is still what `find_files` found.

        Raises:
            InputError: A file was added, removed, replaced or written to.
        """
        if self.source is None:
            return
        before, now = self._signatures, {}
        with contextlib.suppress(OSError, ConfigError, InputError):
            now = _list_files(self.source, self._patterns)
        for name in sorted(before.keys() | now.keys()):
            if before.get(name) != now.get(name):
                raise InputError(
                    f"{self.source / name} changed while it was read; run again when "
                    "nothing writes to it"
                )


def find_files(source: Path, patterns: Sequence[str] = ()) -> SourceFiles:
    """Find the files of a source, without opening them.

    In a folder, files and folders whose names begin with a dot are left out. What is
    called train or valid at its top (train.txt, valid.jsonl.gz, a folder `train`,
    train-00000-of-00002.parquet) belongs to that split; if there are both, everything
    else is left out.

    Args:
        source: A file or a folder.
        patterns: Which files of a folder to take: relative paths that match one of
            these, in which `*` also stands for "/". By default, all.

    Raises:
        InputError: There is no file to read, or something is not a regular file.
        ConfigError: A symbolic link leads out of the folder, nothing matches the
            patterns, or it is unclear which split a file belongs to.
    """
    signatures = _list_files(source, patterns)
    newest = max((max(sizes[-2:]) for sizes in signatures.values()), default=0)
    if 0 <= time.time_ns() - newest < _TICK_NS:
        # Any later change gets a later time. What changes during this tick is read
        # whole, or noticed by its size.
        time.sleep(_TICK_NS / 1e9)
    if not signatures and patterns:
        raise ConfigError(f"files is {list(patterns)}, but nothing in {source} matches")
    splits = {
        split: [source / name for name in names]
        for split, names in _assign_splits(source, sorted(signatures)).items()
    }
    return SourceFiles(splits, source, patterns, signatures)


def _assign_splits(source: Path, names: list[str]) -> dict[str, list[str]]:
    """Tell by their names which split files belong to."""
    found: dict[str | None, list[str]] = {}
    for name in names:
        found.setdefault(_split_of(name), []).append(name)
    if found.keys() >= {*SPLITS}:
        return {split: found[split] for split in SPLITS}
    if not found:
        raise InputError(f"{source} holds no file; give a folder with text in it")
    if len(found) == 1 and "valid" not in found:
        return {"train": names}
    [split] = found.keys() & {*SPLITS}
    missing = "train" if split == "valid" else "valid"
    problem = f"{source} holds {found[split][0]} but no {missing}"
    if None in found:
        raise ConfigError(
            f"{problem}, so it is unclear what {found[None][0]} is; add {missing}, "
            "rename one of them, or choose with files"
        )
    raise InputError(f"{problem}; add {missing}, or rename it to train")


def _split_of(name: str) -> str | None:
    top = name.partition("/")[0]
    for split in SPLITS:
        if top == split or top.startswith((f"{split}.", f"{split}-")):
            return split
    return None


def _list_files(source: Path, patterns: Sequence[str]) -> _Signatures:
    """Return the relative path of each file, and what changes if the file does."""
    if source.is_dir():
        root = os.path.realpath(source)
        return dict(_walk(source, "", root, patterns))
    if patterns:
        raise ConfigError(f"files chooses within a folder, but {source} is a file")
    _check_regular(source, source.stat())
    return {"": _sign(source.stat())}


def _walk(
    folder: Path, prefix: str, root: str, patterns: Sequence[str]
) -> Iterator[tuple[str, tuple[int, ...]]]:
    with os.scandir(folder) as scan:
        entries = list(scan)
    for entry in entries:
        name, path = f"{prefix}{entry.name}", Path(entry.path)
        if entry.name.startswith("."):
            continue
        if entry.is_symlink():
            _check_link(path, root)
        if entry.is_dir():
            if not prefix and _split_of(name) and name not in SPLITS:
                _check_regular(path, entry.stat())
            yield from _walk(path, f"{name}/", root, patterns)
        elif not patterns or any(_matches(name, pattern) for pattern in patterns):
            _check_regular(path, entry.stat())
            yield name, _sign(entry.stat())


def _check_link(path: Path, root: str) -> None:
    target = os.path.realpath(path)
    if not os.path.exists(target):
        raise InputError(f"{path} is a link to nothing; remove it")
    if os.path.commonpath([root, target]) != root:
        raise ConfigError(
            f"{path} is a link out of the folder; replace it with a copy of what it "
            f"leads to, {target}"
        )
    if os.path.isdir(target):
        raise ConfigError(
            f"{path} is a link to a folder; remove it, since what it leads to is read "
            f"as {target}"
        )


def _check_regular(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = "a FIFO, socket or device"
        if stat.S_ISDIR(status.st_mode):
            kind = "a folder"
        raise InputError(f"{path} is {kind}, not a file; remove or rename it")


def _sign(status: os.stat_result) -> tuple[int, ...]:
    return (
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )


def _matches(name: str, pattern: str) -> bool:
    """Match a relative path.

    >>> [_matches(name, "**/*.py") for name in ("a.py", "b/c/d.py", "a.pyc")]
    [True, True, False]
    """
    return fnmatch.fnmatchcase(name, pattern.replace("**/", ""))


@contextlib.contextmanager
def open_file(
    path: Path, on_progress: OnProgress | None = None
) -> Iterator[io.BufferedReader[Any]]:
    """Open a file for reading; a gzip or zstd file is decompressed.

    Args:
        path: A regular file. One with the name of a compressed file may be plain, since
            browsers and servers decompress files without renaming them.
        on_progress: Called with the number of bytes read from the disk since the
            last call.

    Raises:
        InputError: The file is missing, or is a gzip or zstd file whose name does not
            end as in `COMPRESSED_ENDINGS`. While it is read: it is damaged, or becomes
            more than 100 times larger.
        ConfigError: A package that decompresses it is not installed.
    """
    try:
        raw = _CountingFile(path, on_progress)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; was it just removed?") from error
    with io.BufferedReader(raw, BLOCK_BYTES) as file:
        kind = find_kind(file.peek(HEAD_BYTES))
        if kind in (GZIP, ZSTD):
            check_name(path, kind)
            decompressed = _Decompressed(path, kind, file, raw)
            with io.BufferedReader(decompressed, BLOCK_BYTES) as reader:
                yield reader
        else:
            yield file


class _CountingFile(io.FileIO):
    """A file that reports how many bytes are read from it."""

    def __init__(self, path: Path, on_progress: OnProgress | None) -> None:
        super().__init__(str(path))
        self.num_read = 0
        self._on_progress = on_progress

    def readinto(self, buffer: Any) -> int:
        try:
            count = super().readinto(buffer) or 0
        except OSError as error:
            error.filename = self.name  # Python names it only when it cannot open it.
            raise
        self.num_read += count
        if self._on_progress:
            self._on_progress(count)
        return count


class _Decompressed(io.RawIOBase):
    """What a gzip or zstd file holds: all of its members, unless it is a bomb."""

    def __init__(
        self, path: Path, kind: str, file: io.BufferedReader[Any], raw: _CountingFile
    ) -> None:
        self._path = path
        self._kind = kind
        self._raw = raw
        self._num_bytes = 0
        self._errors: tuple[type[Exception], ...]
        self._stream: Any
        if kind == GZIP:
            self._stream = gzip.GzipFile(fileobj=file)
            self._errors = EOFError, gzip.BadGzipFile, zlib.error
        else:
            zstd = _import_zstd(path)
            self._stream = zstd.ZstdFile(file)
            self._errors = EOFError, zstd.ZstdError

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            block = self._stream.read(len(buffer))
        except self._errors as error:
            raise InputError(
                f"{self._path} is damaged or incomplete after {self._num_bytes:,} "
                f"bytes of text; get it again ({self._kind}: {error})"
            ) from error
        buffer[: len(block)] = block
        self._num_bytes += len(block)
        check_ratio(self._path, self._num_bytes, self._raw.num_read)
        return len(block)


def check_ratio(path: Path, num_bytes: int, num_compressed: int) -> None:
    """Refuse a compressed bomb.

    Raises:
        InputError: `num_bytes` are more than can come from `num_compressed`.
    """
    if num_bytes > max(_MAX_UNCHECKED_BYTES, _MAX_RATIO * num_compressed):
        raise InputError(
            f"{path} is no ordinary text, since it is compressed more than "
            f"{_MAX_RATIO} to 1; leave it out, or decompress it yourself "
            f"({num_compressed:,} bytes hold {num_bytes:,} or more)"
        )


def _import_zstd(path: Path) -> Any:
    try:
        from compression import zstd  # Python 3.14
    except ImportError:
        try:
            from backports import zstd
        except ImportError as error:
            raise package_missing("backports.zstd", f"{path} is {ZSTD}") from error
    return zstd


def package_missing(package: str, reason: str) -> ConfigError:
    """Return the error for an optional package that is not installed."""
    return ConfigError(f"run `python -m pip install {package}`, since {reason}")
