"""Batches: inputs and targets as tensors, on a device."""

from __future__ import annotations

import os

import numpy as np
import torch

from tiny_llm.batching.arrays import TokenArray, cut_windows, load_token_array
from tiny_llm.batching.windows import check_integer, count_windows, window_starts


def get_batch(
    data: TokenArray | str | os.PathLike[str],
    batch_size: int,
    seq_len: int,
    device: str | torch.device = "cpu",
    *,
    seed: int | None = None,
    step: int = 0,
    rank: int = 0,
    world_size: int = 1,
    replace: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw a batch of random windows; with a seed, one that can be drawn again.

    With replacement every window can be drawn, the last one too, and each is equally
    likely.

    Args:
        data: What `load_token_array` returned; or a path, or "train" or "valid",
            which is then opened on each call. Any contiguous array of shape (N,),
            uint16 or uint32, will do.
        batch_size: B, the number of windows.
        seq_len: T, in tokens; N must be at least T + 1.
        device: Where the tensors go.
        seed: Makes the batch a function of the arguments (and the ids) alone, and
            leaves torch's and numpy's global random state untouched. Without one,
            `torch.manual_seed` makes the draws repeat.
        step: How many batches came before: all that a checkpoint needs to hold.
        rank: Which part of the global batch this process draws, in [0, world_size).
        world_size: Number of processes; the global batch of world_size * B windows is
            the same for any number that divides it.
        replace: False goes through all windows of an epoch before the next.

    Returns:
        Inputs x and targets y, each int64, shape (B, T), contiguous and fresh;
        y[b, t] is the id that follows x[b, t].

    Raises:
        ValueError: An argument is out of its range or lacks a seed, there are too
            few ids, or `data` is not such an array.
    """
    if isinstance(data, str | os.PathLike):
        data = load_token_array(data)
    ids = _check_array(data)
    if seed is not None:
        starts = window_starts(
            len(ids),
            batch_size,
            seq_len,
            seed=seed,
            step=step,
            rank=rank,
            world_size=world_size,
            replace=replace,
        )
    elif (step, rank, world_size, replace) == (0, 0, 1, True):
        check_integer(batch_size=batch_size)
        num_windows = count_windows(len(ids), seq_len)
        starts = torch.randint(num_windows, (batch_size,)).numpy()
    else:
        raise ValueError(
            f"step {step}, rank {rank}, world_size {world_size} and replace {replace} "
            "have no meaning without a seed; give one"
        )
    windows = cut_windows(ids, starts, seq_len)
    x = torch.from_numpy(windows[:, :-1].astype(np.int64))
    y = torch.from_numpy(windows[:, 1:].astype(np.int64))
    return x.to(device), y.to(device)


def _check_array(ids: object) -> TokenArray:
    if not isinstance(ids, np.ndarray):
        raise ValueError(
            f"data is of type {type(ids).__name__}; give a token array, as "
            "load_token_array returns it, or a path"
        )
    if ids.ndim != 1 or ids.dtype.name not in ("uint16", "uint32"):
        raise ValueError(
            f"data has shape {ids.shape} and dtype {ids.dtype}; give one row of uint16 "
            "or uint32 ids, as load_token_array returns it"
        )
    if not ids.flags.c_contiguous:
        raise ValueError(
            f"data has strides {ids.strides}, so its ids do not lie side by side; "
            "give a contiguous array (np.ascontiguousarray makes one)"
        )
    return ids
