"""Statistics of a token file: how long documents are, and which ids occur.

Takes one pass over the ids in blocks, so memory does not grow with the file.
"""

from __future__ import annotations

import bisect
import collections
import dataclasses
import math
import os

import numpy as np
import numpy.typing as npt

from tiny_llm.tokens import read_manifest, scan_documents

__all__ = ["TokenStats", "measure_tokens"]


@dataclasses.dataclass(frozen=True)
class TokenStats:
    """The statistics of a token file.

    Attributes:
        id_counts: How often each id occurs, int64, shape (vocab_size,).
        document_lengths: Maps each length in tokens, separator included, to the
            number of documents of that length. Ids after the last separator count as
            a document only if the manifest counts one there.
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


def measure_tokens(path: str | os.PathLike[str]) -> TokenStats:
    """Count the ids and documents of a token file that has a manifest.

    Raises:
        InputError: The file or its manifest is missing.
        IntegrityError: The file and its manifest disagree.
    """
    vocab_size = read_manifest(path).vocab_size
    id_counts = np.zeros(vocab_size, dtype=np.int64)
    lengths: collections.Counter[int] = collections.Counter()
    begin = 0
    for ids, ends in scan_documents(path):
        id_counts += np.bincount(ids, minlength=vocab_size)
        lengths.update(np.diff(ends, prepend=begin).tolist())
        begin = ends[-1] if len(ends) else begin
    return TokenStats(id_counts, dict(lengths))
