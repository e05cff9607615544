"""Byte-level BPE: learn merges, turn text into token ids and back.

Ids 0..255 are the bytes, 256 is the separator, merges follow from 257 in order of
rank; so a smaller vocab's ids are a prefix of a larger one's. The file is a Hugging
Face tokenizer.json. Text may be any bytes: one that is not valid UTF-8 becomes its own
id, and parts the text as a separator does.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tiny_llm.atomic import atomic_write
from tiny_llm.checks import check_int
from tiny_llm.corpus import SEPARATOR, cut_chunks
from tiny_llm.engine import Engine, Merge, learn_merges
from tiny_llm.errors import ConfigError, InputError
from tiny_llm.tokens import dtype_for

Ids = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]

SEPARATOR_ID = 256
FIRST_MERGE_ID = 257
MIN_VOCAB_SIZE = FIRST_MERGE_ID
MAX_VOCAB_SIZE = 1 << 20


class BPETokenizer:
    """A byte-level BPE tokenizer with the GPT-2 split pattern.

    A new one has no merges and turns each byte into one id.

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
    """

    def __init__(self, merges: Sequence[Merge] = ()) -> None:
        """Make a tokenizer of known merges.

        Args:
            merges: Pairs of token bytes in order of merge rank.

        Raises:
            ConfigError: A merge joins a token that does not exist yet, or makes one
                that exists already.
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
                    f"merge {rank:,} ({left!r}, {right!r}) does not join two known "
                    "tokens into a new one; give the merges in order of rank"
                )
            known.add(left + right)
        self.merges = merges
        self.merge_counts: npt.NDArray[np.int64] | None = None
        self._file_bytes = _to_json(merges)
        self._engine = Engine(self._file_bytes)

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
        """Learn merges from a sample, in place of those there were.

        Sets `merges`, and `merge_counts`: how often each merge joined a pair in
        the sample, int64, shape (number of merges,). Merges that joined nothing
        are left out, so `vocab_size` may end up smaller than asked.

        Args:
            text: The sample. Separators end documents and take no part in merges.
            vocab_size: Bytes, separator and merges together, 257 to 2**20.

        Raises:
            ConfigError: `vocab_size` is not an integer in that range.
        """
        check_vocab_size(vocab_size)
        sample = _to_bytes(text)
        self._set_merges(learn_merges(sample, vocab_size - FIRST_MERGE_ID))
        counts = _count_merges(self.merges, self.encode(sample))
        num_used = int(np.argmin(counts > 0)) if (counts == 0).any() else len(counts)
        if num_used < len(self.merges):
            self._set_merges(self.merges[:num_used])
        self.merge_counts = counts[:num_used]

    def encode(self, text: str | bytes) -> Ids:
        """Turn text into ids; the separator's text becomes `separator_id`.

        Args:
            text: Any text; encode a file in pieces with `tiny_llm.encoding`.

        Returns:
            Shape (number of tokens,), `dtype`.
        """
        return self.encode_counting_invalid(text)[0]

    def encode_counting_invalid(self, text: str | bytes) -> tuple[Ids, int]:
        """Like `encode`, and count the bytes that are not valid UTF-8."""
        # In small pieces gigatoken needs less than half the memory beside the ids.
        ids, num_invalid_bytes = [np.empty(0, self.dtype)], 0
        for piece in cut_chunks(io.BytesIO(_to_bytes(text))):
            piece_ids, num_invalid = self._engine.encode(piece)
            ids.append(piece_ids.astype(self.dtype))
            num_invalid_bytes += num_invalid
        return np.concatenate(ids), num_invalid_bytes

    def decode_bytes(self, ids: Sequence[int] | npt.NDArray[Any]) -> bytes:
        """The bytes that ids stand for; the inverse of `encode`.

        Args:
            ids: Shape (N,), any integer dtype, or a list.

        Raises:
            InputError: An id is outside [0, vocab_size).
        """
        array = np.asarray(ids)
        if array.size == 0:
            return b""
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise InputError(
                f"ids have shape {array.shape} and dtype {array.dtype}; decode takes "
                "one row of integers"
            )
        if array.min() < 0 or array.max() >= self.vocab_size:
            wrong = array.min() if array.min() < 0 else array.max()
            raise InputError(
                f"id {wrong} is outside this tokenizer's vocab of {self.vocab_size:,}; "
                "decode with the tokenizer that made the ids"
            )
        return self._engine.decode(np.ascontiguousarray(array, dtype=np.uint32))

    def decode(self, ids: Sequence[int] | npt.NDArray[Any]) -> str:
        """The text that ids stand for; invalid UTF-8 becomes U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that one id stands for.

        Raises:
            InputError: It is outside [0, vocab_size).
        """
        return self.decode_bytes([token_id])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a Hugging Face tokenizer.json."""
        with atomic_write(path) as file:
            file.write(self._file_bytes)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> BPETokenizer:
        """Read a tokenizer.json that `save` wrote.

        Raises:
            InputError: The file is missing, or is not such a file: another model,
                split pattern, or order of ids.
        """
        source = Path(path)
        if not source.is_file():
            raise InputError(
                f"{path}: no such file; `dvc repro bpe` or BPETokenizer.save makes it"
            )
        try:
            found = json.loads(source.read_bytes())
            merges = [
                (_to_token_bytes(left), _to_token_bytes(right))
                for left, right in found["model"]["merges"]
            ]
            tokenizer = cls(merges)
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{path} is not a byte-level BPE tokenizer.json ({error!r}); make one "
                "with `dvc repro bpe` or BPETokenizer.save"
            ) from error
        for part, expected in json.loads(tokenizer._file_bytes).items():
            if found.get(part) != expected:
                raise InputError(
                    f"{path}: its {part} differs from what BPETokenizer.save writes, "
                    "so its ids would differ too; load it with the library that made it"
                )
        return tokenizer


def check_vocab_size(vocab_size: object) -> None:
    """Refuse a vocab_size that is not an integer from 257 to 2**20."""
    check_int("vocab_size", vocab_size, MIN_VOCAB_SIZE, MAX_VOCAB_SIZE)


def _to_bytes(text: str | bytes) -> bytes:
    if not isinstance(text, str | bytes):
        raise InputError(f"text is of type {type(text).__name__}; give str or bytes")
    return text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text


def _count_merges(merges: list[Merge], ids: Ids) -> npt.NDArray[np.int64]:
    """How often each merge was applied while `ids` were made.

    Every token but a byte was made by its one merge, out of two tokens made by
    theirs. So the count of a merge is the count of its token among the ids, and
    of the merges that used it up, which all have a later rank.

    >>> ids = BPETokenizer([(b"l", b"o"), (b"lo", b"w")]).encode("low low lol")
    >>> _count_merges([(b"l", b"o"), (b"lo", b"w")], ids)
    array([3, 2])
    """
    id_of = {bytes([byte]): byte for byte in range(256)}
    id_of.update(
        (left + right, token_id)
        for token_id, (left, right) in enumerate(merges, FIRST_MERGE_ID)
    )
    counts = np.bincount(ids, minlength=FIRST_MERGE_ID + len(merges)).tolist()
    for token_id in range(len(counts) - 1, FIRST_MERGE_ID - 1, -1):
        left, right = merges[token_id - FIRST_MERGE_ID]
        counts[id_of[left]] += counts[token_id]
        counts[id_of[right]] += counts[token_id]
    return np.array(counts[FIRST_MERGE_ID:], dtype=np.int64)


# tokenizer.json spells bytes as visible characters, as GPT-2 did: a byte that is a
# visible Latin-1 character stands for itself, the others follow from U+0100 on.
_VISIBLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_HIDDEN = sorted(set(range(256)) - set(_VISIBLE))
_CHAR_OF = {byte: chr(byte) for byte in _VISIBLE} | {
    byte: chr(0x100 + place) for place, byte in enumerate(_HIDDEN)
}
_BYTE_OF = {char: byte for byte, char in _CHAR_OF.items()}


def _to_chars(token_bytes: bytes) -> str:
    return "".join(map(_CHAR_OF.__getitem__, token_bytes))


def _to_token_bytes(chars: str) -> bytes:
    return bytes(map(_BYTE_OF.__getitem__, chars))


def _to_json(merges: list[Merge]) -> bytes:
    """The bytes of a tokenizer.json: a function of the merges alone."""
    vocab = {_CHAR_OF[byte]: byte for byte in range(256)}
    vocab[SEPARATOR.decode()] = SEPARATOR_ID
    for token_id, (left, right) in enumerate(merges, FIRST_MERGE_ID):
        vocab[_to_chars(left + right)] = token_id
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }
    value = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": SEPARATOR_ID,
                "content": SEPARATOR.decode(),
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
        ],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": [[_to_chars(left), _to_chars(right)] for left, right in merges],
        },
    }
    return json.dumps(value, ensure_ascii=False, indent=1).encode() + b"\n"
