"""Hugging Face tokenizers is the oracle: a disagreement is a bug."""

import json
import random
import subprocess
import sys

import numpy as np
import pytest
import tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import wide_merges
from tiny_llm.engine import Engine
from tiny_llm.errors import ConfigError, InputError
from tiny_llm.tokenize import BPETokenizer, explain_shortfall

SEP = "<|endoftext|>"


def train(text, vocab_size) -> BPETokenizer:
    tokenizer = BPETokenizer()
    tokenizer.train(text, vocab_size)
    return tokenizer


def train_hf(text: str, vocab_size: int) -> list[tuple[str, str]]:
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
        add_prefix_space=False
    )
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[SEP],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text.split(SEP), trainer)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return [tuple(merge) for merge in merges]


def to_hf(tokenizer: BPETokenizer, tmp_path) -> tokenizers.Tokenizer:
    tokenizer.save(tmp_path / "tokenizer.json")
    return tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))


def merges_in_file(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer.json")
    model = json.loads((tmp_path / "tokenizer.json").read_bytes())["model"]
    return [tuple(merge) for merge in model["merges"]]


def test_merges_of_an_example_worked_by_hand():
    """The sample has the pretokens "low", " low" x2, " lower" x2 and " newest" x2.

    The most frequent pairs are (l,o) 5, (o,w) 5, (" ",l) 4 and (w,e) 4 (twice each in
    lower and newest). (l,o) wins over (o,w), because its left byte is smaller. Now
    (lo,w) occurs 5 times and wins. After that (w,e) is down to 2, because the w of
    lower is part of low, so (" ",low) wins with 4. Every pair left occurs twice.
    """
    tokenizer = train("low low low lower lower newest newest", 260)
    assert tokenizer.merges == [(b"l", b"o"), (b"lo", b"w"), (b" ", b"low")]
    assert tokenizer.merge_counts.tolist() == [5, 5, 4]
    assert tokenizer.encode(" lower").tolist() == [259, *b"er"]


def replay_counts(text: str, merges) -> list[int]:
    """Count merges the slow way: apply each in turn to every pretoken."""
    split = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    words = [
        list(word)
        for part in text.split(SEP)
        for word, _ in split.pre_tokenize_str(part)
    ]
    counts = []
    for left, right in merges:
        count = 0
        for word in words:
            place = 0
            while place < len(word) - 1:
                if word[place] == left and word[place + 1] == right:
                    word[place : place + 2] = [left + right]
                    count += 1
                place += 1
        counts.append(count)
    return counts


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet="ab. \n'sé", min_size=1, max_size=200), st.integers(257, 330))
def test_merges_and_counts_match_the_oracle(tmp_path_factory, text, vocab_size):
    tokenizer = train(text, vocab_size)
    merges = merges_in_file(tokenizer, tmp_path_factory.mktemp("hf"))
    assert merges == train_hf(text, vocab_size)
    assert tokenizer.merge_counts.tolist() == replay_counts(text, merges)


def test_merges_match_hf_tokenizers_on_the_built_in_corpus(tmp_path, corpus_text):
    text = corpus_text[:1_000_000].decode("utf-8", "ignore")
    tokenizer = train(text, 3000)
    assert merges_in_file(tokenizer, tmp_path) == train_hf(text, 3000)
    assert tokenizer.vocab_size == 3000


def test_merges_that_join_nothing_are_dropped():
    tokenizer = train("aaab aaab hello", 4096)
    assert tokenizer.vocab_size == 257 + len(tokenizer.merges) < 4096
    assert (tokenizer.merge_counts > 0).all()
    assert tokenizer.encode(" hello").tolist() == [tokenizer.vocab_size - 1]


def test_the_separator_takes_no_part_in_merges():
    text = f"a{SEP}" * 1000 + "endoftext"
    tokens = [left + right for left, right in train(text, 300).merges]
    assert not any(b"<" in token or b"|" in token for token in tokens)
    assert train(text, 300).merge_counts.max() == 1


def test_ids_of_a_smaller_vocab_are_a_prefix_of_a_larger_one(text):
    small, large = train(text, 280), train(text, 300)
    assert large.merges[: len(small.merges)] == small.merges
    assert small.separator_id == large.separator_id == 256


ADVERSARIAL = [
    "",
    " ",
    "\n\n\n  \n",
    "'s't're've'm'll'd 'S 'LL",
    "a  b   c    d \n e\r\nf\tg",
    "caf\u00e9 cafe\u0301 \u00c5ngstr\u00f6m \u1e9e \ufb01",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea",
    "\u4f60\u597d\u4e16\u754c \uc548\ub155 \u0645\u0631\u062d\u0628\u0627",
    "\u05e9\u05dc\u05d5\u05dd \u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35",
    "\u00a0\u2003\u3000\u2028\u2029\u0085\x1c\x1d\x0b\x0c x",
    "\u0660\u0661\u0662 \u00bd \u2167 \u00b2 123\u0967",
    "\ufeffBOM \x00NUL \x7f\x80",
    f"{SEP}{SEP} x{SEP}y {SEP} <|endoftext| <|endoftext|>>",
    "<|im_start|><|pad|></s>[MASK]",
    "x" * 5000 + " " * 300 + "!" * 300 + "\u00e9" * 300,
]


@pytest.mark.parametrize("sample", ADVERSARIAL, ids=range(len(ADVERSARIAL)))
def test_ids_match_hf_tokenizers_on_adversarial_text(tmp_path, text, sample):
    tokenizer = train(text + "".join(ADVERSARIAL).encode(), 400)
    hf = to_hf(tokenizer, tmp_path)
    assert tokenizer.encode(sample).tolist() == hf.encode(sample).ids


UNICODE = st.text(
    st.one_of(
        st.sampled_from("ab '\ns\t0é\u4f60\U0001f600\u00a0\u0301"),
        st.characters(exclude_categories=["Cs"]),
    ),
    max_size=60,
)


def test_ids_match_hf_tokenizers_on_any_unicode(tmp_path, text):
    tokenizer = train(text, 300)
    hf = to_hf(tokenizer, tmp_path)

    @settings(max_examples=500, deadline=None)
    @given(st.lists(st.one_of(UNICODE, st.just(SEP)), max_size=5).map("".join))
    def check(sample):
        assert tokenizer.encode(sample).tolist() == hf.encode(sample).ids
        assert tokenizer.decode(tokenizer.encode(sample)) == sample

    check()


def test_no_merge_crosses_an_invalid_byte_at_any_offset():
    """Gigatoken's own split of such text depends on its address in memory."""
    tokenizer = BPETokenizer([(b" ", b"a"), (b" ", b" ")])
    for before in range(100):
        ids = tokenizer.encode(b"x" * before + b"\xf8  \xff  a\xf8")
        assert ids.tolist()[before:] == [0xF8, 258, 0xFF, 32, 257, 0xF8]


def test_invalid_bytes_take_no_part_in_merges():
    tokenizer = train(b"ab\xff\xff\xc3" * 100, 300)
    assert tokenizer.merges == [(b"a", b"b")]
    assert tokenizer.merge_counts.tolist() == [100]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(st.binary(max_size=50), st.just(SEP.encode()))).map(b"".join))
def test_decode_inverts_encode_on_any_bytes(data):
    tokenizer = BPETokenizer([(b"\xff", b"\xff"), (b"\xc3", b"\xa9"), (b"a", b"b")])
    assert tokenizer.decode_bytes(tokenizer.encode(data)) == data


def test_decode_replaces_invalid_utf8_and_decode_bytes_keeps_it():
    tokenizer = BPETokenizer()
    ids = tokenizer.encode(b"a\xffb")
    assert tokenizer.decode(ids) == "a\ufffdb"
    assert tokenizer.decode_bytes(ids) == b"a\xffb"


def test_only_the_separator_is_special():
    tokenizer = BPETokenizer()
    assert tokenizer.encode(SEP).tolist() == [256]
    for plain in ("<|im_start|>", "<|endoftext| >", "[MASK]", "</s>"):
        assert tokenizer.encode(plain).tolist() == list(plain.encode())


@pytest.mark.parametrize(
    "vocab_size",
    [
        *(256, 0, -1, (1 << 20) + 1, 300.0, "300", None, True),
        pytest.param(10**5000, id="10**5000"),
    ],
)
def test_an_impossible_vocab_size_is_refused(vocab_size):
    with pytest.raises(ConfigError, match="vocab_size is"):
        train("some text", vocab_size)


def test_the_smallest_vocab_has_no_merges():
    tokenizer = train("some text", 257)
    assert tokenizer.merges == []
    assert tokenizer.merge_counts.tolist() == []
    assert tokenizer.encode("hi").tolist() == list(b"hi")


@pytest.mark.parametrize("merges", [[(b"ab", b"c")], [(b"a", b"b"), (b"a", b"b")]])
def test_merges_in_an_impossible_order_are_refused(merges):
    with pytest.raises(ConfigError, match="does not join two known tokens"):
        BPETokenizer(merges)


@pytest.mark.parametrize("ids", [[-1], [257], [0, 70_000]])
def test_decoding_an_id_outside_the_vocab_is_refused(ids):
    with pytest.raises(InputError, match="outside this tokenizer's vocab"):
        BPETokenizer().decode(ids)


@pytest.mark.parametrize("text", [None, 3, [1, 2], bytearray(b"x")])
def test_anything_but_str_and_bytes_is_refused(text):
    with pytest.raises(InputError, match="give str or bytes"):
        BPETokenizer().encode(text)


def test_ids_above_65535_are_kept_in_uint32():
    merges = wide_merges()
    assert BPETokenizer(merges[: 65_536 - 257]).dtype == np.uint16
    tokenizer = BPETokenizer(merges)
    last = b"".join(merges[-1])
    ids = tokenizer.encode(last)
    assert ids.dtype == np.uint32
    assert ids.tolist() == [65_536 + 256]
    assert tokenizer.decode_bytes(ids) == last


def test_time_is_linear_in_a_document_without_whitespace(monkeypatch):
    """Gigatoken's time for one word grows faster than its size, so it gets parts."""
    sizes = []

    def encode_valid(engine, data):
        sizes.append(len(data))
        return original(engine, data)

    original = Engine._encode_valid
    monkeypatch.setattr(Engine, "_encode_valid", encode_valid)
    tokenizer = BPETokenizer([(b"a", b"a"), (b"aa", b"aa"), (b"a", b"b")])
    letters = "".join(random.Random(0).choices("ab", k=4_000_000)).encode()
    ids = tokenizer.encode(letters)
    assert max(sizes) <= 1 << 16
    assert sum(sizes) < 1.1 * len(letters)
    assert tokenizer.decode_bytes(ids) == letters


def test_equal_tokenizers_have_one_hash_and_a_repr_that_tells_them_apart(text):
    one, same, other = train(text, 280), train(text, 280), train(text, 300)
    assert one == same != other
    assert one != "BPETokenizer"
    assert len({one, same, other}) == 2
    assert repr(one) == f"BPETokenizer(vocab_size=280, sha256={one.sha256[:8]}...)"


def test_the_calls_of_tutorials_work(text):
    tok = train(text, 280)
    assert len(tok) == tok.vocab_size == 280
    assert len(tok.merges) == 280 - 257
    x = torch.from_numpy(tok.encode("The cat sat on the mat.").astype(np.int64))[None]
    assert tok.decode(x[0].tolist()) == "The cat sat on the mat."


@pytest.mark.parametrize(
    ("more_text", "advice"),
    [(True, "raise sample_mb"), (False, "use more text or a smaller vocab_size")],
)
def test_advice_on_a_small_vocab_fits_its_cause(more_text, advice):
    line = explain_shortfall(5120, 3870, more_text)
    assert line.endswith(
        f"5,120 was asked for, but the sample has pairs for only 3,870: {advice}"
    )


def test_training_prints_nothing(capfd, text):
    train(text, 300)
    assert capfd.readouterr() == ("", "")


def test_importing_the_tokenizer_does_not_import_torch():
    code = "import sys, tiny_llm.tokenize; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
