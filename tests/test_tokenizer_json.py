"""Files that BPETokenizer, tokenizers and transformers write for one another."""

import json

import pytest
import tokenizers

from tests.conftest import SEP
from tests.test_tokenize import ADVERSARIAL, to_hf, train
from tiny_llm.errors import InputError
from tiny_llm.tokenize import BPETokenizer


@pytest.fixture(scope="module")
def transformers():
    """The transformers library, kept off the network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        import transformers

        yield transformers


@pytest.fixture
def tokenizer(text) -> BPETokenizer:
    return train(text, 300)


def change(value, place, new):
    """Replace one value in nested dicts, at a place such as "model.type"."""
    *parents, last = place.split(".")
    for key in parents:
        value = value[key]
    value[last] = new


def test_saved_tokenizer_loads_equal(tmp_path, tokenizer):
    tokenizer.save(tmp_path / "t.json")
    loaded = BPETokenizer.load(tmp_path / "t.json")
    assert loaded == tokenizer
    assert loaded.merges == tokenizer.merges
    loaded.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "t.json").read_bytes()


def test_only_tokenizer_json_gets_a_tokenizer_config(tmp_path, tokenizer):
    tokenizer.save(tmp_path / "t.json")
    assert [path.name for path in tmp_path.iterdir()] == ["t.json"]
    tokenizer.save(tmp_path / "folder" / "tokenizer.json")
    config = tmp_path / "folder" / "tokenizer_config.json"
    assert config.read_text() == (
        "{\n"
        '  "clean_up_tokenization_spaces": false,\n'
        '  "eos_token": "<|endoftext|>",\n'
        '  "tokenizer_class": "PreTrainedTokenizerFast"\n'
        "}\n"
    )


def test_a_reformatted_file_loads_with_the_same_digest(tmp_path, tokenizer):
    to_hf(tokenizer, tmp_path).save(str(tmp_path / "resaved.json"))
    assert BPETokenizer.load(tmp_path / "resaved.json").sha256 == tokenizer.sha256


def test_auto_tokenizer_gives_our_ids_and_knows_eos(tmp_path, tokenizer, transformers):
    tokenizer.save(tmp_path / "tokenizer.json")
    auto = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert auto.eos_token == SEP.decode()
    assert auto.eos_token_id == tokenizer.separator_id
    assert len(auto) == len(tokenizer)
    for sample in ADVERSARIAL:
        ids = tokenizer.encode(sample).tolist()
        assert auto(sample)["input_ids"] == ids
        assert auto.decode(ids) == sample


@pytest.mark.parametrize("name", ["AutoTokenizer", "GPT2TokenizerFast"])
def test_what_save_pretrained_writes_loads_with_the_same_digest(
    tmp_path, tokenizer, transformers, name
):
    tokenizer.save(tmp_path / "tokenizer.json")
    theirs = getattr(transformers, name).from_pretrained(tmp_path)
    theirs.save_pretrained(tmp_path / "theirs")
    saved = json.loads((tmp_path / "theirs" / "tokenizer.json").read_bytes())
    assert saved["post_processor"]["type"] == "TemplateProcessing"
    loaded = BPETokenizer.load(tmp_path / "theirs" / "tokenizer.json")
    assert loaded.sha256 == tokenizer.sha256
    for sample in ADVERSARIAL:
        ids = loaded.encode(sample).tolist()
        assert theirs(sample)["input_ids"] == ids
        assert theirs.decode(ids) == loaded.decode(ids)


def test_a_token_added_by_transformers_is_refused(tmp_path, tokenizer, transformers):
    tokenizer.save(tmp_path / "tokenizer.json")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    theirs.add_tokens(["<pad>"])
    theirs.save_pretrained(tmp_path / "theirs")
    with pytest.raises(InputError, match="its added_tokens differs"):
        BPETokenizer.load(tmp_path / "theirs" / "tokenizer.json")


PREFIX = {
    "type": "TemplateProcessing",
    "single": [
        {"SpecialToken": {"id": SEP.decode(), "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
    ],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}],
    "special_tokens": {
        SEP.decode(): {"id": SEP.decode(), "ids": [256], "tokens": [SEP.decode()]}
    },
}
TRUNCATION = {
    "direction": "Right",
    "max_length": 2,
    "strategy": "LongestFirst",
    "stride": 0,
}
PADDING = {
    "strategy": {"Fixed": 20},
    "direction": "Right",
    "pad_to_multiple_of": None,
    "pad_id": 0,
    "pad_type_id": 0,
    "pad_token": "!",
}


@pytest.mark.parametrize(
    ("place", "new"),
    [
        ("pre_tokenizer.add_prefix_space", True),
        ("pre_tokenizer.use_regex", False),
        ("pre_tokenizer", None),
        ("normalizer", {"type": "Lowercase"}),
        ("post_processor", PREFIX),
        ("truncation", TRUNCATION),
        ("padding", PADDING),
        ("added_tokens", []),
        ("model.end_of_word_suffix", "!"),
        ("model.vocab.\u0100", 256),
    ],
)
def test_a_setting_that_changes_ids_is_refused(tmp_path, place, new):
    tokenizer = BPETokenizer([(b"a", b"!"), (b"o", b"n")])
    tokenizer.save(tmp_path / "t.json")
    value = json.loads((tmp_path / "t.json").read_bytes())
    change(value, place, new)
    (tmp_path / "t.json").write_text(json.dumps(value))
    with pytest.raises(InputError, match=f"its {place.split('.')[0]} differs"):
        BPETokenizer.load(tmp_path / "t.json")

    # The setting does change ids, unless tokenizers refuses the file too.
    sample = f"One a! cat\x00 {SEP.decode()}"
    try:
        hf = tokenizers.Tokenizer.from_file(str(tmp_path / "t.json"))
    except Exception:
        return
    assert hf.encode(sample).ids != tokenizer.encode(sample).tolist()


@pytest.mark.parametrize(
    "content",
    [
        "",
        b"\xff\xfe",
        "[]",
        "{}",
        '{"model": {}}',
        '{"model": {"merges": 3}}',
        '{"model": {"merges": [["a"]]}}',
        '{"model": {"merges": [["a", "\\u4f60"]]}}',
        '{"model": {"merges": [["a", "\\ud800\\n"]]}}',
        '{"model": {"merges": [["ab", "c"]]}}',
        '{"model": {"merges": []}}',
        '{"model": {"merges": [[{}, null]]}}',
        '{"model": {"merges": NaN, "merges": 1e999}}',
        '{"model": "merges"}',
        "[" * 100_000,
        "[" * 100_000 + "]" * 100_000,
        '{"model": {"merges": ' + "[" * 3000 + "]" * 3000 + "}}",
        '{"model": {"merges": [], "dropout": ' + '{"a": ' * 100_000,
        "7" * 5000,
        '{"model": {"merges": [[' + "7" * 5000 + ", 7]]}}",
        '{"model": {"merges": [], "vocab": {"a": ' + "7" * 5000 + "}}}",
        '{"model": {"merges": [["' + "a" * 5000 + '", "\u4f60"]]}}',
        b"\xff" * 5000,
    ],
    ids=lambda content: repr(content[:40]),
)
def test_a_file_that_is_no_tokenizer_is_refused_in_one_line(tmp_path, content):
    content = content if isinstance(content, bytes) else content.encode()
    (tmp_path / "t.json").write_bytes(content)
    with pytest.raises(InputError, match=r"t\.json") as caught:
        BPETokenizer.load(tmp_path / "t.json")
    line = str(caught.value)
    assert line.isprintable()
    assert len(line) < 300 + len(str(tmp_path))


def test_merges_in_an_impossible_order_are_named(tmp_path):
    tokenizer = BPETokenizer([(b"a", b"b"), (b"ab", b"c")])
    tokenizer.save(tmp_path / "t.json")
    value = json.loads((tmp_path / "t.json").read_bytes())
    value["model"]["merges"].reverse()
    value["model"]["vocab"] |= {"abc": 257, "ab": 258}
    (tmp_path / "t.json").write_text(json.dumps(value))
    with pytest.raises(InputError, match=r"t\.json: merge 0 .* give the merges in"):
        BPETokenizer.load(tmp_path / "t.json")
