"""Windows: cut from arrays of ids, and converted to tensors that share nothing."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tiny_llm.batching import get_batch
from tiny_llm.batching.windows import cut_windows


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 20), st.booleans())
def test_windows_equal_slices(num_extra, seq_len, batch_size, wide):
    ids = np.arange(seq_len + num_extra).astype(np.uint32 if wide else np.uint16)
    starts = np.random.default_rng(0).integers(0, num_extra, batch_size)
    windows = cut_windows(ids, starts, seq_len)
    assert windows.dtype == ids.dtype
    expected = [ids[start : start + seq_len + 1].tolist() for start in starts]
    assert windows.tolist() == expected


def test_a_window_outside_the_array_is_refused():
    with pytest.raises(IndexError):
        cut_windows(np.arange(6, dtype=np.uint16), np.array([3]), 3)


def test_a_device_gets_ids_in_their_stored_width():
    """The meta device computes shapes and dtypes alone, but takes the same path."""
    ids = np.arange(1000, dtype=np.uint16)
    for tensor in get_batch(ids, 4, 8, device="meta"):
        assert tensor.device.type == "meta"
        assert (tensor.shape, tensor.dtype) == ((4, 8), torch.int64)


def test_a_batch_of_one_row_aliases_nothing():
    ids = np.arange(10, dtype=np.uint16)
    for data in (ids, torch.from_numpy(ids)):
        x, y = get_batch(data, 1, 9, seed=0)
        x.zero_()
        assert y.tolist() == [[1, 2, 3, 4, 5, 6, 7, 8, 9]]
        assert ids.tolist() == list(range(10))
