"""Windows: copy them from an array of ids, and convert them to tensors."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tiny_llm.batching.permutation import Ints

# B = batch_size, T = seq_len, N = ids in the array
Ids = npt.NDArray[Any]
Device = str | torch.device
Batch = tuple[torch.Tensor, torch.Tensor]


def cut_windows(ids: Ids, starts: Ints, seq_len: int) -> Ids:
    """Copy one window per start out of an array of ids.

    The array is viewed as overlapping records of T + 1 ids, one starting at each id,
    so a single index operation copies each window as a block of bytes. By hand, T = 3
    over the ids 0 1 2 3 4 5: the records are 0123, 1234 and 2345, 8 bytes each and 2
    bytes apart; starts 0 and 2 pick the first and the last.

    Args:
        ids: Shape (N,), any integer dtype.
        starts: Shape (B,), each in [0, N - T). Negative starts are not detected.
        seq_len: T, in tokens.

    Returns:
        Shape (B, T + 1), dtype of `ids`, a fresh array.

    Raises:
        IndexError: A window would end beyond the array.

    >>> cut_windows(np.arange(6, dtype=np.uint16), np.array([0, 2]), 3)
    array([[0, 1, 2, 3],
           [2, 3, 4, 5]], dtype=uint16)
    """
    windows: Ids
    if not ids.flags.c_contiguous:
        windows = np.lib.stride_tricks.sliding_window_view(ids, seq_len + 1)[starts]
        return windows
    # Positional, as names cost a microsecond: shape, dtype, buffer, offset, strides.
    itemsize = ids.itemsize
    record = _record_dtype(itemsize * (seq_len + 1))
    records: Ids = np.ndarray((len(ids) - seq_len,), record, ids, 0, (itemsize,))
    windows = np.ndarray((len(starts), seq_len + 1), ids.dtype, records[starts])
    return windows


@functools.lru_cache
def _record_dtype(num_bytes: int) -> np.dtype[np.void]:
    return np.dtype((np.void, num_bytes))


def check_device(device: Device) -> torch.device:
    """Return a device with its index; raise a ValueError if torch cannot use it."""
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ValueError(
            f"device is {str(device)!r}, which torch {torch.__version__} cannot use "
            f"here ({str(error).splitlines()[0]}); give 'cpu', or 'cuda' with a CUDA "
            "build of torch"
        ) from error


def to_batch(windows: Ids, device: Device) -> Batch:
    """Turn windows, shape (B, T + 1), into inputs and targets on a device."""
    if device != "cpu" and (found := check_device(device)).type != "cpu":
        # Copy the ids once, in the width that they are stored in.
        windows = windows.astype(windows.dtype.newbyteorder("="), copy=False)
        narrow = torch.from_numpy(windows.view(f"i{windows.itemsize}"))
        if found.type == "cuda":
            narrow = narrow.pin_memory()
        narrow = narrow.to(found, non_blocking=True)
        return split_windows(narrow, is_unsigned=windows.dtype.kind == "u")
    # One allocation for both: two large ones would be returned to the system after
    # each batch, and their pages faulted in again (benchmarks/LOG.md).
    batch_size, window_size = windows.shape
    both = np.empty((2, batch_size, window_size - 1), dtype=np.int64)
    both[0], both[1] = windows[:, :-1], windows[:, 1:]
    return torch.from_numpy(both[0]), torch.from_numpy(both[1])


def split_windows(windows: torch.Tensor, *, is_unsigned: bool) -> Batch:
    """Split windows, shape (B, T + 1), and convert them to int64 on their device.

    With `is_unsigned`, negative numbers represent large unsigned ones.
    """
    x = windows[:, :-1].to(torch.int64, copy=True)
    y = windows[:, 1:].to(torch.int64, copy=True)
    if is_unsigned and windows.itemsize < 8:
        mask = (1 << 8 * windows.itemsize) - 1
        x.bitwise_and_(mask)
        y.bitwise_and_(mask)
    return x, y
