"""The tokenizer.json format of Hugging Face tokenizers: write and read merges.

Ids 0..255 are the bytes, 256 is the separator, and merges follow from 257 in order of
rank.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tiny_llm.atomic import to_json
from tiny_llm.corpus import SEPARATOR
from tiny_llm.errors import InputError

Merge = tuple[bytes, bytes]

SEPARATOR_ID = 256
FIRST_MERGE_ID = 257

# tokenizer.json spells bytes as visible characters, as GPT-2 did: a byte that is a
# visible Latin-1 character stands for itself, the others start at U+0100.
_VISIBLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_HIDDEN = sorted(set(range(256)) - set(_VISIBLE))
_CHAR_OF = {byte: chr(byte) for byte in _VISIBLE} | {
    byte: chr(0x100 + place) for place, byte in enumerate(_HIDDEN)
}
_BYTE_OF = {char: byte for byte, char in _CHAR_OF.items()}

_BYTE_LEVEL = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": True,
}
# transformers' save_pretrained adds this. It has no special tokens, so it adds no ids.
_EMPTY_TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [{"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [
        {"Sequence": {"id": "A", "type_id": 0}},
        {"Sequence": {"id": "B", "type_id": 1}},
    ],
    "special_tokens": {},
}

# The content of tokenizer_config.json, which transformers reads beside tokenizer.json.
# Without the first setting, versions before 5 drop spaces before punctuation.
TOKENIZER_CONFIG = to_json(
    {
        "clean_up_tokenization_spaces": False,
        "eos_token": SEPARATOR.decode(),
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
)


def format_merges(merges: Sequence[Merge]) -> bytes:
    """Return the content of a tokenizer.json, which depends on the merges alone."""
    value = _to_value(merges)
    return json.dumps(value, ensure_ascii=False, indent=1).encode() + b"\n"


def token_lengths(file_bytes: bytes) -> npt.NDArray[np.int64]:
    """Return the number of bytes of each token, shape (vocab_size,).

    Args:
        file_bytes: What `format_merges` returned.
    """
    vocab = json.loads(file_bytes)["model"]["vocab"]
    lengths = np.zeros(len(vocab), np.int64)
    # Each byte is spelled as one character, also in the separator, which is ASCII.
    lengths[[*vocab.values()]] = [*map(len, vocab)]
    return lengths


def parse_merges(path: Path) -> list[Merge]:
    """Read the merges of a tokenizer.json, whoever wrote it.

    BPETokenizer checks their order.

    Raises:
        InputError: Not a byte-level BPE tokenizer.json, or its ids would differ from
            those that BPETokenizer gives for the same merges: another split
            pattern, order of ids, special token, and so on.
    """
    try:
        found = json.loads(path.read_bytes())
        merges = [
            (to_token_bytes(left), to_token_bytes(right))
            for left, right in found["model"]["merges"]
        ]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        reason = str(error)[:200]  # A KeyError quotes the file, at any length.
        raise InputError(
            f"{path} is not a byte-level BPE tokenizer.json ({type(error).__name__}: "
            f"{reason}); make one with `dvc repro bpe` or BPETokenizer.save"
        ) from error
    _undo_harmless(found)
    for part, expected in _to_value(merges).items():
        if found.get(part) != expected:
            raise InputError(
                f"{path}: its {part} differs from what BPETokenizer.save writes, so "
                "its ids would differ too; load it with the library that made it"
            )
    return merges


def _undo_harmless(found: dict[str, Any]) -> None:
    """Undo what transformers' save_pretrained changes without changing any id."""
    if found.get("post_processor") == _EMPTY_TEMPLATE:
        found["post_processor"] = None
    decoder = found.get("decoder")
    if isinstance(decoder, dict) and decoder.get("type") == "ByteLevel":
        found["decoder"] = _BYTE_LEVEL  # Its settings only matter to a pre_tokenizer.
    for affix in ("continuing_subword_prefix", "end_of_word_suffix"):
        if found["model"].get(affix) == "":
            found["model"][affix] = None


def _to_value(merges: Sequence[Merge]) -> dict[str, Any]:
    vocab = {_CHAR_OF[byte]: byte for byte in range(256)}
    vocab[SEPARATOR.decode()] = SEPARATOR_ID
    for token_id, (left, right) in enumerate(merges, FIRST_MERGE_ID):
        vocab[_to_chars(left + right)] = token_id
    return {
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
        "pre_tokenizer": _BYTE_LEVEL,
        "post_processor": None,
        "decoder": _BYTE_LEVEL,
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


def _to_chars(token_bytes: bytes) -> str:
    return token_bytes.decode("latin-1").translate(_CHAR_OF)


def to_token_bytes(chars: str) -> bytes:
    """Return the bytes that the characters of a tokenizer.json spell."""
    return bytes(map(_BYTE_OF.__getitem__, chars))
