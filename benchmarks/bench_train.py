"""Training: merges learned from a sample in memory, compared with other trainers.

    python benchmarks/bench_train.py [TEXT] [--rounds N]

Each trainer gets the first 10 MiB of TEXT, already split into documents if it needs
that, and learns the same number of merges. Nothing is reported unless all merges of
Hugging Face's trainer equal ours, in order; rustbpe breaks ties differently. Without
TEXT, the input is the built-in corpus, repeated in shuffled order up to 10 MiB.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import harness

from tiny_llm.corpus import SEPARATOR, read_sample
from tiny_llm.tokenize import BPETokenizer

SAMPLE_BYTES = 10 << 20
VOCAB_SIZES = (1024, 4096)


def train_ours(source: Path, target: Path, vocab_size: int) -> harness.Work:
    sample = source.read_bytes()

    def work() -> Callable[[], object]:
        tokenizer = BPETokenizer()
        tokenizer.train(sample, vocab_size)
        return partial(tokenizer.save, target)

    return work


def train_hf(source: Path, target: Path, vocab_size: int) -> harness.Work:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    documents = harness.read_documents(source)

    def work() -> Callable[[], object]:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=0,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            special_tokens=[SEPARATOR.decode()],
            show_progress=False,
        )
        tokenizer.train_from_iterator(documents, trainer)
        return partial(tokenizer.save, str(target))

    return work


def train_rustbpe(source: Path, target: Path, vocab_size: int) -> harness.Work:
    import rustbpe

    documents = harness.read_documents(source)

    def work() -> Callable[[], object]:
        tokenizer = rustbpe.Tokenizer()
        tokenizer.train_from_iterator(
            documents,
            vocab_size=vocab_size - 1,  # It has no separator.
            pattern=harness.GPT2_PATTERN,
        )

        def save() -> None:
            ranks = tokenizer.get_mergeable_ranks()
            tokens = [bytes(token).hex() for token, rank in ranks if rank >= 256]
            target.write_text(json.dumps(tokens))

        return save

    return work


def make_peers(vocab_size: int) -> dict[str, harness.Peer]:
    rows = [
        ("ours", "tiny_llm", "tiny_llm", train_ours),
        ("hf", "Hugging Face tokenizers", "tokenizers", train_hf),
        ("rustbpe", "rustbpe", "rustbpe", train_rustbpe),
    ]
    return {
        f"{name}-{vocab_size}": harness.Peer(
            label=f"{label}, vocab_size {vocab_size:,}",
            package=package,
            prepare=partial(prepare, vocab_size=vocab_size),
            text="sample.txt",
            baseline=f"ours-{vocab_size}",
        )
        for name, label, package, prepare in rows
    }


def compare_merges(folder: Path, vocab_size: int) -> dict[str, str]:
    """Compare the merges of each peer with ours; return a note for each."""
    ours = harness.output_path(folder, f"ours-{vocab_size}")
    tokenizer = BPETokenizer.load(ours)
    merges = json.loads(ours.read_bytes())["model"]["merges"]
    notes = {f"ours-{vocab_size}": f"{len(merges):,} merges"}
    other = harness.output_path(folder, f"hf-{vocab_size}")
    if other.exists():
        found = json.loads(other.read_bytes())["model"]["merges"]
        if found != merges:
            raise SystemExit(f"{other.name}: merges differ from ours; nothing reported")
        notes[f"hf-{vocab_size}"] = f"all {len(found):,} merges equal ours"
    other = harness.output_path(folder, f"rustbpe-{vocab_size}")
    if other.exists():
        tokens = [bytes.fromhex(token) for token in json.loads(other.read_bytes())]
        known = [left + right for left, right in tokenizer.merges]
        num_same = sum(map(bytes.__eq__, tokens, known))
        notes[f"rustbpe-{vocab_size}"] = (
            f"{len(set(tokens) & set(known)):,} of {len(tokens):,} tokens are ours, "
            f"{num_same:,} at the same rank"
        )
    return notes


def main() -> None:
    args = harness.parse_arguments(__doc__)
    peers = {
        name: peer for size in VOCAB_SIZES for name, peer in make_peers(size).items()
    }
    if args.one:
        harness.measure(args.one, peers[args.one], args.folder)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if not args.text:
            harness.repeat_documents(folder / "text.txt", SAMPLE_BYTES)
        sample = read_sample(args.text or folder / "text.txt", SAMPLE_BYTES)
        (folder / "sample.txt").write_bytes(sample)
        names = harness.installed(peers)
        figures, _ = harness.run_rounds(__file__, names, folder, args.rounds)
        notes: dict[str, str] = {}
        for vocab_size in VOCAB_SIZES:
            notes |= compare_merges(folder, vocab_size)
    table = harness.format_table(peers, figures, notes)
    harness.write_table("bench_train", table, args)


if __name__ == "__main__":
    main()
