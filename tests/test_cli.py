"""The command tiny-llm, run as a user runs it: what it shows, and how it fails."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import ROOT, SEP, STORIES, save_tokens
from tests.tool import load, refuse, run, show
from tiny_llm.commands import COMMANDS
from tiny_llm.encoding import encode_file
from tiny_llm.export import FORMATS
from tiny_llm.tokenize import BPETokenizer
from tiny_llm.tokens import open_tokens, read_manifest, write_tokens


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(encoded, name):
    text = show(encoded, name, "--help")
    assert text.startswith(f"usage: tiny-llm {name} ")
    assert COMMANDS[name].__doc__.splitlines()[0] in text
    assert "--json" in text


def test_help_lists_the_commands_and_nothing_at_all_is_an_error(encoded):
    text = show(encoded, "--help")
    for name in COMMANDS:
        assert f"\n    {name} " in text
    assert "required: COMMAND" in run(encoded, status=2).stderr.decode()


def test_inspect_shows_the_manifest_and_the_borders_of_tokens(encoded):
    text = show(encoded, "inspect", "train", COLUMNS="20")
    manifest = read_manifest(encoded / "build/tokens/train.bin")
    assert text.startswith("build/tokens/train.bin\n  ids         ")
    assert f"{manifest.num_tokens:,} of uint16\n" in text
    assert f"  sha256      {manifest.sha256}\n" in text
    assert "  tokenizer   build/tokenizer.json\n" in text
    assert text.count("\ndocument ") == 3
    assert "\ndocument 0, ids 0 to " in text
    assert text.count("│<|endoftext|>\n") == 3
    shown = text.partition("document 1")[2].partition("\n")[2].partition("\n\n")[0]
    assert shown.replace("│", "").replace("↵", "") == f"\n{STORIES[1]}\n<|endoftext|>"


def test_inspect_gives_json_with_ids_tokens_and_text(encoded):
    values = load(encoded, "inspect", "build/tokens/train.bin", "--documents", "99")
    ids, manifest = open_tokens(encoded / "build/tokens/train.bin")
    assert values["num_tokens"] == len(ids)
    assert values["manifest"]["tokenizer_sha256"] == manifest.tokenizer_sha256
    assert len(values["excerpts"]) == manifest.num_documents == len(STORIES)
    shown = np.concatenate([part["ids"] for part in values["excerpts"]])
    assert shown.tolist() == ids.tolist()
    for number, (part, story) in enumerate(
        zip(values["excerpts"], STORIES, strict=True)
    ):
        assert part["document"] == number
        assert part["text"].strip("\n") == f"{story}\n<|endoftext|>".strip("\n")
        assert len(part["tokens"]) == len(part["ids"])


def test_inspect_reads_from_a_position_and_at_random(encoded):
    ids, _ = open_tokens(encoded / "build/tokens/train.bin")
    first = ids.tolist().index(256) + 1
    at = ["--at", str(first + 5), "--documents", "1"]
    [part] = load(encoded, "inspect", "train", *at)["excerpts"]
    assert (part["document"], part["begin"]) == (1, first + 5)
    assert part["ids"] == ids[first + 5 : first + 5 + len(part["ids"])].tolist()
    assert f"document 1, 5 ids into it, ids {first + 5}" in show(
        encoded, "inspect", "train", *at
    )
    drawn = [
        [
            part["document"]
            for part in load(encoded, "inspect", "train", "--random", seed)["excerpts"]
        ]
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(set(drawn[0])) == 3


def test_inspect_cuts_long_documents(tmp_path):
    BPETokenizer().save(tmp_path / "tokenizer.json")
    (tmp_path / "a.txt").write_bytes(b"word " * 200 + SEP)
    encode_file(BPETokenizer(), tmp_path / "a.txt", tmp_path / "a.bin")
    assert show(tmp_path, "inspect", "a.bin").endswith("\n... and 489 more ids\n")
    assert load(tmp_path, "inspect", "a.bin")["excerpts"][0]["num_left_out"] == 489


def test_text_cannot_control_the_terminal(tmp_path):
    BPETokenizer().save(tmp_path / "tokenizer.json")
    ids = list(b"\x1b[31m\x07\x9b\xff\t\r\n")
    save_tokens(tmp_path / "a.bin", ids, 257, BPETokenizer().sha256)
    text = show(tmp_path, "inspect", "a.bin")
    assert r"\x1b│[│3│1│m│\x07│\x9b│\xff│\t│\r│↵" in text
    assert not set(text) & set("\x1b\x07\t\r")


def test_a_terminal_without_unicode_gets_escapes(encoded):
    text = show(encoded, "inspect", "train", PYTHONIOENCODING="ascii")
    assert "\\u2502" in text
    assert text.isascii()


def test_a_file_without_manifest_or_tokenizer_can_be_inspected(tmp_path):
    np.array([104, 105, 256], "<u2").tofile(tmp_path / "a.bin")
    text = show(tmp_path, "inspect", "a.bin")
    assert "manifest    none, so documents and the tokenizer are unknown" in text
    assert "tokenizer   none in its folder or the one above; give --tokenizer" in text
    assert text.endswith("\nids 0 to 3\n104 105 256\n")
    BPETokenizer().save(tmp_path / "my.json")
    text = show(tmp_path, "inspect", "a.bin", "--tokenizer", "my.json")
    assert text.endswith("\nh│i│<|endoftext|>\n")


def test_verify_checks_both_splits_or_the_files_given(project):
    text = show(project, "verify")
    assert text.startswith("verified build/tokens/train.bin: ")
    assert "\nverified build/tokens/valid.bin: " in text
    [value] = load(project, "verify", "build/tokens/valid.bin")
    assert value["path"] == "build/tokens/valid.bin"
    assert value["num_ranges"] == 1


def test_verify_says_whether_it_knew_the_tokenizer(project):
    text = show(project, "verify", "train")
    assert text.endswith("..., made by build/tokenizer.json\n")
    (project / "build" / "tokenizer.json").unlink()
    text = show(project, "verify", "train")
    assert text.endswith("..., tokenizer not verified\n")
    assert load(project, "verify", "train")[0]["tokenizer"] is None


def test_verify_names_what_is_damaged_and_goes_on(project):
    path = project / "build" / "tokens" / "train.bin"
    whole = path.read_bytes()
    path.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    done = run(project, "verify", status=4)
    [line] = done.stderr.decode().splitlines()
    assert line.startswith("tiny-llm verify: error: build/tokens/train.bin differs")
    assert "damaged: range 0 (bytes 0 to " in line
    assert done.stdout.startswith(b"verified build/tokens/valid.bin: ")
    path.write_bytes(whole[:-2])
    assert "its manifest says" in run(project, "verify", status=4).stderr.decode()
    path.unlink()
    done = run(project, "verify", "--json", status=3)
    assert "train.bin: no such token file" in done.stderr.decode()
    bad, good = json.loads(done.stdout)
    assert "no such token file" in bad["error"]
    assert good["path"] == "build/tokens/valid.bin"


def test_the_gravest_of_several_errors_gives_the_status(project):
    path = project / "build" / "tokens" / "train.bin"
    path.write_bytes(path.read_bytes()[:-2])
    done = run(project, "verify", "train", "gone.bin", status=4)
    assert done.stderr.count(b"tiny-llm verify: error: ") == 2
    assert done.stderr.count(b"\n") == 2


def test_verify_names_the_damaged_range_of_several(tmp_path):
    options = {"vocab_size": 300, "separator_id": 256, "tokenizer_sha256": ""}
    with write_tokens(tmp_path / "a.bin", **options) as writer:
        for value in range(5):
            writer.append(np.full(10, value, np.uint16))
        writer.rest_is_document = True
    content = bytearray((tmp_path / "a.bin").read_bytes())
    content[65] ^= 1
    (tmp_path / "a.bin").write_bytes(content)
    line = refuse(tmp_path, 4, "verify", "a.bin")
    assert "damaged: range 3 (bytes 60 to 80); encode" in line


def test_verify_refuses_ids_of_another_tokenizer(project):
    BPETokenizer().save(project / "build" / "tokenizer.json")
    done = run(project, "verify", status=4)
    assert done.stderr.count(b"was made by the tokenizer with sha256") == 2
    assert "was made by" in refuse(project, 4, "inspect", "train")


@pytest.mark.parametrize(
    "text", [b"Once upon a time\n", b"", b"caf\xc3\xa9\r\n", b"\xff\x00 not UTF-8 \xc3"]
)
def test_decode_inverts_encode_byte_for_byte(encoded, text):
    ids = run(encoded, "encode", given=text).stdout
    assert ids.decode().split() == [
        str(i) for i in load(encoded, "encode", given=text)["ids"]
    ]
    assert run(encoded, "decode", given=ids).stdout == text
    if text:
        assert run(encoded, "decode", *ids.decode().split()).stdout == text


def test_encode_takes_arguments_and_says_what_each_token_is(encoded):
    values = load(encoded, "encode", "the", "cat", "<|endoftext|>")
    assert "".join(values["tokens"]) == values["text"] == "the cat <|endoftext|>"
    assert values["ids"][-1] == 256
    assert values["num_bytes"] == len(values["text"])
    assert show(encoded, "encode", os.fsdecode(b"\xff")) == "255\n"


def test_decode_reads_a_pasted_list(encoded):
    assert show(encoded, "decode", "[72, 105, 256]") == "Hi<|endoftext|>"
    assert load(encoded, "decode", "72,255")["text"] == "H\ufffd"


def test_batch_shows_the_shift(encoded):
    arguments = ["--batch-size", "2", "--seq-len", "5", "--seed", "1", "--step", "2"]
    values = load(encoded, "batch", *arguments)
    assert values["shape"] == [2, 5]
    assert [row[1:] for row in values["x"]] == [row[:-1] for row in values["y"]]
    text = show(encoded, "batch", *arguments)
    lines = text.splitlines()
    assert lines[0].startswith("x and y: (2, 5) torch.int64; ")
    rows = [line.split() for line in lines[3:8]]
    assert [row[0] for row in rows] == list("01234")
    assert [int(row[1]) for row in rows] == values["x"][0]
    assert "\nx[1]  " in text
    other = load(encoded, "batch", "valid", *arguments[:-1], "3")
    assert other["x"] != values["x"]


@pytest.mark.parametrize("name", FORMATS)
def test_export_says_what_it_wrote_and_how_to_open_it(encoded, tmp_path, name):
    values = load(encoded, "export", "train", "--to", name, "--out", tmp_path / "out")
    text = show(encoded, "export", "train", "--to", name, "--out", tmp_path / "out")
    assert f"tokens: {values['tokens']}\n" in text
    assert f"wrote: {', '.join(values['written'])}\n" in text
    assert text.endswith(f"use: {values['usage']}\n")
    for written in values["written"]:
        assert Path(written).is_file()


def test_only_batch_imports_torch(encoded):
    script = """
import sys
from tiny_llm.cli import main
status = main(sys.argv[1:])
sys.exit(status or 100 * ("torch" in sys.modules))
"""
    commands = {
        "inspect": ["train"],
        "verify": [],
        "encode": ["hi"],
        "decode": ["72"],
        "batch": [],
        "export": ["train", "--to", "llm.c", "--out", "out"],
    }
    for name, arguments in commands.items():
        done = subprocess.run(
            [sys.executable, "-c", script, name, *arguments],
            cwd=encoded,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            check=False,
        )
        assert done.returncode == (100 if name == "batch" else 0), done.stderr
