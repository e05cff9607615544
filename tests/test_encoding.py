import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import PRINT_PEAK_KIB, SEP, STORIES, needs_proc, wide_merges
from tiny_llm.encoding import encode_and_measure, encode_file
from tiny_llm.errors import ConfigError, InputError, ResourceError
from tiny_llm.tokenize import BPETokenizer
from tiny_llm.tokens import documents_path, manifest_path, open_tokens
from tiny_llm.verify import verify


@pytest.fixture
def tokenizer(text):
    tokenizer = BPETokenizer()
    tokenizer.train(text, 300)
    return tokenizer


def encode(tokenizer, tmp_path, content, **options):
    (tmp_path / "in.txt").write_bytes(content)
    return encode_file(tokenizer, tmp_path / "in.txt", tmp_path / "out.bin", **options)


def test_token_file_decodes_to_the_source_bytes(tokenizer, tmp_path, text):
    manifest = encode(tokenizer, tmp_path, text)
    ids, _ = open_tokens(tmp_path / "out.bin")
    assert tokenizer.decode_bytes(ids) == text
    assert verify(tmp_path / "out.bin", tokenizer.sha256) == manifest
    assert manifest.num_bytes == len(text)
    assert manifest.num_documents == len(STORIES)


@pytest.mark.filterwarnings("ignore:.*(NUL bytes|invalid UTF-8):UserWarning")
@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbfBOM and NUL \x00 and CRLF\r\n" + SEP,
        bytes(range(256)) * 3,
        # Not first in the file, where it would mark UTF-16.
        b" \xff\xfe" + SEP + b"\xc3" + SEP + b"\xa9",
        b"no separator at the end" + SEP + b"rest",
        b"<|im_start|> [MASK] <|endoftext|> <|endoftext",
    ],
)
def test_any_bytes_come_back_unchanged(tokenizer, tmp_path, content):
    encode(tokenizer, tmp_path, content)
    assert tokenizer.decode_bytes(open_tokens(tmp_path / "out.bin")[0]) == content


@pytest.mark.filterwarnings("ignore:.*(NUL bytes|invalid UTF-8):UserWarning")
def test_random_bytes_come_back_unchanged_for_any_range_size(tokenizer, tmp_path):
    dice = random.Random(0)
    for _ in range(100):
        parts = [dice.randbytes(dice.randrange(40)), SEP, b" \n", b"the cat"]
        content = b"x" + b"".join(dice.choices(parts, k=dice.randrange(20)))
        encode(tokenizer, tmp_path, content, range_bytes=dice.randrange(1, 100))
        assert tokenizer.decode_bytes(open_tokens(tmp_path / "out.bin")[0]) == content


def read_files(path):
    """Read what must not depend on the ranges."""
    manifest = json.loads(manifest_path(path).read_bytes())
    for name in ("sha256", "manifest_sha256", "range_tokens", "range_sha256"):
        del manifest[name]
    return path.read_bytes(), documents_path(path).read_bytes()[32:], manifest


@pytest.mark.parametrize("num_workers", [1, 2, 7])
@pytest.mark.parametrize("range_bytes", [1, 13, 100, 1 << 20])
def test_token_file_is_equal_for_any_range_size_and_number_of_workers(
    tokenizer, tmp_path, text, range_bytes, num_workers
):
    encode(tokenizer, tmp_path, text)
    expected = read_files(tmp_path / "out.bin")
    encode(tokenizer, tmp_path, text, range_bytes=range_bytes, num_workers=num_workers)
    assert read_files(tmp_path / "out.bin") == expected
    verify(tmp_path / "out.bin")


@pytest.mark.parametrize(
    ("content", "num_documents"),
    [
        (b"a" + SEP, 1),
        (b"a" + SEP + b"\n", 1),
        (b"a" + SEP + b"\nb", 2),
        (b"a", 1),
        (SEP + b"a" + SEP + SEP, 3),
        (b"a" + SEP + b" " + SEP + b" ", 2),
    ],
)
@pytest.mark.parametrize("range_bytes", [1, 14, 1 << 20])
def test_blank_documents_count_but_white_space_at_the_end_does_not(
    tokenizer, tmp_path, content, num_documents, range_bytes
):
    manifest = encode(tokenizer, tmp_path, content, range_bytes=range_bytes)
    assert manifest.num_documents == num_documents


@pytest.mark.parametrize("content", [b"", b"\n\n", SEP, SEP + b"\n" + SEP])
def test_a_file_without_a_document_is_refused_and_leaves_nothing(
    tokenizer, tmp_path, content
):
    with pytest.raises(InputError, match=r"in\.txt holds no document"):
        encode(tokenizer, tmp_path, content)
    assert os.listdir(tmp_path) == ["in.txt"]


def test_a_file_that_changes_while_it_is_read_is_refused(tokenizer, tmp_path, text):
    def grow(_):
        with (tmp_path / "in.txt").open("ab") as file:
            file.write(b"more")

    with pytest.raises(InputError, match="changed while it was read"):
        encode(tokenizer, tmp_path, text, range_bytes=20, on_progress=grow)
    assert os.listdir(tmp_path) == ["in.txt"]


def test_a_missing_source_is_named_and_the_old_pair_kept(tokenizer, tmp_path, text):
    encode(tokenizer, tmp_path, text)
    with pytest.raises(InputError, match=r"gone\.txt: no such file"):
        encode_file(tokenizer, tmp_path / "gone.txt", tmp_path / "out.bin")
    assert verify(tmp_path / "out.bin").num_bytes == len(text)


@pytest.mark.parametrize("link", [None, os.symlink, os.link])
@pytest.mark.parametrize("name", ["text.bin", "text.json", "text.documents"])
def test_the_source_is_never_overwritten(tokenizer, tmp_path, text, name, link):
    """Neither by the token file nor by its manifest, nor through another name."""
    source = tmp_path / ("source.txt" if link else name)
    source.write_bytes(text)
    if link:
        link(source, tmp_path / name)
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(ConfigError, match=rf"{name} is the text itself"):
        encode_file(tokenizer, source, tmp_path / "text.bin")
    assert source.read_bytes() == text
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize("range_bytes", [1, 13, 100, 1 << 20])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a\0b" + SEP + b"\0", "contains NUL bytes (count: 2, first offset: 1)"),
        (b"\0", "contains NUL bytes (count: 1, first offset: 0)"),
        (b"caf\xe9 au lait\xff", "contains invalid UTF-8 (bytes: 2, first offset: 3)"),
        (b"\xff", "contains invalid UTF-8 (bytes: 1, first offset: 0)"),
        (
            b'{"a": 1}',
            "nothing but JSON objects (lines: 1, first offset: 0)",
        ),
        (
            b'\n {"text": "the cat sat"}\r\n\n{"text": "\xc3\xa9", "b": {}} \n',
            "begins with nothing but JSON objects (lines: 2, first offset: 2)",
        ),
    ],
)
def test_a_text_that_may_be_the_wrong_one_is_encoded_with_a_warning(
    tokenizer, tmp_path, content, words, range_bytes
):
    with pytest.warns(UserWarning, match=re.escape(words)) as caught:
        encode(tokenizer, tmp_path, content, range_bytes=range_bytes)
    [message] = [str(warning.message) for warning in caught]
    assert message.startswith(f"{tmp_path / 'in.txt'} ")
    assert "\n" not in message
    assert caught[0].filename == __file__
    assert tokenizer.decode_bytes(open_tokens(tmp_path / "out.bin")[0]) == content


def test_a_long_text_without_separators_is_encoded_with_a_warning(
    tokenizer, tmp_path, monkeypatch
):
    monkeypatch.setattr("tiny_llm.textscan.LONG_DOCUMENT_BYTES", 1000)
    with pytest.warns(UserWarning, match="is one document of 1,001 bytes"):
        encode(tokenizer, tmp_path, b"word " * 200 + b"x")
    encode(tokenizer, tmp_path, b"word " * 200)
    encode(tokenizer, tmp_path, b"word " * 200 + SEP + b"x")


@pytest.mark.parametrize("range_bytes", [100, 1 << 20])
@pytest.mark.parametrize(
    "content",
    [
        b'{"a": 1}\n[1]\n',
        b'{"a": 1}\n{"a": 1\n',
        b'{"a": 1}\nOnce\n{"a": 1}',
        b"{braces}\n",
        b'"a"\n1\n',
        b'[{"a": 1}]',
        b'{\n"a": 1\n}',
        b'{"a":' * 3000,
    ],
)
def test_text_with_braces_is_not_taken_for_json_lines(
    tokenizer, tmp_path, content, range_bytes
):
    encode(tokenizer, tmp_path, content, range_bytes=range_bytes)  # Without a warning.


def test_a_warning_turned_into_an_error_keeps_the_old_pair(tokenizer, tmp_path, text):
    encode(tokenizer, tmp_path, text)
    with pytest.raises(UserWarning, match="NUL"):  # As set in pyproject.toml.
        encode(tokenizer, tmp_path, b"\0")
    assert verify(tmp_path / "out.bin").num_bytes == len(text)


@pytest.mark.filterwarnings("ignore:.*invalid UTF-8:UserWarning")
def test_invalid_bytes_are_counted_across_ranges(tokenizer, tmp_path, monkeypatch):
    dice = random.Random(0)
    for _ in range(50):
        parts = [dice.randbytes(dice.randrange(9)), SEP, b" \n", "\u00e9".encode()]
        content = b"x" + b"".join(dice.choices(parts, k=20)).replace(b"\0", b"")
        (tmp_path / "in.txt").write_bytes(content)
        monkeypatch.setattr("tiny_llm.encoding.RANGE_BYTES", dice.randrange(50, 100))
        scan = encode_and_measure(
            tokenizer, tmp_path / "in.txt", tmp_path / "out.bin"
        ).text
        decoded = content.decode("utf-8", "surrogateescape")
        invalid = [c for c in decoded if "\udc80" <= c <= "\udcff"]
        assert scan.num_invalid_bytes == len(invalid)
        assert scan.num_bytes == len(content)
        assert scan.num_nul_bytes == 0


@pytest.mark.parametrize("name", ["range_bytes", "num_workers"])
@pytest.mark.parametrize("value", [0, -1])
def test_numbers_below_one_are_refused(tokenizer, tmp_path, text, name, value):
    with pytest.raises(ConfigError, match=f"{name} is {value}; give an integer >= 1"):
        encode(tokenizer, tmp_path, text, **{name: value})


def test_progress_adds_up_to_the_file_size(tokenizer, tmp_path, text):
    seen = []
    encode(tokenizer, tmp_path, text, range_bytes=10, on_progress=seen.append)
    assert sum(seen) == len(text)


def test_a_vocab_above_65536_gives_uint32(tmp_path):
    merges = wide_merges()
    tokenizer = BPETokenizer(merges)
    assert encode(tokenizer, tmp_path, b"".join(merges[-1])).dtype == "uint32"
    assert open_tokens(tmp_path / "out.bin")[0].tolist() == [65_536 + 256]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has /dev/full")
def test_a_full_disk_keeps_the_old_pair(tokenizer, tmp_path, text, monkeypatch):
    encode(tokenizer, tmp_path, text)
    monkeypatch.setattr(
        "tiny_llm.atomic.part_path",
        lambda target: target.with_name(f"{target.name}.tmp"),
    )
    os.symlink("/dev/full", tmp_path / "out.bin.tmp")
    with pytest.raises(ResourceError, match=r"out\.bin: No space left"):
        encode(tokenizer, tmp_path, text * 1000)
    assert verify(tmp_path / "out.bin").num_bytes == len(text)
    assert sorted(os.listdir(tmp_path)) == [
        "in.txt",
        "out.bin",
        "out.documents",
        "out.json",
        "out.parts",  # For a rerun when there is room.
    ]


def test_a_killed_run_leaves_the_old_pair_or_the_new(tokenizer, tmp_path, text):
    source, target = tmp_path / "in.txt", tmp_path / "out.bin"
    source.write_bytes(text * 2000)
    tokenizer.save(tmp_path / "tokenizer.json")
    code = (
        "import sys\n"
        "from tiny_llm.encoding import encode_file\n"
        "from tiny_llm.tokenize import BPETokenizer\n"
        "tokenizer = BPETokenizer.load(sys.argv[1])\n"
        "print(flush=True)\n"
        "while True:\n"
        "    encode_file(tokenizer, sys.argv[2], sys.argv[3])\n"
    )
    dice = random.Random(0)
    for _ in range(8):
        process = subprocess.Popen(
            [sys.executable, "-c", code, tmp_path / "tokenizer.json", source, target],
            stdout=subprocess.PIPE,
        )
        process.stdout.readline()
        time.sleep(dice.random() / 5)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if target.exists():
            assert verify(target).num_bytes == source.stat().st_size
    encode_file(tokenizer, source, target)
    assert not list(tmp_path.glob("*.tmp"))  # What the killed runs left behind is gone.


@needs_proc
def test_peak_memory_does_not_grow_with_the_file(tokenizer, tmp_path, text):
    tokenizer.save(tmp_path / "tokenizer.json")
    code = (
        "import sys\n"
        "from tiny_llm.encoding import encode_file\n"
        "from tiny_llm.tokenize import BPETokenizer\n"
        "encode_file(BPETokenizer.load(sys.argv[1]), sys.argv[2], sys.argv[2] + '.bin')"
        + PRINT_PEAK_KIB
    )
    peaks = []
    for times in (10_000, 300_000):
        source = tmp_path / f"{times}.txt"
        source.write_bytes(text * times)
        done = subprocess.run(
            [sys.executable, "-c", code, tmp_path / "tokenizer.json", source],
            capture_output=True,
            check=True,
        )
        peaks.append(int(done.stdout))
    assert peaks[1] < peaks[0] + 40_000, peaks  # KiB, for 80 MB more text
    assert peaks[1] < 150_000, peaks
