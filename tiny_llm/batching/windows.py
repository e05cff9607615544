"""Windows: which start positions a batch takes. Integers only, no token is read.

A window is seq_len + 1 consecutive ids, so N ids have N - seq_len windows. With a seed,
sample p of a training run (from 0 on) is a function of (seed, p) and nothing else:

1. Row `row` of rank `rank` takes p = (step * world_size + rank) * batch_size + row.
2. With replacement, p picks a number out of a stream that the seed fixes.
3. Without, p counts through epochs. Each epoch cuts the ids, at an offset of its own,
   into windows that share no input, and takes them in an order of its own.

So a run is resumed by its step alone, and the global batch is the same for any number
of ranks. All numbers come from SHAKE-128 of a key that names their purpose and what
they depend on: no two streams coincide, as seed + epoch would, and the version of numpy
does not matter.
"""

from __future__ import annotations

import functools
import hashlib
import math

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

_STREAM_BLOCK = 64
_ROUNDS = 4


def check_integer(at_least: int = 1, **arguments: object) -> None:
    """Refuse arguments that are not integers of at least `at_least`."""
    for name, value in arguments.items():
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


def window_starts(
    num_tokens: int,
    batch_size: int,
    seq_len: int,
    *,
    seed: int,
    step: int,
    rank: int = 0,
    world_size: int = 1,
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
        replace: Draw with replacement; else go through all windows of an epoch
            before the next, in (N - T) // T windows an epoch (at least one). Rows of
            a batch run on into the next epoch, so no batch is short.

    Returns:
        Shape (B,), each in [0, N - T).

    Raises:
        ValueError: An argument is out of its range, or there is no window.
    """
    check_integer(batch_size=batch_size, world_size=world_size)
    check_integer(0, seed=seed, step=step, rank=rank)
    if rank >= world_size:
        raise ValueError(f"rank is {rank} of world_size {world_size}; give a lower one")
    num_windows = count_windows(num_tokens, seq_len)
    first = (int(step) * int(world_size) + int(rank)) * int(batch_size)
    if first + batch_size > 1 << 62:
        raise ValueError(f"step is {step:,}, so far that sample numbers overflow")
    if replace:
        starts: Ints = _stream(seed, first, batch_size) % num_windows
        return starts
    return _epoch_starts(num_tokens, seq_len, seed, first, batch_size)


def _digest(num_bytes: int, *key: object) -> bytes:
    """SHAKE-128 of a key: the parts parted by spaces, as in "stream 1337 0"."""
    return hashlib.shake_128(" ".join(map(str, key)).encode()).digest(num_bytes)


@functools.lru_cache(maxsize=64)
def _stream_block(seed: int, block: int) -> Ints:
    words = np.frombuffer(_digest(8 * _STREAM_BLOCK, "stream", seed, block), "<u8")
    numbers: Ints = (words >> np.uint64(1)).astype(np.int64)
    return numbers


def _stream(seed: int, first: int, count: int) -> Ints:
    """Numbers first .. first + count of a seed's stream, each in [0, 2**63)."""
    begin = first // _STREAM_BLOCK
    end = (first + count - 1) // _STREAM_BLOCK + 1
    blocks = [_stream_block(seed, block) for block in range(begin, end)]
    skip = first - begin * _STREAM_BLOCK
    return np.concatenate(blocks)[skip : skip + count]


def _epoch_starts(
    num_tokens: int, seq_len: int, seed: int, first: int, count: int
) -> Ints:
    """Starts of samples first .. first + count, going through one epoch after another.

    An epoch has the windows that fit behind any offset below seq_len; with fewer than
    2 * seq_len ids there is one, at any offset.
    """
    num_windows = max(1, (num_tokens - seq_len) // seq_len)
    num_offsets = min(seq_len, num_tokens - num_windows * seq_len)
    starts = []
    while count:
        epoch, index = divmod(first, num_windows)
        here = min(count, num_windows - index)
        order = permutation(num_windows, seed, epoch)
        offset = int.from_bytes(_digest(8, "offset", seed, epoch), "little")
        indices = order(np.arange(index, index + here, dtype=np.int64))
        starts.append(indices * seq_len + offset % num_offsets)
        first, count = first + here, count - here
    return starts[0] if len(starts) == 1 else np.concatenate(starts)


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
        for number in range(_ROUNDS):
            size, limit = self._rows, self._columns
            if number % 2:
                size, limit = limit, size
            digest = _digest(4 * size, "permutation", n, number, *key)
            self._tables.append(np.frombuffer(digest, "<u4") % np.uint32(limit))

    def __call__(self, indices: Ints) -> Ints:
        """Where indices, shape (k,), each in [0, n), are sent."""
        if len(indices) and not 0 <= indices.min() <= indices.max() < self.n:
            raise ValueError(
                f"an index from {indices.min():,} to {indices.max():,} is outside a "
                f"permutation of {self.n:,}; give indices from 0 on, below it"
            )
        sent = self._send(indices)
        while self.n < self._rows * self._columns:
            beyond = np.flatnonzero(sent >= self.n)
            if not len(beyond):
                break
            sent[beyond] = self._send(sent[beyond])
        return sent

    def _send(self, indices: Ints) -> Ints:
        high, low = np.divmod(indices, self._columns)
        for number, table in enumerate(self._tables):
            if number % 2:
                high = (high + table[low]) % self._rows
            else:
                low = (low + table[high]) % self._columns
        result: Ints = high * self._columns + low
        return result


@functools.lru_cache(maxsize=4)
def permutation(n: int, seed: int, epoch: int) -> Permutation:
    """The order of an epoch; the last few are kept."""
    return Permutation(n, seed, epoch)
