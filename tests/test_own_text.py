"""Your own text through the real stage: each row of the table in the README."""

import gzip
import hashlib
import json
import re
import signal
import subprocess
import sys
import time

import pyarrow as pa
import pyarrow.parquet
import pytest
import yaml

from tests.conftest import COMPRESS, ROOT, SEP, built, expect, run_up_to, serve_folder
from tiny_llm.tokenize import BPETokenizer
from tiny_llm.tokens import open_tokens

STORIES = [f"Story {number}.\nIt ends here.\n" for number in range(100)]
WITH_SEPARATOR = b"It says <|endoftext|> here.\n"


def rows() -> list[tuple[str, str]]:
    """The rows of the table: what you have, and the YAML you write."""
    text = (ROOT / "README.md").read_text().partition("**Your own text.**")[2]
    found = re.findall(r"(?m)^\| (.*) \| (.*source: .*) \|$", text)
    return [(have, "\n".join(re.findall("`(.*?)`", write))) for have, write in found]


@pytest.fixture
def texts(tmp_path):
    """What the rows name."""
    folder = tmp_path / "path" / "to"
    lines = [json.dumps({"text": story}).encode() + b"\n" for story in STORIES]
    odd = json.dumps({"text": WITH_SEPARATOR.decode()}).encode()
    contents = {
        "book.txt": "".join(STORIES).encode(),
        "poems.txt": "\n".join(STORIES).encode(),
        "stories.txt": b"".join(story.encode() + SEP for story in STORIES),
        "stories.jsonl": b"".join(lines),
        "stories.jsonl.zst": COMPRESS[".zst"](b"".join(lines)),
        "odd.jsonl": b"".join([*lines, odd]),
        "shards/a.jsonl.gz": gzip.compress(b"".join(lines[:50])),
        "shards/b.jsonl.gz": gzip.compress(b"".join(lines[50:])),
        "shards/README": b"not a shard",
        "splits/train.jsonl": b"".join(lines),
        "splits/valid.txt.gz": gzip.compress(b"Valid." + SEP),
        "code/data.bin": bytes(100),
    }
    for number, story in enumerate(STORIES):
        contents[f"texts/{number % 7}/{number}.txt"] = story.encode()
        contents[f"code/{number % 7}/{number}.py"] = story.encode()
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    pa.parquet.write_table(pa.table({"body": STORIES}), folder / "stories.parquet")
    return folder


def set_fetch(workspace, section: str):
    path = workspace.path / "params.yaml"
    params = {**yaml.safe_load(path.read_text()), "fetch": yaml.safe_load(section)}
    path.write_text(yaml.safe_dump(params))


def corpus(workspace) -> list[bytes]:
    folder = workspace.path / "build" / "corpus"
    return [(folder / f"{split}.txt").read_bytes() for split in ("train", "valid")]


def test_the_readme_shows_every_optional_value():
    shown = {name for _, written in rows() for name in yaml.safe_load(written)}
    readme = (ROOT / "README.md").read_text()
    assert len(rows()) == 13
    assert shown == {
        "source",
        "files",
        "text_field",
        "split_at_blank_lines",
        "separator_in_text",
        "max_documents",
    }
    assert "valid_fraction: 0.1" in readme


@pytest.mark.parametrize("row", range(13))
def test_a_row_of_the_readme_does_what_it_says(workspace, texts, row):
    have, section = rows()[row]
    set_fetch(workspace, section.replace("/path/to", str(texts)))
    if "tinystories.yaml" in section:
        with serve_folder(texts) as (url, _):
            content = (texts / "stories.txt").read_bytes()
            pin = {
                "url": f"{url}/stories.txt",
                "size": len(content),
                "sha256": hashlib.sha256(content).hexdigest(),
            }
            manifest = workspace.path / "pipeline" / "tinystories.yaml"
            manifest.write_text(json.dumps({"train": pin, "valid": pin}))
            done = workspace.stage("fetch")
    else:
        done = workspace.stage("fetch")
    assert done.returncode == 0, (have, done.stderr)
    train, valid = corpus(workspace)
    assert done.stderr == (
        f"wrote build/corpus/train.txt: {len(train):,} bytes, "
        f"build/corpus/valid.txt: {len(valid):,} bytes\n"
    )
    assert train.endswith(SEP)
    assert valid.endswith(SEP)
    found = train.split(SEP)[:-1] + valid.split(SEP)[:-1]
    report = json.loads((workspace.path / "reports" / "fetch.json").read_bytes())
    assert report["num_documents"] == {
        "train": train.count(SEP),
        "valid": valid.count(SEP),
    }
    assert report["num_bytes"] == {"train": len(train), "valid": len(valid)}
    assert report["reached_max_documents"] is False
    wanted = [story.encode() for story in STORIES]
    if "book.txt" in section:
        assert found == ["".join(STORIES[:90]).encode(), "".join(STORIES[90:]).encode()]
    elif "tinystories.yaml" in section:
        assert found == wanted * 2
    elif "splits" in section:
        assert found == [*wanted, b"Valid."]
    elif "odd.jsonl" in section:
        escaped = WITH_SEPARATOR.replace(SEP, b"<|endoftext\\|>")
        assert sorted(found) == sorted([*wanted, escaped])
    else:
        assert sorted(found) == sorted(wanted)
        assert report["num_documents"]["valid"] == 4


def test_a_newcomer_with_one_text_file_gets_batches_by_changing_one_line(
    clone, tmp_path, corpus_text
):
    text = corpus_text.replace(SEP, b"")
    (tmp_path / "book.txt").write_bytes(text)
    before = (clone.path / "params.yaml").read_text()
    clone.set_param("source", tmp_path / "book.txt")
    after = (clone.path / "params.yaml").read_text()
    changed = set(before.splitlines()) ^ set(after.splitlines())
    assert changed == {"  source: data", f"  source: {tmp_path / 'book.txt'}"}

    clone.dvc("repro")
    code = (
        "from tiny_llm.batching import get_batch\n"
        "x, y = get_batch('train', batch_size=2, seq_len=8)\n"
        "print(tuple(x.shape), bool((x[:, 1:] == y[:, :-1]).all()))\n"
    )
    assert clone.run(sys.executable, "-c", code).stdout == "(2, 8) True\n"
    tokenizer = BPETokenizer.load(clone.path / "build" / "tokenizer.json")
    parts = [
        tokenizer.decode_bytes(open_tokens(clone.path / "build" / "tokens" / name)[0])
        for name in ("train.bin", "valid.bin")
    ]
    assert b"".join(part.removesuffix(SEP) for part in parts) == text

    metrics = json.loads(clone.dvc("metrics", "show", "--json").stdout)
    shown = metrics[""]["data"]["reports/fetch.json"]["data"]
    assert shown["num_documents"] == {"train": 1, "valid": 1}


def test_dvc_notices_a_new_file_of_a_folder_and_an_optional_value(clone, texts):
    clone.set_param("source", texts / "texts")
    clone.dvc("repro", "fetch")
    assert "up to date" in clone.dvc("status", "fetch").stdout
    (texts / "texts" / "0" / "new.txt").write_text("A new story.")
    assert "new.txt" in clone.dvc("status", "fetch").stdout or (
        "modified" in clone.dvc("status", "fetch").stdout
    )
    clone.dvc("repro", "fetch")
    assert b"A new story." in b"".join(corpus(clone))
    path = clone.path / "params.yaml"
    path.write_text(
        path.read_text().replace("  source:", "  max_documents: 50\n  source:")
    )
    assert "params.yaml" in clone.dvc("status", "fetch").stdout
    clone.dvc("repro", "fetch")
    assert sum(text.count(SEP) for text in corpus(clone)) == 50


def test_the_bytes_are_those_of_the_other_shapes(workspace, texts):
    found = set()
    for name in ("stories.txt", "stories.jsonl", "stories.jsonl.zst", "shards"):
        section = f"source: {texts / name}"
        if name == "shards":
            section += '\nfiles: "*.gz"'
        set_fetch(workspace, section)
        run_up_to(workspace, "fetch")
        found.add(tuple(corpus(workspace)))
    assert len(found) == 1


@pytest.mark.parametrize(
    ("section", "status", "words"),
    [
        ("{source: /path/to/texts, file: x}", 2, ["fetch.file, which does not exist"]),
        ("{source: /path/to/texts, 3: x}", 2, ["fetch.3, which does not exist"]),
        ("{source: /path/to/texts, files: 3}", 2, ["fetch.files is 3; give a pattern"]),
        ("{source: /path/to/texts, files: [3]}", 2, ["fetch.files is [3]; give"]),
        ("{source: /path/to/texts, files: x}", 2, ["files is ['x'], but nothing in"]),
        ("{source: /path/to/book.txt, files: x}", 2, ["files chooses within a folder"]),
        ("{source: /path/to/texts, max_documents: 0}", 2, ["max_documents is 0; give"]),
        (
            "{source: /path/to/texts, valid_fraction: 1}",
            2,
            ["valid_fraction is 1; give"],
        ),
        (
            "{source: /path/to/odd.jsonl}",
            3,
            ["odd.jsonl, line 101: a document contains"],
        ),
        ("{source: /path/to/stories.parquet}", 3, ["set text_field", "'body'"]),
        (
            "{source: /path/to/code}",
            3,
            ["data.bin is binary", "setting files to *.txt"],
        ),
        ("{source: '/path/to/shards/*.gz'}", 2, ["the pattern /", "as fetch.files"]),
        ("{source: .}", 2, ["fetch.source is .", "which holds what this stage writes"]),
        ("{source: build/corpus}", 2, ["fetch.source is build/corpus, which holds"]),
        ("{source: build/corpus/train.txt}", 2, ["train.txt, which holds"]),
        (f"{{source: {'x' * 100_000}}}", 3, ["no folder or file xxx", "; give a file"]),
        (f"{{source: {'x/' * 2000}}}", 3, ["no folder or file x/x", "; give a file"]),
        ('{source: "a\\0b"}', 3, [r"no folder or file 'a\x00b'"]),
        ("[source]", 2, ["lacks fetch.source"]),
    ],
)
def test_a_bad_section_is_refused(workspace, texts, section, status, words):
    run_up_to(workspace, "fetch")
    before = built(workspace), corpus(workspace)
    set_fetch(workspace, "source: x")
    path = workspace.path / "params.yaml"
    section = section.replace("/path/to", str(texts))
    path.write_text(path.read_text().replace("\n  source: x\n", f" {section}\n"))
    done = workspace.stage("fetch")
    expect(done, status, *words)
    assert len(done.stderr) < 1000
    assert (built(workspace), corpus(workspace)) == before


def test_a_source_that_changes_while_it_is_read_ends_in_status_3(workspace, texts):
    """The stage is stopped in the middle, and the file is replaced meanwhile."""
    path = texts / "big.jsonl"
    content = (texts / "stories.jsonl").read_bytes() * 20_000
    path.write_bytes(content)
    set_fetch(workspace, f"source: {path}")
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline", "fetch"],
        cwd=workspace.path,
        env=workspace.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    folder = workspace.path / "build" / "corpus"
    while not list(folder.glob("*.tmp")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.001)
    process.send_signal(signal.SIGSTOP)
    (texts / ".other").write_bytes(content)
    (texts / ".other").rename(path)
    process.send_signal(signal.SIGCONT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 3
    assert "big.jsonl changed while it was read; run again" in errors.splitlines()[-1]
    assert built(workspace) == []
