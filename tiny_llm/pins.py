"""Pins: files whose size and SHA-256 are known before they are downloaded.

A manifest is YAML that gives each split one pin or a list of them:

    train:
      - {url: https://example.org/part-0.jsonl.gz, size: 81920, sha256: 5f2b...}
      - {url: part-1.jsonl.gz, size: 70912, sha256: 91aa...}  # beside the manifest
"""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from tiny_llm.errors import ConfigError
from tiny_llm.filekind import COMPRESSED_ENDINGS
from tiny_llm.layout import SPLITS
from tiny_llm.yaml_file import read_yaml

_SCHEMES = "https, http, hf, s3, gs or file, or the path of a file"
_MANIFEST_OR_FOLDER = (
    "give a manifest such as pipeline/tinystories.yaml, or the folder that holds your "
    "train.txt and valid.txt"
)
_KEYS = ("url", "size", "sha256")
_HF_URL = re.compile(r"hf://datasets/(?:[\w.-]+/)?[\w.-]+@[0-9a-f]{40}/[^/].*")
_ENDING = re.compile(r"(\.\w{1,16})?(\.\w{1,16})$", re.ASCII)


@dataclasses.dataclass(frozen=True)
class Pin:
    """A file whose size and digest are known before it is downloaded.

    Attributes:
        url: See `check_url`.
        size: In bytes.
        sha256: 64 hexadecimal digits, in lower case.
    """

    url: str
    size: int
    sha256: str


class UnpinnedError(ConfigError):
    """A manifest gives a file without its sha256.

    Attributes:
        place: The manifest, the split and the number of the file.
        url: Of the file, so that a caller can offer the missing pin.
    """

    def __init__(self, place: str, url: str) -> None:
        super().__init__(
            f"{place} lacks sha256; `python -m pipeline fetch --pin URL` prints it"
        )
        self.place = place
        self.url = url


def read_pins(path: str | os.PathLike[str]) -> dict[str, list[Pin]]:
    """Read a manifest: the pins of train and, unless it is left out, of valid.

    Raises:
        InputError: There is no such file.
        UnpinnedError: A sha256 is missing.
        ConfigError: It is not a manifest; names the split, the number of the file if
            the split has a list, and the key.
    """
    try:
        manifest = read_yaml(path)
    except ConfigError as error:
        raise ConfigError(f"{error}; {_MANIFEST_OR_FOLDER}") from error
    if not isinstance(manifest, dict) or "train" not in manifest:
        raise ConfigError(
            f"{path} lacks train, with url, size and sha256 of one file or a list of "
            f"files; {_MANIFEST_OR_FOLDER}"
        )
    if unknown := [key for key in manifest if key not in SPLITS]:
        raise ConfigError(f"{path}: unknown split {unknown[0]!r}; give train and valid")
    pins = {}
    for split in SPLITS:
        if split in manifest:
            entries = manifest[split]
            if isinstance(entries, list):
                numbered = [
                    (f"{split} {i}", entry) for i, entry in enumerate(entries, 1)
                ]
            else:
                numbered = [(split, entries)]
            if not numbered:
                raise ConfigError(f"{path}: {split} is empty; give one file or more")
            pins[split] = [
                _read_pin(path, f"{path}: {place}", entry) for place, entry in numbered
            ]
    return pins


def _read_pin(path: str | os.PathLike[str], place: str, entry: Any) -> Pin:
    if not isinstance(entry, dict):
        raise ConfigError(f"{place} is {entry!r}; give url, size and sha256")
    if unknown := [key for key in entry if key not in _KEYS]:
        raise ConfigError(
            f"{place} has the unknown key {unknown[0]!r}; give url, size and sha256"
        )
    if not isinstance(entry.get("url"), str):
        raise ConfigError(f"{place} has url {entry.get('url')!r}; give {_SCHEMES}")
    try:
        url = check_url(entry["url"], Path(path).parent)
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from error
    size, sha256 = entry.get("size"), entry.get("sha256")
    if sha256 is None:
        raise UnpinnedError(place, url)
    if type(size) is not int or not 1 <= size < 1 << 63:
        raise ConfigError(f"{place} has size {size!r}; give the number of bytes, >= 1")
    if not isinstance(sha256, str) or not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise ConfigError(
            f"{place} has sha256 {sha256!r}; give 64 hexadecimal digits in lower case"
        )
    return Pin(url, size, sha256)


def check_url(url: str, folder: str | os.PathLike[str] = ".") -> str:
    """Check the form of a URL before anything is sent.

    Args:
        url: One of
            https://HOST/PATH or http://HOST/PATH;
            hf://datasets/OWNER/NAME@COMMIT/PATH, a file of a Hugging Face dataset;
            s3://BUCKET/KEY or gs://BUCKET/KEY, an object in cloud storage;
            file:///PATH, or the path of a file.
        folder: What the path of a file is relative to.

    Returns:
        The URL; a path as an absolute file:// URL.

    Raises:
        ConfigError: It has another form; says which.

    >>> check_url("https://example.org/stories.txt")
    'https://example.org/stories.txt'
    """
    shown = hide_password(url)
    scheme, mark, rest = url.partition("://")
    if not mark:
        if not url or "\0" in url:
            raise ConfigError(f"url is {url!r}; give {_SCHEMES}")
        return Path(folder, url).absolute().as_uri()
    if not url.isprintable() or " " in url:
        raise ConfigError(f"url {shown!r} has a space or control character; use %20")
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigError(f"url {shown} is malformed: {error}") from error
    if scheme in ("https", "http"):
        if not host:
            raise ConfigError(f"url {shown} names no host; give https://HOST/PATH")
    elif scheme == "hf":
        if not _HF_URL.fullmatch(url):
            raise ConfigError(
                f"url {shown} is not hf://datasets/OWNER/NAME@COMMIT/PATH with a "
                "commit of 40 hexadecimal digits (a branch such as main can change)"
            )
    elif scheme in ("s3", "gs"):
        if not parts.netloc or not parts.path.strip("/"):
            raise ConfigError(f"url {shown} is not {scheme}://BUCKET/KEY")
    elif scheme != "file":
        raise ConfigError(f"url {shown} has the scheme {scheme!r}; give {_SCHEMES}")
    elif not rest.startswith("/"):
        raise ConfigError(f"url {shown} names a host; give file:///PATH")
    return url


def file_ending(url: str) -> str:
    """Return how the file's name ends, which tells what shape its data has.

    >>> file_ending("https://example.org/v1.2/stories.jsonl.gz?download=true")
    '.jsonl.gz'
    """
    name = unquote(urlsplit(url).path).rpartition("/")[2]
    found = _ENDING.search(name.lower())
    if not found or found.start(2) == 0:
        return ""
    return found[0] if found[2] in COMPRESSED_ENDINGS else found[2]


def hide_password(text: str) -> str:
    """Hide what may be secret in the URLs of a message: users, passwords, queries.

    >>> hide_password("404 Not Found: https://ann:secret@example.org/x?key=secret")
    '404 Not Found: https://***@example.org/x?***'
    """
    text = re.sub(r"(://)[^/\s]*@", r"\1***@", text)
    return re.sub(r"(://[^\s?]*\?)[^\s#'\"]+", r"\1***", text)
