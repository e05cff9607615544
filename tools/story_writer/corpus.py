"""Corpus: which stories are told, how long they are, and which split they go to."""

from __future__ import annotations

from typing import NamedTuple

from tiny_llm.corpus import SEPARATOR
from tiny_llm.layout import SPLITS
from tools.story_writer.dice import Decks, Dice
from tools.story_writer.library import Library, Plot, read_library
from tools.story_writer.teller import Teller

SEED = 20_240_229
NUM_TRAIN_BYTES = 3_050_000
# One story in this many goes to valid.
VALID_EVERY = 21


class Shape(NamedTuple):
    """How long a story will be, and how common its length is."""

    percent: int  # of all stories
    num_plots: int
    percent_optional: int  # of the optional beats that are told
    is_brief: bool = False  # a short plot after a short first sentence
    has_end: bool = True  # False: leave out the ending of the plot


_SHAPES = (
    Shape(6, 1, 0, is_brief=True, has_end=False),
    Shape(8, 1, 0, is_brief=True),
    Shape(31, 1, 0),
    Shape(34, 1, 20),
    Shape(10, 1, 50),
    Shape(4, 1, 100),
    Shape(4, 2, 40),
    Shape(3, 3, 30),
)
# Plots of at most this many beats are dealt twice as often, to keep stories short.
_MAX_SHORT_BEATS = 6


def tell_splits(library: Library | None = None, seed: int = SEED) -> dict[str, bytes]:
    """Return the text of each split; a separator line follows every story.

    No two stories are equal, even across splits. Stories are told until train holds
    NUM_TRAIN_BYTES.
    """
    library = library or read_library()
    dice = Dice(seed)
    decks = Decks(dice)
    teller = Teller(library, dice)
    shapes = [shape for shape in _SHAPES for _ in range(shape.percent)]
    told: set[str] = set()
    splits: dict[str, list[bytes]] = {split: [] for split in SPLITS}
    num_train_bytes = 0
    while num_train_bytes < NUM_TRAIN_BYTES:
        shape = shapes[decks.deal("shapes", len(shapes))]
        plots, hero = _choose_plots(library.plots, decks, shape)
        intro = "brief intro" if shape.is_brief else "intro"
        story = teller.tell(
            plots, hero, shape.percent_optional, intro=intro, has_end=shape.has_end
        )
        if " ".join(story.split()) in told:
            continue
        told.add(" ".join(story.split()))
        text = story.encode("ascii") + b"\n" + SEPARATOR + b"\n"
        if len(told) % VALID_EVERY == 0:
            splits["valid"].append(text)
        else:
            splits["train"].append(text)
            num_train_bytes += len(text)
    return {name: b"".join(stories) for name, stories in splits.items()}


def _choose_plots(
    plots: list[Plot], decks: Decks, shape: Shape
) -> tuple[list[Plot], str]:
    """Choose different plots that suit the same kind of hero."""
    short = [plot for plot in plots if len(plot.body) <= _MAX_SHORT_BEATS]
    if shape.is_brief:
        first = short[decks.deal("short plots", len(short))]
    else:
        first = [*plots, *short][decks.deal("plots", len(plots) + len(short))]
    hero = first.heroes[decks.deal(first.title, len(first.heroes))]
    chosen = [first]
    while len(chosen) < shape.num_plots:
        plot = plots[decks.deal("later plots", len(plots))]
        if hero in plot.heroes and plot not in chosen:
            chosen.append(plot)
    return chosen, hero
