"""Mixtures: samples of several sources in exact shares.

1. Samples come in blocks. By the end of each block every source has taken its share of
   all samples so far, to within one.
2. Inside a block the order of sources is random, and belongs to (seed, block).
3. A source counts its samples through all blocks and draws them, by a key of its own,
   as if it were alone: nothing is lost or repeated.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Sequence
from fractions import Fraction
from numbers import Real
from typing import Any

import numpy as np

from tiny_llm.batching.arrays import (
    Data,
    JoinedArray,
    StrPath,
    TokenData,
    check_data,
    fingerprint,
)
from tiny_llm.batching.documents import check_choices, sample_starts
from tiny_llm.batching.windows import Ints, Samples, philox

_LARGEST_BLOCK = 1 << 20


class Mixture(JoinedArray):
    """Several sources to draw batches from, each with its share of the samples.

    A window stays inside its source. All sources must be made by one tokenizer.

    Attributes:
        sources: What was given.
        shares: Of each source, exact, 1 in sum.
        block_size: Number of samples in a block: 1,024, or the next power of two in
            which the smallest share is at least one sample.

    >>> ids = np.arange(100, dtype=np.uint16)
    >>> mixture = Mixture([(ids[:50], 2), (ids[50:], 1)])
    >>> [mixture.num_taken(n) for n in (1024, 2048, 3072)]
    [[683, 341], [1365, 683], [2048, 1024]]
    """

    def __init__(self, sources: Sequence[tuple[TokenData | StrPath, float]]) -> None:
        """Mix sources.

        Args:
            sources: Token arrays, as `load_token_array` returns them, or paths, each
                with a weight above 0: its share of samples, in any unit.

        Raises:
            ValueError: A weight is not a number above 0 or less than a millionth of
                their sum, a source is no token array, or two sources were made by
                different tokenizers.
        """
        weights = [_check_weight(n, weight) for n, (_, weight) in enumerate(sources)]
        self.sources = [check_data(data) for data, _ in sources]
        if any(isinstance(data, Mixture) for data in self.sources):
            raise ValueError("a source is itself a mixture; give its sources instead")
        super().__init__([part for data in self.sources for part in _parts(data)])
        self._offsets = np.cumsum([0, *map(len, self.sources)], dtype=np.int64)
        self.shares = [weight / sum(weights) for weight in weights]
        smallest = math.ceil(1 / min(self.shares))
        self.block_size = max(1024, 1 << (smallest - 1).bit_length())
        if self.block_size > _LARGEST_BLOCK:
            raise ValueError(
                f"source {self.shares.index(min(self.shares))} has a share of less "
                f"than one sample in {_LARGEST_BLOCK:,}; leave it out or give it more"
            )
        self._kept: tuple[tuple[int | str, int], tuple[Ints, Ints]] | None = None

    def __reduce__(self) -> Any:
        return Mixture, (list(zip(self.sources, self.shares, strict=True)),)

    def num_taken(self, num_samples: int) -> list[int]:
        """How many of the first samples are of each source, at the end of a block.

        The sum of the first k sources is rounded, so all add up to num_samples.
        """
        shares = itertools.accumulate(self.shares, initial=Fraction(0))
        taken = [math.floor(share * num_samples + Fraction(1, 2)) for share in shares]
        return [upper - lower for lower, upper in itertools.pairwise(taken)]

    def assign(self, seed: int | str, first: int, num_rows: int) -> tuple[Ints, Ints]:
        """Whose samples first .. first + num_rows are.

        Returns:
            The number of the source, and how many samples that source took before,
            both of shape (num_rows,).
        """
        begin, skip = divmod(first, self.block_size)
        end = (first + num_rows - 1) // self.block_size + 1
        blocks = [self._assign_block(seed, block) for block in range(begin, end)]
        sources, numbers = map(np.concatenate, zip(*blocks, strict=True))
        return sources[skip : skip + num_rows], numbers[skip : skip + num_rows]

    def _assign_block(self, seed: int | str, block: int) -> tuple[Ints, Ints]:
        kept = self._kept  # Read once: another thread may replace it.
        if kept is not None and kept[0] == (seed, block):
            return kept[1]
        before = self.num_taken(block * self.block_size)
        after = self.num_taken((block + 1) * self.block_size)
        sources = np.repeat(np.arange(len(before)), np.subtract(after, before))
        random = philox("mixture", seed, block).random_raw(self.block_size)
        sources = sources[random.argsort(kind="stable")]
        numbers = np.empty_like(sources)
        for source, number in enumerate(before):
            rows = np.flatnonzero(sources == source)
            numbers[rows] = np.arange(number, number + len(rows))
        self._kept = (seed, block), (sources, numbers)
        return sources, numbers

    def sample_starts(self, seq_len: int, align: str | None, samples: Samples) -> Ints:
        """Start positions in the joined ids; see `documents.sample_starts`."""
        seed, first, num_rows, replace = samples
        sources, numbers = self.assign(seed, first, num_rows)
        starts = np.empty(num_rows, dtype=np.int64)
        for number, data in enumerate(self.sources):
            _check_source(number, data, seq_len, align)
        for source in np.unique(sources):
            rows = np.flatnonzero(sources == source)
            first = int(numbers[rows[0]])
            own = Samples(f"{seed}/{source}", first, len(rows), replace)
            starts[rows] = sample_starts(self.sources[source], seq_len, align, own)
            starts[rows] += self._offsets[source]
        return starts

    def fingerprint(self) -> str:
        """A digest of the sources and their shares."""
        pairs = zip(self.sources, self.shares, strict=True)
        text = " ".join(f"{fingerprint(data)} {share}" for data, share in pairs)
        return hashlib.sha256(text.encode()).hexdigest()


def _parts(data: Data) -> Sequence[Any]:
    return data.parts if isinstance(data, JoinedArray) else [data]


def _check_weight(number: int, weight: object) -> Fraction:
    if isinstance(weight, Real) and not isinstance(weight, bool):
        exact = weight if isinstance(weight, int | Fraction) else float(weight)
        if 0 < exact < math.inf:
            return Fraction(exact)
    raise ValueError(
        f"the weight of source {number} is {weight!r}; give a number above 0"
    )


def _check_source(number: int, data: Data, seq_len: int, align: str | None) -> None:
    try:
        check_choices(data, seq_len, align)
    except ValueError as error:
        raise ValueError(f"source {number} of the mixture: {error}") from error
