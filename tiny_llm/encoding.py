"""Encoding: a text file and a tokenizer become a token file.

The text is encoded in ranges: `encode_range` turns one into a part, in this process, in
a worker process or on a cluster. `encode_file` joins the parts in order. Ids do not
depend on where ranges begin or on who encodes them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import warnings
from collections.abc import Callable
from pathlib import Path

from tiny_llm.checks import check_int
from tiny_llm.corpus import no_document, open_text
from tiny_llm.encode_range import TOKENIZER_NAME, encode_range
from tiny_llm.errors import ConfigError, IntegrityError
from tiny_llm.parallel import Job, is_cluster_chosen, map_jobs
from tiny_llm.parts import Part, find_part, part_path, parts_folder, read_arrays
from tiny_llm.stats import TokenCounter, TokenStats
from tiny_llm.textscan import TextScan, count_json_lines
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

# A range of that size is encoded in 70 ms; workers start in 250 ms.
_MAX_RANGES_IN_PROCESS = 2


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
        tokenizer.save(folder / TOKENIZER_NAME)
        text, counter = TextScan(), TokenCounter(tokenizer.vocab_size)
        with open_text(source) as file:
            num_bytes = os.fstat(file.fileno()).st_size
            json_lines = count_json_lines(file)
            jobs = _plan(
                source, folder, num_bytes, range_bytes, tokenizer.vocab_size, count
            )
            parts = map_jobs(
                encode_range, jobs, num_workers, max_in_process=_MAX_RANGES_IN_PROCESS
            )
            with contextlib.closing(parts):
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
    source: Path,
    folder: Path,
    num_bytes: int,
    range_bytes: int,
    vocab_size: int,
    count: bool,
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
                "vocab_size": vocab_size,
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
