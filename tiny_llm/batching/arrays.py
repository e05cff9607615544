"""Token arrays: token files, one or many, opened as arrays of ids."""

from __future__ import annotations

import functools
import hashlib
import mmap
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tiny_llm.errors import IntegrityError
from tiny_llm.layout import SPLITS, split_path
from tiny_llm.tokens import (
    DTYPES,
    Manifest,
    check_tokenizer,
    manifest_path,
    open_tokens,
    read_manifest,
)

# N = ids in the array, B = batch_size, T = seq_len
Ids = npt.NDArray[Any]
StrPath = str | os.PathLike[str]

_DTYPES = (*DTYPES.values(), torch.uint16, torch.uint32)
_CHUNK = 1 << 24


class TokenArray(np.memmap[Any, Any]):
    """A token file in memory: an array of shape (N,), uint16 or uint32, read-only.

    Only the pages that are touched are read. It pickles as its path; a slice of it
    is an array like any other.

    Attributes:
        path: Of the token file, absolute.
        manifest: What the file must hold, if that is known.
        access: "normal" or "random", see `load_token_array`.
    """

    path: str | None = None
    manifest: Manifest | None = None
    access: str = "normal"
    documents: npt.NDArray[np.int64] | None = None  # documents.py sets it

    def __reduce__(self) -> Any:
        if self.path is None:
            check_size(self)
            return np.array(self).__reduce__()
        return functools.partial(load_token_array, access=self.access), (self.path,)


class JoinedArray:
    """Arrays end to end as one; windows may begin in one and end in a later one.

    A slice of it is read into memory. It pickles as its parts do.

    Attributes:
        parts: The arrays, each of shape (N_i,).
        begins, ends: Shape (number of parts,), int64: where each part lies.
        dtype: Of each part.
        manifest: Of the first part that has one; the others agree on the tokenizer.
        access: "random" if that of any part is.
    """

    documents: npt.NDArray[np.int64] | None = None  # documents.py sets it

    def __init__(self, parts: Sequence[Ids]) -> None:
        if not parts:
            raise ValueError("there are no token arrays to join; give at least one")
        for number, part in enumerate(parts):
            if not isinstance(part, np.ndarray):
                raise ValueError(
                    f"token array {number} is of type {type(part).__name__}; give what "
                    "load_token_array returns without a device"
                )
            if check_data(part).dtype != parts[0].dtype:
                raise ValueError(
                    f"token array {number} holds {part.dtype} ids, the first one "
                    f"{parts[0].dtype}; encode both with one tokenizer"
                )
        self.parts = list(parts)
        lengths = np.array([len(part) for part in parts], dtype=np.int64)
        self.ends = np.cumsum(lengths)
        self.begins = self.ends - lengths
        self.dtype: np.dtype[Any] = parts[0].dtype
        opened = [part for part in parts if isinstance(part, TokenArray)]
        self.access = max((part.access for part in opened), default="normal")
        self.manifest: Manifest | None = None
        for part in opened:
            if part.path and part.manifest:
                self.manifest = self.manifest or part.manifest
                digest = self.manifest.tokenizer_sha256
                check_tokenizer(part.path, part.manifest, digest)

    def __reduce__(self) -> Any:
        return JoinedArray, (self.parts,)

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, places: slice | int) -> Any:
        if not isinstance(places, slice):
            place = range(len(self))[places]
            return self[place : place + 1][0]
        wanted = range(len(self))[places]
        ends = sorted([wanted[0], wanted[-1]]) if wanted else [0, -1]
        found = [part[a:b] for part, a, b in pieces(self, ends[0], ends[1] + 1)]
        return np.concatenate([np.empty(0, self.dtype), *found])[:: wanted.step]

    def fingerprint(self) -> str:
        """See the function of that name."""
        digests = [fingerprint(part) for part in self.parts]
        if len(digests) == 1:
            return digests[0]
        return hashlib.sha256(" ".join(digests).encode()).hexdigest()


TokenData = Ids | JoinedArray
# What batches are drawn from: a tensor is a copy of all ids on a device.
Data = Ids | JoinedArray | torch.Tensor


def load_token_array(
    path: StrPath | Sequence[StrPath],
    device: str | torch.device | None = None,
    *,
    access: str = "normal",
) -> Any:
    """Open a token file, or several as one, for batching.

    The file is mapped into memory and read when touched. What was read stays in the
    page cache, which the system counts as memory of the process (RSS) and takes back
    when it needs it: that figure grows to the size of the file and is no leak.

    Args:
        path: A token file, or the name of a split that the pipeline made, "train" or
            "valid"; or a list of these, read end to end as one. A .bin without a
            manifest beside it is read as uint16.
        device: Copy all ids there, "cuda" for instance, so that batches are cut on
            the device. Nothing is copied without one.
        access: "random" for files that are cold or larger than memory: the system
            reads no more than the windows of a batch, all at once instead of one by
            one, and with a seed those of the next batch ahead.

    Returns:
        Shape (N,), uint16 or uint32, read-only: a `TokenArray` (a numpy array), for
        a list a `JoinedArray`, or with a device a tensor.

    Raises:
        InputError (a ValueError): There is no such file, or it is empty.
        IntegrityError (a ValueError): A file is not what its manifest says, or two
            were made by different tokenizers.
    """
    if access not in ("normal", "random"):
        raise ValueError(f"access is {access!r}; give 'normal' or 'random'")
    data: TokenData
    if isinstance(path, str | os.PathLike):
        data = _open(path, access)
    elif not isinstance(path, Iterable):
        raise ValueError(f"path is {path!r}; give the path of a token file, or several")
    else:
        data = JoinedArray([_open(part, access) for part in path])
    return data if device is None else _copy_to(data, device)


def _open(path: StrPath, access: str) -> TokenArray:
    if path in SPLITS:
        path = split_path(str(path))
    ids = open_tokens(path).view(TokenArray)
    ids.path = os.path.abspath(path)
    ids.manifest = read_manifest(path) if manifest_path(path).is_file() else None
    ids.access = access
    mapping = find_mapping(ids)
    if access == "random" and mapping and hasattr(mmap, "MADV_RANDOM"):
        mapping.madvise(mmap.MADV_RANDOM)
    return ids


def _copy_to(data: TokenData, device: str | torch.device) -> torch.Tensor:
    dtype = getattr(torch, data.dtype.name)
    ids = torch.empty(len(data), dtype=dtype, device=device)
    for begin in range(0, len(data), _CHUNK):
        chunk = np.array(data[begin : begin + _CHUNK])
        check_ids(chunk, data)
        ids[begin : begin + len(chunk)] = torch.from_numpy(chunk)
    # Tensors take attributes, which mypy does not know; their slices do not have them.
    ids.fingerprint = fingerprint(data)  # type: ignore[attr-defined]
    return ids


def check_data(source: object) -> Data:
    """Open a path; refuse what is not one-dimensional, contiguous, uint16 or uint32.

    Raises:
        ValueError: It is something else.
    """
    data: Any = source
    if isinstance(data, str | os.PathLike):
        data = load_token_array(data)
    checked: Data = data
    if isinstance(data, JoinedArray) or (isinstance(data, TokenArray) and data.path):
        return checked
    is_tensor = isinstance(data, torch.Tensor)
    if not is_tensor and not isinstance(data, np.ndarray):
        raise ValueError(
            f"data is of type {type(data).__name__}; give a token array, as "
            "load_token_array returns it, or a path"
        )
    if data.ndim != 1 or data.dtype not in _DTYPES:
        raise ValueError(
            f"data has shape {tuple(data.shape)} and dtype {data.dtype}; give one row "
            "of uint16 or uint32 ids, as load_token_array returns it"
        )
    if not (data.is_contiguous() if is_tensor else data.flags.c_contiguous):
        raise ValueError(
            "the ids of data do not lie side by side; give a contiguous array "
            "(np.ascontiguousarray makes one)"
        )
    return checked


def pieces(data: TokenData, begin: int, end: int) -> Iterator[tuple[Ids, int, int]]:
    """Where ids begin .. end lie: arrays, each with a beginning and an end in it."""
    if not isinstance(data, JoinedArray):
        yield data, begin, end
        return
    number = int(np.searchsorted(data.ends, begin, side="right"))
    while begin < end:
        part, offset = data.parts[number], int(data.begins[number])
        check_size(part)
        yield part, begin - offset, min(end - offset, len(part))
        begin, number = offset + len(part), number + 1


def find_mapping(ids: Ids) -> mmap.mmap | None:
    """The mapped file under an array, or under what it is a slice of."""
    base: Any = ids
    while isinstance(base, np.ndarray):
        base = base.base
    return base if isinstance(base, mmap.mmap) else None


def check_size(ids: Ids) -> None:
    """Refuse a file that was cut short: touching its missing pages kills a process.

    Raises:
        IntegrityError: It was.
    """
    mapping = find_mapping(ids)
    if mapping is None:
        return
    offset = getattr(ids, "offset", 0)
    expected = offset - offset % mmap.ALLOCATIONGRANULARITY + len(mapping)
    if mapping.size() < expected:
        raise IntegrityError(
            f"{getattr(ids, 'filename', 'data')} had {expected:,} bytes when opened "
            f"and has {mapping.size():,} now; encode the text again"
        )


def check_ids(ids: Ids, source: TokenData) -> None:
    """Refuse ids that the manifest of their source does not allow.

    Raises:
        IntegrityError: There is one.
    """
    manifest = getattr(source, "manifest", None)
    if manifest and ids.size and (top := ids.item(ids.argmax())) >= manifest.vocab_size:
        raise IntegrityError(
            f"{getattr(source, 'path', 'one of the files')} holds the id {top:,}, its "
            f"manifest says vocab_size {manifest.vocab_size:,}; encode the text again"
        )


def fingerprint(data: Data | StrPath) -> str:
    """A digest of the ids, to store in a checkpoint; see `batches`.

    Of a token file with a manifest it is what the manifest says, at no cost
    (`make verify` compares the two). Other ids are read: about a second per GB.

    Args:
        data: Whatever `get_batch` draws from.

    Returns:
        The SHA-256 of the ids as a token file holds them, in hex; of several files,
        or of a mixture, that of theirs.

    Raises:
        InputError, IntegrityError (ValueErrors): As of `load_token_array`.
    """
    data = check_data(data)
    if isinstance(data, JoinedArray):
        return data.fingerprint()
    if isinstance(data, TokenArray) and data.manifest:
        return data.manifest.sha256
    if isinstance(data, torch.Tensor) and hasattr(data, "fingerprint"):
        return str(data.fingerprint)
    digest = hashlib.sha256()
    for begin in range(0, len(data), _CHUNK):
        if isinstance(data, np.ndarray):
            check_size(data)
        ids = data[begin : begin + _CHUNK]
        ids = ids.cpu().numpy() if isinstance(ids, torch.Tensor) else ids
        digest.update(ids.astype(DTYPES[ids.dtype.name]).data)
    return digest.hexdigest()
