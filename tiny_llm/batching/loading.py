"""Loading: open token files, alone or joined, and wrap arrays as sources."""

from __future__ import annotations

import functools
import glob
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch

from tiny_llm.batching.permutation import Ints
from tiny_llm.batching.sources import (
    CHUNK,
    ArraySource,
    DeviceArray,
    IdArray,
    Source,
)
from tiny_llm.batching.windows import Device, Ids, check_device
from tiny_llm.errors import InputError
from tiny_llm.layout import SPLITS, split_path
from tiny_llm.tokens import check_tokenizer, manifest_path, open_documents, open_tokens

# B = batch_size, T = seq_len, N = ids in the source
StrPath = str | os.PathLike[str]
Data = Source | Ids | torch.Tensor | StrPath
_OPEN_DATA = (np.ndarray, Source, torch.Tensor)  # All of it but paths.


class TokenFile(ArraySource):
    """A token file, mapped into memory and sliced like a read-only array.

    Only the pages that are touched are read. Pickles as the path, not the ids.

    Attributes:
        path: Absolute.
        ids: Shape (N,), uint16 or uint32, read-only.
    """

    def __init__(self, path: StrPath, access: str = "normal") -> None:
        ids, self.manifest = open_tokens(path)
        super().__init__(ids)
        self.path = os.path.abspath(path)
        self._index: ArraySource | None = None
        if self.manifest:
            self.id_limit = self.manifest.vocab_size
        self.is_random = access == "random"
        if self.is_random:
            self._file.advise_random()

    def __reduce__(self) -> Any:
        return TokenFile, (self.path, "random" if self.is_random else "normal")

    def __repr__(self) -> str:
        return f"TokenFile({self.path!r}, {len(self):,} ids, {self.dtype})"

    def will_need(self, begin: int, end: int) -> None:
        itemsize = self.dtype.itemsize
        self._file.will_need(begin * itemsize, end * itemsize)

    def document_starts(self) -> Ints:
        if self.manifest is None:
            return super().document_starts()
        if self._index is None:
            self._index = ArraySource(open_documents(self.path, self.manifest))
        return self._index.read(0, len(self._index))

    def check_document_starts(self, starts: Ints) -> None:
        self._file.check_size()
        if self.manifest:
            is_end = self.ids[starts - 1] == self.manifest.separator_id
            if not (is_end | (starts == 0)).all():
                self.refuse_index()

    def fingerprint(self) -> str:
        return self.manifest.sha256 if self.manifest else super().fingerprint()


class JoinedArrays(IdArray):
    """Several arrays of ids end to end; a window may span two or more of them.

    Slicing copies.

    Attributes:
        parts: The arrays; all hold ids of one dtype and one tokenizer.
        begins, ends: Shape (number of parts,), int64: start and end of each part.
    """

    def __init__(self, parts: Sequence[IdArray], label: str = "token array") -> None:
        """Join arrays; `label` is what an error calls one of them."""
        self.parts = list(parts)
        _check_same_tokenizer(self.parts, label)
        self.ends = np.cumsum([len(part) for part in self.parts], dtype=np.int64)
        self.begins = np.append(0, self.ends[:-1])
        self.dtype = self.parts[0].dtype
        self.is_random = any(part.is_random for part in self.parts)
        first = next((part for part in self.parts if part.manifest), self.parts[0])
        self.manifest, self.id_limit = first.manifest, first.id_limit

    def __reduce__(self) -> Any:
        return JoinedArrays, (self.parts,)

    def __len__(self) -> int:
        return int(self.ends[-1])

    def _pieces(self, begin: int, end: int) -> Iterator[tuple[IdArray, int, int]]:
        """Where the ids from begin to end are: parts, with a range in each."""
        number = int(np.searchsorted(self.ends, begin, side="right"))
        while begin < end:
            part, offset = self.parts[number], int(self.begins[number])
            yield part, begin - offset, min(end - offset, len(part))
            begin, number = offset + len(part), number + 1

    def read(self, begin: int, end: int) -> Ids:
        pieces = [part.read(low, high) for part, low, high in self._pieces(begin, end)]
        return np.concatenate(pieces)

    def read_windows(self, starts: Ints, seq_len: int) -> Ids:
        windows = np.empty((len(starts), seq_len + 1), self.dtype)
        numbers = np.searchsorted(self.ends, starts, side="right")
        begins = (starts - self.begins[numbers]).tolist()
        # Slice once per part, not per row: each slice checks the file size.
        ids = {number: self.parts[number][:] for number in set(numbers.tolist())}
        for row, number in enumerate(numbers.tolist()):
            window = ids[number][begins[row] : begins[row] + seq_len + 1]
            if len(window) <= seq_len:
                window = self.read(starts[row], starts[row] + seq_len + 1)
            windows[row] = window
        self.check_ids(windows)
        return windows

    def will_need(self, begin: int, end: int) -> None:
        for part, low, high in self._pieces(begin, end):
            part.will_need(low, high)

    @functools.cached_property
    def _index(self) -> Ints:
        pairs = zip(self.parts, self.begins, strict=True)
        return np.concatenate([part.document_starts() + begin for part, begin in pairs])

    def document_starts(self) -> Ints:
        return self._index

    def check_document_starts(self, starts: Ints) -> None:
        numbers = np.searchsorted(self.ends, starts, side="right")
        for number in np.unique(numbers).tolist():
            own = starts[numbers == number] - self.begins[number]
            self.parts[number].check_document_starts(own)

    def fingerprint(self) -> str:
        digests = [part.fingerprint() for part in self.parts]
        if len(digests) == 1:
            return digests[0]
        return hashlib.sha256(" ".join(digests).encode()).hexdigest()


def _check_same_tokenizer(parts: Sequence[IdArray], label: str) -> None:
    """Raise a ValueError unless arrays have one dtype and one tokenizer."""
    if not parts:
        raise ValueError(f"there is no {label}; give at least one")
    digest = None
    for number, part in enumerate(parts):
        if part.dtype != parts[0].dtype:
            raise ValueError(
                f"{label} {number} holds {part.dtype} ids, but the first holds "
                f"{parts[0].dtype}; encode both with one tokenizer, or convert an "
                "array with .astype"
            )
        if part.manifest:
            digest = digest or part.manifest.tokenizer_sha256
            path = getattr(part, "path", f"{label} {number}")
            check_tokenizer(path, part.manifest, digest)


def as_source(data: Data) -> Source:
    """Wrap data as a source; a path is opened once and cached.

    Raises:
        ValueError: `data` is not an integer array, a tensor or a path.
    """
    if not isinstance(data, _OPEN_DATA):
        return _open_cached(data)
    if isinstance(data, np.ndarray):
        return ArraySource(data)
    return DeviceArray(data) if isinstance(data, torch.Tensor) else data


def _open_cached(path: StrPath) -> TokenFile:
    """Open a token file, unless it is open already and has not changed since."""
    if not isinstance(path, str | os.PathLike):
        raise ValueError(
            f"data is of type {type(path).__name__}; give what load_token_array "
            "returns, a one-dimensional array of integers, or a path"
        )
    path = _find_path(path)
    versions = _version(path), _version(manifest_path(path))
    return _open_version(path, versions)


@functools.lru_cache(maxsize=8)
def _open_version(path: Path, _: object) -> TokenFile:
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

    Replace a file that is in use by renaming another over it, as encoding does. If it
    is truncated in place while a batch is cut, the system may kill the process
    (SIGBUS), because pages that were mapped are gone.

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

    A token file with a manifest has the digest in it (`make verify` compares the two),
    so no ids are read. Other ids are read, at about 1 GB/s.

    Args:
        data: Whatever `get_batch` draws from.

    Returns:
        In hex: `sha256` of the manifest; without a manifest, SHA-256 of the ids as a
        .bin file holds them; for several files or a mixture, a hash of their digests.

    Raises:
        InputError, IntegrityError (ValueErrors): See `load_token_array`.
    """
    return as_source(data).fingerprint()
