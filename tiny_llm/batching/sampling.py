"""Sampling: from (seed, sample number) to start positions. No token is read.

A window is seq_len + 1 consecutive ids, so N ids have N - seq_len windows. With a seed,
sample p of a training run (counted from 0) depends on (seed, p) and nothing else:

1. Row `row` of rank `rank` takes p = (step * world_size + rank) * batch_size + row.
   The state of a run is one integer: the number of samples consumed.
2. With replacement, sample p takes number p of a random stream that the seed fixes.
3. Without replacement, p counts through epochs. Each epoch cuts the ids, from its own
   random offset, into windows that share no input, and takes them in its own order.

So a run resumes from its step alone, and the global batch is the same for any number
of ranks.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from tiny_llm.batching.permutation import Ints, keyed_int, keyed_philox, permutation
from tiny_llm.checks import check_int

# Choices are drawn, and cached, for this many samples at a time.
_BLOCK = 1024


def count_windows(num_tokens: int, seq_len: int) -> int:
    """Return the number of start positions.

    Raises:
        ValueError: There is not even one window.

    >>> count_windows(num_tokens=10, seq_len=4)
    6
    """
    if num_tokens <= seq_len:
        raise ValueError(
            f"data holds {num_tokens:,} ids, too few for one window of "
            f"seq_len + 1 = {seq_len + 1:,}; lower seq_len or encode more text"
        )
    return num_tokens - seq_len


class Samples(NamedTuple):
    """Consecutive samples of a run, one per row of a batch.

    Attributes:
        seed: Fixes the run; inside a mixture "seed/source" for each source. None draws
            from torch's global generator instead, with replacement.
        first: Number of samples before these.
        num_rows: Number of samples.
        replace: Whether they are drawn with replacement.
    """

    seed: int | str | None
    first: int
    num_rows: int
    replace: bool


def samples_of_batch(
    batch_size: int,
    seed: int,
    step: int,
    rank: int,
    world_size: int,
    num_samples: int | None,
    replace: bool,
) -> Samples:
    """Return the samples that a rank takes at a step; see `window_starts`.

    Raises:
        ValueError: An argument is out of range.

    >>> samples_of_batch(8, 1337, 3, 1, 2, None, True)
    Samples(seed=1337, first=56, num_rows=8, replace=True)
    """
    batch_size = check_int("batch_size", batch_size)
    world_size = check_int("world_size", world_size)
    seed, step = check_int("seed", seed, 0), check_int("step", step, 0)
    rank = check_int("rank", rank, 0)
    if rank >= world_size:
        raise ValueError(
            f"rank is {rank}, but world_size is {world_size}; "
            f"give a rank from 0 to {world_size - 1}"
        )
    if not isinstance(replace, bool):
        raise ValueError(f"replace is {replace!r}; give True or False")
    if num_samples is None:
        num_samples = step * world_size * batch_size
    else:
        num_samples = check_int("num_samples", num_samples, 0)
        if step:
            raise ValueError(
                f"step is {step} and num_samples is {num_samples}, but each says how "
                "far the run is; give one of them"
            )
    first = num_samples + rank * batch_size
    if first + batch_size > 1 << 62:
        raise ValueError(
            f"step is {step:,}, which puts the batch beyond sample 2**62; "
            "give a smaller one"
        )
    return Samples(seed, first, batch_size, replace)


def window_starts(
    num_tokens: int,
    batch_size: int,
    seq_len: int,
    *,
    seed: int,
    step: int = 0,
    rank: int = 0,
    world_size: int = 1,
    num_samples: int | None = None,
    replace: bool = True,
) -> Ints:
    """Return the start positions of one rank's batch at one step, always the same.

    `num_tokens` is N, the number of ids; the other arguments are those of `get_batch`.
    Without replacement an epoch has (N - T) // T windows, at least one, and a batch may
    span two epochs, so no batch is short.

    Returns:
        Shape (B,), each in [0, N - T).

    Raises:
        ValueError: An argument is out of range, or there is no window.
    """
    samples = samples_of_batch(
        batch_size, seed, step, rank, world_size, num_samples, replace
    )
    num_tokens = check_int("num_tokens", num_tokens, 0)
    return choose_windows(num_tokens, check_int("seq_len", seq_len), samples)


def choose_windows(num_tokens: int, seq_len: int, samples: Samples) -> Ints:
    """Choose a start position for each sample, shape (num_rows,).

    Raises:
        ValueError: There is no window.
    """
    num_windows = count_windows(num_tokens, seq_len)
    if samples.replace:
        return choose(num_windows, samples)
    # The ids that do not fill a window are split between the two ends at random.
    num_windows = max(1, num_windows // seq_len)
    num_offsets = num_tokens - num_windows * seq_len
    starts = choose(num_windows, samples)
    starts *= seq_len
    for epoch, _, rows in _split_by_epoch(num_windows, samples):
        starts[rows] += _epoch_offset(samples.seed, epoch) % num_offsets
    return starts


def choose(n: int, samples: Samples) -> Ints:
    """Choose one of 0 .. n - 1 for each sample, shape (num_rows,).

    Without replacement, each n samples form an epoch: a permutation of all n numbers.
    """
    seed, first, num_rows, replace = samples
    chosen: Ints
    if seed is None:
        chosen = np.empty(num_rows, dtype=np.int64)
        torch.from_numpy(chosen).random_(n)
        return chosen
    begin, skip = divmod(first, _BLOCK)
    end = (first + num_rows - 1) // _BLOCK + 1
    if end == begin + 1:
        chosen = _choose_block(n, seed, replace, begin)[skip : skip + num_rows].copy()
        return chosen
    blocks = [_choose_block(n, seed, replace, number) for number in range(begin, end)]
    chosen = np.concatenate(blocks)[skip : skip + num_rows]
    return chosen


@functools.lru_cache(maxsize=256)
def _choose_block(n: int, seed: int | str, replace: bool, number: int) -> Ints:
    first = number * _BLOCK
    chosen: Ints
    if replace:
        # Philox makes four numbers at a time.
        numbers = keyed_philox("stream", seed, counter=first // 4).random_raw(_BLOCK)
        chosen = (numbers % np.uint64(n)).view(np.int64)
        return chosen
    chosen = np.empty(_BLOCK, dtype=np.int64)
    samples = Samples(seed, first, _BLOCK, replace)
    for epoch, indices, rows in _split_by_epoch(n, samples):
        chosen[rows] = permutation(n, seed, epoch)(indices)
    return chosen


def _split_by_epoch(n: int, samples: Samples) -> Iterator[tuple[int, Ints, slice]]:
    """Yield each epoch of n samples with the indices in it and their rows."""
    row = 0
    while row < samples.num_rows:
        epoch, index = divmod(samples.first + row, n)
        num_here = min(samples.num_rows - row, n - index)
        yield epoch, np.arange(index, index + num_here), slice(row, row + num_here)
        row += num_here


@functools.lru_cache(maxsize=64)
def _epoch_offset(seed: int | str | None, epoch: int) -> int:
    return keyed_int("offset", seed, epoch)
