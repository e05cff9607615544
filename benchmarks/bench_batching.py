"""Batches: random windows of a token file as int64 tensors, for several loaders.

    python benchmarks/bench_batching.py [--rounds N]

The file holds 250 million uint16 ids: the built-in corpus, repeated. It is in the page
cache, except for the last table, which times first batches with a cold cache. Each
batch is kept until the next one is ready, as in a training loop. For each size and
round, one process times our kinds of batches in turn, and another times the plain code
of tutorials; every peer runs in its own processes. Nothing is reported unless all
tensors have the right shape and y is x shifted by one.

mosaicml-streaming needs a different numpy from the rest: set MOSAIC_PYTHON to a Python
that has it.
"""

from __future__ import annotations

import gc
import importlib.metadata
import itertools
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import harness
import numpy as np
import torch
from loaders import PEERS, Batch

from tiny_llm.batching import batches, get_batch, load_token_array
from tiny_llm.encoding import encode_file
from tiny_llm.tokenize import SEPARATOR_ID, BPETokenizer
from tiny_llm.tokens import write_tokens

MakeBatch = Callable[[], Batch]

NUM_IDS = 250_000_000
VOCAB_SIZE = 4096
PACKAGES = ("numpy", "torch")
SIZES = ((12, 1024), (64, 256), (32, 256), (256, 1024))  # batch_size, seq_len
PEER_SIZES = SIZES[2:]
COLD_SIZE = SIZES[0]
KINDS = ("ours", "limit", "limit-held", "seed", "epoch", "ahead")
TURNS, TURN_S = 5, 0.06
PEER_TURNS, PEER_TURN_S = 3, 0.15
COLD_STARTS = 5
STEPS, STEP_S = 40, 0.005
FEW_ROUNDS = 2


def make_plain(path: Path, batch_size: int, seq_len: int) -> MakeBatch:
    """As in tutorials: slice a memmap for each row of x and of y, widen, stack."""
    ids = np.memmap(path, dtype=np.uint16, mode="r")

    def make() -> Batch:
        starts = np.random.randint(0, len(ids) - seq_len, batch_size)
        x = np.stack([ids[i : i + seq_len].astype(np.int64) for i in starts])
        y = np.stack([ids[i + 1 : i + 1 + seq_len].astype(np.int64) for i in starts])
        return torch.from_numpy(x), torch.from_numpy(y)

    return make


def make_limit(
    path: Path, batch_size: int, seq_len: int, num_sets: int = 1
) -> MakeBatch:
    """Only gather and widen, as ours does, into one or more preallocated tensors."""
    ids = np.memmap(path, dtype=np.uint16, mode="r")
    window = np.dtype((np.void, ids.itemsize * (seq_len + 1)))
    shape, strides = (len(ids) - seq_len,), (ids.itemsize,)
    windows = np.ndarray(shape, window, buffer=ids, strides=strides)
    dice = np.random.default_rng(0)
    starts = itertools.cycle(dice.integers(shape[0], size=(2048, batch_size)))
    buffers = [np.zeros((2, batch_size, seq_len), np.int64) for _ in range(num_sets)]
    sets = itertools.cycle([(both, *torch.from_numpy(both)) for both in buffers])

    def make() -> Batch:
        rows = windows[next(starts)].view(np.uint16).reshape(batch_size, seq_len + 1)
        both, x, y = next(sets)
        both[0], both[1] = rows[:, :-1], rows[:, 1:]
        return x, y

    return make


def make_kinds(path: Path, *size: int) -> dict[str, MakeBatch]:
    ids = load_token_array(path)
    steps = itertools.count()
    ahead = batches(ids, *size, seed=1337, prefetch=2)
    return {
        "ours": lambda: get_batch(ids, *size),
        "limit": make_limit(path, *size),
        "limit-held": make_limit(path, *size, num_sets=2),
        "seed": lambda: get_batch(ids, *size, seed=1337, step=next(steps)),
        "epoch": lambda: get_batch(
            ids, *size, seed=1337, step=next(steps), replace=False
        ),
        "ahead": lambda: next(ahead)[1],
    }


def measure_plain(path: Path, *size: int) -> float:
    make = make_plain(path, *size)
    seconds = median(time_batches(make, TURN_S) for _ in range(TURNS))
    check_batch(make(), *size)
    return seconds


def measure_ours(path: Path, *size: int) -> dict[str, Any]:
    """Time each kind in turn; then feed two of them to a consumer that computes."""
    kinds = make_kinds(path, *size)
    turns = []
    for turn in range(TURNS):
        shift = turn % len(KINDS)
        names = KINDS[shift:] + KINDS[:shift]
        turns.append({name: time_batches(kinds[name], TURN_S) for name in names})
    for make in kinds.values():
        check_batch(make(), *size)
    waits = {name: wait_share(kinds[name]) for name in ("ours", "ahead")}
    return {"turns": turns, "waits": waits}


def time_batches(make: MakeBatch, seconds: float) -> float:
    """Return the seconds per batch, after a warm-up."""
    batch, begin = make(), time.perf_counter()
    while time.perf_counter() - begin < seconds / 2:
        batch = make()
    count, begin = 0, time.perf_counter()
    while (taken := time.perf_counter() - begin) < seconds or count < 8:
        batch = make()
        count += 1
    del batch
    return taken / count


def wait_share(make: MakeBatch) -> float:
    """Return the share of time that a consumer waits, with 5 ms of matmul per step."""
    a = torch.rand(128, 128)
    waited, begin = 0.0, time.perf_counter()
    for _ in range(STEPS):
        asked = time.perf_counter()
        batch = make()
        given = time.perf_counter()
        waited += given - asked
        while time.perf_counter() - given < STEP_S:
            a @ a
    del batch
    return waited / (time.perf_counter() - begin)


def check_batch(batch: Batch, batch_size: int, seq_len: int) -> None:
    x, y = batch
    shapes_are_right = x.shape == y.shape == (batch_size, seq_len)
    if not shapes_are_right or not x.dtype == y.dtype == torch.int64:
        raise SystemExit(f"wrong shape or dtype: {x.shape} {x.dtype}")
    if not torch.equal(x[:, 1:], y[:, :-1]) or not 0 < x.max() < VOCAB_SIZE:
        raise SystemExit("y is not x shifted by one, or an id is out of range")


def measure_peer(path: Path, name: str) -> dict[str, Any]:
    """Time ours and then the peer; starting its loader is timed separately."""
    peer = PEERS[name]
    ids = load_token_array(path)
    figure: dict[str, Any] = {"version": importlib.metadata.version(peer.package)}
    for size in PEER_SIZES:
        start = peer.load(path, *size)
        make_ours = partial(get_batch, ids, *size)
        begin = time.perf_counter()
        loader = start()
        check_batch(next(loader), *size)
        start_s = time.perf_counter() - begin
        turns = []
        for _ in range(PEER_TURNS):
            ours_s = time_batches(make_ours, TURN_S)
            peer_s = time_batches(partial(next, loader), PEER_TURN_S)
            turns.append({"s": peer_s, "ratio": peer_s / ours_s})
        check_batch(next(loader), *size)
        figure[str(size)] = {"start_s": start_s, "turns": turns}
        del loader
        gc.collect()
    return figure


def open_random(path: Path, *size: int) -> MakeBatch:
    return partial(get_batch, load_token_array(path, access="random"), *size)


def open_normal(path: Path, *size: int) -> MakeBatch:
    return partial(get_batch, load_token_array(path), *size)


COLD = {
    "plain": ("np.memmap, plain", make_plain),
    "normal": ("load_token_array", open_normal),
    "random": ('load_token_array, access="random"', open_random),
}


def measure_cold(path: Path, name: str) -> list[dict[str, float]]:
    """Time opening a file and its first batch: warm code, cold page cache."""
    _, open_file = COLD[name]
    open_file(path.with_name("small.bin"), *COLD_SIZE)()
    starts = []
    for _ in range(COLD_STARTS):
        harness.drop_pages(path)
        begin = time.perf_counter()
        make = open_file(path, *COLD_SIZE)
        opened = time.perf_counter()
        batch = make()
        done = time.perf_counter()
        check_batch(batch, *COLD_SIZE)
        starts.append({"open_s": opened - begin, "batch_s": done - opened})
        del make, batch
        gc.collect()
    return starts


def write_ids(folder: Path) -> Path:
    """Encode the built-in corpus, and repeat its ids until there are NUM_IDS."""
    text, small, path = harness.BUILT_IN_TEXT, folder / "small.bin", folder / "ids.bin"
    tokenizer = BPETokenizer()
    tokenizer.train(text.read_bytes(), VOCAB_SIZE)
    encode_file(tokenizer, text, small)
    ids = np.fromfile(small, dtype=np.uint16)
    with write_tokens(
        path,
        vocab_size=VOCAB_SIZE,
        separator_id=SEPARATOR_ID,
        tokenizer_sha256=tokenizer.sha256,
    ) as writer:
        for _ in range(-(-NUM_IDS // len(ids))):
            writer.append(ids)
    return path


def measure(name: str, folder: Path) -> object:
    path = folder / "ids.bin"
    what, _, rest = name.partition("-")
    if what == "peer":
        return measure_peer(path, rest)
    if what == "cold":
        return measure_cold(path, rest)
    size = map(int, rest.split("-"))
    return {"ours": measure_ours, "plain": measure_plain}[what](path, *size)


def format_loop(figures: Mapping[str, list[Any]]) -> str:
    heads = ("limit", "limit, held", "seed", "epoch", "ahead", "wait", "wait, ahead")
    lines = [
        f"| B x T | us | plain | {' | '.join(heads)} |",
        "|---" + "|--:" * (2 + len(heads)) + "|",
    ]
    for size in SIZES:
        rounds = figures[loop_name("ours", size)]
        ours_s = [median(turn["ours"] for turn in one["turns"]) for one in rounds]
        plain_s = figures[loop_name("plain", size)]
        ratio = median(a / b for a, b in zip(plain_s, ours_s, strict=True))
        cells = [f"{1e6 * median(ours_s):.0f}", f"{ratio:.1f}"]
        turns = [turn for one in rounds for turn in one["turns"]]
        for kind in KINDS[1:]:
            ratio = median(turn[kind] / turn["ours"] for turn in turns)
            cells.append(f"{ratio:.2f}")
        for kind in ("ours", "ahead"):
            share = median(one["waits"][kind] for one in rounds)
            cells.append(f"{100 * share:.1f}%")
        lines.append(f"| {size[0]} x {size[1]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def format_peers(figures: Mapping[str, list[Any]], failures: Mapping[str, str]) -> str:
    heads = [f"{b} x {t}, us | time, ours = 1" for b, t in PEER_SIZES]
    lines = [
        f"| | version | start, s | {' | '.join(heads)} |",
        "|---|---|--:|" + "--:|" * 2 * len(PEER_SIZES),
    ]
    for name, peer in PEERS.items():
        label = f"{peer.package} {peer.label}"
        rounds = figures.get(f"peer-{name}")
        if not rounds:
            reason = failures.get(f"peer-{name}", "not installed")
            lines.append(f"| {label} | {reason} |" + " |" * (1 + 2 * len(PEER_SIZES)))
            continue
        starts = [one[str(size)]["start_s"] for one in rounds for size in PEER_SIZES]
        cells = [label, rounds[0]["version"], f"{median(starts):.2f}"]
        for size in PEER_SIZES:
            turns = [turn for one in rounds for turn in one[str(size)]["turns"]]
            cells.append(f"{1e6 * median(turn['s'] for turn in turns):.0f}")
            cells.append(f"{median(turn['ratio'] for turn in turns):.1f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def format_cold(figures: Mapping[str, list[Any]], failures: Mapping[str, str]) -> str:
    lines = [
        "| cold, {} x {} | opening, ms | first batch, ms | both, plain = 1 |".format(
            *COLD_SIZE
        ),
        "|---|--:|--:|--:|",
    ]
    plain_s = None
    for name, (label, _) in COLD.items():
        starts = [start for one in figures[f"cold-{name}"] for start in one]
        if not starts:
            lines.append(f"| {label} | {failures[f'cold-{name}']} | | |")
            continue
        open_s = median(start["open_s"] for start in starts)
        batch_s = median(start["batch_s"] for start in starts)
        plain_s = plain_s or open_s + batch_s
        ratio = (open_s + batch_s) / plain_s
        cells = f"{1e3 * open_s:.2f} | {1e3 * batch_s:.2f} | {ratio:.3f}"
        lines.append(f"| {label} | {cells} |")
    return "\n".join(lines)


def loop_name(kind: str, size: tuple[int, int]) -> str:
    return f"{kind}-{size[0]}-{size[1]}"


def main() -> None:
    args = harness.parse_arguments(__doc__, takes_text=False)
    if args.one:
        print(json.dumps(measure(args.one, args.folder)))
        return
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_ids(folder)
        loops = [loop_name(kind, size) for size in SIZES for kind in ("ours", "plain")]
        run = partial(harness.run_rounds, __file__, folder=folder)
        figures, _ = run(loops, num_rounds=args.rounds)
        run = partial(run, num_rounds=min(args.rounds, FEW_ROUNDS), may_fail=True)
        pythons = {f"peer-{x}": y.python for x, y in PEERS.items() if y.is_installed}
        peers = run(list(pythons), pythons=pythons)
        # Last, because it leaves the file cold.
        colds = run([f"cold-{kind}" for kind in COLD])
    tables = [
        format_loop(figures),
        format_peers(*peers),
        format_cold(*colds),
        f"Load average before the run: {load:.1f}.",
    ]
    harness.write_table("bench_batching", "\n\n".join(tables), args, PACKAGES)


if __name__ == "__main__":
    main()
