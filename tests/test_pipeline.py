"""What a user does with DVC, on a fresh clone, with real DVC and git."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import SEP
from tests.test_engines import change_version
from tiny_llm.tokenize import BPETokenizer
from tiny_llm.tokens import open_tokens

# If one of these changes, token ids change: say it loudly in CHANGELOG.md.
SHA256SUMS = """\
34bef5c69b57f7837be9e7930c053d0721197ca643dc4dc39d56e7923d8a42fa tokenizer.json
82dfed3b3b17ce03c1f8cfcb1928643dc074aec225335b98399b39d11401dec1 tokens/train.bin
78a6c29b4b876451a6908b69eeb6d7d4d8323a64766525252b1393b142bec7ac tokens/valid.bin
"""
GOLDEN = {name: digest for digest, name in map(str.split, SHA256SUMS.splitlines())}


def digests(clone) -> dict[str, str]:
    return {
        name: hashlib.sha256((clone.path / "build" / name).read_bytes()).hexdigest()
        for name in GOLDEN
    }


def stages_run(done) -> list[str]:
    """The stages that DVC ran, not those it skipped or took from its run cache."""
    return [
        line.split("'")[1]
        for line in done.stdout.splitlines()
        if line.startswith("Running stage")
    ]


def read_json(clone, name):
    return json.loads((clone.path / name).read_bytes())


def test_a_fresh_clone_builds_the_golden_bytes_and_stays_clean(built_clone):
    assert digests(built_clone) == GOLDEN
    assert built_clone.git("status", "--porcelain") == ""
    assert "up to date" in built_clone.dvc("status").stdout
    assert "up to date" in built_clone.dvc("repro").stdout


def test_the_bytes_do_not_depend_on_the_environment(fresh_clone, tmp_path):
    clone = fresh_clone.copy(tmp_path / "clone")
    old_umask = os.umask(0o077)
    try:
        clone.dvc(
            "repro", TZ="Pacific/Auckland", LC_ALL="C", PYTHONHASHSEED="7", COLUMNS="40"
        )
    finally:
        os.umask(old_umask)
    assert digests(clone) == GOLDEN
    assert clone.git("status", "--porcelain") == ""


def test_the_other_engine_builds_the_golden_bytes(clone):
    for stage in (["bpe"], ["encode", "train"], ["encode", "valid"]):
        done = clone.stage(*stage, TINY_LLM_ENGINE="tokenizers")
        assert done.returncode == 0, done.stderr
    assert digests(clone) == GOLDEN
    assert clone.git("status", "--porcelain") == ""


def test_the_version_of_gigatoken_is_a_dependency_and_no_other_is(clone):
    lock = clone.path / "requirements.lock"
    lines = lock.read_text().splitlines(keepends=True)
    [place] = [i for i, line in enumerate(lines) if line.startswith("dvc==")]
    lines[place] = "dvc==3.99.9\n"
    lock.write_text("".join(lines))
    assert "up to date" in clone.dvc("status").stdout

    change_version(clone)
    status = json.loads(clone.dvc("status", "--json").stdout)
    assert set(status) == {"bpe", "encode-train", "encode-valid", "leakage"}
    for changes in status.values():
        modified = {"tiny_llm/engine_gigatoken.py": "modified"}
        assert {"changed deps": modified} in changes


def test_token_files_decode_to_the_built_in_corpus(built_clone):
    build = built_clone.path / "build"
    tokenizer = BPETokenizer.load(build / "tokenizer.json")
    assert tokenizer.vocab_size == 4096
    for split in ("train", "valid"):
        ids, _ = open_tokens(build / "tokens" / f"{split}.bin")
        source = (built_clone.path / "data" / f"{split}.txt").read_bytes()
        assert tokenizer.decode_bytes(ids) == source
        report = read_json(built_clone, f"reports/encode-{split}.json")
        assert report["num_tokens"] == len(ids)
        assert report["num_documents"] == source.count(SEP)


def test_a_new_vocab_size_reruns_what_depends_on_it_and_back_is_instant(clone):
    clone.set_param("vocab_size", 2048)

    diff = json.loads(clone.dvc("params", "diff", "--json").stdout)
    assert diff["params.yaml"]["bpe.vocab_size"] == {
        "old": 4096,
        "new": 2048,
        "diff": -2048,
    }
    assert "bpe.vocab_size" in clone.dvc("status").stdout
    done = clone.dvc("repro")
    assert stages_run(done) == [
        "bpe",
        "encode-train",
        "encode-valid",
        "leakage",
        "report",
    ]

    metrics = json.loads(clone.dvc("metrics", "diff", "--json").stdout)
    assert metrics["reports/bpe.json"]["vocab_size"]["new"] == 2048
    tokens = metrics["reports/encode-train.json"]["num_tokens"]
    assert tokens["new"] > tokens["old"]
    plots = clone.dvc("plots", "diff", "--json").stdout
    assert {"reports/merge_counts.csv", "reports/token_frequency-train.csv"} <= {
        name.split("::")[-1] for name in json.loads(plots)["data"]
    }
    assert '"type": "log"' in plots

    clone.set_param("vocab_size", 4096)
    done = clone.dvc("repro")
    assert stages_run(done) == []
    assert digests(clone) == GOLDEN
    assert clone.git("status", "--porcelain") == ""


def test_a_changed_byte_of_the_corpus_is_noticed(clone):
    path = clone.path / "data" / "valid.txt"
    text = path.read_bytes()
    path.write_bytes(text.replace(b"e", b"i", 1))
    status = clone.dvc("status").stdout
    assert "data.dvc" in status
    path.write_bytes(text)
    assert "up to date" in clone.dvc("status").stdout


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("tiny_llm/batching/batches.py", []),
        ("tiny_llm/download.py", ["fetch"]),
        ("tiny_llm/encoding.py", ["encode-train", "encode-valid"]),
        ("tiny_llm/tokenize.py", ["bpe", "encode-train", "encode-valid", "leakage"]),
        ("tiny_llm/overlap.py", ["leakage"]),
        ("tiny_llm/report/style.css", ["report"]),
    ],
)
def test_an_edit_reruns_the_stages_that_use_the_module(clone, name, expected):
    with (clone.path / name).open("a") as file:
        file.write("\n# a comment\n")
    assert stages_run(clone.dvc("repro")) == expected
    assert digests(clone) == GOLDEN


def test_an_experiment_on_a_folder_of_your_own(clone, tmp_path, text):
    source = tmp_path / "my stories"
    source.mkdir()
    (source / "train.txt").write_bytes(text * 50)
    (source / "valid.txt").write_bytes(b"\xff not UTF-8 \r\n" + text)
    clone.dvc("exp", "run", "-S", f"fetch.source={source}")
    build = clone.path / "build"
    tokenizer = BPETokenizer.load(build / "tokenizer.json")
    ids, _ = open_tokens(build / "tokens" / "valid.bin")
    assert tokenizer.decode_bytes(ids) == (source / "valid.txt").read_bytes()


def test_queued_experiments_leave_the_workspace_alone(clone):
    clone.dvc("exp", "run", "--queue", "-S", "bpe.vocab_size=512,1024")
    clone.dvc("queue", "start", "-j2")
    deadline = time.monotonic() + 150
    while time.monotonic() < deadline:
        status = clone.dvc("queue", "status").stdout
        if status.count("Success") == 2 or "Failed" in status:
            break
        time.sleep(1)
    assert status.count("Success") == 2, status
    rows = clone.dvc("exp", "show", "--csv").stdout
    assert ",512," in rows
    assert ",1024," in rows
    assert digests(clone) == GOLDEN
    assert clone.git("status", "--porcelain") == ""


def test_a_failed_stage_says_why_through_dvc(clone):
    clone.set_param("vocab_size", 5)
    done = clone.dvc("repro", check=False)
    assert done.returncode != 0
    assert "vocab_size is 5; give an integer from 257" in done.stderr
    assert "Traceback" not in done.stderr
    done = clone.run(sys.executable, "-m", "tiny_llm.data", check=False)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr


def test_a_killed_dvc_is_followed_by_a_clean_run(clone):
    clone.set_param("vocab_size", 3000)
    process = subprocess.Popen(
        [sys.executable, "-m", "dvc", "repro"],
        cwd=clone.path,
        env=clone.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    while "encode-train" not in process.stdout.readline():
        pass
    process.send_signal(signal.SIGKILL)
    process.communicate()
    clone.dvc("repro")
    clone.set_param("vocab_size", 4096)
    clone.dvc("repro")
    assert digests(clone) == GOLDEN
    assert clone.tool("verify").returncode == 0


def test_prepare_runs_the_pipeline_and_shows_a_batch(clone):
    (clone.path / "build" / "tokens" / "valid.bin").unlink()
    done = clone.run(sys.executable, "-m", "tiny_llm.data", PATH=os.environ["PATH"])
    lines = done.stdout.splitlines()
    assert "x (4, 16) torch.int64, y (4, 16) torch.int64" in lines
    assert "y is x shifted by one: True" in lines
    again = clone.run(sys.executable, "-m", "tiny_llm.data", PATH=os.environ["PATH"])
    assert "up to date" in again.stdout
    assert digests(clone) == GOLDEN
