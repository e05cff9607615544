"""Look for signs of the wrong file in a text while it is encoded.

Plain text costs next to nothing to scan: one search for NUL bytes, and a check for
JSON that stops at the first line.
"""

from __future__ import annotations

import json
import os

from tiny_llm.corpus import SEPARATOR, has_text

# A longer document probably lacks separators.
LONG_DOCUMENT_BYTES = 4 << 20

# A longer line is not taken for JSON.
_MAX_JSON_LINE_BYTES = 16 << 20


class TextScan:
    """Scans a text chunk by chunk and reports what is odd about it.

    Attributes:
        num_bytes: Size of the text so far.
        has_text: Whether it holds more than separators and white space.
        rest_has_text: Whether there is text after the last separator, that is, a
            document that lacks its separator.
        num_nul_bytes: Number of NUL bytes.
        num_invalid_bytes: Number of bytes that are not valid UTF-8.
    """

    def __init__(self) -> None:
        self.num_bytes = 0
        self.has_text = False
        self.rest_has_text = False
        self.num_nul_bytes = 0
        self.num_invalid_bytes = 0
        self._first_nul = 0
        self._first_invalid = 0
        self._json_lines = _JsonLines()

    def update(self, chunk: bytes, num_invalid_bytes: int = 0) -> None:
        """Scan the next chunk.

        Args:
            chunk: Cut as `read_chunks` does.
            num_invalid_bytes: How many of its bytes are not valid UTF-8. The
                tokenizer has counted them already; counting again would take a tenth
                of the encoding time.
        """
        if (place := chunk.find(0)) >= 0:
            if not self.num_nul_bytes:
                self._first_nul = self.num_bytes + place
            self.num_nul_bytes += chunk.count(0)
        if num_invalid_bytes:
            if not self.num_invalid_bytes:
                self._first_invalid = self.num_bytes + _find_invalid(chunk)
            self.num_invalid_bytes += num_invalid_bytes
        self._json_lines.update(chunk)
        self.has_text = self.has_text or has_text(chunk)
        place = chunk.rfind(SEPARATOR)
        rest = chunk[place + len(SEPARATOR) :] if place >= 0 else chunk
        self.rest_has_text = has_text(rest) or (self.rest_has_text and place < 0)
        self.num_bytes += len(chunk)

    def warnings(self, path: str | os.PathLike[str], num_documents: int) -> list[str]:
        """Return one line for each sign that this may be the wrong text.

        Call it once, after the last chunk.

        Args:
            path: Named in each line.
            num_documents: Number of documents in the text.
        """
        lines = []
        if self.num_nul_bytes:
            lines.append(
                f"{path} contains NUL bytes (count: {self.num_nul_bytes:,}, first "
                f"offset: {self._first_nul:,}); they are encoded as they are, but "
                "plain text has none, so check that this is the right file"
            )
        if self.num_invalid_bytes:
            lines.append(
                f"{path} contains invalid UTF-8 (bytes: {self.num_invalid_bytes:,}, "
                f"first offset: {self._first_invalid:,}); it is encoded byte for "
                "byte, so convert the file to UTF-8 if it is in another encoding"
            )
        if num_lines := self._json_lines.finish():
            lines.append(
                f"{path} is all JSON objects (lines: {num_lines:,}, first offset: "
                f"{self._json_lines.first:,}); braces and keys are encoded too, so "
                "write only the text to a file, with "
                f"{SEPARATOR.decode()} after each document"
            )
        elif num_documents == 1 and self.num_bytes > LONG_DOCUMENT_BYTES:
            lines.append(
                f"{path} is one document of {self.num_bytes:,} bytes, with no "
                f"separators inside; put {SEPARATOR.decode()} between documents"
            )
        return lines


class _JsonLines:
    """Counts lines that are JSON objects, up to the first that is not.

    Attributes:
        first: The offset of the first object.
    """

    def __init__(self) -> None:
        self.first = 0
        self._num_lines = 0
        self._num_bytes = 0
        self._line = b""
        self._is_other = False

    def update(self, chunk: bytes) -> None:
        if self._is_other:
            return
        *lines, self._line = (self._line + chunk).split(b"\n")
        for line in lines:
            if line.strip():
                if not _is_json_object(line):
                    self._is_other = True
                    return
                if not self._num_lines:
                    self.first = self._num_bytes + line.index(b"{")
                self._num_lines += 1
            self._num_bytes += len(line) + 1
        begun = self._line.lstrip()[:1]
        too_long = len(self._line) > _MAX_JSON_LINE_BYTES
        self._is_other = begun not in (b"", b"{") or too_long

    def finish(self) -> int:
        """Return the number of lines, or 0 if one is not a JSON object."""
        self.update(b"\n")
        return 0 if self._is_other else self._num_lines


def _is_json_object(line: bytes) -> bool:
    if not line.lstrip().startswith(b"{"):
        return False
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _find_invalid(chunk: bytes) -> int:
    """Find the first byte that is not valid UTF-8."""
    try:
        chunk.decode()
    except UnicodeDecodeError as error:
        return error.start
    return 0
