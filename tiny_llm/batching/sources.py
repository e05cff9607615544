"""Sources: what batches are drawn from, one class per kind of data.

`get_batch` and `Mixture` use only the `Source` interface; `IdArray` adds slicing. A new
kind of data is one more class.
"""

from __future__ import annotations

import abc
import functools
import hashlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from tiny_llm.batching.permutation import Ints
from tiny_llm.batching.sampling import (
    Samples,
    choose,
    choose_window_starts,
    count_windows,
)
from tiny_llm.batching.windows import (
    Batch,
    Device,
    Ids,
    MappedFile,
    check_device,
    cut_windows,
    split_windows,
    to_batch,
)
from tiny_llm.errors import IntegrityError
from tiny_llm.tokens import (
    DTYPES,
    Manifest,
    check_tokenizer,
    manifest_path,
    open_documents,
    open_tokens,
    read_manifest,
)

# B = batch_size, T = seq_len, N = ids in the source
StrPath = str | os.PathLike[str]

CHUNK = 1 << 24  # ids that are read at a time
# Signed dtype of the same width: torch can index these on every device.
_SIGNED = {
    **{dtype: dtype for dtype in (torch.int8, torch.int16, torch.int32, torch.int64)},
    torch.uint8: torch.int8,
    torch.uint16: torch.int16,
    torch.uint32: torch.int32,
}


class Source(abc.ABC):
    """Ids that windows are drawn from.

    Attributes:
        dtype: Dtype of the ids.
        manifest: Manifest of the token file; for several files, the first one found.
        is_random: Whether it was opened with access="random".
    """

    dtype: np.dtype[Any]
    manifest: Manifest | None = None
    is_random: bool = False

    @abc.abstractmethod
    def __len__(self) -> int:
        """N, the number of ids."""

    @abc.abstractmethod
    def read_windows(self, starts: Ints, seq_len: int) -> Ids:
        """Copy the windows at `starts`, shape (B,), to an array of shape (B, T + 1)."""

    @abc.abstractmethod
    def fingerprint(self) -> str:
        """Return a digest of the ids; see `tiny_llm.batching.fingerprint`."""

    def will_need(self, begin: int, end: int) -> None:
        """Ask the system to start reading the ids from begin to end."""
        del begin, end  # Ids in memory need no read-ahead.

    def document_starts(self) -> Ints:
        """Return where documents start, shape (num_documents,), increasing from 0."""
        raise ValueError(
            "align='document' needs to know the separator, but data has no manifest; "
            "give what load_token_array returns for a token file with a manifest, "
            "without a device"
        )

    def count_choices(self, seq_len: int, align: str | None) -> int:
        """Return how many windows there are; raise a ValueError if there is none."""
        num_windows = count_windows(len(self), seq_len)
        if align is None:
            return num_windows
        if align != "document":
            raise ValueError(f"align is {align!r}; give 'document' or None")
        return int(np.searchsorted(self.document_starts(), num_windows))

    def choose_starts(self, samples: Samples, seq_len: int, align: str | None) -> Ints:
        """Choose a start position for each sample, shape (num_rows,)."""
        if align is None:
            return choose_window_starts(len(self), seq_len, samples)
        num_choices = self.count_choices(seq_len, align)
        return self.document_starts()[choose(num_choices, samples)]

    def cut_batch(self, starts: Ints, seq_len: int, device: Device) -> Batch:
        """Return inputs and targets of the windows at `starts`, on a device."""
        self.read_ahead(starts, seq_len)
        return to_batch(self.read_windows(starts, seq_len), device)

    def read_ahead(self, starts: Ints, seq_len: int) -> None:
        """With random access, start reading all windows in parallel."""
        if self.is_random:
            for start in starts.tolist():
                self.will_need(start, start + seq_len + 1)


class IdArray(Source):
    """A source that slices like a one-dimensional array.

    Attributes:
        id_limit: Every id must be below it; None means no limit.
    """

    id_limit: int | None = None

    @abc.abstractmethod
    def read(self, begin: int, end: int) -> Ids:
        """Return a view or copy of the ids from begin to end, shape (end - begin,)."""

    def read_windows(self, starts: Ints, seq_len: int) -> Ids:
        rows = [self.read(start, start + seq_len + 1) for start in starts.tolist()]
        windows = np.stack(rows)
        self.check_ids(windows)
        return windows

    def check_ids(self, ids: Ids) -> None:
        """Raise an IntegrityError if an id is not below `id_limit`."""
        limit = self.id_limit
        if limit and ids.size and (top := ids.item(ids.argmax())) >= limit:
            name = getattr(self, "path", "data")
            if self.manifest is None:
                raise IntegrityError(
                    f"{name} holds the id {top:,}; give ids below 2**63"
                )
            raise IntegrityError(
                f"{name} holds the id {top:,}, but its manifest says vocab_size "
                f"{limit:,}; encode the text again"
            )

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        if self.dtype.name not in DTYPES:
            digest.update(self.dtype.name.encode())
        for begin in range(0, len(self), CHUNK):
            ids = self.read(begin, min(begin + CHUNK, len(self)))
            digest.update(ids.astype(ids.dtype.newbyteorder("<")).data)
        return digest.hexdigest()

    @property
    def shape(self) -> tuple[int]:
        """(N,)."""
        return (len(self),)

    def __getitem__(self, index: int | slice) -> Any:
        if not isinstance(index, slice):
            place = range(len(self))[index]
            return self.read(place, place + 1)[0]
        wanted = range(len(self))[index]
        if not wanted:
            return np.empty(0, self.dtype)
        low, high = sorted([wanted[0], wanted[-1]])
        return self.read(low, high + 1)[:: wanted.step]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Ids:
        return np.array(self.read(0, len(self)), dtype=dtype, copy=copy)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self):,} ids, {self.dtype})"


class ArraySource(IdArray):
    """Any one-dimensional integer array, in memory or memory-mapped.

    Attributes:
        ids: Shape (N,).
    """

    def __init__(self, ids: Ids) -> None:
        dtype = self.dtype = ids.dtype
        if ids.ndim != 1 or dtype.kind not in "iu":
            raise ValueError(
                f"data has shape {ids.shape} and dtype {dtype}; give a "
                "one-dimensional array of integers"
            )
        # Slicing an np.memmap is slow.
        self.ids = ids if type(ids) is np.ndarray else ids.view(np.ndarray)
        self._file = MappedFile(ids)
        if dtype.kind == "u" and dtype.itemsize == 8:  # Some do not fit int64.
            self.id_limit = 1 << 63

    def __reduce__(self) -> Any:
        return ArraySource, (np.array(self),)

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, begin: int, end: int) -> Ids:
        self._file.check_size()
        return self.ids[begin:end]

    def read_windows(self, starts: Ints, seq_len: int) -> Ids:
        self._file.check_size()
        windows = cut_windows(self.ids, starts, seq_len)
        self.check_ids(windows)
        return windows


class TokenFile(ArraySource):
    """A token file, mapped into memory and sliced like a read-only array.

    Only the pages that are touched are read. Pickles as the path, not the ids.

    Attributes:
        path: Absolute.
        ids: Shape (N,), uint16 or uint32, read-only.
    """

    def __init__(self, path: StrPath, access: str = "normal") -> None:
        super().__init__(open_tokens(path))
        self.path = os.path.abspath(path)
        self._index: ArraySource | None = None
        self.is_random = access == "random"
        if manifest_path(path).is_file():
            self.manifest = read_manifest(path)
            self.id_limit = self.manifest.vocab_size
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

    def fingerprint(self) -> str:
        return self.manifest.sha256 if self.manifest else super().fingerprint()


def check_same_tokenizer(sources: Sequence[Source], label: str) -> None:
    """Raise a ValueError unless sources have one dtype and one tokenizer."""
    if not sources:
        raise ValueError(f"there is no {label}; give at least one")
    for number, source in enumerate(sources):
        if source.dtype != sources[0].dtype:
            raise ValueError(
                f"{label} {number} holds {source.dtype} ids, but the first holds "
                f"{sources[0].dtype}; encode both with one tokenizer, or convert an "
                "array with .astype"
            )
    digest = None
    for number, source in enumerate(sources):
        if source.manifest:
            digest = digest or source.manifest.tokenizer_sha256
            path = getattr(source, "path", f"{label} {number}")
            check_tokenizer(path, source.manifest, digest)


class JoinedArrays(IdArray):
    """Several arrays of ids end to end; a window may span two or more of them.

    Slicing copies.

    Attributes:
        parts: The arrays.
        begins, ends: Shape (number of parts,), int64: start and end of each part.
    """

    def __init__(self, parts: Sequence[ArraySource]) -> None:
        self.parts = list(parts)
        check_same_tokenizer(self.parts, "token array")
        lengths = np.array([len(part) for part in self.parts], dtype=np.int64)
        self.ends = np.cumsum(lengths)
        self.begins = self.ends - lengths
        self.dtype = self.parts[0].dtype
        self.is_random = any(part.is_random for part in self.parts)
        first = next((part for part in self.parts if part.manifest), self.parts[0])
        self.manifest, self.id_limit = first.manifest, first.id_limit

    def __reduce__(self) -> Any:
        return JoinedArrays, (self.parts,)

    def __len__(self) -> int:
        return int(self.ends[-1])

    def _pieces(self, begin: int, end: int) -> Iterator[tuple[ArraySource, int, int]]:
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

    def fingerprint(self) -> str:
        digests = [part.fingerprint() for part in self.parts]
        if len(digests) == 1:
            return digests[0]
        return hashlib.sha256(" ".join(digests).encode()).hexdigest()


class DeviceArray(IdArray):
    """Ids on a device; batches are cut there.

    Attributes:
        ids: A tensor, shape (N,).
    """

    def __init__(self, ids: torch.Tensor, fingerprint: str | None = None) -> None:
        if ids.ndim != 1 or ids.dtype not in _SIGNED:
            raise ValueError(
                f"data has shape {tuple(ids.shape)} and dtype {ids.dtype}; give a "
                "one-dimensional tensor of integers other than uint64"
            )
        self.ids = ids
        self.dtype = np.dtype(str(ids.dtype).removeprefix("torch."))
        self._fingerprint = fingerprint

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int | slice) -> torch.Tensor:
        return self.ids[index]

    def read(self, begin: int, end: int) -> Ids:
        ids: Ids = self.ids[begin:end].cpu().numpy()
        return ids

    def cut_batch(self, starts: Ints, seq_len: int, device: Device) -> Batch:
        places = torch.from_numpy(starts).to(self.ids.device)
        windows = self.ids.view(_SIGNED[self.ids.dtype]).unfold(0, seq_len + 1, 1)
        windows = windows[places].to(check_device(device))
        return split_windows(windows, is_unsigned=self.dtype.kind == "u")

    def fingerprint(self) -> str:
        return self._fingerprint or super().fingerprint()
