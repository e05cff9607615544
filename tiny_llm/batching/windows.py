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
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

_STREAM_BLOCK = 1024
_ROUNDS = 4


def check_integer(at_least: int = 1, **arguments: object) -> None:
    """Refuse arguments that are not integers of at least `at_least`."""
    for name, value in arguments.items():
        if type(value) is int and value >= at_least:
            continue  # At once: a batch takes microseconds.
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise ValueError(
                f"{name} is {value!r}; give an integer of at least {at_least}"
            )
        if value < at_least:
            raise ValueError(f"{name} is {value:,}; give at least {at_least}")


def count_windows(num_tokens: int, seq_len: int) -> int:
    """How many start positions there are.

    Raises:
        ValueError: There is not even one window.

    >>> count_windows(num_tokens=10, seq_len=4)
    6
    """
    check_integer(seq_len=seq_len)
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
    check_integer(batch_size=batch_size, world_size=world_size)
    check_integer(0, seed=seed, step=step, rank=rank)
    if rank >= world_size:
        raise ValueError(f"rank is {rank} of world_size {world_size}; give a lower one")
    if num_samples is None:
        num_samples = int(step) * int(world_size) * int(batch_size)
    else:
        check_integer(0, num_samples=num_samples)
        if step:
            raise ValueError(
                f"step is {step} and num_samples {num_samples}, which both say how "
                "far the run is; give one of them"
            )
    first = int(num_samples) + int(rank) * int(batch_size)
    if first + batch_size > 1 << 62:
        raise ValueError(f"sample {first:,} is so far that numbers overflow")
    return Samples(int(seed), first, int(batch_size), replace)


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
        seed: Fixes the whole run; of at least 0, any size.
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
    return draw_starts(num_tokens, seq_len, samples)


def draw_starts(num_tokens: int, seq_len: int, samples: Samples) -> Ints:
    """Start positions of samples, shape (num_rows,).

    Raises:
        ValueError: There is no window, or seq_len is out of its range.
    """
    num_windows = count_windows(num_tokens, seq_len)
    if samples.replace:
        return draw(num_windows, samples)
    # An epoch has the windows that fit behind any offset below seq_len; with fewer
    # than 2 * seq_len ids there is one, at any offset.
    num_windows = max(1, num_windows // seq_len)
    num_offsets = min(seq_len, num_tokens - num_windows * seq_len)
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
    if samples.replace:
        return _draw_anew(n, samples)
    choices = np.empty(samples.num_rows, dtype=np.int64)
    for epoch, indices, rows in _epochs(n, samples):
        choices[rows] = permutation(n, samples.seed, epoch).send(indices)
    return choices


def _epochs(n: int, samples: Samples) -> Iterator[tuple[int, Ints, slice]]:
    """Epochs of n that samples lie in: each with indices in it, and their rows."""
    row = 0
    while row < samples.num_rows:
        epoch, index = divmod(samples.first + row, n)
        here = min(samples.num_rows - row, n - index)
        yield epoch, np.arange(index, index + here), slice(row, row + here)
        row += here


def _digest(num_bytes: int, *key: object) -> bytes:
    """SHAKE-128 of a key: the parts parted by spaces, as in "stream 1337"."""
    return hashlib.shake_128(" ".join(map(str, key)).encode()).digest(num_bytes)


def _philox(counter: int, *key: object) -> np.random.Philox:
    """The numbers of a key, 64 bits each, from number 4 * counter on."""
    return np.random.Philox(
        key=int.from_bytes(_digest(16, *key), "little"), counter=counter
    )


def _draw_anew(n: int, samples: Samples) -> Ints:
    seed, first, num_rows, _ = samples
    begin, skip = divmod(first, _STREAM_BLOCK)
    end = (first + num_rows - 1) // _STREAM_BLOCK + 1
    if end == begin + 1:
        drawn: Ints = _stream_block(n, seed, begin)[skip : skip + num_rows].copy()
    else:
        blocks = [_stream_block(n, seed, block) for block in range(begin, end)]
        drawn = np.concatenate(blocks)[skip : skip + num_rows]
    return drawn


@functools.lru_cache(maxsize=64)
def _stream_block(n: int, seed: int | str, block: int) -> Ints:
    source = _philox(block * (_STREAM_BLOCK // 4), "stream", seed)
    numbers: Ints = (source.random_raw(_STREAM_BLOCK) % np.uint64(n)).view(np.int64)
    return numbers


@functools.lru_cache(maxsize=64)
def _offset(seed: int | str, epoch: int) -> int:
    return int.from_bytes(_digest(8, "offset", seed, epoch), "little")


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
        check_integer(n=n)
        self.n = n
        self._columns = math.isqrt(n - 1) + 1
        self._rows = -(-n // self._columns)
        self._tables = []
        numbers = _philox(0, "permutation", n, *key)
        for number in range(_ROUNDS):
            size, limit = self._rows, self._columns
            if number % 2:
                size, limit = limit, size
            words = numbers.random_raw(-(-size // 2)).astype("<u8").view("<u4")
            self._tables.append(words[:size] % np.uint32(limit))

    def __call__(self, indices: Ints) -> Ints:
        """Where indices, shape (k,), each in [0, n), are sent."""
        if len(indices) and not 0 <= indices.min() <= indices.max() < self.n:
            raise ValueError(
                f"an index from {indices.min():,} to {indices.max():,} is outside a "
                f"permutation of {self.n:,}; give indices from 0 on, below it"
            )
        return self.send(indices)

    def send(self, indices: Ints) -> Ints:
        """The same, unchecked: with an index outside [0, n) it might never end."""
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


@functools.lru_cache(maxsize=32)
def permutation(n: int, *key: object) -> Permutation:
    """The order that belongs to a key; those used last are kept."""
    return Permutation(n, *key)
