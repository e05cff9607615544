"""Teller: fills the slots of one story and lays out its paragraphs.

It remembers who is in the story (the cast) and which rows were already drawn, so that
names stay the same and no row is repeated while others are left.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from tools.story_writer.dice import Decks, Dice
from tools.story_writer.grammar import INFLECTIONS, PRONOUNS, capital, polish
from tools.story_writer.library import Library, Plot, Table
from tools.story_writer.variation import contract, swapper

Row = dict[str, str]  # column -> text; "" is the first column
_PERCENT_CONTRACTED = 45
_LAYOUTS = (" ", "\n", "\n", "\n\n", "\n\n")


@dataclass(frozen=True)
class Slot:
    """{name}: a member of the cast, a table, or a column of the hero."""

    name: str


@dataclass(frozen=True)
class Choice:
    """[a|b]: one of the options, dealt from a deck named after the text."""

    text: str
    options: tuple[tuple[Part, ...], ...]


Part = str | Slot | Choice


@cache
def parse(text: str) -> tuple[Part, ...]:
    """Split a template into plain text, slots and choices."""
    options, end = _parse_options(text, 0)
    if end != len(text) or len(options) != 1:
        raise ValueError(f"an extra bracket or a stray | in {text!r}")
    return options[0]


def _parse_options(text: str, start: int) -> tuple[list[tuple[Part, ...]], int]:
    """Parse options from `start` up to the closing "]" or the end of the text."""
    options: list[tuple[Part, ...]] = []
    parts: list[Part] = []
    at = plain = start
    while at < len(text) and text[at] != "]":
        letter = text[at]
        if letter in "{[|":
            if plain < at:
                parts.append(text[plain:at])
            if letter == "{":
                end = text.find("}", at)
                if end < 0:
                    raise ValueError(f"an unclosed slot in {text!r}")
                parts.append(Slot(text[at + 1 : end]))
                at = end
            elif letter == "[":
                inner, end = _parse_options(text, at + 1)
                if end == len(text):
                    raise ValueError(f"an unclosed choice in {text!r}")
                parts.append(Choice(text[at : end + 1], tuple(inner)))
                at = end
            else:
                options.append(tuple(parts))
                parts = []
            plain = at + 1
        at += 1
    if plain < at:
        parts.append(text[plain:at])
    options.append(tuple(parts))
    return options, at


def _lower(name: str) -> str:
    return name[:1].lower() + name[1:]


class Teller:
    """Tells one story after another from the same decks."""

    def __init__(self, library: Library, dice: Dice) -> None:
        self._tables = library.tables
        self._dice = dice
        self._decks = Decks(dice)
        self._swap = swapper(library.tables["swaps"])
        self._swapped: dict[str, str] = {}
        self._cast: dict[str, Row] = {}
        self._sources: dict[str, str] = {}
        self._drawn: set[tuple[str, int]] = set()
        self._episode = 0

    def tell(
        self,
        plots: list[Plot],
        hero: str,
        percent_optional: int,
        *,
        intro: str = "intro",
        has_end: bool = True,
    ) -> str:
        """Tell a story of one or more plots with the same hero.

        Args:
            plots: Told in this order.
            hero: "child" or "beast".
            percent_optional: Percentage of optional beats that are told.
            intro: The first sentences come from the table "{intro} {hero}".
            has_end: Whether to tell the end of the last plot.
        """
        self._drawn.clear()
        self._cast = {"h": self._new_member(hero)}
        self._sources = {}
        told: list[tuple[bool, str]] = [(True, self._draw(f"{intro} {hero}")[""])]
        for self._episode, plot in enumerate(plots):
            self._cast_plot(plot)
            is_told_to_the_end = has_end and plot is plots[-1]
            beats = plot.body + (plot.end if is_told_to_the_end else [])
            new_paragraph = self._episode > 0
            for beat in beats:
                new_paragraph = new_paragraph or beat.new_paragraph
                if beat.optional and not self._dice.chance(percent_optional):
                    continue
                choice = self._decks.deal("\n".join(beat.lines), len(beat.lines))
                text = self._render(beat.lines[choice])
                told.append((new_paragraph, text))
                new_paragraph = False
        return self._lay_out(told)

    def _lay_out(self, told: list[tuple[bool, str]]) -> str:
        """Join beats into paragraphs, and paragraphs with one of a few breaks."""
        paragraphs: list[list[str]] = []
        for new_paragraph, text in told:
            if new_paragraph or not paragraphs:
                paragraphs.append([])
            paragraphs[-1].append(text)
        layout = _LAYOUTS[self._decks.deal("layout", len(_LAYOUTS))]
        texts = (
            contract(" ".join(beats), lambda: self._dice.chance(_PERCENT_CONTRACTED))
            for beats in paragraphs
        )
        polished = (polish(text) for text in texts)
        return layout.join(text for text in polished if text)

    def _cast_plot(self, plot: Plot) -> None:
        """Choose the cast of a plot; people from an earlier plot return."""
        for name, source in plot.cast:
            known = self._cast.get(name)
            if known and "sex" in known and self._sources[name] == source:
                continue
            self._cast[name] = self._new_member(source)
            self._sources[name] = source

    def _new_member(self, source: str) -> Row:
        if source == "child":
            source = ("girl", "boy")[self._decks.deal("girl or boy", 2)]
        if source in ("girl", "boy"):
            name = self._draw(f"{source}s")[""]
            sex = "she" if source == "girl" else "he"
            return {"": name, "kind": source, "sex": sex}
        if source == "beast":
            row = self._draw("beasts")
            sex = ("he", "she")[self._decks.deal("he or she", 2)]
            return {**row, "": self._draw("beast names")[""], "sex": sex}
        if source in ("friend", "stranger"):
            return self._new_friend(self._cast["h"])
        return self._draw(source)

    def _new_friend(self, hero: Row) -> Row:
        """A friend of the hero's kind with the other pronoun, to avoid ambiguity."""
        if hero["kind"] in ("girl", "boy"):
            return self._new_member("boy" if hero["kind"] == "girl" else "girl")
        friend = self._new_member("beast")
        friend["sex"] = "he" if hero["sex"] == "she" else "she"
        return friend

    def _find_table(self, name: str) -> Table | None:
        if self._episode and f"later {name}" in self._tables:
            return self._tables[f"later {name}"]
        return self._tables.get(name)

    def _draw(self, name: str) -> Row:
        """Draw a row that this story has not used yet, if one is left."""
        table = self._find_table(name)
        if table is None:
            raise ValueError(f"there is no table {name!r}")
        for _ in table.rows:
            card = self._decks.deal(table.name, len(table.rows))
            if (table.name, card) not in self._drawn:
                break
        self._drawn.add((table.name, card))
        texts = [self._render(text) for text in table.rows[card]]
        return {"": texts[0], **dict(zip(table.columns, texts, strict=True))}

    def _render(self, text: str) -> str:
        if text not in self._swapped:
            self._swapped[text] = self._swap(text)
        return self._render_parts(parse(self._swapped[text]))

    def _render_parts(self, parts: tuple[Part, ...]) -> str:
        texts = []
        for part in parts:
            if isinstance(part, Slot):
                part = self._fill(part.name)
            elif isinstance(part, Choice):
                option = self._decks.deal(part.text, len(part.options))
                part = self._render_parts(part.options[option])
            texts.append(part)
        return "".join(texts)

    def _fill(self, slot: str) -> str:
        name, _, column = slot.partition(".")
        is_capital = name[:1].isupper() or column[:1].isupper()
        name, column = _lower(name), _lower(column)
        if name in self._cast:
            row = self._cast[name]
        elif self._find_table(name):
            row = self._draw(name)
        elif not column:
            row, column = self._cast["h"], name
        else:
            raise ValueError(f"unknown name {name!r} in the slot {{{slot}}}")
        text = self._column(row, column, slot)
        return capital(text) if is_capital else text

    def _column(self, row: Row, column: str, slot: str) -> str:
        if column in row:
            return row[column]
        if "sex" in row and column in PRONOUNS["he"]:
            return PRONOUNS[row["sex"]][column]
        if column in INFLECTIONS:
            return INFLECTIONS[column](row[""])
        raise ValueError(f"nothing fills the slot {{{slot}}}")
