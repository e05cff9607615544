"""Sampling: from (seed, sample number) to start positions. Reads no tokens.

A window is seq_len + 1 consecutive ids, so N ids have N - seq_len windows. With a seed,
sample p of a training run (counted from 0) depends on (seed, p) and nothing else:

1. Row `row` of rank `rank` is sample p = (step * world_size + rank) * batch_size + row.
   The state of a run is one integer: the number of samples consumed.
2. With replacement, sample p uses number p of a random stream that the seed determines.
3. Without replacement, p counts through epochs. Each epoch cuts the ids into windows
   with disjoint inputs, from a random offset, and visits them in its own random order.

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
    """Return the number of start positions; raise a ValueError if there is none.

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
        seed: Determines all draws. In a mixture, each source uses "seed/number". None
            draws from torch's global generator instead, with replacement.
        first: Number of samples drawn before these.
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
    """Check the arguments of `get_batch`; return what a rank draws at a step.

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
                f"step is {step} and num_samples is {num_samples}, but both set the "
                "position in the run; give only one"
            )
    first = num_samples + rank * batch_size
    if first + batch_size > 1 << 62:
        raise ValueError(
            f"the batch starts at sample {first:,}, beyond 2**62; give a smaller step "
            "or num_samples"
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
    """Return the start positions of one rank's batch at one step.

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
    return choose_window_starts(num_tokens, check_int("seq_len", seq_len), samples)


def choose_window_starts(num_tokens: int, seq_len: int, samples: Samples) -> Ints:
    """Choose a start position for each sample, shape (num_rows,)."""
    num_windows = count_windows(num_tokens, seq_len)
    if samples.replace:
        return choose(num_windows, samples)
    # Leftover ids are split randomly between both ends.
    num_windows = max(1, num_windows // seq_len)
    num_offsets = num_tokens - num_windows * seq_len
    starts = choose(num_windows, samples)
    starts *= seq_len
    for epoch, _, rows in _split_by_epoch(num_windows, samples):
        starts[rows] += keyed_int("offset", samples.seed, epoch) % num_offsets
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
        # Philox generates four numbers per counter value.
        numbers = keyed_philox("stream", seed, counter=first // 4).random_raw(_BLOCK)
        chosen = (numbers % np.uint64(n)).view(np.int64)
        return chosen
    chosen = np.empty(_BLOCK, dtype=np.int64)
    samples = Samples(seed, first, _BLOCK, replace)
    for epoch, indices, rows in _split_by_epoch(n, samples):
        chosen[rows] = permutation(n, seed, epoch)(indices)
    return chosen


def _split_by_epoch(n: int, samples: Samples) -> Iterator[tuple[int, Ints, slice]]:
    """Yield the epochs that the samples touch: number, indices in it, and rows."""
    row = 0
    while row < samples.num_rows:
        epoch, index = divmod(samples.first + row, n)
        num_here = min(samples.num_rows - row, n - index)
        yield epoch, np.arange(index, index + num_here), slice(row, row + num_here)
        row += num_here
