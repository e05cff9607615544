"""Token arrays: open a token file, and cut windows out of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tiny_llm.tokens import open_tokens

# N = ids in the array, B = batch_size, T = seq_len
TokenArray = npt.NDArray[Any]

# Where the pipeline of this checkout leaves the token files of its splits.
_TOKENS_DIR = Path(__file__).resolve().parents[2] / "build" / "tokens"
_SPLITS = ("train", "valid")


def load_token_array(path: str | os.PathLike[str]) -> TokenArray:
    """Open a token file for batching: mapped into memory, read only when touched.

    Args:
        path: A token file, or the name of a split that the pipeline made, "train" or
            "valid". A .bin without a manifest beside it is read as uint16.

    Returns:
        Shape (N,), uint16 or uint32, read-only.

    Raises:
        InputError (a ValueError): There is no such file, or it is empty.
        IntegrityError (a ValueError): The file is not what its manifest says.
    """
    if path in _SPLITS:
        path = _TOKENS_DIR / f"{path}.bin"
    return open_tokens(path)


def cut_windows(
    ids: TokenArray, starts: npt.NDArray[np.int64], seq_len: int
) -> TokenArray:
    """Copy one window per start out of a token array.

    The array is seen as overlapping records of T + 1 ids, one beginning at each id,
    so that a single index operation copies each window as a block of bytes.

    Args:
        ids: Shape (N,), uint16 or uint32, contiguous; of a memmap only the touched
            pages are read.
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
    itemsize = ids.dtype.itemsize
    records: npt.NDArray[Any] = np.ndarray(
        shape=(len(ids) - seq_len,),
        dtype=np.dtype((np.void, itemsize * (seq_len + 1))),
        buffer=ids,
        strides=(itemsize,),
    )
    return records[starts].view(ids.dtype).reshape(len(starts), seq_len + 1)
