"""Stages run one by one: bad input ends in one line, a status, and no outputs."""

import hashlib
import json
import lzma
import os
import subprocess
import sys

import numpy as np
import pytest

from tests.conftest import COMPRESS, SEP, built, expect, run_up_to, serve_folder
from tiny_llm.tokenize import BPETokenizer


def test_a_stage_says_in_one_line_what_it_wrote(workspace):
    lines = [
        workspace.stage(*stage).stderr
        for stage in (["fetch"], ["bpe"], ["encode", "train"], ["encode", "valid"])
    ]
    assert all(line.count("\n") == 1 for line in lines)
    assert lines[0].startswith("wrote build/corpus/train.txt: ")
    assert lines[1].startswith("wrote build/tokenizer.json: vocab_size ")
    assert "vocab_size 4,096 was asked for, but the sample has pairs for" in lines[1]
    assert lines[2].startswith("wrote build/tokens/train.bin: ")
    assert lines[3].endswith(" bytes/token\n")
    assert built(workspace) == [
        "build/corpus/train.txt",
        "build/corpus/valid.txt",
        "build/id_counts-train.npy",
        "build/id_counts-valid.npy",
        "build/tokenizer.json",
        "build/tokenizer_config.json",
        "build/tokens/train.bin",
        "build/tokens/train.documents",
        "build/tokens/train.json",
        "build/tokens/valid.bin",
        "build/tokens/valid.documents",
        "build/tokens/valid.json",
        "reports/bpe.json",
        "reports/document_lengths-train.csv",
        "reports/document_lengths-valid.csv",
        "reports/encode-train.json",
        "reports/encode-valid.json",
        "reports/fetch.json",
        "reports/merge_counts.csv",
        "reports/token_frequency-train.csv",
        "reports/token_frequency-valid.csv",
    ]


def test_advice_on_a_small_vocab_fits_the_sample(workspace):
    run_up_to(workspace, "fetch")
    assert workspace.stage("bpe").stderr.endswith("or a smaller vocab_size\n")
    workspace.set_param("sample_mb", 0.0001)
    assert workspace.stage("bpe").stderr.endswith(": raise sample_mb\n")


@pytest.mark.parametrize("name", ["fetch", "bpe", "encode", "leakage", "report"])
def test_every_stage_explains_itself(workspace, name):
    done = workspace.stage(name, "--help")
    assert done.returncode == 0
    assert f"python -m pipeline {name}" in done.stdout


def test_the_help_of_the_pipeline_lists_its_stages(workspace):
    done = workspace.stage("--help")
    assert done.returncode == 0
    for name in ("fetch", "bpe", "encode SPLIT", "leakage", "report"):
        assert f"\n    {name} " in done.stdout
    without = workspace.run(sys.executable, "-m", "pipeline", check=False)
    assert (without.returncode, without.stderr) == (2, done.stdout)


@pytest.mark.parametrize("name", ["train", "stage", "tinystories.yaml", "../setup"])
def test_what_is_not_a_stage_is_refused(workspace, name):
    expect(workspace.stage(name), 2, f"there is no stage '{name}'", "--help")


def test_metrics_say_what_was_made(workspace, text):
    run_up_to(workspace, "encode valid")
    reports = workspace.path / "reports"
    bpe = json.loads((reports / "bpe.json").read_bytes())
    assert list(bpe) == [
        "vocab_size_asked",
        "vocab_size",
        "num_merges",
        "sample_bytes",
        "sample_documents",
        "sample_bytes_left_out",
        "last_merge_count",
    ]
    assert bpe["vocab_size_asked"] == 4096
    assert bpe["vocab_size"] == 257 + bpe["num_merges"] < 4096
    assert bpe["sample_bytes"] == len(text)
    assert bpe["sample_documents"] == text.count(SEP)
    assert bpe["sample_bytes_left_out"] == 0
    encode = json.loads((reports / "encode-train.json").read_bytes())
    assert encode["num_documents"] == text.count(SEP)
    assert encode["bytes_per_token"] == round(len(text) / encode["num_tokens"], 4)
    assert set(encode["tokens_per_document"]) == {"mean", "p50", "p95", "max"}
    assert 0 < encode["vocab_used"] <= 1
    rows = (reports / "token_frequency-train.csv").read_text().splitlines()
    assert rows[0] == "rank,count"
    counts = [int(row.split(",")[1]) for row in rows[1:]]
    assert sum(counts) == encode["num_tokens"]
    id_counts = np.load(workspace.path / "build" / "id_counts-train.npy")
    assert (len(id_counts), id_counts.sum()) == (bpe["vocab_size"], sum(counts))
    assert id_counts[256] == text.count(SEP)


def test_bytes_per_token_after_each_merge_are_those_of_a_tokenizer_of_that_size(
    workspace, text
):
    run_up_to(workspace, "bpe")
    rows = (workspace.path / "reports" / "merge_counts.csv").read_text().splitlines()
    assert rows[0] == "rank,count,bytes_per_token"
    merges = BPETokenizer.load(workspace.path / "build" / "tokenizer.json").merges
    assert len(rows) == 1 + len(merges)
    for row in rows[1:]:
        rank, _, bytes_per_token = row.split(",")
        num_tokens = len(BPETokenizer(merges[: int(rank)]).encode(text))
        assert float(bytes_per_token) == round(len(text) / num_tokens, 4)


@pytest.mark.parametrize(
    ("name", "value", "stage", "status", "words"),
    [
        ("source", "gone", "fetch", 3, ["no folder or file gone"]),
        ("source", "3", "fetch", 2, ["fetch.source is 3"]),
        ("source", "", "fetch", 2, ["fetch.source is None"]),
        ("source", "params.yaml", "fetch", 2, ["params.yaml lacks train"]),
        ("source", "params.yaml", "fetch", 2, ["or the folder that holds your train"]),
        ("source", "~/stories", "fetch", 2, ["~/stories", "nor params.yaml expands ~"]),
        ("source", "~/stories", "fetch", 2, ["give the absolute path, /", "/stories"]),
        ("source", "https://me:secret@x.org", "fetch", 2, ["URL https://***@x.org"]),
        ("source", "!!python/object/apply:os.getcwd []", "fetch", 2, ["plain YAML"]),
        ("vocab_size", "256", "bpe", 2, ["vocab_size is 256", "257"]),
        ("vocab_size", "2000000", "bpe", 2, ["vocab_size is 2,000,000", "1,048,576"]),
        ("vocab_size", "4096.0", "bpe", 2, ["vocab_size is 4096.0", "integer"]),
        ("vocab_size", "many", "bpe", 2, ["vocab_size is 'many'"]),
        ("vocab_size", "true", "bpe", 2, ["vocab_size is True"]),
        ("sample_mb", "0", "bpe", 2, ["sample_mb is 0"]),
        ("sample_mb", "-1", "bpe", 2, ["sample_mb is -1"]),
        ("sample_mb", ".nan", "bpe", 2, ["sample_mb is nan"]),
        ("sample_mb", ".inf", "bpe", 2, ["sample_mb is inf"]),
        ("sample_mb", "ten", "bpe", 2, ["sample_mb is 'ten'"]),
    ],
)
def test_a_bad_parameter_is_named(workspace, name, value, stage, status, words):
    if stage == "bpe":
        run_up_to(workspace, "fetch")
    before = built(workspace)
    workspace.set_param(name, value)
    expect(workspace.stage(stage), status, *words)
    assert built(workspace) == before


def test_a_missing_parameter_is_named(workspace):
    (workspace.path / "params.yaml").write_text("bpe:\n")
    expect(workspace.stage("fetch"), 2, "params.yaml lacks fetch.source")
    expect(workspace.stage("bpe"), 2, "params.yaml lacks bpe.vocab_size")


@pytest.mark.parametrize(
    "command", ["fetch", "bpe", "encode train", "encode valid", "leakage", "report"]
)
def test_another_folder_is_named_in_the_same_way_by_every_stage(workspace, command):
    (workspace.path / "params.yaml").unlink()
    done = workspace.stage(*command.split())
    expect(done, 2, f"no params.yaml in {workspace.path}; run it in the repository")


@pytest.mark.parametrize(
    "command", ["fetch", "bpe", "encode train", "encode valid", "leakage", "report"]
)
def test_a_python_without_the_packages_says_how_to_get_them(workspace, command):
    done = workspace.run(
        sys.executable, "-S", "-m", "pipeline", *command.split(), check=False
    )
    expect(done, 2, "lacks the packages", "`make repro`", "`. .venv/bin/activate`")


def test_a_source_folder_without_train_is_refused(workspace):
    (workspace.source / "train.txt").unlink()
    expect(workspace.stage("fetch"), 3, "holds valid.txt but no train; add train")
    assert built(workspace) == []


@pytest.mark.parametrize(
    "content",
    [b"Once there was a cat.\n", b'Ben: "hi": no\n', b"\xff\xfe", b"a b. " * 100_000],
    ids=["plain", "not YAML", "not UTF-8", "large"],
)
def test_a_text_as_manifest_is_refused_with_advice(workspace, content):
    (workspace.path / "stories.yaml").write_bytes(content)
    workspace.set_param("source", "stories.yaml")
    done = workspace.stage("fetch")
    expect(
        done, 2, "stories.yaml", "the folder that holds your train.txt and valid.txt"
    )
    assert built(workspace) == []


@pytest.mark.skipif(not os.path.isdir("/sys/kernel"), reason="needs Linux's /sys")
def test_a_folder_that_is_read_only_is_named_with_a_remedy(workspace):
    """Nobody can create files in /sys, not even root."""
    (workspace.path / "build").symlink_to("/sys/kernel")
    expect(workspace.stage("fetch"), 5, "build/corpus", "or work in a copy of your own")


def test_an_empty_source_is_refused(workspace):
    (workspace.source / "train.txt").write_bytes(b"")
    expect(workspace.stage("fetch"), 3, "train.txt holds no document, only 0 bytes")
    assert built(workspace) == []


@pytest.mark.parametrize("content", [b"\n \n", SEP, SEP + b"\n" + SEP + b"\n"])
def test_a_corpus_without_a_document_is_refused(workspace, content):
    (workspace.source / "train.txt").write_bytes(content)
    (workspace.source / "valid.txt").write_bytes(content)
    expect(workspace.stage("fetch"), 3, "my stories/train.txt holds no document")
    assert built(workspace) == []
    # The next stage refuses it too, in case it got there some other way.
    corpus = workspace.path / "build" / "corpus"
    corpus.mkdir(parents=True)
    (corpus / "train.txt").write_bytes(content)
    expect(workspace.stage("bpe"), 3, "build/corpus/train.txt", "no document")
    assert built(workspace) == ["build/corpus/train.txt"]


def test_a_split_without_a_document_is_refused(workspace):
    run_up_to(workspace, "bpe")
    (workspace.path / "build" / "corpus" / "valid.txt").write_bytes(SEP)
    before = built(workspace)
    expect(workspace.stage("encode", "valid"), 3, "valid.txt holds no document")
    assert built(workspace) == before


def test_stages_out_of_order_say_what_is_missing(workspace):
    expect(workspace.stage("bpe"), 3, "build/corpus/train.txt: no such file")
    expect(workspace.stage("encode", "train"), 3, "build/tokenizer.json: no such file")


def test_a_file_that_is_no_tokenizer_is_refused(workspace):
    run_up_to(workspace, "bpe")
    (workspace.path / "build" / "tokenizer.json").write_text("{}")
    expect(workspace.stage("encode", "train"), 3, "not a byte-level BPE tokenizer.json")


def test_an_unknown_split_is_refused(workspace):
    done = workspace.stage("encode", "test")
    assert done.returncode == 2
    assert "invalid choice" in done.stderr


@pytest.mark.skipif(os.name == "nt", reason="needs a shell's ulimit")
@pytest.mark.parametrize("stage", ["fetch", "bpe", "encode train"])
def test_a_disk_that_refuses_to_grow_a_file_is_named(workspace, stage, text):
    """A file size limit of 1 KiB takes the same code path as a full disk."""
    (workspace.source / "train.txt").write_bytes(text * 100)
    if stage != "fetch":
        run_up_to(workspace, {"bpe": "fetch"}.get(stage, "bpe"))
    before = built(workspace)
    done = workspace.run(
        "bash",
        "-c",
        f"ulimit -f 1; exec {sys.executable} -m pipeline {stage}",
        check=False,
    )
    expect(done, 5, "build/", "File too large")
    assert built(workspace) == before


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on memory")
def test_native_code_that_runs_out_of_memory_ends_in_one_line(workspace):
    """It aborts its process: Rust does not return from a failed allocation."""
    words = np.random.default_rng(0).integers(97, 123, (2_000_000, 9), np.uint8)
    words[:, 8] = ord(" ")
    (workspace.source / "train.txt").write_bytes(words.tobytes() + b"\xff")
    workspace.set_param("sample_mb", "all")
    run_up_to(workspace, "fetch")
    (workspace.path / "tmp").mkdir()
    before = built(workspace)
    done = workspace.run(
        "bash",
        "-c",
        f"ulimit -v 400000; exec {sys.executable} -m pipeline bpe",
        check=False,
        TMPDIR=str(workspace.path / "tmp"),
        OPENBLAS_NUM_THREADS="1",
    )
    expect(
        done,
        5,
        "the worker process on the sample of build/corpus/train.txt was killed by "
        "SIGABRT, probably because memory ran out",
        "free memory or lower sample_mb",
    )
    assert built(workspace) == before
    assert not list((workspace.path / "tmp").iterdir())


def test_two_runs_of_one_stage_leave_one_whole_result(workspace):
    run_up_to(workspace, "bpe")
    command = [sys.executable, "-m", "pipeline", "encode", "train"]
    runs = [
        subprocess.Popen(command, cwd=workspace.path, stderr=subprocess.DEVNULL)
        for _ in range(3)
    ]
    assert [run.wait() for run in runs] == [0, 0, 0]
    workspace.stage("encode", "valid")
    assert workspace.tool("verify").returncode == 0
    assert not [name for name in built(workspace) if name.endswith(".tmp")]


def test_the_source_is_copied_byte_for_byte_and_left_alone(workspace, text):
    run_up_to(workspace, "fetch")
    copy = workspace.path / "build" / "corpus" / "train.txt"
    assert copy.read_bytes() == text
    assert not os.path.samefile(copy, workspace.source / "train.txt")


def test_a_manifest_is_downloaded_once_and_verified(workspace, text):
    manifest = workspace.path / "pins.yaml"
    workspace.set_param("source", "pins.yaml")
    with serve_folder(workspace.source) as (url, _):
        pins = {
            split: {
                "url": f"{url}/{split}.txt",
                "size": len(text),
                "sha256": hashlib.sha256(text).hexdigest(),
            }
            for split in ("train", "valid")
        }
        manifest.write_text(json.dumps(pins))
        run_up_to(workspace, "fetch")
        pins["valid"]["sha256"] = "0" * 64
        manifest.write_text(json.dumps(pins))
        expect(workspace.stage("fetch"), 4, "valid.txt: got sha256", "not 0000")
    pins["valid"]["sha256"] = pins["train"]["sha256"]
    manifest.write_text(json.dumps(pins))
    run_up_to(workspace, "fetch")  # From the cache: the server is gone.
    assert (workspace.path / "build" / "corpus" / "valid.txt").read_bytes() == text


def test_a_source_that_is_not_plain_text_is_refused(workspace, text):
    (workspace.source / "valid.txt").write_bytes(lzma.compress(text))
    expect(workspace.stage("fetch"), 3, "valid.txt is an xz file; decompress it")
    assert built(workspace) == []


@pytest.mark.parametrize(("kind", "ending"), [("gzip", ".gz"), ("zstd", ".zst")])
def test_a_compressed_source_that_is_called_txt_is_refused(
    workspace, text, kind, ending
):
    (workspace.source / "train.txt").write_bytes(COMPRESS[ending](text))
    done = workspace.stage("fetch")
    expect(done, 3, f"train.txt is a {kind} file, but its name does not say so")
    assert built(workspace) == []


def test_a_text_with_invalid_bytes_is_encoded_with_a_warning(workspace, text):
    (workspace.source / "train.txt").write_bytes(b"caf\xe9 \xff\n" + text)
    run_up_to(workspace, "bpe")
    done = workspace.stage("encode", "train")
    assert done.returncode == 0
    warning, closing_line = done.stderr.splitlines()
    assert warning.startswith(
        "python -m pipeline encode: warning: build/corpus/train.txt contains invalid "
        "UTF-8 (bytes: 2, first offset: 3); "
    )
    assert closing_line.startswith("wrote build/tokens/train.bin: ")
    report = workspace.path / "reports" / "encode-train.json"
    assert json.loads(report.read_bytes())["num_invalid_bytes"] == 2
