"""Look for signs of the wrong file in a text while it is encoded.

Ranges are scanned independently and merged. Plain text costs next to nothing to scan.
"""

from __future__ import annotations

import dataclasses
import json
import os
from typing import IO

import numpy as np
import numpy.typing as npt

from tiny_llm.corpus import SEPARATOR, has_text

# A longer document probably lacks separators.
LONG_DOCUMENT_BYTES = 4 << 20

# How much of a file is read to recognize JSON Lines.
_HEAD_BYTES = 1 << 20


@dataclasses.dataclass
class TextScan:
    """What was found in a text, or a range of it. Offsets count from the file's start.

    Attributes:
        num_bytes: Size of the text.
        has_text: Whether it holds more than separators and white space.
        has_separator: Whether it holds a separator.
        rest_has_text: Whether there is text after the last separator, that is, a
            document that lacks its separator.
        num_nul_bytes: Number of NUL bytes.
        first_nul: Offset of the first one.
        num_invalid_bytes: Number of bytes that are not valid UTF-8.
        first_invalid: Offset of the first one.
    """

    num_bytes: int = 0
    has_text: bool = False
    has_separator: bool = False
    rest_has_text: bool = False
    num_nul_bytes: int = 0
    first_nul: int = 0
    num_invalid_bytes: int = 0
    first_invalid: int = 0

    def merge(self, after: TextScan) -> None:
        """Add the scan of the range that follows."""
        if not self.num_nul_bytes:
            self.first_nul = after.first_nul
        if not self.num_invalid_bytes:
            self.first_invalid = after.first_invalid
        self.num_nul_bytes += after.num_nul_bytes
        self.num_invalid_bytes += after.num_invalid_bytes
        self.rest_has_text = after.rest_has_text or (
            self.rest_has_text and not after.has_separator
        )
        self.has_separator |= after.has_separator
        self.has_text |= after.has_text
        self.num_bytes += after.num_bytes

    def warnings(
        self,
        path: str | os.PathLike[str],
        num_documents: int,
        num_json_lines: int,
        first_json: int,
    ) -> list[str]:
        """Return one line for each sign that this may be the wrong text.

        Args:
            path: Named in each line.
            num_documents: Number of documents in the text.
            num_json_lines: Number of JSON objects the file begins with; see
                `count_json_lines`.
            first_json: The offset of the first.
        """
        lines = []
        if self.num_nul_bytes:
            lines.append(
                f"{path} contains NUL bytes (count: {self.num_nul_bytes:,}, first "
                f"offset: {self.first_nul:,}); they are encoded as they are, but "
                "plain text has none, so check that this is the right file"
            )
        if self.num_invalid_bytes:
            lines.append(
                f"{path} contains invalid UTF-8 (bytes: {self.num_invalid_bytes:,}, "
                f"first offset: {self.first_invalid:,}); it is encoded byte for "
                "byte, so convert the file to UTF-8 if it is in another encoding"
            )
        if num_json_lines:
            lines.append(
                f"{path} begins with nothing but JSON objects (lines: "
                f"{num_json_lines:,}, first offset: {first_json:,}); braces "
                "and keys are encoded too, so write only the text to a file, with "
                f"{SEPARATOR.decode()} after each document"
            )
        elif num_documents == 1 and self.num_bytes > LONG_DOCUMENT_BYTES:
            lines.append(
                f"{path} is one document of {self.num_bytes:,} bytes, with no "
                f"separators inside; put {SEPARATOR.decode()} between documents"
            )
        return lines


def scan_text(text: bytes, begin: int, invalid: npt.NDArray[np.int64]) -> TextScan:
    """Scan a range of a text.

    Args:
        text: Any part of the text that does not cut a separator.
        begin: Its offset in the file.
        invalid: Offsets in `text` of the bytes that are not valid UTF-8. The tokenizer
            has found them already; searching again would take a tenth of the encoding
            time.
    """
    place = text.rfind(SEPARATOR)
    rest = text[place + len(SEPARATOR) :] if place >= 0 else text
    nul = text.find(0)
    return TextScan(
        num_bytes=len(text),
        has_text=has_text(text),
        has_separator=place >= 0,
        rest_has_text=has_text(rest),
        num_nul_bytes=text.count(0) if nul >= 0 else 0,
        first_nul=begin + max(nul, 0),
        num_invalid_bytes=len(invalid),
        first_invalid=begin + (int(invalid[0]) if len(invalid) else 0),
    )


def count_json_lines(file: IO[bytes]) -> tuple[int, int]:
    """Read the beginning of a file, and see if every line is a JSON object.

    Returns:
        The number of lines read and the offset of the first object, or twice 0 if a
        line is anything else.
    """
    head = file.read(_HEAD_BYTES)
    lines = head.splitlines()
    if len(head) == _HEAD_BYTES and lines:
        lines.pop()  # It may be cut.
    lines = [line for line in lines if line.strip()]
    if not lines or not all(map(_is_json_object, lines)):
        return 0, 0
    return len(lines), head.index(b"{")


def _is_json_object(line: bytes) -> bool:
    if not line.lstrip().startswith(b"{"):
        return False
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False
