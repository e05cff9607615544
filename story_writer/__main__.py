"""Command line of the story writer: `python -m story_writer [--out DIR]`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from story_writer.corpus import SEPARATOR, write_splits


def write_whole(path: Path, content: bytes) -> None:
    """Write beside the target, then rename: the final name is never half-written."""
    beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def main(arguments: list[str] | None = None) -> int:
    """Write train.txt and valid.txt; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m story_writer",
        description="Write the built-in corpus: train.txt and valid.txt.",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("data"),
        metavar="DIR",
        help="folder to write into, made if missing (default: %(default)s)",
    )
    out: Path = parser.parse_args(arguments).out
    try:
        out.mkdir(parents=True, exist_ok=True)
        for split, content in write_splits().items():
            path = out / f"{split}.txt"
            write_whole(path, content)
            num_stories = content.count(SEPARATOR.encode())
            sys.stderr.write(
                f"wrote {path}: {num_stories:,} stories, {len(content):,} bytes\n"
            )
    except OSError as error:
        sys.stderr.write(f"story_writer: cannot write into {out}: {error}\n")
        return 5
    return 0


if __name__ == "__main__":
    sys.exit(main())
