"""The functions for tutorial readers; tests that run DVC are in test_tutorial.py."""

import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tiny_llm import batching, data


def test_a_tutorial_works_from_a_text_file_to_a_batch(tmp_path, text):
    (tmp_path / "train.txt").write_bytes(text)
    tokenizer = data.train_tokenizer(tmp_path / "train.txt", vocab_size=300)
    data.encode_and_save(tokenizer, tmp_path / "train.txt", tmp_path / "train.bin")
    ids = data.load_token_array(tmp_path / "train.bin")
    x, y = data.get_batch(ids, batch_size=2, seq_len=8)
    assert tokenizer.decode_bytes(ids) == text
    assert (x[:, 1:] == y[:, :-1]).all()
    assert tokenizer.decode_bytes(x[0].numpy()) in text


@pytest.mark.parametrize("sample_mb", [0, -1, float("nan"), "ten"])
def test_an_impossible_sample_is_refused(tmp_path, text, sample_mb):
    (tmp_path / "train.txt").write_bytes(text)
    with pytest.raises(ValueError, match="sample_mb is"):
        data.train_tokenizer(tmp_path / "train.txt", sample_mb=sample_mb)


def test_the_sample_bounds_what_is_learned_from(tmp_path, text):
    (tmp_path / "train.txt").write_bytes(text + b"zzzzzzzz" * 100)
    sample_mb = len(text) / 2**20
    with pytest.warns(UserWarning, match="raise sample_mb"):
        small = data.train_tokenizer(tmp_path / "train.txt", sample_mb=sample_mb)
    assert not any(b"z" in left + right for left, right in small.merges)


def test_encoding_does_not_import_torch(tmp_path, text):
    """Nor requests and tqdm, which only downloads need."""
    (tmp_path / "train.txt").write_bytes(text)
    code = (
        "import sys, tiny_llm.data as data\n"
        "tokenizer = data.train_tokenizer('train.txt', vocab_size=300)\n"
        "data.encode_and_save(tokenizer, 'train.txt', 'train.bin')\n"
        "dir(data)\n"
        "print({'torch', 'requests', 'tqdm', 'yaml'} & set(sys.modules))\n"
        "data.get_batch\n"
        "print('torch' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "set()\nTrue\n"
    assert done.stderr == ""


def test_only_public_names_are_listed():
    assert dir(data) == sorted(data.__all__)
    assert all(hasattr(data, name) for name in data.__all__)
    assert data.get_batch is batching.get_batch
    with pytest.raises(AttributeError, match="no attribute 'get_batches'"):
        data.get_batches  # noqa: B018 - reading it is the test
    names: dict[str, object] = {}
    exec("from tiny_llm.data import *", names)
    assert set(data.__all__) < set(names)


def test_a_vocab_smaller_than_asked_for_gives_a_warning(tmp_path, text):
    (tmp_path / "train.txt").write_bytes(text)
    with pytest.warns(UserWarning, match="vocab_size 5,000 was asked for") as caught:
        tokenizer = data.train_tokenizer(tmp_path / "train.txt", vocab_size=5000)
    assert caught[0].filename == __file__
    assert f"only {tokenizer.vocab_size:,}: use more text" in str(caught[0].message)


def test_more_sample_is_advised_only_where_there_is_more_text(tmp_path, text):
    (tmp_path / "train.txt").write_bytes(text * 100)
    with pytest.warns(UserWarning, match="raise sample_mb"):
        data.train_tokenizer(tmp_path / "train.txt", 5000, sample_mb=0.001)
