"""The manifest of a token file: what the file must hold, as JSON beside it."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from tiny_llm.errors import InputError, IntegrityError

FORMAT_VERSION = 1
DTYPES: dict[str, np.dtype[Any]] = {
    "uint16": np.dtype("<u2"),
    "uint32": np.dtype("<u4"),
}


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a token file must hold.

    Attributes:
        format_version: 1.
        dtype: "uint16" or "uint32", little-endian on disk.
        num_tokens: Number of ids in the file.
        num_documents: Number of documents, blank ones included.
        num_bytes: Size of the text that was encoded, in bytes.
        vocab_size: Every id is below it.
        separator_id: The id that ends a document.
        sha256: Digest of the token file.
        tokenizer_sha256: `BPETokenizer.sha256` of the tokenizer that made the ids.
        block_crc32: CRC-32 of each 16 MiB block of the file, to locate damage.
    """

    format_version: int
    dtype: str
    num_tokens: int
    num_documents: int
    num_bytes: int
    vocab_size: int
    separator_id: int
    sha256: str
    tokenizer_sha256: str
    block_crc32: list[int]


def dtype_for(vocab_size: int) -> np.dtype[Any]:
    """Return the narrowest dtype that holds every id of a vocab: uint16 or uint32."""
    return DTYPES["uint16" if vocab_size <= 1 << 16 else "uint32"]


def manifest_path(path: str | os.PathLike[str]) -> Path:
    """Return the path of a token file's manifest: train.json for train.bin.

    >>> manifest_path("tokens/train.bin").as_posix()
    'tokens/train.json'
    """
    return Path(path).with_suffix(".json")


def read_manifest(path: str | os.PathLike[str]) -> Manifest:
    """Read the manifest of the token file at `path`.

    Raises:
        InputError: There is none.
        IntegrityError: It is damaged, or of a format this version cannot read.
    """
    source = manifest_path(path)
    if not source.is_file():
        raise InputError(f"{source}: no manifest for {path}; encode the text again")
    try:
        return _parse(source.read_bytes())
    except (ValueError, RecursionError) as error:
        raise IntegrityError(
            f"{source} is not the manifest of a token file ({error}); "
            "encode the text again"
        ) from error


def check_tokenizer(
    path: str | os.PathLike[str], manifest: Manifest, tokenizer_sha256: str
) -> None:
    """Refuse a token file that another tokenizer made.

    Raises:
        IntegrityError: The digests differ.
    """
    if manifest.tokenizer_sha256 != tokenizer_sha256:
        raise IntegrityError(
            f"{path} was made by the tokenizer with sha256 "
            f"{manifest.tokenizer_sha256[:12]}..., not by {tokenizer_sha256[:12]}...; "
            "use that tokenizer, or encode the text again"
        )


def _parse(content: bytes) -> Manifest:
    values = json.loads(content, object_pairs_hook=_to_dict)
    if not isinstance(values, dict) or "format_version" not in values:
        raise ValueError("no format_version")
    version = values["format_version"]
    if type(version) is not int or version != FORMAT_VERSION:
        raise ValueError(
            f"format_version {_brief(version)}; this version of tiny_llm reads "
            f"{FORMAT_VERSION}"
        )
    names = {field.name for field in dataclasses.fields(Manifest)}
    if wrong := sorted(names ^ values.keys()):
        what = "lacks" if wrong[0] in names else "has an unknown"
        raise ValueError(f"it {what} {_brief(wrong[0])}")
    _check_values(Manifest(**values))
    return Manifest(**values)


def _to_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a key occurs twice")
    return values


def _check_values(manifest: Manifest) -> None:
    """Refuse values that no writer writes; `tokens.verify` checks the file itself."""
    _check_int("num_tokens", manifest.num_tokens, 0, 1 << 60)
    _check_int("num_documents", manifest.num_documents, 0, manifest.num_tokens)
    _check_int("num_bytes", manifest.num_bytes, 0, 1 << 63)
    _check_int("vocab_size", manifest.vocab_size, 1, 1 << 32)
    _check_int("separator_id", manifest.separator_id, 0, manifest.vocab_size - 1)
    _check_text("sha256", manifest.sha256, r"[0-9a-f]{64}")
    _check_text("tokenizer_sha256", manifest.tokenizer_sha256, r"[!-~]{0,64}")
    if not isinstance(manifest.block_crc32, list):
        raise ValueError(f"block_crc32 is {_brief(manifest.block_crc32)}, not a list")
    for crc32 in manifest.block_crc32:
        _check_int("a value of block_crc32", crc32, 0, (1 << 32) - 1)
    expected = dtype_for(manifest.vocab_size).name
    if manifest.dtype != expected:
        raise ValueError(
            f"dtype is {_brief(manifest.dtype)}, but a vocab_size of "
            f"{manifest.vocab_size:,} takes {expected!r}"
        )


def _check_int(name: str, value: object, at_least: int, at_most: int) -> None:
    if type(value) is not int or not at_least <= value <= at_most:
        raise ValueError(
            f"{name} is {_brief(value)}, not an integer from {at_least} to {at_most:,}"
        )


def _check_text(name: str, value: object, pattern: str) -> None:
    if not isinstance(value, str) or not re.fullmatch(pattern, value):
        raise ValueError(f"{name} is {_brief(value)}, not a SHA-256 digest")


def _brief(value: object) -> str:
    """Format a value of any size in one short line."""
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
