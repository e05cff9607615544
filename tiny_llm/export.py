"""Export: make a token file readable by other trainers, without copying it.

Most of them read the same flat array of ids and want a small file beside it that says
where documents are. In every format a document ends with the separator id, and white
space after the last separator belongs to no document.
"""

from __future__ import annotations

import dataclasses
import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tiny_llm.atomic import atomic_link, atomic_write, copy_bytes, part_path, write_json
from tiny_llm.errors import ConfigError, InputError, IntegrityError
from tiny_llm.manifest import (
    LLM_C_DTYPES,
    LLM_C_HEADER_BYTES,
    Manifest,
    documents_path,
    read_manifest,
)
from tiny_llm.tokens import open_documents, open_tokens

StrPath = str | os.PathLike[str]
_MAX_INT32 = (1 << 31) - 1
_BLOCK_TOKENS = 1 << 20


@dataclasses.dataclass(frozen=True)
class Export:
    """What a trainer reads.

    Attributes:
        format: One of `FORMATS`.
        tokens: The token file itself, a link to it, or (llm.c, modded-nanogpt) a copy.
        written: The new files.
        usage: How to open it, in one line.
    """

    format: str
    tokens: Path
    written: list[Path]
    usage: str


def export(path: StrPath, format_name: str, folder: StrPath | None = None) -> Export:
    """Make a token file readable by another trainer.

    Args:
        path: The token file; it needs its manifest. It is not changed.
        format_name: One of `FORMATS`.
        folder: Where the new files go, with a hard link to the token file (a symbolic
            link where the filesystem needs one). By default they go beside the token
            file, which needs no link. A folder protects from mixing: a link keeps the
            ids it was made for when the text is encoded again.

    Raises:
        ConfigError: There is no such format, or the folder holds another file under the
            name of the link.
        InputError: A file is missing, or the trainer cannot read such a file.
        IntegrityError: The file, its manifest and its index disagree.
    """
    if format_name not in FORMATS:
        raise ConfigError(
            f"there is no format {format_name!r}; give {', '.join(FORMATS)}"
        )
    return FORMATS[format_name](path, folder)


def document_offsets(path: StrPath, manifest: Manifest) -> npt.NDArray[np.int64]:
    """Return where each document starts, and where the last one ends.

    Returns:
        Shape (num_documents + 1,), int64: document i holds the ids from offsets[i] to
        offsets[i + 1].

    Raises:
        IntegrityError: The index belongs to other ids or is damaged.
    """
    ids, _ = open_tokens(path)
    starts = open_documents(path, manifest)
    is_increasing = (np.diff(starts) > 0).all()
    if not is_increasing or (ids[starts[1:] - 1] != manifest.separator_id).any():
        raise IntegrityError(
            f"{documents_path(path)} is damaged: it does not say where the documents "
            f"of {path} start; encode the text again"
        )
    end = int(starts[-1]) if len(starts) else 0
    while end < len(ids) and len(starts):
        block = ids[end : end + _BLOCK_TOKENS] == manifest.separator_id
        if block.any():
            end += int(np.argmax(block)) + 1
            break
        end += len(block)
    return np.append(starts, end).astype(np.int64)


def to_datatrove(path: StrPath, folder: StrPath | None = None) -> Export:
    """Write NAME.bin.index: where each document ends, as uint64."""
    manifest = read_manifest(path)
    ends = document_offsets(path, manifest)[1:]
    tokens = _link(path, folder)
    index = tokens.with_name(f"{tokens.name}.index")
    with atomic_write(index) as file:
        file.write(ends.astype("<u8").data.cast("B"))
    size = _itemsize(manifest)
    usage = (
        f'DatatroveFileDataset("{tokens}", seq_len, token_size={size}, '
        "return_positions=True)"
    )
    return Export("datatrove", tokens, [index], usage)


def to_megatron(path: StrPath, folder: StrPath | None = None) -> Export:
    """Write NAME.idx: the length and byte offset of each document, as one sequence."""
    manifest = read_manifest(path)
    offsets = document_offsets(path, manifest)
    lengths = np.diff(offsets)
    if lengths.size and int(lengths.max()) > _MAX_INT32:
        raise InputError(
            f"{path} holds a document of {lengths.max():,} ids, but Megatron counts "
            f"at most {_MAX_INT32:,}; split it and encode the text again"
        )
    tokens = _link(path, folder)
    index = tokens.with_suffix(".idx")
    with atomic_write(index) as file:
        # Codes of megatron.core's DType. It has no uint32; ids are below 2**31.
        code = {"uint16": 8, "uint32": 4}[manifest.dtype]
        num = len(lengths)
        file.write(struct.pack("<9sQBQQ", b"MMIDIDX", 1, code, num, num + 1))
        file.write(lengths.astype("<i4").data.cast("B"))
        file.write((offsets[:-1] * _itemsize(manifest)).astype("<i8").data.cast("B"))
        file.write(np.arange(num + 1, dtype="<i8").data.cast("B"))
    prefix = tokens.with_suffix("")
    usage = f'IndexedDataset("{prefix}"), or --data-path {prefix}'
    return Export("megatron", tokens, [index], usage)


def to_torchtitan(path: StrPath, folder: StrPath | None = None) -> Export:
    """Write NAME.document_offsets.npy: where documents start, and the last one ends."""
    manifest = read_manifest(path)
    offsets = document_offsets(path, manifest)
    tokens = _link(path, folder)
    target = tokens.with_suffix(".document_offsets.npy")
    with atomic_write(target) as file:
        np.save(file, offsets.astype("<i8"), allow_pickle=False)
    usage = (
        f'np.memmap("{tokens}", np.{manifest.dtype}, "r") and np.load("{target}") in '
        "a source of your own; its data/README.md has one"
    )
    return Export("torchtitan", tokens, [target], usage)


def to_olmo_core(path: StrPath, folder: StrPath | None = None) -> Export:
    """Write NAME.olmo-core.json: the arguments of a NumpyFSLDataset."""
    manifest = read_manifest(path)
    open_tokens(path)
    tokens = _link(path, folder)
    target = tokens.with_suffix(".olmo-core.json")
    tokenizer = {
        "vocab_size": manifest.vocab_size,
        "eos_token_id": manifest.separator_id,
        "pad_token_id": manifest.separator_id,
    }
    write_json(target, {"dtype": manifest.dtype, "tokenizer": tokenizer})
    usage = (
        f'NumpyFSLDatasetConfig(paths=["{tokens}"], sequence_length=..., '
        f"dtype=NumpyDatasetDType.{manifest.dtype}, "
        'tokenizer=TokenizerConfig(**json["tokenizer"]))'
    )
    return Export("olmo-core", tokens, [target], usage)


def to_nanogpt(path: StrPath, folder: StrPath | None = None) -> Export:
    """Write meta.json, with the values of the meta.pkl that nanoGPT would unpickle.

    The trainer looks for train.bin and val.bin, so valid.bin is linked as val.bin.
    """
    manifest = read_manifest(path)
    _require_uint16(path, manifest, "nanoGPT")
    open_tokens(path)
    name = "val.bin" if Path(path).stem == "valid" else None
    tokens = _link(path, folder, name)
    target = tokens.with_name("meta.json")
    values = {
        "vocab_size": manifest.vocab_size,
        "separator_id": manifest.separator_id,
        "tokenizer_sha256": manifest.tokenizer_sha256,
    }
    write_json(target, values)
    usage = (
        f'in train.py: meta_vocab_size = json.load(open("{target}"))["vocab_size"]; '
        "without it, nanoGPT makes room for 50,304 ids"
    )
    return Export("nanogpt", tokens, [target], usage)


def to_llm_c(path: StrPath, folder: StrPath | None = None) -> Export:
    """Copy the ids behind a header of llm.c into NAME_llm.c.bin."""
    return _copy_with_header("llm.c", path, folder)


def to_modded_nanogpt(path: StrPath, folder: StrPath | None = None) -> Export:
    """Copy the ids behind a header of llm.c into NAME_modded-nanogpt.bin."""
    _require_uint16(path, read_manifest(path), "modded-nanogpt")
    return _copy_with_header("modded-nanogpt", path, folder)


FORMATS: dict[str, Callable[[StrPath, StrPath | None], Export]] = {
    "datatrove": to_datatrove,
    "megatron": to_megatron,
    "torchtitan": to_torchtitan,
    "olmo-core": to_olmo_core,
    "nanogpt": to_nanogpt,
    "llm.c": to_llm_c,
    "modded-nanogpt": to_modded_nanogpt,
}


def _copy_with_header(
    format_name: str, path: StrPath, folder: StrPath | None
) -> Export:
    manifest = read_manifest(path)
    open_tokens(path)
    if manifest.num_tokens > _MAX_INT32:
        raise InputError(
            f"{path} holds {manifest.num_tokens:,} ids, but the header of llm.c counts "
            f"at most {_MAX_INT32:,}; encode the text in parts"
        )
    [(magic, version)] = [
        (magic, version)
        for magic, (version, dtype) in LLM_C_DTYPES.items()
        if dtype == manifest.dtype
    ]
    header = np.zeros(LLM_C_HEADER_BYTES // 4, "<i4")
    header[:3] = magic, version, manifest.num_tokens
    source = Path(path)
    target = Path(folder or source.parent) / f"{source.stem}_{format_name}.bin"
    with open(source, "rb", buffering=0) as ids, atomic_write(target) as file:
        file.write(header.data.cast("B"))
        num_bytes = manifest.num_tokens * _itemsize(manifest)
        if copy_bytes(ids, file, num_bytes) != num_bytes:
            raise IntegrityError(f"{path} was truncated; encode the text again")
    flag = "-i" if format_name == "llm.c" else "train_files ="
    return Export(format_name, target, [target], f'{flag} "{target}"')


def _itemsize(manifest: Manifest) -> int:
    return 2 if manifest.dtype == "uint16" else 4


def _require_uint16(path: StrPath, manifest: Manifest, trainer: str) -> None:
    if manifest.dtype != "uint16":
        raise InputError(
            f"{path} holds {manifest.dtype} ids, but {trainer} reads uint16 only; "
            "encode the text with a vocab_size of at most 65,536"
        )


def _link(path: StrPath, folder: StrPath | None, name: str | None = None) -> Path:
    """Return the token file's name in the folder: itself, or a link made here."""
    source = Path(path)
    if folder is None and (name is None or name == source.name):
        return source
    target = Path(folder or source.parent) / (name or source.name)
    if os.path.lexists(target):
        if target.exists() and os.path.samefile(source, target):
            return target
        raise ConfigError(
            f"{target} exists and is not {source}; remove it, or give another folder"
        )
    if not atomic_link(source.resolve(), target):
        part = part_path(target)
        os.symlink(source.resolve(), part)
        os.replace(part, target)
    return target
