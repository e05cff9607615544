"""Batches of token ids for a training loop.

    from tiny_llm.batching import batches, get_batch, load_token_array

    train = load_token_array("build/tokens/train.bin")
    x, y = get_batch(train, batch_size=32, seq_len=256)

In the order you would learn them: `windows` draws start positions, `arrays` opens
token files, `cutting` copies windows out of them, `documents` knows where stories
begin, `mixture` draws from several sources, and `batches` makes tensors.
"""

from tiny_llm.batching.arrays import fingerprint, load_token_array
from tiny_llm.batching.batches import BatchDataset, batches, get_batch
from tiny_llm.batching.documents import document_ids
from tiny_llm.batching.mixture import Mixture
from tiny_llm.batching.windows import window_starts

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
