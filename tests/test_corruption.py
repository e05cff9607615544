"""1,000 random corruptions of token files, their manifests and indexes."""

import json
import random

import numpy as np
import pytest

from tests.conftest import save_tokens
from tiny_llm.errors import InputError, IntegrityError
from tiny_llm.tokens import documents_path, manifest_path, open_tokens, write_tokens
from tiny_llm.verify import verify

SEP = 256


def write(path, vocab_size, seed):
    """A token file of five ranges."""
    dice = np.random.default_rng(seed)
    dtype = np.uint16 if vocab_size <= 1 << 16 else np.uint32
    with write_tokens(
        path, vocab_size=vocab_size, separator_id=SEP, tokenizer_sha256="a" * 64
    ) as writer:
        for _ in range(5):
            ids = dice.integers(0, vocab_size, 40).astype(dtype)
            ids[dice.integers(0, 40, 4)] = SEP
            writer.append(ids)
        writer.rest_is_document = bool(ids[-1] != SEP)
        writer.num_bytes = 5000


def flip_bit(dice, content):
    changed = bytearray(content)
    changed[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
    return bytes(changed)


def truncate(dice, content):
    return content[: dice.randrange(len(content))]


def append(dice, content):
    return content + dice.choice([bytes(2), b"\n", dice.randbytes(8), content[-8:]])


def zero_block(dice, content):
    begin, size = dice.randrange(len(content)), dice.choice([1, 8, 64, 512])
    end = min(begin + size, len(content))
    return content[:begin] + bytes(end - begin) + content[end:]


def swap_blocks(dice, content):
    size = dice.choice([2, 4, 8, 32])
    first, second = sorted(dice.sample(range(0, len(content) - size, size), 2))
    block = content[first : first + size]
    other = content[second : second + size]
    middle = content[first + size : second]
    return content[:first] + other + middle + block + content[second + size :]


def remove_block(dice, content):
    begin, size = dice.randrange(len(content)), dice.choice([1, 2, 4, 8])
    return content[:begin] + content[begin + size :]


def repeat_block(dice, content):
    begin, size = dice.randrange(len(content)), dice.choice([1, 2, 4, 8])
    return content[: begin + size] + content[begin:]


def change_value(dice, content):
    values = json.loads(content)
    name = dice.choice(list(values))
    old = values[name]
    if isinstance(old, list):
        new = [
            *(old[::-1], old[1:], [*old, old[0]]),
            [old[1], old[0], *old[2:]],
        ]
    elif isinstance(old, int):
        new = [old + 1, old - 1, old * 2, old // 2, 0, -old, float(old), str(old)]
    else:
        new = [old[::-1], old.upper(), old[1:], "", None, "0" * 64]
    values[name] = dice.choice(new)
    return json.dumps(values, indent=2).encode() + b"\n"


def remove_field(dice, content):
    lines = json.loads(content)
    del lines[dice.choice(list(lines))]
    return json.dumps(lines, indent=2).encode() + b"\n"


def repeat_field(dice, content):
    values = json.loads(content)
    name = dice.choice(list(values))
    value = dice.choice([values[name], 0, "x"])
    return content.rstrip(b"\n}") + f',\n  "{name}": {json.dumps(value)}\n}}\n'.encode()


def relabel_version(dice, content):
    """As format version 1, with or without what that version had."""
    values = {**json.loads(content), "format_version": 1}
    if dice.random() < 0.5:
        for name in ("range_tokens", "range_sha256", "manifest_sha256"):
            del values[name]
        values["block_crc32"] = [dice.getrandbits(32)]
    return json.dumps(values, indent=2).encode() + b"\n"


def relabel_dtype(dice, content):
    values = json.loads(content)
    is_narrow = values["dtype"] == "uint16"
    values["dtype"] = "uint32" if is_narrow else "uint16"
    if dice.random() < 0.7:
        values["vocab_size"] = 70_000 if is_narrow else 300
    if dice.random() < 0.7:
        for name in ("num_tokens", "range_tokens"):
            old = values[name] if name == "range_tokens" else [values[name]]
            new = [n // 2 if is_narrow else n * 2 for n in old]
            values[name] = new if name == "range_tokens" else new[0]
    return json.dumps(values, indent=2).encode() + b"\n"


ANY = [flip_bit, truncate, append, zero_block, swap_blocks, remove_block, repeat_block]
JSON = [change_value, remove_field, repeat_field, relabel_version, relabel_dtype]


def is_refused(check, path):
    try:
        check(path)
    except (InputError, IntegrityError) as error:
        return "\n" not in str(error)
    return False


@pytest.mark.parametrize(("vocab_size", "seed"), [(300, 0), (80_000, 1)])
def test_verify_finds_each_of_500_corruptions(tmp_path, vocab_size, seed):
    path, other = tmp_path / "train.bin", tmp_path / "valid.bin"
    write(path, vocab_size, seed)
    write(other, vocab_size, seed + 100)
    files = (path, manifest_path(path), documents_path(path))
    whole = {file: file.read_bytes() for file in files}
    of_other = dict(
        zip(files, (other, manifest_path(other), documents_path(other)), strict=True)
    )
    dice = random.Random(seed)
    count, missed, loaded = 0, [], []
    while count < 500:
        file = dice.choice(files)
        kinds = ANY + JSON * (file.suffix == ".json")
        kind = dice.choice([*kinds, None])
        content = kind(dice, whole[file]) if kind else of_other[file].read_bytes()
        if content == whole[file]:
            continue
        count += 1
        file.write_bytes(content)
        name = f"{file.suffix} {kind and kind.__name__}"
        if not is_refused(verify, path):
            missed.append(name)
        # Loading checks the size of the ids, and the manifest, which in format
        # version 1 has no digest of its own.
        is_visible = file == path and len(content) != len(whole[file])
        is_visible |= file.suffix == ".json" and kind not in (None, relabel_version)
        if is_visible and not is_refused(open_tokens, path):
            loaded.append(name)
        file.write_bytes(whole[file])
    assert missed == []
    assert loaded == []
    verify(path)


def test_verify_finds_that_a_file_is_missing(tmp_path):
    path = save_tokens(tmp_path / "x.bin", [1, SEP, 2])
    for file in (path, manifest_path(path), documents_path(path)):
        content = file.read_bytes()
        file.unlink()
        with pytest.raises(InputError):
            verify(path)
        file.write_bytes(content)
    verify(path)
