"""What stages share: reading parameters, progress bars, plot data."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tiny_llm.atomic import atomic_write
from tiny_llm.errors import ConfigError
from tiny_llm.layout import PARAMS_PATH
from tiny_llm.yaml_file import read_yaml


def read_param(section: str, name: str) -> Any:
    """Read one value of params.yaml.

    Raises:
        InputError: The file is missing.
        ConfigError: The file is not plain YAML, or lacks the value.
    """
    try:
        return read_yaml(PARAMS_PATH)[section][name]
    except (KeyError, TypeError) as error:
        raise ConfigError(f"{PARAMS_PATH} lacks {section}.{name}; set it") from error


def progress_bar(
    label: str, num_bytes: int | None, *, in_log: bool = True
) -> tqdm[Any]:
    """A bar on stderr, shown after one second; updated every 30 s in a log file.

    Args:
        label: What is in progress.
        num_bytes: When it ends, if that is known.
        in_log: Whether to show it where stderr is not a terminal, too.
    """
    return tqdm(
        desc=label,
        total=num_bytes,
        unit="B",
        unit_scale=True,
        delay=1,
        disable=False if in_log else None,  # None: unless it is a terminal
        mininterval=0.2 if sys.stderr.isatty() else 30,
    )


def write_csv(
    path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]
) -> None:
    """Write plot data, atomically."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    with atomic_write(path) as file:
        file.write(text.getvalue().encode())


def write_rank_plot(path: Path, counts: Sequence[int]) -> None:
    """Write counts by rank, from rank 1, thinned out for a log-log plot.

    Above rank 100, only ranks 1% apart and the last one are kept.
    """
    ranks = itertools.accumulate(
        itertools.repeat(1), lambda rank, _: max(rank + 1, rank * 101 // 100)
    )
    kept = list(itertools.takewhile(lambda rank: rank < len(counts), ranks))
    if counts:
        kept.append(len(counts))
    write_csv(path, ("rank", "count"), ((rank, counts[rank - 1]) for rank in kept))


@contextlib.contextmanager
def show_warnings(prog: str) -> Iterator[None]:
    """Print each warning of the library as one line on stderr, after the block."""
    caught: list[warnings.WarningMessage] = []
    try:
        with warnings.catch_warnings(record=True) as caught:
            yield
    finally:
        for warning in caught:
            line = " ".join(str(warning.message).split())
            sys.stderr.write(f"{prog}: warning: {line}\n")
