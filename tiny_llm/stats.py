"""Statistics of a token file: how long documents are, and which ids occur."""

from __future__ import annotations

import bisect
import collections
import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclasses.dataclass(frozen=True)
class TokenStats:
    """The statistics of a token file.

    Attributes:
        id_counts: How often each id occurs, int64, shape (vocab_size,).
        document_lengths: Maps each length in tokens, separator included, to the
            number of documents of that length. Ids after the last separator count only
            if they are a document.
    """

    id_counts: npt.NDArray[np.int64]
    document_lengths: dict[int, int]

    @property
    def vocab_used(self) -> float:
        """Share of the vocab that occurs at least once."""
        return float(np.count_nonzero(self.id_counts)) / len(self.id_counts)

    @property
    def mean_length(self) -> float:
        """Mean length of a document, in tokens."""
        total = sum(length * count for length, count in self.document_lengths.items())
        return total / sum(self.document_lengths.values())

    def length_percentile(self, percent: int) -> int:
        """Return the shortest length that `percent` % of documents do not exceed.

        Raises:
            ValueError: `percent` is not from 0 to 100.

        >>> TokenStats(np.zeros(1), {10: 1, 20: 2, 90: 1}).length_percentile(50)
        20
        """
        lengths, counts = zip(*self.document_lengths.items(), strict=True)
        return int(
            np.percentile(lengths, percent, weights=counts, method="inverted_cdf")
        )

    def counts_by_rank(self) -> list[int]:
        """Return the counts of the ids that occur, most frequent first."""
        used = self.id_counts[self.id_counts > 0]
        counts: list[int] = np.sort(used)[::-1].tolist()
        return counts

    def length_histogram(self) -> list[tuple[int, int]]:
        """Return each bin's shortest length and number of documents.

        Bins begin at powers of 2 ** (1/4), rounded up: the same for every file.
        """
        longest = max(self.document_lengths)
        steps = range(4 * longest.bit_length() + 1)
        begins = sorted({math.ceil(2 ** (step / 4)) for step in steps})
        bins: collections.Counter[int] = collections.Counter()
        for length, count in self.document_lengths.items():
            bins[bisect.bisect_right(begins, length) - 1] += count
        return [
            (begins[place], bins[place]) for place in range(min(bins), max(bins) + 1)
        ]


class TokenCounter:
    """Adds up the statistics of ranges, in the order of the file.

    >>> counter = TokenCounter(vocab_size=300)
    >>> counter.add(3, np.array([2]), np.bincount([7, 256, 7], minlength=300))
    >>> counter.finish(rest_is_document=True).document_lengths
    {2: 1, 1: 1}
    """

    def __init__(self, vocab_size: int) -> None:
        self._id_counts = np.zeros(vocab_size, dtype=np.int64)
        self._lengths: collections.Counter[int] = collections.Counter()
        self._rest = 0  # Ids since the last separator.

    def add(
        self, num_tokens: int, ends: npt.NDArray[Any], id_counts: npt.NDArray[Any]
    ) -> None:
        """Add a range.

        Args:
            num_tokens: Number of ids in it.
            ends: Shape (k,): the positions in the range just after each separator.
            id_counts: Shape (vocab_size,): how often each id occurs in it. Empty if
                ids are not counted.
        """
        if len(id_counts):
            self._id_counts += id_counts
        if len(ends):
            lengths = np.diff(ends, prepend=0)
            lengths[0] += self._rest
            self._lengths.update(lengths.tolist())
            self._rest = 0
        self._rest += num_tokens - (int(ends[-1]) if len(ends) else 0)

    def finish(self, *, rest_is_document: bool) -> TokenStats:
        """Return the statistics; say whether the rest is a document."""
        if rest_is_document:
            self._lengths[self._rest] += 1
        return TokenStats(self._id_counts, dict(self._lengths))
