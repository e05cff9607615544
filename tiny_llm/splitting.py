"""Splitting: the documents of source files become the texts of train and valid.

A document is valid or not by its own bytes, so adding documents never moves one to the
other split. Only a single text without separators is cut by position.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from tiny_llm.atomic import atomic_link, atomic_write, copy_bytes
from tiny_llm.corpus import SEPARATOR, has_text, no_document
from tiny_llm.errors import InputError
from tiny_llm.filekind import HEAD_BYTES, check_is_text
from tiny_llm.layout import SPLITS
from tiny_llm.source_files import BLOCK_BYTES, OnProgress, SourceFiles, open_file
from tiny_llm.sources import TEXT, Reading, find_shape, name_place, read_documents

# What the separator's text becomes in a document if it is to be escaped.
ESCAPED_SEPARATOR = b"<|endoftext\\|>"


@dataclasses.dataclass
class Report:
    """What `write_corpus` read and wrote.

    Attributes:
        num_files: Number of files that were read, at least in part.
        num_source_bytes: Their size on disk.
        num_dropped_empty: Documents left out because they are null or white space.
        reached_max_documents: Whether documents were left out because there are more
            than `max_documents`. They are not read, and so not counted.
        num_documents: Number of documents in the text of each split.
        num_bytes: Size of the text of each split.
    """

    num_files: int = 0
    num_source_bytes: int = 0
    num_dropped_empty: int = 0
    reached_max_documents: bool = False
    num_documents: dict[str, int] = dataclasses.field(default_factory=dict)
    num_bytes: dict[str, int] = dataclasses.field(default_factory=dict)

    def count_file(self, path: Path) -> None:
        """Count a file that is about to be read."""
        self.num_files += 1
        self.num_source_bytes += path.stat().st_size


def write_corpus(
    files: SourceFiles,
    folder: Path,
    reading: Reading,
    *,
    may_link: bool = False,
    on_progress: OnProgress | None = None,
) -> Report:
    """Write train.txt and valid.txt.

    Documents are written byte for byte, each with a separator after it. If a split is
    one text file with separators, it is copied as it is.

    Args:
        files: What to read. If it has no valid, a share of train becomes valid.
        folder: Where to write.
        reading: How files become documents, and which documents are valid.
        may_link: Whether a text may be hard-linked instead of copied. Not if it is
            the user's: DVC makes its files read-only.
        on_progress: Called with the number of bytes read since the last call.

    Raises:
        InputError: A split would hold no document, a file cannot be read or changed
            meanwhile, or a document contains the text of the separator.
        ConfigError: A package that reads a file is not installed.
        ResourceError: A document is too long, or the disk is full.
    """
    report = Report()
    texts = _find_whole_texts(files.splits, reading)
    links = {
        split: text
        for split, text in texts.items()
        if may_link and text.num_separators and text.is_plain
    }
    with contextlib.ExitStack() as stack:
        writers = {
            split: _SplitWriter(
                stack.enter_context(atomic_write(folder / f"{split}.txt"))
            )
            for split in SPLITS
            if split not in links
        }
        for split, text in texts.items():
            report.count_file(text.path)
            if "valid" not in files.splits:
                _cut_tail(text, reading.valid_fraction, writers, on_progress)
            elif split in writers:
                _copy_text(text, writers[split], on_progress)
        for split, paths in files.splits.items():
            if split in texts:
                continue
            documents = _read_files(paths, reading, report, on_progress)
            if "valid" not in files.splits:
                _divide(documents, reading.valid_fraction, writers)
            else:
                for document in documents:
                    writers[split].add(document)
        for split, writer in writers.items():
            report.num_documents[split], report.num_bytes[split] = writer.finish()
        for split, text in links.items():
            report.num_documents[split] = text.num_documents
            report.num_bytes[split] = text.num_bytes
        _check_documents(files, reading, report)
        files.check_unchanged()
    for split, text in links.items():
        target = folder / f"{split}.txt"
        if not atomic_link(text.path, target):
            with atomic_write(target) as file:
                _copy(text, file, on_progress)
    return report


def _check_documents(files: SourceFiles, reading: Reading, report: Report) -> None:
    num_empty = report.num_dropped_empty
    left_out = f" (left out as empty: {num_empty:,})" if num_empty else ""
    for split, num_documents in report.num_documents.items():
        if num_documents:
            continue
        total = sum(report.num_documents.values())
        if "valid" not in files.splits and total:
            raise InputError(
                f"{split} would hold no document{left_out}: give more documents, a "
                f"file for valid, or another valid_fraction than "
                f"{reading.valid_fraction} (it divides {total:,} by their digests)"
            )
        path = files.splits[split][0]
        raise InputError(f"{path} holds no document{left_out}; give some text")


class _SplitWriter:
    """Writes documents, each with a separator after it."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.num_documents = 0
        self._pending: list[bytes] = []
        self._num_pending_bytes = 0

    def add(self, document: bytes) -> None:
        self.num_documents += 1
        self._pending.append(document)
        self._num_pending_bytes += len(document)
        if self._num_pending_bytes > BLOCK_BYTES:
            self._flush()

    def add_part(self, file: IO[bytes], num_bytes: int) -> None:
        """Add the next bytes of a file as one document; count it if it has text."""
        any_text = False
        while block := file.read(min(BLOCK_BYTES, num_bytes)):
            self.file.write(block)
            any_text = any_text or not block.isspace()
            num_bytes -= len(block)
        self.file.write(SEPARATOR)
        self.num_documents += any_text

    def finish(self) -> tuple[int, int]:
        """Return the number of documents and the size of the file."""
        self._flush()
        return self.num_documents, self.file.seek(0, os.SEEK_END)

    def _flush(self) -> None:
        if self._pending:
            self._pending.append(b"")  # So that the last one gets its separator, too.
            self.file.write(SEPARATOR.join(self._pending))
            self._pending.clear()
            self._num_pending_bytes = 0


# Documents


def _read_files(
    paths: Sequence[Path],
    reading: Reading,
    report: Report,
    on_progress: OnProgress | None,
) -> Iterator[bytes]:
    """Read the documents of files, without empty ones and up to `max_documents`."""
    num_documents = 0
    for path in paths:
        report.count_file(path)
        for position, document in read_documents(path, reading, on_progress):
            if not document or document.isspace():
                report.num_dropped_empty += 1
                continue
            if num_documents == reading.max_documents:
                report.reached_max_documents = True
                return
            num_documents += 1
            # Finding one byte first is much faster, and it is rare.
            if b"|" in document and SEPARATOR in document:
                if reading.separator_in_text == "refuse":
                    raise InputError(
                        f"{name_place(path, position)}: a document contains "
                        f"{SEPARATOR.decode()}, which would end it; remove that, or "
                        "set separator_in_text to escape"
                    )
                document = document.replace(SEPARATOR, ESCAPED_SEPARATOR)
            yield document


def _divide(
    documents: Iterable[bytes],
    valid_fraction: float,
    writers: Mapping[str, _SplitWriter],
) -> None:
    """Make a document valid if its digest, as a fraction, is below `valid_fraction`."""
    # Bytes compare as the big-endian numbers that they are.
    threshold = int(valid_fraction * (1 << 64)).to_bytes(8, "big")
    add_train, add_valid = writers["train"].add, writers["valid"].add
    for document in documents:
        if hashlib.sha256(document).digest() < threshold:
            add_valid(document)
        else:
            add_train(document)


# Whole texts


@dataclasses.dataclass(frozen=True)
class _WholeText:
    """A text file that is not divided into documents: it is copied, or cut once."""

    path: Path
    is_plain: bool
    num_bytes: int
    num_separators: int
    num_documents: int


def _find_whole_texts(
    splits: Mapping[str, Sequence[Path]], reading: Reading
) -> dict[str, _WholeText]:
    found = {}
    is_divided = "valid" not in splits or reading.max_documents is not None
    for split, paths in splits.items():
        if len(paths) == 1 and not reading.split_at_blank_lines:
            with open_file(paths[0]) as file:
                if find_shape(paths[0], file) is TEXT:
                    check_is_text(paths[0], file.peek(HEAD_BYTES))
                    text = _scan_text(paths[0], file, is_divided)
                    if not (is_divided and text.num_separators):
                        found[split] = text
    return found


def _scan_text(
    path: Path, file: io.BufferedReader[Any], stop_at_separator: bool
) -> _WholeText:
    num_bytes = num_separators = 0
    any_text = rest_has_text = False
    for block in _read_blocks(file):
        count = block.count(SEPARATOR)
        rest = block[block.rfind(SEPARATOR) + len(SEPARATOR) :] if count else block
        any_text = any_text or has_text(block)
        rest_has_text = (rest_has_text and not count) or has_text(rest)
        num_bytes += len(block)
        num_separators += count
        if count and stop_at_separator:
            break
    else:
        if not any_text:
            raise no_document(path, num_bytes)
    return _WholeText(
        path, file.seekable(), num_bytes, num_separators, num_separators + rest_has_text
    )


def _read_blocks(file: IO[bytes]) -> Iterator[bytes]:
    """Read blocks that do not end inside a separator."""
    rest = b""
    while block := file.read(BLOCK_BYTES):
        block = rest + block
        cut = block.rfind(b"<", max(0, len(block) - len(SEPARATOR) + 1))
        if cut < 0 or not SEPARATOR.startswith(block[cut:]):
            cut = len(block)
        yield block[:cut]
        rest = block[cut:]
    if rest:
        yield rest


def _copy_text(
    text: _WholeText, writer: _SplitWriter, on_progress: OnProgress | None
) -> None:
    if not text.num_separators:
        with open_file(text.path, on_progress) as file:
            writer.add_part(file, text.num_bytes)
        return
    writer.num_documents = text.num_documents
    if text.is_plain:
        _copy(text, writer.file, on_progress)
    else:
        with open_file(text.path, on_progress) as file:
            shutil.copyfileobj(file, writer.file, BLOCK_BYTES)


def _copy(text: _WholeText, file: IO[bytes], on_progress: OnProgress | None) -> None:
    """Copy; a hard link would make the user's text read-only, as DVC does."""
    with open(text.path, "rb") as reader:
        copy_bytes(reader, file, text.num_bytes, on_progress)


def _cut_tail(
    text: _WholeText,
    valid_fraction: float,
    writers: Mapping[str, _SplitWriter],
    on_progress: OnProgress | None,
) -> None:
    """Make the end of a text valid, from the start of a line."""
    num_valid_bytes = math.ceil(text.num_bytes * valid_fraction)
    cut = _find_cut(text, text.num_bytes - num_valid_bytes)
    with open_file(text.path, on_progress) as file:
        writers["train"].add_part(file, cut)
        writers["valid"].add_part(file, text.num_bytes - cut)
    if not all(writer.num_documents for writer in writers.values()):
        raise InputError(
            f"{text.path}: give more text, or separate files for train and valid, "
            f"since its {text.num_bytes:,} bytes cannot be cut in two at a line end"
        )


def _find_cut(text: _WholeText, target: int) -> int:
    """Find the last line end up to `target`, or white space if lines are very long."""
    offset = line_end = space = 0
    with open_file(text.path) as file:
        while block := file.read(min(BLOCK_BYTES, target - offset)):
            if place := block.rfind(b"\n") + 1:
                line_end = offset + place
            if place := block.rfind(b" ") + 1:
                space = offset + place
            offset += len(block)
    return line_end if 2 * line_end > target else space
