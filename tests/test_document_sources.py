"""Files of every shape as documents; bad ones end in a line that names the place."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from tests.conftest import COMPRESS, PRINT_PEAK_KIB, ROOT, SEP, needs_proc
from tiny_llm import sources
from tiny_llm.errors import ConfigError, InputError, ResourceError
from tiny_llm.sources import Reading, name_place, read_documents

# Awkward, but text: line ends, a byte order mark, quotes, characters of every length.
DOCUMENTS = [
    "Once.\n",
    "two\r\nline ends\rand more\n",
    '\ufeff"quoted" \\ \t \u2028 é 你好 \U0001f600',
    "",
    "x" * 100_000,
]
BYTES = [document.encode() for document in DOCUMENTS]
JSON_LINES = b"".join(
    json.dumps({"n": 1, "text": document}, ensure_ascii=n % 2 == 0).encode() + b"\n"
    for n, document in enumerate(DOCUMENTS)
)
ANY = {"": bytes, **COMPRESS}


def read(path, **options):
    return [document for _, document in read_documents(path, Reading(**options))]


def refuse(path, *words, error=InputError, **options):
    """Read a bad file; the message is one line that holds the words in their order."""
    with pytest.raises(error) as caught:
        read(path, **options)
    message = str(caught.value)
    assert message.startswith(str(path)) or error is ConfigError
    assert "\n" not in message
    assert len(message) < len(str(path)) + 600
    places = [message.index(word) for word in words]
    assert places == sorted(places)


@pytest.fixture
def jsonl(tmp_path) -> Path:
    return tmp_path / "stories.jsonl"


@pytest.fixture
def parquet(tmp_path) -> Path:
    return tmp_path / "stories.parquet"


def write_parquet(path, **columns):
    pa.parquet.write_table(pa.table(columns), path)


@pytest.mark.parametrize("ending", ANY)
def test_json_lines_are_documents_byte_for_byte(tmp_path, ending):
    path = tmp_path / f"stories.jsonl{ending}"
    path.write_bytes(ANY[ending](JSON_LINES))
    assert read(path) == BYTES


@pytest.mark.parametrize("ending", ANY)
def test_a_text_is_cut_at_separators_byte_for_byte(tmp_path, ending):
    path = tmp_path / f"stories.txt{ending}"
    path.write_bytes(ANY[ending](SEP.join(BYTES)))
    assert read(path) == BYTES


def test_white_space_after_the_last_separator_is_no_document(tmp_path):
    path = tmp_path / "stories.txt"
    path.write_bytes(b"one" + SEP + b"\ntwo" + SEP + b"\n")
    assert list(read_documents(path, Reading())) == [(0, b"one"), (16, b"\ntwo")]


@pytest.mark.parametrize("kind", ["string", "large_string", "binary", "large_binary"])
def test_rows_of_parquet_are_documents_byte_for_byte(parquet, kind):
    column = pa.array(BYTES, pa.binary()).cast(getattr(pa, kind)())
    write_parquet(parquet, n=range(len(BYTES)), text=column)
    assert read(parquet) == BYTES
    write_parquet(parquet, text=column.dictionary_encode())
    assert read(parquet) == BYTES


@pytest.mark.parametrize("name", ["train.txt", "train.jsonl", "train"])
def test_parquet_that_is_called_something_else_is_refused(tmp_path, name):
    write_parquet(tmp_path / name, text=["a", "b"])
    with pytest.raises(InputError, match=rf"{name} is a Parquet file.*ends in .parque"):
        read(tmp_path / name)


def test_a_null_is_an_empty_document(jsonl, parquet):
    jsonl.write_text('{"text": null}\n{"text": "a"}\n')
    write_parquet(parquet, text=[None, "a"])
    assert read(jsonl) == read(parquet) == [b"", b"a"]


def test_blank_lines_byte_order_marks_and_crlf_in_json_lines_do_not_matter(jsonl):
    jsonl.write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n\r\n \n{"text": "b\\r\\n"}')
    assert read(jsonl) == [b"a", b"b\r\n"]
    assert [place for place, _ in read_documents(jsonl, Reading())] == [1, 4]


def test_another_field_may_hold_the_text(jsonl, parquet):
    jsonl.write_text('{"text": 1, "body.en": "a"}\n')
    write_parquet(parquet, text=[1], **{"body.en": ["a"]})
    assert read(jsonl, text_field="body.en") == [b"a"]
    assert read(parquet, text_field="body.en") == [b"a"]


def test_blank_lines_divide_a_text_when_asked(tmp_path):
    """Line ends stay as they are; a line of white space is blank."""
    path = tmp_path / "poems.txt"
    path.write_bytes(b"\n\na\r\n b\r\n\r\n \t\n\nc\rd\n\ne")
    found = list(read_documents(path, Reading(split_at_blank_lines=True)))
    assert found == [(2, b"a\r\n b\r\n"), (15, b"c\rd\n"), (20, b"e")]


@pytest.mark.parametrize("ending", COMPRESS)
def test_every_member_of_a_compressed_file_is_read(tmp_path, ending):
    path = tmp_path / f"stories.jsonl{ending}"
    path.write_bytes(
        COMPRESS[ending](b'{"text": "a"}\n{"te') + COMPRESS[ending](b'xt": "b"}\n')
    )
    assert read(path) == [b"a", b"b"]


@pytest.mark.parametrize("ending", [".GZ", ".gzip", ".ZST", ".zstd"])
def test_each_ending_of_compressed_files_is_known(tmp_path, ending):
    path = tmp_path / f"stories.JSONL{ending}"
    compress = COMPRESS[".gz" if "g" in ending.lower() else ".zst"]
    path.write_bytes(compress(JSON_LINES))
    assert read(path) == BYTES


def test_a_plain_file_with_the_name_of_a_compressed_one_is_read(tmp_path):
    path = tmp_path / "stories.jsonl.gz"
    path.write_bytes(JSON_LINES)
    assert read(path) == BYTES


@pytest.mark.parametrize("size", [1, 12, 4096, 65_535])
def test_documents_do_not_depend_on_the_size_of_blocks(tmp_path, monkeypatch, size):
    monkeypatch.setattr(sources, "BLOCK_BYTES", size)
    path = tmp_path / "stories.txt"
    path.write_bytes(SEP.join([*BYTES[:4], b"x" * 99]))
    assert read(path) == [*BYTES[:4], b"x" * 99]


def test_progress_adds_up_to_the_size_of_the_file(tmp_path):
    path = tmp_path / "stories.jsonl.gz"
    path.write_bytes(gzip.compress(JSON_LINES * 50))
    seen = []
    for _ in read_documents(path, Reading(), seen.append):
        pass
    assert sum(seen) == path.stat().st_size


# Bad input


@pytest.mark.parametrize("ending", COMPRESS)
def test_a_truncated_file_is_refused_wherever_it_is_cut(tmp_path, ending):
    whole = COMPRESS[ending](os.urandom(3000).hex().encode())
    path = tmp_path / f"stories.txt{ending}"
    for size in (5, 20, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        refuse(path, "damaged or incomplete after", "get it again")


@pytest.mark.parametrize("ending", COMPRESS)
def test_a_damaged_compressed_file_is_refused(tmp_path, ending):
    whole = bytearray(COMPRESS[ending](os.urandom(3000).hex().encode()))
    whole[len(whole) // 2] ^= 0xFF
    if ending == ".zst":
        whole[4] = 0xFF  # zstd.compress writes no checksum, so damage its header.
    path = tmp_path / f"stories.txt{ending}"
    path.write_bytes(whole)
    refuse(path, "damaged or incomplete", "get it again")


def test_rubbish_after_a_gzip_member_is_refused(tmp_path):
    path = tmp_path / "stories.jsonl.gz"
    path.write_bytes(gzip.compress(JSON_LINES) + b"rubbish")
    refuse(path, "damaged or incomplete")


@needs_proc
@pytest.mark.parametrize("ending", [".gz", ".zst", ".parquet"])
def test_a_compressed_bomb_is_refused_in_little_memory(tmp_path, ending):
    path = tmp_path / f"zeros.txt{ending}"
    if ending == ".parquet":
        write_parquet(path, text=pa.array(["0" * 100_000] * 10_000).dictionary_encode())
    else:
        path.write_bytes(COMPRESS[ending](bytes(200 << 20)))
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from tiny_llm.sources import Reading, read_documents\n"
        "try:\n"
        "    for _ in read_documents(Path(sys.argv[1]), Reading()): pass\n"
        "except ValueError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code + PRINT_PEAK_KIB, str(path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        capture_output=True,
        text=True,
        check=True,
    )
    message, peak = done.stdout.splitlines()
    assert "zeros.txt" in message
    assert "compressed more than 100 to 1; leave it out" in message
    assert int(peak) < 500 << 10


def test_small_text_may_be_compressed_well(tmp_path):
    path = tmp_path / "stories.txt.gz"
    path.write_bytes(gzip.compress(b"Once upon a time. " * 1_000_000))
    assert len(read(path)[0]) == 18_000_000


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            b'{"text": "caf\xe9"}',
            ["line 2 is not JSON", "correct", "UTF-8", "caf\\xe9"],
        ),
        (b'{"text": "a"', ["line 2 is not JSON", "correct or remove", "character 1"]),
        (b'{"text": "\\ud800"}', ["line 2 is not JSON", "surrogate"]),
        (b'{"text": NaN}', ["line 2 is not JSON"]),
        (b"Once upon a time", ["line 2 is not JSON", "correct or remove", "Once upon"]),
        (b"{", ["line 2 is not JSON", "one object in each line (`jq -c`"]),
        (b'["a"]', ["line 2 is not a JSON object", 'such as {"text"', '["a"]']),
        (b'"a"', ["line 2 is not a JSON object"]),
        (b'{"body": "a"}', ["line 2 has no field 'text'; set text_field", "'body'"]),
        (b"{}", ["line 2 has no field 'text'; set text_field", "none"]),
        (b'{"text": 12.5}', ["line 2: correct it or set text_field", "is 12.5"]),
        (b'{"text": ["a"]}', ["line 2: correct it or set text_field", '["a"]']),
        (b'{"text": {"a": 1}}', ["line 2: correct it or set text_field", '{"a": 1}']),
        (b'{"text": true}', ["line 2: correct it or set text_field", "is true"]),
    ],
)
def test_a_bad_line_is_named(jsonl, line, words):
    jsonl.write_bytes(b'{"text": "a"}\n' + line + b'\n{"text": "b"}\n')
    refuse(jsonl, *words)


@pytest.mark.parametrize("name", ["x" * 5000, "x\ny"])
def test_a_message_is_short_and_its_hint_comes_first(jsonl, parquet, name):
    fields = {f"{name} {n}": "a" for n in range(1000)}
    jsonl.write_text(json.dumps(fields))
    refuse(jsonl, "line 1 has no field 'text'; set text_field", "and 990 more")
    write_parquet(parquet, **{key: [value] for key, value in fields.items()})
    refuse(parquet, "has no column 'text'; set text_field", "and 990 more")
    jsonl.write_text(json.dumps({"text": [name] * 1000}))
    refuse(jsonl, "line 1: correct it or set text_field", "since 'text' is")
    jsonl.write_text(name.replace("\n", "") * 2)
    refuse(jsonl, "line 1 is not JSON; correct or remove")


def test_a_json_array_is_told_how_to_become_lines(tmp_path):
    path = tmp_path / "stories.json"
    path.write_text(json.dumps([{"text": "a"}], indent=2))
    refuse(path, "line 1 is not JSON; JSON Lines has one object in each line")


@pytest.mark.parametrize("name", ["stories.jsonl", "stories.jsonl.gz", "stories.txt"])
def test_utf_16_is_refused(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(JSON_LINES.decode().encode("utf-16"))
    refuse(path, "is UTF-16 text; convert it")


def test_a_parquet_file_without_the_column_names_those_it_has(parquet):
    write_parquet(parquet, id=[1], body=["a"])
    refuse(parquet, "has no column 'text'; set text_field", "'id', 'body'")
    refuse(parquet, "set text_field", "'id' holds int64", text_field="id")


@pytest.mark.parametrize("size", [0, 3, 50, 400])
def test_a_truncated_parquet_file_is_refused(parquet, size):
    write_parquet(parquet, text=["a" * 1000])
    parquet.write_bytes(parquet.read_bytes()[:size])
    refuse(parquet, "is not a Parquet file, or", "get it again")


def test_a_damaged_parquet_file_is_refused(parquet):
    write_parquet(parquet, text=[os.urandom(500).hex() for _ in range(2000)])
    whole = bytearray(parquet.read_bytes())
    whole[4:20000] = bytes(19996)
    parquet.write_bytes(whole)
    refuse(parquet, "damaged or incomplete after row 0; get it again")


def test_compressed_parquet_is_refused(parquet):
    write_parquet(parquet, text=["a"])
    path = parquet.with_name("stories.parquet.gz")
    path.write_bytes(gzip.compress(parquet.read_bytes()))
    refuse(path, "is a compressed Parquet file; decompress it first")


def test_archives_are_refused(tmp_path):
    path = tmp_path / "stories.txt.gz"
    subprocess.run(
        ["tar", "-czf", path, "test_layout.py"], cwd=ROOT / "tests", check=True
    )
    refuse(path, "is a tar archive; unpack it first")
    path.write_bytes(gzip.compress(gzip.compress(b"twice")))
    refuse(path, "is a gzip file; decompress it first")


def test_a_binary_file_is_refused(tmp_path):
    path = tmp_path / "module.pyc"
    path.write_bytes(b"\xa7\r\r\nab\0\0")
    refuse(path, "is binary, not text (a NUL byte at offset 6)", "setting files")


@pytest.mark.parametrize("name", ["stories.txt", "poems.txt", "stories.jsonl"])
def test_a_document_longer_than_the_limit_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.setattr(sources, "MAX_DOCUMENT_BYTES", 1000)
    path = tmp_path / name
    place = "line 1" if name.endswith("jsonl") else "offset 0"
    path.write_bytes(json.dumps({"text": "a" * 980}).encode())
    assert len(read(path)) == 1
    path.write_bytes(json.dumps({"text": "a\n" * 500}).encode())
    refuse(
        path,
        f"{place}: a document of more than 1,000 bytes, the limit",
        error=ResourceError,
        split_at_blank_lines=name == "poems.txt",
    )


def test_a_package_that_is_missing_is_named_with_the_command_that_installs_it(
    jsonl, parquet, monkeypatch
):
    jsonl.write_bytes(b"{}")
    write_parquet(parquet, text=["a"])
    zstd_path = jsonl.with_name("stories.txt.zst")
    zstd_path.write_bytes(COMPRESS[".zst"](b"a"))
    for name in ("orjson", "pyarrow", "backports", "compression"):
        monkeypatch.setitem(sys.modules, name, None)
    for path, package in (
        (jsonl, "orjson"),
        (parquet, "pyarrow"),
        (zstd_path, "backports.zstd"),
    ):
        command = f"run `python -m pip install {package}`, since"
        refuse(path, command, path.name, error=ConfigError)


def test_a_place_is_named_in_the_unit_of_the_shape(jsonl, parquet, tmp_path):
    jsonl.write_bytes(JSON_LINES)
    write_parquet(parquet, text=["a"])
    (tmp_path / "a.txt").write_text("a")
    assert name_place(jsonl, 1234) == f"{jsonl}, line 1,234"
    assert name_place(parquet, 2) == f"{parquet}, row 2"
    assert name_place(tmp_path / "a.txt", 0) == f"{tmp_path / 'a.txt'}, offset 0"


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("text_field", 3, "the name of a field"),
        ("text_field", "", "the name of a field"),
        ("split_at_blank_lines", "yes", "true"),
        ("separator_in_text", "drop", "refuse or escape"),
        ("valid_fraction", 0, "a number such as 0.1"),
        ("valid_fraction", 1.0, "a number such as 0.1"),
        ("valid_fraction", float("nan"), "a number such as 0.1"),
        ("valid_fraction", "10%", "a number such as 0.1"),
        ("max_documents", 0, "an integer >= 1"),
        ("max_documents", 1.5, "an integer >= 1"),
    ],
)
def test_an_unusable_value_is_named(name, value, wanted):
    with pytest.raises(ConfigError, match=f"{name} is .*; give {wanted}"):
        Reading(**{name: value})
