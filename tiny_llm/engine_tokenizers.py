"""Hugging Face tokenizers; `engine` calls it with valid UTF-8 only.

Insurance against a young library, and an oracle that users can run. It takes 4 to 30
times as long to learn and to encode. No stage depends on its version: stages use it
only where TINY_LLM_ENGINE says so, and it must give what gigatoken gives
(tests/test_engines.py, and the golden digests).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

from tiny_llm.corpus import SEPARATOR, chunks_of
from tiny_llm.tokenizer_json import FIRST_MERGE_ID, Merge, to_token_bytes


def learn_merges(text: bytes | Path, num_merges: int) -> list[Merge]:
    """Learn from documents with separators between them, a chunk at a time."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    trainer = BpeTrainer(
        vocab_size=FIRST_MERGE_ID + num_merges,
        special_tokens=[SEPARATOR.decode()],
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    documents = (
        document.decode()
        for chunk in chunks_of(text)
        for document in chunk.split(SEPARATOR)
    )
    tokenizer.train_from_iterator(documents, trainer)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return [(to_token_bytes(left), to_token_bytes(right)) for left, right in merges]


def split(text: bytes) -> Iterator[bytes]:
    """Split text without separators into pretokens."""
    byte_level = ByteLevel(add_prefix_space=False)
    for chars, _ in byte_level.pre_tokenize_str(text.decode()):
        yield to_token_bytes(chars)


class _Worker:
    def __init__(self, file_bytes: bytes) -> None:
        self._tokenizer = Tokenizer.from_str(file_bytes.decode())
        # Tokenizer.decode returns str, in which U+FFFD replaces invalid UTF-8.
        vocab = self._tokenizer.get_vocab(with_added_tokens=True)
        self._token_bytes = [b""] * len(vocab)
        for chars, token_id in vocab.items():
            self._token_bytes[token_id] = to_token_bytes(chars)

    def encode(self, data: bytes) -> npt.NDArray[np.uint32]:
        # Faster than `encode`, because it keeps no offsets into the text.
        [encoding] = self._tokenizer.encode_batch_fast([data.decode()])
        return np.array(encoding.ids, dtype=np.uint32)

    def decode(self, ids: npt.NDArray[np.uint32]) -> bytes:
        return b"".join(map(self._token_bytes.__getitem__, ids.tolist()))

    def is_small(self) -> bool:
        return True  # Its cache is bounded.


def new_worker(file_bytes: bytes) -> _Worker:
    """Make a worker from the content of a tokenizer.json."""
    return _Worker(file_bytes)
