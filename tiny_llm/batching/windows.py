"""Windows: which start positions a batch takes. Integers only, no token is read.

A window is seq_len + 1 consecutive ids, so N ids have N - seq_len windows. With a seed,
sample p of a training run (from 0 on) is a function of (seed, p) and nothing else:

1. Row `row` of rank `rank` takes p = (step * world_size + rank) * batch_size + row.
   The state of a run is one integer, how many samples were taken before.
2. With replacement, p picks a number out of a stream that the seed fixes.
3. Without, p counts through epochs. Each epoch cuts the ids, at an offset of its own,
   into windows that share no input, and takes them in an order of its own.

So a run is resumed by its step alone, and the global batch is the same for any number
of ranks. All numbers come from SHAKE-128 of a key that names their purpose and what
they depend on, so no two streams coincide, as those of seed + epoch would. Where many
are needed, that digest is the key of Philox (Salmon et al., "Parallel random numbers:
as easy as 1, 2, 3", 2011), whose numbers can be had from any place on, and which numpy
guarantees never to change.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tiny_llm.checks import check_int

Ints = npt.NDArray[np.int64]

# Choices are drawn, and kept, for so many samples at a time.
_BLOCK = 1024
# An order of so many numbers or fewer is stored.
_SHORT = 4096


def count_windows(num_tokens: int, seq_len: int) -> int:
    """How many start positions there are.

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
    """Samples of a run that follow each other, one for each row of a batch.

    Attributes:
        seed: What fixes the run; inside a mixture "seed/source" for each source.
        first: How many samples came before.
        num_rows: How many there are.
        replace: Whether they are drawn with replacement.
    """

    seed: int | str
    first: int
    num_rows: int
    replace: bool


def batch_samples(
    batch_size: int,
    seed: int,
    step: int,
    rank: int,
    world_size: int,
    num_samples: int | None,
    replace: bool,
) -> Samples:
    """Which samples a rank takes at a step; see `window_starts`.

    Raises:
        ValueError: An argument is out of its range.

    >>> batch_samples(8, 1337, 3, 1, 2, None, True)
    Samples(seed=1337, first=56, num_rows=8, replace=True)
    """
    batch_size = check_int("batch_size", batch_size)
    world_size = check_int("world_size", world_size)
    seed, step = check_int("seed", seed, 0), check_int("step", step, 0)
    rank = check_int("rank", rank, 0)
    if rank >= world_size:
        raise ValueError(f"rank is {rank} of world_size {world_size}; give a lower one")
    if not isinstance(replace, bool):
        raise ValueError(f"replace is {replace!r}; give True or False")
    if num_samples is None:
        num_samples = step * world_size * batch_size
    else:
        num_samples = check_int("num_samples", num_samples, 0)
        if step:
            raise ValueError(
                f"step is {step} and num_samples {num_samples}, which both say how "
                "far the run is; give one of them"
            )
    first = num_samples + rank * batch_size
    if first + batch_size > 1 << 62:
        raise ValueError(f"the batch ends beyond sample 2**62: step is {step:,}")
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
    """Start positions of one rank's batch at one step, the same whenever asked.

    Args:
        num_tokens: N, ids in the token array.
        batch_size: B, rows of this rank's batch.
        seq_len: T, in tokens.
        seed: Fixes the whole run; of at least 0.
        step: How many batches came before, of at least 0.
        rank: Of this process, in [0, world_size).
        world_size: Number of processes that share the global batch.
        num_samples: In place of `step`: how many samples all ranks together took
            before, which goes on exactly where the batch size changed on the way.
        replace: Draw with replacement; else go through all windows of an epoch
            before the next, in (N - T) // T windows an epoch (at least one). Rows of
            a batch run on into the next epoch, so no batch is short.

    Returns:
        Shape (B,), each in [0, N - T).

    Raises:
        ValueError: An argument is out of its range, or there is no window.
    """
    samples = batch_samples(
        batch_size, seed, step, rank, world_size, num_samples, replace
    )
    num_tokens, seq_len = (
        check_int("num_tokens", num_tokens, 0),
        check_int("seq_len", seq_len),
    )
    return draw_starts(num_tokens, seq_len, samples)


def draw_starts(num_tokens: int, seq_len: int, samples: Samples) -> Ints:
    """Start positions of samples, shape (num_rows,).

    Raises:
        ValueError: There is no window, or seq_len is out of its range.
    """
    num_windows = count_windows(num_tokens, seq_len)
    if samples.replace:
        return draw(num_windows, samples)
    # The ids that these windows leave over lie before the first and behind the last.
    num_windows = max(1, num_windows // seq_len)
    num_offsets = num_tokens - num_windows * seq_len
    starts = draw(num_windows, samples)
    starts *= seq_len
    for epoch, _, rows in _epochs(num_windows, samples):
        starts[rows] += _offset(samples.seed, epoch) % num_offsets
    return starts


def draw(n: int, samples: Samples) -> Ints:
    """Choices of samples among 0 .. n - 1, shape (num_rows,).

    Without replacement each n samples, an epoch, are these numbers in an order of
    their own.
    """
    seed, first, num_rows, replace = samples
    begin, skip = divmod(first, _BLOCK)
    end = (first + num_rows - 1) // _BLOCK + 1
    if end == begin + 1:
        drawn: Ints = _draw_block(n, seed, replace, begin)[
            skip : skip + num_rows
        ].copy()
    else:
        blocks = [_draw_block(n, seed, replace, block) for block in range(begin, end)]
        drawn = np.concatenate(blocks)[skip : skip + num_rows]
    return drawn


@functools.lru_cache(maxsize=256)
def _draw_block(n: int, seed: int | str, replace: bool, block: int) -> Ints:
    first = block * _BLOCK
    if replace:
        # Philox makes four numbers at a time.
        numbers = philox("stream", seed, counter=first // 4).random_raw(_BLOCK)
        drawn: Ints = (numbers % np.uint64(n)).view(np.int64)
        return drawn
    drawn = np.empty(_BLOCK, dtype=np.int64)
    for epoch, indices, rows in _epochs(n, Samples(seed, first, _BLOCK, replace)):
        drawn[rows] = permutation(n, seed, epoch)(indices)
    return drawn


def _epochs(n: int, samples: Samples) -> Iterator[tuple[int, Ints, slice]]:
    """Epochs of n that samples lie in: each with indices in it, and their rows."""
    row = 0
    while row < samples.num_rows:
        epoch, index = divmod(samples.first + row, n)
        here = min(samples.num_rows - row, n - index)
        yield epoch, np.arange(index, index + here), slice(row, row + here)
        row += here


def _digest(num_bytes: int, *key: object) -> bytes:
    """SHAKE-128 of a key, its parts joined by spaces, as in "stream 1337"."""
    return hashlib.shake_128(" ".join(map(str, key)).encode()).digest(num_bytes)


def philox(*key: object, counter: int = 0) -> np.random.Philox:
    """The random numbers of a key, 64 bits each, from number 4 * counter on."""
    words = int.from_bytes(_digest(16, *key), "little")
    return np.random.Philox(key=words, counter=counter)


@functools.lru_cache(maxsize=64)
def _offset(seed: int | str, epoch: int) -> int:
    return int.from_bytes(_digest(8, "offset", seed, epoch), "little")


@functools.lru_cache(maxsize=32)
def permutation(n: int, *key: object) -> Callable[[Ints], Ints]:
    """The order of 0 .. n - 1 that belongs to a key: short ones are stored."""
    if n > _SHORT:
        return Permutation(n, *key)
    numbers = philox("permutation", n, *key).random_raw(n)
    order: Ints = numbers.argsort(kind="stable")
    return order.__getitem__


class Permutation:
    """A random order of 0 .. n - 1 that is computed, not stored.

    A number is written as (high, low) in a grid of about sqrt(n) rows and columns.
    Each round adds to one of the two a random number that a table holds for the other,
    modulo its range: so each round can be undone, and the whole is one to one on the
    grid (a Feistel network). What falls on a cell beyond n - 1 is sent on through the
    same rounds until it does not, which keeps it one to one on 0 .. n - 1.

    By hand, n = 5 on a grid of 2 rows and 3 columns, and one round each way with the
    tables (1, 2) for the rows and (0, 1, 0) for the columns: 4 is (1, 1); row 1 adds 2
    to the column, which becomes 3 mod 3 = 0; column 0 adds 0 to the row: (1, 0) is 3.
    3 is (1, 0); the column becomes 2, the row stays: (1, 2) is 5, beyond 4, so on: the
    column becomes 4 mod 3 = 1, column 1 adds 1 to the row, 2 mod 2 = 0: (0, 1) is 1.

    Source: cycle walking over a Feistel network is due to Black and Rogaway, "Ciphers
    with arbitrary finite domains" (2002); tables in place of a cipher make it fast.
    """

    def __init__(self, n: int, *key: object) -> None:
        """Make the order of 0 .. n - 1 that belongs to a key."""
        self.n = check_int("n", n)
        self._columns = math.isqrt(n - 1) + 1
        self._rows = -(-n // self._columns)
        self._tables = []
        numbers = philox("permutation", n, *key)
        # With four rounds, neighbours stay neighbours in 2 / n of all cases, with six
        # in 1 / n. Beyond four billion that saves memory and does not matter.
        for number in range(4 if n > 1 << 32 else 6):
            size, limit = self._rows, self._columns
            if number % 2:
                size, limit = limit, size
            words = numbers.random_raw(-(-size // 2)).astype("<u8").view("<u4")
            self._tables.append(words[:size] % np.uint32(limit))

    def __call__(self, indices: Ints) -> Ints:
        """Where indices, shape (k,), each in [0, n), are sent."""
        if len(indices) and not 0 <= indices.min() <= indices.max() < self.n:
            raise ValueError(
                f"indices reach from {indices.min():,} to {indices.max():,}; give such "
                f"from 0 to {self.n - 1:,}, of which this is a permutation"
            )
        sent = self._go_round(indices)
        while self.n < self._rows * self._columns:
            beyond = (sent >= self.n).nonzero()[0]
            if not len(beyond):
                break
            sent[beyond] = self._go_round(sent[beyond])
        return sent

    def _go_round(self, indices: Ints) -> Ints:
        high, low = np.divmod(indices, self._columns)
        for number, table in enumerate(self._tables):
            if number % 2:
                high += table[low]
                high %= self._rows
            else:
                low += table[high]
                low %= self._columns
        high *= self._columns
        high += low
        return high
