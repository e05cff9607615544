"""Batches of token ids for a training loop.

    from tiny_llm.batching import batches, get_batch, load_token_array

    train = load_token_array("build/tokens/train.bin")
    x, y = get_batch(train, batch_size=32, seq_len=256)

A batch is made in four steps: `loading` opens the data as a source, `sampling` chooses
start positions, the source (`sources`, `mixture`) reads windows there, and `windows`
turns them into tensors. `permutation` generates the random numbers that `sampling`
uses; `documents` finds where documents start.
"""

from tiny_llm.batching.batches import batches, get_batch
from tiny_llm.batching.dataset import BatchDataset
from tiny_llm.batching.documents import document_ids
from tiny_llm.batching.loading import fingerprint, load_token_array
from tiny_llm.batching.mixture import Mixture
from tiny_llm.batching.sampling import window_starts

__all__ = [
    "BatchDataset",
    "Mixture",
    "batches",
    "document_ids",
    "fingerprint",
    "get_batch",
    "load_token_array",
    "window_starts",
]


def __dir__() -> list[str]:
    return __all__
