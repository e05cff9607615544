"""Permutations: random orders of 0 .. n - 1, generated from a key.

Every random number is SHAKE-128 of a key that names its purpose and its inputs, so no
two streams overlap (those of seed + epoch would). Where many are needed, the digest is
the key of Philox (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011),
which can start at any position; numpy guarantees that its numbers never change.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from tiny_llm.checks import check_int

Ints = npt.NDArray[np.int64]

# A permutation of at most this many numbers is stored.
_MAX_STORED = 4096


@functools.lru_cache(maxsize=64)
def keyed_int(*key: object) -> int:
    """Return a random integer of 64 bits, derived from a key."""
    return int.from_bytes(_digest(8, *key), "little")


def keyed_philox(*key: object, counter: int = 0) -> np.random.Philox:
    """Return a generator for a key that starts at number 4 * counter."""
    words = int.from_bytes(_digest(16, *key), "little")
    return np.random.Philox(key=words, counter=counter)


def _digest(num_bytes: int, *key: object) -> bytes:
    """SHAKE-128 of a key, its parts joined by spaces, as in "stream 1337"."""
    return hashlib.shake_128(" ".join(map(str, key)).encode()).digest(num_bytes)


@functools.lru_cache(maxsize=32)
def permutation(n: int, *key: object) -> Callable[[Ints], Ints]:
    """Return the permutation of 0 .. n - 1 that is derived from a key."""
    if n > _MAX_STORED:
        return Permutation(n, *key)
    numbers = keyed_philox("permutation", n, *key).random_raw(n)
    order: Ints = numbers.argsort(kind="stable")
    return order.__getitem__


class Permutation:
    """A random permutation of 0 .. n - 1 that is computed on demand.

    A number is written as (high, low) in a grid of about sqrt(n) rows and columns.
    Each round adds to one coordinate, modulo its range, the table entry that the other
    selects. A round can be undone, so all of them together are one-to-one on the grid
    (a Feistel network). A number that lands beyond n - 1 goes through the rounds again
    until it does not, which keeps the map one-to-one on 0 .. n - 1.

    By hand, n = 5 on a grid of 2 rows and 3 columns, and one round each way with the
    tables (1, 2) for the rows and (0, 1, 0) for the columns: 4 is (1, 1); row 1 adds 2
    to the column, which becomes 3 mod 3 = 0; column 0 adds 0 to the row: (1, 0) is 3.
    3 is (1, 0); the column becomes 2, the row stays: (1, 2) is 5, beyond 4, so again:
    the column becomes 4 mod 3 = 1, column 1 adds 1 to the row, 2 mod 2 = 0: (0, 1) is
    1.

    Source: cycle walking over a Feistel network is due to Black and Rogaway, "Ciphers
    with arbitrary finite domains" (2002); tables instead of a cipher make it fast.
    """

    def __init__(self, n: int, *key: object) -> None:
        """Make the permutation of 0 .. n - 1 that is derived from a key."""
        self.n = check_int("n", n)
        self._columns = math.isqrt(n - 1) + 1
        self._rows = -(-n // self._columns)
        self._tables = []
        numbers = keyed_philox("permutation", n, *key)
        # Four rounds leave neighbours adjacent in 2 / n of all cases, six in 1 / n.
        # Above 2**32 the difference is negligible, and four save memory.
        for number in range(4 if n > 1 << 32 else 6):
            size, limit = self._rows, self._columns
            if number % 2:
                size, limit = limit, size
            words = numbers.random_raw(-(-size // 2)).astype("<u8").view("<u4")
            self._tables.append(words[:size] % np.uint32(limit))

    def __call__(self, indices: Ints) -> Ints:
        """Map indices through the permutation: both shape (k,), each in [0, n).

        Raises:
            ValueError: An index is out of range.
        """
        if len(indices) and not 0 <= indices.min() <= indices.max() < self.n:
            raise ValueError(
                f"indices range from {indices.min():,} to {indices.max():,}; give "
                f"indices from 0 to {self.n - 1:,}"
            )
        images = self._apply_rounds(indices)
        while len(beyond := (images >= self.n).nonzero()[0]):
            images[beyond] = self._apply_rounds(images[beyond])
        return images

    def _apply_rounds(self, indices: Ints) -> Ints:
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
