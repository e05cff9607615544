"""Download: a URL becomes a verified local file.

A file gets its final name only after its size and SHA-256 are checked. A download
that stops early leaves a `.part` file, and the next try resumes from it. Processes
that want the same file share one download.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from tiny_llm.atomic import atomic_link, explain_full_disk
from tiny_llm.errors import DownloadError
from tiny_llm.part_file import PartFile, open_part
from tiny_llm.pins import Pin, file_ending, hide_password
from tiny_llm.transport import Head, RangeError, Stream, TransientError

_BLOCK_BYTES = 1 << 20
_MIN_BYTES_PER_S = 1000
_MAX_BACKOFF_S = 30.0


@dataclass(frozen=True)
class Patience:
    """How long to wait, in seconds, and how often to try.

    Attributes:
        connect_s: For an address of the host to accept a connection.
        read_s: For a server that sends nothing.
        stall_s: For less than 1 kB/s on average, however many tries that takes.
        num_tries: In a row, none of which brought the download forward.
        backoff_s: Before the second try; doubled before each further one.
    """

    connect_s: float = 15
    read_s: float = 40
    stall_s: float = 150
    num_tries: int = 6
    backoff_s: float = 1


def download(
    pin: Pin,
    cache_dir: str | os.PathLike[str] | None = None,
    *,
    on_progress: Callable[[int], object] | None = None,
    on_wait: Callable[[str], object] | None = None,
    patience: Patience | None = None,
) -> Path:
    """Download a pinned file to the cache folder, unless it is there already.

    Args:
        pin: What to download. A file is downloaded only once, whatever its URL.
        cache_dir: By default `tiny_llm` in the user's cache folder.
        on_progress: Called with the number of bytes received since the last call.
            Each byte is reported once; those from an earlier run come in one call.
        on_wait: Called with one line before each wait: for another try, or for another
            process that downloads the same file.
        patience: When to give up.

    Returns:
        The path of the verified file: its digest, and the ending of the URL's file.

    Raises:
        DownloadError (an IntegrityError): The server cannot be reached, is too slow,
            answers with an error, or sends bytes that do not match the pin.
        ConfigError: A scheme needs a library that is not installed.
        InputError: A local file is missing.
        ResourceError: The disk is full.
    """
    target = cached_path(pin, cache_dir)
    receiver = _Receiver(pin.url, pin, on_progress, on_wait, patience)
    if not _matches(target, pin):
        with receiver.open_part(target.with_name(f"{pin.sha256}.part")) as part:
            # Another process may have been faster, or another URL had the same file.
            if not (_matches(target, pin) or _adopt(target, pin)):
                receiver.fill(part)
                part.finish(target)
    receiver.report(pin.size)
    return target


def measure(
    url: str,
    cache_dir: str | os.PathLike[str] | None = None,
    *,
    on_progress: Callable[[int], object] | None = None,
    on_wait: Callable[[str], object] | None = None,
    patience: Patience | None = None,
) -> Pin:
    """Download a file without a pin to the cache folder, and return its pin.

    Args:
        url: See `pins.check_url`.
        cache_dir: See `download`, as for the other arguments and errors.
        on_progress: Called with the number of bytes received since the last call.
        on_wait: Called with one line before each wait.
        patience: When to give up.
    """
    receiver = _Receiver(url, None, on_progress, on_wait, patience)
    key = hashlib.sha256(url.encode()).hexdigest()
    with receiver.open_part(_cache_folder(cache_dir) / f"{key}.part") as part:
        receiver.fill(part)
        pin = Pin(url, part.size, part.sha256())
        part.finish(cached_path(pin, cache_dir))
    return pin


def cached_path(pin: Pin, cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Return where `download` puts a file."""
    return _cache_folder(cache_dir) / f"{pin.sha256}{file_ending(pin.url)}"


def is_cached(pin: Pin, cache_dir: str | os.PathLike[str] | None = None) -> bool:
    """Whether a file was downloaded and still has the pinned size and digest."""
    return _matches(cached_path(pin, cache_dir), pin)


def _cache_folder(cache_dir: str | os.PathLike[str] | None) -> Path:
    return Path(cache_dir or platformdirs.user_cache_path("tiny_llm"))


def _matches(path: Path, pin: Pin) -> bool:
    if not path.is_file() or path.stat().st_size != pin.size:
        return False
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest() == pin.sha256


def _adopt(target: Path, pin: Pin) -> bool:
    """Link a file of the cache that has the same bytes and another ending."""
    return any(
        other.suffix not in (".part", ".etag", ".tmp")
        and _matches(other, pin)
        and atomic_link(other, target)
        for other in target.parent.glob(f"{pin.sha256}*")
    )


class _Clock:
    """Measures how long a download has made no reasonable progress."""

    def __init__(self, stall_s: float) -> None:
        self._stall_s = stall_s
        self.restart()

    def restart(self, size: int = 0) -> None:
        """Begin a new period, with this many bytes received."""
        self._size = size
        self._since = time.monotonic()

    def saw(self, size: int) -> None:
        """Take note of how many bytes have been received."""
        if size - self._size >= max(1, _MIN_BYTES_PER_S * self._stall_s):
            self.restart(size)

    def left(self) -> float:
        """Return the seconds until patience ends."""
        return self._stall_s - (time.monotonic() - self._since)


class _Receiver:
    """Makes requests for a file until it is whole and right, or patience ends.

    `fill` is the only retry loop. Bytes that are here already are asked for again only
    if the server has another version of the file by now, or cannot begin in its middle.
    """

    def __init__(
        self,
        url: str,
        pin: Pin | None,
        on_progress: Callable[[int], object] | None,
        on_wait: Callable[[str], object] | None,
        patience: Patience | None,
    ) -> None:
        self._url = url
        self._shown = hide_password(url)
        self._sha256 = pin.sha256 if pin else None
        # Without a pin, known at the end of the body.
        self._size = pin.size if pin else None
        self._on_progress = on_progress or (lambda _: None)
        self._on_wait = on_wait or (lambda _: None)
        self._patience = patience or Patience()
        self._clock = _Clock(self._patience.stall_s)
        self._num_reported = 0
        self._num_restarts = 0
        # Whether the bytes may be from several versions of the file.
        self._is_doubtful = False

    def report(self, num_bytes: int) -> None:
        """Report each byte once, however often a download restarts."""
        if num_bytes > self._num_reported:
            self._on_progress(num_bytes - self._num_reported)
            self._num_reported = num_bytes

    @contextlib.contextmanager
    def open_part(self, path: Path) -> Iterator[PartFile]:
        """Open the part file; wait for a process that downloads the same file."""
        is_announced = False

        def wait() -> None:
            nonlocal is_announced
            if not is_announced:
                self._on_wait("waiting for another process, which downloads it")
                is_announced = True
            size = path.stat().st_size if path.exists() else 0
            self._clock.saw(size)
            self.report(size)
            if self._clock.left() <= 0:
                raise DownloadError(
                    f"{self._shown}: another process holds {path} and makes no "
                    "progress; end it and run again"
                )

        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open_part(path, wait) as part:
                yield part
        except OSError as error:
            explain_full_disk(error, path, path)
            raise

    def fill(self, part: PartFile) -> None:
        """Receive what is missing; return when the bytes are verified."""
        try:
            self._fill(part)
        except DownloadError as error:
            raise DownloadError(f"{self._shown}: {error}") from error

    def _fill(self, part: PartFile) -> None:
        # Without a pin nothing would reveal that a crash damaged these bytes.
        if self._size is None or part.size > self._size:
            part.restart()
        self._is_doubtful = part.size > 0
        self.report(part.size)
        self._clock.restart(part.size)
        is_range_refused, num_tries = False, 0
        while not self._is_whole(part):
            before = part.size
            try:
                self._receive(part, 0 if is_range_refused else part.size)
            except TransientError as error:
                is_range_refused = isinstance(error, RangeError)
                num_tries = 1 if part.size > before else num_tries + 1
                self._wait(part, error, num_tries)

    def _is_whole(self, part: PartFile) -> bool:
        """Whether all bytes are here, and right."""
        if self._size is None or part.size < self._size:
            return False
        if self._sha256 in (None, part.sha256()):
            return True
        if self._is_doubtful:
            self._on_wait("the bytes are from two versions of the file; starting over")
            self._restart(part)
            return False
        begin, found = part.begin(), part.sha256()
        part.restart()
        raise DownloadError(
            f"got sha256 {found}, not {self._sha256}; the bytes began {begin!r} and "
            "were deleted; check the URL and the pin"
        )

    def _receive(self, part: PartFile, start: int) -> None:
        """Make one request, and append what it brings."""
        patience, clock = self._patience, self._clock
        etag = part.etag if start else ""
        stream = Stream(self._url, start, etag, (patience.connect_s, patience.read_s))
        with contextlib.closing(stream):
            block = stream.next(clock.left())
            self._check(stream.head, block)
            if stream.head.start == 0:
                self._restart(part, stream.head.etag)
            elif not etag:
                self._is_doubtful = True
            while block:
                room = len(block) if self._size is None else self._size - part.size
                part.append(block[:room])
                self.report(part.size)
                clock.saw(part.size)
                if len(block) > room:
                    part.restart()
                    raise DownloadError(
                        f"got more than {self._size:,} bytes, which were deleted; "
                        "check the URL and the pin"
                    )
                if part.size == self._size:
                    return
                block = stream.next(clock.left())
        size = stream.head.size if self._size is None else self._size
        if size is not None and part.size < size:
            raise TransientError("the server closed the connection")
        self._size = part.size

    def _check(self, head: Head, block: bytes) -> None:
        """Refuse an answer that cannot be the file, before it replaces any bytes."""
        begins = f"it begins `{str(block[:40])[2:-1]}`"
        wanted = f"the file with sha256 {self._sha256}" if self._sha256 else "a file"
        is_pinned_size = head.size is not None and head.size == self._size
        if self._size is not None and head.size is not None and not is_pinned_size:
            raise DownloadError(
                f"the server sends {head.size:,} bytes, not {self._size:,}, so it is "
                f"not {wanted}; {begins}; check the URL and the pin"
            )
        is_page = re.match(rb"\s*<(!doctype html|html)\b", block, re.IGNORECASE)
        wants_page = is_pinned_size or file_ending(self._url).startswith(".htm")
        if is_page and not wants_page:
            raise DownloadError(
                f"the server sends a web page, not {wanted}; {begins}; check the URL"
            )
        if self._sha256 is None and not block:
            raise DownloadError("the file is empty")
        if self._sha256 is None and not head.has_end:
            raise DownloadError(
                "the server does not say where the file ends, so it cannot be pinned"
            )

    def _restart(self, part: PartFile, etag: str = "") -> None:
        if part.size:
            self._num_restarts += 1
            self._clock.restart()
        if self._num_restarts > self._patience.num_tries:
            raise DownloadError("the server never goes on where it stopped")
        self._is_doubtful = False
        part.restart(etag)

    def _wait(self, part: PartFile, error: TransientError, num_tries: int) -> None:
        """Wait before another try, or raise an error if that would be too long."""
        patience, left_s = self._patience, self._clock.left()
        backoff_s = min(patience.backoff_s * 2 ** (num_tries - 1), _MAX_BACKOFF_S)
        # Random, so that many clients do not all come back at the same moment.
        wait_s = backoff_s * random.uniform(0.5, 1)  # noqa: S311 - not a secret
        problem = str(error)
        if error.wait_s is not None:
            wait_s = max(wait_s, error.wait_s)
            problem += f" and asks to wait {error.wait_s:,.0f} s"
        if left_s <= 0:
            problem += f"; less than 1 kB/s for {patience.stall_s:,.0f} s"
        if num_tries >= patience.num_tries or wait_s >= left_s:
            size = "an unknown number of" if self._size is None else f"{self._size:,}"
            raise DownloadError(
                f"{problem}; got {part.size:,} of {size} bytes; check the network and "
                "the URL, and run again to resume"
            )
        self._on_wait(
            f"{problem}; try {num_tries + 1} of {patience.num_tries} in {wait_s:.1f} s"
        )
        time.sleep(wait_s)
