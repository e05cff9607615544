"""The command tiny-llm with wrong input, closed pipes, full disks and signals."""

import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import ROOT, save_tokens
from tests.tool import COMMAND, refuse
from tiny_llm.tokenize import BPETokenizer
from tiny_llm.tokens import manifest_path


@pytest.mark.parametrize(
    ("status", "arguments", "words"),
    [
        (3, ["inspect", "gone.bin"], "gone.bin: no such token file"),
        (3, ["inspect", "build"], "build: no such token file"),
        (3, ["inspect", "train.txt"], "train.txt has no manifest"),
        (2, ["inspect", "train", "--at", "999999"], "at is 999,999; give an integer"),
        (2, ["inspect", "train", "--at", "-1"], "at is -1"),
        (2, ["inspect", "train", "--random", "-1"], "seed is -1"),
        (2, ["inspect", "train", "--documents", "0"], "num_documents is 0"),
        (3, ["inspect", "train", "--tokenizer", "gone"], "gone: no such file"),
        (3, ["verify", "gone.bin"], "gone.json: no manifest"),
        (3, ["encode", "--tokenizer", "train.txt", "x"], "not a byte-level BPE"),
        (3, ["decode", "300"], "id 300 is outside this tokenizer's vocab of 300"),
        (3, ["decode", "-5"], "id -5 is outside"),
        (3, ["decode", "x"], "'x' is not a token id; give integers from 0 to 299"),
        (3, ["decode", "9" * 99], "is not a token id; give integers from 0 to 299"),
        (3, ["batch", "gone.bin"], "gone.bin: no such token file"),
        (2, ["batch", "--seq-len", "9999"], "too few for one window"),
        (2, ["batch", "--batch-size", "0"], "batch_size is 0"),
        (2, ["batch", "--step", "3"], "step=3 needs a seed"),
        (3, ["export", "gone.bin", "--to", "llm.c"], "gone.json: no manifest"),
        (2, ["export", "train", "--to", "x"], "there is no format 'x'; give datatrove"),
        (3, ["card"], "dvc.lock: no such file; run this in the root of a checkout"),
        (2, ["card", "--set", "license"], "--set 'license' has no value; give NAME="),
        (2, ["card", "--set", "license="], "--set 'license=' has no value; give NAME="),
        (2, ["card", "--set", "licence=MIT"], "no property 'licence' here; give some"),
    ],
)
def test_wrong_input_ends_in_one_line_and_a_status(encoded, status, arguments, words):
    assert words in refuse(encoded, status, *arguments)


def test_a_file_without_manifest_is_named(project):
    manifest_path(project / "build/tokens/train.bin").unlink()
    for arguments in (["verify", "train"], ["export", "train", "--to", "megatron"]):
        assert "train.json: no manifest for" in refuse(project, 3, *arguments)
    for name in ("inspect", "batch"):
        assert "manifest build/tokens/train.json is missing" in refuse(
            project, 4, name, "train"
        )


def test_ids_that_the_tokenizer_does_not_know_are_refused(tmp_path):
    BPETokenizer().save(tmp_path / "tokenizer.json")
    save_tokens(tmp_path / "a.bin", [299], tokenizer_sha256=BPETokenizer().sha256)
    line = refuse(tmp_path, 3, "inspect", "a.bin")
    assert "id 299 is outside this tokenizer's vocab of 257" in line


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
@pytest.mark.parametrize("arguments", ["inspect big.bin --documents 99999", "--help"])
def test_a_closed_pipe_ends_a_command_without_a_word(tmp_path, arguments):
    ids = np.tile(np.array([104, 105, 256], np.uint16), 99_999)
    save_tokens(tmp_path / "big.bin", ids)
    process = subprocess.Popen(
        [*COMMAND, *arguments.split()],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(60) == -signal.SIGPIPE


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_under_stdout_is_named(encoded):
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*COMMAND, "encode", "hi"],
            cwd=encoded,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert done.returncode == 5
    [line] = done.stderr.decode().splitlines()
    assert "No space left on device" in line


@pytest.mark.skipif(os.name == "nt", reason="needs a shell")
@pytest.mark.parametrize(
    ("redirection", "status", "words"),
    [("<&-", 3, "stdin is closed"), (">&- </dev/null", 5, "stdout is closed")],
)
def test_a_closed_stream_is_named(encoded, redirection, status, words):
    done = subprocess.run(
        ["sh", "-c", f'"$@" encode {redirection}', "sh", *COMMAND],
        cwd=encoded,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=False,
    )
    assert done.returncode == status
    [line] = done.stderr.decode().splitlines()
    assert line.startswith("tiny-llm encode: error: ")
    assert words in line


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
def test_ctrl_c_while_stdin_is_awaited_ends_in_one_line(encoded):
    process = subprocess.Popen(
        [*COMMAND, "encode"],
        cwd=encoded,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    status = Path(f"/proc/{process.pid}/status")
    deadline = time.monotonic() + 20
    while status.exists() and "SigCgt:\t0000000000004002" not in status.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.decode().startswith("tiny-llm encode: error: interrupted; ")
    assert errors.count(b"\n") == 1
