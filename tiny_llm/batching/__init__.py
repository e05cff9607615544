"""Batches of token ids for a training loop.

    from tiny_llm.batching import get_batch, load_token_array

    train = load_token_array("build/tokens/train.bin")
    x, y = get_batch(train, batch_size=32, seq_len=256)

In the order you would learn them: `windows` draws start positions, `arrays` opens
token files and cuts windows out of them, `batches` makes tensors.
"""

from tiny_llm.batching.arrays import load_token_array
from tiny_llm.batching.batches import get_batch

__all__ = ["get_batch", "load_token_array"]
