"""Encoding: a text file and a tokenizer become a token file.

The text is encoded in ranges. `encode_range` reads the text of one and writes a part,
in this process, in a worker process or on a cluster. `encode_file` joins the parts in
order. Ids do not depend on where ranges begin or on who encodes them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import platform
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tiny_llm.anytext import Piece
from tiny_llm.checks import check_int
from tiny_llm.corpus import find_next_cut, no_document, open_text
from tiny_llm.errors import ConfigError, InputError, IntegrityError
from tiny_llm.parallel import Job, is_cluster_chosen, map_jobs
from tiny_llm.parts import (
    Part,
    PartWriter,
    find_part,
    hash_bytes,
    part_path,
    parts_folder,
    read_arrays,
    write_part,
)
from tiny_llm.stats import TokenCounter, TokenStats
from tiny_llm.textscan import TextScan, count_json_lines, scan_text
from tiny_llm.tokenize import BPETokenizer
from tiny_llm.tokens import (
    Manifest,
    TokenWriter,
    documents_path,
    manifest_path,
    read_manifest,
    write_tokens,
)

# Larger ranges are no faster; smaller ones make the manifest longer.
RANGE_BYTES = 8 << 20

_TOKENIZER_NAME = "bpe.json"


@dataclasses.dataclass(frozen=True)
class Encoded:
    """What `encode_and_measure` found.

    Attributes:
        manifest: The manifest that was written.
        text: What was found in the text.
        stats: How often each id occurs, and how long documents are.
    """

    manifest: Manifest
    text: TextScan
    stats: TokenStats


def encode_file(
    tokenizer: BPETokenizer,
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    on_progress: Callable[[int], object] | None = None,
    range_bytes: int = RANGE_BYTES,
    num_workers: int | None = None,
) -> Manifest:
    """Encode a text file once, losslessly.

    An encoding that was interrupted is resumed: ranges that were finished, with the
    same text and tokenizer, are kept in NAME.parts/ beside the target.

    Args:
        tokenizer: Makes the ids.
        source: Text; documents end at separators.
        target: The token file, `NAME.bin`; its manifest `NAME.json` and its index
            `NAME.documents` are beside it.
        on_progress: Called with the number of bytes of each finished range.
        range_bytes: How much text is encoded at a time. Ids do not depend on it; the
            list of digests in the manifest does.
        num_workers: How many ranges are encoded in parallel; by default
            `parallel.count_workers()`. The files do not depend on it.

    Returns:
        The manifest that was written.

    Warns:
        UserWarning: The text holds NUL bytes or invalid UTF-8, begins with nothing but
            JSON objects, or is long and has no separators. It is encoded anyway, unless
            warnings are turned into errors.

    Raises:
        ConfigError: The target is not called NAME.bin, an output would replace the
            source, or a number is below 1.
        InputError: The source is missing, is not plain text, holds no document, or
            changed while it was read. No output is touched.
        ResourceError: The disk is full, or a worker was killed or ran out of memory.
        IntegrityError: A part that a cluster wrote is damaged.
        ClusterError: A cluster cannot be used, or fails at a range each time.
    """
    encoded = _encode(
        tokenizer, source, target, on_progress, range_bytes, num_workers, count=False
    )
    return encoded.manifest


def encode_and_measure(
    tokenizer: BPETokenizer,
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    on_progress: Callable[[int], object] | None = None,
) -> Encoded:
    """Like `encode_file`, and return statistics; counting ids takes a sixth longer."""
    return _encode(
        tokenizer, source, target, on_progress, RANGE_BYTES, None, count=True
    )


def _encode(
    tokenizer: BPETokenizer,
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    on_progress: Callable[[int], object] | None,
    range_bytes: int,
    num_workers: int | None,
    *,
    count: bool,
) -> Encoded:
    source, target = Path(source), Path(target)
    range_bytes = check_int("range_bytes", range_bytes)
    key = f"{tokenizer.sha256} {range_bytes} {count}"
    with (
        parts_folder(target, key) as folder,
        write_tokens(
            target,
            vocab_size=tokenizer.vocab_size,
            separator_id=tokenizer.separator_id,
            tokenizer_sha256=tokenizer.sha256,
        ) as writer,
    ):
        _check_outputs(source, target)
        tokenizer.save(folder / _TOKENIZER_NAME)
        text, counter = TextScan(), TokenCounter(tokenizer.vocab_size)
        with open_text(source) as file:
            num_bytes = os.fstat(file.fileno()).st_size
            json_lines = count_json_lines(file)
            jobs = _plan(source, folder, num_bytes, range_bytes, count)
            with contextlib.closing(map_jobs(encode_range, jobs, num_workers)) as parts:
                for job, values in zip(jobs, parts, strict=True):
                    part = Part(**values)
                    path = part_path(folder, job.arguments["begin"])
                    _join(writer, counter, path, part)
                    text.merge(TextScan(**part.text))
                    if on_progress:
                        on_progress(part.text["num_bytes"])
        if not text.has_text:
            raise no_document(source, text.num_bytes)
        writer.num_bytes = text.num_bytes
        # White space after the last separator is kept, but it is not a document.
        writer.rest_is_document = text.rest_has_text
        stats = counter.finish(rest_is_document=text.rest_has_text)
        num_documents = sum(stats.document_lengths.values())
        for line in text.warnings(source, num_documents, *json_lines):
            warnings.warn(line, stacklevel=3)
    return Encoded(read_manifest(target), text, stats)


def _plan(
    source: Path, folder: Path, num_bytes: int, range_bytes: int, count: bool
) -> list[Job]:
    """Divide the text into ranges of equal size, one job each."""
    return [
        Job(
            f"bytes {begin:,} to {min(begin + range_bytes, num_bytes):,} of {source}",
            {
                "source": os.path.abspath(source),
                "folder": os.path.abspath(folder),
                "begin": begin,
                "end": begin + range_bytes,
                "size": num_bytes,
                "count": count,
                "sync": is_cluster_chosen(),
            },
        )
        for begin in range(0, max(1, num_bytes), range_bytes)
    ]


def _check_outputs(source: Path, target: Path) -> None:
    """Refuse to overwrite the text itself."""
    for output in (target, manifest_path(target), documents_path(target)):
        if source.exists() and output.exists() and output.samefile(source):
            raise ConfigError(
                f"{output} is the text itself, and encoding would overwrite it; "
                "give another target"
            )


def _join(writer: TokenWriter, counter: TokenCounter, path: Path, part: Part) -> None:
    # Another machine wrote it: does this one read the same?
    if is_cluster_chosen() and find_part(path, part.text_sha256) != part:
        raise IntegrityError(
            f"{path} is not what a worker wrote; check that all machines share its "
            "folder, and run again"
        )
    ends, counts = read_arrays(path, part)
    with open(path, "rb", buffering=0) as ids:
        writer.append_file(ids, part.num_tokens, part.sha256, ends)
    counter.add(part.num_tokens, ends, counts)


def encode_range(
    source: str,
    folder: str,
    begin: int,
    end: int,
    *,
    size: int,
    count: bool,
    sync: bool,
) -> dict[str, Any]:
    """Encode the text of one range to a part, unless an earlier run left it.

    The range begins at the first cut from `begin` on, and ends at the first cut from
    `end` on; it is empty if they are the same.

    Args:
        source: The text file.
        folder: Holds the tokenizer and the parts.
        begin: Where the range nominally begins, in bytes.
        end: Where it nominally ends.
        size: Size of the text file, in bytes.
        count: Whether to count how often each id occurs.
        sync: Whether to flush the part to disk, for readers on other machines.

    Returns:
        The `Part` that was written, as a dict.

    Raises:
        InputError: The text file has another size.
    """
    path = part_path(Path(folder), begin)
    with open(source, "rb") as file:
        found = os.fstat(file.fileno()).st_size
        if found != size:
            raise InputError(
                f"{source} changed while it was read ({size:,} bytes at first, "
                f"{found:,} now on {platform.node()}); run again when nothing writes "
                "to it, and if this is a cluster, when all its machines share the file"
            )
        first, last = find_next_cut(file, begin), find_next_cut(file, end)
        file.seek(first)
        digest = hash_bytes(file, last - first)
        part = find_part(path, digest)
        if part is None:

            def read(begin: int, end: int) -> bytes:
                file.seek(first + begin)
                return file.read(end - begin)

            tokenizer = _load_tokenizer(folder)
            with write_part(path, digest, sync=sync) as writer:
                sink = _PartSink(writer, tokenizer, first, count)
                tokenizer.encode_to(sink, read, last - first)
                writer.text = dataclasses.asdict(sink.scan)
                part = writer.finish(sink.counts)
    return dataclasses.asdict(part)


class _PartSink:
    """Writes ids to a part, and scans the text: neither is ever all in memory."""

    def __init__(
        self, writer: PartWriter, tokenizer: BPETokenizer, first: int, count: bool
    ) -> None:
        self._writer, self._tokenizer = writer, tokenizer
        self._first, self._count = first, count
        self.clear()

    def clear(self) -> None:
        self._writer.clear()
        self.scan = TextScan()
        self.counts = np.zeros(
            self._tokenizer.vocab_size if self._count else 0, np.int64
        )

    def append(self, piece: Piece) -> None:
        ids = piece.ids.astype(self._tokenizer.dtype, copy=False)
        self._writer.append(ids, self._tokenizer.separator_id)
        if self._count:
            self.counts += _count_ids(ids, self._tokenizer.vocab_size)
        begin = self._first + self.scan.num_bytes
        self.scan.merge(scan_text(piece.text, begin, piece.invalid))


@functools.lru_cache(maxsize=1)
def _load_tokenizer(folder: str) -> BPETokenizer:
    return BPETokenizer.load(Path(folder, _TOKENIZER_NAME))


def _count_ids(ids: npt.NDArray[np.integer], vocab_size: int) -> npt.NDArray[np.int64]:
    """Count how often each id occurs, block by block: bincount widens its input."""
    counts = np.zeros(vocab_size, dtype=np.int64)
    for begin in range(0, len(ids), 1 << 17):
        counts += np.bincount(ids[begin : begin + (1 << 17)], minlength=vocab_size)
    return counts
