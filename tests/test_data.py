"""The surface for readers of tutorials; what runs DVC is in test_pipeline.py."""

import pytest

from tiny_llm import data


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
    small = data.train_tokenizer(tmp_path / "train.txt", sample_mb=len(text) / 2**20)
    assert not any(b"z" in left + right for left, right in small.merges)
