"""Exported files, read back with the packages that will read them.

`make readers-check` installs tests/readers.txt and runs this. Modules are loaded by
name: tests/test_layout.py compares what is imported with pyproject.toml.
"""

import importlib
import itertools
import json
import logging

import numpy as np
import pytest

from tests.conftest import save_tokens
from tiny_llm.card import PROPERTIES, write_cards
from tiny_llm.export import document_offsets, export
from tiny_llm.tokens import open_tokens, read_manifest

pytestmark = pytest.mark.filterwarnings("ignore")

SEPARATOR = 256


@pytest.fixture(params=["uint16", "uint32"])
def path(request, tmp_path):
    """About 300 documents; the first is a separator and nothing else."""
    vocab_size = 65_536 if request.param == "uint16" else 80_000
    dice = np.random.default_rng(0)
    ids = dice.integers(257, vocab_size, 30_000)
    ends = np.unique(dice.integers(0, 30_000, 299))
    ids[ends] = SEPARATOR
    ids[[0, -1]] = SEPARATOR
    return save_tokens(tmp_path / "train.bin", ids, vocab_size)


def documents(path):
    ids, manifest = open_tokens(path)
    offsets = document_offsets(path, manifest)
    return [ids[low:high] for low, high in itertools.pairwise(offsets)]


def test_megatron_core_reads_the_same_documents(path, tmp_path):
    module = importlib.import_module("megatron.core.datasets.indexed_dataset")
    done = export(path, "megatron", tmp_path / "out")
    dataset = module.IndexedDataset(str(done.tokens.with_suffix("")))
    expected = documents(path)
    assert len(dataset) == len(expected) > 250
    for found, document in zip(dataset, expected, strict=True):
        assert np.array_equal(found, document)
    assert dataset.document_indices.tolist() == list(range(len(expected) + 1))
    # The package writes the same bytes for them.
    builder = module.IndexedDatasetBuilder(
        str(tmp_path / "theirs.bin"),
        dtype=np.uint16 if expected[0].itemsize == 2 else np.int32,
    )
    torch = importlib.import_module("torch")
    for document in expected:
        builder.add_document(
            torch.from_numpy(document.astype(np.int64)), [len(document)]
        )
    builder.finalize(str(tmp_path / "theirs.idx"))
    assert (tmp_path / "theirs.idx").read_bytes() == done.written[0].read_bytes()


def test_datatrove_reads_the_same_ids_and_positions(path, tmp_path):
    module = importlib.import_module("datatrove.utils.dataset")
    done = export(path, "datatrove", tmp_path / "out")
    ids, manifest = open_tokens(path)
    dataset = module.DatatroveFileDataset(
        str(done.tokens), 99, token_size=ids.itemsize, return_positions=True
    )
    rows = [dataset[i] for i in range(len(dataset))]
    found = np.concatenate([row["input_ids"].numpy() for row in rows])
    assert np.array_equal(found, ids)
    offsets = document_offsets(path, manifest)
    places = np.arange(len(ids))
    starts = offsets[np.searchsorted(offsets, places, side="right") - 1]
    # A window that begins inside a document counts from there.
    expected = places - np.maximum(starts, places // 100 * 100)
    positions = np.concatenate([row["positions"].numpy() for row in rows])
    assert np.array_equal(positions, expected)


def test_olmo_core_reads_the_same_documents(path, tmp_path):
    data = importlib.import_module("olmo_core.data")
    done = export(path, "olmo-core", tmp_path / "out")
    settings = json.loads(done.written[0].read_bytes())
    expected = documents(path)
    common = {
        "paths": [str(done.tokens)],
        "sequence_length": 1_000,
        "dtype": data.NumpyDatasetDType(settings["dtype"]),
        "tokenizer": data.TokenizerConfig(**settings["tokenizer"]),
        "work_dir": str(tmp_path / "work"),
    }
    dataset = data.NumpyFSLDatasetConfig(**common).build()
    dataset.prepare()
    found = np.concatenate([row["input_ids"].numpy() for row in dataset])
    assert np.array_equal(found, open_tokens(path)[0])
    padded = data.NumpyPaddedFSLDatasetConfig(**common).build()
    padded.prepare()
    assert len(padded) == len(expected)
    for i, document in enumerate(expected):
        assert np.array_equal(padded[i]["input_ids"][: len(document)], document)


def test_mlcroissant_validates_the_card_without_a_warning(clone, caplog):
    mlcroissant = importlib.import_module("mlcroissant")
    properties = dict.fromkeys(PROPERTIES, "a value") | {
        "name": "stories",
        "license": "MIT",
        "url": "https://example.org/stories",
        "datePublished": "2026-11-25",
        "version": "1.0.0",
    }
    with caplog.at_level(logging.WARNING):
        path, _ = write_cards(clone.path, properties)
        dataset = mlcroissant.Dataset(path)
        records = list(dataset.records("splits"))
    assert [r.message for r in caplog.records if r.levelno >= logging.WARNING] == []
    assert dataset.metadata.ctx.issues.errors == set()
    assert dataset.metadata.name == "stories"
    for split, record in zip(("train", "valid"), records, strict=True):
        manifest = read_manifest(clone.path / "build" / "tokens" / f"{split}.bin")
        assert record["splits/name"] == split
        assert record["splits/num_tokens"] == manifest.num_tokens
        assert record["splits/num_documents"] == manifest.num_documents


def test_mlcroissant_only_recommends_more_for_a_card_without_properties(clone):
    mlcroissant = importlib.import_module("mlcroissant")
    path, _ = write_cards(clone.path)
    issues = mlcroissant.Dataset(path).metadata.ctx.issues
    assert issues.errors == set()
    assert all("is recommended" in warning for warning in map(str, issues.warnings))
