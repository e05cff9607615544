"""Sources: what batches are drawn from, one class per kind of data.

`get_batch` uses only the `Source` interface; `IdArray` adds slicing, and can be one
source of a mixture. A new kind of data is one more class. Arrays and tensors are here;
`loading` has token files, and `mixture` mixtures.
"""

from __future__ import annotations

import abc
import hashlib
import mmap
from typing import Any, NoReturn

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
    check_device,
    cut_windows,
    split_windows,
    to_batch,
)
from tiny_llm.errors import IntegrityError
from tiny_llm.tokens import DTYPES, Manifest

# B = batch_size, T = seq_len, N = ids in the source
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
        index = self.document_starts()
        num_choices = int(np.searchsorted(index, num_windows))
        # A wrong entry can mislead the search: then these are too many, or not sorted.
        too_late = index[num_choices:]
        if len(too_late) > seq_len or (too_late[1:] <= too_late[:-1]).any():
            self.refuse_index()
        return num_choices

    def choose_starts(self, samples: Samples, seq_len: int, align: str | None) -> Ints:
        """Choose a start position for each sample, shape (num_rows,)."""
        if align is None:
            return choose_window_starts(len(self), seq_len, samples)
        chosen = choose(self.count_choices(seq_len, align), samples)
        index = self.document_starts()
        starts = index[chosen]
        # Compared with the entry before; the first entry is 0.
        is_wrong = (starts <= index[chosen - 1]) & (chosen > 0) | (starts < 0)
        if is_wrong.any() or starts.max() >= len(self) - seq_len:
            self.refuse_index()
        return starts

    def check_document_starts(self, starts: Ints) -> None:
        """Raise an IntegrityError unless documents start at `starts`."""
        del starts  # Only an index that is stored can be wrong.

    def refuse_index(self) -> NoReturn:
        """Raise an IntegrityError that says that the index is wrong."""
        raise IntegrityError(
            f"the index of {getattr(self, 'path', 'data')} does not say where its "
            "documents start; encode the text again"
        )

    def cut_batch(self, starts: Ints, seq_len: int, device: Device) -> Batch:
        """Return inputs and targets of the windows at `starts`, on a device."""
        return to_batch(self.read_windows(starts, seq_len), device)

    def draw_batch(
        self,
        samples: Samples,
        seq_len: int,
        device: Device,
        align: str | None,
        stride: int,
    ) -> Batch:
        """Return the batch of `samples`; the next one is `stride` samples later."""
        starts = self.choose_starts(samples, seq_len, align)
        if self.is_random:
            self.read_ahead(starts, seq_len)
            if samples.seed is not None:
                ahead = samples._replace(first=samples.first + stride)
                self.read_ahead(self.choose_starts(ahead, seq_len, align), seq_len)
        if align:
            self.check_document_starts(starts)
        return self.cut_batch(starts, seq_len, device)

    def read_ahead(self, starts: Ints, seq_len: int) -> None:
        """Ask the system to start reading the windows at `starts`, in parallel."""
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


class MappedFile:
    """The memory-mapped file behind an array, if there is one."""

    def __init__(self, ids: Ids) -> None:
        self._mapping: mmap.mmap | None = None
        self._name, self._skip, self._num_bytes = "data", 0, 0
        array, base = ids, ids.base
        while isinstance(base, np.ndarray):  # The array is a slice of this one.
            array, base = base, base.base
        if isinstance(base, mmap.mmap):
            self._mapping = base
            self._name = str(getattr(array, "filename", None) or "data")
            offset: int = getattr(array, "offset", 0)
            self._skip = offset % mmap.ALLOCATIONGRANULARITY
            self._num_bytes = offset - self._skip + len(base)

    def check_size(self) -> None:
        """Refuse a file that was truncated: reading a lost page kills the process."""
        if self._mapping is None:
            return
        size = self._mapping.size()
        if size < self._num_bytes:
            raise IntegrityError(
                f"{self._name} had {self._num_bytes:,} bytes when opened and has "
                f"{size:,} now; encode the text again"
            )

    def advise_random(self) -> None:
        """Turn off the system's read-ahead."""
        if self._mapping and hasattr(mmap, "MADV_RANDOM"):
            self._mapping.madvise(mmap.MADV_RANDOM)

    def will_need(self, begin: int, end: int) -> None:
        """Ask the system to start reading a range of bytes of the array."""
        if self._mapping and hasattr(mmap, "MADV_WILLNEED"):
            begin, end = begin + self._skip, end + self._skip
            page = begin - begin % mmap.PAGESIZE
            self._mapping.madvise(mmap.MADV_WILLNEED, page, end - page)


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
