"""The section on leakage between train and valid."""

from __future__ import annotations

from typing import Any

from tiny_llm.report.run import Run
from tiny_llm.report.scale import format_percent
from tiny_llm.report.tokens import highlight

_NUM_OPEN = 3  # Examples; the others are folded.
_DOT = " \u00b7 "
_MORE = " \u2026"
_KINDS = {
    "exact": "the same text",
    "near": "nearly the same text",
    "overlap": "shared passages",
}


def leakage_section(run: Run) -> str:
    """Show what stage `leakage` found."""
    found, metrics = run.leakage, run.leakage["metrics"]
    exact, near = metrics["exact_duplicates"], metrics["near_duplicates"]
    rows = [
        ("tokens of valid that leaked", format_percent(metrics["leaked_share"])),
        (
            f"tokens of valid in shared windows of {found['window']:,} ids",
            format_percent(metrics["overlap_share"]),
        ),
        ("longest shared run", f"{metrics['longest_run']:,} tokens"),
        ("documents of valid that leaked", f"{metrics['leaked_documents']:,}"),
        ("documents of valid that are also in train", f"{exact['across']:,}"),
        ("documents of valid nearly equal to one of train", f"{near['across']:,}"),
        ("repeated documents within train", f"{exact['within_train']:,}"),
        (
            "repeated documents within valid, exactly or nearly",
            f"{exact['within_valid']:,} / {near['within_valid']:,}",
        ),
    ]
    body = "".join(f"<tr><td>{name}</td><td>{value}</td></tr>" for name, value in rows)
    examples = "".join(
        _example(example, "open" if place < _NUM_OPEN else "")
        for place, example in enumerate(found["examples"])
    )
    note = (
        "Text of valid that is also in train: a model can know it by heart. Text "
        "that both documents share is marked."
        if examples
        else "Text of valid that is also in train. None was found."
    )
    return (
        f"<p>{note}</p>"
        f'<div class="card"><table class="numbers"><tbody>{body}</tbody></table></div>'
        f'<div class="grid wide">{examples}</div>'
    )


def _example(example: dict[str, Any], state: str) -> str:
    noun = "token" if example["num_tokens"] == 1 else "tokens"
    facts = [
        f"<b>{_KINDS[example['kind']]}</b>",
        f"{example['num_shared']:,} of {example['num_tokens']:,} {noun} shared",
        f"similarity {example['similarity']:.2f}",
    ]
    sides = "".join(_side(example, split) for split in ("valid", "train"))
    return (
        f'<details class="card leak" {state}><summary>{_DOT.join(facts)}</summary>'
        f'<div class="pair">{sides}</div></details>'
    )


def _side(example: dict[str, Any], split: str) -> str:
    side = example[split]
    text = highlight(side["text"], side["shared"]).strip()
    return (
        f'<div><h4><span class="key {split}">{split}</span> document '
        f"{example[f'{split}_document']:,}</h4>"
        f"<blockquote>{text}{_MORE if side['is_cut'] else ''}</blockquote></div>"
    )
