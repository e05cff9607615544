"""Loading: what a caller gives becomes a source; paths become open token files."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path
from typing import overload

import numpy as np
import torch

from tiny_llm.batching.sources import (
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

_CHUNK = 1 << 24
_MAX_OPENED = 8

Data = Source | Ids | torch.Tensor | StrPath


def as_source(data: Data) -> Source:
    """Return the source of what a caller gave; a path is opened once.

    Raises:
        ValueError: It is neither ids nor a path of a token file.
    """
    if isinstance(data, np.ndarray):
        return ArraySource(data)
    if isinstance(data, Source):
        return data
    if isinstance(data, str | os.PathLike):
        return _open_once(data)
    if isinstance(data, torch.Tensor):
        return DeviceArray(data)
    raise ValueError(
        f"data is of type {type(data).__name__}; give what load_token_array returns, "
        "a one-dimensional array of integers, or a path"
    )


def _identity(path: StrPath) -> tuple[int, ...] | None:
    """What tells a file from the one that had its name before."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


_opened: dict[Path, tuple[object, TokenFile]] = {}


def _open_once(path: StrPath) -> TokenFile:
    """Open a token file, or return it as it was opened before if it is the same."""
    target = _find_path(path)
    identity = _identity(target), _identity(manifest_path(target))
    known = _opened.get(target)
    if known is None or known[0] != identity:
        known = identity, TokenFile(target)
        while len(_opened) >= _MAX_OPENED:
            _opened.pop(next(iter(_opened)), None)
        _opened[target] = known
    return known[1]


def _find_path(path: StrPath) -> Path:
    """Return the path of a token file; explain what else was given."""
    if path in SPLITS:
        return split_path(str(path))
    target = Path(path)
    if target.is_dir():
        files = ", ".join(sorted(file.name for file in target.glob("*.bin"))[:3])
        raise InputError(
            f"{path} is a folder; give a token file in it, or a list of them"
            + (f" ({files})" if files else "")
        )
    if not target.exists() and glob.has_magic(str(path)):
        raise InputError(f"{path} is a pattern; give sorted(glob.glob({str(path)!r}))")
    if not target.exists() and target.name == str(path) and not target.suffix:
        raise InputError(
            f"{path}: no such token file, and no split; the splits are "
            f"{' and '.join(SPLITS)}"
        )
    return target


# A str is a sequence of str too, which the first overload takes.
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

    The file is mapped into memory and read when touched. What was read stays in the
    page cache, which the system counts as memory of the process (RSS) and takes back
    when it needs it, so that figure grows to the size of the file and is no leak.

    Args:
        path: A token file, or the name of a split that the pipeline made, "train" or
            "valid" (a file of that name is "./train"); or a list of these, read end to
            end as one. A .bin without a manifest beside it is read as uint16.
        device: Copy all ids there, for example to "cuda", so that batches are cut on
            the device.
        access: "random" is for files that are cold or larger than memory. The system
            then reads only the windows of a batch, all at once instead of one by one,
            and with a seed those of the next batch ahead.

    Returns:
        Ids of shape (N,), uint16 or uint32, read-only, to be sliced like an array: a
        `TokenFile`, for a list `JoinedArrays`, with a device a `DeviceArray`.

    Raises:
        InputError (a ValueError): There is no such file, or it is empty.
        IntegrityError (a ValueError): A file is not what its manifest says, or two
            files were made by different tokenizers.
    """
    if access not in ("normal", "random"):
        raise ValueError(f"access is {access!r}; give 'normal' or 'random'")
    data: TokenFile | JoinedArrays
    if isinstance(path, str | os.PathLike):
        data = TokenFile(_find_path(path), access)
    elif isinstance(path, Sequence):
        data = JoinedArrays([TokenFile(_find_path(part), access) for part in path])
    else:
        raise ValueError(f"path is {path!r}; give the path of a token file, or a list")
    return data if device is None else _copy_to(device, data)


def _copy_to(device: Device, source: TokenFile | JoinedArrays) -> DeviceArray:
    """Copy all ids to a device, chunk by chunk."""
    dtype = getattr(torch, source.dtype.name)
    ids = torch.empty(len(source), dtype=dtype, device=check_device(device))
    for begin in range(0, len(source), _CHUNK):
        end = min(begin + _CHUNK, len(source))
        [chunk] = source.read_windows(np.array([begin]), end - begin - 1)
        ids[begin:end] = torch.from_numpy(chunk)
    return DeviceArray(ids, source.fingerprint())


def fingerprint(data: Data) -> str:
    """Return a digest of the ids, to store in a checkpoint; see `batches`.

    A token file with a manifest costs nothing: the manifest has the digest (`make
    verify` compares the two). Other ids are read, about a second per GB.

    Args:
        data: Whatever `get_batch` draws from.

    Returns:
        The SHA-256 of the ids as a token file holds them, in hex; for several files or
        a mixture, the SHA-256 of theirs.

    Raises:
        InputError, IntegrityError (ValueErrors): As of `load_token_array`.
    """
    return as_source(data).fingerprint()
