"""From what a caller gives to a source: paths, splits, devices, and errors."""

import numpy as np
import pytest
import torch

from tests.conftest import save_tokens
from tiny_llm.batching import batches, get_batch, load_token_array
from tiny_llm.batching.loading import as_source


def test_a_path_is_opened_once_until_the_file_changes(tmp_path, monkeypatch):
    path = save_tokens(tmp_path / "x.bin", [5, 6, 7])
    opened = as_source(path)
    assert as_source(path) is opened
    assert as_source(str(path)) is opened
    save_tokens(path, [1, 2, 3])
    assert get_batch(path, 1, 2)[0].tolist() == [[1, 2]]
    # The same name in another folder is another file.
    (tmp_path / "other").mkdir()
    save_tokens(tmp_path / "other" / "x.bin", [8, 9, 8])
    for folder, expected in ((tmp_path, [1, 2]), (tmp_path / "other", [8, 9])):
        monkeypatch.chdir(folder)
        assert get_batch("x.bin", 1, 2)[0].tolist() == [expected]
    # Only a few stay open.
    for number in range(20):
        get_batch(save_tokens(tmp_path / f"{number}.bin", [5, 6, 7]), 1, 2)
    assert as_source(path) is not opened


def test_what_is_not_a_token_file_is_explained(tmp_path, monkeypatch):
    save_tokens(tmp_path / "b.bin", [5, 6, 7])
    save_tokens(tmp_path / "a.bin", [5, 6, 7])
    monkeypatch.chdir(tmp_path)
    for path, message in (
        ("val", r"'val' is neither a token file nor .* are \('train', 'valid'\)"),
        ("", "'' is neither a token file nor the name of a split"),
        (tmp_path, r"is a folder; give a token file in it, .* \(a\.bin, b\.bin\)"),
        ("*.bin", r"\*\.bin is a pattern; give sorted\(glob\.glob\('\*\.bin'\)\)"),
        ("gone.bin", r"gone\.bin: no such token file"),
    ):
        for read in (load_token_array, lambda path: get_batch(path, 1, 2)):
            with pytest.raises(ValueError, match=message):
                read(path)


def test_a_file_named_like_a_split_is_opened_by_its_path(tmp_path, monkeypatch):
    path = save_tokens(tmp_path / "train.bin", [5, 6, 7])
    path.rename(tmp_path / "train")
    monkeypatch.chdir(tmp_path)
    assert list(load_token_array("./train")) == [5, 6, 7]
    assert get_batch("./train", 1, 2)[0].tolist() == [[5, 6]]


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_that_is_missing_is_named(tmp_path):
    path = save_tokens(tmp_path / "x.bin", [5, 6, 7])
    for device, message in (
        ("cuda", "device is 'cuda', which torch .* cannot use here .*; give 'cpu'"),
        (torch.device("cuda:1"), "device is 'cuda:1', which"),
        ("gpu", "device is 'gpu', which"),
    ):
        for read in (
            lambda device: load_token_array(path, device=device),
            lambda device: get_batch(path, 1, 2, device),
            lambda device: get_batch(torch.arange(3), 1, 2, device),
            lambda device: batches(path, 1, 2, seed=0, device=device),
        ):
            with pytest.raises(ValueError, match=message):
                read(device)


@pytest.mark.parametrize("wide", [True, False])
def test_ids_of_the_other_width_are_refused(tmp_path, wide):
    """A uint16 file with the manifest of a uint32 one, and the reverse."""
    paths = [tmp_path / "narrow.bin", tmp_path / "wide.bin"]
    save_tokens(paths[0], [1, 2, 3, 4], vocab_size=300)
    save_tokens(paths[1], [1, 2, 3, 4], vocab_size=80_000)
    source = paths[wide].with_suffix(".json")
    source.replace(paths[not wide].with_suffix(".json"))
    with pytest.raises(ValueError, match=r"holds \d+ bytes, its manifest says"):
        load_token_array(paths[not wide])


@pytest.mark.parametrize("num_bytes", [0, 1, 7])
def test_a_file_of_no_or_half_an_id_is_refused(tmp_path, num_bytes):
    path = tmp_path / "raw.bin"
    path.write_bytes(b"x" * num_bytes)
    with pytest.raises(ValueError, match="not a positive number of uint16 ids"):
        load_token_array(path)


def test_a_file_of_another_kind_is_refused(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros(9, np.uint16))
    with pytest.raises(ValueError, match=r"x\.npy has no manifest and is not called"):
        load_token_array(tmp_path / "x.npy")
    with pytest.raises(ValueError, match="path is 3; give the path of a token file"):
        load_token_array(3)
    with pytest.raises(ValueError, match="path is 3; give the path of a token file"):
        load_token_array([3])
