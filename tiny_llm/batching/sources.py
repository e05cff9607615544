"""Sources: what batches are drawn from, one class per kind of data.

`Source` is all that `get_batch` and `Mixture` know. `IdArray` adds reading ids in
order. A new kind of data is one more class here, and one line in `loading.as_source`.
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

from tiny_llm.batching.documents import load_document_starts
from tiny_llm.batching.permutation import Ints
from tiny_llm.batching.sampling import Samples, choose, choose_windows, count_windows
from tiny_llm.batching.windows import (
    Batch,
    Device,
    Ids,
    MappedFile,
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
    open_tokens,
    read_manifest,
)

# B = batch_size, T = seq_len, N = ids in the source
StrPath = str | os.PathLike[str]

_CHUNK = 1 << 24
# The signed dtype of the same width, which torch can index on every device.
_SIGNED = {
    **{dtype: dtype for dtype in (torch.int8, torch.int16, torch.int32, torch.int64)},
    torch.uint8: torch.int8,
    torch.uint16: torch.int16,
    torch.uint32: torch.int32,
}


class Source(abc.ABC):
    """Ids that windows are drawn from.

    Attributes:
        dtype: Of the ids.
        manifest: Of the token file they are in; of several, the first one found.
        access: "normal" or "random", see `load_token_array`.
    """

    dtype: np.dtype[Any]
    manifest: Manifest | None = None
    access: str = "normal"

    @abc.abstractmethod
    def __len__(self) -> int:
        """N, the number of ids."""

    @abc.abstractmethod
    def read_windows(self, starts: Ints, seq_len: int) -> Ids:
        """Copy the windows at `starts`, shape (B,), to an array of shape (B, T + 1).

        Raises:
            IntegrityError: The ids are damaged.
        """

    @abc.abstractmethod
    def fingerprint(self) -> str:
        """Return a digest of the ids; see `tiny_llm.batching.fingerprint`."""

    def will_need(self, begin: int, end: int) -> None:
        """Have the system start to read the ids from begin to end."""
        del begin, end  # Ids in memory are there already.

    def document_starts(self) -> Ints:
        """Return where documents start, shape (num_documents,), increasing from 0.

        Raises:
            ValueError: The source does not know its separator.
        """
        raise ValueError(
            "align='document' needs to know the separator, but data has no manifest; "
            "give what load_token_array returns for a token file with a manifest, "
            "without a device"
        )

    def count_choices(self, seq_len: int, align: str | None) -> int:
        """Return how many windows there are to choose from.

        Raises:
            ValueError: There is none, or `align` is unknown or impossible here.
        """
        num_windows = count_windows(len(self), seq_len)
        if align is None:
            return num_windows
        if align != "document":
            raise ValueError(f"align is {align!r}; give 'document' or None")
        return int(np.searchsorted(self.document_starts(), num_windows))

    def choose_starts(self, samples: Samples, seq_len: int, align: str | None) -> Ints:
        """Choose a start position for each sample, shape (num_rows,).

        Raises:
            ValueError: As of `count_choices`.
        """
        if align is None:
            return choose_windows(len(self), seq_len, samples)
        num_choices = self.count_choices(seq_len, align)
        return self.document_starts()[choose(num_choices, samples)]

    def cut_batch(self, starts: Ints, seq_len: int, device: Device) -> Batch:
        """Return inputs and targets of the windows at `starts`, on a device."""
        self.read_ahead(starts, seq_len)
        return to_batch(self.read_windows(starts, seq_len), device)

    def read_ahead(self, starts: Ints, seq_len: int) -> None:
        """With random access, start to read all windows at once."""
        if self.access == "random":
            for start in starts.tolist():
                self.will_need(start, start + seq_len + 1)


class IdArray(Source):
    """Ids in an order, to be sliced like a one-dimensional array.

    Attributes:
        id_limit: Ids that are read must be below it; None where all are fine.
    """

    id_limit: int | None = None

    @abc.abstractmethod
    def read(self, begin: int, end: int) -> Ids:
        """Return the ids from begin to end, shape (end - begin,), read-only or fresh.

        Raises:
            IntegrityError: The file was truncated since it was opened.
        """

    def read_windows(self, starts: Ints, seq_len: int) -> Ids:
        rows = [self.read(start, start + seq_len + 1) for start in starts.tolist()]
        return np.stack(rows)

    def check_ids(self, ids: Ids) -> None:
        """Raise an IntegrityError if an id is not below `id_limit`."""
        limit = self.id_limit
        if limit and ids.size and (top := ids.item(ids.argmax())) >= limit:
            reason = "its manifest says vocab_size" if self.manifest else "the limit is"
            raise IntegrityError(
                f"{getattr(self, 'path', 'data')} holds the id {top:,}, but {reason} "
                f"{limit:,}; encode the text again"
            )

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        if self.dtype.name not in DTYPES:
            digest.update(self.dtype.name.encode())
        for begin in range(0, len(self), _CHUNK):
            ids = self.read(begin, min(begin + _CHUNK, len(self)))
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
    """Any one-dimensional integer array in memory, or mapped into it.

    Attributes:
        ids: Shape (N,).
    """

    def __init__(self, ids: Ids) -> None:
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise ValueError(
                f"data has shape {ids.shape} and dtype {ids.dtype}; give a "
                "one-dimensional array of integers"
            )
        self.dtype = ids.dtype
        # Slices of a memmap are slow to make.
        self.ids = ids if type(ids) is np.ndarray else ids.view(np.ndarray)
        self._file = MappedFile(ids)
        if ids.dtype == np.uint64:  # It holds what int64 tensors cannot.
            self.id_limit = 1 << 8 * ids.itemsize - 1

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

    Only the pages that are touched are read. It pickles as its path.

    Attributes:
        path: Absolute.
        ids: Shape (N,), uint16 or uint32, read-only.
    """

    def __init__(self, path: StrPath, access: str = "normal") -> None:
        super().__init__(open_tokens(path))
        self.path = os.path.abspath(path)
        self.access = access
        if manifest_path(path).is_file():
            self.manifest = read_manifest(path)
            self.id_limit = self.manifest.vocab_size
        if access == "random":
            self._file.advise_random()

    def __reduce__(self) -> Any:
        return TokenFile, (self.path, self.access)

    def __repr__(self) -> str:
        return f"TokenFile({self.path!r}, {len(self):,} ids, {self.dtype})"

    def will_need(self, begin: int, end: int) -> None:
        itemsize = self.dtype.itemsize
        self._file.will_need(begin * itemsize, end * itemsize)

    @functools.cached_property
    def _index(self) -> ArraySource:
        if self.manifest is None:
            return ArraySource(super().document_starts())  # It says what is missing.
        return ArraySource(load_document_starts(self.path, self.manifest))

    def document_starts(self) -> Ints:
        return self._index.read(0, len(self._index))

    def fingerprint(self) -> str:
        return self.manifest.sha256 if self.manifest else super().fingerprint()


def check_alike(sources: Sequence[Source], label: str) -> None:
    """Raise a ValueError unless sources have one dtype and one tokenizer."""
    if not sources:
        raise ValueError(f"there is no {label}; give at least one")
    for number, source in enumerate(sources):
        if source.dtype != sources[0].dtype:
            raise ValueError(
                f"{label} {number} holds {source.dtype} ids, but the first one "
                f"{sources[0].dtype}; encode both with one tokenizer"
            )
    manifests = [(source, source.manifest) for source in sources if source.manifest]
    for source, manifest in manifests:
        path = getattr(source, "path", label)
        check_tokenizer(path, manifest, manifests[0][1].tokenizer_sha256)


class JoinedArrays(IdArray):
    """Several arrays of ids end to end; a window may span two or more of them.

    A slice of it is a copy in memory.

    Attributes:
        parts: The arrays.
        begins, ends: Shape (number of parts,), int64: where each part lies.
    """

    def __init__(self, parts: Sequence[ArraySource]) -> None:
        self.parts = list(parts)
        check_alike(self.parts, "token array")
        lengths = np.array([len(part) for part in self.parts], dtype=np.int64)
        self.ends = np.cumsum(lengths)
        self.begins = self.ends - lengths
        self.dtype = self.parts[0].dtype
        self.access = max(part.access for part in self.parts)
        first = next((part for part in parts if part.manifest), self.parts[0])
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
        # Sliced once per part, not per row, as each slice checks the file's size.
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
    """All ids on a device, where batches are cut without leaving it.

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
        windows = windows[places].to(device)
        return split_windows(windows, is_unsigned=self.dtype.kind == "u")

    def fingerprint(self) -> str:
        return self._fingerprint or super().fingerprint()
