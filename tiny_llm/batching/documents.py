"""Documents: number those in a batch."""

from __future__ import annotations

import torch


def document_ids(x: torch.Tensor, separator_id: int) -> torch.Tensor:
    """Number the documents of each row, for a mask that keeps attention inside them.

    Args:
        x: Ids, shape (B, T).
        separator_id: The id that ends a document, as in the manifest.

    Returns:
        int64, shape (B, T): how many documents ended before each id. A separator
        belongs to the document that it ends.

    >>> document_ids(torch.tensor([[5, 256, 7, 8, 256, 256, 9]]), separator_id=256)
    tensor([[0, 0, 1, 1, 1, 2, 3]])
    """
    ends = x == separator_id
    return ends.cumsum(1) - ends.long()
