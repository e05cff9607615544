"""Benchmark: finding leakage, alone and as a stage's work, for two sizes of train.

    python benchmarks/bench_leakage.py [--tokens 250] [--rounds 5]

The token files hold the ids of the built-in corpus, shuffled, so that no document
and hardly a window occurs twice. valid has 2.5 million ids. `overlap` is the search for
shared windows alone, on one core, after indexing valid; `all` is `find_leakage` on all
cores, indexing included.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path

import harness
import numpy as np

from tiny_llm.duplicates import Documents
from tiny_llm.leakage import find_leakage
from tiny_llm.overlap import WindowIndex
from tiny_llm.tokenize import BPETokenizer
from tiny_llm.tokens import write_tokens

WINDOW = 32
VALID_TOKENS = 2_500_000
VOCAB_SIZE = 4096


def write_shuffled(path: Path, tokenizer: BPETokenizer, num_tokens: int) -> None:
    """Write documents of about 200 random ids that occur in the built-in corpus."""
    ids = tokenizer.encode(harness.BUILT_IN_TEXT.read_bytes())
    dice = np.random.default_rng(num_tokens)
    with write_tokens(
        path,
        vocab_size=tokenizer.vocab_size,
        separator_id=tokenizer.separator_id,
        tokenizer_sha256=tokenizer.sha256,
    ) as writer:
        for _ in range(0, num_tokens, 1 << 20):
            part = dice.choice(ids, 1 << 20)
            part[-1] = tokenizer.separator_id
            writer.append(part)
            writer.num_bytes += 4 * len(part)


def search_windows(train: Documents, index: WindowIndex) -> None:
    for block in train.blocks():
        ids = train.read(block.begin, block.end + WINDOW - 1)
        entries, places, num_wasted = index.find(ids)
        index.mark(entries, places + block.begin, num_wasted)


def prepare(name: str, folder: Path) -> Callable[[], object]:
    """Open the files; return the work that a name such as "all 250" stands for."""
    what, size = name.split()
    tokenizer = BPETokenizer.load(folder / "tokenizer.json")
    train = Documents(folder / f"{size}.bin", tokenizer)
    valid = Documents(folder / "valid.bin", tokenizer)
    if what == "all":
        return lambda: find_leakage(train, valid, tokenizer, WINDOW)
    index = WindowIndex(valid.read(0, valid.manifest.num_tokens), WINDOW)
    return lambda: search_windows(train, index)


def measure(name: str, folder: Path) -> None:
    source = folder / f"{name.split()[1]}.bin"
    peer = harness.Peer(
        name, "numpy", lambda *_: prepare(name, folder), source.name, ""
    )
    # What the work returns is nothing to finish.
    work = peer.prepare(source, folder)
    peer = dataclasses.replace(peer, prepare=lambda *_: lambda: work() and None)
    harness.measure(name, peer, folder)


def add_arguments(parser: object) -> None:
    parser.add_argument("--tokens", type=int, default=250, help="train, in millions")


def main() -> None:
    args = harness.parse_arguments(__doc__, add_arguments, takes_text=False)
    if args.one:
        measure(args.one, args.folder)
        return
    sizes = [max(1, args.tokens // 25), args.tokens]
    with tempfile.TemporaryDirectory() as folder_name:
        folder = Path(folder_name)
        tokenizer = BPETokenizer()
        tokenizer.train(harness.BUILT_IN_TEXT.read_bytes(), VOCAB_SIZE)
        tokenizer.save(folder / "tokenizer.json")
        write_shuffled(folder / "valid.bin", tokenizer, VALID_TOKENS)
        for size in sizes:
            write_shuffled(folder / f"{size}.bin", tokenizer, size * 10**6)
        names = [f"{what} {size}" for what in ("overlap", "all") for size in sizes]
        figures, _ = harness.run_rounds(__file__, names, folder, args.rounds)
    rows = [
        "| | M ids | wall s | CPU s | M ids/s | peak MB |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for name, found in figures.items():
        what, size = name.split()
        wall, cpu, peak = (
            float(np.median([figure[key] for figure in found]))
            for key in ("wall_s", "cpu_s", "peak_mb")
        )
        speed = int(size) / wall
        rows.append(
            f"| {what} | {size} | {wall:.2f} | {cpu:.2f} | {speed:.0f} | {peak:.0f} |"
        )
    harness.write_table("bench_leakage", "\n".join(rows), args, ("numpy",))


if __name__ == "__main__":
    main()
