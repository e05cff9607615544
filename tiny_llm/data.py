"""The whole pipeline behind a few functions, for readers of tutorials.

    from tiny_llm.data import get_batch, prepare

    tokenizer = prepare()
    x, y = get_batch("train", batch_size=32, seq_len=256)

Each function calls the module that does the work. `python -m tiny_llm.data` prepares
the data and shows a batch. torch is imported when batches are asked for, not before.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tiny_llm.corpus import sample_bytes
from tiny_llm.encoding import encode_file
from tiny_llm.errors import ConfigError, InputError, IntegrityError, ResourceError
from tiny_llm.layout import PARAMS_PATH, SPLITS, TOKENIZER_PATH, find_checkout
from tiny_llm.tokenize import BPETokenizer, check_vocab_size
from tiny_llm.tokens import Manifest
from tiny_llm.training import train_on_file

if TYPE_CHECKING:
    from tiny_llm.batching import get_batch, load_token_array

__all__ = [
    "download_tinystories",
    "encode_and_save",
    "get_batch",
    "load_token_array",
    "prepare",
    "train_tokenizer",
]

if not TYPE_CHECKING:  # With it, type checkers accept any name.

    def __getattr__(name: str) -> object:
        if name not in ("get_batch", "load_token_array"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        import tiny_llm.batching

        return getattr(tiny_llm.batching, name)


def __dir__() -> list[str]:
    return sorted(__all__)


def prepare(
    vocab_size: int | None = None, sample_mb: float | Literal["all"] | None = None
) -> BPETokenizer:
    """Run the pipeline through DVC, which skips stages that are up to date.

    Arguments that are given are written to params.yaml, as `dvc exp run -S` would, and
    reported on stderr. Needs a checkout of the repository.

    Args:
        vocab_size: 256 bytes, the separator and the merges, 257 to 2**20. By default
            params.yaml decides.
        sample_mb: How many MiB of whole documents to learn from, or "all". By default
            params.yaml decides.

    Returns:
        The tokenizer of the token files that `get_batch("train", ...)` reads.

    Raises:
        ConfigError, InputError, IntegrityError, ResourceError: An argument is out of
            range, or a stage failed; the message is that of the stage.
    """
    root = find_checkout()
    if importlib.util.find_spec("dvc") is None:
        raise ConfigError(
            f"{sys.executable} lacks DVC, which runs the pipeline; run `make repro` in "
            f"{root} and use the Python in .venv/bin"
        )
    values: dict[str, float | str] = {}
    if vocab_size is not None:
        check_vocab_size(vocab_size)
        values["vocab_size"] = int(vocab_size)
    if sample_mb is not None:
        sample_bytes(sample_mb)
        values["sample_mb"] = sample_mb
    for name, value in values.items():
        _set_param(root, name, value)
    _reproduce(root)
    return BPETokenizer.load(root / TOKENIZER_PATH)


def _set_param(root: Path, name: str, value: float | str) -> None:
    from tiny_llm.yaml_file import set_value

    old = set_value(root / PARAMS_PATH, "bpe", name, value)
    if old != value:
        sys.stderr.write(f"set bpe.{name} in {PARAMS_PATH}: {old} -> {value}\n")


def _reproduce(root: Path) -> None:
    """Run `dvc repro`, pass on its stderr, and raise the error that a stage printed."""
    bin_dir = os.path.dirname(sys.executable)
    path = os.pathsep.join([bin_dir, os.environ.get("PATH", "")])
    problem, status = "", InputError.exit_status
    with subprocess.Popen(
        [sys.executable, "-m", "dvc", "repro"],
        cwd=root,
        env={**os.environ, "PATH": path},
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    ) as process:
        for line in process.stderr or ():
            sys.stderr.write(line)  # Jupyter would not show DVC's own stderr.
            if found := re.search(r"pipeline \w+: error: (.*)|^ERROR: (.*)", line):
                problem = problem or found[1] or found[2]
            if found := re.search(r"exited with (\d+)", line):
                status = int(found[1])
    if problem.endswith("is not a git repository"):
        problem += "; run `git init` in it, or `dvc config --local core.no_scm true`"
    if process.returncode:
        kinds = (ConfigError, InputError, IntegrityError, ResourceError)
        kind = {kind.exit_status: kind for kind in kinds}.get(status, InputError)
        raise kind(problem or f"dvc repro ended with status {process.returncode}")


def download_tinystories() -> tuple[Path, Path]:
    """Download TinyStories V2 (2.2 GB), once, to the user's cache folder.

    The smaller split is downloaded first. To use TinyStories in the pipeline, set
    `fetch.source` to pipeline/tinystories.yaml instead.

    Returns:
        The paths of the train and valid texts.

    Raises:
        DownloadError (an IntegrityError): The download failed.
    """
    from tqdm import tqdm

    from tiny_llm.download import download
    from tiny_llm.pins import read_pins

    pins = read_pins(find_checkout() / "pipeline" / "tinystories.yaml")
    paths = {}
    for split in sorted(SPLITS, key=lambda split: pins[split][0].size):
        [pin] = pins[split]
        with tqdm(
            desc=f"download {split}",
            total=pin.size,
            unit="B",
            unit_scale=True,
            # A notebook shows stderr, though it is not a terminal.
            disable=not (sys.stderr.isatty() or "ipykernel" in sys.modules),
        ) as bar:
            paths[split] = download(pin, on_progress=bar.update, on_wait=_show_wait)
    return paths["train"], paths["valid"]


def _show_wait(line: str) -> None:
    from tqdm import tqdm

    tqdm.write(f"download: {line}", file=sys.stderr)


def train_tokenizer(
    train_path: str | os.PathLike[str],
    vocab_size: int = 4096,
    sample_mb: float | Literal["all"] = 10,
) -> BPETokenizer:
    """Learn a tokenizer from the beginning of a text file.

    Args:
        train_path: Text; "<|endoftext|>" ends each document.
        vocab_size: 256 bytes, the separator and the merges, 257 to 2**20.
        sample_mb: How many MiB of whole documents to learn from, or "all": the whole
            file, without reading it into memory.

    Returns:
        The tokenizer. A warning says so if its vocab size is smaller than asked for,
        because the sample has too few different pairs, or if pretokens of more than
        8,192 bytes were left out of the sample.

    Raises:
        InputError (a ValueError): The file is missing or holds no document.
        ConfigError (a ValueError): A number is out of range.
    """
    training = train_on_file(train_path, vocab_size, sample_mb)
    for line in filter(None, (training.left_out, training.shortfall)):
        warnings.warn(line, stacklevel=2)
    return training.tokenizer


def encode_and_save(
    tokenizer: BPETokenizer,
    src_path: str | os.PathLike[str],
    dst_path: str | os.PathLike[str],
) -> Manifest:
    """Encode a text file to a token file, for `load_token_array`.

    Args:
        tokenizer: Makes the ids.
        src_path: Text; "<|endoftext|>" ends each document.
        dst_path: The token file, `NAME.bin`; its manifest `NAME.json` goes beside it.

    Returns:
        The manifest: number of ids and documents, dtype, digests.

    Raises:
        InputError (a ValueError): The text is missing or holds no document.
        ConfigError (a ValueError): `dst_path` is not called NAME.bin.
    """
    return encode_file(tokenizer, src_path, dst_path)


def _main() -> None:
    from tiny_llm.batching import get_batch

    try:
        tokenizer = prepare()
    except (ConfigError, InputError, IntegrityError, ResourceError) as error:
        sys.stderr.write(f"python -m tiny_llm.data: error: {error}\n")
        sys.exit(error.exit_status)
    x, y = get_batch("valid", batch_size=4, seq_len=16)
    shifted = bool((x[:, 1:] == y[:, :-1]).all())
    print(f"x {tuple(x.shape)} {x.dtype}, y {tuple(y.shape)} {y.dtype}")
    print(f"x[0] = {x[0].tolist()}\ny[0] = {y[0].tolist()}")
    print(f"x[0] reads {tokenizer.decode(x[0].numpy())!r}")
    print(f"y[0] reads {tokenizer.decode(y[0].numpy())!r}")
    print(f"y is x shifted by one: {shifted}")


if __name__ == "__main__":
    _main()
