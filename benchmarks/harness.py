"""Benchmarks: one figure per fresh process, medians over interleaved rounds.

A script names its peers. It runs itself once per figure with `--one NAME`; that
process prints one line of JSON. Peers take turns, so a noisy machine disturbs all of
them, and a ratio is taken within a round, then its median over the rounds.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import gc
import importlib.metadata
import importlib.util
import json
import mmap
import os
import platform
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from tiny_llm.corpus import SEPARATOR

ROOT = Path(__file__).resolve().parents[1]
BUILT_IN_TEXT = ROOT / "data" / "train.txt"
RESULTS = Path(__file__).with_name("README.md")
PACKAGES = ("gigatoken", "numpy", "rustbpe", "tiktoken", "tokenizers")
GPT2_PATTERN = (
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
)

# Does the named work; returns what is left to do untimed, such as saving a result.
Work = Callable[[], Callable[[], object] | None]


@dataclasses.dataclass(frozen=True)
class Peer:
    """One row of a table.

    Attributes:
        label: How the table names it.
        package: What must be installed.
        prepare: Takes the paths of the text and of what to make of it; imports
            and loads, untimed, and returns the work to time.
        text: Name of the text file.
        baseline: Name of the peer whose time on the same text counts as 1.
    """

    label: str
    package: str
    prepare: Callable[[Path, Path], Work]
    text: str
    baseline: str

    @property
    def is_installed(self) -> bool:
        return importlib.util.find_spec(self.package) is not None


@dataclasses.dataclass(frozen=True)
class Figure:
    """What one process measured; MB are 10**6 bytes.

    Attributes:
        wall_s: Of the named work alone.
        cpu_s: User and system time of all threads, of the named work alone.
        peak_mb: The most memory the process had resident, from its start on.
        text_mb: Size of the text that was worked on.
    """

    wall_s: float
    cpu_s: float
    peak_mb: float
    text_mb: float


def parse_arguments(doc: str, *, takes_text: bool = True) -> argparse.Namespace:
    """Read the command line: a text, rounds, and what a fresh process must do."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.set_defaults(text=None)
    if takes_text:
        help_ = "default: data/train.txt"
        parser.add_argument("text", nargs="?", type=Path, help=help_)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    text = args.text or BUILT_IN_TEXT
    if not args.one and not text.is_file():
        parser.error(f"{text}: no such file; give the path of a text file")
    if args.rounds < 1:
        parser.error(f"--rounds is {args.rounds}; give 1 or more")
    return args


def measure(name: str, peer: Peer, folder: Path) -> None:
    """Do one peer's work in this process and print its figure."""
    source = folder / peer.text
    work = peer.prepare(source, output_path(folder, name))
    gc.collect()
    cpu_s, wall_s = time.process_time(), time.perf_counter()
    finish = work()
    wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
    figure = Figure(wall_s, cpu_s, _peak_mb(), os.path.getsize(source) / 1e6)
    if finish:
        finish()
    print(json.dumps(dataclasses.asdict(figure)))


def output_path(folder: Path, name: str) -> Path:
    """Where a peer leaves what it made, to be compared."""
    return folder / f"{name}.bin"


def run_rounds(
    script: str, peers: Mapping[str, Peer], folder: Path, num_rounds: int
) -> dict[str, list[Figure]]:
    """Measure each installed peer once per round, each time in a fresh process.

    Returns:
        For each installed peer, one figure per round.
    """
    names = [name for name, peer in peers.items() if peer.is_installed]
    figures: dict[str, list[Figure]] = {name: [] for name in names}
    for round_number in range(num_rounds):
        shift = round_number % len(names)
        for name in names[shift:] + names[:shift]:
            figure = Figure(**run_alone(script, name, folder))
            figures[name].append(figure)
            print(f"{round_number + 1}/{num_rounds} {name:20} {figure}", flush=True)
    return figures


def run_alone(
    script: str, name: str, folder: Path, python: str = sys.executable, **options: Any
) -> Any:
    """Run a script's `--one NAME` in a fresh process; what its last line says."""
    os.sync()  # Nobody waits for what an earlier peer left to write.
    result = subprocess.run(
        [python, script, "--one", name, "--folder", str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        **options,
    )
    return json.loads(result.stdout.splitlines()[-1])


def format_table(
    peers: Mapping[str, Peer],
    figures: Mapping[str, list[Figure]],
    notes: Mapping[str, str],
) -> str:
    """Lay out medians as a Markdown table; a missing peer keeps its row."""
    lines = [
        "| | text MB | wall s | CPU s | MB/s | peak MB | time, ours = 1 | made |",
        "|---|--:|--:|--:|--:|--:|--:|---|",
    ]
    for name, peer in peers.items():
        if name not in figures:
            lines.append(f"| {peer.label} | not installed | | | | | | |")
            continue
        own = figures[name]
        wall_s = median(figure.wall_s for figure in own)
        ratio = median(
            figure.wall_s / ours.wall_s
            for figure, ours in zip(own, figures[peer.baseline], strict=True)
        )
        cells = [
            peer.label,
            f"{own[0].text_mb:.1f}",
            f"{wall_s:.2f}",
            f"{median(figure.cpu_s for figure in own):.2f}",
            f"{own[0].text_mb / wall_s:.1f}",
            f"{median(figure.peak_mb for figure in own):.0f}",
            f"{ratio:.2f}" if name != peer.baseline else "1",
            notes[name],
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def write_table(
    name: str,
    table: str,
    args: argparse.Namespace,
    packages: Sequence[str] = PACKAGES,
) -> None:
    """Print a table; that of the built-in corpus goes into README.md too."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    text = args.text.name if args.text else "the built-in corpus"
    footer = f"Text: {text}. Rounds: {args.rounds}. {_machine(packages)}"
    section = f"{begin}\n{table}\n\n{footer}\n{end}"
    print(section)
    if args.text:
        return
    before, _, rest = RESULTS.read_text(encoding="utf-8").partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise SystemExit(f"{RESULTS}: no lines {begin} and {end}; put them back")
    RESULTS.write_text(before + section + after, encoding="utf-8")


def repeat_documents(target: Path, num_bytes: int) -> None:
    """Write the documents of the built-in corpus in shuffled order, again and again.

    The order is the same every time; the last document is whole.
    """
    *documents, _ = BUILT_IN_TEXT.read_bytes().split(SEPARATOR)
    dice = random.Random(0)
    with open(target, "wb") as file:
        while file.tell() < num_bytes:
            dice.shuffle(documents)
            for document in documents:
                file.write(document + SEPARATOR)
                if file.tell() >= num_bytes:
                    break


def drop_pages(path: Path) -> None:
    """Have a file leave the page cache, and see that it did; Linux only."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapping:
            content = np.frombuffer(mapping, dtype=np.uint8)
            states = np.ones(-(-len(content) // mmap.PAGESIZE), dtype=np.uint8)
            begin, target = map(
                ctypes.c_void_p, (content.ctypes.data, states.ctypes.data)
            )
            ctypes.CDLL(None).mincore(begin, ctypes.c_size_t(len(content)), target)
            del content
    if num_resident := int((states & 1).sum()):
        raise SystemExit(f"{num_resident} pages of {path} stay in the page cache")


def read_documents(path: Path) -> list[str]:
    """Split a text at separators, which are left out; line ends stay as they are."""
    return path.read_bytes().decode().split(SEPARATOR.decode())


def _peak_mb() -> float:
    # Linux: ru_maxrss would be at least what the parent process used.
    status = Path("/proc/self/status")
    if status.exists():
        line = next(x for x in status.read_text().splitlines() if "VmHWM" in x)
        return int(line.split()[1]) * 1024 / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def _machine(packages: Sequence[str]) -> str:
    cpu = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [x for x in cpuinfo.read_text().splitlines() if "model name" in x]
        cpu = names[0].partition(":")[2].strip() if names else platform.machine()
    versions = [
        f"{name} {importlib.metadata.version(name)}"
        for name in packages
        if importlib.util.find_spec(name)
    ]
    return (
        f"{cpu}, {os.cpu_count()} cores; Python {platform.python_version()}, "
        f"{', '.join(versions)}."
    )
