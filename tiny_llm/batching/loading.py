"""Loading: open paths, and wrap arrays and tensors as sources."""

from __future__ import annotations

import functools
import glob
import os
from collections.abc import Sequence
from pathlib import Path
from typing import overload

import numpy as np
import torch

from tiny_llm.batching.sources import (
    CHUNK,
    ArraySource,
    DeviceArray,
    JoinedArrays,
    Source,
    StrPath,
    TokenFile,
)
from tiny_llm.batching.windows import Device, Ids, check_device
from tiny_llm.errors import InputError
from tiny_llm.layout import SPLITS, split_path
from tiny_llm.tokens import manifest_path

Data = Source | Ids | torch.Tensor | StrPath


def as_source(data: Data) -> Source:
    """Wrap data as a source; a path is opened once and cached.

    Raises:
        ValueError: `data` is not an integer array, a tensor or a path.
    """
    if isinstance(data, np.ndarray):
        return ArraySource(data)
    if isinstance(data, Source):
        return data
    if isinstance(data, str | os.PathLike):
        path = _find_path(data)
        return _open_version(path, _version(path), _version(manifest_path(path)))
    if isinstance(data, torch.Tensor):
        return DeviceArray(data)
    raise ValueError(
        f"data is of type {type(data).__name__}; give what load_token_array returns, "
        "a one-dimensional array of integers, or a path"
    )


@functools.lru_cache(maxsize=8)
def _open_version(path: Path, *_: object) -> TokenFile:
    """Open a token file, unless this version of it is open already."""
    return TokenFile(path)


def _version(path: Path) -> tuple[int, ...] | None:
    """Identify the current version of a file, so that a replaced file is reopened."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _find_path(path: StrPath) -> Path:
    """Return the path of a token file, or explain why it is not one."""
    if not isinstance(path, str | os.PathLike):
        raise ValueError(f"path is {path!r}; give the path of a token file, or a list")
    if path in SPLITS:
        return split_path(str(path))
    target = Path(path)
    if target.is_file():
        return target
    if str(path) and target.is_dir():
        names = ", ".join(sorted(file.name for file in target.glob("*.bin"))[:3])
        raise InputError(
            f"{path} is a folder; give a token file in it, or a list of them"
            + (f" ({names})" if names else "")
        )
    if glob.has_magic(str(path)):
        raise InputError(f"{path} is a pattern; give sorted(glob.glob({str(path)!r}))")
    if target.name == str(path) and not target.suffix:
        raise InputError(
            f"{str(path)!r} is neither a token file nor the name of a split; the "
            f"splits are {SPLITS}"
        )
    return target


# A str also matches Sequence[str]; the first overload handles it.
@overload
def load_token_array(  # type: ignore[overload-overlap]
    path: StrPath, device: None = ..., *, access: str = ...
) -> TokenFile: ...
@overload
def load_token_array(
    path: Sequence[StrPath], device: None = ..., *, access: str = ...
) -> JoinedArrays: ...
@overload
def load_token_array(
    path: StrPath | Sequence[StrPath], device: Device, *, access: str = ...
) -> DeviceArray: ...
def load_token_array(
    path: StrPath | Sequence[StrPath],
    device: Device | None = None,
    *,
    access: str = "normal",
) -> TokenFile | JoinedArrays | DeviceArray:
    """Open a token file, or several as one, for batching.

    The file is memory-mapped. Pages that were read stay in the page cache and count
    towards RSS, so RSS can grow to the size of the file. This is not a leak: the system
    reclaims them when it needs memory.

    Args:
        path: A token file, or "train" or "valid" for a split that the pipeline made, or
            a list of these, concatenated. Write "./train" for a file named train. A
            .bin without a manifest beside it is read as uint16.
        device: Copy all ids to this device, such as "cuda", so that batches are cut
            there.
        access: Use "random" for files that are not cached or are larger than memory.
            Only the pages needed are read, all windows of a batch in parallel; with a
            seed, the next batch is read ahead.

    Returns:
        Ids, shape (N,), uint16 or uint32, read-only, that slice like an array: a
        `TokenFile`, `JoinedArrays` for a list, or a `DeviceArray` if `device` is given.

    Raises:
        InputError (a ValueError): There is no such file, or it is empty.
        IntegrityError (a ValueError): A file does not match its manifest, or two files
            were made by different tokenizers.
    """
    if access not in ("normal", "random"):
        raise ValueError(f"access is {access!r}; give 'normal' or 'random'")
    data: TokenFile | JoinedArrays
    if isinstance(path, Sequence) and not isinstance(path, str):
        data = JoinedArrays([TokenFile(_find_path(part), access) for part in path])
    else:
        data = TokenFile(_find_path(path), access)
    return data if device is None else _copy_to(device, data)


def _copy_to(device: Device, source: TokenFile | JoinedArrays) -> DeviceArray:
    """Copy all ids to a device, chunk by chunk."""
    dtype = getattr(torch, source.dtype.name)
    ids = torch.empty(len(source), dtype=dtype, device=check_device(device))
    for begin in range(0, len(source), CHUNK):
        chunk = source[begin : begin + CHUNK]
        source.check_ids(chunk)
        ids[begin : begin + len(chunk)] = torch.from_numpy(chunk.copy())
    return DeviceArray(ids, source.fingerprint())


def fingerprint(data: Data) -> str:
    """Return a digest of the ids, to store in a checkpoint; see `batches`.

    Free for a token file with a manifest, which holds the digest (`make verify`
    compares the two). Other ids are read, at about 1 GB/s.

    Args:
        data: Whatever `get_batch` draws from.

    Returns:
        SHA-256 of the ids as a token file holds them, in hex; for several files or a
        mixture, a hash of their digests.

    Raises:
        InputError, IntegrityError (ValueErrors): See `load_token_array`.
    """
    return as_source(data).fingerprint()
