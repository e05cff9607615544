"""Cutting: windows are copied out of token arrays, which are checked in passing."""

from __future__ import annotations

import functools
import mmap

import numpy as np

from tiny_llm.batching.arrays import (
    Data,
    Ids,
    JoinedArray,
    TokenData,
    check_ids,
    check_size,
    find_mapping,
    pieces,
)
from tiny_llm.batching.windows import Ints


def cut_windows(ids: Ids, starts: Ints, seq_len: int) -> Ids:
    """Copy one window per start out of an array of ids.

    The array is seen as overlapping records of T + 1 ids, one beginning at each id,
    so that a single index operation copies each window as a block of bytes. By hand,
    T = 3 over the ids 0 1 2 3 4 5: the records are 0123, 1234 and 2345, of 8 bytes
    each, 2 bytes apart; starts 0 and 2 pick the first and the last.

    Args:
        ids: Shape (N,), uint16 or uint32, contiguous.
        starts: Shape (B,), each in [0, N - T); that they are not negative is left to
            the caller, `windows`, to see to.
        seq_len: T, in tokens.

    Returns:
        Shape (B, T + 1), dtype of `ids`, a fresh array.

    Raises:
        IndexError: A window would end beyond the array.

    >>> cut_windows(np.arange(6, dtype=np.uint16), np.array([0, 2]), 3)
    array([[0, 1, 2, 3],
           [2, 3, 4, 5]], dtype=uint16)
    """
    # Positional, as names cost a microsecond: shape, dtype, buffer, offset, strides.
    itemsize = ids.itemsize
    record = _record_dtype(itemsize * (seq_len + 1))
    records: Ids = np.ndarray((len(ids) - seq_len,), record, ids, 0, (itemsize,))
    windows: Ids = np.ndarray((len(starts), seq_len + 1), ids.dtype, records[starts])
    return windows


@functools.lru_cache
def _record_dtype(num_bytes: int) -> np.dtype[np.void]:
    return np.dtype((np.void, num_bytes))


def read_windows(data: TokenData, starts: Ints, seq_len: int) -> Ids:
    """Copy windows out of any token data, and check what can be checked in passing.

    Returns:
        Shape (B, T + 1), dtype of `data`, a fresh array.

    Raises:
        IntegrityError: A file was cut short since it was opened, or holds an id that
            its manifest does not allow.
    """
    if is_random(data):
        will_need(data, starts, seq_len)
    if isinstance(data, JoinedArray):
        windows = _cut_joined(data, starts, seq_len)
    else:
        check_size(data)
        windows = cut_windows(data, starts, seq_len)
    check_ids(windows, data)
    return windows


def _cut_joined(data: JoinedArray, starts: Ints, seq_len: int) -> Ids:
    windows = np.empty((len(starts), seq_len + 1), data.dtype)
    numbers = np.searchsorted(data.ends, starts, side="right")
    begins = (starts - data.begins[numbers]).tolist()
    parts = {number: data.parts[number] for number in set(numbers.tolist())}
    for number, part in parts.items():
        check_size(part)
        parts[number] = np.asarray(part)  # Slices of a memmap are slow to make.
    for row, number in enumerate(numbers.tolist()):
        window = parts[number][begins[row] : begins[row] + seq_len + 1]
        if len(window) <= seq_len:
            window = data[starts[row] : starts[row] + seq_len + 1]
        windows[row] = window
    return windows


def is_random(data: Data) -> bool:
    """Whether `data` was opened with access="random"."""
    return getattr(data, "access", "normal") == "random"


def will_need(data: TokenData, starts: Ints, seq_len: int) -> None:
    """Have windows read ahead, all at once."""
    for start in starts.tolist():
        for part, begin, end in pieces(data, start, start + seq_len + 1):
            mapping = find_mapping(part)
            whole = mapping is not None and len(mapping) == part.nbytes
            if mapping and whole and hasattr(mmap, "MADV_WILLNEED"):
                page = begin * part.itemsize // mmap.PAGESIZE * mmap.PAGESIZE
                length = end * part.itemsize - page
                mapping.madvise(mmap.MADV_WILLNEED, page, length)
