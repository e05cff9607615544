"""Download: a URL becomes a verified local file.

A file gets its final name only after its size and SHA-256 are checked. A download
that stops early leaves a `.part` file, and the next try resumes from it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

import platformdirs
import requests
import requests.adapters
import urllib3.util

from tiny_llm.atomic import explain_full_disk
from tiny_llm.errors import ConfigError, IntegrityError
from tiny_llm.layout import SPLITS
from tiny_llm.yaml_file import read_yaml

_BLOCK_BYTES = 1 << 16
_CONNECT_TIMEOUT_S = 20
_READ_TIMEOUT_S = 60
_TRIES = 5
_CONNECT_RETRIES = 4  # within a try, with backoff
_MANIFEST_OR_FOLDER = (
    "give a manifest such as pipeline/tinystories.yaml, or the folder that holds your "
    "train.txt and valid.txt"
)


@dataclasses.dataclass(frozen=True)
class Pin:
    """A file whose size and digest are known before it is downloaded.

    Attributes:
        url: http or https.
        size: In bytes.
        sha256: 64 hexadecimal digits.
    """

    url: str
    size: int
    sha256: str


def read_pins(path: str | os.PathLike[str]) -> dict[str, Pin]:
    """Read a manifest of downloads: YAML with url, size and sha256 per split.

    Raises:
        InputError: There is no such file.
        ConfigError: It is not a manifest; names the split at fault.
    """
    try:
        manifest = read_yaml(path)
    except ConfigError as error:
        raise ConfigError(f"{error}; {_MANIFEST_OR_FOLDER}") from error
    pins = {}
    for split in SPLITS:
        try:
            pin = Pin(**manifest[split])
        except (KeyError, TypeError) as error:
            raise ConfigError(
                f"{path}: {split} needs url, size and sha256, and nothing else; "
                f"{_MANIFEST_OR_FOLDER}"
            ) from error
        if (
            not str(pin.url).startswith(("http://", "https://"))
            or type(pin.size) is not int
            or pin.size < 1
            or not re.fullmatch(r"[0-9a-f]{64}", str(pin.sha256))
        ):
            raise ConfigError(
                f"{path}: {split} has url {hide_password(str(pin.url))!r}, size "
                f"{pin.size!r}, sha256 {pin.sha256!r}; give an http or https URL, a "
                "number of bytes, and 64 hexadecimal digits in lower case"
            )
        pins[split] = pin
    return pins


def hide_password(text: str) -> str:
    """Replace the user and password of every URL in a message.

    >>> hide_password("404 Not Found: https://ann:secret@example.org/x")
    '404 Not Found: https://***@example.org/x'
    """
    return re.sub(r"(://)[^/\s]*@", r"\1***@", text)


def download(
    pin: Pin,
    cache_dir: str | os.PathLike[str] | None = None,
    *,
    on_progress: Callable[[int], object] | None = None,
) -> Path:
    """Download a pinned file to the cache folder, unless it is there already.

    Args:
        pin: What to download. The digest is also the file's name in the cache, so
            a file is downloaded only once, whatever its URL.
        cache_dir: By default `tiny_llm` in the user's cache folder.
        on_progress: Called with the number of bytes received since the last call.
            Each byte is reported once; those from an earlier run come in one call.

    Returns:
        The path of the verified file.

    Raises:
        IntegrityError: The server cannot be reached, answers with an error, or sends
            bytes that do not match the pin.
        ResourceError: The disk is full.
    """
    if cache_dir is None:
        cache_dir = platformdirs.user_cache_path("tiny_llm")
    target = Path(cache_dir) / pin.sha256
    progress = _Progress(on_progress)
    if _size(target) == pin.size and _digest(target) == pin.sha256:
        progress.reach(pin.size)
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    for _ in range(_TRIES):
        try:
            _load_rest(pin, part, progress)
            problem = "the server closed the connection"
        except requests.RequestException as error:
            problem = _explain(error)
            if _is_final(error):
                break
        except OSError as error:
            explain_full_disk(error, target, part)
            raise
        if _size(part) == pin.size:
            if (found := _digest(part)) != pin.sha256:
                _refuse(pin, part, f"sha256 {found}, not {pin.sha256}")
            os.replace(part, target)
            return target
    raise IntegrityError(
        f"{hide_password(pin.url)}: {problem}; got {_size(part):,} of {pin.size:,} "
        "bytes; check the network and the URL, and run again to resume"
    )


class _Progress:
    """Reports each byte once, however often a download restarts."""

    def __init__(self, on_progress: Callable[[int], object] | None) -> None:
        self._on_progress = on_progress
        self._reported = 0

    def reach(self, num_bytes: int) -> None:
        if self._on_progress and num_bytes > self._reported:
            self._on_progress(num_bytes - self._reported)
            self._reported = num_bytes


def _explain(error: requests.RequestException) -> str:
    if isinstance(error, requests.ConnectionError) and error.request is not None:
        return f"cannot reach {urlsplit(error.request.url).hostname!s}"
    return hide_password(str(error))


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _is_final(error: requests.RequestException) -> bool:
    """Whether another try would fail in the same way."""
    status = error.response.status_code if error.response is not None else 0
    return 400 <= status < 500 and status not in (416, 429)


def _load_rest(pin: Pin, part: Path, progress: _Progress) -> None:
    """Append what is missing to the `.part` file, or start over."""
    have = _size(part)
    if have == pin.size:
        return
    # A compressed transfer would change the meaning of sizes and ranges.
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    timeout = (_CONNECT_TIMEOUT_S, _READ_TIMEOUT_S)
    with (
        _session() as session,
        session.get(pin.url, headers=headers, stream=True, timeout=timeout) as response,
    ):
        if response.status_code == 416:
            part.unlink()  # Not a prefix of this file; the next try starts over.
        response.raise_for_status()
        resumed = response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        with open(part, "ab" if resumed else "wb") as file:
            for block in response.iter_content(_BLOCK_BYTES):
                file.write(block)
                progress.reach(file.tell())
                if file.tell() > pin.size:
                    _refuse(pin, part, f"more than {pin.size:,} bytes")


def _session() -> requests.Session:
    session = requests.Session()
    retry = urllib3.util.Retry(
        total=_CONNECT_RETRIES,
        backoff_factor=0.5,
        status_forcelist=(429, 500, 502, 503, 504),
        respect_retry_after_header=True,
        raise_on_status=False,
    )
    adapter = requests.adapters.HTTPAdapter(max_retries=retry)
    session.mount("http://", adapter)
    session.mount("https://", adapter)
    return session


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _refuse(pin: Pin, part: Path, found: str) -> NoReturn:
    """Delete the `.part` file, whose bytes do not match the pin, and say so."""
    with open(part, "rb") as file:
        begin = file.read(40)
    part.unlink()
    raise IntegrityError(
        f"{hide_password(pin.url)}: got {found}; the bytes began {begin!r} and were "
        "deleted; check the URL and the pin"
    )
