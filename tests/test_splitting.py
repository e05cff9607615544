"""Which documents become valid, and how they are written."""

import gzip
import json
import os
import random
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet
import pytest

from tests.conftest import (
    PRINT_PEAK_KIB,
    ROOT,
    SEP,
    needs_proc,
    refuse,
    stories,
    texts,
    write,
)
from tiny_llm.errors import InputError
from tiny_llm.source_files import SourceFiles
from tiny_llm.sources import Reading
from tiny_llm.splitting import write_corpus


def write_json_lines(path, documents):
    lines = [json.dumps({"text": document.decode()}) for document in documents]
    path.write_text("\n".join(lines))


def documents(out) -> list[set[bytes]]:
    return [set(text.split(SEP)[:-1]) for text in texts(out)]


def test_a_text_with_separators_is_copied_as_it_is(source, out):
    """Blank documents, white space after the last separator, a missing separator."""
    train = b"\r\na" + SEP + b"\n" + SEP + b" \xff\0" + SEP + b"\n"
    valid = b"b" + SEP + b"c"
    (source / "train.txt").write_bytes(train)
    (source / "valid.txt.gz").write_bytes(gzip.compress(valid))
    report = write(source, out)
    assert texts(out) == [train, valid]
    assert report.num_documents == {"train": 3, "valid": 2}
    assert report.num_bytes == {"train": len(train), "valid": len(valid)}


def test_a_text_without_separators_is_one_document(source, out):
    (source / "train.txt").write_bytes(b"a\nb\n")
    (source / "valid.txt").write_bytes(b"c")
    report = write(source, out)
    assert texts(out) == [b"a\nb\n" + SEP, b"c" + SEP]
    assert report.num_documents == {"train": 1, "valid": 1}


def test_separators_are_found_wherever_blocks_end(source, out, monkeypatch):
    text = b"ab<|end" + SEP + b"<" + SEP + SEP + b"\n<|endoftext"
    (source / "train.txt").write_bytes(text)
    (source / "valid.txt").write_bytes(SEP + b"x" + SEP)
    for size in range(1, len(text) + 1):
        monkeypatch.setattr("tiny_llm.splitting.BLOCK_BYTES", size)
        report = write(source, out)
        assert report.num_documents == {"train": 4, "valid": 2}
        assert texts(out)[0] == text


def test_the_end_of_an_undivided_text_is_valid_from_the_start_of_a_line(source, out):
    """Ten lines of ten bytes: the last line is a tenth."""
    text = b"".join(b"line %d no\n" % n for n in range(10))
    path = source / "book.txt"
    path.write_bytes(text)
    report = write(path, out)
    assert texts(out) == [text[:-10] + SEP, text[-10:] + SEP]
    assert report.num_documents == {"train": 1, "valid": 1}
    write(path, out, valid_fraction=0.35)
    assert texts(out) == [text[:60] + SEP, text[60:] + SEP]
    write(source, out, max_documents=1)  # A folder with nothing else; one document.
    assert texts(out) == [text[:-10] + SEP, text[-10:] + SEP]


@pytest.mark.parametrize("size", [1, 7, 4096])
@pytest.mark.parametrize("name", ["book.txt", "book.txt.gz"])
def test_both_parts_of_an_undivided_text_make_up_the_whole(
    source, out, corpus_text, monkeypatch, name, size
):
    text = corpus_text[:9000].replace(SEP, b"").replace(b". ", b".\r\n")
    text = b"\xef\xbb\xbf" + text + b"\0\xff"
    with (gzip.open if name.endswith(".gz") else open)(source / name, "wb") as file:
        file.write(text)
    monkeypatch.setattr("tiny_llm.splitting.BLOCK_BYTES", size)
    write(source / name, out)
    train, valid = texts(out)
    assert train.removesuffix(SEP) + valid.removesuffix(SEP) == text
    assert train.endswith(b"\n" + SEP)
    assert 0 <= len(valid) - len(SEP) - len(text) / 10 < 400


def test_a_text_of_one_long_line_is_cut_at_a_space(source, out):
    (source / "text8").write_bytes(b"a line\n" + b"word " * 2000)
    write(source / "text8", out)
    train, valid = texts(out)
    assert train.endswith(b" word " + SEP)
    assert 0 <= len(valid) - len(SEP) - 1001 < 5


@pytest.mark.parametrize("text", [b"a", b"word\n", b"x" * 3_000_000, b"a\n \n \n"])
def test_a_text_that_cannot_be_cut_in_two_is_refused(source, out, text):
    (source / "book.txt").write_bytes(text)
    refuse(
        InputError, source / "book.txt", out, "book.txt: give more text, or separate"
    )


@pytest.mark.parametrize("shape", ["jsonl", "text", "folder", "poems"])
def test_a_share_of_documents_becomes_valid_in_any_shape(source, out, shape):
    wanted = stories(3000)
    path, options = source / "stories", {}
    if shape == "jsonl":
        path = source / "stories.jsonl"
        write_json_lines(path, wanted)
    elif shape == "text":
        path.write_bytes(b"".join(document + SEP for document in wanted))
    elif shape == "poems":
        path.write_bytes(b"\n".join(wanted))
        options = {"split_at_blank_lines": True}
    else:
        path.mkdir()
        for number, document in enumerate(wanted):
            (path / f"{number}.txt").write_bytes(document)
    report = write(path, out, **options)
    train, valid = documents(out)
    assert train | valid == {*wanted}
    assert not train & valid
    # Which ones does not depend on the shape: these are the first two of valid.
    assert sorted(valid, key=wanted.index)[:2] == [wanted[7], wanted[18]]
    assert 240 <= len(valid) <= 360
    assert report.num_documents == {"train": len(train), "valid": len(valid)}
    assert sum(report.num_bytes.values()) == sum(map(len, texts(out)))


def test_adding_documents_never_moves_one_to_the_other_split(source, out):
    path = source / "stories.jsonl"
    before = [set(), set()]
    for count in (500, 1000, 2000):
        wanted = stories(count)
        random.Random(count).shuffle(wanted)
        write_json_lines(path, wanted)
        write(path, out)
        now = documents(out)
        assert before[0] < now[0]
        assert before[1] < now[1]
        before = now


def test_a_larger_fraction_only_adds_to_valid(source, out):
    path = source / "stories.jsonl"
    write_json_lines(path, stories(500))
    found = []
    for fraction in (0.05, 0.2, 0.9):
        write(path, out, valid_fraction=fraction)
        found.append(documents(out)[1])
    assert found[0] < found[1] < found[2]
    assert 0.8 < len(found[2]) / 500 < 0.97


def test_order_is_kept_within_each_split(source, out):
    write_json_lines(source / "b.jsonl", stories(200)[100:])
    write_json_lines(source / "a.jsonl", stories(200)[:100])
    write(source, out)
    for text in texts(out):
        found = text.split(SEP)[:-1]
        assert found == [document for document in stories(200) if document in found]


def test_empty_documents_are_dropped_and_counted(source, out):
    write_json_lines(source / "train.jsonl", [b"a", b"", b" \r\n\t", b" b"])
    (source / "valid.jsonl").write_text('{"text": null}\n{"text": "c"}')
    report = write(source, out)
    assert texts(out) == [b"a" + SEP + b" b" + SEP, b"c" + SEP]
    assert report.num_dropped_empty == 3
    assert (report.num_files, report.num_documents["train"]) == (2, 2)
    sizes = [path.stat().st_size for path in source.iterdir()]
    assert report.num_source_bytes == sum(sizes)


@pytest.mark.parametrize("ending", ["jsonl", "txt"])
def test_only_the_first_documents_are_read(source, out, ending):
    for split in ("train", "valid"):
        path = source / f"{split}.{ending}"
        if ending == "jsonl":
            write_json_lines(path, [b"", *stories(10)])
        else:
            path.write_bytes(SEP.join([b"", *stories(10), b""]))
    report = write(source, out, max_documents=3)
    assert texts(out) == [SEP.join([*stories(3), b""])] * 2
    assert report.reached_max_documents
    report = write(source, out, max_documents=10)
    assert texts(out) == [SEP.join([*stories(10), b""])] * 2
    assert not report.reached_max_documents


def test_the_first_documents_of_a_source_without_valid_are_divided(source, out):
    path = source / "stories.jsonl"
    write_json_lines(path, stories(100))
    path.write_text(path.read_text() + "\nnot JSON, but never read")
    write(path, out, max_documents=50)
    train, valid = documents(out)
    assert train | valid == {*stories(50)}
    write_json_lines(path, stories(100))
    write(path, out)
    assert valid < documents(out)[1]


@pytest.mark.parametrize("shape", ["jsonl", "poems"])
def test_a_document_with_the_text_of_the_separator_is_refused(source, out, shape):
    path, place, options = source / "a.jsonl", "a.jsonl, line 3", {}
    write_json_lines(path, [b"a", b"b", b"c" + SEP + b"d", *stories(50)])
    if shape == "poems":
        path, place = source / "a.txt", "a.txt, offset 6"
        options = {"split_at_blank_lines": True}
        path.write_bytes(b"a\n\nb\n\nc" + SEP + b"d\n\n" + b"\n".join(stories(50)))
    refuse(
        InputError,
        path,
        out,
        rf"{place}: a document contains <\|endoftext\|>.* separator_in_text to escape",
        **options,
    )
    write(path, out, separator_in_text="escape", **options)
    train, valid = documents(out)
    escaped = b"c<|endoftext\\|>d" + (b"\n" if shape == "poems" else b"")
    assert escaped in train | valid
    assert len(train | valid) == 53


def test_other_special_text_is_not_touched(source, out):
    path = source / "a.jsonl"
    odd = [
        b"<|endoftext",
        b"|>",
        b"<|im_start|>",
        b"<|endoftext\\|>",
        b"< |endoftext|>",
    ]
    write_json_lines(path, [*odd, *stories(50)])
    write(path, out, separator_in_text="escape")
    train, valid = documents(out)
    assert train | valid == {*odd, *stories(50)}


def test_a_split_without_documents_is_refused(source, out):
    write_json_lines(source / "train.jsonl", stories(2))
    refuse(InputError, source, out, "valid would hold no document: give more documents")
    write_json_lines(source / "train.jsonl", [*stories(2), b" "])
    refuse(InputError, source, out, r"no document \(left out as empty: 1\): give more")
    write_json_lines(source / "train.jsonl", stories(1) * 5)
    refuse(InputError, source, out, "valid would hold no document: give more")
    refuse(InputError, source, out, "train would hold no", valid_fraction=0.999)
    write_json_lines(source / "valid.jsonl", [b"", b" "])
    refuse(InputError, source, out, r"valid.jsonl .* \(left out as empty: 2\); give")
    (source / "valid.jsonl").write_text("\n")
    refuse(InputError, source, out, "valid.jsonl holds no document; give some text")
    (source / "valid.jsonl").rename(source / "valid.txt")
    (source / "valid.txt").write_bytes((SEP + b"\n") * 200_000)
    refuse(InputError, source, out, "valid.txt holds no document, only 2,800,000 bytes")


def test_downloads_are_linked_or_copied(source, out):
    """They are ours and verified, so DVC may make them read-only."""
    for split in ("train", "valid"):
        (source / f"{split}.txt").write_bytes(b"a" + SEP)
    files = SourceFiles({s: [source / f"{s}.txt"] for s in ("train", "valid")})
    report = write_corpus(files, out, Reading(), may_link=True)
    assert os.path.samefile(source / "train.txt", out / "train.txt")
    assert report.num_documents == {"train": 1, "valid": 1}
    assert report.num_bytes == {"train": 14, "valid": 14}
    write(source, out)
    assert not os.path.samefile(source / "train.txt", out / "train.txt")


@needs_proc
@pytest.mark.parametrize("shape", ["jsonl.gz", "txt", "parquet"])
def test_memory_does_not_grow_with_the_source(source, out, shape):
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from tiny_llm.source_files import find_files\n"
        "from tiny_llm.sources import Reading\n"
        "from tiny_llm.splitting import write_corpus\n"
        "write_corpus(find_files(Path(sys.argv[1])), Path(sys.argv[2]), Reading())\n"
    )
    peaks = []
    for num_mb in (4, 40):
        path = source / f"a.{shape}"
        wanted = [random.Random(n).randbytes(500).hex().encode() for n in range(1000)]
        if shape == "txt":
            path.write_bytes(b"".join(document + SEP for document in wanted) * num_mb)
        elif shape == "parquet":
            with pa.parquet.ParquetWriter(path, pa.schema({"text": "string"})) as file:
                wanted = [random.randbytes(500).hex() for _ in range(1000 * num_mb)]
                file.write_table(pa.table({"text": wanted}))
        else:
            write_json_lines(path, wanted * num_mb)
            path.write_bytes(gzip.compress(path.read_bytes(), 1))
        done = subprocess.run(
            [sys.executable, "-c", code + PRINT_PEAK_KIB, source, out],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
            capture_output=True,
            text=True,
            check=True,
        )
        peaks.append(int(done.stdout))
    assert peaks[1] < peaks[0] + (16 << 10)
