"""What every stage does: read its parameters, show progress, end in one line.

A fault with a cause the user can mend ends as one readable line on stderr and an
exit status: 2 configuration, 3 bad input, 4 integrity or download, 5 resources.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import itertools
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from tiny_llm.atomic import atomic_write
from tiny_llm.errors import ConfigError, InputError, IntegrityError, ResourceError

PARAMS_PATH = Path("params.yaml")


def run_stage(parser: argparse.ArgumentParser, work: Callable[..., str]) -> None:
    """Parse the command line, do the work, and say on stderr what was written.

    Args:
        parser: Its arguments become `work`'s keyword arguments.
        work: Returns the closing line.
    """
    arguments = vars(parser.parse_args())
    try:
        closing_line = work(**arguments)
    except (ConfigError, InputError, IntegrityError, ResourceError) as error:
        _fail(parser, str(error), error.exit_status)
    except MemoryError:
        _fail(parser, "out of memory; free some and run again", 5)
    except OSError as error:
        _fail(parser, str(error), 5)
    except KeyboardInterrupt:
        _fail(parser, "interrupted; nothing half-written was left behind", 130)
    else:
        sys.stderr.write(closing_line + "\n")


def _fail(parser: argparse.ArgumentParser, message: str, status: int) -> None:
    parser.exit(status, f"{parser.prog}: error: {' '.join(message.split())}\n")


def read_param(section: str, name: str) -> Any:
    """Read one value of params.yaml.

    Raises:
        ConfigError: The file is missing, is not plain YAML, or lacks the value.
    """
    if not PARAMS_PATH.is_file():
        raise ConfigError(f"no {PARAMS_PATH} here; run from the repository's root")
    try:
        params = yaml.safe_load(PARAMS_PATH.read_bytes())
    except yaml.YAMLError as error:
        raise ConfigError(f"{PARAMS_PATH} is not plain YAML: {error}") from error
    try:
        return params[section][name]
    except (KeyError, TypeError) as error:
        raise ConfigError(f"{PARAMS_PATH} lacks {section}.{name}; set it") from error


def progress_bar(label: str, num_bytes: int) -> tqdm[Any]:
    """A bar on stderr for work of more than a second; sparse lines in a log file."""
    return tqdm(
        desc=label,
        total=num_bytes,
        unit="B",
        unit_scale=True,
        delay=1,
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
    """Write counts against their rank (from 1), few enough for a log-log plot.

    Above rank 100 only ranks 1% apart are kept, and the last.
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
    """Show warnings of the library as one line each on stderr, after the block."""
    with warnings.catch_warnings(record=True) as caught:
        yield
    for warning in caught:
        line = " ".join(str(warning.message).split())
        sys.stderr.write(f"{prog}: warning: {line}\n")
