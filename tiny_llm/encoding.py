"""Encoding: a text file and a tokenizer become a token file.

The text is read in chunks, so memory does not grow with it; ids do not depend on
how it is cut.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from tiny_llm.corpus import CHUNK_BYTES, SEPARATOR, has_text, read_chunks
from tiny_llm.errors import ConfigError, InputError
from tiny_llm.parallel import map_in_order
from tiny_llm.tokenize import BPETokenizer
from tiny_llm.tokens import Manifest, read_manifest, write_tokens


def encode_file(
    tokenizer: BPETokenizer,
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    on_progress: Callable[[int], object] | None = None,
    chunk_bytes: int = CHUNK_BYTES,
    num_threads: int | None = None,
) -> Manifest:
    """Encode a text file once, losslessly.

    Args:
        tokenizer: Makes the ids.
        source: Text; documents end at separators.
        target: The token file, `NAME.bin`; its manifest `NAME.json` goes beside it.
        on_progress: Called with the number of bytes of each finished chunk.
        chunk_bytes: How much text is encoded at a time. Ids do not depend on it.
        num_threads: How many chunks are encoded side by side; by default the number
            of cores, up to two. Ids do not depend on it.

    Returns:
        The manifest that was written.

    Raises:
        ConfigError: The target is not called NAME.bin, or is the source itself, or a
            number is below 1.
        InputError: The source is missing, holds no document, or changed meanwhile;
            neither output is touched.
        ResourceError: The disk is full.
    """
    source, target = Path(source), Path(target)
    if source.exists() and target.exists() and target.samefile(source):
        raise ConfigError(f"{target} is the text itself; give another target")
    found_text = False
    rest_has_text = False
    with write_tokens(
        target,
        vocab_size=tokenizer.vocab_size,
        separator_id=tokenizer.separator_id,
        tokenizer_sha256=tokenizer.sha256,
    ) as writer:
        for chunk, ids in map_in_order(
            lambda chunk: (chunk, tokenizer.encode(chunk)),
            read_chunks(source, chunk_bytes),
            num_threads,
        ):
            writer.append(ids)
            writer.num_bytes += len(chunk)
            found_text = found_text or has_text(chunk)
            place = chunk.rfind(SEPARATOR)
            rest = chunk[place + len(SEPARATOR) :] if place >= 0 else chunk
            rest_has_text = has_text(rest) or (rest_has_text and place < 0)
            if on_progress:
                on_progress(len(chunk))
        # White space after the last separator is kept, but is no document.
        writer.num_documents += rest_has_text
        if not found_text:
            raise InputError(
                f"{source} holds no document, only {writer.num_bytes:,} bytes of "
                "separators and white space; give a file with text in it"
            )
    return read_manifest(target)
