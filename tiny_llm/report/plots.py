"""The charts of the report: which numbers each of them shows."""

from __future__ import annotations

import itertools

from tiny_llm.report.charts import Axis, Chart, Column, Series, even_columns
from tiny_llm.report.run import Run, Split
from tiny_llm.report.scale import Scale, format_number, format_percent
from tiny_llm.tokenizer_json import FIRST_MERGE_ID

_NUM_COLUMNS = 36


def lengths_chart(run: Run) -> Chart:
    """Show the share of documents by length, train and valid side by side."""
    shares = {name: _length_shares(split) for name, split in run.splits.items()}
    begins = sorted({x for points in shares.values() for x, _ in points})
    series = [Series(name, name, points, "steps") for name, points in shares.items()]
    columns = [
        Column(
            begin,
            end,
            [
                f"{begin:,} to {end - 1:,}",
                *(format_percent(line.value_at(begin) or 0) for line in series),
            ],
        )
        for begin, end in itertools.pairwise(begins)
    ]
    highest = (share for points in shares.values() for _, share in points)
    return Chart(
        title="Document lengths",
        note="The share of documents in each range of lengths, on a log scale. The "
        "same shape in both splits means that they hold the same kind of text.",
        x=Axis("tokens in a document, separator included", Scale.around(begins, 2)),
        y=Axis("share of documents", Scale.around(highest), is_percent=True),
        series=series,
        heads=["tokens", *shares],
        columns=columns,
    )


def _length_shares(split: Split) -> list[tuple[int, float]]:
    """Return where each bin begins and its share, and where the last one ends."""
    total = sum(count for _, count in split.lengths)
    last = split.lengths[-1][0]
    points: list[tuple[int, float]] = [
        (begin, count / total) for begin, count in split.lengths
    ]
    # Bins grow by 2 ** (1/4), see tiny_llm/stats.py.
    return [*points, (max(last + 1, round(last * 2**0.25)), 0.0)]


def frequency_chart(run: Run) -> Chart:
    """Show how often each token occurs, by rank."""
    series = [
        Series(
            name,
            name,
            [
                (rank, 1e6 * count / split.manifest.num_tokens)
                for rank, count in split.frequency
            ],
        )
        for name, split in run.splits.items()
    ]
    x = Scale.around((rank for line in series for rank, _ in line.points), 10)
    return Chart(
        title="Token frequency by rank",
        note="A straight line is Zipf's law. Where a line dives at its end, there are "
        "tokens that were learned but are hardly ever used.",
        x=Axis("rank of the token in its split", x),
        y=Axis(
            "occurrences per million tokens",
            Scale.around((y for line in series for _, y in line.points), 10),
        ),
        series=series,
        heads=["rank", *run.splits],
        columns=_rank_columns(x, series),
    )


def merges_chart(run: Run) -> Chart:
    """Show how many pairs each merge joined."""
    line = Series("merges", "other", [(rank, count) for rank, count, _ in run.merges])
    x = Scale.around((rank for rank, _ in line.points), 10)
    return Chart(
        title="Merge counts",
        note="How many pairs of the sample each merge joined when it was learned. A "
        "merge that joined few pairs makes a token the model will rarely see.",
        x=Axis("merge rank", x),
        y=Axis("pairs joined", Scale.around((y for _, y in line.points), 10)),
        series=[line],
        heads=["merge", "pairs joined"],
        columns=_rank_columns(x, [line]),
    )


def curve_chart(run: Run) -> Chart:
    """Show bytes per token against vocab size."""
    points = [(FIRST_MERGE_ID + rank, ratio) for rank, _, ratio in run.merges]
    curve = Series("sample of train, first merges only", "other", points)
    dots = [
        Series(name, name, [(run.vocab_size, split.bytes_per_token)], "dots")
        for name, split in run.splits.items()
    ]
    highest = [y for line in (curve, *dots) for _, y in line.points]
    x = Scale.around([FIRST_MERGE_ID, run.vocab_size], 2)
    columns = []
    for begin, middle, end in even_columns(x, _NUM_COLUMNS):
        ratio = curve.value_at(middle)
        if ratio is not None:
            cells = [f"{round(middle):,}", f"{ratio:.2f}"]
            columns.append(Column(begin, end, cells))
    return Chart(
        title="Bytes per token against vocab size",
        note=_describe_curve(curve, run.vocab_size),
        x=Axis("vocab size, log scale", x),
        y=Axis("bytes per token", Scale.around(highest)),
        series=[curve, *dots],
        heads=["vocab size", "bytes per token"],
        columns=columns,
    )


def _describe_curve(curve: Series, vocab_size: int) -> str:
    """Say what the last doubling of the vocab brought."""
    text = "What a smaller vocabulary, with only the first merges, would give."
    before, now = curve.value_at(vocab_size / 2), curve.value_at(vocab_size)
    if before and now:
        text += (
            f" The last doubling, to {vocab_size:,} tokens, raised bytes per token by "
            f"{format_percent(now / before - 1)}: where the curve is flat, more "
            "vocabulary stops paying."
        )
    return text


def _rank_columns(x: Scale, lines: list[Series]) -> list[Column]:
    """Cut an axis of ranks into columns, each with the values at a rank inside it."""
    columns = []
    for begin, middle, end in even_columns(x, _NUM_COLUMNS):
        rank = round(middle)
        if begin <= rank < end:
            values = [
                line.value_at(rank) if line.points and rank <= line.points[-1][0] else 0
                for line in lines
            ]
            cells = [format_number(value or 0) for value in values]
            columns.append(Column(begin, end, [f"{rank:,}", *cells]))
    return columns
