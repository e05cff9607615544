"""Stage report: one page, build/report.html, that shows what the run made.

Open it in a browser; it needs no network.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np

from tiny_llm.atomic import atomic_write
from tiny_llm.corpus import SEPARATOR
from tiny_llm.errors import InputError
from tiny_llm.layout import (
    ID_COUNTS_PATHS,
    LEAKAGE_PATH,
    PARAMS_PATH,
    REPORT_PATH,
    REPORTS_DIR,
    SPLITS,
    TOKENIZER_PATH,
    TOKENS_DIR,
)
from tiny_llm.report.page import render_page
from tiny_llm.report.run import Document, Run, Split, list_token_bytes
from tiny_llm.tokenizer_json import parse_merges
from tiny_llm.tokens import open_documents, open_tokens, read_manifest
from tiny_llm.yaml_file import read_yaml

NUM_DOCUMENTS = 6  # of each split
MAX_SHOWN_TOKENS = 300  # of each document


def run() -> str:
    """Collect what the other stages wrote, and write the page."""
    page = render_page(
        Run(
            params=read_yaml(PARAMS_PATH),
            fetch=_read_json(REPORTS_DIR / "fetch.json"),
            bpe=_read_json(REPORTS_DIR / "bpe.json"),
            merges=[
                (int(rank), int(count), float(ratio))
                for rank, count, ratio in _read_csv(REPORTS_DIR / "merge_counts.csv")
            ],
            token_bytes=list_token_bytes(
                parse_merges(_existing(TOKENIZER_PATH)), SEPARATOR
            ),
            splits={split: _read_split(split) for split in SPLITS},
            leakage=_read_json(LEAKAGE_PATH),
        )
    )
    with atomic_write(REPORT_PATH) as file:
        file.write(page)
    return f"wrote {REPORT_PATH}: {len(page):,} bytes; open it in a browser"


def _read_split(split: str) -> Split:
    path = TOKENS_DIR / f"{split}.bin"
    return Split(
        manifest=read_manifest(path),
        metrics=_read_json(REPORTS_DIR / f"encode-{split}.json"),
        frequency=_read_counts(REPORTS_DIR / f"token_frequency-{split}.csv"),
        lengths=_read_counts(REPORTS_DIR / f"document_lengths-{split}.csv"),
        id_counts=np.load(_existing(ID_COUNTS_PATHS[split]), allow_pickle=False),
        documents=_read_documents(path),
    )


def _read_documents(path: Path) -> list[Document]:
    """Read documents that are evenly spread over a token file."""
    ids, _ = open_tokens(path)
    starts = open_documents(path, read_manifest(path))
    num_documents = len(starts)
    step = max(1.0, num_documents / NUM_DOCUMENTS)
    numbers = [int(step * (place + 0.5)) for place in range(NUM_DOCUMENTS)]
    documents = []
    for number in numbers:
        if number < num_documents:
            begin = int(starts[number])
            is_last = number + 1 == num_documents
            end = len(ids) if is_last else int(starts[number + 1])
            shown = ids[begin : min(end, begin + MAX_SHOWN_TOKENS)].tolist()
            documents.append(Document(number, end - begin, shown))
    return documents


def _read_counts(path: Path) -> list[tuple[int, int]]:
    return [(int(first), int(second)) for first, second in _read_csv(path)]


def _read_csv(path: Path) -> list[list[str]]:
    """Read plot data without its heads."""
    with open(_existing(path), newline="") as file:
        return list(csv.reader(file))[1:]


def _read_json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(_existing(path).read_bytes())
    return found


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise InputError(f"{path} is missing; `dvc repro` makes it")
    return path
