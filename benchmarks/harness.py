"""Benchmarks: one figure per fresh process, medians over interleaved rounds.

A script defines what to measure, by name. It runs itself once per figure with
`--one NAME`, and that process prints one line of JSON. The names take turns, so that
noise on the machine affects all of them. Ratios are computed within a round; the
tables show their median over the rounds.
"""

from __future__ import annotations

import argparse
import contextlib
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
import tempfile
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil

from tiny_llm.corpus import SEPARATOR

ROOT = Path(__file__).resolve().parents[1]
BUILT_IN_TEXT = ROOT / "data" / "train.txt"
RESULTS = Path(__file__).with_name("README.md")
PACKAGES = ("gigatoken", "numpy", "rustbpe", "tiktoken", "tokenizers")
TIMEOUT_S = 300
GPT2_PATTERN = (
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
)

# Does the work that is timed, and returns what remains to be done untimed, such as
# saving the result.
Work = Callable[[], Callable[[], object] | None]


@dataclasses.dataclass(frozen=True)
class Peer:
    """One row of a table.

    Attributes:
        label: Its name in the table.
        package: The module that must be installed.
        prepare: Takes the paths of the text and of the output. Imports and loads,
            untimed, and returns the work to time.
        text: File name of the text.
        baseline: Name of the peer whose time on the same text counts as 1.
    """

    label: str
    package: str
    prepare: Callable[[Path, Path], Work]
    text: str
    baseline: str


@dataclasses.dataclass(frozen=True)
class Figure:
    """What one process measured. A MB is 10**6 bytes.

    Attributes:
        wall_s: Wall time of the work alone, or of the whole process (`run_whole`).
        cpu_s: User and system time of all its threads and processes.
        peak_mb: Peak memory of the whole process, imports included: resident memory,
            or the proportional set sizes of the process and its descendants.
        text_mb: Size of the text.
    """

    wall_s: float
    cpu_s: float
    peak_mb: float
    text_mb: float


def parse_arguments(
    doc: str,
    add_arguments: Callable[[argparse.ArgumentParser], None] | None = None,
    *,
    takes_text: bool = True,
) -> argparse.Namespace:
    """Parse the command line; `--one` and `--folder` are for the fresh processes."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.set_defaults(text=None)
    if takes_text:
        help_ = "default: data/train.txt"
        parser.add_argument("text", nargs="?", type=Path, help=help_)
    if add_arguments:
        add_arguments(parser)
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
    """Do the work of one peer in this process and print its figure."""
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


def installed(peers: Mapping[str, Peer]) -> list[str]:
    """Return the names of the peers that can run here."""
    find = importlib.util.find_spec
    return [name for name, peer in peers.items() if find(peer.package)]


def output_path(folder: Path, name: str) -> Path:
    """Return where a peer saves its result, for comparison with ours."""
    return folder / f"{name}.bin"


def run_rounds(
    script: str,
    names: Sequence[str],
    folder: Path,
    num_rounds: int,
    *,
    run: Callable[[str, str, Path, str], Any] | None = None,
    pythons: Mapping[str, str] | None = None,
    may_fail: bool = False,
) -> tuple[dict[str, list[Any]], dict[str, str]]:
    """Run `script --one NAME` once per name and round, each in a fresh process.

    Args:
        script: Path of the benchmark.
        names: What to measure. Each round begins with a different name.
        folder: Where the script left the input files.
        num_rounds: Number of rounds.
        run: Makes a figure; `run_alone` by default.
        pythons: The interpreter for each name that cannot use ours.
        may_fail: Whether to continue without a name that fails, or to exit.

    Returns:
        For each name, what `run` returned in every round; and for each name that
        failed, the reason.
    """
    figures: dict[str, list[Any]] = {name: [] for name in names}
    failures: dict[str, str] = {}
    for round_number in range(num_rounds):
        shift = round_number % len(names)
        for name in [*names[shift:], *names[:shift]]:
            if name in failures:
                continue
            print(f"{round_number + 1}/{num_rounds} {name}", flush=True)
            python = (pythons or {}).get(name, sys.executable)
            try:
                figure = (run or run_alone)(script, name, folder, python)
                figures[name].append(figure)
            except subprocess.SubprocessError as error:
                reason = str(getattr(error, "stderr", "") or error).strip()
                print(reason, flush=True)
                failures[name] = reason.splitlines()[-1]
                if not may_fail:
                    raise SystemExit(f"{name} failed; nothing reported") from error
    return figures, failures


def run_alone(script: str, name: str, folder: Path, python: str) -> Any:
    """Run `script --one NAME` in a fresh process; return the JSON of its last line."""
    os.sync()  # Do not time the write-back of what earlier peers wrote.
    result = subprocess.run(
        [python, script, "--one", name, "--folder", str(folder)],
        capture_output=True,
        text=True,
        check=True,
        timeout=TIMEOUT_S,
    )
    return json.loads(result.stdout.splitlines()[-1])


def run_whole(
    command: Sequence[str], environment: Mapping[str, str], text: Path
) -> dict[str, float]:
    """Run a command on a text and measure the whole process, start-up included."""
    os.sync()
    with tempfile.TemporaryFile() as stderr, ThreadPoolExecutor(1) as pool:
        begin = time.perf_counter()
        process = subprocess.Popen(
            command, env={**os.environ, **environment}, stderr=stderr
        )
        peak = pool.submit(_peak_bytes, process.pid)
        _, status, usage = os.wait4(process.pid, 0)
        wall_s = time.perf_counter() - begin
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            stderr.seek(0)
            raise subprocess.CalledProcessError(
                process.returncode, command, stderr=stderr.read().decode()
            )
    text_mb = os.path.getsize(text) / 1e6
    cpu_s = usage.ru_utime + usage.ru_stime
    return dataclasses.asdict(Figure(wall_s, cpu_s, peak.result() / 1e6, text_mb))


def _peak_bytes(pid: int) -> int:
    """Watch the memory of a process and its descendants until it ends."""
    peak = 0
    while psutil.pid_exists(pid):
        begin = time.perf_counter()
        peak = max(peak, _tree_bytes(pid))
        # Looking takes 10 ms of a core, which the process would be without.
        time.sleep(20 * (time.perf_counter() - begin))
    return peak


def _tree_bytes(pid: int) -> int:
    """Sum the proportional set sizes of a process and its descendants; Linux only."""
    total = 0
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        for each in [process, *process.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                total += each.memory_full_info().pss
    return total


def format_table(
    peers: Mapping[str, Peer],
    figures: Mapping[str, list[dict[str, float]]],
    notes: Mapping[str, str],
) -> str:
    """Format medians as a Markdown table; a peer that is not installed gets a row."""
    lines = [
        "| | text MB | wall s | CPU s | MB/s | peak MB | time, ours = 1 | made |",
        "|---|--:|--:|--:|--:|--:|--:|---|",
    ]
    for name, peer in peers.items():
        if name not in figures:
            lines.append(f"| {peer.label} | not installed | | | | | | |")
            continue
        own = [Figure(**figure) for figure in figures[name]]
        ours = [Figure(**figure) for figure in figures[peer.baseline]]
        wall_s = median(figure.wall_s for figure in own)
        ratio = median(a.wall_s / b.wall_s for a, b in zip(own, ours, strict=True))
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
    """Print a table; also write it to README.md if it is for the built-in corpus."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    text = args.text.name if args.text else "the built-in corpus"
    footer = f"Text: {text}. Rounds: {args.rounds}. {_machine(packages)}"
    section = f"{begin}\n{table}\n\n{textwrap.fill(footer, 88)}\n{end}"
    print(section)
    if args.text:
        return
    before, _, rest = RESULTS.read_text(encoding="utf-8").partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise SystemExit(f"{RESULTS} lacks the lines {begin} and {end}; restore them")
    RESULTS.write_text(before + section + after, encoding="utf-8")


def repeat_documents(
    target: Path, num_bytes: int, source: Path = BUILT_IN_TEXT
) -> None:
    """Write the documents of a text repeatedly, shuffled each time.

    The order is the same in every run, and the last document is whole.
    """
    *documents, _ = source.read_bytes().split(SEPARATOR)
    dice = random.Random(0)
    with open(target, "wb") as file:
        while file.tell() < num_bytes:
            dice.shuffle(documents)
            for document in documents:
                file.write(document + SEPARATOR)
                if file.tell() >= num_bytes:
                    break


def drop_pages(path: Path) -> None:
    """Evict a file from the page cache and verify that it is gone; Linux only."""
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
        raise SystemExit(f"{num_resident} pages of {path} are still in the page cache")


def read_documents(path: Path) -> list[str]:
    """Split a text at separators, which are dropped; line endings are preserved."""
    return path.read_bytes().decode().split(SEPARATOR.decode())


def _peak_mb() -> float:
    # On Linux, ru_maxrss of a child is at least the parent's; VmHWM is its own.
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
