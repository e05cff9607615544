"""Command line of the story writer: `python -m tools.story_writer [--out DIR]`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tiny_llm.atomic import atomic_write
from tiny_llm.corpus import SEPARATOR
from tools.story_writer.corpus import tell_splits


def main(arguments: list[str] | None = None) -> int:
    """Write train.txt and valid.txt; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.story_writer",
        description="Write the built-in corpus: train.txt and valid.txt.",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("data"),
        metavar="DIR",
        help="folder to write into, created if missing (default: %(default)s)",
    )
    out: Path = parser.parse_args(arguments).out
    try:
        for split, content in tell_splits().items():
            path = out / f"{split}.txt"
            with atomic_write(path) as file:
                file.write(content)
            num_stories = content.count(SEPARATOR)
            sys.stderr.write(
                f"wrote {path}: {num_stories:,} stories, {len(content):,} bytes\n"
            )
    except OSError as error:
        sys.stderr.write(f"story_writer: cannot write to {out}: {error}\n")
        return 5
    return 0


if __name__ == "__main__":
    sys.exit(main())
