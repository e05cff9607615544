"""The sections of the page, each as HTML."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from tiny_llm.report.plots import (
    curve_chart,
    frequency_chart,
    lengths_chart,
    merges_chart,
)
from tiny_llm.report.run import Document, Run, Split
from tiny_llm.report.scale import format_number, format_percent
from tiny_llm.report.tokens import TokenPainter, escape
from tiny_llm.tokenizer_json import FIRST_MERGE_ID

_NUM_CHIPS = 24


def format_size(num_bytes: float) -> str:
    r"""Return a size for people.

    >>> [format_size(size) for size in (1, 3_050_570, 2.2e9)]
    ['1 byte', '3.05\xa0MB', '2.2\xa0GB']
    """
    for factor, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if num_bytes >= factor:
            return f"{num_bytes / factor:.3g}\u00a0{unit}"
    return "1 byte" if num_bytes == 1 else f"{num_bytes:g} bytes"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """Return a table; its cells are HTML."""
    head = "".join(f"<th>{cell}</th>" for cell in heads)
    body = "".join(
        f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows
    )
    return (
        f'<div class="scroll"><table class="{kind}"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def key(split: str) -> str:
    """Return the name of a split with its colour."""
    return f'<span class="key {split}">{split}</span>'


def run_section(run: Run) -> str:
    """Say what the run was: parameters, sizes, digests."""
    params = [
        (f"<code>{escape(section)}.{escape(name)}</code>", _code(value))
        for section, values in run.params.items()
        if isinstance(values, dict)
        for name, value in values.items()
    ]
    files = [
        (key(name), f"{num_bytes:,} bytes", f"{run.fetch['num_documents'][name]:,}")
        for name, num_bytes in run.fetch["num_bytes"].items()
    ]
    train = run.splits["train"].manifest
    digests = [("tokenizer.json", f"{run.vocab_size:,} tokens", train.tokenizer_sha256)]
    digests += [
        (
            f"tokens/{name}.bin",
            f"{split.manifest.num_tokens:,} ids, {split.manifest.dtype}",
            split.manifest.sha256,
        )
        for name, split in run.splits.items()
    ]
    read = (
        f"{run.fetch['num_files']:,} files" if run.fetch["num_files"] > 1 else "1 file"
    )
    left_out = run.fetch["num_dropped_empty"]
    if isinstance(left_out, dict):
        left_out = sum(left_out.values())
    notes = [f"Read {read}, {format_size(run.fetch['num_source_bytes'])}."]
    if left_out:
        notes.append(f"{left_out:,} empty documents were left out.")
    if run.fetch["reached_max_documents"]:
        notes.append("The text was cut at <code>fetch.max_documents</code>.")
    rows = [
        (f"<code>build/{path}</code>", size, f'<span class="hash">{digest}</span>')
        for path, size, digest in digests
    ]
    return (
        f'<p>{" ".join(notes)}</p><div class="grid">'
        f'<div class="card">{table(["parameter", "value"], params)}</div>'
        f'<div class="card">{table(["text", "size", "documents"], files, "numbers")}'
        "</div></div>"
        f'<div class="card">{table(["file", "holds", "SHA-256"], rows, "stack")}</div>'
    )


def documents_section(run: Run) -> str:
    """Show how long documents are."""
    columns = [_measures(split) for split in run.splits.values()]
    rows = [
        (name, *(format_number(column[name]) for column in columns))
        for name in columns[0]
    ]
    heads = ["", *map(key, run.splits)]
    return (
        f'<div class="grid">{lengths_chart(run).render()}'
        f'<div class="card">{table(heads, rows, "numbers")}</div></div>'
    )


def _measures(split: Split) -> dict[str, float]:
    lengths = split.metrics["tokens_per_document"]
    return {
        "documents": split.manifest.num_documents,
        "tokens": split.manifest.num_tokens,
        "mean length": lengths["mean"],
        "median length": lengths["p50"],
        "95th percentile": lengths["p95"],
        "longest": lengths["max"],
        "bytes per token": split.bytes_per_token,
        "invalid bytes": split.metrics["num_invalid_bytes"],
    }


def tokens_section(run: Run) -> str:
    """Show how often tokens occur, and what a larger vocab brings."""
    charts = [curve_chart(run), frequency_chart(run)]
    if not run.merges:
        charts = charts[1:]
    return f'<div class="grid">{"".join(chart.render() for chart in charts)}</div>'


def vocabulary_section(run: Run) -> str:
    """Show which tokens are used, longest, rarest and unused."""
    painter = TokenPainter(run.token_bytes)
    counts = run.splits["train"].id_counts
    merges = np.arange(FIRST_MERGE_ID, run.vocab_size)
    by_count = merges[np.argsort(counts[merges], kind="stable")]
    used = by_count[counts[by_count] > 0][:_NUM_CHIPS].tolist()
    unused = merges[counts[merges] == 0].tolist()
    sizes = np.array([*map(len, run.token_bytes)], np.int64)[merges]
    longest = merges[np.argsort(-sizes, kind="stable")][:_NUM_CHIPS].tolist()
    num_rare = int(np.count_nonzero((counts > 0) & (counts <= 10)))
    lists = [
        (
            "Longest tokens",
            "A token that is a whole phrase shows text that repeats itself.",
            [(painter.chip(i), f"{len(run.token_bytes[i])} B") for i in longest],
        ),
        (
            "Rarest tokens",
            f"With their counts in train, where {num_rare:,} occur at most 10 times.",
            [(painter.chip(i), f"{int(counts[i]):,}\u00d7") for i in used],
        ),
        (
            "Merges that train never uses",
            f"{len(unused):,} of {len(merges):,}. Most are parts of longer tokens that "
            "replaced them."
            if unused
            else "None.",
            [(painter.chip(i), "") for i in unused[:_NUM_CHIPS]],
        ),
    ]
    cards = "".join(_chip_card(*entry) for entry in lists if entry[2] or len(merges))
    merge_chart = merges_chart(run).render() if run.merges else ""
    return (
        f'<div class="grid">{_usage_card(run)}{merge_chart}</div>'
        f'<div class="grid thirds">{cards}</div>'
    )


def _usage_card(run: Run) -> str:
    """Return a table of the share of the vocab that occurs, by kind of token."""
    kinds = [
        ("bytes", slice(0, 256)),
        ("merges", slice(FIRST_MERGE_ID, None)),
        ("whole vocab", slice(None)),
    ]
    rows = []
    for name, part in kinds:
        used = [split.is_used[part] for split in run.splits.values()]
        if len(used[0]):
            shares = (_used_share(mask) for mask in used)
            rows.append((name, f"{len(used[0]):,}", *shares))
    seen = run.splits["train"].is_used, run.splits["valid"].is_used
    only_valid = int(np.count_nonzero(seen[1] & ~seen[0]))
    note = (
        f"Tokens that occur in valid but not in train: {only_valid:,}."
        if only_valid
        else "Every token of valid also occurs in train."
    )
    heads = ["", "tokens", *map(key, run.splits)]
    return (
        '<div class="card"><h3>Share of the vocabulary in use</h3>'
        f'<p class="note">{note} A token that train never uses keeps its random '
        f"embedding.</p>{table(heads, rows, 'numbers')}</div>"
    )


def _used_share(mask: Any) -> str:
    used = int(np.count_nonzero(mask))
    return f"{format_percent(used / len(mask))}<br><small>{used:,}</small>"


def _chip_card(title: str, note: str, chips: list[tuple[str, str]]) -> str:
    items = "".join(f"<li>{chip}<small>{text}</small></li>" for chip, text in chips)
    return (
        f'<div class="card"><h3>{title}</h3><p class="note">{note}</p>'
        f'<ul class="chips">{items}</ul></div>'
    )


def stories_section(run: Run) -> str:
    """Show some documents with their tokens coloured."""
    painter = TokenPainter(run.token_bytes)
    begins = painter.level_begins()
    ends = [*begins[1:], run.vocab_size]
    legend = '<li><span class="byte">single bytes</span></li>'
    legend += "".join(
        f'<li><span class="t{level}">ids {begin:,} to {end - 1:,}</span></li>'
        for level, (begin, end) in enumerate(zip(begins, ends, strict=False))
    )
    cards = "".join(
        _story(painter, name, document)
        for name, split in run.splits.items()
        for document in split.documents
    )
    return (
        "<p>Documents from all over both splits. The stronger its colour, the later "
        "a token's merge was learned, and the rarer it is. Point at a token, "
        f'or tap it, for its id and bytes.</p><ul class="legend steps">{legend}</ul>'
        f'<div class="grid">{cards}</div>'
    )


def _story(painter: TokenPainter, split: str, document: Document) -> str:
    num_hidden = document.num_tokens - len(document.ids)
    more = f'<span class="more"> and {num_hidden:,} more tokens</span>'
    noun = "token" if document.num_tokens == 1 else "tokens"
    return (
        f'<article class="card story"><h3>{key(split)} <b>document '
        f"{document.number:,}</b>, {document.num_tokens:,} {noun}</h3>"
        f"{painter.paint(document.ids)}{more if num_hidden else ''}</article>"
    )


def _code(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return f"<code>{escape(text)}</code>"
