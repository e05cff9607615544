import contextlib
import hashlib
import json
import random
import zlib

import numpy as np
import pytest

from tiny_llm.atomic import to_json
from tiny_llm.errors import ConfigError, InputError, IntegrityError
from tiny_llm.manifest import digest_of_ranges
from tiny_llm.tokens import (
    documents_path,
    manifest_path,
    open_documents,
    open_tokens,
    read_manifest,
    write_tokens,
)
from tiny_llm.verify import verify


def write(path, ids, vocab_size=300):
    dtype = np.uint16 if vocab_size <= 1 << 16 else np.uint32
    with write_tokens(
        path, vocab_size=vocab_size, separator_id=256, tokenizer_sha256="t" * 64
    ) as writer:
        for part in np.array_split(np.array(ids, dtype=dtype), 3):
            writer.append(part)
        writer.rest_is_document = len(ids) > 0 and ids[-1] != 256


def edit_manifest(path, **values):
    """Change values of a manifest, and its digests too, as only an attacker would."""
    target = manifest_path(path)
    changed = {**json.loads(target.read_text()), **values}
    del changed["manifest_sha256"]
    if "sha256" not in values:
        with contextlib.suppress(TypeError, ValueError):
            changed["sha256"] = digest_of_ranges(changed["range_sha256"])
    digest = hashlib.sha256(to_json(changed)).hexdigest()
    target.write_bytes(to_json({**changed, "manifest_sha256": digest}))


@pytest.mark.parametrize(("vocab_size", "width"), [(300, 2), (65_536, 2), (65_537, 4)])
def test_ids_are_little_endian_and_as_wide_as_the_vocab_needs(
    tmp_path, vocab_size, width
):
    path = tmp_path / "train.bin"
    write(path, [1, 256, 0x1234 % vocab_size], vocab_size)
    golden = b"".join(
        i.to_bytes(width, "little") for i in (1, 256, 0x1234 % vocab_size)
    )
    assert path.read_bytes() == golden
    ids, manifest = open_tokens(path)
    assert manifest == read_manifest(path)
    assert ids.tolist() == [1, 256, 0x1234 % vocab_size]
    assert ids.dtype.itemsize == width
    assert not ids.flags.writeable


def test_the_manifest_says_what_the_file_holds(tmp_path):
    write(tmp_path / "train.bin", [5, 256, 7, 256, 9])
    manifest = read_manifest(tmp_path / "train.bin")
    assert (manifest.num_tokens, manifest.num_documents) == (5, 3)
    assert (manifest.dtype, manifest.vocab_size) == ("uint16", 300)
    assert verify(tmp_path / "train.bin", "t" * 64) == manifest


def test_a_failed_write_keeps_the_old_pair(tmp_path):
    path = tmp_path / "train.bin"
    write(path, [1, 2, 3])
    with pytest.raises(TypeError):
        write(path, [1, 2, 3], vocab_size=None)
    with (
        pytest.raises(RuntimeError),
        write_tokens(path, vocab_size=9, separator_id=8, tokenizer_sha256=""),
    ):
        raise RuntimeError
    assert verify(path).num_tokens == 3
    names = ["train.bin", "train.documents", "train.json"]
    assert sorted(file.name for file in tmp_path.iterdir()) == names


def test_ids_too_wide_for_the_file_are_refused(tmp_path):
    with (
        pytest.raises(TypeError, match="Cannot cast"),
        write_tokens(
            tmp_path / "x.bin", vocab_size=300, separator_id=256, tokenizer_sha256=""
        ) as writer,
    ):
        writer.append(np.array([70_000], dtype=np.uint32))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("keep", [0, 2, 5, 8])
def test_a_truncated_file_is_refused_on_load(tmp_path, keep):
    path = tmp_path / "train.bin"
    write(path, [1, 2, 3, 4, 5])
    path.write_bytes(path.read_bytes()[:keep])
    for check in (open_tokens, verify):
        with pytest.raises(IntegrityError, match=f"holds {keep} bytes, .* says 10"):
            check(path)


def test_every_flipped_bit_is_found_and_its_range_named(tmp_path):
    path = tmp_path / "train.bin"
    write(path, list(range(201)))
    whole = path.read_bytes()
    dice = random.Random(0)
    for _ in range(200):
        place = dice.randrange(len(whole))
        damaged = bytearray(whole)
        damaged[place] ^= 1 << dice.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(IntegrityError, match=rf"range {place // 134} \(bytes"):
            verify(path)


def test_another_tokenizer_is_refused(tmp_path):
    write(tmp_path / "train.bin", [1])
    with pytest.raises(IntegrityError, match=r"made by the tokenizer .* not by uuu"):
        verify(tmp_path / "train.bin", "u" * 64)


def test_the_manifest_decides_the_dtype(tmp_path):
    path = tmp_path / "train.bin"
    write(path, [1, 70_000], vocab_size=80_000)
    assert open_tokens(path)[0].tolist() == [1, 70_000]
    edit_manifest(path, dtype="uint16", num_tokens=4, range_tokens=[4, 0, 0])
    with pytest.raises(IntegrityError, match=r"dtype is 'uint16', but a vocab_size"):
        open_tokens(path)


DIGITS = "9" * 5000


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"[]", b"{}", b"nonsense", b'{"format_version": 2}', b"\x00", b"null"),
        *(b"[" * 3000, b'{"a":' * 3000, b"[" * 3000 + b"]" * 3000),
        *(b"\xff\xfe\xfd", b'{"\xff": 1}', b"NaN", DIGITS.encode()),
        b'{"format_version": 1, "a\\nb": 2}',
        b'{"format_version": ' + DIGITS.encode() + b"}",
    ],
    ids=lambda content: repr(content[:20]),
)
def test_a_file_that_is_not_a_manifest_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "train.bin"
    write(path, [1])
    manifest_path(path).write_bytes(content)
    for check in (open_tokens, verify):
        with pytest.raises(
            IntegrityError, match="is not the manifest of a token file"
        ) as info:
            check(path)
        assert "\n" not in str(info.value)
        assert len(str(info.value)) < len(str(path)) + 300


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("num_tokens", value) for value in ('"5"', "NaN", "-1", "1e3", "true")),
        *(("num_tokens", value) for value in ("null", "[]", DIGITS, DIGITS[:4000])),
        *(("num_documents", value) for value in ("-1", "4", "Infinity")),
        *(("num_bytes", value) for value in ("-1", "0.5", DIGITS[:60])),
        *(("vocab_size", value) for value in ("0", "-300", DIGITS[:60], "256")),
        *(("separator_id", value) for value in ("-1", "300", '"256"')),
        *(("sha256", value) for value in ("null", '""', '"g"', f'"{DIGITS}"')),
        *(("tokenizer_sha256", value) for value in ("1", '"a\\nb"', f'"{DIGITS}"')),
        *(("range_tokens", value) for value in ("3", "[-1]", '["1"]', "[[]]", "{}")),
        *(("range_tokens", value) for value in ("[4294967296]", "[]", "[" * 3000)),
        *(("range_sha256", value) for value in ("3", "[1]", '["1"]', "[[]]", "{}")),
        *(("dtype", value) for value in ("1", '"uint32"', '"<u2"', f'"{DIGITS}"')),
        *(("format_version", value) for value in ("true", "1.0", "3", '"1"', DIGITS)),
        *(("extra", "1"), ("num_tokens", '3, "num_tokens": 4'), (DIGITS, "1")),
    ],
    ids=lambda value: value[:20],
)
def test_a_manifest_with_an_impossible_value_is_refused_in_one_line(
    tmp_path, name, value
):
    path = tmp_path / "train.bin"
    write(path, [1, 2, 256])
    values = json.loads(manifest_path(path).read_text())
    values.pop(name, None)
    pairs = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in values.items()]
    pairs.append(f'"{name}": {value}')
    manifest_path(path).write_text("{" + ", ".join(pairs) + "}")
    for check in (open_tokens, verify):
        with pytest.raises(IntegrityError) as info:
            check(path)
        assert "\n" not in str(info.value)
        assert len(str(info.value)) < len(str(path)) + 300


@pytest.mark.parametrize("name", ["num_tokens", "range_sha256", "sha256"])
def test_a_manifest_that_lacks_a_value_is_refused(tmp_path, name):
    path = tmp_path / "train.bin"
    write(path, [1])
    values = json.loads(manifest_path(path).read_text())
    del values[name]
    manifest_path(path).write_text(json.dumps(values))
    with pytest.raises(IntegrityError, match=f"it lacks '{name}'"):
        open_tokens(path)


@pytest.mark.parametrize(
    "values",
    [
        *({"num_documents": n} for n in (0, 1, 4)),
        *({"vocab_size": 257}, {"separator_id": 255}, {"separator_id": 9}),
        *({"range_tokens": [5]}, {"range_tokens": [3, 1, 1]}, {"sha256": "0" * 64}),
        *({"num_tokens": 4}, {"range_sha256": ["0" * 64] * 3}),
    ],
)
def test_verify_finds_a_changed_value_of_the_manifest(tmp_path, values):
    path = tmp_path / "train.bin"
    write(path, [5, 256, 299, 256, 9])
    edit_manifest(path, **values)
    with pytest.raises(IntegrityError, match="encode the text again"):
        verify(path)


def test_a_manifest_with_any_changed_byte_is_refused(tmp_path):
    path = tmp_path / "train.bin"
    write(path, [5, 256, 299, 256, 9])
    whole = manifest_path(path).read_bytes()
    dice = random.Random(0)
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << dice.randrange(8)
        manifest_path(path).write_bytes(damaged)
        for check in (open_tokens, verify):
            with pytest.raises(IntegrityError, match="encode the text again"):
                check(path)


def test_verify_finds_any_changed_byte_of_the_index(tmp_path):
    path = tmp_path / "train.bin"
    write(path, [256, 5, 256, 256, 299, 7, 256, 9, 256])
    whole = documents_path(path).read_bytes()
    for place in range(len(whole)):
        for bit in range(8):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << bit
            documents_path(path).write_bytes(damaged)
            with pytest.raises(IntegrityError, match=r"train\.documents is"):
                verify(path)
    for content in (b"", whole[:32], whole[:-1], whole + bytes(8)):
        documents_path(path).write_bytes(content)
        with pytest.raises(IntegrityError, match=r"train\.documents is not the index"):
            verify(path)
    documents_path(path).unlink()
    with pytest.raises(InputError, match=r"train\.documents: no such index"):
        verify(path)


def write_version_1(path, ids):
    """As tiny_llm wrote token files before format version 2."""
    raw = np.array(ids, "<u2").tobytes()
    path.write_bytes(raw)
    values = {
        "format_version": 1,
        "dtype": "uint16",
        "num_tokens": len(ids),
        "num_documents": ids.count(256) + (ids[-1] != 256),
        "num_bytes": 1,
        "vocab_size": 300,
        "separator_id": 256,
        "sha256": hashlib.sha256(raw).hexdigest(),
        "tokenizer_sha256": "t" * 64,
        "block_crc32": [zlib.crc32(raw)],
    }
    manifest_path(path).write_bytes(to_json(values))


def test_a_file_of_format_version_1_is_still_read(tmp_path):
    path = tmp_path / "train.bin"
    write_version_1(path, [5, 256, 299, 256, 9])
    assert open_tokens(path)[0].tolist() == [5, 256, 299, 256, 9]
    assert verify(path, "t" * 64).format_version == 1
    assert open_documents(path, read_manifest(path)).tolist() == [0, 2, 4]
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    with pytest.raises(IntegrityError, match=r"range 0 \(bytes 0 to 10\)"):
        verify(path)


@pytest.mark.parametrize("name", ["train.json", "train", "train.txt"])
def test_a_token_file_must_leave_its_manifest_a_name(tmp_path, name):
    with pytest.raises(ConfigError, match=r"called NAME\.bin"):
        write(tmp_path / name, [1])
    assert list(tmp_path.iterdir()) == []


def test_a_manifest_of_another_format_is_refused(tmp_path):
    path = tmp_path / "train.bin"
    write(path, [1])
    edit_manifest(path, format_version=3)
    with pytest.raises(IntegrityError, match="format_version 3"):
        open_tokens(path)


def test_a_file_without_manifest_is_read_as_uint16(tmp_path):
    path = tmp_path / "bare.bin"
    path.write_bytes(b"\x01\x00\x02\x01")
    assert open_tokens(path)[0].tolist() == [1, 258]
    with pytest.raises(InputError, match="no manifest"):
        verify(path)


def test_a_token_file_that_lost_its_manifest_is_refused(tmp_path):
    """Its index tells it from a bare file; as uint16 it would be read as garbage."""
    path = tmp_path / "train.bin"
    write(path, [1, 70_000], vocab_size=80_000)
    manifest_path(path).unlink()
    with pytest.raises(IntegrityError, match=r"manifest .*train\.json is missing"):
        open_tokens(path)


def llm_c_file(path, magic, version, ids, dtype):
    """As dev/data/data_common.py of llm.c writes it."""
    header = np.zeros(256, "<i4")
    header[:3] = magic, version, len(ids)
    path.write_bytes(header.tobytes() + np.array(ids, dtype).tobytes())


@pytest.mark.parametrize(
    ("magic", "version", "dtype", "ids"),
    [(20240520, 1, "<u2", [1, 50256, 65535]), (20240801, 7, "<u4", [1, 128000])],
)
def test_a_file_of_llm_c_is_read_without_its_header(
    tmp_path, magic, version, dtype, ids
):
    path = tmp_path / "fineweb_train_000001.bin"
    llm_c_file(path, magic, version, ids, dtype)
    found, manifest = open_tokens(path)
    assert (found.tolist(), found.dtype, manifest) == (ids, np.dtype(dtype), None)
    assert not found.flags.writeable

    llm_c_file(path, magic, version + 1, ids, dtype)
    message = f"token file of llm.c .{magic}. in version {version + 1}; only version "
    with pytest.raises(IntegrityError, match=message):
        open_tokens(path)

    llm_c_file(path, magic, version, ids, dtype)
    whole = path.read_bytes()
    for content in (whole[:-2], whole + b"\0\0\0\0", whole[:1024], whole[:512]):
        path.write_bytes(content)
        message = f"holds {len(content):,} bytes, its llm.c header says {len(whole):,}"
        with pytest.raises(IntegrityError, match=message):
            open_tokens(path)

    llm_c_file(path, magic, version, [], dtype)
    with pytest.raises(InputError, match="holds 0 bytes, not a positive"):
        open_tokens(path)


def test_a_manifest_is_trusted_even_if_ids_look_like_a_header(tmp_path):
    path = tmp_path / "train.bin"
    ids = np.array([20240520, 1, 300], "<i4").view("<u2").tolist()
    write(path, ids, vocab_size=65_536)
    assert open_tokens(path)[0].tolist() == ids


@pytest.mark.parametrize("content", [b"", b"\x01\x00\x02"])
def test_a_bare_file_of_no_or_half_ids_is_refused(tmp_path, content):
    path = tmp_path / "bare.bin"
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"holds {len(content)} bytes, not a positive"):
        open_tokens(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"gone\.bin: no such token file"):
        open_tokens(tmp_path / "gone.bin")
