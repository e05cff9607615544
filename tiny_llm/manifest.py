"""The manifest of a token file: what the file must hold, as JSON beside it.

A token file is written in ranges, each the ids of a fixed amount of text. The manifest
lists their digests, so that ranges can be made, verified and joined independently. A
.bin file from elsewhere has no manifest; `read_format` knows what it may hold.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from tiny_llm.atomic import to_json
from tiny_llm.errors import InputError, IntegrityError

FORMAT_VERSION = 2
DTYPES: dict[str, np.dtype[Any]] = {
    "uint16": np.dtype("<u2"),
    "uint32": np.dtype("<u4"),
}

# The files of llm.c (dev/data/data_common.py) and modded-nanogpt begin with 256 int32:
# a magic number, a version, the number of ids, and zeros. The keys are magic numbers.
LLM_C_HEADER_BYTES = 256 * 4
LLM_C_DTYPES = {20240520: (1, "uint16"), 20240801: (7, "uint32")}


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a token file must hold.

    Attributes:
        format_version: 2, or 1 for a file that an older version of tiny_llm wrote.
        dtype: "uint16" or "uint32", little-endian on disk.
        num_tokens: Number of ids in the file.
        num_documents: Number of documents, blank ones included.
        num_bytes: Size of the text that was encoded, in bytes.
        vocab_size: Every id is below it.
        separator_id: The id that ends a document.
        sha256: Digest of the ids: of `range_sha256`, see `digest_of_ranges`. In format
            version 1, SHA-256 of the file.
        tokenizer_sha256: `BPETokenizer.sha256` of the tokenizer that made the ids.
        range_tokens: Number of ids in each range.
        range_sha256: SHA-256 of the bytes of each range. A file of format version 1 is
            one range.
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
    range_tokens: list[int]
    range_sha256: list[str]


def dtype_for(vocab_size: int) -> np.dtype[Any]:
    """Return the narrowest dtype that holds every id of a vocab: uint16 or uint32."""
    return DTYPES["uint16" if vocab_size <= 1 << 16 else "uint32"]


def manifest_path(path: str | os.PathLike[str]) -> Path:
    """Return the path of a token file's manifest: train.json for train.bin.

    >>> manifest_path("tokens/train.bin").as_posix()
    'tokens/train.json'
    """
    return Path(path).with_suffix(".json")


def documents_path(path: str | os.PathLike[str]) -> Path:
    """Return the path of a token file's index: train.documents for train.bin."""
    return Path(path).with_suffix(".documents")


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


def read_format(
    path: str | os.PathLike[str],
) -> tuple[np.dtype[Any], int, Manifest | None]:
    """Find out how the ids of a token file are stored, and check its size.

    Returns:
        The dtype of the ids, where they begin in the file, and the manifest: None for a
        .bin that came from elsewhere.

    Raises:
        InputError, IntegrityError: See `tokens.open_tokens`.
    """
    manifest, offset = None, 0
    num_bytes = os.path.getsize(path)
    if manifest_path(path).is_file():
        manifest = read_manifest(path)
        dtype = DTYPES[manifest.dtype]
        check_size(path, num_bytes, manifest)
    elif Path(path).suffix != ".bin":
        raise InputError(
            f"{path} has no manifest and is not called NAME.bin; give a token file"
        )
    elif documents_path(path).is_file():
        raise IntegrityError(
            f"{path} has an index, {documents_path(path)}, but its manifest "
            f"{manifest_path(path)} is missing; copy that too, or encode the text again"
        )
    elif header_dtype := _read_header(path, num_bytes):
        dtype, offset = header_dtype, LLM_C_HEADER_BYTES
    else:
        dtype = DTYPES["uint16"]
    if num_bytes == offset or num_bytes % dtype.itemsize:
        raise InputError(
            f"{path} holds {num_bytes - offset:,} bytes, not a positive number of "
            f"{dtype.name} ids; encode the text again"
        )
    return dtype, offset, manifest


def _read_header(path: str | os.PathLike[str], num_bytes: int) -> np.dtype[Any] | None:
    """Return the dtype that an llm.c header gives, or None if there is no header."""
    header = np.fromfile(path, "<i4", LLM_C_HEADER_BYTES // 4)
    if len(header) == 0 or int(header[0]) not in LLM_C_DTYPES:
        return None
    magic, version, num_tokens = [*header.tolist(), 0, 0][:3]
    known_version, dtype_name = LLM_C_DTYPES[magic]
    if version != known_version:
        raise IntegrityError(
            f"{path} is a token file of llm.c ({magic}) in version {version}; only "
            f"version {known_version} can be read, so write it again"
        )
    dtype = DTYPES[dtype_name]
    expected = LLM_C_HEADER_BYTES + num_tokens * dtype.itemsize
    if num_bytes != expected:
        raise IntegrityError(
            f"{path} holds {num_bytes:,} bytes, its llm.c header says {expected:,} "
            f"({num_tokens:,} ids of {dtype.name}); copy or write it again"
        )
    return dtype


def check_size(
    path: str | os.PathLike[str], num_bytes: int, manifest: Manifest
) -> None:
    """Raise an IntegrityError unless a token file has the size its manifest says."""
    expected = manifest.num_tokens * DTYPES[manifest.dtype].itemsize
    if num_bytes != expected:
        raise IntegrityError(
            f"{path} holds {num_bytes:,} bytes, its manifest says {expected:,} "
            f"({manifest.num_tokens:,} ids of {manifest.dtype}); encode the text again"
        )


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


def format_manifest(manifest: Manifest) -> bytes:
    """Return a manifest as JSON that ends with its own digest."""
    values = dict(vars(manifest))
    return to_json({**values, "manifest_sha256": _digest(values)})


def digest_of_ranges(range_sha256: list[str]) -> str:
    """Return the digest of a token file: SHA-256 of the digests of its ranges.

    >>> digest_of_ranges([])[:8]
    'e3b0c442'
    """
    return hashlib.sha256(bytes.fromhex("".join(range_sha256))).hexdigest()


def _digest(values: dict[str, Any]) -> str:
    return hashlib.sha256(to_json(values)).hexdigest()


def _parse(content: bytes) -> Manifest:
    values = json.loads(content, object_pairs_hook=_to_dict)
    if not isinstance(values, dict) or "format_version" not in values:
        raise ValueError("no format_version")
    version = values["format_version"]
    if type(version) is not int or version not in (1, FORMAT_VERSION):
        raise ValueError(
            f"format_version {_brief(version)}; this version of tiny_llm reads 1 to "
            f"{FORMAT_VERSION}"
        )
    names = [field.name for field in dataclasses.fields(Manifest)]
    names = (
        [*names[:-2], "block_crc32"] if version == 1 else [*names, "manifest_sha256"]
    )
    if wrong := sorted(set(names) ^ values.keys()):
        what = "lacks" if wrong[0] in names else "has an unknown"
        raise ValueError(f"it {what} {_brief(wrong[0])}")
    if version == 1:
        del values["block_crc32"]
        values["range_tokens"] = [values["num_tokens"]]
        values["range_sha256"] = [values["sha256"]]
    digest = values.pop("manifest_sha256", None)
    manifest = Manifest(**values)
    _check_values(manifest)
    if version != 1 and content != format_manifest(manifest):
        raise ValueError(f"its manifest_sha256 is {_brief(digest)}: it was changed")
    return manifest


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
    for name in ("range_tokens", "range_sha256"):
        value = getattr(manifest, name)
        if not isinstance(value, list) or not value:
            raise ValueError(f"{name} is {_brief(value)}, not a list")
    for num_tokens in manifest.range_tokens:
        _check_int("a value of range_tokens", num_tokens, 0, manifest.num_tokens)
    for sha256 in manifest.range_sha256:
        _check_text("a value of range_sha256", sha256, r"[0-9a-f]{64}")
    if len(manifest.range_tokens) != len(manifest.range_sha256):
        raise ValueError("range_tokens and range_sha256 are of different lengths")
    if sum(manifest.range_tokens) != manifest.num_tokens:
        raise ValueError("range_tokens do not add up to num_tokens")
    if (
        manifest.format_version != 1
        and digest_of_ranges(manifest.range_sha256) != manifest.sha256
    ):
        raise ValueError("sha256 is not the digest of range_sha256")
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
