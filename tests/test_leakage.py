"""Leakage: what is planted is found, and nothing else."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import PRINT_PEAK_KIB, needs_proc, save_tokens
from tiny_llm import duplicates, leakage
from tiny_llm.duplicates import Documents
from tiny_llm.leakage import find_leakage
from tiny_llm.overlap import WindowIndex
from tiny_llm.tokenize import BPETokenizer

SYLLABLES = ["ba", "de", "ki", "lo", "mu", "na", "po", "ri", "sa", "tu", "we", "yo"]
RNG = np.random.default_rng(1)
WORDS = ["".join(RNG.choice(SYLLABLES, 3)) for _ in range(600)]


def write_story(seed, num_words=120):
    """Random words in sentences, some at the end of a line."""
    rng = np.random.default_rng(seed)
    words = rng.choice(WORDS, num_words).tolist()
    for start in range(0, num_words, 9):
        words[start] = words[start].capitalize()
        words[start - 1] += ".\n" if start % 2 else "."
    return "\n" + " ".join(words) + "\n"


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = BPETokenizer()
    tokenizer.train("".join(map(write_story, range(20))), vocab_size=700)
    return tokenizer


@pytest.fixture
def split(tmp_path, tokenizer):
    """A function that makes a split of stories."""

    def make(name, stories):
        text = "".join(f"{story}<|endoftext|>" for story in stories)
        return from_ids(tmp_path, name, tokenizer, tokenizer.encode(text))

    return make


def from_ids(folder, name, tokenizer, ids):
    path = save_tokens(
        folder / f"{name}.bin", ids, tokenizer.vocab_size, tokenizer.sha256
    )
    return Documents(path, tokenizer)


def change_word(story):
    words = story.split(" ")
    return " ".join([*words[:60], "zebra", *words[61:]])


COPIES = {
    "a copy": (str, "exact"),
    "other white space": (lambda story: "\n\n  ".join(story.split()), "exact"),
    "capitals": (str.upper, "near"),
    "small letters": (str.lower, "near"),
    "no punctuation": (lambda story: story.replace(".", ""), "near"),
    "another word": (change_word, "near"),
    "another word in capitals": (lambda story: change_word(story).upper(), "near"),
}


@pytest.mark.parametrize("name", COPIES)
def test_a_copy_is_found_whatever_was_changed(split, tokenizer, name):
    change, kind = COPIES[name]
    stories = [write_story(seed) for seed in range(100, 150)]
    train = split("train", stories)
    others = [write_story(seed) for seed in range(200, 220)]
    valid = split("valid", [*others[:7], change(stories[31]), *others[7:]])
    found = find_leakage(train, valid, tokenizer, 32)
    assert np.flatnonzero(found.is_leaked).tolist() == [7]
    assert found.exact.sources[7] == (31 if kind == "exact" else -1)
    assert {key: other for key, (other, _) in found.near.items()} == (
        {} if kind == "exact" else {7: 31}
    )
    [example] = found.examples
    assert (example.kind, example.valid_document, example.train_document) == (
        kind,
        7,
        31,
    )
    assert 0.75 <= example.similarity <= 1
    begin, end = valid.bounds(7)
    assert example.num_tokens == end - begin
    # The run may go on with some ids of the stories beside it.
    assert found.num_left == found.num_leaked - example.num_tokens <= 8
    assert found.near_within == {}


def test_unrelated_stories_leak_nothing(split, tokenizer):
    train = split("train", [write_story(seed) for seed in range(100)])
    valid = split("valid", [write_story(seed) for seed in range(100, 200)])
    found = find_leakage(train, valid, tokenizer, 32)
    assert found.examples == []
    assert found.metrics() == {
        "leaked_share": 0.0,
        "overlap_share": 0.0,
        "longest_run": 0,
        "leaked_documents": 0,
        "exact_duplicates": {"across": 0, "within_train": 0, "within_valid": 0},
        "near_duplicates": {"across": 0, "within_valid": 0},
    }


def test_random_ids_leak_nothing(tmp_path, tokenizer):
    rng = np.random.default_rng(3)
    train, valid = (
        from_ids(tmp_path, name, tokenizer, rng.integers(0, 257, size))
        for name, size in (("train", 200_000), ("valid", 50_000))
    )
    found = find_leakage(train, valid, tokenizer, 8)
    assert found.metrics()["overlap_share"] == 0
    # Two documents of no word, or of the same one, may be equal.
    assert found.num_leaked < 100


def test_train_as_valid_leaks_completely(split, tokenizer):
    stories = [write_story(seed) for seed in range(30)]
    found = find_leakage(split("a", stories), split("b", stories), tokenizer, 32)
    metrics = found.metrics()
    assert (metrics["leaked_share"], metrics["overlap_share"]) == (1, 1)
    assert metrics["longest_run"] == found.num_tokens
    assert metrics["leaked_documents"] == metrics["exact_duplicates"]["across"] == 30
    assert metrics["near_duplicates"] == {"across": 0, "within_valid": 0}
    assert (found.num_kept, found.num_left, found.share_left) == (0, 0, 0)


def test_duplicates_within_a_split_are_counted(split, tokenizer):
    a, b, c, d = map(write_story, range(4))
    train = split("train", [a, b, a.replace(" ", "\n"), a, change_word(b)])
    valid = split("valid", [c, d, c.strip(), change_word(d)])
    metrics = find_leakage(train, valid, tokenizer, 32).metrics()
    assert metrics["exact_duplicates"] == {
        "across": 0,
        "within_train": 2,
        "within_valid": 1,
    }
    assert metrics["near_duplicates"] == {"across": 0, "within_valid": 1}
    assert metrics["leaked_documents"] == 0


def test_texts_of_the_same_letters_are_not_duplicates(split, tokenizer):
    """Hashes cannot tell them apart, so this tests that texts are compared."""
    first, other = (
        "The cat saw the dog and ran off.",
        "The dog saw the cat and ran off.",
    )
    found = find_leakage(split("a", [first]), split("b", [other]), tokenizer, 8)
    assert (found.exact.sources.tolist(), found.near) == ([-1], {})


def test_blank_documents_are_no_duplicates(split, tokenizer):
    train = split("train", ["", " \n", write_story(1), "..."])
    valid = split("valid", ["", "\n", write_story(2), "..."])
    found = find_leakage(train, valid, tokenizer, 32)
    assert found.exact.sources.tolist() == [-1, -1, -1, 3]
    assert found.exact.num_in_first == 0


def test_documents_shorter_than_a_window_are_compared_as_documents(split, tokenizer):
    train = split("train", ["A cat.", "Two dogs.", "Some more words."])
    valid = split("valid", ["Two  dogs.", "Two birds."])
    found = find_leakage(train, valid, tokenizer, 32)
    assert found.exact.sources.tolist() == [1, -1]
    assert (found.num_shared, found.is_leaked.tolist()) == (0, [True, False])


@pytest.mark.parametrize("is_train_empty", [False, True])
def test_an_empty_split_leaks_nothing(split, tokenizer, is_train_empty):
    stories = [write_story(1)]
    train = split("train", [] if is_train_empty else stories)
    valid = split("valid", stories if is_train_empty else [])
    found = find_leakage(train, valid, tokenizer, 32)
    assert (found.num_leaked, found.share, found.examples) == (0, 0, [])


def test_half_of_a_story_is_overlap(split, tokenizer):
    story = write_story(5)
    train = split("train", [write_story(1), story])
    half = story[: len(story) // 2]
    valid = split("valid", [half + write_story(6, 40), half + write_story(7, 100)])
    found = find_leakage(train, valid, tokenizer, 32)
    assert [example.kind for example in found.examples] == ["overlap", "overlap"]
    assert found.is_leaked.tolist() == [True, False]
    num_half = len(tokenizer.encode(half))
    for example in found.examples:
        assert example.train_document == 1
        assert num_half - 2 <= example.num_shared <= num_half + 8
    assert found.num_left == found.examples[1].num_shared


def brute_force(ours, theirs, window):
    """Which of our ids are in windows that are also theirs."""
    known = {theirs[i : i + window].tobytes() for i in range(len(theirs) - window + 1)}
    is_shared = np.zeros(len(ours), bool)
    for i in range(len(ours) - window + 1):
        if ours[i : i + window].tobytes() in known:
            is_shared[i : i + window] = True
    return is_shared


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    window=st.integers(8, 40),
    num_ids=st.integers(1, 4),
    dtype=st.sampled_from([np.uint16, np.uint32]),
    block=st.integers(1, 400),
)
def test_shared_windows_are_those_of_a_plain_search(
    seed, window, num_ids, dtype, block
):
    rng = np.random.default_rng(seed)
    ours, theirs = (
        rng.integers(0, num_ids, rng.integers(0, 700)).astype(dtype) for _ in range(2)
    )
    for _ in range(rng.integers(0, 4)):
        size = int(rng.integers(1, 120))
        if min(len(ours), len(theirs)) > size:
            here = int(rng.integers(len(ours) - size))
            there = int(rng.integers(len(theirs) - size))
            ours[here : here + size] = theirs[there : there + size]
    index = WindowIndex(ours, window)
    for begin in range(0, max(1, len(theirs)), block):
        part = theirs[begin : begin + block + window - 1].copy()
        entries, places, num_wasted = index.find(part)
        index.mark(entries, places + begin, num_wasted)
    runs = index.runs()
    for begin, size, source in zip(
        runs.begins, runs.lengths, runs.sources, strict=True
    ):
        assert size >= window
        assert (ours[begin : begin + size] == theirs[source : source + size]).all()
    expected = brute_force(ours, theirs, window)
    assert (runs.cover(len(ours)) == expected).all()


@pytest.mark.parametrize("window", [8, 11, 32])
def test_each_run_of_a_window_is_found_wherever_it_is(
    tmp_path, tokenizer, monkeypatch, window
):
    """In small blocks, so that runs cross their borders; runs of n, not only 2n - 1."""
    monkeypatch.setattr(duplicates, "BLOCK_TOKENS", 64)
    rng = np.random.default_rng(9)
    # Ids from two halves of the vocab, so that nothing else can be shared.
    ours = rng.integers(257, 450, 9000)
    theirs = rng.integers(450, 700, 9000)
    expected = np.zeros(len(ours), bool)
    for number in range(80):
        here, there = number * 101, number * 99 + 13
        ours[here : here + window] = theirs[there : there + window]
        expected[here : here + window] = True
    train = from_ids(tmp_path, "train", tokenizer, theirs)
    valid = from_ids(tmp_path, "valid", tokenizer, ours)
    found = find_leakage(train, valid, tokenizer, window)
    assert found.num_shared == expected.sum()
    assert found.longest_run == window


def summary(found):
    values = dataclasses.asdict(found)
    return {
        key: getattr(value, "tolist", lambda v=value: v)()
        for key, value in values.items()
        if key != "exact"
    } | {
        "sources": found.exact.sources.tolist(),
        "metrics": found.metrics(),
    }


def test_the_result_does_not_depend_on_threads_segments_or_blocks(
    split, tokenizer, monkeypatch
):
    stories = [write_story(seed) for seed in range(60)]
    train = split("train", stories * 2)
    changed = [change(stories[i]) for i, (change, _) in enumerate(COPIES.values())]
    changed += [story[:300] + story[330:] for story in stories[20:25]]
    valid = split("valid", [*changed, *map(write_story, range(200, 230))])
    expected = summary(find_leakage(train, valid, tokenizer, 32, num_workers=1))
    assert expected["num_leaked"] > 0
    again = find_leakage(train, valid, tokenizer, 32, num_workers=3)
    assert summary(again) == expected
    monkeypatch.setattr(leakage, "SEGMENT_TOKENS", 1000)
    monkeypatch.setattr(duplicates, "BLOCK_TOKENS", 1 << 10)
    progress = []
    found = find_leakage(train, valid, tokenizer, 32, on_progress=progress.append)
    assert summary(found) == expected
    assert sum(progress) == train.num_bytes * leakage.num_passes(valid)


def test_a_document_of_many_blocks_is_compared_exactly(split, tokenizer, monkeypatch):
    monkeypatch.setattr(duplicates, "BLOCK_TOKENS", 256)
    giant = write_story(1, 3000)
    train = split("train", [write_story(2), giant, write_story(3)])
    valid = split("valid", [write_story(4), giant.replace("\n", "  ")])
    found = find_leakage(train, valid, tokenizer, 32)
    assert found.exact.sources.tolist() == [-1, 1]


def test_of_giant_documents_only_a_block_is_decoded(split, tokenizer, monkeypatch):
    """So that a text without separators does not fill the memory."""
    for module in (duplicates, leakage):
        monkeypatch.setattr(module, "BLOCK_TOKENS", 1000)
    shared = write_story(1, 200)
    train = split("train", [write_story(2, 2000) + shared + write_story(3, 2000)])
    valid = split("valid", [write_story(4, 2000) + shared + write_story(5, 2000)])
    sizes = []
    decode = tokenizer.decode_bytes
    monkeypatch.setattr(
        tokenizer, "decode_bytes", lambda ids: sizes.append(len(ids)) or decode(ids)
    )
    found = find_leakage(train, valid, tokenizer, 32)
    [example] = found.examples
    assert (example.kind, example.num_tokens) == ("overlap", found.num_tokens)
    assert sizes == [1000, 1000]
    ours, theirs = valid.text(*example.valid_bounds), train.text(*example.train_bounds)
    begin = shared.encode()[10:-10]
    assert begin in ours[:2000]
    assert begin in theirs[:2000]


def test_near_duplicates_of_giant_documents_are_not_verified(
    split, tokenizer, monkeypatch
):
    monkeypatch.setattr(leakage, "BLOCK_TOKENS", 1000)
    giant, story = write_story(1, 3000), write_story(2)
    train = split("train", [giant, story])
    valid = split("valid", [change_word(giant), change_word(story)])
    found = find_leakage(train, valid, tokenizer, 32)
    assert [*found.near] == [1]
    assert found.is_leaked.tolist() == [True, True]  # The giant one by its overlap.


def test_windows_that_occur_very_often_are_found_once(tmp_path, tokenizer):
    rng = np.random.default_rng(4)
    ids = rng.integers(257, 700, 300)
    train = from_ids(tmp_path, "train", tokenizer, np.tile(ids, 300))
    valid = from_ids(tmp_path, "valid", tokenizer, np.concatenate([ids[50:], ids]))
    found = find_leakage(train, valid, tokenizer, 16)
    assert found.num_shared == found.num_tokens == 550


@pytest.mark.parametrize("window", [7, 4097, 32.0, True, None])
def test_a_window_that_is_out_of_range_is_refused(split, tokenizer, window):
    train = split("train", [write_story(1)])
    with pytest.raises(ValueError, match=r"leakage\.window is"):
        find_leakage(train, train, tokenizer, window)


def test_ids_of_another_tokenizer_are_refused(split):
    path = split("train", [write_story(1)]).path
    with pytest.raises(ValueError, match="was made by the tokenizer"):
        Documents(path, BPETokenizer())


@needs_proc
def test_memory_does_not_grow_with_train(tmp_path, tokenizer):
    tokenizer.save(tmp_path / "tokenizer.json")
    rng = np.random.default_rng(2)
    from_ids(tmp_path, "valid", tokenizer, rng.integers(256, 700, 100_000))
    peaks = []
    for num_tokens in (8_000_000, 40_000_000):
        ids = np.tile(rng.integers(256, 700, 1_000_000), num_tokens // 1_000_000)
        ids[rng.integers(0, num_tokens, num_tokens // 50)] = 300
        from_ids(tmp_path, "train", tokenizer, ids)
        code = (
            "from pathlib import Path\n"
            "from tiny_llm.leakage import find_leakage\n"
            "from tiny_llm.duplicates import Documents\n"
            "from tiny_llm.tokenize import BPETokenizer\n"
            f"folder = Path({str(tmp_path)!r})\n"
            "tokenizer = BPETokenizer.load(folder / 'tokenizer.json')\n"
            "train, valid = (Documents(folder / f'{name}.bin', tokenizer)\n"
            "                for name in ('train', 'valid'))\n"
            "find_leakage(train, valid, tokenizer, 32)\n" + PRINT_PEAK_KIB
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        peaks.append(int(done.stdout))
    # 64 MB more ids, of 100,000 documents per 44 million.
    assert peaks[1] - peaks[0] < 24 << 10
