import threading

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tiny_llm import batching
from tiny_llm.batching import get_batch, load_token_array
from tiny_llm.batching.arrays import cut_windows
from tiny_llm.tokens import write_tokens


def save(path, ids, vocab_size=300):
    dtype = np.uint16 if vocab_size <= 1 << 16 else np.uint32
    with write_tokens(
        path, vocab_size=vocab_size, separator_id=256, tokenizer_sha256=""
    ) as writer:
        writer.append(np.array(ids, dtype=dtype))
    return path


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


def test_y_is_x_one_later():
    ids = np.random.default_rng(0).integers(0, 60_000, 1000).astype(np.uint16)
    x, y = get_batch(ids, batch_size=50, seq_len=7)
    for tensor in (x, y):
        assert tensor.shape == (50, 7)
        assert tensor.dtype == torch.int64
        assert tensor.is_contiguous()
        assert tensor.view(-1).shape == (350,)
    assert torch.equal(x[:, 1:], y[:, :-1])


def test_every_window_can_be_drawn_the_last_one_too():
    ids = np.arange(10, dtype=np.uint16)
    x, y = get_batch(ids, batch_size=2000, seq_len=4)
    assert x[:, 0].unique().tolist() == [0, 1, 2, 3, 4, 5]
    assert y.max() == 9
    counts = x[:, 0].bincount()
    assert counts.min() > 2000 / 6 / 1.5


def test_a_file_of_one_window_works(tmp_path):
    path = save(tmp_path / "x.bin", [5, 6, 7])
    x, y = get_batch(load_token_array(path), batch_size=3, seq_len=2)
    assert x.tolist() == [[5, 6]] * 3
    assert y.tolist() == [[6, 7]] * 3


def test_manual_seed_repeats_the_batch():
    ids = np.arange(1000, dtype=np.uint16)
    torch.manual_seed(3)
    first = get_batch(ids, 8, 8)
    torch.manual_seed(3)
    second = get_batch(ids, 8, 8)
    assert torch.equal(first[0], second[0])
    assert not torch.equal(first[0], get_batch(ids, 8, 8)[0])


def test_batches_are_fresh_and_writable(tmp_path):
    path = save(tmp_path / "x.bin", [5, 6, 7])
    ids = load_token_array(path)
    x, y = get_batch(ids, 1, 2)
    x.zero_()
    assert y.tolist() == [[6, 7]]
    assert get_batch(ids, 1, 2)[0].tolist() == [[5, 6]]
    assert ids.tolist() == [5, 6, 7]


def test_ids_above_65535_arrive_whole(tmp_path):
    path = save(tmp_path / "x.bin", [70_000, 1, 79_999], vocab_size=80_000)
    x, y = get_batch(path, 1, 2)
    assert x.tolist() == [[70_000, 1]]
    assert y.tolist() == [[1, 79_999]]


def test_data_may_be_a_path_or_the_name_of_a_split(tmp_path, monkeypatch):
    save(tmp_path / "train.bin", [5, 6, 7])
    monkeypatch.setattr(batching.arrays, "_TOKENS_DIR", tmp_path)
    assert get_batch("train", 1, 2)[0].tolist() == [[5, 6]]
    assert get_batch(str(tmp_path / "train.bin"), 1, 2)[0].tolist() == [[5, 6]]
    assert get_batch(tmp_path / "train.bin", 1, 2)[0].tolist() == [[5, 6]]
    with pytest.raises(ValueError, match=r"valid\.bin: no such token file"):
        get_batch("valid", 1, 2)


def test_threads_draw_in_parallel():
    ids = np.arange(60_000, dtype=np.uint16)
    wrong = []

    def draw():
        for _ in range(200):
            x, y = get_batch(ids, 4, 16)
            if not torch.equal(x + 1, y):
                wrong.append(x)

    threads = [threading.Thread(target=draw) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize(
    ("batch_size", "seq_len", "message"),
    [
        (1, 10, r"holds? 10 ids, too few for one window of seq_len \+ 1 = 11"),
        (1, 10**12, "too few"),
        (0, 4, "batch_size is 0; give at least 1"),
        (-1, 4, "batch_size is -1"),
        (1, 0, "seq_len is 0; give at least 1"),
        (1, 2.0, r"seq_len is 2\.0; give an integer"),
        (True, 2, "batch_size is True; give an integer"),
        ("3", 2, "batch_size is '3'; give an integer"),
    ],
)
def test_impossible_sizes_are_refused(batch_size, seq_len, message):
    with pytest.raises(ValueError, match=message):
        get_batch(np.arange(10, dtype=np.uint16), batch_size, seq_len)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.zeros((4, 4), np.uint16), r"shape \(4, 4\)"),
        (np.zeros(9, np.float32), "dtype float32"),
        (np.zeros(9, np.int64), "dtype int64"),
        (np.zeros(18, np.uint16)[::2], "contiguous"),
        ([1, 2, 3], "give a token array"),
    ],
)
def test_arrays_that_are_no_token_arrays_are_refused(data, message):
    with pytest.raises(ValueError, match=message):
        get_batch(data, 1, 2)
