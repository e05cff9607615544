"""examples/train.py as a user runs it: alone, killed and resumed, on two ranks."""

import csv
import hashlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from examples import train
from tests.conftest import ROOT
from tiny_llm.batching import fingerprint, get_batch
from tiny_llm.encoding import encode_file
from tiny_llm.tokenize import BPETokenizer

SIZES = {"num_layers": 2, "num_heads": 2, "width": 32, "seq_len": 16, "batch_size": 8}
RUN = {**SIZES, "num_steps": 200, "checkpoint_every": 20, "lr": 0.003, "seed": 7}
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


def arguments(folder: Path, out: Path, **options) -> list[str]:
    """The command line; True stands for an option without a value."""
    options = {"tokens": folder, "tokenizer": folder / "tokenizer.json"} | options
    line = [str(ROOT / "examples" / "train.py"), "--out", str(out), "--device", "cpu"]
    for name, value in options.items():
        line += [
            f"--{name.replace('_', '-')}",
            *([] if value is True else [str(value)]),
        ]
    return line


def start(folder: Path, out: Path, launcher=(), **options) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, *launcher, *arguments(folder, out, **options)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen) -> str:
    """Wait for success; return stdout."""
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return output


def read_trace(out: Path) -> list[dict[str, str]]:
    with open(out / "loss.csv", newline="") as file:
        return list(csv.DictReader(file))


def load(out: Path) -> dict:
    return torch.load(out / "checkpoint.pt", weights_only=True)


def encode(folder: Path, text: bytes) -> Path:
    tokenizer = BPETokenizer()
    tokenizer.train(text, vocab_size=300)
    tokenizer.save(folder / "tokenizer.json")
    for split, part in (("train", text[:-20_000]), ("valid", text[-20_000:])):
        (folder / f"{split}.txt").write_bytes(part)
        encode_file(tokenizer, folder / f"{split}.txt", folder / f"{split}.bin")
    return folder


@pytest.fixture(scope="module")
def tokens(tmp_path_factory, corpus_text) -> Path:
    """A folder of token files and their tokenizer, from about 600 stories."""
    return encode(tmp_path_factory.mktemp("tokens"), corpus_text[:500_000])


@pytest.fixture(scope="module")
def whole_run(tokens, tmp_path_factory) -> Path:
    """The folder of an uninterrupted run, with its stdout in printed.txt."""
    out = tmp_path_factory.mktemp("whole")
    (out / "printed.txt").write_text(finish(start(tokens, out, **RUN)))
    return out


def test_the_loss_falls_and_a_story_follows(whole_run):
    trace = read_trace(whole_run)
    assert [int(row["step"]) for row in trace] == list(range(200))
    assert float(trace[0]["loss"]) == pytest.approx(5.7, abs=0.2)  # ln(300)
    valid_losses = [float(row["valid_loss"]) for row in trace if row["valid_loss"]]
    assert len(valid_losses) == 10
    # Knowing only how frequent each id is gives 4.2.
    assert max(float(trace[-1]["loss"]), valid_losses[-1]) < 3.9
    lines, story = (whole_run / "printed.txt").read_text().split("\n\n", 1)
    assert lines.startswith("step    10  loss ")
    assert story.strip()


def test_the_model_looks_back_and_never_ahead():
    model = train.GPT(train.Config(**SIZES), vocab_size=50)
    ids = torch.arange(16)[None]
    changed = ids.clone()
    changed[0, 9] = 49
    ours, theirs = model(ids)[0], model(changed)[0]
    assert torch.equal(ours[:9], theirs[:9])
    assert not torch.isclose(ours[15], theirs[15]).all()


def test_a_killed_run_resumes_to_the_same_bytes(whole_run, tokens, tmp_path):
    process = start(tokens, tmp_path, **RUN)
    while not (tmp_path / "checkpoint.pt").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.001)
    time.sleep(random.uniform(0, 0.2))
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    saved = load(tmp_path)
    assert 0 < saved["step"] < RUN["num_steps"]
    assert saved["config"] == RUN
    assert saved["fingerprint"] == fingerprint(tokens / "train.bin")

    printed = finish(start(tokens, tmp_path, resume=True))
    story = (whole_run / "printed.txt").read_text().split("\n\n", 1)[1]
    assert printed.split("\n\n", 1)[1] == story
    assert (tmp_path / "loss.csv").read_bytes() == (whole_run / "loss.csv").read_bytes()
    ours, theirs = load(tmp_path)["model"], load(whole_run)["model"]
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_run_may_train_longer_than_planned(whole_run, tokens, tmp_path):
    shutil.copytree(whole_run, tmp_path, dirs_exist_ok=True)
    printed = finish(start(tokens, tmp_path, resume=True, num_steps=240))
    assert printed.splitlines()[0] == (
        "num_steps: 200 -> 240; from step 201 on, the learning rate follows the longer "
        "schedule, unlike in a run planned for it from the start"
    )
    before, after = read_trace(whole_run), read_trace(tmp_path)
    assert after[:200] == before
    assert [int(row["step"]) for row in after] == list(range(240))
    assert load(tmp_path)["config"] == RUN | {"num_steps": 240}
    for row in after[200:]:
        step = int(row["step"])
        x, _ = get_batch(tokens / "train.bin", 8, 16, seed=7, step=step, replace=False)
        digest = hashlib.sha256(x.numpy().tobytes()).hexdigest()
        assert row["batch_sha256"] == digest[:12]
    # The new number of steps is now part of the run.
    assert "num_steps:" not in finish(start(tokens, tmp_path, resume=True))


def test_the_same_number_of_steps_changes_nothing(whole_run, tokens, tmp_path):
    shutil.copytree(whole_run, tmp_path, dirs_exist_ok=True)
    printed = finish(start(tokens, tmp_path, resume=True, num_steps=200))
    assert "num_steps:" not in printed
    for name in ("loss.csv", "checkpoint.pt"):
        assert (tmp_path / name).read_bytes() == (whole_run / name).read_bytes()


def test_a_run_cannot_become_shorter(refuse, begun):
    status, line = refuse(begun, resume=True, num_steps=100)
    assert status == 2
    assert "num_steps is 100, but the run was planned for 200" in line


def test_every_option_has_a_help_text(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train.py", "--help"])
    with pytest.raises(SystemExit):
        train.main()
    options = capsys.readouterr().out.split("options:")[1]
    for entry in re.split(r"\n  (?=-)", options)[1:]:
        name, *text = re.split(r"\n {24}|  +", entry.strip(), maxsplit=1)
        assert text, name
        assert len(text[0]) > 5


def test_two_ranks_take_the_samples_of_one_and_learn_the_same(tokens, tmp_path):
    options = RUN | {"num_steps": 30}
    alone = start(tokens, tmp_path / "one", **options)
    finish(start(tokens, tmp_path / "two", TORCHRUN, **options))
    finish(alone)
    one, two = read_trace(tmp_path / "one"), read_trace(tmp_path / "two")
    for step, (row, other) in enumerate(zip(one, two, strict=True)):
        x, _ = get_batch(tokens / "train.bin", 8, 16, seed=7, step=step, replace=False)
        digest = hashlib.sha256(x.numpy().tobytes()).hexdigest()
        assert row["batch_sha256"] == other["batch_sha256"] == digest[:12]
        assert float(row["loss"]) == pytest.approx(float(other["loss"]), rel=1e-3)


@pytest.fixture
def refuse(tokens, monkeypatch, capsys):
    """Run in this process, expecting a refusal; return the exit status and the line."""

    def run(out: Path, folder: Path = tokens, **options) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", arguments(folder, out, **options))
        with pytest.raises(SystemExit) as stopped:
            train.main()
        printed = capsys.readouterr()
        assert printed.out == ""
        [line] = printed.err.splitlines()
        assert line.startswith("train.py: error: ")
        return stopped.value.code, line

    return run


@pytest.fixture
def begun(tokens, tmp_path) -> Path:
    """A folder with the parts of a checkpoint that the checks look at."""
    data = fingerprint(tokens / "train.bin")
    saved = {"config": RUN, "fingerprint": data, "step": 20}
    torch.save(saved, tmp_path / "checkpoint.pt")
    return tmp_path


def test_other_data_is_refused(refuse, begun, corpus_text):
    other = encode(begun, corpus_text[100_000:300_000])
    status, line = refuse(begun, other, resume=True)
    assert status == 4
    assert load(begun)["fingerprint"] in line
    assert "give the same data" in line


def test_options_that_contradict_the_checkpoint_are_refused(refuse, begun):
    status, line = refuse(begun, resume=True, seed=7, lr=0.02)
    assert status == 2
    assert "lr is 0.02, but the run began with 0.003" in line


def test_a_run_is_not_overwritten(refuse, begun):
    status, line = refuse(begun)
    assert status == 2
    assert "checkpoint.pt exists; give --resume or another --out" in line


def test_resume_without_the_out_of_the_run_names_out(refuse, begun, tmp_path):
    status, line = refuse(tmp_path / "default", resume=True)
    assert status == 3
    assert "give the --out of the run that stopped, or leave out --resume" in line


def test_a_damaged_checkpoint_is_refused(refuse, tmp_path):
    (tmp_path / "checkpoint.pt").write_bytes(b"PK")
    status, line = refuse(tmp_path, resume=True)
    assert status == 4
    assert "checkpoint.pt is damaged" in line


def test_a_tokenizer_that_did_not_make_the_ids_is_refused(refuse, tmp_path):
    BPETokenizer().save(tmp_path / "tokenizer.json")
    status, line = refuse(tmp_path, tokenizer=tmp_path / "tokenizer.json")
    assert status == 4
    assert "use that tokenizer" in line


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        ({"resume": True}, 3, "no checkpoint to resume from"),
        ({"tokens": "nowhere"}, 3, "nowhere"),
        ({"tokenizer": "nowhere.json"}, 3, "nowhere.json: no such file"),
        ({"num_steps": 0}, 2, "num_steps is 0; give one above 0"),
        ({"seed": -1}, 2, "seed is -1"),
        ({"lr": "nan"}, 2, "lr is nan"),
        ({"num_heads": 3}, 2, "width is 128; give a multiple of num_heads"),
        ({"seq_len": 20_000}, 2, "lower seq_len"),
    ],
)
def test_what_cannot_work_is_refused(refuse, tmp_path, options, status, message):
    found, line = refuse(tmp_path, **options)
    assert (found, message in line) == (status, True), line


def test_a_batch_that_ranks_cannot_share_is_refused(refuse, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "WORLD_SIZE", 3)
    status, line = refuse(tmp_path)
    assert status == 2
    assert "batch_size is 16, to be shared by 3 ranks" in line
