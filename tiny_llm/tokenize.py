"""Byte-level BPE: learn merges, turn text into token ids and back.

Ids 0..255 are the bytes, 256 is the separator, and merges follow from 257 in order of
rank, so the ids of a smaller vocab are a prefix of those of a larger one. Text may be
any bytes: a byte that is not valid UTF-8 becomes its own id, and no merge crosses it.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tiny_llm.atomic import atomic_write
from tiny_llm.checks import check_int
from tiny_llm.corpus import chunks_of
from tiny_llm.engine import Engine, learn_merges
from tiny_llm.errors import ConfigError, InputError
from tiny_llm.sample import Sample, text_sample
from tiny_llm.tokenizer_json import (
    FIRST_MERGE_ID,
    SEPARATOR_ID,
    TOKENIZER_CONFIG,
    Merge,
    format_merges,
    parse_merges,
)
from tiny_llm.tokens import dtype_for

__all__ = [
    "FIRST_MERGE_ID",
    "MAX_VOCAB_SIZE",
    "MIN_VOCAB_SIZE",
    "SEPARATOR_ID",
    "BPETokenizer",
    "check_vocab_size",
    "explain_shortfall",
]

Ids = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]

MIN_VOCAB_SIZE = FIRST_MERGE_ID
MAX_VOCAB_SIZE = 1 << 20


class BPETokenizer:
    """A byte-level BPE tokenizer with the GPT-2 split pattern.

    A new one has no merges and turns each byte into one id. Two are equal if they have
    the same merges, and so give the same ids; `len` is the vocab size.

    Attributes:
        merges: Pairs of token bytes in order of merge rank.
        merge_counts: After `train`, how often each merge joined a pair in the sample,
            int64, shape (number of merges,); else None.

    >>> tokenizer = BPETokenizer()
    >>> tokenizer.train("low lower lowest low", vocab_size=260)
    >>> tokenizer.merges
    [(b'l', b'o'), (b'lo', b'w'), (b' ', b'low')]
    >>> tokenizer.encode("slow low<|endoftext|>")
    array([115, 258, 259, 256], dtype=uint16)
    >>> tokenizer.decode([115, 258, 259])
    'slow low'
    >>> tokenizer
    BPETokenizer(vocab_size=260, sha256=761dbf1b...)
    """

    def __init__(self, merges: Sequence[Merge] = ()) -> None:
        """Make a tokenizer from known merges.

        Args:
            merges: Pairs of token bytes in order of merge rank.

        Raises:
            ConfigError: A merge joins a token that does not exist yet or makes one
                that already exists, or there are too many merges.
        """
        self._set_merges(list(merges))

    def _set_merges(self, merges: list[Merge]) -> None:
        if len(merges) > MAX_VOCAB_SIZE - FIRST_MERGE_ID:
            raise ConfigError(
                f"{len(merges):,} merges are too many for a vocab_size of at most "
                f"{MAX_VOCAB_SIZE:,}; leave some out"
            )
        known = {bytes([byte]) for byte in range(256)}
        for rank, (left, right) in enumerate(merges):
            if left not in known or right not in known or left + right in known:
                raise ConfigError(
                    f"merge {rank:,} ({_shorten(left)}, {_shorten(right)}) does not "
                    "join two known tokens into a new one; give the merges in order "
                    "of rank"
                )
            known.add(left + right)
        self.merges = merges
        self.merge_counts: npt.NDArray[np.int64] | None = None
        self._file_bytes = format_merges(merges)
        self._engine = Engine(self._file_bytes)

    def __repr__(self) -> str:
        return (
            f"BPETokenizer(vocab_size={self.vocab_size}, sha256={self.sha256[:8]}...)"
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, BPETokenizer):
            return NotImplemented
        return self.sha256 == other.sha256

    def __hash__(self) -> int:
        return hash(self.sha256)

    def __len__(self) -> int:
        return self.vocab_size

    @property
    def vocab_size(self) -> int:
        """Number of ids: 256 bytes, the separator, and the merges."""
        return FIRST_MERGE_ID + len(self.merges)

    @property
    def separator_id(self) -> int:
        """The id of the separator, the same for every vocab."""
        return SEPARATOR_ID

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of encoded ids: uint16 if every id fits, else uint32."""
        return dtype_for(self.vocab_size)

    @property
    def sha256(self) -> str:
        """Digest of the saved file: equal for tokenizers that give equal ids."""
        return hashlib.sha256(self._file_bytes).hexdigest()

    def train(self, text: str | bytes, vocab_size: int) -> None:
        """Learn merges from a sample, replacing the current ones.

        Sets `merges` and `merge_counts`. Merges that joined nothing are dropped, so
        `vocab_size` may end up smaller than asked for: see `explain_shortfall`.

        Args:
            text: The sample. Separators end documents and take no part in merges, nor
                do invalid UTF-8 and pretokens of more than 8,192 bytes. A warning says
                how many bytes of the latter were left out.
            vocab_size: Bytes, separator and merges together, 257 to 2**20.

        Raises:
            ConfigError: `vocab_size` is not an integer in that range.
            ResourceError: More than 256 MiB without a place to cut.
        """
        check_vocab_size(vocab_size)
        sample = text_sample(_to_bytes(text))
        self.train_on_sample(sample, vocab_size)
        if left_out := sample.explain_left_out():
            warnings.warn(left_out, stacklevel=2)

    def train_on_sample(self, sample: Sample, vocab_size: int) -> None:
        """Like `train`, but from a sample that may be a file; gives no warning."""
        check_vocab_size(vocab_size)
        self._set_merges(learn_merges(sample.text, vocab_size - FIRST_MERGE_ID))
        id_counts = np.zeros(self.vocab_size, np.int64)
        for chunk in chunks_of(sample.text):
            ids, _ = self._engine.encode(chunk)
            id_counts += np.bincount(ids, minlength=self.vocab_size)
        counts = _count_merges(self.merges, id_counts)
        num_used = int(np.argmin(counts > 0)) if (counts == 0).any() else len(counts)
        if num_used < len(self.merges):
            self._set_merges(self.merges[:num_used])
        self.merge_counts = counts[:num_used]

    def encode(self, text: str | bytes) -> Ids:
        """Turn text into ids; the separator's text becomes `separator_id`.

        Args:
            text: Any text. To encode a large file, use `tiny_llm.encoding`.

        Returns:
            Shape (number of tokens,), `dtype`.
        """
        return self._engine.encode(_to_bytes(text), self.dtype)[0]

    def decode_bytes(self, ids: Sequence[int] | npt.NDArray[Any]) -> bytes:
        """Return the bytes that ids stand for; the inverse of `encode`.

        Args:
            ids: Shape (N,), any integer dtype, or a list.

        Raises:
            InputError: An id is outside [0, vocab_size), or `ids` are not one row of
                integers.
        """
        array = np.asarray(ids)
        if array.size == 0:
            return b""
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise InputError(
                f"ids have shape {array.shape} and dtype {array.dtype}; give one row "
                "of integers"
            )
        if array.min() < 0 or array.max() >= self.vocab_size:
            wrong = array.min() if array.min() < 0 else array.max()
            raise InputError(
                f"id {wrong} is outside this tokenizer's vocab of {self.vocab_size:,}; "
                "decode with the tokenizer that made the ids"
            )
        return self._engine.decode(np.ascontiguousarray(array, dtype=np.uint32))

    def decode(self, ids: Sequence[int] | npt.NDArray[Any]) -> str:
        """Return the text that ids stand for; invalid UTF-8 becomes U+FFFD.

        Args and errors are those of `decode_bytes`.
        """
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes that one id stands for.

        Raises:
            InputError: The id is outside [0, vocab_size).
        """
        return self.decode_bytes([token_id])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a Hugging Face tokenizer.json.

        If the file is called tokenizer.json, also write (or replace) a
        tokenizer_config.json beside it. It makes the separator the eos_token, and
        transformers' `AutoTokenizer.from_pretrained(folder)` needs it.

        Args:
            path: The file. Missing folders are created.
        """
        target = Path(path)
        with atomic_write(target) as file:
            file.write(self._file_bytes)
        if target.name == "tokenizer.json":
            with atomic_write(target.with_name("tokenizer_config.json")) as file:
                file.write(TOKENIZER_CONFIG)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> BPETokenizer:
        """Read a tokenizer.json that `save` or transformers' save_pretrained wrote.

        Settings that change no id may differ; the digest stays the same.

        Raises:
            InputError: The file is missing, is not a byte-level BPE tokenizer.json, or
                would give other ids: another split pattern, order of ids, and so on.
        """
        source = Path(path)
        if not source.is_file():
            raise InputError(
                f"{path}: no such file; make one with `dvc repro bpe` or "
                "BPETokenizer.save"
            )
        try:
            return cls(parse_merges(source))
        except ConfigError as error:
            raise InputError(f"{path}: {error}") from error


def check_vocab_size(vocab_size: object) -> None:
    """Check that a vocab size is an integer from 257 to 2**20.

    Raises:
        ConfigError: It is not an integer, or out of range.
    """
    check_int("vocab_size", vocab_size, MIN_VOCAB_SIZE, MAX_VOCAB_SIZE)


def explain_shortfall(asked: int, found: int, more_text: bool) -> str:
    """Say why training gave a smaller vocab than asked for, and what to do.

    Args:
        asked: The vocab size asked for.
        found: The vocab size after training.
        more_text: Whether the file holds more text than the sample.

    >>> explain_shortfall(512, 387, more_text=False)
    'vocab_size 512 was asked for, but the sample has pairs for only 387: use more \
text or a smaller vocab_size'
    """
    advice = "raise sample_mb" if more_text else "use more text or a smaller vocab_size"
    return (
        f"vocab_size {asked:,} was asked for, but the sample has pairs for only "
        f"{found:,}: {advice}"
    )


def _to_bytes(text: str | bytes) -> bytes:
    if not isinstance(text, str | bytes):
        raise InputError(f"text is of type {type(text).__name__}; give str or bytes")
    return text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text


def _shorten(token_bytes: bytes) -> str:
    return repr(token_bytes if len(token_bytes) <= 40 else token_bytes[:40] + b"...")


def _count_merges(
    merges: list[Merge], id_counts: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Count how often each merge was applied, given how often each id occurs.

    Each token longer than a byte is made by exactly one merge. So a merge was applied
    as often as its token occurs among the ids, plus as often as the merges that
    consume its token were applied. All of those have a later rank.

    >>> ids = BPETokenizer([(b"l", b"o"), (b"lo", b"w")]).encode("low low lol")
    >>> _count_merges([(b"l", b"o"), (b"lo", b"w")], np.bincount(ids))
    array([3, 2])
    """
    id_of = {bytes([byte]): byte for byte in range(256)}
    id_of.update(
        (left + right, token_id)
        for token_id, (left, right) in enumerate(merges, FIRST_MERGE_ID)
    )
    counts = id_counts.tolist()
    for token_id in range(len(counts) - 1, FIRST_MERGE_ID - 1, -1):
        left, right = merges[token_id - FIRST_MERGE_ID]
        counts[id_of[left]] += counts[token_id]
        counts[id_of[right]] += counts[token_id]
    return np.array(counts[FIRST_MERGE_ID:], dtype=np.int64)
