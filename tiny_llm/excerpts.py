"""Excerpts: a look at the ids of a token file, document by document.

A document is read from its start, or from any position, or is drawn at random.
"""

from __future__ import annotations

import dataclasses
import os
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from tiny_llm.checks import check_int
from tiny_llm.errors import ConfigError
from tiny_llm.tokenize import BPETokenizer
from tiny_llm.tokens import open_documents, open_tokens


@dataclasses.dataclass(frozen=True)
class Excerpt:
    """Consecutive ids of one document.

    Attributes:
        begin: The position of the first id in the file.
        ids: Shape (n,), uint16 or uint32, a copy.
        num_left_out: How many ids of the document follow.
        document: Which document it is, from 0; None if the file has no manifest, and so
            no known documents.
        document_begin: The position at which the document starts.
    """

    begin: int
    ids: npt.NDArray[Any]
    num_left_out: int
    document: int | None
    document_begin: int


def read_excerpts(
    path: str | os.PathLike[str],
    *,
    at: int | None = None,
    seed: int | None = None,
    num_documents: int = 3,
    max_tokens: int = 512,
) -> list[Excerpt]:
    """Read the first documents of a token file, or others.

    Args:
        path: The token file. One without a manifest counts as one document.
        at: Read from this position on, to the end of its document.
        seed: Read random documents instead: each equally likely, none twice. The same
            seed gives the same documents.
        num_documents: How many documents to read, if there are so many.
        max_tokens: How many ids to read of each.

    Raises:
        ConfigError: `at` is not a position in the file, or an argument is out of range.
        InputError, IntegrityError: See `tokens.open_tokens`.
    """
    check_int("num_documents", num_documents)
    check_int("max_tokens", max_tokens)
    ids, manifest = open_tokens(path)
    starts = np.zeros(1, np.int64)
    if manifest is not None:
        starts = open_documents(path, manifest)
    if at is not None and seed is not None:
        raise ConfigError(f"at={at} and seed={seed} exclude each other; give one")
    if at is not None:
        check_int("at", at, 0, len(ids) - 1)
        first = int(np.searchsorted(starts, at, side="right")) - 1
        numbers: Iterator[int] = iter(range(first, first + num_documents))
    elif seed is not None:
        numbers = _draw(len(starts), check_int("seed", seed, 0), num_documents)
    else:
        numbers = iter(range(num_documents))
    excerpts = []
    for number in numbers:
        if number >= len(starts):
            break
        document_begin = int(starts[number])
        end = int(starts[number + 1]) if number + 1 < len(starts) else len(ids)
        begin = max(document_begin, at or 0)
        excerpts.append(
            Excerpt(
                begin=begin,
                ids=np.array(ids[begin : min(end, begin + max_tokens)]),
                num_left_out=max(0, end - begin - max_tokens),
                document=None if manifest is None else number,
                document_begin=document_begin,
            )
        )
    return excerpts


def _draw(num_documents: int, seed: int, num_drawn: int) -> Iterator[int]:
    """Draw distinct numbers; `random.random` is the same in every Python version."""
    dice, drawn = random.Random(seed), set[int]()  # noqa: S311 - nothing secret
    while len(drawn) < min(num_drawn, num_documents):
        number = int(dice.random() * num_documents)
        if number not in drawn:
            drawn.add(number)
            yield number


def split_text(tokenizer: BPETokenizer, ids: npt.NDArray[Any]) -> list[bytes]:
    """Return the bytes of each id.

    Raises:
        InputError: An id is outside the tokenizer's vocab.

    >>> split_text(BPETokenizer([(b"l", b"o")]), np.array([108, 257]))
    [b'l', b'lo']
    """
    known = {
        token_id: tokenizer.token_bytes(token_id) for token_id in set(ids.tolist())
    }
    return [known[token_id] for token_id in ids.tolist()]


def show_text(text: bytes) -> str:
    r"""Make text visible: nothing in it can move the cursor or change a colour.

    A line break becomes an arrow before the break. Other characters that have no
    picture, and bytes that are not valid UTF-8, become escapes.

    >>> print(show_text(b"a\n\x1b[1m\xff"))
    a↵
    \x1b[1m\xff
    """
    return "".join(
        character
        if character.isprintable()
        else "↵\n"
        if character == "\n"
        else character.encode("unicode_escape").decode()
        for character in text.decode("utf-8", "backslashreplace")
    )


def show_borders(pieces: list[bytes]) -> str:
    """Join the text of several tokens, with a visible border between two tokens.

    >>> show_borders([b"Once", b" upon"])
    'Once│ upon'
    """
    return "│".join(map(show_text, pieces))
