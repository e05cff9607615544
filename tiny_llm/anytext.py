"""Encode any bytes with an engine that takes only valid UTF-8 of bounded length.

Two things make this exact without knowing the engine:

- Invalid bytes end pretokens, as separators do. So a separator, or a newline where it
  does the same, takes the place of each run of invalid bytes, and its id is replaced
  by the ids of these bytes afterwards.
- Encoding is local, so a long text is encoded in windows that overlap. Where the GPT-2
  pattern splits depends on at most four characters before a place and two after it.
  Within a pretoken, ids are the encoding of their bytes if and only if every two
  neighbours are the encoding of theirs. (The Rust crate `bpe` by GitHub rests on the
  same fact.) So if two windows have the same two neighbours at the same place, the
  ids of one before that place and those of the other after it are the ids of the
  whole text.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from tiny_llm.corpus import SEPARATOR

Ids = npt.NDArray[np.unsignedinteger]
Places = npt.NDArray[np.int64]

# Long pretokens are slow and take memory: a window of 1 MiB of random letters takes
# twice as long per byte as one of 64 KiB. Text with spaces takes less in large windows.
_WINDOW_BYTES = 1 << 20
_SMALL_WINDOW_BYTES = 1 << 16

# Windows overlap by this at least, so that the ids near their ends can be dropped.
_OVERLAP_BYTES = 1 << 9

# Bytes that are white space, and bytes that begin the longer white space characters
# (U+0085, U+00A0, U+1680, U+2000, U+3000, and others). U+001C to U+001F are white space
# to some.
_SPACES = b"\t\n\v\f\r\x1c\x1d\x1e\x1f "
_IS_SPACE = np.isin(np.arange(256), [*_SPACES])
_MAY_BEGIN_SPACE = np.isin(np.arange(256), [*_SPACES, 0xC2, 0xE1, 0xE2, 0xE3])

_HIGH_BITS = np.uint64(0x8080808080808080)

# Nearer to the ends of a window, the split into pretokens and the validity of bytes may
# differ from those of the whole text: four characters, a separator, and some more.
_MARGIN_BYTES = 64


class Piece(NamedTuple):
    """A part of a text that was encoded.

    Attributes:
        text: Its bytes. A piece may begin and end inside a word or a character.
        ids: Shape (number of tokens,); they stand for exactly these bytes.
        invalid: Offsets in `text` of the bytes that are not valid UTF-8.
    """

    text: bytes
    ids: Ids
    invalid: Places


class Sink(Protocol):
    """Takes the pieces of a text, in order."""

    def append(self, piece: Piece) -> object:
        """Take the next piece."""

    def clear(self) -> object:
        """Forget all pieces so far: the text is encoded again from its beginning."""


class IdSink:
    """Joins the ids of pieces in memory."""

    def __init__(self, num_bytes: int, dtype: npt.DTypeLike) -> None:
        # No more ids than bytes; pages that are never written take no memory.
        self._ids: Ids = np.empty(num_bytes, dtype)
        self._num_ids = self.num_invalid = 0

    def append(self, piece: Piece) -> None:
        """Copy the ids of the next piece."""
        end = self._num_ids + len(piece.ids)
        self._ids[self._num_ids : end] = piece.ids
        self._num_ids = end
        self.num_invalid += len(piece.invalid)

    def clear(self) -> None:
        """Start again from the beginning."""
        self._num_ids = self.num_invalid = 0

    @property
    def ids(self) -> Ids:
        """Shape (number of tokens,)."""
        return self._ids[: self._num_ids]


def encode_any(
    encode_valid: Callable[[bytes], Ids],
    read: Callable[[int, int], bytes],
    num_bytes: int,
    token_lengths: Callable[[], Places],
    sink: Sink,
) -> None:
    """Encode any bytes; each byte that is not valid UTF-8 becomes its own id.

    Args:
        encode_valid: Encodes valid UTF-8. It gets at most `_WINDOW_BYTES` at a time,
            or seven times that if every other byte is invalid, unless tokens are
            longer than some KiB or merges are made to need more.
        read: `read(begin, end)` returns these bytes of the text. It is called for
            at most a window at a time, roughly in order.
        num_bytes: Size of the text.
        token_lengths: Returns the number of bytes of each token, shape (vocab_size,).
            Only called for long text and for invalid bytes.
        sink: Gets the pieces.
    """
    text = _read_window(read, 0, num_bytes, 0)
    if len(text) == num_bytes:
        sink.append(Piece(text, *_encode_window(encode_valid, text, token_lengths)))
        return
    del text
    overlap = max(_OVERLAP_BYTES, 4 * int(token_lengths().max()))
    # Where windows do not fit, the end of one decided over ids far before it, so pieces
    # before it may be wrong too. This takes merges made for it. In the end, one window
    # is the whole text.
    while not _join_windows(
        encode_valid, read, num_bytes, token_lengths, overlap, sink
    ):
        sink.clear()
        overlap *= 2


def is_utf8(data: bytes) -> bool:
    """Whether bytes are valid UTF-8; on mostly ASCII, 3 times as fast as decoding.

    Only words of 8 bytes that are not ASCII are decoded, each with the word after it:
    leaving out ASCII between ASCII does not change whether the other bytes are valid.
    """
    if data.isascii():
        return True
    words = np.frombuffer(data, np.uint64, len(data) // 8)
    is_kept = (words & _HIGH_BITS) != 0
    is_kept[1:] |= is_kept[:-1]
    try:
        (words[is_kept].tobytes() + data[8 * len(words) :]).decode()
    except UnicodeDecodeError:
        return False
    return True


def separate_invalid(data: bytes) -> bytes:
    """Put a separator in place of each run of bytes that are not valid UTF-8.

    >>> separate_invalid(bytes([0x61, 0xFF, 0xFF, 0x62]))
    b'a<|endoftext|>b'
    """
    invalid = _find_invalid(data)
    starts = invalid[_firsts_of_runs(invalid)]
    return _replace_runs(data, invalid, starts, starts[:0])


class _Window(NamedTuple):
    """Part of a text, encoded on its own; `invalid` holds offsets in `text`."""

    start: int
    text: bytes
    ids: Ids
    invalid: Places

    @property
    def end(self) -> int:
        return self.start + len(self.text)

    def cut(self, begin: int, end: int, first: int, last: int) -> Piece:
        """Return the text in [begin, end) of the whole text, and ids [first, last)."""
        begin, end = begin - self.start, end - self.start
        places = np.searchsorted(self.invalid, [begin, end])
        invalid = self.invalid[places[0] : places[1]] - begin
        return Piece(self.text[begin:end], self.ids[first:last], invalid)


def _join_windows(
    encode_valid: Callable[[bytes], Ids],
    read: Callable[[int, int], bytes],
    num_bytes: int,
    get_token_lengths: Callable[[], Places],
    overlap: int,
    sink: Sink,
) -> bool:
    """Encode windows that overlap by `overlap` bytes; False if two do not fit."""
    token_lengths = get_token_lengths()

    def encode(start: int) -> _Window:
        text = _read_window(read, start, num_bytes, 16 * overlap)
        return _Window(
            start, text, *_encode_window(encode_valid, text, get_token_lengths)
        )

    window = encode(0)
    begin, first = 0, 0  # The place, and the index of the token, to go on from.
    while window.end < num_bytes:
        starts = _last_starts(window, 2 * overlap, token_lengths)
        following = encode(_choose_start(window, starts, window.end - overlap))
        stitch = _find_stitch(window, starts, following, token_lengths)
        if stitch is None:
            return False
        end, last, first_following = stitch
        sink.append(window.cut(begin, end, first, last))
        window, begin, first = following, end, first_following
    sink.append(window.cut(begin, num_bytes, first, len(window.ids)))
    return True


def _last_starts(window: _Window, num_ids: int, token_lengths: Places) -> Places:
    """Return the offsets in the text where the last tokens of a window start."""
    lengths = token_lengths[window.ids[-num_ids:]]
    return window.end - np.cumsum(lengths[::-1])[::-1]


def _choose_start(window: _Window, starts: Places, limit: int) -> int:
    """Choose where the next window starts: at the start of a token, before `limit`.

    Then it has the same tokens from its start on, unless the end of the window before
    it changed them. In a run of one letter no other start would do.
    """
    starts = starts[: np.searchsorted(starts, limit)]
    for start in starts[:-_OVERLAP_BYTES:-1].tolist():
        if window.text[start - window.start] & 0xC0 != 0x80:  # It starts a character.
            return int(start)
    return int(starts[-1])


def _find_stitch(
    window: _Window, starts: Places, following: _Window, token_lengths: Places
) -> tuple[int, int, int] | None:
    """Find a place where both windows have the same token before and after.

    Args:
        window: A window.
        starts: Where its last tokens start.
        following: The next window.
        token_lengths: The number of bytes of each token.

    Returns:
        The offset in the text, and the index of the token that starts there in each
        window; None if there is no such place.
    """
    head = following.ids[: len(starts)]
    lengths = token_lengths[head]
    starts_of_head = following.start + np.cumsum(lengths) - lengths
    common, ours, theirs = np.intersect1d(
        starts, starts_of_head, assume_unique=True, return_indices=True
    )
    ours += len(window.ids) - len(starts)
    inside = (common >= following.start + _MARGIN_BYTES) & (
        common <= window.end - _MARGIN_BYTES
    )
    common, ours, theirs = common[inside], ours[inside], theirs[inside]
    equal = (window.ids[ours] == following.ids[theirs]) & (
        window.ids[ours - 1] == following.ids[theirs - 1]
    )
    if not equal.any():
        return None
    place = int(np.argmax(equal))
    return int(common[place]), int(ours[place]), int(theirs[place])


def _read_window(
    read: Callable[[int, int], bytes], start: int, num_bytes: int, least: int
) -> bytes:
    """Read the window at `start`, a small one if it has long pretokens.

    It has at least `least` bytes, but for the rest of a character, or ends the text.
    """
    stop = min(num_bytes, start + _WINDOW_BYTES)
    text = read(start, stop)
    for begin in range(0, len(text), _SMALL_WINDOW_BYTES):
        if text.find(b" ", begin, begin + _SMALL_WINDOW_BYTES) < 0:
            text = text[:_SMALL_WINDOW_BYTES]
            break
    if len(text) < least:
        text += read(start + len(text), min(start + least, num_bytes))
    if start + len(text) < num_bytes and text[-1] >= 0x80:
        for place in range(len(text) - 1, len(text) - 4, -1):
            if text[place] & 0xC0 != 0x80:
                return text[:place]  # It may have been cut.
    return text


def _encode_window(
    encode_valid: Callable[[bytes], Ids],
    data: bytes,
    token_lengths: Callable[[], Places],
) -> tuple[Ids, Places]:
    """Encode any bytes in one call; returns the offsets of invalid bytes too."""
    if is_utf8(data):
        return encode_valid(data), np.empty(0, np.int64)
    text = np.frombuffer(data, np.uint8)
    invalid = _find_invalid(data)
    firsts = _firsts_of_runs(invalid)
    # A newline is a faster replacement than a separator, where it does the same.
    starts, stops = invalid[firsts], invalid[np.append(firsts[1:], 0) - 1] + 1
    is_newline = _ends_visibly(text, starts) & _begins_visibly(text, stops)
    joined = _replace_runs(data, invalid, starts[~is_newline], starts[is_newline])
    ids = encode_valid(joined)
    # Where the replacements are in `joined`: everything before them, less the bytes of
    # the runs before them, plus the replacements before them.
    sizes = np.where(is_newline, 1, len(SEPARATOR))
    places = starts - firsts + np.cumsum(sizes) - sizes
    is_replacement = np.zeros(len(joined), bool)
    is_replacement[places] = True
    lengths = token_lengths()[ids]
    replacements = np.flatnonzero(is_replacement[np.cumsum(lengths) - lengths])
    # Each run goes where its replacement was.
    run_lengths = np.diff(firsts, append=len(invalid))
    num_copies = np.ones(len(ids), np.int64)
    num_copies[replacements] = run_lengths
    ids = np.repeat(ids, num_copies)
    places = np.repeat(replacements - np.arange(len(firsts)), run_lengths)
    ids[places + np.arange(len(invalid))] = text[invalid]
    return ids, invalid


def _ends_visibly(text: npt.NDArray[np.uint8], stops: Places) -> npt.NDArray[np.bool_]:
    """Whether the text before each place certainly does not end in white space."""
    padded = np.concatenate([np.full(3, 0x20, np.uint8), text])
    third, second, last = padded[stops], padded[stops + 1], padded[stops + 2]
    is_short = (second != 0xC2) & ((third < 0xE1) | (third > 0xE3))
    visible: npt.NDArray[np.bool_] = ~_IS_SPACE[last] & ((last < 0x80) | is_short)
    return visible


def _begins_visibly(
    text: npt.NDArray[np.uint8], starts: Places
) -> npt.NDArray[np.bool_]:
    """Whether no white space follows for certain, or one space before visible ASCII."""
    padded = np.concatenate([text, np.full(2, 0x20, np.uint8)])
    first, second = padded[starts], padded[starts + 1]
    one_space = (first == 0x20) & (second > 0x20) & (second < 0x7F)
    visible: npt.NDArray[np.bool_] = ~_MAY_BEGIN_SPACE[first] | one_space
    return visible


def _firsts_of_runs(places: Places) -> Places:
    """Return the indices of the places that do not follow the place before them."""
    return np.flatnonzero(np.diff(places, prepend=-2) != 1)


def _replace_runs(
    data: bytes, invalid: Places, separators: Places, newlines: Places
) -> bytes:
    """Replace runs of invalid bytes, which start at the places given."""
    text = np.frombuffer(data, np.uint8).copy()
    text[newlines] = 0x0A
    text[separators] = 0xFF  # Never part of valid UTF-8.
    is_kept = np.ones(len(text), bool)
    is_kept[invalid] = False
    is_kept[separators] = True
    is_kept[newlines] = True
    replaced: bytes = text[is_kept].tobytes()
    return replaced.replace(b"\xff", SEPARATOR)


def _find_invalid(data: bytes) -> Places:
    """Return the offsets of all bytes that are not valid UTF-8.

    Those are the bytes outside all characters of table 3-7 of the Unicode standard.
    """
    text = np.frombuffer(data + b"\0\0\0", np.uint8)
    lead, second = text[:-3], text[1:-2]
    goes_on = (text & 0xC0) == 0x80
    two = (lead >= 0xC2) & (lead < 0xE0) & goes_on[1:-2]
    three = (lead >= 0xE0) & (lead < 0xF0) & goes_on[1:-2] & goes_on[2:-1]
    three &= ~((lead == 0xE0) & (second < 0xA0) | (lead == 0xED) & (second >= 0xA0))
    four = (lead >= 0xF0) & (lead < 0xF5) & goes_on[1:-2] & goes_on[2:-1] & goes_on[3:]
    four &= ~((lead == 0xF0) & (second < 0x90) | (lead == 0xF4) & (second >= 0x90))
    is_valid = lead < 0x80
    is_valid |= two | three | four
    is_valid[1:] |= (two | three | four)[:-1]
    is_valid[2:] |= (three | four)[:-2]
    is_valid[3:] |= four[:-3]
    return np.flatnonzero(~is_valid)
