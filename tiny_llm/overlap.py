"""Overlap: which windows of n ids of one split also occur in a longer stream of ids.

The shorter split is indexed and the longer one is streamed, so memory does not grow
with the longer one. As in the rsync algorithm (Tridgell and Mackerras, 1996), blocks at
fixed places of one side are compared with the other side at all places: each window of
n ids contains a whole block of n // 2 ids. Only where such a block occurs in the
index are windows hashed. Each match is then compared id by id.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

MIN_WINDOW, MAX_WINDOW = 8, 4096

# At most this many windows are indexed at once; each takes about 60 bytes.
SEGMENT_TOKENS = 1 << 22

_CHUNK = 1 << 15  # So many hashes fit into a core's cache.

Hashes = npt.NDArray[np.uint64]
Places = npt.NDArray[np.int64]

# Odd and random; index tables use the highest bits of what is multiplied by them.
_FACTORS = np.random.Generator(np.random.PCG64(10)).integers(
    0, 1 << 63, 4096, dtype=np.uint64
) * np.uint64(2) + np.uint64(1)
_THREE, _SEVEN, _HALF = np.uint64(3), np.uint64(7), np.uint64(32)


@dataclasses.dataclass(frozen=True)
class Runs:
    """Runs of ids that both sides have, each of at least n ids.

    Attributes:
        begins: Where each run begins in the indexed ids, int64, shape (k,), increasing.
            Runs may overlap.
        lengths: Number of ids in it, int64, shape (k,).
        sources: Where a copy of it begins in the streamed ids, int64, shape (k,).
    """

    begins: Places
    lengths: Places
    sources: Places

    def cover(self, num_tokens: int) -> npt.NDArray[np.bool_]:
        """Return which of the indexed ids are in a run, shape (num_tokens,)."""
        depth = np.zeros(num_tokens + 1, np.int32)
        np.add.at(depth, self.begins, 1)
        np.add.at(depth, self.begins + self.lengths, -1)
        is_covered: npt.NDArray[np.bool_] = np.cumsum(depth, out=depth)[:-1] > 0
        return is_covered

    def longest_part(self, begin: int, end: int) -> tuple[int, int, int]:
        """Find the longest run, or part of one, in the indexed ids begin to end.

        Returns:
            Where it begins in the indexed ids, where a copy of it begins in the
            streamed ids, and its length. There must be one.
        """
        first = np.maximum(self.begins, begin)
        lengths = np.minimum(self.begins + self.lengths, end) - first
        longest = int(lengths.argmax())
        source = self.sources[longest] + first[longest] - self.begins[longest]
        return int(first[longest]), int(source), int(lengths[longest])


class HashSet:
    """Answers quickly whether hashes may be in a set; wrong once in `spread` times."""

    def __init__(self, hashes: Hashes, spread: int) -> None:
        num_bits = max(16, (len(hashes) * spread - 1).bit_length())
        self._shift = np.uint64(64 - num_bits)
        self._bits = np.zeros(1 << (num_bits - 3), np.uint8)
        for low in range(0, len(hashes), _CHUNK):
            slots = hashes[low : low + _CHUNK] >> self._shift
            for bit in range(8):
                chosen = slots[(slots & _SEVEN) == bit] >> _THREE
                self._bits[chosen.view(np.int64)] |= 1 << bit

    def find(self, hashes: Hashes) -> Places:
        """Return the indices of hashes that may be in the set, increasing.

        Args:
            hashes: Shape (n,).
        """
        result = np.empty(len(hashes), np.uint8)
        for low in range(0, len(hashes), _CHUNK):
            slots = hashes[low : low + _CHUNK] >> self._shift
            bits = self._bits.take((slots >> _THREE).view(np.int64), mode="wrap")
            bits >>= (slots & _SEVEN).astype(np.uint8)
            np.bitwise_and(bits, 1, out=result[low : low + _CHUNK])
        return np.flatnonzero(result.view(np.bool_))


class HashTable:
    """Finds the place of each hash in a sorted array of distinct hashes."""

    def __init__(self, keys: Hashes) -> None:
        self._keys = np.append(keys, _FACTORS[:1] | ~_FACTORS[:1])  # All bits set.
        self._filter = HashSet(keys, 32)
        # A key's search begins at the first key with its highest bits.
        num_bits = max(8, len(keys).bit_length())
        self._shift = np.uint64(64 - num_bits)
        slots = (keys >> self._shift).view(np.int64)
        counts = np.bincount(slots, minlength=1 << num_bits)
        self._begins = np.zeros(1 << num_bits, np.int32)
        np.cumsum(counts[:-1], out=self._begins[1:])

    def __len__(self) -> int:
        return len(self._keys) - 1

    def expect(self, keys: npt.NDArray[np.bool_]) -> None:
        """Keep only some of the keys; a few of the others may still be found."""
        self._filter = HashSet(self._keys[:-1][keys], 32)

    def find(self, hashes: Hashes) -> tuple[Places, Places]:
        """Look hashes up.

        Returns:
            The (flat) indices of those that are among the keys, increasing, and their
            places among the keys; both int64, shape (k,).
        """
        hashes = hashes.ravel()
        where = self._filter.find(hashes)
        hashes = hashes[where]
        places = self._begins[(hashes >> self._shift).view(np.int64)].astype(np.int64)
        behind = np.flatnonzero(self._keys[places] < hashes)
        while len(behind):
            places[behind] += 1
            behind = behind[self._keys[places[behind]] < hashes[behind]]
        is_key = (self._keys[places] == hashes) & (places < len(self))
        return where[is_key], places[is_key]


class WindowIndex:
    """The windows of n ids of a segment, and where they were found elsewhere.

    `find` may be called by several threads, also while another calls `mark`. That makes
    later calls faster.
    """

    def __init__(self, ids: npt.NDArray[Any], window: int) -> None:
        """Index all windows.

        Args:
            ids: Shape (N,), uint16 or uint32.
            window: n, from `MIN_WINDOW` to `MAX_WINDOW`.
        """
        self._ids, self._window = ids, window
        self._anchor = window // 2 // 4 * 4  # Blocks consist of whole 64-bit words.
        num_windows = max(0, len(ids) - window + 1)
        hashes = _hash_all(ids, window)
        # Equal windows have one entry. `_firsts` says where the first of them is. This
        # takes half the time of np.unique.
        order = np.argsort(hashes)
        hashes = hashes[order]
        is_new = np.ones(num_windows, np.bool_)
        is_new[1:] = hashes[1:] != hashes[:-1]
        keys, begins = hashes[is_new], np.flatnonzero(is_new)
        del hashes
        firsts = np.minimum.reduceat(order, begins) if num_windows else begins
        self._firsts = firsts.astype(np.int32)  # Half the memory.
        self._entry_of = np.empty(num_windows, np.int32)
        self._entry_of[order] = np.cumsum(is_new, dtype=np.int32) - 1
        del order, is_new, begins, firsts
        self._table = HashTable(keys)
        self._sources = np.full(len(keys), -1, np.int64)
        del keys
        self._index_anchors()

    def _index_anchors(self) -> None:
        """Look only for blocks of windows that were not found yet."""
        missing = self._sources < 0
        # A window that begins in block b of a stream, at any place in it, contains
        # block b + 1, which is from 1 to `_anchor` ids after the window's beginning.
        depth = np.zeros(len(self._ids) + 1, np.int32)
        begins = np.flatnonzero(missing[self._entry_of])
        begins += 1
        depth[begins] += 1
        begins += self._anchor
        depth[begins] -= 1
        del begins
        anchors = _hash_all(self._ids, self._anchor)
        anchors = anchors[np.cumsum(depth, out=depth)[: len(anchors)] > 0]
        self._anchors = HashSet(anchors, 32)
        self._num_wasted = 0

    def find(self, block: npt.NDArray[Any]) -> tuple[Places, Places, int]:
        """Look for windows of the segment in a block of the stream.

        Args:
            block: Shape (M,), the dtype of the segment. Consecutive blocks must share
                n - 1 ids.

        Returns:
            The entries that were found, int64, shape (k,); the first place of each in
            the block, same shape; and the number of windows that had been found before.
        """
        size, window = self._anchor, self._window
        if len(block) < window or not len(self._table):
            return np.empty(0, np.int64), np.empty(0, np.int64), 0
        num_blocks = len(block) // size
        words = block[: num_blocks * size].view(np.uint64).reshape(num_blocks, -1)
        begins = self._anchors.find(_hash_words(words[1:].T)) * size
        entries = [np.empty(0, np.int64)]
        places = [np.empty(0, np.int64)]
        if len(begins):
            # Windows that reach into the padding are dropped below.
            padded = np.concatenate([block, np.zeros(size + window, block.dtype)])
            rows = np.lib.stride_tricks.sliding_window_view(padded, size + window - 1)
            for part in np.array_split(begins, len(begins) // 4096 + 1):
                hashes = _hash_windows(_pack(rows[part]), window, block.itemsize)
                where, found = self._table.find(hashes)
                entries.append(found)
                places.append(part[where // size] + where % size)
        entry, place = np.concatenate(entries), np.concatenate(places)
        is_new = (self._sources[entry] < 0) & (place <= len(block) - window)
        num_wasted = len(entry) - int(np.count_nonzero(is_new))
        entry, first = np.unique(entry[is_new], return_index=True)
        place = place[is_new][first]
        is_equal = self._equals(block, place, self._firsts[entry])
        return entry[is_equal], place[is_equal], num_wasted

    def _equals(
        self, block: npt.NDArray[Any], places: Places, begins: npt.NDArray[np.int32]
    ) -> npt.NDArray[np.bool_]:
        """Compare windows of a block with windows of the segment, id by id."""
        result = np.empty(len(places), np.bool_)
        if not len(places):
            return result
        view = np.lib.stride_tricks.sliding_window_view
        theirs, ours = view(block, self._window), view(self._ids, self._window)
        for low in range(0, len(places), 4096):
            part = slice(low, low + 4096)
            result[part] = (theirs[places[part]] == ours[begins[part]]).all(1)
        return result

    def mark(self, entries: Places, sources: Places, num_wasted: int) -> None:
        """Note where entries were found in the stream; the first to say so counts.

        Args:
            entries: From `find`, int64, shape (k,).
            sources: Their places in the whole stream, int64, shape (k,).
            num_wasted: From `find`.
        """
        is_new = self._sources[entries] < 0
        self._sources[entries[is_new]] = sources[is_new]
        self._num_wasted += num_wasted
        if self._num_wasted > len(self._table):
            self._table.expect(self._sources < 0)
            self._index_anchors()

    def runs(self) -> Runs:
        """Return what was found, as runs that are as long as possible."""
        begins = np.flatnonzero(self._sources[self._entry_of] >= 0)
        entries = self._entry_of[begins]
        # Two different windows with one hash are one entry; only one of them was found.
        is_equal = self._equals(self._ids, begins, self._firsts[entries])
        begins, sources = begins[is_equal], self._sources[entries[is_equal]]
        goes_on = (np.diff(begins) == 1) & (np.diff(sources) == 1)
        first = np.flatnonzero(np.concatenate([[True], ~goes_on])[: len(begins)])
        num_windows = np.diff(np.append(first, len(begins)))
        return Runs(begins[first], num_windows + self._window - 1, sources[first])


def _pack(ids: npt.NDArray[Any]) -> Hashes:
    """Return the 64-bit word that begins at each id of the last axis, mixed."""
    words, width = ids.astype(np.uint64), ids.itemsize
    while width < 8:
        step = width // ids.itemsize
        words = words[..., :-step] | words[..., step:] << np.uint64(8 * width)
        width *= 2
    return _mix(words)


def _mix(words: Hashes) -> Hashes:
    """Spread the difference of two words over all bits; a permutation."""
    words = words * _FACTORS[-1]
    words ^= words >> _HALF
    return words


def _hash_windows(words: Hashes, window: int, itemsize: int) -> Hashes:
    """Hash each window of ids along the last axis, given its packed words."""
    step = 8 // itemsize
    offsets = [*range(0, window - step, step), window - step]
    size = words.shape[-1] - offsets[-1]
    total = np.zeros((*words.shape[:-1], size), np.uint64)
    for factor, offset in zip(_FACTORS, offsets, strict=False):
        total += words[..., offset : offset + size] * factor
    return total


def _hash_all(ids: npt.NDArray[Any], window: int) -> Hashes:
    """Hash each window of ids, shape (N,)."""
    hashes = np.empty(max(0, len(ids) - window + 1), np.uint64)
    for low in range(0, len(hashes), _CHUNK):
        words = _pack(ids[low : low + _CHUNK + window - 1])
        hashes[low : low + _CHUNK] = _hash_windows(words, window, ids.itemsize)
    return hashes


def _hash_words(columns: Hashes) -> Hashes:
    """Hash windows that begin at whole words: `columns[j]` holds word j of each."""
    total = np.zeros(columns.shape[1], np.uint64)
    for factor, words in zip(_FACTORS, columns, strict=False):
        total += _mix(words) * factor
    return total
