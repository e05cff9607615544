"""Mixtures: samples of several sources in exact shares.

1. Samples come in blocks. After each block, the number of samples from every source is
   within one of its exact share.
2. Inside a block the order of sources is random, and depends only on (seed, block).
3. Each source counts its own samples across all blocks and draws them with its own key,
   as if alone. None is lost or repeated.
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

from tiny_llm.batching.loading import Data, JoinedArrays, as_source
from tiny_llm.batching.permutation import Ints, keyed_philox
from tiny_llm.batching.sampling import Samples, choose
from tiny_llm.batching.sources import DeviceArray, IdArray, Source
from tiny_llm.batching.windows import Ids
from tiny_llm.errors import IntegrityError

_MAX_BLOCK = 1 << 20


class Mixture(Source):
    """Several sources to draw batches from, each with its share of the samples.

    Windows never cross sources. Start positions number the ids of all sources, end to
    end. All sources must come from one tokenizer.

    Attributes:
        sources: The sources.
        shares: Exact share of each source (a Fraction); they sum to 1.
        block_size: Number of samples in a block: 1,024, or the next power of two in
            which the smallest share is at least one sample.

    >>> ids = np.arange(100, dtype=np.uint16)
    >>> mixture = Mixture([(ids[:50], 2), (ids[50:], 1)])
    >>> [mixture.num_taken(n) for n in (1024, 2048, 3072)]
    [[683, 341], [1365, 683], [2048, 1024]]
    """

    def __init__(self, sources: Sequence[tuple[Data, float]]) -> None:
        """Mix sources.

        Args:
            sources: Token files or arrays in memory, each with a weight > 0: its share
                of samples, in any unit.

        Raises:
            ValueError: A weight is not a number > 0 or is less than a millionth of
                their sum, a source is not ids in memory or in a file, or two sources
                were made by different tokenizers.
        """
        pairs = list(sources)
        for number, pair in enumerate(pairs):
            if not isinstance(pair, tuple | list) or len(pair) != 2:
                raise ValueError(f"source {number} is not a pair (data, weight)")
        weights = [_check_weight(n, weight) for n, (_, weight) in enumerate(pairs)]
        self.sources: list[IdArray] = []
        for number, source in enumerate(as_source(data) for data, _ in pairs):
            if not isinstance(source, IdArray) or isinstance(source, DeviceArray):
                raise ValueError(
                    f"source {number} is of type {type(source).__name__}; give token "
                    "files or arrays in memory, each with its own weight"
                )
            self.sources.append(source)
        self._joined = JoinedArrays(self.sources, "source")
        self.dtype, self.is_random = self._joined.dtype, self._joined.is_random
        self.shares = [weight / sum(weights) for weight in weights]
        smallest = math.ceil(1 / min(self.shares))
        self.block_size = max(1024, 1 << (smallest - 1).bit_length())
        if self.block_size > _MAX_BLOCK:
            raise ValueError(
                f"source {self.shares.index(min(self.shares))} has a share of less "
                f"than one sample in {_MAX_BLOCK:,}; remove it or increase its weight"
            )
        self._last_block: tuple[object, tuple[Ints, Ints]] | None = None

    def __reduce__(self) -> Any:
        return Mixture, (list(zip(self.sources, self.shares, strict=True)),)

    def __len__(self) -> int:
        return len(self._joined)

    def __repr__(self) -> str:
        pairs = zip(self.shares, self.sources, strict=True)
        parts = [f"{float(share):.1%} of {source!r}" for share, source in pairs]
        return f"Mixture({', '.join(parts)})"

    def num_taken(self, num_samples: int) -> list[int]:
        """Return how many of the first samples belong to each source.

        The sum over the first k sources is rounded, so all add up to num_samples. Exact
        only at block boundaries.
        """
        shares = itertools.accumulate(self.shares, initial=Fraction(0))
        taken = [math.floor(share * num_samples + Fraction(1, 2)) for share in shares]
        return [upper - lower for lower, upper in itertools.pairwise(taken)]

    def assign(self, seed: int | str, first: int, num_rows: int) -> tuple[Ints, Ints]:
        """Assign samples first .. first + num_rows - 1 to sources.

        Returns:
            The number of the source, and the index of the sample within its source,
            both of shape (num_rows,).
        """
        begin, skip = divmod(first, self.block_size)
        end = (first + num_rows - 1) // self.block_size + 1
        blocks = [self._assign_block(seed, block) for block in range(begin, end)]
        source_numbers, indices = map(np.concatenate, zip(*blocks, strict=True))
        rows = slice(skip, skip + num_rows)
        return source_numbers[rows], indices[rows]

    def _assign_block(self, seed: int | str, block: int) -> tuple[Ints, Ints]:
        last = self._last_block  # Read once: another thread may replace it meanwhile.
        if last is not None and last[0] == (seed, block):
            return last[1]
        before = self.num_taken(block * self.block_size)
        after = self.num_taken((block + 1) * self.block_size)
        source_numbers = np.repeat(np.arange(len(before)), np.subtract(after, before))
        random = keyed_philox("mixture", seed, block).random_raw(self.block_size)
        source_numbers = source_numbers[random.argsort(kind="stable")]
        indices = np.empty_like(source_numbers)
        for number, first in enumerate(before):
            rows = np.flatnonzero(source_numbers == number)
            indices[rows] = np.arange(first, first + len(rows))
        self._last_block = (seed, block), (source_numbers, indices)
        return source_numbers, indices

    def choose_starts(self, samples: Samples, seq_len: int, align: str | None) -> Ints:
        for number, source in enumerate(self.sources):
            _check_source(number, source, seq_len, align)
        source_numbers, indices = self._assign(samples)
        starts = np.empty(samples.num_rows, dtype=np.int64)
        for number, source in enumerate(self.sources):
            rows = (source_numbers == number).nonzero()[0]
            if len(rows):
                own = samples._replace(first=int(indices[rows[0]]), num_rows=len(rows))
                if samples.seed is not None:
                    own = own._replace(seed=f"{samples.seed}/{number}")
                chosen = source.choose_starts(own, seq_len, align)
                starts[rows] = chosen + self._joined.begins[number]
        return starts

    def _assign(self, samples: Samples) -> tuple[Ints, Ints]:
        if samples.seed is not None:
            return self.assign(samples.seed, samples.first, samples.num_rows)
        # Without a seed, any sample of any block will do.
        ends = np.cumsum(self.num_taken(self.block_size))
        places = choose(self.block_size, samples)
        return np.searchsorted(ends, places, side="right"), places

    def read_windows(self, starts: Ints, seq_len: int) -> Ids:
        windows = np.empty((len(starts), seq_len + 1), self.dtype)
        numbers = np.searchsorted(self._joined.ends, starts, side="right")
        for number, source in enumerate(self.sources):
            rows = (numbers == number).nonzero()[0]
            if len(rows):
                own = starts[rows] - self._joined.begins[number]
                windows[rows] = source.read_windows(own, seq_len)
        return windows

    def check_document_starts(self, starts: Ints) -> None:
        self._joined.check_document_starts(starts)

    def will_need(self, begin: int, end: int) -> None:
        self._joined.will_need(begin, end)

    def fingerprint(self) -> str:
        """Return a digest of the sources and their shares."""
        pairs = zip(self.sources, self.shares, strict=True)
        text = " ".join(f"{source.fingerprint()} {share}" for source, share in pairs)
        return hashlib.sha256(text.encode()).hexdigest()


def _check_source(number: int, source: Source, seq_len: int, align: str | None) -> None:
    try:
        source.count_choices(seq_len, align)
    except ValueError as error:
        kind = IntegrityError if isinstance(error, IntegrityError) else ValueError
        raise kind(f"source {number} of the mixture: {error}") from error


def _check_weight(number: int, weight: object) -> Fraction:
    if isinstance(weight, Real) and not isinstance(weight, bool):
        exact = weight if isinstance(weight, int | Fraction) else float(weight)
        if 0 < exact < math.inf:
            return Fraction(exact)
    raise ValueError(f"the weight of source {number} is {weight!r}; give a number > 0")
