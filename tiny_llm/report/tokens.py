"""Text and tokens as HTML: everything that comes from a corpus is escaped here.

The colour of a token says how early its merge was learned: early merges are the common
pieces of the text, and a byte on its own is one that no merge reached.
"""

from __future__ import annotations

import codecs
import html
import math
from collections.abc import Iterable, Sequence

from tiny_llm.tokenizer_json import FIRST_MERGE_ID, SEPARATOR_ID

NUM_LEVELS = 5
_MAX_SHOWN_BYTES = 16
_MAX_CHIP_CHARS = 64


def escape(text: object) -> str:
    r"""Return text as HTML, also inside a quoted attribute.

    Characters that are not printable, such as controls and those that change the
    direction of text, become escapes; line ends stay.

    >>> print(escape('<b> "x" \x00'))
    &lt;b&gt; &quot;x&quot; \x00
    """
    return html.escape("".join(map(_printable, str(text))))


def _printable(char: str) -> str:
    if char.isprintable() or char == "\n":
        return char
    return char.encode("unicode_escape").decode()


class TokenPainter:
    """Turns ids into coloured HTML.

    Args:
        token_bytes: The bytes of each id, shape (vocab_size,).
    """

    def __init__(self, token_bytes: Sequence[bytes]) -> None:
        self._token_bytes = token_bytes

    def level(self, token_id: int) -> int:
        """Return 0 for the earliest merges to NUM_LEVELS - 1 for the latest."""
        span = math.log(max(2.0, len(self._token_bytes) / FIRST_MERGE_ID))
        share = math.log(max(token_id, FIRST_MERGE_ID) / FIRST_MERGE_ID) / span
        return min(NUM_LEVELS - 1, int(NUM_LEVELS * share))

    def level_begins(self) -> list[int]:
        """Return the first id of each level that the vocab reaches.

        >>> TokenPainter([b""] * 4096).level_begins()
        [257, 448, 778, 1354, 2355]
        """
        begins: list[int] = []
        for token_id in range(FIRST_MERGE_ID, len(self._token_bytes)):
            if self.level(token_id) == len(begins):
                begins.append(token_id)
        return begins

    def paint(self, ids: Iterable[int]) -> str:
        """Return one span per id.

        A character whose bytes are in several tokens is shown in the one that completes
        it; the others get a placeholder. Bytes that are not UTF-8 are escaped.
        """
        decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
        spans = []
        for token_id in ids:
            if token_id == SEPARATOR_ID:
                rest = decoder.decode(b"", final=True)
                decoder.reset()
                text = rest + self._token_bytes[token_id].decode()
            else:
                text = decoder.decode(self._token_bytes[token_id]) or "\u2591"
            spans.append(self._span(token_id, text))
        if rest := decoder.decode(b"", final=True):
            spans.append(escape(rest))
        return "".join(spans)

    def chip(self, token_id: int) -> str:
        """Return one token on its own, shortened if it is long."""
        text = self._token_bytes[token_id].decode("utf-8", "backslashreplace")
        if len(text) > _MAX_CHIP_CHARS:
            text = text[:_MAX_CHIP_CHARS] + "\u2026"
        return self._span(token_id, text.replace("\n", "\u21b5").replace(" ", "\u00b7"))

    def _span(self, token_id: int, text: str) -> str:
        data = self._token_bytes[token_id]
        kind = f"t{self.level(token_id)}"
        if token_id <= SEPARATOR_ID:
            kind = "sep" if token_id == SEPARATOR_ID else "byte"
        shown = data[:_MAX_SHOWN_BYTES].hex(" ")
        shown += " \u2026" if len(data) > _MAX_SHOWN_BYTES else ""
        noun = "byte" if len(data) == 1 else f"{len(data)} bytes"
        title = f"id {token_id} \u00b7 {noun} \u00b7 {shown}"
        text = escape(text).replace("\n", "\u21b5\n")
        # A line end inside the span would begin the next line with a piece of it.
        line_end = "\n" if text.endswith("\n") else ""
        text = text.removesuffix("\n")
        return f'<span class="{kind}" title="{title}">{text}</span>{line_end}'


def highlight(text: str, ranges: Iterable[tuple[int, int]]) -> str:
    """Return text as HTML with ranges of its characters marked.

    Args:
        text: The text.
        ranges: Disjoint and increasing; the end is exclusive.

    >>> highlight("a<b>c", [(1, 4)])
    'a<mark>&lt;b&gt;</mark>c'
    """
    parts, done = [], 0
    for begin, end in ranges:
        parts += [escape(text[done:begin]), f"<mark>{escape(text[begin:end])}</mark>"]
        done = end
    return "".join([*parts, escape(text[done:])])
