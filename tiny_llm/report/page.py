"""The page: its head, its sections in order, and their style."""

from __future__ import annotations

from pathlib import Path

from tiny_llm.report.leaks import leakage_section
from tiny_llm.report.run import Run, Split, find_warnings
from tiny_llm.report.scale import format_number, format_percent
from tiny_llm.report.sections import (
    documents_section,
    format_size,
    run_section,
    stories_section,
    tokens_section,
    vocabulary_section,
)
from tiny_llm.report.tokens import escape

# Nothing is loaded and no script runs, even if some text were not escaped.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_ICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 8 8'"
    "%3E%3Cpath fill='%232a6fd0' d='M0 4h2v4H0zM3 2h2v6H3zM6 0h2v8H6z'/%3E%3C/svg%3E"
)


def render_page(run: Run) -> bytes:
    """Return the report as HTML in UTF-8; the same run gives the same bytes."""
    style = Path(__file__).with_name("style.css").read_text(encoding="utf-8")
    parts = [
        ("documents", "Documents", documents_section(run)),
        ("tokens", "Tokens", tokens_section(run)),
        ("vocabulary", "Vocabulary", vocabulary_section(run)),
        ("leakage", "Leakage", leakage_section(run)),
        ("stories", "How it is tokenized", stories_section(run)),
        ("run", "The run", run_section(run)),
    ]
    parts = [part for part in parts if part[2]]
    links = "".join(f'<a href="#{name}">{title}</a>' for name, title, _ in parts)
    body = "".join(
        f'<section id="{name}"><h2>{title}</h2>\n{content}</section>\n'
        for name, title, content in parts
    )
    page = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>Data report: {escape(run.params["fetch"]["source"])}</title>
<link rel="icon" href="{_ICON}">
<style>
{style}</style>
</head>
<body>
<header>
{_headline(run)}
<nav>{links}</nav>
</header>
<main>
{_tiles(run)}
{_warnings(run)}
{body}</main>
<footer>Written by stage <code>report</code> of tiny_llm. The numbers are also in
<code>reports/</code>: see <code>dvc metrics show</code>.</footer>
</body>
</html>
"""
    return page.encode()


def _headline(run: Run) -> str:
    manifests = [split.manifest for split in run.splits.values()]
    num_documents = sum(manifest.num_documents for manifest in manifests)
    num_tokens = sum(manifest.num_tokens for manifest in manifests)
    return (
        '<p class="over">tiny_llm data report</p>'
        f"<h1>{num_documents:,} documents, {num_tokens:,} tokens</h1>"
        f'<p class="lead">From <code>{escape(run.params["fetch"]["source"])}</code>, '
        f"encoded with a vocabulary of <b>{run.vocab_size:,}</b> tokens that was "
        f"learned from {format_size(run.bpe['sample_bytes'])} of train.</p>"
    )


def _tiles(run: Run) -> str:
    train, valid = run.splits["train"], run.splits["valid"]
    of_valid = _tile_values(valid)
    tiles = [
        _tile(
            f'<span class="key train">{title}</span>',
            value,
            f'<span class="key valid">valid {of_valid[title]}</span>',
        )
        for title, value in _tile_values(train).items()
    ]
    metrics = run.leakage["metrics"]
    noun = "document" if metrics["leaked_documents"] == 1 else "documents"
    tiles.append(
        _tile(
            '<span class="key valid">Leaked</span>',
            format_percent(metrics["leaked_share"]),
            f"{metrics['leaked_documents']:,} {noun}",
        )
    )
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _tile_values(split: Split) -> dict[str, str]:
    median = split.metrics["tokens_per_document"]["p50"]
    return {
        "Documents": f"{split.manifest.num_documents:,}",
        "Tokens": f"{split.manifest.num_tokens:,}",
        "Bytes per token": f"{split.bytes_per_token:.2f}",
        "Median length": format_number(median),
        "Vocabulary used": format_percent(float(split.is_used.mean())),
    }


def _tile(title: str, value: str, note: str) -> str:
    return f'<div class="card tile"><h3>{title}</h3><b>{value}</b><p>{note}</p></div>'


def _warnings(run: Run) -> str:
    lines = "".join(f"<li>{escape(line)}</li>" for line in find_warnings(run))
    return f'<ul class="warnings">{lines}</ul>' if lines else ""
