"""Story writer: it writes the corpus in data/, which is fit to train on."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from tests.conftest import ROOT
from tiny_llm.layout import SPLITS
from tools.story_writer.dice import Decks, Dice
from tools.story_writer.grammar import gerund, past, plural, polish
from tools.story_writer.library import Library, read_library
from tools.story_writer.teller import Teller, parse
from tools.story_writer.variation import contract

END = "\n<|endoftext|>\n"
NUM_MERGES = 3_839
WINDOW = 32


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    return {
        split: (ROOT / "data" / f"{split}.txt").read_bytes().decode("ascii")
        for split in SPLITS
    }


@pytest.fixture(scope="module")
def stories(texts: dict[str, str]) -> dict[str, list[str]]:
    return {split: text.split(END)[:-1] for split, text in texts.items()}


@pytest.fixture(scope="module")
def tokenizer(stories: dict[str, list[str]]) -> Tokenizer:
    """Train a byte-level BPE in which every merge was seen at least ten times."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=256 + NUM_MERGES,
        min_frequency=10,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((f"{story}\n" for story in stories["train"]), trainer)
    return tokenizer


def run_writer(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tools.story_writer", *arguments],
        cwd=ROOT,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )


# The command


def test_story_writer_reproduces_the_built_in_corpus(tmp_path: Path) -> None:
    ran = run_writer(
        "--out", str(tmp_path), PYTHONHASHSEED="7", LC_ALL="C", TZ="Asia/Tokyo"
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == ""
    assert len(ran.stderr.splitlines()) == len(SPLITS)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "train.txt",
        "valid.txt",
    ]
    for split in SPLITS:
        written = (tmp_path / f"{split}.txt").read_bytes()
        assert written == (ROOT / "data" / f"{split}.txt").read_bytes(), split


def test_an_unwritable_folder_is_one_readable_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    ran = run_writer("--out", str(tmp_path / "file"))
    assert ran.returncode == 5
    assert len(ran.stderr.splitlines()) == 1
    assert str(tmp_path / "file") in ran.stderr


# The corpus


def test_splits_have_the_promised_sizes(texts: dict[str, str]) -> None:
    assert 2_900_000 <= len(texts["train"]) <= 3_200_000
    assert 120_000 <= len(texts["valid"]) <= 180_000


@pytest.mark.parametrize("split", SPLITS)
def test_every_story_ends_at_a_separator(texts: dict[str, str], split: str) -> None:
    assert texts[split].endswith(END)
    for story in texts[split].split(END)[:-1]:
        assert "<|" not in story
        assert story == story.strip() != ""


def test_lengths_spread_like_those_of_tinystories(
    stories: dict[str, list[str]],
) -> None:
    lengths = np.array([len(story) for story in stories["train"]])
    assert 750 <= lengths.mean() <= 850
    assert np.median(lengths) < lengths.mean()
    assert 0.04 <= (lengths > 1_500).mean() <= 0.06
    assert (lengths < 400).sum() >= 10
    assert (lengths > 2_000).sum() >= 10


def test_train_has_many_distinct_words(texts: dict[str, str]) -> None:
    assert len(set(re.findall(r"[a-z']+", texts["train"].lower()))) >= 4_000


def test_no_story_occurs_twice(stories: dict[str, list[str]]) -> None:
    told = [" ".join(story.split()) for split in SPLITS for story in stories[split]]
    assert len(set(told)) == len(told)


def test_every_merge_was_seen_at_least_ten_times(tokenizer: Tokenizer) -> None:
    assert tokenizer.get_vocab_size() == 256 + NUM_MERGES


def test_fewer_than_one_percent_of_windows_of_valid_are_in_train(
    stories: dict[str, list[str]], tokenizer: Tokenizer
) -> None:
    seen = set(windows(tokenizer, stories["train"]))
    valid = windows(tokenizer, stories["valid"])
    assert sum(window in seen for window in valid) < 0.01 * len(valid)


def windows(tokenizer: Tokenizer, stories: list[str]) -> list[bytes]:
    """Return the bytes of all runs of WINDOW ids; a separator id ends each story."""
    separator_id = tokenizer.get_vocab_size()
    ids: list[int] = []
    for encoding in tokenizer.encode_batch([f"{story}\n" for story in stories]):
        ids += [*encoding.ids, separator_id]
    raw = np.array(ids, dtype="<u2").tobytes()
    return [raw[at : at + 2 * WINDOW] for at in range(0, len(raw) - 2 * WINDOW + 1, 2)]


# The language

TAG_VERBS = frozenset(
    re.findall(
        r"\w+",
        """
        said asked cried called shouted yelled whispered answered thought
        read wrote mumbled muttered grumbled growled wailed laughed yawned
        lisped sobbed begged chirped squeaked croaked clucked cackled honked
        barked snored told began heard wondered wanted came sang shook
        beamed giggled hooted quacked mused murmured chattered yipped
        snuffled grunted cawed whined bleated oinked neighed mooed purred
        brayed sniffled squawked trumpeted hummed whinnied roared clicked
        moaned joked
        """,
    )
)
GLITCHES = {
    "a before a vowel": r"\b[Aa] (?!one|once|uni|use|usu|eu|uk)[aeiou]|\b[Aa] hour",
    "an before a consonant": (
        r"\b[Aa]n (?!hour|honest)[^aeiou\W]|\b[Aa]n (?:uni|one|uk)"
    ),
    "an unfilled slot": r"[{}\[\]|_@#]",
    "two spaces or a stray one": r"  | \n|\n |\t| $",
    "a space before punctuation": r" [,.!?;:]",
    "doubled punctuation": r"[,;:][,.!?;:]|[.!?][,;:]|(?<!\.)\.\.(?!\.)|[!?][.!?]",
    "punctuation outside its quote": r"\"[,.!?]",
    "no space after punctuation": r"[,;:!?][A-Za-z]|[a-z]\.[A-Z]",
    "a small letter after a full stop": r"(?<!\.)\.\"? \"?[a-z]",
    "a small letter after a mark": r"[!?] \"?[a-z]",
    "a quote that begins small": r"(?:^|\s)\"[a-z]",
    "a doubled word": r"\b(?!had|ha|ho)(\w+) \1\b",
    "words that do not go together": r"\b(?:it it|an? the|the an?|a \w+ly a|is are)\b",
}
GLITCH_PATTERNS = {name: re.compile(text) for name, text in GLITCHES.items()}
BEFORE_A_TAG = re.compile(r"[!?]\" (?=[a-z])|,\" ")


def glitches(story: str) -> list[str]:
    """List the mistakes in the language of a story, with the words around each."""
    found = [
        f"{name}: ...{story[max(0, match.start() - 30) : match.end() + 30]}..."
        for name, pattern in GLITCH_PATTERNS.items()
        for match in pattern.finditer(story)
    ]
    for paragraph in filter(None, story.split("\n")):
        if not re.match(r"\"?[A-Z]", paragraph):
            found.append(f"begins small: {paragraph[:40]}")
        if not re.search(r"[.!?]\"?$", paragraph):
            found.append(f"ends without a mark: {paragraph[-40:]}")
        quotes = re.findall(r"(?:^|(?<=\s))\"|\"(?=\s|$)", paragraph)
        if len(quotes) != paragraph.count('"') or len(quotes) % 2:
            found.append(f"unbalanced quotes: {paragraph[:60]}")
        for match in BEFORE_A_TAG.finditer(paragraph):
            after = re.findall(r"\w+", paragraph[match.end() :])[:6]
            if TAG_VERBS.isdisjoint(after):
                found.append(f"no tag: {paragraph[match.start() - 30 :][:80]}")
    return found


@pytest.mark.parametrize("split", SPLITS)
def test_no_story_has_a_grammar_glitch(
    stories: dict[str, list[str]], split: str
) -> None:
    found = [glitch for story in stories[split] for glitch in glitches(story)]
    assert not found, f"{len(found)} glitches:\n" + "\n".join(found[:40])


@pytest.mark.parametrize(
    "text",
    [
        "He ate a apple.",
        "She saw an dog.",
        "It was the the end.",
        "Tom had a {toy}.",
        'She said, "Come here. Then she left.',
        "He sat down . She ran.",
        "he ran home.",
        "She ran home",
        '"Where?" he went home and never looked back.',
        "They  ran.",
        'He said, "come."',
    ],
)
def test_the_lint_finds_planted_glitches(text: str) -> None:
    assert glitches(text)


# The parts


def test_every_plot_can_be_told_first_and_later_and_to_the_last_beat() -> None:
    library = read_library()
    teller = Teller(library, Dice(1))
    assert len(library.plots) >= 25
    for plot in library.plots:
        assert all([plot.heroes, plot.body, plot.end]), plot.title
        for hero in plot.heroes * 6:
            assert teller.tell([plot], hero, percent_optional=100)
            assert teller.tell([plot, plot], hero, percent_optional=0)


def test_a_bad_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "bad.txt").write_text("plot a\nh: child\nwhat is this\n")
    with pytest.raises(ValueError, match=r"bad\.txt, line 3: .*what is this"):
        read_library(tmp_path)


def test_an_empty_folder_is_an_empty_library(tmp_path: Path) -> None:
    assert read_library(tmp_path) == Library()


@pytest.mark.parametrize("text", ["[a|b", "a]", "{name"])
def test_an_open_bracket_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="in "):
        parse(text)


def test_dice_are_splitmix64() -> None:
    # The first outputs for this seed of the reference C code by Sebastiano Vigna.
    dice = Dice(1_234_567)
    assert [dice.below(2**64) for _ in range(3)] == [
        6_457_827_717_110_365_317,
        3_203_168_211_198_807_973,
        9_817_491_932_198_370_423,
    ]


def test_a_deck_deals_every_card_before_any_again() -> None:
    decks = Decks(Dice(3))
    for _ in range(4):
        assert sorted(decks.deal("cards", 9) for _ in range(9)) == list(range(9))


def test_grammar_by_hand() -> None:
    assert plural("toy box") == "toy boxes"
    assert past("carry wood") == "carried wood"
    assert gerund("swim far") == "swimming far"
    assert polish('a owl ate. "is it a one?"') == 'An owl ate. "Is it a one?"'
    assert contract("I am not; it is.", lambda: True) == "I'm not; it is."
