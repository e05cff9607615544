"""Windows: which start positions a batch takes. Integers only, no token is read.

A window is seq_len + 1 consecutive ids, so N ids have N - seq_len windows.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch


def check_at_least_one(**arguments: object) -> None:
    """Refuse an argument that is not a positive integer."""
    for name, value in arguments.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise ValueError(f"{name} is {value!r}; give an integer of at least 1")
        if value < 1:
            raise ValueError(f"{name} is {value:,}; give at least 1")


def count_windows(num_tokens: int, seq_len: int) -> int:
    """How many start positions there are.

    Raises:
        ValueError: There is not even one window.

    >>> count_windows(num_tokens=10, seq_len=4)
    6
    """
    check_at_least_one(seq_len=seq_len)
    if num_tokens <= seq_len:
        raise ValueError(
            f"the tokens hold {num_tokens:,} ids, too few for one window of "
            f"seq_len + 1 = {seq_len + 1:,}; lower seq_len or encode more text"
        )
    return num_tokens - seq_len


def random_starts(
    num_tokens: int, batch_size: int, seq_len: int
) -> npt.NDArray[np.int64]:
    """Draw start positions at random, with replacement, each window equally likely.

    Follows torch's global random state, so `torch.manual_seed` repeats it.

    Returns:
        Shape (batch_size,), each in [0, num_tokens - seq_len).

    Raises:
        ValueError: An argument is below 1, or there is no window.
    """
    check_at_least_one(batch_size=batch_size)
    starts = torch.randint(count_windows(num_tokens, seq_len), (batch_size,))
    return starts.numpy()
