"""Stage leakage: its files, its limit, and the cleaned valid split."""

import json
import shutil

import numpy as np
import pytest

from tests.conftest import SEP, built, expect, run_up_to
from tests.test_leakage import from_ids, write_story
from tiny_llm.leakage import find_leakage
from tiny_llm.leakage_files import EXAMPLE_CHARS, describe, write_clean
from tiny_llm.tokenize import BPETokenizer
from tiny_llm.tokens import open_documents, open_tokens
from tiny_llm.verify import verify

OUTPUTS = ["build/clean/leaked_documents.json", "build/leakage.json"]
OUTPUTS += ["reports/leakage.json"]


def join(stories) -> bytes:
    return b"".join(story.encode() + SEP for story in stories)


@pytest.fixture
def leaky(workspace):
    """A workspace whose valid split has one story of train, and its token files."""
    train = [write_story(seed) for seed in range(20)]
    valid = [write_story(seed) for seed in range(30, 35)]
    (workspace.source / "train.txt").write_bytes(join(train))
    (workspace.source / "valid.txt").write_bytes(join([*valid, train[3].upper()]))
    run_up_to(workspace, "encode valid")
    return workspace


def read(workspace, name):
    return json.loads((workspace.path / name).read_bytes())


def test_the_stage_reports_numbers_and_examples(leaky):
    before = built(leaky)
    done = leaky.stage("leakage")
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("wrote build/leakage.json: ")
    assert done.stderr.endswith(
        " of valid's tokens occur in train, 1 leaked document\n"
    )
    assert sorted(set(built(leaky)) - set(before)) == OUTPUTS
    assert read(leaky, OUTPUTS[0]) == [5]
    content, metrics = read(leaky, OUTPUTS[1]), read(leaky, OUTPUTS[2])
    assert metrics["leaked_documents"] == 1
    assert metrics["near_duplicates"] == {"across": 1, "within_valid": 0}
    assert content["metrics"] == metrics
    assert (content["window"], content["max_share"]) == (32, None)
    assert content["valid"]["num_documents"] == 6
    [example] = content["examples"]
    assert (example["kind"], example["train_document"]) == ("near", 3)
    assert example["valid"]["text"] == example["train"]["text"].upper()
    assert example["similarity"] == 1


def test_the_stage_writes_the_same_bytes_each_time(leaky):
    contents = []
    for workers in ("1", "2"):
        assert leaky.stage("leakage", TINY_LLM_WORKERS=workers).returncode == 0
        contents.append([(leaky.path / name).read_bytes() for name in OUTPUTS])
    assert contents[0] == contents[1]


def test_too_large_a_share_fails_and_names_the_worst_documents(leaky):
    leaky.set_param("max_share", 0.01)
    expect(
        leaky.stage("leakage"),
        3,
        "of valid's tokens occur in train, more than leakage.max_share (1.00%)",
        "document 5 of valid",
        "document 3 of train are nearly the same",
        "set leakage.clean_valid",
    )
    # To see what is wrong.
    assert set(OUTPUTS) <= set(built(leaky))
    assert leaky.stage("report").returncode == 0
    leaky.set_param("clean_valid", "true")
    assert leaky.stage("leakage").returncode == 0
    leaky.set_param("clean_valid", "false")
    leaky.set_param("max_share", 0.9)
    assert leaky.stage("leakage").returncode == 0


def test_clean_valid_is_valid_without_the_leaked_documents(leaky):
    leaky.set_param("clean_valid", "true")
    done = leaky.stage("leakage")
    assert "and build/clean/valid.bin without: " in done.stderr
    path = leaky.path / "build" / "clean" / "valid.bin"
    tokenizer = BPETokenizer.load(leaky.path / "build" / "tokenizer.json")
    manifest = verify(path, tokenizer.sha256)
    expected = join([write_story(seed) for seed in range(30, 35)])
    assert tokenizer.decode_bytes(open_tokens(path)[0]) == expected
    assert (manifest.num_documents, manifest.num_bytes) == (5, len(expected))
    leaky.set_param("clean_valid", "false")
    leaky.stage("leakage")
    assert not path.exists()


def test_a_clean_valid_that_would_be_empty_fails(leaky):
    """Whatever share may be leaked: nobody can measure a loss on it."""
    for name in ("train.bin", "train.json", "train.documents"):
        target = leaky.path / "build" / "tokens" / name.replace("train", "valid")
        target.unlink()
        shutil.copy(leaky.path / "build" / "tokens" / name, target)
    assert leaky.stage("leakage").returncode == 0
    leaky.set_param("clean_valid", "true")
    expect(leaky.stage("leakage"), 3, "every document of valid is leaked", "source")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("window", "7", "leakage.window is 7; give an integer from 8 to 4,096"),
        ("window", "many", "leakage.window is 'many'"),
        ("max_share", "1.5", "leakage.max_share is 1.5; give a number from 0 to 1"),
        ("max_share", ".nan", "leakage.max_share is nan"),
        ("max_share", "true", "leakage.max_share is True"),
        ("clean_valid", "maybe", "leakage.clean_valid is 'maybe'; give true or false"),
    ],
)
def test_a_bad_value_is_named(leaky, name, value, words):
    leaky.set_param(name, value)
    expect(leaky.stage("leakage"), 2, words)


def test_missing_token_files_are_named(leaky):
    (leaky.path / "build" / "tokens" / "valid.json").unlink()
    expect(leaky.stage("leakage"), 3, "no manifest for build/tokens/valid.bin")


@pytest.fixture
def tokenizer():
    tokenizer = BPETokenizer()
    tokenizer.train("".join(map(write_story, range(20))), vocab_size=700)
    return tokenizer


def open_split(folder, name, tokenizer, text):
    return from_ids(folder, name, tokenizer, tokenizer.encode(text))


def test_examples_mark_the_characters_that_both_documents_have(tmp_path, tokenizer):
    """Among characters of several bytes, and far behind the beginning."""
    story = write_story(50).replace("ba", "b\u00e1").strip()
    ours = "\U0001f600 " + write_story(51, 1000) + story
    theirs = write_story(52, 40) + story + "\u4f60" * 10
    train = open_split(tmp_path, "train", tokenizer, theirs + "<|endoftext|>")
    valid = open_split(tmp_path, "valid", tokenizer, ours + "<|endoftext|>")
    found = find_leakage(train, valid, tokenizer, 16)
    content = describe(
        found, train, valid, tokenizer, window=16, max_share=None, clean_valid=False
    )
    [example] = content["examples"]
    assert example["kind"] == "overlap"
    shown = []
    for name, text in (("valid", ours), ("train", theirs)):
        side = example[name]
        assert side["text"] in text
        assert len(side["text"]) == min(len(text), EXAMPLE_CHARS)
        assert side["is_cut"] == (len(text) > EXAMPLE_CHARS)
        [[begin, end]] = side["shared"]
        shown.append(side["text"][begin:end])
    assert shown[0] == shown[1]
    assert len(shown[0]) > len(story) - 10
    assert shown[0].strip(".\n") in story


@pytest.mark.parametrize("leaked", [[], [0], [2], [1, 2], [0, 1, 2]])
def test_a_clean_file_keeps_the_other_documents(tmp_path, tokenizer, leaked):
    """The last document has no separator."""
    pieces = ["One.<|endoftext|>", "\nTwo, \xe9.<|endoftext|>", "\nThree"]
    valid = open_split(tmp_path, "valid", tokenizer, "".join(pieces))
    is_leaked = np.isin(np.arange(3), leaked)
    path = tmp_path / "clean.bin"
    manifest = write_clean(path, valid, is_leaked, tokenizer)
    expected = "".join(piece for i, piece in enumerate(pieces) if i not in leaked)
    assert manifest == verify(path, tokenizer.sha256)
    assert manifest.num_documents == 3 - len(leaked)
    assert manifest.num_bytes == len(expected.encode())
    assert len(open_documents(path, manifest)) == 3 - len(leaked)
    if expected:
        assert tokenizer.decode(open_tokens(path)[0]) == expected
