"""Encoding: from a text file to a file of uint16 ids, as a whole process.

    python benchmarks/bench_encode.py [TEXT] [--mb 300] [--rounds N] [--before CHECKOUT]

The time is that of the process, start-up included. Ours also counts documents, makes an
index and digests, and waits until all is on disk; the peers do not. Slow peers run
once, and are compared with a run of ours beside them. Nothing is reported unless all
ids are equal. The text is TEXT, or the built-in corpus, with its documents shuffled and
repeated up to the size, for slow peers at most 30 MB. `--before` measures an earlier
version, too.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import harness
import numpy as np

from tiny_llm.corpus import read_sample
from tiny_llm.parallel import count_workers
from tiny_llm.tokenize import BPETokenizer

SAMPLE_BYTES = 10 << 20
VOCAB_SIZE = 4096
SLOW = ("ours-again", "tiktoken", "hf")
SLOW_BYTES = 30 * 10**6


class Peer(NamedTuple):
    """One row of the table: the encoder to run, and its environment variables."""

    label: str
    package: str
    encoder: str
    baseline: str = "ours"
    environment: tuple[tuple[str, str], ...] = ()


def make_peers(num_workers: int, before: Path | None) -> dict[str, Peer]:
    """List the rows of the table."""
    peers = {"ours": Peer("tiny_llm", "tiny_llm", "ours")}
    for number in range(1, num_workers):
        label = f"tiny_llm, {number} of {num_workers} workers"
        workers = (("TINY_LLM_WORKERS", str(number)),)
        peers[f"workers-{number}"] = Peer(
            label, "tiny_llm", "ours", environment=workers
        )
    if before:
        path = (("PYTHONPATH", str(before.resolve())),)
        peers["before"] = Peer("tiny_llm, before", "tiny_llm", "ours", "ours", path)
    return peers | {
        "gigatoken": Peer("gigatoken encode_files", "gigatoken", "gigatoken"),
        "copy": Peer("copying the ids, with fsync", "tiny_llm", "copy"),
        "ours-again": Peer("tiny_llm", "tiny_llm", "ours", "ours-again"),
        "tiktoken": Peer("tiktoken", "tiktoken", "tiktoken", "ours-again"),
        "hf": Peer("Hugging Face tokenizers", "tokenizers", "hf", "ours-again"),
    }


def run_peer(
    peers: dict[str, Peer], _: str, name: str, folder: Path, python: str
) -> dict[str, float]:
    """Run one encoder; return its figure."""
    target, peer = harness.output_path(folder, name), peers[name]
    script = str(Path(__file__).with_name("encoders.py"))
    command = [python, script, peer.encoder, str(folder / "text.txt"), str(target)]
    if peer.encoder == "copy":
        ids = harness.output_path(folder, "ours")
        command = ["dd", f"if={ids}", f"of={target}", "bs=1M", "conv=fsync"]
    return harness.run_whole(command, dict(peer.environment), folder / "text.txt")


def compare_ids(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """Compare the ids of each encoder with the first, ours; return a note for each."""
    tokenizer = BPETokenizer.load(folder / "tokenizer.json")
    expected = np.fromfile(harness.output_path(folder, names[0]), np.uint16)
    prefix = read_sample(folder / "text.txt", SAMPLE_BYTES)
    if tokenizer.decode_bytes(expected[: len(tokenizer.encode(prefix))]) != prefix:
        raise SystemExit("our ids do not decode to the text; nothing reported")
    notes = {}
    for name in names:
        ids = np.fromfile(harness.output_path(folder, name), np.uint16)
        if not np.array_equal(ids, expected):
            raise SystemExit(f"{name}: ids differ from ours; nothing reported")
        notes[name] = f"{len(ids):,} ids"
    return notes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--mb", type=int, default=300, help="size of the text")
    parser.add_argument("--before", type=Path, help="a checkout to compare with")


def main() -> None:
    args = harness.parse_arguments(__doc__, add_arguments)
    peers = make_peers(count_workers(), args.before)
    with tempfile.TemporaryDirectory() as name:
        fast, slow = Path(name), Path(name, "slow")
        slow.mkdir()
        source = args.text or harness.BUILT_IN_TEXT
        harness.repeat_documents(fast / "text.txt", args.mb * 10**6, source)
        num_bytes = min(args.mb * 10**6, SLOW_BYTES)
        harness.repeat_documents(slow / "text.txt", num_bytes, source)
        tokenizer = BPETokenizer()
        tokenizer.train(read_sample(fast / "text.txt", SAMPLE_BYTES), VOCAB_SIZE)
        figures, notes = {}, {}
        for folder, num_rounds in ((fast, args.rounds), (slow, 1)):
            tokenizer.save(folder / "tokenizer.json")
            names = [
                name
                for name in harness.installed(peers)
                if (name in SLOW) == (folder is slow)
            ]
            run = partial(run_peer, peers)
            figures |= harness.run_rounds("", names, folder, num_rounds, run=run)[0]
            notes |= compare_ids(folder, names)
    table = harness.format_table(peers, figures, notes)
    harness.write_table("bench_encode", table, args)


if __name__ == "__main__":
    main()
