"""Reading JSON Lines and Parquet, compared with json and with pyarrow's own reader.

    python -m benchmarks.bench_shapes [--mb 100] [--rounds 5]

A fresh process per figure, in turns. "fetch" is the whole work of the stage: find the
files, read, divide, write train.txt and valid.txt. The peers only read, and count the
bytes of text: json.loads of each line, and batches of a ParquetFile as Python strings.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tiny_llm.corpus import SEPARATOR
from tiny_llm.source_files import find_files
from tiny_llm.sources import Reading, read_documents
from tiny_llm.splitting import write_corpus

ROOT = Path(__file__).resolve().parents[1]
SHAPES = {"stories.jsonl": "json", "stories.jsonl.gz": "json", "stories.parquet": "pq"}


def make_files(folder: Path, num_bytes: int) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    text = (ROOT / "data" / "train.txt").read_text()
    stories = [story for story in text.split(SEPARATOR.decode()) if story.strip()]
    count = num_bytes // (len(text) // len(stories))
    documents = [f"{n}{stories[n % len(stories)]}" for n in range(count)]
    with open(folder / "stories.jsonl", "w") as file:
        file.writelines(
            json.dumps({"id": n, "text": d}) + "\n" for n, d in enumerate(documents)
        )
    with gzip.open(folder / "stories.jsonl.gz", "wb", 6) as file:
        file.write((folder / "stories.jsonl").read_bytes())
    parquet.write_table(pa.table({"text": documents}), folder / "stories.parquet")


def fetch(path: Path) -> int:
    with tempfile.TemporaryDirectory(dir=path.parent) as out:
        report = write_corpus(find_files(path), Path(out), Reading())
    num_separators = sum(report.num_documents.values())
    return sum(report.num_bytes.values()) - num_separators * len(SEPARATOR)


def read(path: Path) -> int:
    return sum(len(document) for _, document in read_documents(path, Reading()))


def read_json(path: Path) -> int:
    with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
        return sum(len(json.loads(line)["text"].encode()) for line in file)


def read_pq(path: Path) -> int:
    from pyarrow import parquet

    with parquet.ParquetFile(path) as table:
        return sum(
            len(document.encode())
            for batch in table.iter_batches(columns=["text"])
            for document in batch.column(0).to_pylist()
        )


def measure(work: str, path: Path) -> None:
    """Print seconds, bytes of text and peak MB; runs in a process of its own."""
    import orjson  # noqa: F401 - imported here, so that its import is not timed
    import pyarrow.parquet  # noqa: F401 - likewise

    begin = time.perf_counter()
    num_bytes = globals()[work](path)
    seconds = time.perf_counter() - begin
    status = Path("/proc/self/status").read_text()
    peak = int(status.partition("VmHWM:")[2].split()[0]) / 1000
    print(seconds, num_bytes, peak)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mb", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--one", nargs=2)
    options = parser.parse_args()
    if options.one:
        measure(options.one[0], Path(options.one[1]))
        return
    with tempfile.TemporaryDirectory() as folder:
        make_files(Path(folder), options.mb * 10**6)
        for name, peer in SHAPES.items():
            found: dict[str, list[list[float]]] = {}
            for _ in range(options.rounds):
                for work in ("fetch", "read", f"read_{peer}"):
                    command = [sys.executable, "-m", "benchmarks.bench_shapes", "--one"]
                    line = subprocess.check_output([*command, work, f"{folder}/{name}"])
                    found.setdefault(work, []).append([float(x) for x in line.split()])
            assert len({values[1] for rows in found.values() for values in rows}) == 1
            for work, rows in found.items():
                seconds = statistics.median(row[0] for row in rows)
                ratio = statistics.median(
                    theirs[0] / ours[0]
                    for theirs, ours in zip(found[f"read_{peer}"], rows, strict=True)
                )
                print(
                    f"{name} {work}: {rows[0][1] / seconds / 1e6:,.0f} MB/s, "
                    f"{ratio:.2f} times the pace of read_{peer}, peak "
                    f"{max(row[2] for row in rows):,.0f} MB"
                )


if __name__ == "__main__":
    main()
