"""Encode any bytes with an engine that takes only valid UTF-8 of bounded length.

Two things make this exact without knowing the engine:

- Invalid bytes end pretokens, as separators do. So a separator takes the place of each
  run of invalid bytes, and its id is replaced by the ids of these bytes afterwards.
- Encoding is local, so a long text is encoded in windows that overlap. Where the GPT-2
  pattern splits depends on at most four characters before a place and two after it.
  Within a pretoken, ids are the encoding of their bytes if and only if every two
  neighbours are the encoding of theirs (`appending_encoder` and others in the Rust
  crate `bpe`, github.com/github/rust-gems, rest on the same fact). So if two windows
  have the same two neighbours at the same place, the ids of one before that place and
  the ids of the other after it are those of the whole text.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

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

# Nearer to the end of a window, the split into pretokens may differ from that of the
# whole text. Four characters, a separator, and some more.
_MARGIN_BYTES = 64


def encode_any(
    encode_valid: Callable[[bytes], Ids],
    data: bytes,
    token_lengths: Callable[[], Places],
    dtype: npt.DTypeLike = np.uint32,
) -> tuple[Ids, int]:
    """Encode any bytes; each byte that is not valid UTF-8 becomes its own id.

    Args:
        encode_valid: Encodes valid UTF-8. It is called with at most some MiB at a time
            (seven times `_WINDOW_BYTES`, if every other byte is invalid).
        data: The text.
        token_lengths: Returns the number of bytes of each token, shape (vocab_size,).
            Only called for long text.
        dtype: Of the ids; must be able to hold all of them.

    Returns:
        Ids, shape (number of tokens,), and the number of bytes that are not UTF-8.
    """
    if len(data) > _choose_window(data, 0):
        return _encode_in_windows(encode_valid, data, token_lengths, dtype)
    ids, invalid = _encode_window(encode_valid, data, token_lengths)
    return ids.astype(dtype, copy=False), len(invalid)


def is_utf8(data: bytes) -> bool:
    """Whether bytes are valid UTF-8; on mostly ASCII, 3 times as fast as decoding.

    Each block of pure ASCII is replaced by a space, which does not change whether the
    bytes around it are valid.
    """
    if data.isascii():
        return True
    blocks = (data[i : i + 4096] for i in range(0, len(data), 4096))
    try:
        b"".join(b" " if block.isascii() else block for block in blocks).decode()
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
    """Part of a text, encoded on its own; `invalid` holds offsets in the text."""

    start: int
    end: int
    ids: Ids
    invalid: Places


def _encode_in_windows(
    encode_valid: Callable[[bytes], Ids],
    data: bytes,
    get_token_lengths: Callable[[], Places],
    dtype: npt.DTypeLike,
) -> tuple[Ids, int]:
    token_lengths = get_token_lengths()
    # No more ids than bytes; pages that are never written take no memory.
    ids = np.empty(len(data), dtype)
    num_ids = num_invalid = 0

    def append(window: _Window, first: int, last: int, begin: int, end: int) -> None:
        nonlocal num_ids, num_invalid
        ids[num_ids : num_ids + last - first] = window.ids[first:last]
        num_ids += last - first
        places = np.searchsorted(window.invalid, [begin, end])
        num_invalid += int(places[1] - places[0])

    def encode(start: int) -> _Window:
        size = max(_choose_window(data, start), 16 * overlap)
        end = _char_start(data, start + size)
        found, invalid = _encode_window(
            encode_valid, data[start:end], get_token_lengths
        )
        return _Window(start, end, found, invalid + start)

    overlap = max(_OVERLAP_BYTES, 4 * int(token_lengths.max()))
    window = encode(0)
    begin, first = 0, 0  # Where the ids of `window` are not yet appended.
    while window.end < len(data):
        starts = _last_starts(window, 2 * overlap, token_lengths)
        following = encode(_choose_start(data, starts, window.end - overlap))
        stitch = _find_stitch(window, starts, following, token_lengths)
        if stitch is None:
            # The end of the window decided over ids far before it. This takes merges
            # made for it; if all else fails, the window grows to the whole text.
            overlap *= 2
            window = encode(window.start)
            continue
        end, last, first_following = stitch
        append(window, first, last, begin, end)
        window, begin, first = following, end, first_following
    append(window, first, len(window.ids), begin, len(data))
    return ids[:num_ids], num_invalid


def _last_starts(window: _Window, num_ids: int, token_lengths: Places) -> Places:
    """Return the offsets in the text where the last tokens of a window start."""
    lengths = token_lengths[window.ids[-num_ids:]]
    return window.end - np.cumsum(lengths[::-1])[::-1]


def _choose_start(data: bytes, starts: Places, limit: int) -> int:
    """Choose where the next window starts: at the start of a token, before `limit`.

    Then it has the same tokens from its start on, unless the end of the window before
    it changed them. In a run of one letter no other start would do.
    """
    starts = starts[: np.searchsorted(starts, limit)]
    for start in starts[:-_OVERLAP_BYTES:-1].tolist():
        if data[start] & 0xC0 != 0x80:  # It starts a character.
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


def _choose_window(data: bytes, start: int) -> int:
    """Return the size of the window at `start`: small if it has long pretokens."""
    stop = min(len(data), start + _WINDOW_BYTES)
    for block in range(start, stop, _SMALL_WINDOW_BYTES):
        if data.find(b" ", block, block + _SMALL_WINDOW_BYTES) < 0:
            return _SMALL_WINDOW_BYTES
    return _WINDOW_BYTES


def _char_start(data: bytes, place: int) -> int:
    """Move `place` to the start of the UTF-8 character that it is in."""
    if place >= len(data):
        return len(data)
    for start in range(place, place - 4, -1):
        if data[start] & 0xC0 != 0x80:
            return start
    return place


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
