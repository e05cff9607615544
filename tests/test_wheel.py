"""The wheel: what it holds, and what training code sees if only it is installed."""

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest

import tiny_llm
from tests.conftest import ROOT, save_tokens

# Checking torch takes mypy half a minute, so tensors are of type Any here; `make types`
# checks the library itself against torch.
MYPY_INI = """
[mypy]
strict = True
[mypy-torch.*,transformers.*]
follow_imports = skip
"""
# Training code. mypy must accept it and infer the types that it asserts.
CONSUMER = """
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from typing_extensions import assert_type

from tiny_llm import __version__
from tiny_llm.batching import Mixture, batches, get_batch, load_token_array
from tiny_llm.batching.loading import JoinedArrays, TokenFile
from tiny_llm.batching.sources import DeviceArray
from tiny_llm.encoding import encode_file
from tiny_llm.tokenize import BPETokenizer
from tiny_llm.tokens import Manifest

Batch = tuple[torch.Tensor, torch.Tensor]


def encode(folder: Path) -> int:
    tokenizer = BPETokenizer.load(folder / "tokenizer.json")
    assert_type(tokenizer.vocab_size, int)
    assert_type(tokenizer.decode([72, 105]), str)
    manifest = encode_file(tokenizer, folder / "a.txt", folder / "a.bin")
    assert_type(manifest, Manifest)
    return manifest.num_tokens


def train(path: Path, step: int) -> Iterator[tuple[int, Batch]]:
    ids = load_token_array(path)
    joined = load_token_array([path, str(path)], access="random")
    assert_type(ids, TokenFile)
    assert_type(load_token_array("train"), TokenFile)
    assert_type(joined, JoinedArrays)
    assert_type(load_token_array(path, "cpu"), DeviceArray)
    assert_type(load_token_array([path], device="cpu"), DeviceArray)
    assert_type(len(ids), int)
    assert_type(get_batch(ids, 2, 4, seed=1, step=step), Batch)
    assert_type(get_batch("train", 2, 4), Batch)
    mixture = Mixture([(ids, 0.7), (joined, 0.3)])
    assert_type(get_batch(mixture, 2, 4, device="cpu"), Batch)
    assert_type(__version__, str)
    return batches(np.arange(100, dtype=np.uint16), 2, 4, seed=1, start=step)
"""


class Installed(NamedTuple):
    """A wheel, and a Python that sees it and our dependencies, but no checkout."""

    wheel: Path
    python: Path

    def run(self, *arguments, cwd):
        return subprocess.run(
            [str(self.python), *arguments],
            cwd=cwd,
            env={name: os.environ[name] for name in os.environ if name != "PYTHONPATH"},
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.fixture(scope="session")
def installed(tmp_path_factory) -> Installed:
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    options = ["--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)]
    subprocess.run([*pip, "wheel", *options, str(ROOT)], check=True)
    [wheel] = folder.glob("*.whl")

    venv = folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    python = venv / "bin" / "python"
    paths = sysconfig.get_paths(vars={"base": str(venv), "platbase": str(venv)})
    # A .pth file adds our packages, but not the checkout: their .pth files are ignored.
    pth = Path(paths["purelib"]) / "dependencies.pth"
    pth.write_text(sysconfig.get_paths()["purelib"] + "\n")
    options = ["--no-deps", "--no-index", "--no-compile"]
    subprocess.run(
        [*pip, "--python", str(python), "install", *options, str(wheel)], check=True
    )
    return Installed(wheel, python)


def test_the_wheel_holds_only_the_library_and_its_type_marker(installed):
    with zipfile.ZipFile(installed.wheel) as wheel:
        names = [name for name in wheel.namelist() if ".dist-info/" not in name]
    assert "tiny_llm/py.typed" in names
    assert all(name.startswith("tiny_llm/") for name in names)
    assert installed.wheel.name.startswith(f"tiny_llm-{tiny_llm.__version__}-")


def test_training_code_passes_strict_type_checks_against_the_wheel(installed, tmp_path):
    (tmp_path / "consumer.py").write_text(CONSUMER)
    (tmp_path / "mypy.ini").write_text(MYPY_INI)
    done = installed.run("-m", "mypy", "consumer.py", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    (tmp_path / "consumer.py").write_text(CONSUMER.replace("str)", "bytes)"))
    done = installed.run("-m", "mypy", "consumer.py", cwd=tmp_path)
    assert "Expression is of type" in done.stdout


def test_outside_a_checkout_a_split_name_says_what_to_give(installed, tmp_path):
    script = """
import tiny_llm
from tiny_llm.batching import get_batch, load_token_array

print(tiny_llm.__file__, tiny_llm.__version__)
x, y = get_batch(load_token_array("a.bin"), 2, 4)
print(x.shape)
try:
    load_token_array("train")
except ValueError as error:
    print(error)
"""
    save_tokens(tmp_path / "a.bin", range(256))
    done = installed.run("-c", script, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    origin, shape, message = done.stdout.splitlines()
    assert str(ROOT) not in origin
    assert origin.endswith(tiny_llm.__version__)
    assert shape == "torch.Size([2, 4])"
    assert "outside a checkout" in message
    assert "give the path of a token file" in message


def test_the_wheel_installs_the_command(installed, tmp_path):
    save_tokens(tmp_path / "a.bin", range(256))
    command = installed.python.with_name("tiny-llm")
    done = subprocess.run(
        [command, "verify", "a.bin"], cwd=tmp_path, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(b"verified a.bin: 256 ids, ")
