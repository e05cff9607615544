"""Transport: the bytes of a URL from any position on.

One request, with its redirects; nothing is tried twice here. Each error says whether
another try might help: TransientError means that it might.
"""

from __future__ import annotations

import contextlib
import http.client
import importlib
import os
import queue
import re
import ssl
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urljoin, urlsplit

import requests
import urllib3.exceptions
from requests.auth import HTTPBasicAuth

from tiny_llm.errors import ConfigError, DownloadError, InputError
from tiny_llm.pins import hide_password

_BLOCK_BYTES = 1 << 20
_OBJECT_BLOCK_BYTES = 8 << 20  # One request each.
_MAX_HOPS = 10
_RETRIED = (408, 425, 429, 500, 502, 503, 504)

Timeouts = tuple[float, float]  # Seconds: to connect, to read.
Blocks = Iterator[bytes]
_Auth = Callable[[requests.PreparedRequest], requests.PreparedRequest]


class TransientError(Exception):
    """Something that may be better at the next try.

    Attributes:
        wait_s: How long the server asks to wait, in seconds; None if it does not say.
    """

    def __init__(self, message: str, wait_s: float | None = None) -> None:
        super().__init__(message)
        self.wait_s = wait_s


class RangeError(TransientError):
    """The server refuses to begin at this position; ask for the whole file."""


@dataclass(frozen=True)
class Head:
    """What a server says before the bytes.

    Attributes:
        start: Position of the first byte: the one asked for, or 0 for the whole file.
        size: Of the whole file in bytes; None if the server does not say.
        has_end: Whether a body that was cut off can be told from a whole one.
        etag: Names this version of the file: an entity tag, or the date of its last
            change; empty if the server gives neither.
    """

    start: int
    size: int | None
    has_end: bool
    etag: str


class Stream:
    """The answer to one request, read ahead by a thread.

    The thread may hang in a name lookup, a handshake or a header that arrives one byte
    at a time. `next` gives up in time nevertheless. A thread that was left behind ends
    when its connection does, at the latest with the process.

    Args:
        url: See `pins.check_url`.
        start: Position of the first byte wanted.
        etag: Of the version that the bytes before `start` are from. If the server has
            another one by now, it sends the whole file.
        timeouts: To connect to an address of the host; for the server to send bytes.

    Attributes:
        head: Set when `next` has returned for the first time.
    """

    head: Head

    def __init__(self, url: str, start: int, etag: str, timeouts: Timeouts) -> None:
        self._queue: queue.Queue[bytes | BaseException] = queue.Queue(2)
        self._is_closed = threading.Event()
        threading.Thread(
            target=self._read, args=(url, start, etag, timeouts), daemon=True
        ).start()

    def next(self, timeout_s: float) -> bytes:
        """Return the next bytes; at the end of the body, none.

        Raises:
            TransientError: Nothing came in time, or the connection broke.
            ConfigError, InputError, DownloadError: Another try would not help.
        """
        try:
            item = self._queue.get(timeout=max(timeout_s, 0.001))
        except queue.Empty:
            raise TransientError("nothing came in time") from None
        if isinstance(item, BaseException):
            raise item
        return item

    def close(self) -> None:
        """Tell the thread to end, without waiting for it."""
        self._is_closed.set()
        with contextlib.suppress(queue.Empty):
            while True:
                self._queue.get_nowait()

    def _read(self, url: str, start: int, etag: str, timeouts: Timeouts) -> None:
        readers = {"file": _read_file, "s3": _read_object, "gs": _read_object}
        read = readers.get(urlsplit(url).scheme, _read_http)
        try:
            with read(url, start, etag, timeouts) as (self.head, blocks):
                for block in blocks:
                    self._queue.put(block)
                    if self._is_closed.is_set():
                        return
            self._queue.put(b"")
        except BaseException as error:  # `next` raises it in the caller's thread.
            self._queue.put(error)


# Files and objects


@contextlib.contextmanager
def _read_file(
    url: str, start: int, etag: str, _: Timeouts
) -> Iterator[tuple[Head, Blocks]]:
    path = Path(urllib.request.url2pathname(urlsplit(url).path))
    if not path.is_file():
        what = "not a regular file" if path.exists() else "no such file"
        raise InputError(f"{path}: {what}")
    with open(path, "rb") as file:
        status = os.fstat(file.fileno())
        version = f"{status.st_mtime_ns}-{status.st_size}"
        start = start if etag == version else 0
        file.seek(start)
        head = Head(start, status.st_size, True, version)
        yield head, iter(lambda: file.read(_BLOCK_BYTES), b"")


@contextlib.contextmanager
def _read_object(
    url: str, start: int, etag: str, _: Timeouts
) -> Iterator[tuple[Head, Blocks]]:
    """An object in S3 or Google Cloud Storage, through s3fs or gcsfs.

    They find the user's credentials and endpoint, as they do for pandas or datasets.
    """
    scheme, name = url.split("://", 1)
    package = {"s3": "s3fs", "gs": "gcsfs"}[scheme]
    try:
        importlib.import_module(package)
        fsspec: Any = importlib.import_module("fsspec")
    except ImportError as error:
        raise ConfigError(
            f"run `python -m pip install {package}`, which {scheme}:// needs"
        ) from error
    try:
        store = fsspec.filesystem(scheme, skip_instance_cache=True)
        info = store.info(name)
        size = int(info["size"])
        version = str(info.get("ETag") or info.get("etag") or info.get("mtime") or "")
        start = start if version and etag == version else 0
        head = Head(start, size, True, version)
        places = range(start, size, _OBJECT_BLOCK_BYTES)
        ends = (min(place + _OBJECT_BLOCK_BYTES, size) for place in places)
        pairs = zip(places, ends, strict=True)
        yield head, (store.cat_file(name, start=i, end=end) for i, end in pairs)
    except Exception as error:
        kind = type(error).__name__  # Each package has its own kinds.
        message = _show(f"{kind}: {error}")
        if kind == "NoCredentialsError":
            raise DownloadError(
                f"{message}; for a public bucket, set FSSPEC_S3_ANON=true"
            ) from error
        if isinstance(error, FileNotFoundError | PermissionError):
            raise DownloadError(message) from error
        raise TransientError(message) from error


# HTTP


@contextlib.contextmanager
def _read_http(
    url: str, start: int, etag: str, timeouts: Timeouts
) -> Iterator[tuple[Head, Blocks]]:
    hops: list[str] = []
    # A compressed transfer would change the meaning of sizes and ranges.
    headers = {"Accept-Encoding": "identity", "User-Agent": "tiny_llm"}
    if start:
        headers["Range"] = f"bytes={start}-"
        if etag:
            headers["If-Range"] = etag
    with _explain_errors(hops), contextlib.ExitStack() as stack:
        session = stack.enter_context(_Session())
        session.headers.update(headers)

        def get(url: str, auth: _Auth) -> requests.Response:
            response = session.get(url, auth=auth, stream=True, timeout=timeouts)
            return stack.enter_context(response)

        response = _follow(url, hops, get)
        _check_status(response, start)
        # read1, unlike iter_content, returns bytes as they come: a process that is
        # killed loses none of them.
        read = response.raw.read1
        yield (
            _read_head(response, start, etag),
            iter(lambda: read(_BLOCK_BYTES, decode_content=False), b""),
        )


class _Session(requests.Session):
    """Leaves redirects to `_follow`: requests would follow https to http."""

    def get_redirect_target(self, resp: requests.Response) -> None:
        """Find no target."""


def _follow(
    url: str, hops: list[str], get: Callable[[str, _Auth], requests.Response]
) -> requests.Response:
    """Ask for a URL and follow redirects; `hops` gets each URL that is asked for."""
    if url.startswith("hf://"):
        repo, _, rest = url.removeprefix("hf://").partition("@")
        commit, _, name = rest.partition("/")
        url = f"{_hf_endpoint()}/{repo}/resolve/{commit}/{quote(name, safe='/%')}"
    parts = urlsplit(url)
    login, at, host = parts.netloc.rpartition("@")
    url = parts._replace(netloc=host).geturl()
    user, _, password = login.partition(":")
    basic = HTTPBasicAuth(unquote(user).encode(), unquote(password).encode())
    first = _origin(url)
    while True:
        hops.append(url)
        is_own = bool(at) and _origin(url) == first
        response = get(url, basic if is_own else authorize_hf)
        location = response.headers.get("Location")
        if response.status_code not in (301, 302, 303, 307, 308) or location is None:
            return response
        url = _check_redirect(hops, location)


def authorize_hf(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Add the user's token, if the request goes to Hugging Face's host."""
    token = os.environ.get("HF_TOKEN", "").strip()
    if token and _origin(request.url or "") == _origin(_hf_endpoint()):
        if not re.fullmatch(r"[!-~]+", token):
            raise ConfigError(
                "HF_TOKEN holds characters that no token has; set it again"
            )
        request.headers["Authorization"] = f"Bearer {token}"
    return request


def _hf_endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def _origin(url: str) -> tuple[str, str | None, int | None]:
    """Return scheme, host and port, which must be equal to share credentials."""
    parts = urlsplit(url)
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    return parts.scheme, parts.hostname, port


def _check_redirect(hops: list[str], location: str) -> str:
    chain = " -> ".join(map(_show, [*hops, location]))
    try:
        url = urljoin(hops[-1], location)
        parts = urlsplit(url)
        _origin(url)  # Fails for an impossible port.
    except ValueError as error:
        raise DownloadError(f"a redirect leads nowhere: {chain}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
        raise DownloadError(f"a redirect leads nowhere: {chain}")
    if parts.scheme == "http" and urlsplit(hops[-1]).scheme == "https":
        raise DownloadError(f"a redirect leads from https to http: {chain}")
    if url in hops or len(hops) > _MAX_HOPS:
        raise DownloadError(f"redirects do not end: {chain}")
    return url


def _check_status(response: requests.Response, start: int) -> None:
    status = response.status_code
    if status == 200 or (status == 206 and start):
        return
    name = f"the server answered {status} {http.client.responses.get(status, '')}"
    if status == 416 and start:
        raise RangeError(name)
    if status in _RETRIED:
        raise TransientError(name, _parse_wait(response.headers.get("Retry-After", "")))
    hint = "; a gated dataset needs a token in HF_TOKEN" if status in (401, 403) else ""
    raise DownloadError(f"{name}{hint}; check the URL")


def _parse_wait(text: str) -> float | None:
    """Read Retry-After: seconds, or a date."""
    if re.fullmatch(r"[0-9]{1,9}", text):
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def _read_head(response: requests.Response, start: int, etag: str) -> Head:
    headers = response.headers
    found = headers.get("ETag", "")
    if not re.fullmatch(r'"[^"\r\n]{1,500}"', found):  # A weak tag cannot be resumed.
        found = headers.get("Last-Modified", "")
    if response.status_code == 200:
        length = headers.get("Content-Length", "")
        is_chunked = "chunked" in headers.get("Transfer-Encoding", "").lower()
        size = int(length) if length.isdecimal() and not is_chunked else None
        return Head(0, size, is_chunked or size is not None, found)
    match = re.fullmatch(
        r"bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]{1,18}|\*)",
        headers.get("Content-Range", ""),
    )
    if not match or int(match[1]) != start:
        raise RangeError("the server sent another range")
    if etag and found and found != etag:
        raise RangeError("the file has changed")
    return Head(start, None if match[2] == "*" else int(match[2]), True, etag)


@contextlib.contextmanager
def _explain_errors(hops: list[str]) -> Iterator[None]:
    """Turn what requests and urllib3 raise into a TransientError or DownloadError."""
    kinds = urllib3.exceptions
    try:
        yield
    except (requests.RequestException, kinds.HTTPError, OSError, UnicodeError) as error:
        causes = list(_causes(error))

        def find(*types: type[BaseException]) -> Any:
            return next((cause for cause in causes if isinstance(cause, types)), None)

        host = urlsplit(hops[-1]).netloc
        if problem := find(ssl.SSLCertVerificationError):
            message = (
                f"the certificate of {host} is not valid: {problem.verify_message}"
            )
            raise DownloadError(_show(message)) from error
        if find(requests.exceptions.InvalidURL, kinds.LocationValueError, UnicodeError):
            raise DownloadError(_show(f"not a usable URL: {error}")) from error
        if find(kinds.NameResolutionError):
            message = f"cannot find the host {host}"
        elif find(kinds.ProxyError):
            message = f"cannot reach the proxy for {host}"
        elif find(kinds.NewConnectionError, kinds.ConnectTimeoutError):
            problem = find(ConnectionError)
            reason = getattr(problem, "strerror", None) or "it does not answer"
            message = f"cannot reach {host}: {reason}"
        elif find(kinds.ReadTimeoutError, TimeoutError):
            message = f"{host} sends nothing"
        elif problem := find(ssl.SSLError):
            message = f"no secure connection to {host}: {problem.reason}"
        elif find(ConnectionError, http.client.IncompleteRead):
            message = f"{host} closed the connection"
        else:
            message = f"{host} sent no proper answer"
        raise TransientError(_show(message)) from error


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and those it wraps: requests and urllib3 nest them in `args`."""
    yield error
    wrapped = [*error.args, getattr(error, "reason", None), error.__cause__]
    for cause in {id(e): e for e in wrapped if isinstance(e, BaseException)}.values():
        yield from _causes(cause)


def _show(text: str) -> str:
    """Make what a server sent fit to be printed, and hide secrets."""
    text = "".join(char if char.isprintable() else "?" for char in text)
    return hide_password(text if len(text) <= 300 else f"{text[:300]}...")
