"""Stage fetch: turn your text, in whatever shape it is, into train.txt and valid.txt.

`fetch.source` in params.yaml is a file or a folder of text, JSON Lines or Parquet, or
a manifest of pinned downloads (YAML: url, size in bytes and sha256 of each file). The
other values of the section are optional. Writes build/corpus and metrics.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from pipeline.stage import progress_bar
from tiny_llm.atomic import write_json
from tiny_llm.download import Pin, download, hide_password, read_pins
from tiny_llm.errors import ConfigError, InputError
from tiny_llm.layout import CORPUS_DIR, PARAMS_PATH, REPORTS_DIR, SPLITS
from tiny_llm.source_files import SourceFiles, find_files
from tiny_llm.sources import Reading
from tiny_llm.splitting import Report, write_corpus
from tiny_llm.yaml_file import read_yaml

_WANTED = (
    "a file or a folder with your text, or a manifest such as pipeline/tinystories.yaml"
)


def run() -> str:
    """Write both splits from the source that params.yaml names."""
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
    splits: dict[str, list[Path]] = {}
    for split, pins in read_pins(manifest).items():
        for pin in [pins] if isinstance(pins, Pin) else pins:
            with progress_bar(f"download {split}", pin.size) as bar:
                path = download(pin, on_progress=bar.update)
            splits.setdefault(split, []).append(path)
    return SourceFiles(splits)


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
