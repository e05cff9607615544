"""Library: reads the tables of words and the plots from text files.

A file holds tables and plots. Lines that begin with # are comments.

    table fruits: name ; colour      one row per line, fields split at ";"
    apple ; red
    pear ; green

    table colours: name              one column: ";" splits rows, many per line
    red ; green ; blue

    plot a lost thing                a plot: its cast, then its beats
    h: child, beast                  who can be the hero
    m: parent                        m is the same row of a table throughout
    thing = name ; place             a table for this plot only; one of its rows
        ball ; under a bush          is `thing` throughout the story
        hat ; in a tree
    - {h} looked for {his} {thing}.  a beat: one of these lines is told
    - "Where is my {thing}?" [asked|cried] {h}.

    ? {He} looked again and again.   a beat that short stories leave out

    /                                a new paragraph begins here
    - It was {thing.place}!

    end                              beats after this line end the story; they are
    - {He} [laughed|smiled].         left out when another plot follows

Blank lines separate beats. In any text,

    [a|b]                            one of the parts
    {name}                           a member of the cast, or a fresh row of a table
    {name.column}                    another column of it
    {he} {him} {his} {himself}       the hero's pronouns; {m.he} and so on are m's
    {name.s} {name.ed} {name.ing}    plural, past tense, -ing form
    {He} {Name}                      the same with a capital

Phrases of the table `swaps` (words/swaps.txt) are paraphrased wherever they occur. See
teller.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

_HOME = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Table:
    """Rows of text in named columns; the first column names the row."""

    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Beat:
    """One step of a plot, told in one of several ways."""

    lines: tuple[str, ...]
    optional: bool
    new_paragraph: bool


@dataclass
class Plot:
    """A cast, and what happens to it, in beats."""

    title: str
    heroes: tuple[str, ...] = ()
    cast: list[tuple[str, str]] = field(default_factory=list)
    body: list[Beat] = field(default_factory=list)
    end: list[Beat] = field(default_factory=list)


@dataclass
class Library:
    """All tables by name ("title/name" for those of a plot) and all plots in order."""

    tables: dict[str, Table] = field(default_factory=dict)
    plots: list[Plot] = field(default_factory=list)


class _Reader:
    """Reads one file into a library, line by line."""

    def __init__(self, library: Library, path: Path) -> None:
        self._library = library
        self._path = path
        self._line = 0
        self._table: tuple[str, tuple[str, ...]] | None = None
        self._rows: list[tuple[str, ...]] = []
        self._plot: Plot | None = None
        self._in_end = False
        self._new_paragraph = False
        self._beat: list[str] = []
        self._optional = False

    def read(self) -> None:
        text = self._path.read_bytes().decode("ascii")
        for self._line, raw in enumerate(text.split("\n"), start=1):
            if not raw.startswith("#"):
                self._take(raw.rstrip())
        self._close_table()
        self._close_beat()

    def _error(self, message: str) -> ValueError:
        return ValueError(f"{self._path.name}, line {self._line}: {message}")

    def _take(self, line: str) -> None:
        is_heading = line.startswith(("table ", "plot "))
        may_be_row = line.startswith(" ") or self._plot is None
        if self._table and line and may_be_row and not is_heading:
            self._take_row(line)
        elif line.startswith("table "):
            self._close_table()
            self._close_beat()
            self._plot = None
            name, _, columns = line[len("table ") :].partition(":")
            self._open_table(name.strip(), columns)
        elif line.startswith("plot "):
            self._close_table()
            self._close_beat()
            self._plot = Plot(line[len("plot ") :].strip())
            self._in_end = self._new_paragraph = False
            self._library.plots.append(self._plot)
        elif self._plot is None:
            if line:
                raise self._error(f"expected a table or a plot, got {line!r}")
        else:
            self._take_plot_line(self._plot, line)

    def _take_plot_line(self, plot: Plot, line: str) -> None:
        if not line:
            self._close_beat()
            return
        self._close_table()
        if line == "/":
            self._close_beat()
            self._new_paragraph = True
        elif line == "end":
            self._close_beat()
            self._in_end = True
        elif line[0] in "-?":
            self._optional = line[0] == "?"
            self._beat.append(line[1:].strip())
        elif " = " in line:
            name, _, columns = line.partition(" = ")
            plot.cast.append((name.strip(), f"{plot.title}/{name.strip()}"))
            self._open_table(f"{plot.title}/{name.strip()}", columns)
        elif ": " in line:
            name, _, source = line.partition(": ")
            if name == "h":
                plot.heroes = tuple(part.strip() for part in source.split(","))
            else:
                plot.cast.append((name, source.strip()))
        else:
            raise self._error(f"expected a beat or a member of the cast, got {line!r}")

    def _open_table(self, name: str, columns: str) -> None:
        if name in self._library.tables:
            raise self._error(f"the table {name!r} is already defined")
        self._table = (name, tuple(part.strip() for part in columns.split(";")))
        self._rows = []

    def _take_row(self, line: str) -> None:
        columns = self._table[1] if self._table else ()
        fields = tuple(part.strip() for part in line.split(";"))
        if not all(fields):
            raise self._error(f"an empty field in {line.strip()!r}")
        if len(columns) == 1:
            self._rows.extend((part,) for part in fields)
        elif len(fields) == len(columns):
            self._rows.append(fields)
        else:
            raise self._error(
                f"{len(fields)} fields in a table of {len(columns)} columns: "
                f"{line.strip()!r}"
            )

    def _close_table(self) -> None:
        if self._table:
            name, columns = self._table
            if not self._rows:
                raise self._error(f"the table {name!r} has no rows")
            self._library.tables[name] = Table(name, columns, tuple(self._rows))
        self._table = None

    def _close_beat(self) -> None:
        if self._plot and self._beat:
            beat = Beat(tuple(self._beat), self._optional, self._new_paragraph)
            (self._plot.end if self._in_end else self._plot.body).append(beat)
            self._new_paragraph = False
        self._beat = []


def read_library(folder: Path = _HOME) -> Library:
    """Read words/*.txt and plots/*.txt under `folder`.

    Raises:
        ValueError: A line does not follow the format; the message names it.
    """
    library = Library()
    for part in ("words", "plots"):
        for path in sorted((folder / part).glob("*.txt")):
            _Reader(library, path).read()
    return library
