"""Encoding: a text file to a file of uint16 ids in one process, for several libraries.

    python benchmarks/bench_encode.py [TEXT] [--rounds N]

The time covers reading, splitting, encoding and writing. Ours also computes two
digests of the ids and waits until they are on disk; the peers do neither. Slow peers
get the first 10 MB and are compared with ours on the same 10 MB. Nothing is reported
unless the ids of every peer equal ours. Without TEXT, the input is the built-in corpus,
repeated in shuffled order up to 100 MB.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import harness
import numpy as np
from harness import Peer

from tiny_llm.corpus import SEPARATOR, read_chunks, read_sample
from tiny_llm.encoding import encode_file
from tiny_llm.tokenize import FIRST_MERGE_ID, SEPARATOR_ID, BPETokenizer

TEXT_BYTES = 100_000_000
PREFIX_BYTES = 10_000_000
SAMPLE_BYTES = 10 << 20
VOCAB_SIZE = 4096


def encode_ours(source: Path, target: Path) -> harness.Work:
    tokenizer = BPETokenizer.load(source.with_name("tokenizer.json"))
    tokenizer.encode("warm up")

    def work() -> None:
        encode_file(tokenizer, source, target)

    return work


def encode_gigatoken(source: Path, target: Path, *, parallel: bool) -> harness.Work:
    import gigatoken

    tokenizer = gigatoken.Tokenizer(source.with_name("tokenizer.json"))
    tokenizer.encode_batch(["warm up"], parallel=parallel)

    def work() -> None:
        files = gigatoken.TextFileSource([source])
        documents = tokenizer.encode_files(files, parallel=parallel)
        # Without a separator, the file is a single document: one array of uint32.
        ids = np.asarray(documents[0])
        ids.astype(np.uint16).tofile(target)

    return work


def encode_tiktoken(source: Path, target: Path) -> harness.Work:
    import tiktoken

    merges = BPETokenizer.load(source.with_name("tokenizer.json")).merges
    ranks = {bytes([byte]): byte for byte in range(256)}
    # Ranks need not be dense: skipping the separator's makes them equal to our ids.
    ranks |= {
        left + right: rank for rank, (left, right) in enumerate(merges, FIRST_MERGE_ID)
    }
    tokenizer = tiktoken.Encoding(
        "ours",
        pat_str=harness.GPT2_PATTERN,
        mergeable_ranks=ranks,
        special_tokens={SEPARATOR.decode(): SEPARATOR_ID},
    )
    tokenizer.encode_ordinary_batch(["warm up"])

    def work() -> None:
        documents = harness.read_documents(source)
        rows = tokenizer.encode_ordinary_batch(
            documents, num_threads=os.cpu_count() or 1
        )
        write_rows(rows, target)

    return work


def encode_hf(source: Path, target: Path) -> harness.Work:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(source.with_name("tokenizer.json")))
    tokenizer.encode_batch_fast(["warm up"])

    def work() -> None:
        documents = harness.read_documents(source)
        rows = (row.ids for row in tokenizer.encode_batch_fast(documents))
        write_rows(rows, target)

    return work


def write_rows(rows: Iterable[list[int]], path: Path) -> None:
    """Write the ids of documents, with a separator id between them."""
    separator = np.array([SEPARATOR_ID], dtype=np.uint16)
    with open(path, "wb") as file:
        for number, row in enumerate(rows):
            if number:
                separator.tofile(file)
            np.array(row, dtype=np.uint16).tofile(file)


FULL = ("text.txt", "ours")
PREFIX = ("prefix.txt", "ours-10")
GIGATOKEN = partial(encode_gigatoken, parallel=True)
GIGATOKEN_ONE = partial(encode_gigatoken, parallel=False)
PEERS = {
    "ours": Peer("tiny_llm encode_file", "tiny_llm", encode_ours, *FULL),
    "gigatoken": Peer("gigatoken encode_files", "gigatoken", GIGATOKEN, *FULL),
    "gigatoken-one": Peer(
        "gigatoken encode_files, one thread", "gigatoken", GIGATOKEN_ONE, *FULL
    ),
    "ours-10": Peer("tiny_llm encode_file", "tiny_llm", encode_ours, *PREFIX),
    "tiktoken": Peer(
        "tiktoken encode_ordinary_batch", "tiktoken", encode_tiktoken, *PREFIX
    ),
    "hf": Peer("Hugging Face encode_batch_fast", "tokenizers", encode_hf, *PREFIX),
}


def compare_ids(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Compare the ids of each peer with ours; return a note for each."""
    tokenizer = BPETokenizer.load(folder / "tokenizer.json")
    expected = {
        text: np.concatenate([tokenizer.encode(x) for x in read_chunks(folder / text)])
        for text in ("text.txt", "prefix.txt")
    }
    notes = {}
    for name in names:
        ids = np.fromfile(harness.output_path(folder, name), dtype=np.uint16)
        if not np.array_equal(ids, expected[PEERS[name].text]):
            raise SystemExit(f"{name}: ids differ from ours; nothing reported")
        notes[name] = f"{len(ids):,} ids{'' if 'ours' in name else ', equal'}"
    return notes


def main() -> None:
    args = harness.parse_arguments(__doc__)
    if args.one:
        harness.measure(args.one, PEERS[args.one], args.folder)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if args.text:
            (folder / "text.txt").symlink_to(args.text.resolve())
        else:
            harness.repeat_documents(folder / "text.txt", TEXT_BYTES)
        prefix = read_sample(folder / "text.txt", PREFIX_BYTES)
        (folder / "prefix.txt").write_bytes(prefix)
        tokenizer = BPETokenizer()
        tokenizer.train(read_sample(folder / "text.txt", SAMPLE_BYTES), VOCAB_SIZE)
        tokenizer.save(folder / "tokenizer.json")
        for _ in read_chunks(folder / "text.txt"):
            pass  # Bring the text into the page cache.
        names = harness.installed(PEERS)
        figures, _ = harness.run_rounds(__file__, names, folder, args.rounds)
        notes = compare_ids(folder, figures)
    table = harness.format_table(PEERS, figures, notes)
    harness.write_table("bench_encode", table, args)


if __name__ == "__main__":
    main()
