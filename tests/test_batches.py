"""`get_batch` and `batches`: what a training loop sees."""

import gc
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from itertools import islice

import numpy as np
import pytest
import torch

from tests.conftest import save_tokens
from tiny_llm import batching
from tiny_llm.batching import (
    BatchDataset,
    Mixture,
    batches,
    fingerprint,
    get_batch,
    load_token_array,
)


def test_y_is_x_one_later():
    ids = np.random.default_rng(0).integers(0, 60_000, 1000).astype(np.uint16)
    x, y = get_batch(ids, batch_size=50, seq_len=7)
    for tensor in (x, y):
        assert tensor.shape == (50, 7)
        assert tensor.dtype == torch.int64
        assert tensor.is_contiguous()
        assert tensor.view(-1).shape == (350,)
    assert torch.equal(x[:, 1:], y[:, :-1])


def test_every_window_can_be_drawn_including_the_last():
    ids = np.arange(10, dtype=np.uint16)
    x, y = get_batch(ids, batch_size=2000, seq_len=4)
    assert x[:, 0].unique().tolist() == [0, 1, 2, 3, 4, 5]
    assert y.max() == 9
    counts = x[:, 0].bincount()
    assert counts.min() > 2000 / 6 / 1.5


def test_a_file_of_one_window_works(tmp_path):
    path = save_tokens(tmp_path / "x.bin", [5, 6, 7])
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
    path = save_tokens(tmp_path / "x.bin", [5, 6, 7])
    ids = load_token_array(path)
    x, y = get_batch(ids, 1, 2)
    x.zero_()
    assert y.tolist() == [[6, 7]]
    assert get_batch(ids, 1, 2)[0].tolist() == [[5, 6]]
    assert list(ids) == [5, 6, 7]


def test_ids_above_65535_arrive_whole(tmp_path):
    path = save_tokens(tmp_path / "x.bin", [70_000, 1, 79_999], vocab_size=80_000)
    x, y = get_batch(path, 1, 2)
    assert x.tolist() == [[70_000, 1]]
    assert y.tolist() == [[1, 79_999]]


def test_data_may_be_a_path_or_the_name_of_a_split(tmp_path, monkeypatch):
    save_tokens(tmp_path / "train.bin", [5, 6, 7])
    monkeypatch.setattr("tiny_llm.layout.TOKENS_DIR", tmp_path)
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
        (0, 4, "batch_size is 0; give an integer >= 1"),
        (-1, 4, "batch_size is -1"),
        (1, 0, "seq_len is 0; give an integer >= 1"),
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
        (np.zeros(9, np.bool_), "dtype bool"),
        (np.zeros((), np.uint16), r"shape \(\)"),
        (np.array([None] * 9), "dtype object"),
        ([1, 2, 3], "data is of type list; give what load_token_array returns"),
    ],
)
def test_arrays_that_are_not_ids_are_refused(data, message):
    with pytest.raises(ValueError, match=message):
        get_batch(data, 1, 2)


IDS = np.arange(5000, dtype=np.uint16)


def taken(iterator, count):
    """The steps and the inputs of the next batches."""
    return [(step, x.tolist()) for step, (x, _) in islice(iterator, count)]


def threads():
    return [
        thread
        for thread in threading.enumerate()
        if thread.name.startswith("tiny_llm.batching")
    ]


@pytest.mark.parametrize("prefetch", [0, 1, 2, 7])
@pytest.mark.parametrize("replace", [True, False])
def test_batches_are_those_of_get_batch(prefetch, replace):
    options = {"rank": 1, "world_size": 2, "replace": replace}
    found = batches(IDS, 4, 8, seed=3, start=5, prefetch=prefetch, **options)
    for step, (x, y) in islice(found, 6):
        expected = get_batch(IDS, 4, 8, seed=3, step=step, **options)
        assert torch.equal(x, expected[0])
        assert torch.equal(y, expected[1])
    assert step == 10


def test_resumed_batches_equal_uninterrupted_batches():
    whole = taken(batches(IDS, 4, 8, seed=3), 12)
    assert taken(batches(IDS, 4, 8, seed=3, start=7), 5) == whole[7:]
    # 7 batches of 4 came before; now resume with batches of 2.
    later = taken(batches(IDS, 2, 8, seed=3, start=100, num_samples=28), 2)
    assert [step for step, _ in later] == [100, 101]
    assert later[0][1] + later[1][1] == whole[7][1]


def test_other_data_are_refused_on_resume(tmp_path):
    path = save_tokens(tmp_path / "x.bin", [5, 6, 7])
    saved = fingerprint(path)
    next(batches(path, 1, 2, seed=0, fingerprint=saved))
    save_tokens(path, [5, 6, 8])
    with pytest.raises(
        ValueError, match=f"data has fingerprint .* the run started with {saved}"
    ):
        batches(path, 1, 2, seed=0, fingerprint=saved)


def test_the_thread_ends_with_the_loop():
    for step, _ in batches(IDS, 4, 8, seed=3):
        if step == 3:
            assert len(threads()) == 1
            break
    gc.collect()
    assert threads() == []
    iterator = batches(IDS, 4, 8, seed=3)
    next(iterator)
    iterator.close()
    assert threads() == []


def test_the_interpreter_exits_with_unfinished_loops(tmp_path):
    code = (
        "import numpy, tiny_llm.batching as b\n"
        "left = [b.batches(numpy.zeros(99, 'u2'), 4, 8, seed=3) for _ in range(3)]\n"
        "print(*[next(batches)[0] for batches in left])\n"
    )
    (tmp_path / "module.py").write_text(code)
    for run in ("-c", code), ("-c", "import module; numpy = module.numpy"):
        done = subprocess.run(
            [sys.executable, *run],
            cwd=tmp_path,
            capture_output=True,
            timeout=60,
            check=True,
            text=True,
        )
        assert (done.stdout, done.stderr) == ("0 0 0\n", "")


def test_an_error_of_the_thread_is_raised_in_the_loop(tmp_path):
    path = save_tokens(tmp_path / "x.bin", np.zeros(50_000, np.uint16))
    iterator = batches(path, 1, 8, seed=0)
    next(iterator)
    os.truncate(path, 100)
    with pytest.raises(ValueError, match="100,000 bytes when opened and has 100 now"):
        list(iterator)
    assert threads() == []


class CountedMixture(Mixture):
    """Counts how many batches were drawn from it."""

    num_batches = 0

    def choose_starts(self, *arguments):
        self.num_batches += 1
        return super().choose_starts(*arguments)


def test_prefetch_is_the_number_of_batches_made_ahead():
    data = CountedMixture([(IDS, 1)])
    iterator = batches(data, 4, 8, seed=3, prefetch=3)
    data.num_batches = 0
    next(iterator)
    deadline = time.monotonic() + 30
    while data.num_batches < 4:
        assert time.monotonic() < deadline
    time.sleep(0.1)
    assert data.num_batches == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": -1}, "start is -1"),
        ({"start": 1.0}, r"start is 1\.0; give an integer"),
        ({"prefetch": -1}, "prefetch is -1"),
        ({"seed": None}, "seed is None; give an integer"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"rank": 3}, "rank is 3, but world_size is 1"),
        ({"world_size": 2}, "there are 2 processes, .*; give rank and world_size"),
        ({"seq_len": 0}, "seq_len is 0"),
        ({"seq_len": 5000}, "holds 5,000 ids, too few"),
        ({"align": "story"}, "align is 'story'"),
        ({"align": "document"}, "data has no manifest"),
    ],
)
def test_impossible_arguments_are_refused_before_the_loop(options, message):
    arguments = {"batch_size": 4, "seq_len": 8, "seed": 0} | options
    for make in (batches, BatchDataset):
        with pytest.raises(ValueError, match=message):
            make(IDS, **arguments)


def draw_as_one_of_two(rank, path):
    store = torch.distributed.FileStore(str(path), 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    for make in (batches, BatchDataset):
        for options in ({}, {"rank": rank}, {"world_size": 2}):
            with pytest.raises(ValueError, match="give rank and world_size"):
                make(IDS, 4, 8, seed=3, **options)
    given = {"rank": rank, "world_size": 2}
    (_, (x, _)) = next(batches(IDS, 4, 8, seed=3, **given))
    own, _ = get_batch(IDS, 4, 8, seed=3, **given)
    assert torch.equal(x, own)
    torch.distributed.destroy_process_group()


def test_a_missing_rank_or_world_size_is_refused(tmp_path):
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=draw_as_one_of_two, args=(rank, tmp_path / "store"))
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]


def test_dir_shows_public_names_only():
    assert set(dir(batching)) == set(batching.__all__)


@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_forked_process_draws_the_same_batches(tmp_path):
    path = save_tokens(tmp_path / "x.bin", IDS, vocab_size=5000)
    mixture = Mixture([(load_token_array(path), 1), (IDS, 2)])
    expected = get_batch(mixture, 8, 8, seed=1)[0]
    child = os.fork()
    if child == 0:
        same = torch.equal(get_batch(mixture, 8, 8, seed=1)[0], expected)
        os._exit(0 if same else 1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_forked_process_does_not_wait_for_the_thread_of_another():
    iterator = batches(IDS, 4, 8, seed=1)
    next(iterator)
    child = os.fork()
    if child == 0:
        try:
            list(islice(iterator, 5))
        except RuntimeError as error:
            os._exit(0 if "call batches() again" in str(error) else 1)
        os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    assert len(taken(iterator, 3)) == 3


def test_numpy_integers_do_not_overflow():
    expected = get_batch(IDS, 512, 8, seed=1, step=9_000_000)[0]
    start = np.int32(9_000_000)
    for data in (
        batches(IDS, 512, 8, seed=1, start=start),
        enumerate(BatchDataset(IDS, np.int16(512), np.int8(8), seed=1, start=start)),
    ):
        assert torch.equal(next(data)[1][0], expected)


@pytest.mark.parametrize("batch_size", [1, 2, 300])
def test_large_batches_equal_small_ones(batch_size):
    ids = np.random.default_rng(0).integers(0, 1 << 16, 5000).astype(np.uint16)
    for data in (ids, ids.astype(np.uint32) * 65_537):
        x, y = get_batch(data, batch_size, 1024, seed=2)
        rows = [
            get_batch(data, 1, 1024, seed=2, num_samples=row)
            for row in range(batch_size)
        ]
        assert torch.equal(x, torch.cat([row[0] for row in rows]))
        assert torch.equal(y, torch.cat([row[1] for row in rows]))
        for tensor in (x, y):
            assert tensor.is_contiguous()
            assert (tensor.dtype, tensor.max().item()) == (torch.int64, data.max())
        x.zero_()
        assert torch.equal(y, torch.cat([row[1] for row in rows]))
