"""Leakage: what of valid also occurs in train, so that its loss looks too good.

Train is read once as a stream (once for every 4 million ids of valid), so memory grows
with valid, but with train only by 16 bytes per document. `overlap` finds shared windows
of ids, `duplicates` finds documents that are the same or nearly so.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from tiny_llm.checks import check_int
from tiny_llm.duplicates import (
    BLOCK_TOKENS,
    MIN_SIMILARITY,
    Block,
    Documents,
    ExactDuplicates,
    Sketches,
    TextHasher,
    find_exact_duplicates,
    similarity,
)
from tiny_llm.overlap import (
    MAX_WINDOW,
    MIN_WINDOW,
    SEGMENT_TOKENS,
    Hashes,
    Places,
    Runs,
    WindowIndex,
)
from tiny_llm.parallel import count_workers
from tiny_llm.tokenize import BPETokenizer

_T = TypeVar("_T")

# So many blocks are read before the first of them is done.
_NUM_AHEAD = 16

# So many candidates for a near duplicate of a document are verified. More than a few
# occur only where all documents are alike, such as forms.
_MAX_TRIES = 100

_NUM_EXAMPLES = 12


@dataclasses.dataclass(frozen=True)
class Example:
    """A leaked document of valid beside one of train.

    Attributes:
        kind: "exact" or "near" duplicates, or "overlap".
        valid_document: Its number in valid, from 0.
        train_document: Its number in train.
        num_tokens: Length of the valid document, its separator included.
        num_shared: How many of these ids are in windows that train has.
        similarity: Jaccard similarity of the shingles of what the bounds enclose.
        valid_bounds: Positions in valid of the document, or of `BLOCK_TOKENS` ids of a
            larger one, from the longest shared run on.
        train_bounds: The same in train.
    """

    kind: Literal["exact", "near", "overlap"]
    valid_document: int
    train_document: int
    num_tokens: int
    num_shared: int
    similarity: float
    valid_bounds: tuple[int, int]
    train_bounds: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Leakage:
    """What of valid also occurs in train.

    Attributes:
        num_tokens: Number of ids in valid.
        num_leaked: Ids in shared windows, or in a duplicate of a train document.
        num_shared: Ids in shared windows.
        longest_run: The largest number of consecutive ids in shared windows.
        is_leaked: Which documents of valid are duplicates of a train document, or have
            at least half of their ids in shared windows; bool, shape (documents,).
        num_kept: Number of ids in the other documents.
        num_left: How many of those are leaked.
        exact: Exact duplicates; `first` is train.
        near: Maps documents of valid to a near duplicate in train and the similarity.
        near_within: The same for earlier documents of valid.
        examples: The worst leaks first.
    """

    num_tokens: int
    num_leaked: int
    num_shared: int
    longest_run: int
    is_leaked: npt.NDArray[np.bool_]
    num_kept: int
    num_left: int
    exact: ExactDuplicates
    near: dict[int, tuple[int, float]]
    near_within: dict[int, tuple[int, float]]
    examples: list[Example]

    @property
    def share(self) -> float:
        """Share of valid's ids that are leaked."""
        return self.num_leaked / max(1, self.num_tokens)

    @property
    def share_left(self) -> float:
        """The same for valid without the leaked documents."""
        return self.num_left / max(1, self.num_kept)

    def metrics(self) -> dict[str, Any]:
        """Return the numbers that reports/leakage.json holds."""
        return {
            "leaked_share": round(self.share, 6),
            "overlap_share": round(self.num_shared / max(1, self.num_tokens), 6),
            "longest_run": self.longest_run,
            "leaked_documents": int(self.is_leaked.sum()),
            "exact_duplicates": {
                "across": int(np.count_nonzero(self.exact.sources >= 0)),
                "within_train": self.exact.num_in_first,
                "within_valid": int(self.exact.is_repeated.sum()),
            },
            "near_duplicates": {
                "across": len(self.near),
                "within_valid": len(self.near_within),
            },
        }


def check_window(window: object) -> int:
    """Return the size of a window in ids, if it is from 8 to 4,096.

    Raises:
        ConfigError: It is not.
    """
    return check_int("leakage.window", window, MIN_WINDOW, MAX_WINDOW)


def find_leakage(
    train: Documents,
    valid: Documents,
    tokenizer: BPETokenizer,
    window: int,
    *,
    num_workers: int | None = None,
    on_progress: Callable[[int], object] | None = None,
) -> Leakage:
    """Find what of valid also occurs in train.

    Args:
        train: The documents of train.
        valid: Those of valid.
        tokenizer: Made the ids of both.
        window: n, from 8 to 4,096: so many ids in a row count as overlap if train has
            them, too. All such windows are found, even across separators.
        num_workers: Number of threads, by default `parallel.count_workers()`. The
            result does not depend on it.
        on_progress: Called with the number of bytes of train that were compared; see
            `num_passes`.

    Raises:
        ConfigError: `window` is out of range.
    """
    check_window(window)
    # glibc maps large arrays anew each time, which costs a third of the time here. Once
    # an array was freed, it keeps smaller ones for reuse (mallopt(3)).
    unused = np.empty(30 << 20, np.uint8)
    del unused
    with ThreadPoolExecutor(num_workers or count_workers()) as pool:
        search = _Search(train, valid, tokenizer, pool, on_progress or (lambda _: None))
        runs = [search.find_runs(begin, window) for begin in _segments(valid)]
        search.compare_valid_with_itself()
    exact = find_exact_duplicates(train, search.train_sums, valid, search.valid_sums)
    found, within = search.near, search.near_within
    near = {key: found[key] for key in found if exact.sources[key] < 0}
    near_within = {key: within[key] for key in within if not exact.is_repeated[key]}
    return _summarize(train, valid, runs, exact, near, near_within, window)


def num_passes(valid: Documents) -> int:
    """Return how often `find_leakage` reads train: once for 4 million ids of valid."""
    return len(_segments(valid))


def _segments(valid: Documents) -> range:
    return range(0, max(1, valid.manifest.num_tokens), SEGMENT_TOKENS)


# What is known of a block's documents: the hashes of their texts, uint64; before them
# that of the end of the document before; and which pairs may be near duplicates.
_Compared = tuple[Hashes, Places, Places]


class _Search:
    """Compares the splits block by block, with several threads."""

    def __init__(
        self,
        train: Documents,
        valid: Documents,
        tokenizer: BPETokenizer,
        pool: ThreadPoolExecutor,
        report: Callable[[int], object],
    ) -> None:
        self._train, self._valid, self._pool, self._report = train, valid, pool, report
        self._hasher = TextHasher(tokenizer)
        self._sketches = Sketches(valid, self._hasher, pool)
        self._is_open = np.ones(len(valid), np.bool_)
        self._num_tries = np.zeros(len(valid), np.int64)
        self.train_sums = np.zeros(len(train), np.uint64)
        self.valid_sums = np.zeros(len(valid), np.uint64)
        self.near: dict[int, tuple[int, float]] = {}
        self.near_within: dict[int, tuple[int, float]] = {}

    def find_runs(self, begin: int, window: int) -> Runs:
        """Find a segment of valid in train; the first time, compare documents too."""
        segment = self._valid.read(begin, begin + SEGMENT_TOKENS + window - 1)
        index = WindowIndex(segment, window)

        def search(
            block: Block,
        ) -> tuple[tuple[Places, Places, int], _Compared | None]:
            ids = self._train.read(block.begin, block.end + window - 1)
            compared = self._compare(block, ids) if begin == 0 else None
            return index.find(ids), compared

        for block, (found, compared) in self._map(search, self._train):
            entries, places, num_wasted = found
            index.mark(entries, places + block.begin, num_wasted)
            if compared:
                _add_sums(self.train_sums, compared[0], block)
                self._verify(self.near, compared, self._train)
            self._report((block.end - block.begin) * segment.itemsize)
        runs = index.runs()
        return dataclasses.replace(runs, begins=runs.begins + begin)

    def compare_valid_with_itself(self) -> None:
        """Hash the documents of valid, and find earlier near duplicates of each."""
        self._is_open[:], self._num_tries[:] = True, 0

        def search(block: Block) -> _Compared:
            return self._compare(block, self._valid.read(block.begin, block.end))

        for block, compared in self._map(search, self._valid):
            _add_sums(self.valid_sums, compared[0], block)
            sums, others, numbers = compared
            is_earlier = others < numbers
            compared = sums, others[is_earlier], numbers[is_earlier]
            self._verify(self.near_within, compared, self._valid)

    def _map(
        self, function: Callable[[Block], _T], documents: Documents
    ) -> Iterator[tuple[Block, _T]]:
        """Call a function for each block in threads, with results in order."""
        waiting = deque[tuple[Block, Future[_T]]]()
        for block in documents.blocks():
            waiting.append((block, self._pool.submit(function, block)))
            if len(waiting) == _NUM_AHEAD:
                first, future = waiting.popleft()
                yield first, future.result()
        for first, future in waiting:
            yield first, future.result()

    def _compare(self, block: Block, ids: npt.NDArray[Any]) -> _Compared:
        sums, words = self._hasher.hash(ids[: block.end - block.begin])
        pairs = self._sketches.candidates(block, sums, words, self._is_open)
        edges = np.concatenate([[0], block.starts, [len(sums) - 1]])
        return np.diff(sums[edges]), *pairs

    def _verify(
        self,
        near: dict[int, tuple[int, float]],
        compared: _Compared,
        others: Documents,
    ) -> None:
        """Note the first near duplicate of each document."""
        for other, number in zip(*map(np.ndarray.tolist, compared[1:]), strict=True):
            theirs, ours = others.bounds(other), self._valid.bounds(number)
            longest = max(end - begin for begin, end in (theirs, ours))
            if self._is_open[number] and longest <= BLOCK_TOKENS:
                value = similarity(others.text(*theirs), self._valid.text(*ours))
                self._num_tries[number] += 1
                if value >= MIN_SIMILARITY:
                    near[number] = other, value
                if number in near or self._num_tries[number] == _MAX_TRIES:
                    self._is_open[number] = False


def _add_sums(total: Hashes, sums: Hashes, block: Block) -> None:
    total[block.documents] += sums[1:]
    if block.first:
        total[block.first - 1 : block.first] += sums[:1]  # No overflow warning.


def _summarize(
    train: Documents,
    valid: Documents,
    found: list[Runs],
    exact: ExactDuplicates,
    near: dict[int, tuple[int, float]],
    near_within: dict[int, tuple[int, float]],
    window: int,
) -> Leakage:
    runs = Runs(
        *(
            np.concatenate([getattr(part, field.name) for part in found])
            for field in dataclasses.fields(Runs)
        )
    )
    is_shared = runs.cover(valid.manifest.num_tokens)
    lengths = np.diff(valid.starts, append=valid.manifest.num_tokens)
    shared = np.zeros(len(valid), np.int64)
    if len(valid):
        shared = np.add.reduceat(is_shared, valid.starts, dtype=np.int64)
    is_duplicate = exact.sources >= 0
    is_duplicate[[*near]] = True
    leaked = np.where(is_duplicate, lengths, shared)
    is_leaked = is_duplicate | ((2 * shared >= lengths) & (shared > 0))
    examples: list[Example] = []
    for number in np.argsort(-leaked, kind="stable").tolist():
        if not leaked[number] or len(examples) == _NUM_EXAMPLES:
            break
        begin, end = valid.bounds(number)
        here, there = 0, 0  # Show duplicates from their beginning on.
        kind: Literal["exact", "near", "overlap"] = "overlap"
        if exact.sources[number] >= 0:
            kind, other, value = "exact", int(exact.sources[number]), 1.0
        elif number in near:
            kind, (other, value) = "near", near[number]
        else:
            here, there, length = runs.longest_part(begin, end)
            if length < min(window, end - begin):
                continue  # The beginning or end of a run in another document.
            other = train.number_at(there)
        ours = _cut_giant(begin, end, here)
        theirs = _cut_giant(*train.bounds(other), there)
        if kind == "overlap":
            value = similarity(train.text(*theirs), valid.text(*ours))
        examples.append(
            Example(
                kind=kind,
                valid_document=number,
                train_document=other,
                num_tokens=end - begin,
                num_shared=int(shared[number]),
                similarity=round(value, 4),
                valid_bounds=ours,
                train_bounds=theirs,
            )
        )
    return Leakage(
        num_tokens=valid.manifest.num_tokens,
        num_leaked=int(leaked.sum()),
        num_shared=int(np.count_nonzero(is_shared)),
        longest_run=_longest_run(is_shared),
        is_leaked=is_leaked,
        num_kept=int(lengths[~is_leaked].sum()),
        num_left=int(leaked[~is_leaked].sum()),
        exact=exact,
        near=near,
        near_within=near_within,
        examples=examples,
    )


def _cut_giant(begin: int, end: int, place: int) -> tuple[int, int]:
    """Return the bounds of a document, or of a block of a giant from a place on."""
    if end - begin > BLOCK_TOKENS:
        begin = max(begin, place)
        end = min(end, begin + BLOCK_TOKENS)
    return begin, end


def _longest_run(is_shared: npt.NDArray[np.bool_]) -> int:
    edges = np.flatnonzero(np.diff(is_shared, prepend=False, append=False))
    return int(np.diff(edges.reshape(-1, 2)).max(initial=0))
