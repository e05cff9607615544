"""Which files a source consists of; files that change or cannot be read."""

import gzip
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from tests.conftest import (
    COMPRESS,
    ROOT,
    SEP,
    needs_proc,
    refuse,
    stories,
    texts,
    write,
)
from tiny_llm.errors import ConfigError, InputError
from tiny_llm.source_files import find_files, open_file
from tiny_llm.sources import Reading
from tiny_llm.splitting import write_corpus


def test_files_are_in_the_order_of_their_paths(source):
    names = ["b/2.txt", "a.txt", "B.txt", "b/10.txt", "b.txt", "c/d/e/f", "é.txt"]
    random.Random(1).shuffle(names)
    for name in names:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(name)
    (source / ".hidden").write_text("x")
    (source / ".git").mkdir()
    (source / ".git" / "config").write_text("x")
    found = find_files(source).splits
    assert list(found) == ["train"]
    assert [str(path.relative_to(source)) for path in found["train"]] == sorted(names)


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["*.py"], ["a.py", "src/b.py", "src/lib/c.py"]),
        (["**/*.py"], ["a.py", "src/b.py", "src/lib/c.py"]),
        (["src/**/*.py"], ["src/b.py", "src/lib/c.py"]),
        (["a.*", "*.md"], ["a.py", "src/d.md"]),
        (["[ab].py"], ["a.py"]),
    ],
)
def test_patterns_choose_files(source, patterns, expected):
    for name in ("a.py", "src/b.py", "src/lib/c.py", "src/d.md", "e.pyc"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text("x")
    found = find_files(source, patterns).splits["train"]
    assert [str(path.relative_to(source)) for path in found] == expected


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (
            ["train.txt", "valid.jsonl.gz", "README.md"],
            [["train.txt"], ["valid.jsonl.gz"]],
        ),
        (["train/b", "train/a", "valid/c"], [["train/a", "train/b"], ["valid/c"]]),
        (
            ["train-0.parquet", "train-1.parquet", "valid-0.parquet"],
            [["train-0.parquet", "train-1.parquet"], ["valid-0.parquet"]],
        ),
        (["train.1.txt", "train.2.txt"], [["train.1.txt", "train.2.txt"]]),
        (["training.txt", "validity.txt"], [["training.txt", "validity.txt"]]),
    ],
)
def test_names_say_which_split_a_file_belongs_to(source, names, expected):
    for name in names:
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text("x")
    found = find_files(source).splits
    assert [
        [str(path.relative_to(source)) for path in paths] for paths in found.values()
    ] == expected


@pytest.mark.parametrize(
    ("names", "error", "match"),
    [
        ([], InputError, "holds no file; give a folder with text"),
        (["valid.txt"], InputError, "holds valid.txt but no train; add train"),
        (["train.txt", "boat.txt"], ConfigError, "unclear what boat.txt is; add valid"),
        (["valid.txt", "boat.txt"], ConfigError, "unclear what boat.txt is; add train"),
    ],
)
def test_an_unclear_folder_is_refused(source, out, names, error, match):
    for name in names:
        (source / name).write_text("x")
    refuse(error, source, out, match)


def test_a_pattern_that_matches_nothing_is_refused(source, out):
    (source / "a.txt").write_text("x")
    refuse(ConfigError, source, out, r"files is \['\*.jsonl'\], but nothing", "*.jsonl")
    refuse(ConfigError, source / "a.txt", out, "chooses within a folder", "*.txt")


@pytest.mark.parametrize("pattern", ["../*", "/etc/passwd", "**/../../*"])
def test_a_pattern_never_leads_out_of_the_folder(source, out, tmp_path, pattern):
    (tmp_path / "secret.txt").write_text("secret")
    (source / "a.txt").write_text("a")
    refuse(ConfigError, source, out, "but nothing in .*source matches", pattern)


@pytest.mark.parametrize("target", ["/etc/passwd", "../secret.txt", "/etc", ".."])
def test_a_link_out_of_the_folder_is_refused(source, out, tmp_path, target):
    (tmp_path / "secret.txt").write_text("secret")
    (source / "a.txt").write_text("a")
    (source / "b").symlink_to(target)
    refuse(ConfigError, source, out, "b is a link out of the folder; replace it")


def test_links_within_the_folder_never_read_a_folder_twice(source, out):
    (source / "texts").mkdir()
    (source / "texts" / "a.txt").write_text("a")
    (source / "b.txt").symlink_to("texts/a.txt")
    names = [path.name for path in find_files(source).splits["train"]]
    assert names == ["b.txt", "a.txt"]
    (source / "loop").symlink_to("texts")
    refuse(ConfigError, source, out, "loop is a link to a folder; remove it")
    (source / "loop").unlink()
    (source / "gone").symlink_to("nothing")
    refuse(InputError, source, out, "gone is a link to nothing; remove it")


def test_a_source_that_is_itself_a_link_is_read(source, out, tmp_path):
    (source / "train.txt").write_bytes(b"a" + SEP)
    (source / "valid.txt").write_bytes(b"b" + SEP)
    (tmp_path / "link").symlink_to(source)
    write(tmp_path / "link", out)
    assert texts(out) == [b"a" + SEP, b"b" + SEP]


def test_a_fifo_is_refused_without_waiting_for_it(source, out):
    os.mkfifo(source / "train.txt")
    (source / "valid.txt").write_text("x")
    refuse(InputError, source, out, "train.txt is a FIFO, socket or device, not a file")
    refuse(InputError, source / "train.txt", out, "train.txt is a FIFO")


def test_a_folder_called_train_txt_is_refused(source, out):
    (source / "train.txt").mkdir()
    (source / "valid.txt").write_text("x")
    refuse(
        InputError, source, out, "train.txt is a folder, not a file; remove or rename"
    )


def test_a_bad_file_among_thousands_is_named(source, out):
    for number in range(2000):
        (source / f"{number:04}.txt").write_text(f"Story {number}.")
    (source / "1234.txt.gz").write_bytes(gzip.compress(b"Story" * 9)[:-5])
    refuse(InputError, source, out, "1234.txt.gz is damaged or incomplete")


def test_a_file_that_cannot_be_read_is_named():
    """Also if that turns out after it was opened, and for a user who is not root."""
    folder = Path(tempfile.mkdtemp())
    try:
        folder.chmod(0o755)
        path = folder / "stories.txt"
        path.write_text("a")
        path.chmod(0)
        code = (
            "import os, sys\nfrom pathlib import Path\n"
            "from tiny_llm.sources import Reading, read_documents\n"
            "if os.getuid() == 0: os.setuid(65534)\n"
            "list(read_documents(Path(sys.argv[1]), Reading()))\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(path)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert f"PermissionError: [Errno 13] Permission denied: '{path}'" in done.stderr
    finally:
        path.unlink()
        folder.rmdir()


@pytest.mark.parametrize(("kind", "ending"), [("gzip", ".gz"), ("zstd", ".zst")])
def test_a_compressed_file_that_is_called_something_else_is_refused(
    source, out, kind, ending
):
    data = COMPRESS[ending](b"Once upon a time." + SEP)
    (source / "valid.txt").write_bytes(b"x" + SEP)
    other = ".zst" if ending == ".gz" else ".gz"
    for name in ("train", "train.txt", "train.jsonl", f"train{ending}.txt", "train.xz"):
        (source / name).write_bytes(data)
        refuse(InputError, source, out, f"{name} is a {kind} file, .* in {ending}")
        (source / name).unlink()
    (source / f"train.txt{other}").write_bytes(data)
    refuse(InputError, source, out, f"train.txt{other} is a {kind} file, but")
    (source / f"train.txt{other}").rename(source / f"train.txt{ending}")
    write(source, out)
    assert texts(out)[0] == b"Once upon a time." + SEP


@needs_proc
def test_a_file_that_fails_while_it_is_read_is_named():
    with (
        pytest.raises(OSError, match="/proc/self/mem"),
        open_file(Path("/proc/self/mem")) as file,
    ):
        file.read()


# Changes while a source is read


def append(path):
    with path.open("ab") as file:
        file.write(b"more" + SEP)


def replace(path):
    """By a file of the same size and times, as `rsync --times` would."""
    status = path.stat()
    other = path.with_name(".other")
    other.write_bytes(path.read_bytes().replace(b"Story 1", b"Story 2"))
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.rename(path)


def overwrite(path):
    """With as many bytes, and with the old times."""
    status = path.stat()
    path.write_bytes(path.read_bytes().replace(b"Story 1", b"Story 2"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def remove(path):
    path.unlink()


def add_another(path):
    path.with_name("train.9.txt").write_bytes(b"x" + SEP)


@pytest.mark.parametrize("shape", ["copied", "divided", "cut"])
@pytest.mark.parametrize("change", [append, replace, overwrite, remove, add_another])
def test_a_source_that_changes_while_it_is_read_is_refused(source, out, change, shape):
    path = source / "train.txt"
    separator = b"" if shape == "cut" else SEP
    path.write_bytes(b"".join(document + separator for document in stories(200)))
    if shape == "copied":
        (source / "valid.txt").write_bytes(b"x" + SEP)
    changes = [change]

    def on_progress(_):
        if changes:
            changes.pop()(path)

    with pytest.raises(
        InputError, match=r"changed while it was read|was it just removed"
    ):
        write_corpus(find_files(source), out, Reading(), on_progress=on_progress)
    assert list(out.iterdir()) == []


def test_a_change_just_after_another_one_is_noticed(source, out):
    """Even if both get the same time, to the tick of the system's clock."""
    path = source / "train.txt"
    for attempt in range(20):
        path.write_bytes(b"Story %d." % attempt + SEP)
        files = find_files(source)
        path.write_bytes(b"story %d." % attempt + SEP)
        with pytest.raises(InputError, match=r"train.txt changed while it was read"):
            files.check_unchanged()


def test_a_change_while_files_are_found_is_noticed(source, monkeypatch):
    path = source / "train.txt"
    path.write_bytes(b"Story 1." + SEP)
    sleep = time.sleep

    def sleep_and_overwrite(seconds):
        sleep(seconds)
        overwrite(path)

    monkeypatch.setattr(time, "sleep", sleep_and_overwrite)
    files = find_files(source)
    with pytest.raises(InputError, match=r"train.txt changed while it was read"):
        files.check_unchanged()


def test_a_source_that_is_being_written_is_refused_or_read_whole(source, out):
    path = source / "train.txt"
    text = b"".join(document + SEP for document in stories(1000))
    path.write_bytes(text)
    (source / "valid.txt").write_bytes(b"x" + SEP)
    stop = threading.Event()

    def write_on():
        other = source / ".other"
        while not stop.is_set():
            other.write_bytes(text)
            other.rename(path)
            path.write_bytes(text[:5000])

    thread = threading.Thread(target=write_on)
    thread.start()
    try:
        for _ in range(50):
            try:
                write(source, out)
            except (InputError, OSError):
                continue
            assert texts(out)[0] in (text, text[:5000])
    finally:
        stop.set()
        thread.join()
