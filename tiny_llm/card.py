"""Cards: describe the pipeline's tokens so that they can be published.

build/dataset is a folder to upload: the tokens and their tokenizer, croissant.json
(Croissant 1.0 JSON-LD, which dataset search engines and loaders read) and README.md (a
dataset card as Hugging Face shows it). The rest of build/ holds plain text of the
corpus, so it stays out.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tiny_llm import __version__
from tiny_llm.atomic import atomic_link, atomic_write, write_json
from tiny_llm.errors import ConfigError, InputError, IntegrityError
from tiny_llm.layout import SPLITS, TOKENIZER_PATH, TOKENS_DIR
from tiny_llm.manifest import (
    DTYPES,
    Manifest,
    documents_path,
    manifest_path,
    read_manifest,
)
from tiny_llm.yaml_file import read_yaml

# Properties of a dataset that only its publisher knows, named as at schema.org.
PROPERTIES = (
    "name",
    "description",
    "license",
    "url",
    "creator",
    "datePublished",
    "version",
    "citeAs",
)
_BUILD_DIR = TOKENIZER_PATH.parent
DATASET_DIR = _BUILD_DIR / "dataset"
_LOCK_PATH = Path("dvc.lock")
# Of params.yaml; other sections do not change the tokens.
_SECTIONS = ("fetch", "bpe")
_READ_BYTES = 1 << 20

# The context of the Croissant 1.0 specification; readers compare it word for word.
_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "dct": "http://purl.org/dc/terms/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "sc": "https://schema.org/",
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    **{
        name: f"cr:{name}"
        for name in (
            *("citeAs", "column", "equivalentProperty", "extract", "field"),
            *("fileObject", "fileProperty", "fileSet", "format", "includes"),
            *("isLiveDataset", "jsonPath", "key", "md5", "parentField", "path"),
            *("recordSet", "references", "regex", "repeated", "replace"),
            *("samplingRate", "separator", "source", "subField", "transform"),
        )
    },
}
# What the record set says of each split, with its type.
_FIELDS = {
    "name": "sc:Text",
    "num_documents": "sc:Integer",
    "num_tokens": "sc:Integer",
    "num_bytes": "sc:Integer",
    "dtype": "sc:Text",
    "vocab_size": "sc:Integer",
    "separator_id": "sc:Integer",
}


class _File(NamedTuple):
    path: Path  # In build/, and in build/dataset.
    num_bytes: int
    sha256: str


class _Facts(NamedTuple):
    manifests: dict[str, Manifest]
    files: list[_File]
    params: dict[str, Any]


def write_cards(
    root: str | os.PathLike[str] = ".", properties: Mapping[str, str] | None = None
) -> list[Path]:
    """Fill build/dataset; return the paths of its croissant.json and README.md.

    Token files and tokenizer are hard links, or copies where there are none.

    Args:
        root: The root of a checkout after `dvc repro`.
        properties: Values for `PROPERTIES`. Without a license, both say that none is
            stated.

    Raises:
        ConfigError: A property has another name.
        InputError: A file is missing: the pipeline has not run here.
        IntegrityError: dvc.lock describes other files, or a manifest is damaged.
    """
    given = dict(properties or {})
    if unknown := sorted(given.keys() - set(PROPERTIES)):
        raise ConfigError(
            f"a dataset has no property {unknown[0]!r} here; give some of "
            f"{', '.join(PROPERTIES)}"
        )
    facts = _read_facts(Path(root))
    given.setdefault("name", "tiny_llm-tokens")
    given.setdefault("description", _describe(facts))
    folder = Path(root) / DATASET_DIR
    for file in facts.files:
        _link(Path(root) / _BUILD_DIR / file.path, folder / file.path)
    targets = [folder / name for name in ("croissant.json", "README.md")]
    write_json(targets[0], _croissant(facts, given))
    with atomic_write(targets[1]) as card:
        card.write(_markdown(facts, given).encode())
    return targets


def _read_facts(root: Path) -> _Facts:
    lock_path = root / _LOCK_PATH
    if not lock_path.is_file():
        raise InputError(
            f"{lock_path}: no such file; run this in the root of a checkout, after "
            "`dvc repro`"
        )
    try:
        stages = read_yaml(lock_path)["stages"]
        md5s = {
            out["path"]: out.get("md5")
            for stage in stages.values()
            for out in stage.get("outs", [])
        }
        params = _flatten(
            {
                name: value
                for stage in stages.values()
                if "params" in stage
                for name, value in stage["params"]["params.yaml"].items()
                if name.split(".")[0] in _SECTIONS
            }
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(
            f"{lock_path} is not the lock of a pipeline that has run; run `dvc repro`"
        ) from error
    paths = [TOKENIZER_PATH, TOKENIZER_PATH.with_name("tokenizer_config.json")]
    manifests = {}
    for split in SPLITS:
        path = TOKENS_DIR / f"{split}.bin"
        manifests[split] = read_manifest(root / path)
        paths += [path, manifest_path(path), documents_path(path)]
    files = [_digest(root, path, md5s.get(path.as_posix())) for path in paths]
    return _Facts(manifests, files, params)


def _flatten(params: dict[str, Any]) -> dict[str, Any]:
    """Name each parameter section.name; keep the folders of this machine private.

    >>> _flatten({"fetch": {"source": "/home/ann/poems.txt"}, "bpe.sample_mb": 10})
    {'fetch.source': 'poems.txt', 'bpe.sample_mb': 10}
    """
    flat = {}
    for name, value in params.items():
        section = value if isinstance(value, dict) else {"": value}
        for key, item in section.items():
            if isinstance(item, str) and (
                os.path.isabs(item) or ".." in Path(item).parts
            ):
                item = Path(item).name
            flat[f"{name}.{key}".rstrip(".")] = item
    return flat


def _digest(root: Path, path: Path, md5: object) -> _File:
    """Read a file once, for the digest to publish and for that in dvc.lock."""
    if not (root / path).is_file():
        raise InputError(f"{root / path}: no such file; run `dvc repro`")
    hashes = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    num_bytes = 0
    with open(root / path, "rb") as file:
        while block := file.read(_READ_BYTES):
            num_bytes += len(block)
            for each in hashes:
                each.update(block)
    if hashes[1].hexdigest() != md5:
        raise IntegrityError(
            f"{root / _LOCK_PATH} describes another {path} (md5 {md5}, found "
            f"{hashes[1].hexdigest()}); run `dvc repro`"
        )
    return _File(path.relative_to(_BUILD_DIR), num_bytes, hashes[0].hexdigest())


def _link(source: Path, target: Path) -> None:
    if not atomic_link(source.resolve(), target):
        with open(source, "rb") as whole, atomic_write(target) as copy:
            shutil.copyfileobj(whole, copy)


def _describe(facts: _Facts) -> str:
    train, valid = (facts.manifests[split] for split in SPLITS)
    return (
        f"Token ids for training a language model: {train.num_tokens:,} ids of "
        f"{train.num_documents:,} documents for training and {valid.num_tokens:,} ids "
        f"of {valid.num_documents:,} for validation, with the byte-level BPE tokenizer "
        f"that made them (vocab size {train.vocab_size:,})."
    )


def _croissant(facts: _Facts, properties: Mapping[str, str]) -> dict[str, Any]:
    """Return the JSON-LD; paths are relative to build/dataset."""
    stated: dict[str, Any] = {
        name: properties[name] for name in PROPERTIES if name in properties
    }
    if "creator" in stated:
        stated["creator"] = {"@type": "sc:Person", "name": stated["creator"]}
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        **stated,
        "distribution": [
            {
                "@type": "cr:FileObject",
                "@id": file.path.as_posix(),
                "name": file.path.name,
                "contentUrl": file.path.as_posix(),
                "contentSize": f"{file.num_bytes} B",
                "encodingFormat": "application/json"
                if file.path.suffix == ".json"
                else "application/octet-stream",
                "sha256": file.sha256,
            }
            for file in facts.files
        ],
        "recordSet": [
            {
                "@type": "cr:RecordSet",
                "@id": "splits",
                "name": "splits",
                "description": "What each token file holds.",
                "dataType": "cr:Split",
                "key": {"@id": "splits/name"},
                "field": [
                    {
                        "@type": "cr:Field",
                        "@id": f"splits/{name}",
                        "name": name,
                        "dataType": kind,
                    }
                    for name, kind in _FIELDS.items()
                ],
                "data": [
                    {
                        f"splits/{name}": getattr(manifest, name, split)
                        for name in _FIELDS
                    }
                    for split, manifest in facts.manifests.items()
                ],
            }
        ],
    }


def _markdown(facts: _Facts, properties: Mapping[str, str]) -> str:
    train = facts.manifests["train"]
    # A JSON string is a YAML string, too.
    front = [f"pretty_name: {json.dumps(properties['name'])}"]
    licence = properties.get("license")
    if licence and "/" in licence:
        front += ["license: other", f"license_link: {json.dumps(licence)}"]
    elif licence:
        front += [f"license: {json.dumps(licence.lower())}"]
    rows = [
        f"| {split} | {m.num_documents:,} | {m.num_tokens:,} | {m.num_bytes:,} | "
        f"{m.num_bytes / m.num_tokens:.4f} |"
        for split, m in facts.manifests.items()
    ]
    params = [f"| `{name}` | `{value}` |" for name, value in facts.params.items()]
    digests = [f"    {file.sha256}  {file.path.as_posix()}" for file in facts.files]
    stated = [
        f"- {name}: {properties[name]}"
        for name in PROPERTIES[2:]
        if properties.get(name)
    ]
    return f"""---
{_lines(front)}
task_categories:
- text-generation
---

# {properties["name"]}

{properties["description"]}

| split | documents | ids | bytes of text | bytes per id |
|---|---|---|---|---|
{_lines(rows)}

`tokens/SPLIT.bin` is a flat array of little-endian {train.dtype} ids. A document ends
with the separator, id {train.separator_id}. `tokens/SPLIT.json` is the manifest, with
digests of the ids; `tokens/SPLIT.documents` says where documents start.
`tokenizer.json` is in the format of Hugging Face tokenizers.

```python
import numpy as np
from tokenizers import Tokenizer

ids = np.memmap("tokens/train.bin", dtype="{DTYPES[train.dtype].str}")
print(Tokenizer.from_file("tokenizer.json").decode(ids[:100].tolist()))
```

## Made by

tiny_llm {__version__}, with these parameters:

| parameter | value |
|---|---|
{_lines(params)}

SHA-256 of the files, for `sha256sum --check`:

{_lines(digests)}

## Terms

{_lines(stated) if licence else "No license is stated."}
"""


def _lines(lines: list[str]) -> str:
    return "\n".join(lines)
