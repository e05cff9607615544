"""Export: other trainers read the same documents from the same bytes on disk.

tests/check_readers.py reads them with the trainers' own packages; here their formats
are written out byte by byte.
"""

import itertools
import json
import os
import re
import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import SEP, save_tokens
from tiny_llm.encoding import encode_file
from tiny_llm.errors import ConfigError, InputError, IntegrityError
from tiny_llm.export import FORMATS, document_offsets, export
from tiny_llm.tokenize import BPETokenizer
from tiny_llm.tokens import documents_path, manifest_path, open_tokens, read_manifest

# Documents of 3, 1 and 2 ids; the id after the last separator belongs to none.
IDS = [7, 8, 256, 256, 9, 256, 10]
SHM = Path("/dev/shm")


@pytest.fixture
def path(tmp_path):
    """A token file as encoding writes it: white space follows the last separator."""
    target = tmp_path / "tokens" / "train.bin"
    text = b"".join([b"\x07\x08", SEP, SEP, b"\x09", SEP, b"\n"])
    (tmp_path / "train.txt").write_bytes(text)
    encode_file(BPETokenizer(), tmp_path / "train.txt", target)
    assert open_tokens(target)[0].tolist() == IDS
    return target


def documents(path):
    ids, manifest = open_tokens(path)
    offsets = document_offsets(path, manifest)
    return [ids[low:high].tolist() for low, high in itertools.pairwise(offsets)]


def identity(path):
    found = os.stat(path)
    return found.st_dev, found.st_ino, found.st_size, path.read_bytes()


def test_documents_end_with_the_separator_and_lack_trailing_white_space(path):
    assert documents(path) == [[7, 8, 256], [256], [9, 256]]


def test_a_last_document_without_a_separator_ends_with_the_file(tmp_path):
    path = save_tokens(tmp_path / "a.bin", [1, 256, 2, 3])
    assert documents(path) == [[1, 256], [2, 3]]
    path = save_tokens(tmp_path / "none.bin", [])
    manifest = read_manifest(path)
    with pytest.raises(InputError):  # An empty file cannot be mapped.
        document_offsets(path, manifest)


@pytest.mark.parametrize("name", FORMATS)
def test_no_format_touches_the_token_file(path, tmp_path, name):
    before = identity(path)
    done = export(path, name, tmp_path / "out")
    again = export(path, name, tmp_path / "out")
    assert done == again
    assert identity(path) == before
    for written in done.written:
        assert written.parent == tmp_path / "out"
        assert written.is_file()
    if name not in ("llm.c", "modded-nanogpt"):
        assert os.path.samefile(done.tokens, path)
    assert str(done.tokens) in done.usage or name in ("megatron", "nanogpt")
    assert not list((tmp_path / "out").glob("*.tmp"))


def test_datatrove_gets_the_end_of_each_document(path):
    done = export(path, "datatrove")
    assert done.tokens == path
    [index] = done.written
    assert index == path.with_name("train.bin.index")
    assert index.read_bytes() == struct.pack("<3Q", 3, 4, 6)


def test_megatron_gets_lengths_and_byte_offsets(path):
    done = export(path, "megatron")
    assert done.written == [path.with_suffix(".idx")]
    assert done.written[0].read_bytes() == (
        b"MMIDIDX\0\0"
        + struct.pack("<QBQQ", 1, 8, 3, 4)  # version, uint16, sequences, documents + 1
        + struct.pack("<3i", 3, 1, 2)
        + struct.pack("<3q", 0, 6, 8)
        + struct.pack("<4q", 0, 1, 2, 3)
    )


def test_megatron_reads_wide_ids_as_int32(tmp_path):
    path = save_tokens(tmp_path / "a.bin", [70_000, 256, 1], vocab_size=80_000)
    [index] = export(path, "megatron").written
    content = index.read_bytes()
    assert content[17] == 4
    assert struct.unpack("<2q", content[34 + 8 : 34 + 24]) == (0, 8)


def test_torchtitan_gets_document_offsets_that_numpy_loads_without_pickle(path):
    done = export(path, "torchtitan")
    assert done.written == [path.with_name("train.document_offsets.npy")]
    offsets = np.load(done.written[0], allow_pickle=False)
    assert (offsets.dtype, offsets.tolist()) == (np.int64, [0, 3, 4, 6])


def test_olmo_core_gets_the_arguments_of_its_tokenizer_config(path):
    done = export(path, "olmo-core")
    assert json.loads(done.written[0].read_bytes()) == {
        "dtype": "uint16",
        "tokenizer": {"vocab_size": 257, "eos_token_id": 256, "pad_token_id": 256},
    }


def test_nanogpt_gets_its_file_names_and_the_vocab_size_without_pickle(path, tmp_path):
    for suffix in (".bin", ".json", ".documents"):
        os.link(path.with_suffix(suffix), path.with_name(f"valid{suffix}"))
    out = tmp_path / "data" / "tiny"
    assert export(path, "nanogpt", out).tokens == out / "train.bin"
    done = export(path.with_name("valid.bin"), "nanogpt", out)
    assert done.tokens == out / "val.bin"
    assert sorted(os.listdir(out)) == ["meta.json", "train.bin", "val.bin"]
    meta = json.loads((out / "meta.json").read_bytes())
    assert (meta["vocab_size"], meta["separator_id"]) == (257, 256)
    assert np.memmap(out / "val.bin", np.uint16, "r").tolist() == IDS


@pytest.mark.parametrize("name", ["llm.c", "modded-nanogpt"])
def test_llm_c_gets_a_copy_behind_its_header(path, name):
    done = export(path, name)
    assert done.tokens == path.with_name(f"train_{name}.bin")
    content = done.tokens.read_bytes()
    header = struct.unpack("<256i", content[:1024])
    assert header[:3] == (20240520, 1, len(IDS))
    assert not any(header[3:])
    assert content[1024:] == path.read_bytes()
    ids, manifest = open_tokens(done.tokens)  # Our own reader knows the header, too.
    assert (ids.tolist(), manifest) == (IDS, None)


def test_wide_ids_have_another_header_and_trainers_that_cannot_read_them(tmp_path):
    path = save_tokens(tmp_path / "a.bin", [70_000, 256], vocab_size=80_000)
    done = export(path, "llm.c")
    assert struct.unpack("<3i", done.tokens.read_bytes()[:12]) == (20240801, 7, 2)
    assert open_tokens(done.tokens)[0].tolist() == [70_000, 256]
    for name in ("nanogpt", "modded-nanogpt"):
        with pytest.raises(InputError, match=r"uint32 ids, but .* reads uint16 only"):
            export(path, name, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_link_keeps_its_ids_when_the_text_is_encoded_again(path, tmp_path):
    out = tmp_path / "out"
    [index] = export(path, "megatron", out).written
    before = (out / "train.bin").read_bytes(), index.read_bytes()
    save_tokens(path, [1, 2, 3, 256], vocab_size=257)
    assert ((out / "train.bin").read_bytes(), index.read_bytes()) == before
    with pytest.raises(ConfigError, match=r"exists and is not .*; remove it"):
        export(path, "megatron", out)
    assert ((out / "train.bin").read_bytes(), index.read_bytes()) == before


def test_a_file_of_the_user_is_not_replaced_by_a_link(path, tmp_path):
    (tmp_path / "val.bin").write_bytes(b"mine")
    path = path.rename(path.with_name("valid.bin"))
    manifest_path(path.with_name("train.bin")).rename(manifest_path(path))
    with pytest.raises(ConfigError, match=r"val.bin exists"):
        export(path, "nanogpt", tmp_path)
    assert (tmp_path / "val.bin").read_bytes() == b"mine"


@pytest.mark.skipif(not SHM.is_dir(), reason="needs another filesystem")
def test_a_filesystem_boundary_takes_a_symbolic_link(path):
    if os.stat(SHM).st_dev == os.stat(path).st_dev:
        pytest.skip("needs another filesystem")
    with tempfile.TemporaryDirectory(dir=SHM) as out:
        done = export(path, "datatrove", out)
        assert done.tokens.is_symlink()
        assert done.tokens.read_bytes() == path.read_bytes()
        assert export(path, "datatrove", out) == done


def test_a_missing_manifest_or_file_is_an_input_error(path, tmp_path):
    with pytest.raises(InputError, match=r"gone.json: no manifest"):
        export(tmp_path / "gone.bin", "datatrove")
    content = path.read_bytes()
    path.unlink()
    for name in FORMATS:
        with pytest.raises(InputError, match="no such token file"):
            export(path, name, tmp_path / "out")
    path.write_bytes(content)
    manifest_path(path).unlink()
    for name in FORMATS:
        with pytest.raises(InputError, match="no manifest"):
            export(path, name, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", FORMATS)
def test_a_truncated_token_file_is_refused(path, tmp_path, name):
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(IntegrityError, match="its manifest says"):
        export(path, name, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("starts", [[0, 2, 4], [0, 4, 3], [0, -5, 4], [0, 1 << 40, 4]])
@pytest.mark.parametrize("name", ["datatrove", "megatron", "torchtitan"])
def test_a_damaged_index_is_refused(path, tmp_path, name, starts):
    index = documents_path(path)
    index.write_bytes(index.read_bytes()[:32] + struct.pack("<3q", *starts))
    with pytest.raises(IntegrityError, match=r"train.documents is "):
        export(path, name, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_unknown_format_is_answered_with_the_known_ones(path):
    with pytest.raises(ConfigError, match=re.escape("'Megatron'; give datatrove, meg")):
        export(path, "Megatron")
