"""Encoding: a text file and a tokenizer become a token file.

The text is read in chunks, so memory does not grow with its size. Ids do not depend
on where it is cut.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tiny_llm.corpus import CHUNK_BYTES, no_document, read_chunks
from tiny_llm.errors import ConfigError
from tiny_llm.parallel import map_in_order
from tiny_llm.textscan import TextScan
from tiny_llm.tokenize import BPETokenizer
from tiny_llm.tokens import Manifest, manifest_path, read_manifest, write_tokens


def encode_file(
    tokenizer: BPETokenizer,
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    on_progress: Callable[[int], object] | None = None,
    chunk_bytes: int = CHUNK_BYTES,
    num_threads: int | None = None,
    scan: TextScan | None = None,
) -> Manifest:
    """Encode a text file once, losslessly.

    Args:
        tokenizer: Makes the ids.
        source: Text; documents end at separators.
        target: The token file, `NAME.bin`; its manifest is `NAME.json` beside it.
        on_progress: Called with the number of bytes of each finished chunk.
        chunk_bytes: How much text is encoded at a time. Ids do not depend on it.
        num_threads: How many chunks are encoded in parallel; by default the number
            of cores, up to two. Ids do not depend on it.
        scan: A new `TextScan`, to learn more about the text than the manifest says.

    Returns:
        The manifest that was written.

    Warns:
        UserWarning: The text holds NUL bytes or invalid UTF-8, every line of it is
            a JSON object, or it is long and has no separators. It is encoded
            anyway, unless warnings are turned into errors.

    Raises:
        ConfigError: The target is not called NAME.bin, the token file or its manifest
            would replace the source, or a number is below 1.
        InputError: The source is missing, is not plain text, holds no document, or
            changed while it was read. Neither output is touched.
        ResourceError: The disk is full.
    """
    source, target = Path(source), Path(target)
    scan = TextScan() if scan is None else scan
    with write_tokens(
        target,
        vocab_size=tokenizer.vocab_size,
        separator_id=tokenizer.separator_id,
        tokenizer_sha256=tokenizer.sha256,
    ) as writer:
        for output in (target, manifest_path(target)):
            if source.exists() and output.exists() and output.samefile(source):
                raise ConfigError(
                    f"{output} is the text itself, and encoding would overwrite it; "
                    "give another target"
                )

        def encode(chunk: bytes) -> tuple[bytes, npt.NDArray[np.integer], int]:
            return chunk, *tokenizer.encode_counting_invalid(chunk)

        chunks = read_chunks(source, chunk_bytes)
        for chunk, ids, num_invalid_bytes in map_in_order(encode, chunks, num_threads):
            writer.append(ids)
            scan.update(chunk, num_invalid_bytes)
            if on_progress:
                on_progress(len(chunk))
        if not scan.has_text:
            raise no_document(source, scan.num_bytes)
        writer.num_bytes = scan.num_bytes
        # White space after the last separator is kept, but it is not a document.
        writer.num_documents += scan.rest_has_text
        for line in scan.warnings(source, writer.num_documents):
            warnings.warn(line, stacklevel=2)
    return read_manifest(target)
