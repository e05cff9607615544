"""Duplicate documents: exact ones, and near ones by Jaccard similarity of shingles.

Documents are hashed from their ids without decoding them. A hash is a sum over the
letters and digits of a text, in any case, so it depends neither on white space nor on
how the text was cut into tokens. Hashes only suggest candidates: every duplicate is
verified on the decoded text.

Two documents are near duplicates if the Jaccard similarity of their sets of 5-word
shingles is at least 0.75, as in FineWeb (Penedo et al., 2024). Candidates are found by
bottom-k sketches (Broder, 1997) of the smaller split only, which the other split is
compared with as a stream. So memory does not grow with that split, except for 8 bytes
per document to find exact duplicates in it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from tiny_llm.overlap import Hashes, HashTable, Places
from tiny_llm.tokenize import SEPARATOR_ID, BPETokenizer
from tiny_llm.tokens import (
    DTYPES,
    check_tokenizer,
    open_documents,
    open_tokens,
    read_manifest,
)

SHINGLE_WORDS = 5
MIN_SIMILARITY = 0.75

# Larger documents are not compared as near duplicates: shingles of a text without
# separators would take 40 times its memory.
BLOCK_TOKENS = 1 << 18

# A document is known by this many shingles: of those with the smallest hashes, the ones
# that few other documents have.
_SKETCH_SIZE = 16
_MANY_DOCUMENTS = 32

_WORD = re.compile(rb"[0-9a-z\x80-\xff]+")  # Of text in lower case.
_IS_WORD = np.array([bool(_WORD.match(bytes([byte]).lower())) for byte in range(256)])
_STARTS, _CONTINUES, _ENDS = 1, 2, 8
_QUARTER, _TWO = np.uint64(1 << 62), np.uint64(2)


class Documents:
    """The documents of a token file, read when asked for."""

    def __init__(self, path: str | os.PathLike[str], tokenizer: BPETokenizer) -> None:
        """Open a token file.

        Raises:
            InputError, IntegrityError: See `open_tokens`; or another tokenizer made it.
        """
        self.manifest = read_manifest(path)
        check_tokenizer(path, self.manifest, tokenizer.sha256)
        if self.manifest.num_tokens:
            open_tokens(path)
        self.starts = np.asarray(open_documents(path, self.manifest))
        self._tokenizer = tokenizer
        self.path = path
        self._dtype = DTYPES[self.manifest.dtype]

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def num_bytes(self) -> int:
        """Size of the ids."""
        return self.manifest.num_tokens * self._dtype.itemsize

    def read(self, begin: int, end: int) -> npt.NDArray[Any]:
        """Read ids; the result is shorter where the file ends before `end`."""
        # Read, not mapped: mapped pages count as memory of the process.
        with open(self.path, "rb") as file:
            file.seek(begin * self._dtype.itemsize)
            return np.fromfile(file, self._dtype, end - begin)

    def bounds(self, number: int) -> tuple[int, int]:
        """Return where a document begins and ends, its separator included."""
        is_last = number + 1 == len(self.starts)
        end = self.manifest.num_tokens if is_last else self.starts[number + 1]
        return int(self.starts[number]), int(end)

    def number_at(self, place: int) -> int:
        """Return the number of the document that holds the id at a place."""
        return int(self.starts.searchsorted(place, side="right")) - 1

    def ids(self, begin: int, end: int) -> npt.NDArray[Any]:
        """Return the ids of a document or a part of it, without its separator."""
        ids = self.read(begin, end)
        ends = np.flatnonzero(ids == SEPARATOR_ID)
        return ids[: ends[0]] if len(ends) else ids

    def raw_ids(self, numbers: Places) -> Iterator[bytes]:
        """Yield the ids of each of many documents, as bytes."""
        size = self._dtype.itemsize
        with open(self.path, "rb", buffering=0) as file:
            for part in np.array_split(numbers, len(numbers) // 4096 + 1):
                ends = self.starts.take(part + 1, mode="clip")
                ends[part + 1 == len(self)] = self.manifest.num_tokens
                ranges = np.stack([self.starts[part], ends], 1) * size
                for begin, end in ranges.tolist():
                    file.seek(begin)
                    yield file.read(end - begin)

    def text(self, begin: int, end: int) -> bytes:
        """Return the text of a document or a part of it, without its separator."""
        return self._tokenizer.decode_bytes(self.ids(begin, end))

    def blocks(self) -> Iterator[Block]:
        """Cut the file into blocks of whole documents, or pieces of giant ones."""
        begin, num_tokens = 0, self.manifest.num_tokens
        while begin < num_tokens:
            end = min(begin + BLOCK_TOKENS, num_tokens)
            first, last = np.searchsorted(self.starts, [begin, end]).tolist()
            if end < num_tokens and last > first:
                last_start = int(self.starts[last - 1])
                if last_start > begin:
                    end, last = last_start, last - 1
            yield Block(begin, end, first, self.starts[first:last] - begin)
            begin = end


@dataclasses.dataclass(frozen=True)
class Block:
    """Consecutive ids of a token file.

    Attributes:
        begin: Position of the first id in the file.
        end: Position after the last one.
        first: Number of the first document that starts in the block.
        starts: Where documents start, relative to `begin`, int64, shape (k,).
    """

    begin: int
    end: int
    first: int
    starts: Places

    @property
    def documents(self) -> slice:
        """The documents that start in the block, as a slice of all."""
        return slice(self.first, self.first + len(self.starts))

    def document_of(self, places: Places) -> Places:
        """Return the number of the document at each place of the block."""
        numbers = np.searchsorted(self.starts, places, side="right")
        return numbers + (self.first - 1)


class TextHasher:
    """Hashes what ids spell: their letters and digits, in any case and order.

    So a hash of several words is equal for all texts with the same words, however they
    are cut into tokens.
    """

    def __init__(self, tokenizer: BPETokenizer) -> None:
        """Make a table of all tokens."""
        tokens = [bytes([byte]) for byte in range(256)]
        tokens += [b"\n", *(left + right for left, right in tokenizer.merges)]
        joined = np.frombuffer(b"".join(tokens), np.uint8)
        lengths = np.array([len(token) for token in tokens])
        ends = np.cumsum(lengths)
        begins = ends - lengths
        weights = np.random.Generator(np.random.PCG64(5)).integers(
            0, 1 << 64, 256, dtype=np.uint64
        )
        weights[~_IS_WORD] = 0
        weights[65:91] = weights[97:123]
        self._weights = np.add.reduceat(weights[joined], begins)
        is_word = _IS_WORD[joined]
        has_word = np.logical_or.reduceat(is_word, begins)
        # A word starts at a token that contains it but begins with something else, or
        # that begins with it and follows a token that ends with something else.
        self._kinds = (
            _STARTS * (has_word & ~is_word[begins])
            + _CONTINUES * is_word[begins]
            + _ENDS * ~is_word[ends - 1]
        ).astype(np.uint8)

    def hash(self, ids: npt.NDArray[Any]) -> tuple[Hashes, Places]:
        """Hash a block.

        Args:
            ids: Shape (N,), dtype of a token file.

        Returns:
            The sum of the hashes of all ids before each place, uint64, shape (N + 1,);
            and where words start, and N, int64, shape (number of words + 1,).
        """
        index = ids.astype(np.intp)
        sums = np.zeros(len(ids) + 1, np.uint64)
        np.take(self._weights, index, out=sums[1:], mode="clip")
        np.cumsum(sums[1:], out=sums[1:])
        kinds = self._kinds.take(index, mode="clip")
        starts = np.empty(len(ids) + 1, np.uint8)
        starts[:1] = _ENDS
        starts[1:] = kinds
        starts >>= 2  # 2 where the token before ends a word, else 0.
        starts |= _STARTS
        starts[:-1] &= kinds
        return sums, np.flatnonzero(starts != 0)


def sample_shingles(sums: Hashes, words: Places) -> tuple[Places, Hashes]:
    """Choose a quarter of the shingles of a block, by what they spell.

    Args:
        sums: From `TextHasher.hash`.
        words: Likewise.

    Returns:
        Which words they start with, int64, shape (k,), increasing; and their hashes.
    """
    at_words = sums.take(words, mode="wrap")
    hashes = at_words[SHINGLE_WORDS:] - at_words[:-SHINGLE_WORDS]
    chosen = np.flatnonzero(hashes < _QUARTER)
    return chosen, hashes[chosen] << _TWO


class Sketches:
    """Finds documents of one split that may be near duplicates of other documents."""

    def __init__(
        self, documents: Documents, hasher: TextHasher, pool: ThreadPoolExecutor
    ) -> None:
        """Sketch all documents of a split."""

        def sketch(block: Block) -> tuple[Hashes, Places]:
            sums, words = hasher.hash(documents.read(block.begin, block.end))
            places, hashes = sample_shingles(sums, words)
            owners = block.document_of(words[places])
            # Not the shingles that begin in one document and end in the next.
            last = block.document_of(words[places + (SHINGLE_WORDS - 1)])
            hashes, owners = hashes[owners == last], owners[owners == last]
            # Sort by owner, and by hash within an owner: one key is faster than two.
            number = (owners - (block.first - 1)).astype(np.uint64)
            order = np.argsort(number << np.uint64(44) | hashes >> np.uint64(20))
            return _first_of_each(owners[order], 2 * _SKETCH_SIZE, hashes[order])

        none = np.empty(0, np.uint64), np.empty(0, np.int64)
        parts = pool.map(sketch, documents.blocks())
        hashes, owners = map(np.concatenate, zip(none, *parts, strict=True))
        _, entry_of, counts = np.unique(hashes, return_inverse=True, return_counts=True)
        rarity = counts[entry_of]
        rarity[rarity <= _MANY_DOCUMENTS] = 0
        order = np.lexsort((hashes, rarity, owners))
        hashes, owners = _first_of_each(owners[order], _SKETCH_SIZE, hashes[order])
        self._sizes = np.bincount(owners, minlength=len(documents))
        order = np.lexsort((owners, hashes))
        keys, begins = np.unique(hashes[order], return_index=True)
        self._owners, self._begins = owners[order], np.append(begins, len(order))
        self._table = HashTable(keys)

    def candidates(
        self, block: Block, sums: Hashes, words: Places, is_open: npt.NDArray[np.bool_]
    ) -> tuple[Places, Places]:
        """Find pairs that share at least half of a sketch.

        Args:
            block: A block of the other split.
            sums: From `TextHasher.hash`.
            words: Likewise.
            is_open: Which documents of the sketched split to look for, bool.

        Returns:
            Numbers of documents in the other split, increasing, and in the sketched
            split; both int64, shape (number of pairs,).
        """
        places, hashes = sample_shingles(sums, words)
        where, entries = self._table.find(hashes)
        others = block.document_of(words[places[where]])
        # Most documents have too few shingles of any sketch.
        num_hits = np.bincount(others - (block.first - 1))[others - (block.first - 1)]
        counts = self._begins[entries + 1] - self._begins[entries]
        skipped = np.cumsum(counts) - counts
        offsets = np.arange(counts.sum()) - np.repeat(skipped, counts)
        owners = self._owners[np.repeat(self._begins[entries], counts) + offsets]
        others, num_hits = np.repeat(others, counts), np.repeat(num_hits, counts)
        may_be = is_open[owners] & (2 * num_hits >= self._sizes[owners])
        pairs, shared = np.unique(
            others[may_be] * len(is_open) + owners[may_be], return_counts=True
        )
        others, owners = pairs // len(is_open), pairs % len(is_open)
        is_candidate = 2 * shared >= self._sizes[owners]
        return others[is_candidate], owners[is_candidate]


def _first_of_each(owners: Places, size: int, hashes: Hashes) -> tuple[Hashes, Places]:
    """Keep the first `size` distinct hashes of each owner; sorted by owner."""
    is_new = np.ones(len(owners), np.bool_)
    is_new[1:] = (owners[1:] != owners[:-1]) | (hashes[1:] != hashes[:-1])
    hashes, owners = hashes[is_new], owners[is_new]
    rank = np.arange(len(owners)) - np.searchsorted(owners, owners)
    return hashes[rank < size], owners[rank < size]


def similarity(left: bytes, right: bytes) -> float:
    """Return the Jaccard similarity of the sets of 5-word shingles of two texts.

    Words are letters and digits in any case. A text of fewer words is one shingle.

    >>> similarity(b"A cat sat on the mat.", b"a cat sat on the mat")
    1.0
    >>> similarity(b"A cat sat on the mat.", b"A cat sat on the rug.")
    0.3333333333333333
    """
    ours, theirs = _shingles(left), _shingles(right)
    return len(ours & theirs) / len(ours | theirs)


def _shingles(text: bytes) -> set[tuple[bytes, ...]]:
    words = _WORD.findall(text.lower())
    if len(words) < SHINGLE_WORDS:
        return {tuple(words)}
    return set(zip(*(words[i:] for i in range(SHINGLE_WORDS)), strict=False))


@dataclasses.dataclass(frozen=True)
class ExactDuplicates:
    """Documents whose text is the same but for white space; blank ones do not count.

    Attributes:
        num_in_first: Documents of the first split that repeat an earlier one.
        is_repeated: Which documents of the second split repeat an earlier one of that
            split, bool, shape (number of documents,).
        sources: The first document of the first split with the same text, or -1, for
            each document of the second split, int64, same shape.
    """

    num_in_first: int
    is_repeated: npt.NDArray[np.bool_]
    sources: Places


def find_exact_duplicates(
    first: Documents, first_sums: Hashes, second: Documents, second_sums: Hashes
) -> ExactDuplicates:
    """Find exact duplicates within and across two splits.

    Args:
        first: A split.
        first_sums: `TextHasher` sums of its documents, uint64, shape (len(first),).
        second: The other split.
        second_sums: Those of its documents.
    """
    sums = np.concatenate([first_sums, second_sums])
    ordered = np.sort(sums)
    repeated = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    del ordered
    numbers, groups = HashTable(repeated).find(sums)
    numbers = numbers[np.argsort(groups, kind="stable")]
    groups.sort()
    num_in_first, num_first = 0, len(first)
    is_repeated = np.zeros(len(second), np.bool_)
    sources = np.full(len(second), -1)
    first_ids = first.raw_ids(numbers[numbers < num_first])
    second_ids = second.raw_ids(numbers[numbers >= num_first] - num_first)
    last_group = -1
    for group, place in zip(map(int, groups), map(int, numbers), strict=True):
        if group != last_group:
            known: dict[bytes, bytes] = {}  # Ids and the digest of their text.
            seen: dict[bytes, int] = {}  # The first document with each digest.
            last_seen: set[bytes] = set()  # The digests in the second split.
            last_group = group
        is_first = place < num_first
        number = place if is_first else place - num_first
        ids = next(first_ids if is_first else second_ids)
        if ids not in known:
            documents = first if is_first else second
            known[ids] = _digest(documents.text(*documents.bounds(number)))
        digest = known[ids]
        if not digest:
            continue
        earlier = seen.setdefault(digest, place)
        if is_first:
            num_in_first += earlier != place
        else:
            is_repeated[number] = digest in last_seen
            last_seen.add(digest)
            sources[number] = earlier if earlier < num_first else -1
    return ExactDuplicates(num_in_first, is_repeated, sources)


def _digest(text: bytes) -> bytes:
    """Hash a text but for its white space; b"" if there is nothing else."""
    words = text.split()
    return hashlib.blake2b(b" ".join(words), digest_size=16).digest() if words else b""
