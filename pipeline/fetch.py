"""Stage fetch: turn your text, in whatever shape it is, into train.txt and valid.txt.

`fetch.source` in params.yaml is a file or a folder of text, JSON Lines or Parquet, or
a manifest of pinned downloads (YAML: url, size in bytes and sha256 of each file). The
other values of the section are optional. Writes build/corpus and metrics.

The options pin new downloads and verify those in the cache; they write neither.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml
from tqdm import tqdm

from pipeline.stage import progress_bar
from tiny_llm.atomic import write_json
from tiny_llm.download import cached_path, download, is_cached, measure
from tiny_llm.errors import ConfigError, InputError, IntegrityError
from tiny_llm.layout import CORPUS_DIR, PARAMS_PATH, REPORTS_DIR, SPLITS
from tiny_llm.pins import Pin, UnpinnedError, check_url, hide_password, read_pins
from tiny_llm.source_files import SourceFiles, find_files
from tiny_llm.sources import Reading
from tiny_llm.splitting import Report, write_corpus
from tiny_llm.yaml_file import read_yaml

_WANTED = (
    "a file or a folder with your text, or a manifest such as pipeline/tinystories.yaml"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Let the user pin files, or check the cache."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--pin",
        nargs="+",
        metavar="URL",
        help="download files to the cache and print their entries for a manifest",
    )
    group.add_argument(
        "--check",
        type=Path,
        metavar="MANIFEST",
        help="verify a manifest's files in the cache, without the network",
    )


def run(pin: Sequence[str] = (), check: Path | None = None) -> str:
    """Write both splits from the source that params.yaml names, or serve an option."""
    if pin:
        return _print_pins(pin)
    if check:
        return _check_cache(check)
    source, patterns, reading = _read_params()
    is_manifest = source.suffix.lower() in (".yaml", ".yml")
    if is_manifest:
        files = _download(source, patterns)
    else:
        _check_outputs(source)
        files = find_files(source, patterns)
    paths = [path for split in files.splits.values() for path in split]
    with progress_bar("read", sum(path.stat().st_size for path in paths)) as bar:
        report = write_corpus(
            files, CORPUS_DIR, reading, may_link=is_manifest, on_progress=bar.update
        )
    _write_report(report)
    return "wrote " + ", ".join(
        f"{CORPUS_DIR / split}.txt: {report.num_bytes[split]:,} bytes"
        for split in SPLITS
    )


def _read_params() -> tuple[Path, Sequence[str], Reading]:
    """Read section fetch: the source, which files of it, and how to read them."""
    try:
        section = dict(read_yaml(PARAMS_PATH)["fetch"])
        source = section.pop("source")
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{PARAMS_PATH} lacks fetch.source; set it") from error
    patterns = section.pop("files", [])
    if isinstance(patterns, str):
        patterns = [patterns]
    if not isinstance(patterns, list) or not all(
        isinstance(pattern, str) for pattern in patterns
    ):
        raise ConfigError(f"fetch.files is {patterns!r}; give a pattern such as *.txt")
    known = [field.name for field in dataclasses.fields(Reading)]
    for name in section:
        if name not in known:
            raise ConfigError(
                f"{PARAMS_PATH} has fetch.{name}, which does not exist; give source, "
                f"files, {', '.join(known)}"
            )
    return _find_source(source), patterns, Reading(**section)


def _find_source(name: object) -> Path:
    """Return the file or folder; if it is missing, say more than DVC would."""
    if not isinstance(name, str) or not name:
        raise ConfigError(f"fetch.source is {name!r}; give {_WANTED}")
    shown = hide_password(name if name.isprintable() else repr(name))
    shown = shown if len(shown) < 200 else f"{shown[:100]}...{shown[-50:]}"
    if "://" in name:
        raise ConfigError(
            f"fetch.source is the URL {shown}; put its url, size and "
            "sha256 in a manifest such as pipeline/tinystories.yaml, and give that"
        )
    if name.startswith("~"):
        raise ConfigError(
            f"fetch.source is {shown}, but neither DVC nor params.yaml expands ~; give "
            f"the absolute path, {Path(name).expanduser()}"
        )
    source = Path(name)
    if not os.path.exists(source):
        if "*" in name or "?" in name:
            raise ConfigError(
                f"fetch.source is the pattern {shown}, but DVC needs the name of a "
                "file or folder; give the folder, and the pattern as fetch.files"
            )
        raise InputError(f"fetch.source: no folder or file {shown}; give {_WANTED}")
    return source


def _check_outputs(source: Path) -> None:
    """Refuse a source that this stage would overwrite, or read as it is written."""
    corpus, source_path = CORPUS_DIR.resolve(), source.resolve()
    if corpus.is_relative_to(source_path) or source_path.is_relative_to(corpus):
        raise ConfigError(
            f"fetch.source is {source}, which holds what this stage writes, "
            f"{CORPUS_DIR}; give another file or folder"
        )


def _download(manifest: Path, patterns: Sequence[str]) -> SourceFiles:
    """Download what a manifest lists to the user's cache folder, and verify it."""
    if patterns:
        raise ConfigError(
            f"fetch.files chooses in a folder, but {manifest} is a manifest"
        )
    return SourceFiles(
        {
            split: [_download_pin(f"download {split}", pin) for pin in pins]
            for split, pins in _read_manifest(manifest).items()
        }
    )


def _download_pin(label: str, pin: Pin) -> Path:
    with progress_bar(label, pin.size, in_log=False) as bar:
        return download(pin, on_progress=bar.update, on_wait=_show_wait)


def _measure(url: str) -> Pin:
    with progress_bar("download", None, in_log=False) as bar:
        return measure(url, on_progress=bar.update, on_wait=_show_wait)


def _show_wait(line: str) -> None:
    """Say what a download waits for, also where no bar is shown."""
    tqdm.write(f"fetch: {line}", file=sys.stderr)


def _read_manifest(path: Path) -> dict[str, list[Pin]]:
    """Read a manifest; if a sha256 is missing, download the file to say what it is."""
    try:
        return read_pins(path)
    except UnpinnedError as error:
        pin = _measure(error.url)
        raise ConfigError(
            f"{error.place} lacks sha256; the file that was downloaded has size: "
            f"{pin.size} and sha256: {pin.sha256}, so add them if you trust it"
        ) from error


def _print_pins(urls: Sequence[str]) -> str:
    for url in urls:
        pin = _measure(check_url(url))
        entry = {"url": url, "size": pin.size, "sha256": pin.sha256}
        sys.stdout.write(yaml.safe_dump([entry], sort_keys=False, width=1 << 20))
    return f"pinned {len(urls)} file(s): put the lines into a manifest, under a split"


def _check_cache(manifest: Path) -> str:
    pins = [pin for pins in read_pins(manifest).values() for pin in pins]
    wrong = [pin for pin in pins if not is_cached(pin)]
    if wrong:
        names = ", ".join(
            f"{hide_password(pin.url)} is {_find_problem(cached_path(pin))}"
            for pin in wrong
        )
        raise IntegrityError(
            f"{manifest}: {len(wrong)} of {len(pins)} files are not in the cache as "
            f"pinned: {names}; run fetch to download them"
        )
    return f"verified {len(pins)} file(s) of {manifest} in the cache"


def _find_problem(path: Path) -> str:
    return f"damaged ({path})" if path.exists() else "missing"


def _write_report(report: Report) -> None:
    write_json(
        REPORTS_DIR / "fetch.json",
        {
            "num_files": report.num_files,
            "num_source_bytes": report.num_source_bytes,
            "num_dropped_empty": report.num_dropped_empty,
            "reached_max_documents": report.reached_max_documents,
            "num_documents": report.num_documents,
            "num_bytes": report.num_bytes,
        },
    )
