"""Charts as HTML: a stretched SVG for the marks, and labels that keep their size.

Every chart fits any width, so a phone shows the same labels as a desktop. Tooltips are
CSS on invisible columns; the same numbers are in a table below the chart.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
from collections.abc import Sequence

from tiny_llm.report.scale import Scale, format_short
from tiny_llm.report.tokens import escape

_SIZE = 1000  # The SVG's own units, in both directions.


@dataclasses.dataclass(frozen=True)
class Axis:
    """One axis: what it shows and from where to where."""

    title: str
    scale: Scale
    is_percent: bool = False

    def label(self, value: float) -> str:
        """Return the text of a tick."""
        if self.is_percent:
            return f"{format_short(100 * value)}%"
        return format_short(value)


@dataclasses.dataclass(frozen=True)
class Series:
    """One line, histogram or set of dots.

    Attributes:
        label: In the legend and the tooltips.
        color: "train", "valid" or "other".
        points: (x, y), increasing in x.
        kind: "line", "steps" (each y lasts until the next x) or "dots".
    """

    label: str
    color: str
    points: Sequence[tuple[float, float]]
    kind: str = "line"

    def value_at(self, x: float) -> float | None:
        """Return y of the last point at or before `x`, or None."""
        place = bisect.bisect_right(self.points, x, key=lambda point: point[0])
        return self.points[place - 1][1] if place else None


@dataclasses.dataclass(frozen=True)
class Column:
    """A part of the x axis that shows numbers when the pointer is over it.

    Attributes:
        begin: Where it begins on the x axis.
        end: Where it ends.
        cells: What x is, then the value of each series.
    """

    begin: float
    end: float
    cells: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Chart:
    """What a chart shows; `heads` names the cells of its columns."""

    title: str
    note: str
    x: Axis
    y: Axis
    series: Sequence[Series]
    heads: Sequence[str]
    columns: Sequence[Column]

    def render(self) -> str:
        """Return the chart as HTML."""
        return f"""<figure class="card chart">
<figcaption><h3>{escape(self.title)}</h3><p>{escape(self.note)}</p></figcaption>
{self._legend()}
<div class="y-title">{escape(self.y.title)}</div>
<div class="plot">
<svg viewBox="0 0 {_SIZE} {_SIZE}" preserveAspectRatio="none" role="img" \
aria-label="{escape(self.title)}">
{self._grid()}
{"".join(map(self._mark, self.series))}</svg>
{self._labels()}
{"".join(map(self._column, self.columns))}
</div>
<div class="x-title">{escape(self.x.title)}</div>
{self._table()}
</figure>"""

    def _legend(self) -> str:
        items = (
            f'<li class="{series.color} {series.kind}">{escape(series.label)}</li>'
            for series in self.series
        )
        return f'<ul class="legend">{"".join(items)}</ul>'

    def _grid(self) -> str:
        lines = [f"M0 {_down(self.y, tick)}h{_SIZE}" for tick in self.y.scale.ticks()]
        return f'<path class="grid" d="{"".join(lines)}"/>'

    def _labels(self) -> str:
        return "".join(
            [
                f'<span class="y" style="top:{100 - 100 * self.y.scale.place(tick):.2f}'
                f'%">{self.y.label(tick)}</span>'
                for tick in self.y.scale.ticks()
            ]
            + [
                f'<span class="x" style="left:{100 * self.x.scale.place(tick):.2f}%">'
                f"{self.x.label(tick)}</span>"
                for tick in self.x.scale.ticks()
            ]
        )

    def _mark(self, series: Series) -> str:
        places = [(_across(self.x, x), _down(self.y, y)) for x, y in series.points]
        if not places:
            return ""
        if series.kind == "dots":
            path = "".join(f"M{x} {y}h0" for x, y in places)
        elif series.kind == "steps":
            path = f"M{places[0][0]} {_SIZE}" + "".join(
                f"V{y}H{after}" for (_, y), (after, _) in itertools.pairwise(places)
            )
            path += f"V{_SIZE}"
        else:
            path = "M" + "L".join(f"{x} {y}" for x, y in places)
        return f'<path class="{series.kind} {series.color}" d="{path}"/>\n'

    def _column(self, column: Column) -> str:
        begin, end = (self.x.scale.place(x) for x in (column.begin, column.end))
        lines = zip(self.heads, column.cells, strict=True)
        tip = "&#10;".join(f"{escape(head)} {escape(cell)}" for head, cell in lines)
        side = "left" if begin + end > 1 else "right"
        return (
            f'<i class="{side}" style="left:{100 * begin:.2f}%;'
            f'width:{100 * (end - begin):.2f}%" data-tip="{tip}"></i>'
        )

    def _table(self) -> str:
        heads = "".join(f"<th>{escape(head)}</th>" for head in self.heads)
        rows = "".join(
            f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in column.cells)}</tr>"
            for column in self.columns
        )
        return (
            "<details><summary>Numbers</summary><div class='scroll'><table><thead><tr>"
            f"{heads}</tr></thead><tbody>{rows}</tbody></table></div></details>"
        )


def even_columns(scale: Scale, number: int) -> list[tuple[float, float, float]]:
    """Cut an axis into equal parts: where each begins, its middle, and its end."""

    def value(share: float) -> float:
        if scale.base:
            return float(scale.low * (scale.high / scale.low) ** share)
        return scale.low + share * (scale.high - scale.low)

    return [
        (
            value(place / number),
            value((place + 0.5) / number),
            value((place + 1) / number),
        )
        for place in range(number)
    ]


def _across(axis: Axis, value: float) -> str:
    return f"{_SIZE * axis.scale.place(value):.1f}".removesuffix(".0")


def _down(axis: Axis, value: float) -> str:
    return f"{_SIZE * (1 - axis.scale.place(value)):.1f}".removesuffix(".0")
