"""The whole pipeline in one file's worth of names, for readers of tutorials.

    from tiny_llm.data import get_batch, prepare

    tokenizer = prepare()
    x, y = get_batch("train", batch_size=32, seq_len=256)

Each function calls the module that does the work. `python -m tiny_llm.data` prepares
the data and shows a batch.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tqdm import tqdm

from tiny_llm.batching import get_batch, load_token_array
from tiny_llm.corpus import read_sample, sample_bytes
from tiny_llm.download import download, read_pins
from tiny_llm.encoding import encode_file
from tiny_llm.tokenize import BPETokenizer
from tiny_llm.tokens import Manifest

__all__ = [
    "download_tinystories",
    "encode_and_save",
    "get_batch",
    "load_token_array",
    "prepare",
    "train_tokenizer",
]

_ROOT = Path(__file__).resolve().parents[1]


def prepare() -> BPETokenizer:
    """Run the pipeline as params.yaml has it, through DVC; what is done stays done.

    Returns:
        The tokenizer of the token files that `get_batch("train", ...)` reads.

    Raises:
        subprocess.CalledProcessError: A stage failed; it has said why on stderr.
    """
    bin_dir = os.path.dirname(sys.executable)
    path = os.pathsep.join([bin_dir, os.environ.get("PATH", "")])
    subprocess.run(
        [sys.executable, "-m", "dvc", "repro"],
        cwd=_ROOT,
        env={**os.environ, "PATH": path},
        check=True,
    )
    return BPETokenizer.load(_ROOT / "build" / "tokenizer.json")


def download_tinystories() -> dict[str, Path]:
    """Download TinyStories V2 (2.2 GB), once, to the user's cache folder.

    For the pipeline itself, set `fetch.source` to pipeline/tinystories.yaml instead.

    Returns:
        The path of each split's text, "train" and "valid".

    Raises:
        IntegrityError (a ValueError): The download failed.
    """
    paths = {}
    for split, pin in read_pins(_ROOT / "pipeline" / "tinystories.yaml").items():
        with tqdm(desc=f"download {split}", total=pin.size, unit_scale=True) as bar:
            paths[split] = download(pin, on_progress=bar.update)
    return paths


def train_tokenizer(
    train_path: str | os.PathLike[str], vocab_size: int = 4096, sample_mb: float = 10
) -> BPETokenizer:
    """Learn a tokenizer from the beginning of a text file.

    Args:
        train_path: Text; "<|endoftext|>" ends each document.
        vocab_size: 256 bytes, the separator and the merges, 257 to 2**20.
        sample_mb: How many MiB of whole documents to learn from.

    Raises:
        InputError (a ValueError): The file is missing or holds no document.
        ConfigError (a ValueError): A number is out of its range.
    """
    tokenizer = BPETokenizer()
    tokenizer.train(read_sample(train_path, sample_bytes(sample_mb)), vocab_size)
    return tokenizer


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
    try:
        tokenizer = prepare()
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)  # DVC and the stage have said why.
    x, y = get_batch("valid", batch_size=4, seq_len=16)
    shifted = bool((x[:, 1:] == y[:, :-1]).all())
    print(f"x {tuple(x.shape)} {x.dtype}, y {tuple(y.shape)} {y.dtype}")
    print(f"x[0] = {x[0].tolist()}\ny[0] = {y[0].tolist()}")
    print(f"x[0] reads {tokenizer.decode(x[0].numpy())!r}")
    print(f"y[0] reads {tokenizer.decode(y[0].numpy())!r}")
    print(f"y is x shifted by one: {shifted}")


if __name__ == "__main__":
    _main()
