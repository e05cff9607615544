"""Kinds of data: files, arrays, tensors; damaged, joined, pickled."""

import copy
import hashlib
import mmap
import multiprocessing
import os
import pickle
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import save_tokens
from tiny_llm.batching import (
    Mixture,
    batches,
    fingerprint,
    get_batch,
    load_token_array,
)
from tiny_llm.batching.loading import JoinedArrays, as_source
from tiny_llm.batching.sources import DeviceArray, IdArray
from tiny_llm.tokens import read_manifest


def join(*arrays):
    return JoinedArrays([as_source(array) for array in arrays])


def save_parts(folder, lengths):
    """Token files that together hold 0, 1, 2 and so on; returns their paths."""
    ids = np.arange(sum(lengths))
    parts = np.split(ids, np.cumsum(lengths)[:-1])
    return [
        save_tokens(folder / f"{number:04}.bin", part, vocab_size=len(ids) + 257)
        for number, part in enumerate(parts)
    ]


def test_a_token_file_is_an_array_of_its_ids(tmp_path):
    ids = load_token_array(save_tokens(tmp_path / "x.bin", [5, 6, 7]))
    assert (ids.dtype, ids.shape, len(ids)) == (np.uint16, (3,), 3)
    assert np.asarray(ids).tolist() == list(ids) == [5, 6, 7]
    assert not ids[:].flags.writeable
    assert ids[1:3].astype(np.int64).tolist() == list(ids[1:]) == [6, 7]
    assert (ids[-1], ids[0], ids[::-2].tolist()) == (7, 5, [7, 5])
    with pytest.raises(IndexError):
        ids[3]
    assert ids.manifest == read_manifest(tmp_path / "x.bin")


DTYPES = ["i1", "i2", "<i4", ">i4", "i8", "u1", "<u2", ">u2", "u4", "u8"]


@pytest.mark.parametrize("step", [1, 2, -1])
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_one_dimensional_integer_array_gives_batches(dtype, step):
    ids = np.arange(100).astype(dtype)[::step]
    x, y = get_batch(ids, 20, 7, seed=1)
    assert x.dtype == y.dtype == torch.int64
    expected, _ = get_batch(
        np.arange(100, dtype=np.uint16)[::step].copy(), 20, 7, seed=1
    )
    assert torch.equal(x, expected)
    assert torch.equal(y, expected + step)
    for tensor in get_batch(ids, 4, 7, device="meta"):
        assert (tensor.shape, tensor.dtype) == ((4, 7), torch.int64)


@pytest.mark.parametrize(
    "dtype",
    [
        *(torch.int8, torch.int16, torch.int32, torch.int64),
        *(torch.uint8, torch.uint16, torch.uint32),
    ],
)
def test_any_one_dimensional_integer_tensor_gives_batches(dtype):
    ids = torch.arange(100).to(dtype)
    x, y = get_batch(ids, 20, 7, seed=1)
    expected, _ = get_batch(np.arange(100), 20, 7, seed=1)
    assert torch.equal(x, expected)
    assert torch.equal(y, expected + 1)
    x.zero_()  # Neither y nor the ids share its memory.
    assert torch.equal(y, expected + 1)
    assert ids.tolist() == list(range(100))


def test_negative_and_large_ids_arrive_whole():
    for ids in (
        np.array([-100, 5, -1], np.int64),
        np.array([5, 1 << 62, 3], np.uint64),
        np.array([5, (1 << 32) - 1, 200], np.uint32),
    ):
        for data in (ids, torch.from_numpy(ids)) if ids.dtype != "u8" else (ids,):
            x, y = get_batch(data, 1, 2)
            assert [*x[0].tolist(), y[0, 1].item()] == ids.tolist()


def test_ids_that_do_not_fit_int64_are_refused():
    for dtype in ("<u8", ">u8"):
        ids = np.array([5, 1 << 63, 3], dtype)
        for data in (ids, join(ids, ids)):
            with pytest.raises(ValueError, match="9,223,372,036,854,775,808; give ids"):
                get_batch(data, 1, 2, seed=0)
    with pytest.raises(ValueError, match="other than uint64"):
        get_batch(torch.zeros(9, dtype=torch.uint64), 1, 2)


class Squares(IdArray):
    """A kind of data that the package does not know."""

    dtype = np.dtype(np.int64)

    def __len__(self):
        return 100

    def read(self, begin, end):
        return np.arange(begin, end) ** 2


def test_a_new_kind_of_data_is_one_class():
    x, y = get_batch(Squares(), 20, 7, seed=1)
    expected = get_batch(np.arange(100) ** 2, 20, 7, seed=1)
    assert torch.equal(x, expected[0])
    assert torch.equal(y, expected[1])
    mixture = Mixture([(Squares(), 1), (np.arange(50), 1)])
    assert next(batches(mixture, 4, 8, seed=1))[1][0].shape == (4, 8)
    assert fingerprint(Squares()) == fingerprint(np.arange(100) ** 2)


def test_reprs_name_what_they_are(tmp_path):
    path = save_tokens(tmp_path / "x.bin", [5, 6, 7])
    file = load_token_array(path)
    assert repr(file) == f"TokenFile({str(path)!r}, 3 ids, uint16)"
    assert repr(load_token_array([path, path])) == "JoinedArrays(6 ids, uint16)"
    assert repr(load_token_array(path, device="cpu")) == "DeviceArray(3 ids, uint16)"
    mixture = Mixture([(file, 3), (file, 1)])
    assert repr(mixture) == f"Mixture(75.0% of {file!r}, 25.0% of {file!r})"


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(1, 12), st.data()
)
def test_joined_windows_equal_those_of_one_array(lengths, seq_len, data):
    ids = np.arange(sum(lengths), dtype=np.uint16)
    seq_len = min(seq_len, max(1, len(ids) - 1))
    joined = join(*np.split(ids, np.cumsum(lengths)[:-1]))
    assert len(joined) == len(ids)
    places = data.draw(st.slices(len(ids)))
    assert joined[places].tolist() == ids[places].tolist()
    assert [joined[-1], joined[0]] == [ids[-1], ids[0]]
    if len(ids) > seq_len:
        whole = get_batch(ids, 20, seq_len, seed=1)
        parts = get_batch(joined, 20, seq_len, seed=1)
        assert torch.equal(whole[0], parts[0])
        assert torch.equal(whole[1], parts[1])


def test_hundreds_of_files_are_read_as_one(tmp_path):
    paths = save_parts(tmp_path, [7] * 300)
    joined = load_token_array(paths)
    assert len(joined) == 2100
    x, y = get_batch(joined, batch_size=64, seq_len=50, seed=3)
    assert torch.equal(x + 1, y)
    assert torch.equal(x, x[:, :1] + torch.arange(50))
    with pytest.raises(ValueError, match="there is no token array; give at least one"):
        load_token_array([])


def test_files_of_two_tokenizers_are_not_joined(tmp_path):
    a = save_tokens(tmp_path / "a.bin", [1, 2, 3], tokenizer_sha256="a" * 64)
    b = save_tokens(tmp_path / "b.bin", [1, 2, 3], tokenizer_sha256="b" * 64)
    with pytest.raises(ValueError, match=r"b\.bin was made by the tokenizer"):
        load_token_array([a, b])


def test_arrays_of_two_widths_are_not_joined():
    parts = [np.zeros(3, np.uint16), np.zeros(3, np.uint32)]
    with pytest.raises(
        ValueError, match="token array 1 holds uint32 ids, but the first holds"
    ):
        join(*parts)


@pytest.mark.parametrize("vocab_size", [300, 80_000])
def test_a_tensor_on_a_device_gives_the_same_batches(tmp_path, vocab_size):
    ids = np.random.default_rng(0).integers(0, vocab_size, 5000)
    path = save_tokens(tmp_path / "x.bin", ids, vocab_size)
    data, tensor = load_token_array(path), load_token_array(path, device="cpu")
    assert isinstance(tensor, DeviceArray)
    assert np.asarray(tensor).tolist() == ids.tolist()
    for replace in (True, False):
        arguments = {"seed": 5, "step": 3, "replace": replace}
        expected = get_batch(data, 9, 30, **arguments)
        for source in (tensor, load_token_array([path, path], device="cpu")[:5000]):
            batch = get_batch(source, 9, 30, **arguments)
            for ours, theirs in zip(expected, batch, strict=True):
                assert torch.equal(ours, theirs)
                assert theirs.is_contiguous()
    assert fingerprint(tensor) == fingerprint(data)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(9),
        torch.zeros((3, 3), dtype=torch.uint16),
        torch.zeros(9, dtype=torch.bool),
    ],
)
def test_tensors_that_are_not_ids_are_refused(tensor):
    with pytest.raises(ValueError, match="give"):
        get_batch(tensor, 1, 2)


def test_random_access_changes_no_batch(tmp_path):
    paths = save_parts(tmp_path, [5000, 3000])
    for path in (paths[0], paths):
        normal = load_token_array(path)
        random = load_token_array(path, access="random")
        for arguments in ({"seed": 1}, {"seed": 1, "step": 9, "replace": False}):
            x, _ = get_batch(normal, 6, 700, **arguments)
            assert torch.equal(x, get_batch(random, 6, 700, **arguments)[0])
        assert get_batch(random, 6, 700)[0].shape == (6, 700)
    with pytest.raises(ValueError, match="access is 'fast'; give 'normal' or 'random'"):
        load_token_array(paths, access="fast")


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="needs Linux")
def test_random_access_reads_no_more_than_the_windows(tmp_path):
    path = tmp_path / "cold.bin"
    num_ids = 1 << 24
    save_tokens(path, np.zeros(num_ids, dtype=np.uint16))
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        before = num_resident_pages(file, num_ids * 2)
        if before:
            pytest.skip("this filesystem keeps pages that it was told to drop")
        ids = load_token_array(path, access="random")
        get_batch(ids, 4, 1000, seed=1)
        # Two batches of 4 windows, each of 1 or 2 pages; the second, read ahead,
        # takes a moment. Some filesystems read more at once. The file has 8,192 pages.
        deadline = time.monotonic() + 10
        while num_resident_pages(file, num_ids * 2) < 8:
            assert time.monotonic() < deadline
        assert num_resident_pages(file, num_ids * 2) <= 512


def num_resident_pages(file, num_bytes) -> int:
    """How many pages of a file are in the page cache, by mincore(2)."""
    ctypes = pytest.importorskip("ctypes")
    num_pages = num_bytes // mmap.PAGESIZE
    found = (ctypes.c_ubyte * num_pages)()
    with mmap.mmap(file.fileno(), num_bytes, prot=mmap.PROT_READ) as mapping:
        address = np.frombuffer(mapping, np.uint8).ctypes.data
        libc = ctypes.CDLL(None, use_errno=True)
        size = ctypes.c_size_t(num_bytes)
        assert libc.mincore(ctypes.c_void_p(address), size, found) == 0
    return sum(page & 1 for page in found)


def test_a_file_cut_short_after_opening_is_refused(tmp_path):
    """Touching a page that is gone would kill the process (SIGBUS)."""
    path = save_tokens(tmp_path / "x.bin", np.zeros(100_000, dtype=np.uint16))
    message = r"x\.bin had 200,000 bytes when opened and has 100 now"
    whole, part = load_token_array(path), load_token_array(path)[10:]
    joined = load_token_array([path, path])
    plain = np.memmap(path, dtype=np.uint16, mode="r")
    behind = np.memmap(path, dtype=np.uint16, mode="r", offset=150_000)
    os.truncate(path, 100)
    for data in (whole, part, joined, plain, behind):
        with pytest.raises(ValueError, match=message):
            get_batch(data, 4, 8)
    for read in (lambda: joined[:10], lambda: fingerprint(plain), lambda: whole[:10]):
        with pytest.raises(ValueError, match=message):
            read()


def test_an_id_that_the_manifest_does_not_allow_is_refused(tmp_path):
    path = save_tokens(tmp_path / "x.bin", [5, 6, 7, 299])
    raw = bytearray(path.read_bytes())
    raw[2:4] = b"\x2c\x01"  # 300
    path.chmod(0o644)
    path.write_bytes(raw)
    message = r"x\.bin holds the id 300, but its manifest says vocab_size 300"
    with pytest.raises(ValueError, match=message):
        get_batch(path, 1, 3)
    with pytest.raises(ValueError, match=message):
        load_token_array(path, device="cpu")
    with pytest.raises(ValueError, match="holds the id 300"):
        get_batch(load_token_array([path, path]), 8, 3)


@pytest.mark.parametrize("place", [1 << 31, 1 << 32, (1 << 32) + 12_345])
def test_ids_beyond_four_billion_are_found(tmp_path, place):
    """Byte offsets beyond 2**32 and 2**33, in a file that is mostly a hole."""
    path = tmp_path / "sparse.bin"
    with open(path, "wb") as file:
        file.seek(2 * place)
        np.arange(1, 10, dtype=np.uint16).tofile(file)
    ids = load_token_array(path)
    assert len(ids) == place + 9
    windows = ids.read_windows(np.array([place - 2, place + 4]), 4)
    assert windows.tolist() == [[0, 0, 1, 2, 3], [5, 6, 7, 8, 9]]
    joined = join(ids, ids[-20:])
    assert joined[len(ids) - 2 : len(ids) + 2].tolist() == [8, 9, 0, 0]
    x, y = get_batch(ids, 3, 4, seed=0)
    assert x.shape == y.shape == (3, 4)


def first_row(data):
    return get_batch(data, 2, 3, seed=1)[0].tolist()


def test_data_is_pickled_as_its_path(tmp_path):
    paths = save_parts(tmp_path, [20_000, 20_000])
    one, many = load_token_array(paths[0], access="random"), load_token_array(paths)
    mixture = Mixture([(one, 1), (load_token_array(paths[1]), 2)])
    sources = [one, many, mixture]
    for data in sources:
        pickled = pickle.dumps(data)
        assert len(pickled) < 2500
        again = pickle.loads(pickled)
        assert type(again) is type(data)
        assert again.is_random == data.is_random
        assert first_row(again) == first_row(data)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(first_row, sources) == [first_row(data) for data in sources]
    part = one[5:9]
    assert pickle.loads(pickle.dumps(part)).tolist() == [5, 6, 7, 8]
    assert copy.deepcopy(part).tolist() == [5, 6, 7, 8]


def test_the_fingerprint_is_the_digest_of_the_manifest(tmp_path):
    path = save_tokens(tmp_path / "x.bin", [5, 6, 7])
    ids = load_token_array(path)
    assert fingerprint(ids) == fingerprint(path) == ids.manifest.sha256


def test_the_fingerprint_of_an_array_is_the_digest_of_its_ids():
    ids = np.array([5, 6, 7], "<u2")
    digest = hashlib.sha256(ids.tobytes()).hexdigest()
    assert fingerprint(ids) == fingerprint(ids.astype(">u2")) == digest


def test_other_data_have_other_fingerprints(tmp_path):
    a = load_token_array(save_tokens(tmp_path / "a.bin", [5, 6, 7]))
    b = load_token_array(save_tokens(tmp_path / "b.bin", [5, 6, 8]))
    paths = [tmp_path / "a.bin", tmp_path / "b.bin"]
    for path in (paths, paths[:1], paths[0]):
        on_device = load_token_array(path, device="cpu")
        assert fingerprint(on_device) == fingerprint(load_token_array(path))
        assert fingerprint(on_device[1:]) != fingerprint(on_device)
    different = [
        a,
        b,
        a[1:],
        load_token_array(paths),
        load_token_array(paths[::-1]),
        Mixture([(a, 1), (b, 1)]),
        Mixture([(a, 1), (b, 2)]),
        np.asarray(a).astype(np.uint32),
        np.asarray(a).astype(np.int64),
        np.asarray(a).astype(np.int32),
    ]
    assert len({fingerprint(data) for data in different}) == len(different)
