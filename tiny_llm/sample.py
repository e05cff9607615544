"""What merges are learned from: valid UTF-8 without giant pretokens.

Invalid bytes and pretokens longer than `MAX_PRETOKEN_BYTES` are left out: a separator
takes their place. Learning takes time quadratic in the length of a pretoken: 82 s for
2 MB without white space. Below this limit, 2 MB of random letters take at most 3 times
as long as in words of 8 letters.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path

from tiny_llm.anytext import is_utf8, separate_invalid
from tiny_llm.atomic import atomic_write
from tiny_llm.corpus import (
    SEPARATOR,
    cut_chunks,
    has_text,
    no_document,
    open_text,
    read_sample,
)
from tiny_llm.engine import library

MAX_PRETOKEN_BYTES = 8192

_ENDS_PRETOKEN = re.compile(rb"[!-~](?=[ \t\n\r])")


class Sample:
    """Text to learn merges from, and counts of the text it was made of.

    Attributes:
        text: In memory, or the path of a file. Valid UTF-8 without giant pretokens.
        num_bytes: Number of bytes, with those that were left out.
        num_separators: Number of separators.
        num_giant_bytes: Number of bytes that were left out as giant pretokens.
    """

    def __init__(self) -> None:
        self.text: bytes | Path = b""
        self.num_bytes = 0
        self.num_giant_bytes = 0
        self.has_text = False
        self.num_separators = 0
        self._rest_has_text = False

    @property
    def num_documents(self) -> int:
        """Count documents, blank ones too, but not a blank rest at the end."""
        return self.num_separators + self._rest_has_text

    def explain_left_out(self) -> str:
        """Say what was left out as giant pretokens; "" if nothing was."""
        if not self.num_giant_bytes:
            return ""
        return (
            f"{self.num_giant_bytes:,} of {self.num_bytes:,} bytes of the sample were "
            f"left out: they have no place to split within {MAX_PRETOKEN_BYTES:,} "
            "bytes, and learning from them would take too long; check that they are "
            "text, with spaces between words"
        )

    def add(self, chunk: bytes) -> bytes:
        """Count the next chunk, cut as `cut_chunks` does.

        Returns:
            What to learn from; the same object if nothing had to be left out.
        """
        self.num_bytes += len(chunk)
        self.num_separators += chunk.count(SEPARATOR)
        *before, rest = chunk.rsplit(SEPARATOR, 1)
        self._rest_has_text = has_text(rest) or (self._rest_has_text and not before)
        self.has_text = self.has_text or has_text(chunk)
        cleaned, num_giant_bytes = _clean(chunk)
        self.num_giant_bytes += num_giant_bytes
        return cleaned


def text_sample(data: bytes) -> Sample:
    """Make a sample of bytes in memory."""
    sample, is_clean = Sample(), True
    for chunk in cut_chunks(io.BytesIO(data)):
        is_clean = sample.add(chunk) is chunk and is_clean
    if not is_clean:
        data = b"".join(_clean(chunk)[0] for chunk in cut_chunks(io.BytesIO(data)))
    sample.text = data
    return sample


@contextlib.contextmanager
def file_sample(
    path: str | os.PathLike[str], num_bytes: int, folder: str | os.PathLike[str]
) -> Iterator[Sample]:
    """Make a sample of the beginning of a file, as `read_sample` cuts it.

    The whole file is not held in memory. If some of it has to be left out, `text` is a
    copy of the rest, which the caller removes.

    Args:
        path: The text file. It must not be cut short inside the block, where it may be
            mapped: the system would kill the process.
        num_bytes: The maximum size of the sample.
        folder: Where to write the copy.

    Raises:
        InputError: The file is missing, is not plain text, holds no document, or
            changed inside the block.
        ResourceError: More than `corpus.MAX_UNCUT_BYTES` without a place to cut, or
            the disk is full.
    """
    with open_text(path) as file:
        file_bytes = os.fstat(file.fileno()).st_size
        if num_bytes < file_bytes:
            yield text_sample(read_sample(path, num_bytes))
            return
        sample, is_clean = Sample(), True
        for chunk in cut_chunks(file):
            is_clean = sample.add(chunk) is chunk and is_clean
        if not sample.has_text:
            raise no_document(path, file_bytes)
        sample.text = Path(path)
        if not is_clean:
            file.seek(0)
            sample.text = Path(folder, "sample.txt")
            with atomic_write(sample.text, sync=False) as copy:
                copy.writelines(_clean(chunk)[0] for chunk in cut_chunks(file))
        yield sample


def _clean(chunk: bytes) -> tuple[bytes, int]:
    """Put separators in place of what is left out; count the bytes in giant pretokens.

    Nothing else is split differently, except white space before a giant pretoken.
    """
    if not is_utf8(chunk):
        chunk = separate_invalid(chunk)
    if not _may_hold_giant(chunk):
        return chunk, 0
    num_giant_bytes = 0
    documents = chunk.split(SEPARATOR)
    for place, document in enumerate(documents):
        if _may_hold_giant(document):
            pretokens = list(library().split(document))
            giant = [len(p) for p in pretokens if len(p) > MAX_PRETOKEN_BYTES]
            if giant:
                num_giant_bytes += sum(giant)
                documents[place] = b"".join(
                    p if len(p) <= MAX_PRETOKEN_BYTES else SEPARATOR for p in pretokens
                )
    return (SEPARATOR.join(documents) if num_giant_bytes else chunk), num_giant_bytes


def _may_hold_giant(text: bytes) -> bool:
    """Whether a pretoken could be giant: cheap, and right if the answer is no.

    A giant pretoken contains at least one of these blocks, and visible ASCII before
    white space ends a pretoken.
    """
    block = MAX_PRETOKEN_BYTES // 2
    return any(
        _ENDS_PRETOKEN.search(text, start, start + block) is None
        for start in range(0, len(text) - block + 1, block)
    )
