"""Stage fetch: bring train.txt and valid.txt to build/corpus.

`fetch.source` in params.yaml is a folder with train.txt and valid.txt, or a manifest
of pinned downloads (YAML: url, size in bytes and sha256 of each split).
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pipeline.stage import progress_bar, read_param
from tiny_llm.atomic import atomic_link, atomic_write
from tiny_llm.corpus import open_text, require_text
from tiny_llm.download import download, hide_password, read_pins
from tiny_llm.errors import ConfigError, InputError
from tiny_llm.layout import CORPUS_DIR, SPLITS

_COPY_BYTES = 32 << 20
_WANTED = (
    "the folder that holds train.txt and valid.txt, or a manifest such as "
    "pipeline/tinystories.yaml"
)


def run() -> str:
    """Bring both splits from the source that params.yaml names."""
    source = _find_source(read_param("fetch", "source"))
    if source.is_dir():
        _copy_folder(source)
    else:
        _download_manifest(source)
    written = (CORPUS_DIR / f"{split}.txt" for split in SPLITS)
    return "wrote " + ", ".join(
        f"{path}: {path.stat().st_size:,} bytes" for path in written
    )


def _find_source(name: object) -> Path:
    """Return the folder or the manifest; if it is missing, say more than DVC would."""
    if not isinstance(name, str) or not name:
        raise ConfigError(f"fetch.source is {name!r}; give {_WANTED}")
    if "://" in name:
        raise ConfigError(
            f"fetch.source is the URL {hide_password(name)}; put its url, size and "
            "sha256 in a manifest such as pipeline/tinystories.yaml, and give that"
        )
    if name.startswith("~"):
        raise ConfigError(
            f"fetch.source is {name}, but neither DVC nor params.yaml expands ~; give "
            f"the absolute path, {Path(name).expanduser()}"
        )
    source = Path(name)
    if not source.exists():
        raise InputError(f"fetch.source: no folder or file {name}; give {_WANTED}")
    return source


def _copy_folder(folder: Path) -> None:
    sources = {split: folder / f"{split}.txt" for split in SPLITS}
    for path in sources.values():
        if not path.is_file():
            raise InputError(
                f"{path}: no such file; fetch.source must hold train.txt and valid.txt"
            )
        require_text(path)
    for split, path in sources.items():
        with progress_bar(f"copy {split}", path.stat().st_size) as bar:
            _copy(path, CORPUS_DIR / f"{split}.txt", bar)


def _copy(source: Path, target: Path, bar: tqdm[Any]) -> None:
    """Copy in the kernel, which shares the blocks if the filesystem can.

    Never hard-link: DVC makes its files read-only, and editing the user's text would
    change DVC's copy.
    """
    with open_text(source) as reader, atomic_write(target) as writer:
        # Not supported on every system, nor between all filesystems.
        with contextlib.suppress(AttributeError, OSError):
            while copied := os.copy_file_range(
                reader.fileno(), writer.fileno(), _COPY_BYTES
            ):
                bar.update(copied)
        # The rest: usually nothing. Some filesystems stop early without an error.
        reader.seek(writer.seek(0, os.SEEK_END))
        shutil.copyfileobj(reader, writer, _COPY_BYTES)


def _download_manifest(path: Path) -> None:
    """Download both splits to the user's cache folder and hard-link or copy them."""
    for split, pin in read_pins(path).items():
        with progress_bar(f"download {split}", pin.size) as bar:
            cached = download(pin, on_progress=bar.update)
        require_text(cached)
        target = CORPUS_DIR / f"{split}.txt"
        if not atomic_link(cached, target):
            with progress_bar(f"copy {split}", pin.size) as bar:
                _copy(cached, target, bar)
