"""Verifying: compare every byte of a token file and its index with the manifest.

Ranges are verified in parallel, and a damaged one is named.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
from pathlib import Path
from typing import Any

import numpy as np

from tiny_llm.errors import InputError, IntegrityError
from tiny_llm.manifest import DTYPES, Manifest, check_tokenizer, read_manifest
from tiny_llm.parallel import Job, map_jobs
from tiny_llm.tokens import (
    DIGEST_BYTES,
    check_size,
    documents_path,
    manifest_path,
    open_documents,
)

# A range is verified in 5 ms; workers start in 250 ms.
_MAX_RANGES_IN_PROCESS = 50

# How many ids are read at a time.
_BLOCK_TOKENS = 1 << 20


def verify(
    path: str | os.PathLike[str],
    tokenizer_sha256: str | None = None,
    *,
    num_workers: int | None = None,
) -> Manifest:
    """Check every byte of a token file, its manifest and its index.

    Args:
        path: The token file.
        tokenizer_sha256: If given, the tokenizer that must have made the ids.
        num_workers: By default `parallel.count_workers()`.

    Raises:
        InputError: The file, its manifest or its index is missing.
        IntegrityError: They disagree; names the damaged ranges.
    """
    manifest = read_manifest(path)
    if tokenizer_sha256 is not None:
        check_tokenizer(path, manifest, tokenizer_sha256)
    if not Path(path).is_file():
        raise InputError(f"{path}: no such token file; encode the text again")
    check_size(path, os.path.getsize(path), manifest)
    has_index = documents_path(path).is_file()
    if manifest.format_version > 1 and not has_index:
        raise InputError(
            f"{documents_path(path)}: no such index; encode the text again"
        )
    open_documents(path, manifest)
    begins = [0, *itertools.accumulate(manifest.range_tokens)]
    jobs = [
        Job(
            f"ids {begin:,} to {end:,} of {path}",
            {
                "path": os.path.abspath(path),
                "begin": begin,
                "end": end,
                "dtype": manifest.dtype,
                "separator_id": manifest.separator_id,
                "has_index": has_index,
            },
        )
        for begin, end in itertools.pairwise(begins)
    ]
    results = map_jobs(
        verify_range, jobs, num_workers, max_in_process=_MAX_RANGES_IN_PROCESS
    )
    with contextlib.closing(results):
        found = list(results)
    itemsize = DTYPES[manifest.dtype].itemsize
    damaged = [
        f"range {number} (bytes {begins[number] * itemsize:,} to "
        f"{begins[number + 1] * itemsize:,})"
        for number, sha256 in enumerate(manifest.range_sha256)
        if found[number]["sha256"] != sha256
    ]
    if damaged:
        raise IntegrityError(
            f"{path} differs from its manifest; damaged: {', '.join(damaged[:5])}"
            + (f" and {len(damaged) - 5:,} more" if damaged[5:] else "")
            + "; encode the text again"
        )
    _check_counts(path, manifest, found)
    return manifest


def verify_range(
    path: str, begin: int, end: int, dtype: str, separator_id: int, has_index: bool
) -> dict[str, Any]:
    """Read ids begin to end; return their digest and what they say of documents."""
    starts = np.empty(0, np.int64)
    if has_index and documents_path(path).stat().st_size > DIGEST_BYTES:
        starts = np.memmap(documents_path(path), "<i8", "r", offset=DIGEST_BYTES)
    sha256 = hashlib.sha256()
    num_separators, largest_id, last_id = 0, 0, None
    index_agrees = True
    itemsize = DTYPES[dtype].itemsize
    with open(path, "rb") as file:
        file.seek(begin * itemsize)
        while begin < end:
            ids = np.fromfile(file, DTYPES[dtype], min(_BLOCK_TOKENS, end - begin))
            if not len(ids):
                raise IntegrityError(f"{path} ends at id {begin:,}; it was truncated")
            sha256.update(ids.data.cast("B"))
            ends = np.flatnonzero(ids == separator_id) + (begin + 1)
            # The next block begins where this one ends, so that each entry of the index
            # but the first, 0, is compared with one block.
            low, high = np.searchsorted(starts, [begin, begin + len(ids)], side="right")
            agrees = np.array_equal(starts[low:high], ends[: high - low])
            # Nothing need follow the last separator.
            is_last = high == len(starts) and len(ends) - (high - low) == 1
            index_agrees &= agrees and (len(ends) == high - low or is_last)
            num_separators += len(ends)
            largest_id, last_id = max(largest_id, int(ids.max())), int(ids[-1])
            begin += len(ids)
    return {
        "sha256": sha256.hexdigest(),
        "num_separators": num_separators,
        "largest_id": largest_id,
        "last_id": last_id,
        "index_agrees": bool(index_agrees) or not has_index,
    }


def _check_counts(
    path: str | os.PathLike[str], manifest: Manifest, found: list[dict[str, Any]]
) -> None:
    """Compare the counts of the manifest and the index with the ids."""
    num_separators = sum(part["num_separators"] for part in found)
    largest_id = max(part["largest_id"] for part in found)
    last_ids = [p["last_id"] for p in found if p["last_id"] is not None]
    # Text after the last separator may be a document, or only white space.
    num_unended = manifest.num_documents - num_separators
    if (
        not 0 <= num_unended <= (last_ids[-1:] != [manifest.separator_id])
        or largest_id >= manifest.vocab_size
    ):
        raise IntegrityError(
            f"{manifest_path(path)} is damaged: {path} has the right digest, but not "
            f"{manifest.num_documents:,} documents (found {num_separators:,} "
            f"separators) or ids below {manifest.vocab_size:,} (found {largest_id:,}); "
            "encode the text again"
        )
    if not all(part["index_agrees"] for part in found):
        raise IntegrityError(
            f"{documents_path(path)} is damaged: it does not say where the documents "
            f"of {path} start; encode the text again"
        )
