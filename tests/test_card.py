"""Cards: Croissant JSON-LD and a dataset card, from manifests and dvc.lock.

tests/check_readers.py has mlcroissant validate them.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import yaml

from tiny_llm.card import write_cards
from tiny_llm.errors import ConfigError, InputError, IntegrityError
from tiny_llm.tokens import read_manifest

SHM = Path("/dev/shm")


def test_cards_describe_the_files_of_the_dataset(clone):
    croissant, card = write_cards(clone.path, {"license": "MIT", "creator": "Ann"})
    assert croissant == clone.path / "build" / "dataset" / "croissant.json"
    values = json.loads(croissant.read_bytes())
    assert values["license"] == "MIT"
    assert values["creator"]["name"] == "Ann"
    assert values["conformsTo"] == "http://mlcommons.org/croissant/1.0"
    names = [file["contentUrl"] for file in values["distribution"]]
    assert "tokens/train.bin" in names
    assert "tokens/valid.documents" in names
    assert "tokenizer.json" in names
    for file in values["distribution"]:
        content = (croissant.parent / file["contentUrl"]).read_bytes()
        assert file["sha256"] == hashlib.sha256(content).hexdigest()
        assert file["contentSize"] == f"{len(content)} B"
        assert f"    {file['sha256']}  {file['contentUrl']}\n" in card.read_text()
    [splits] = values["recordSet"]
    for split, record in zip(("train", "valid"), splits["data"], strict=True):
        manifest = read_manifest(clone.path / "build" / "tokens" / f"{split}.bin")
        assert record["splits/name"] == split
        assert record["splits/num_tokens"] == manifest.num_tokens
        assert record["splits/num_bytes"] == manifest.num_bytes
        assert (
            f"| {split} | {manifest.num_documents:,} | {manifest.num_tokens:,} |"
            in (card.read_text())
        )
    assert set(re.findall(r"\| `(\w+\.\w+)` \|", card.read_text())) == {
        "fetch.source",
        "bpe.sample_mb",
        "bpe.vocab_size",
    }


def test_the_dataset_holds_what_the_card_lists_and_no_text_of_the_corpus(clone):
    croissant, _ = write_cards(clone.path)
    folder = clone.path / "build" / "dataset"
    files = {
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()
    }
    listed = json.loads(croissant.read_bytes())["distribution"]
    assert files == {
        "README.md",
        "croissant.json",
        "tokenizer.json",
        "tokenizer_config.json",
        *(
            f"tokens/{split}.{kind}"
            for split in ("train", "valid")
            for kind in ("bin", "json", "documents")
        ),
    }
    assert {file["contentUrl"] for file in listed} == files - {
        "README.md",
        "croissant.json",
    }
    assert (folder / "tokens/train.bin").samefile(clone.path / "build/tokens/train.bin")


@pytest.mark.skipif(not SHM.is_dir(), reason="needs another filesystem")
def test_a_dataset_on_another_filesystem_is_a_copy(clone):
    if os.stat(SHM).st_dev == os.stat(clone.path).st_dev:
        pytest.skip("needs another filesystem")
    with tempfile.TemporaryDirectory(dir=SHM) as folder:
        (clone.path / "build" / "dataset").symlink_to(folder)
        write_cards(clone.path)
        for name in ("tokens/train.bin", "tokenizer.json"):
            copy = Path(folder) / name
            assert copy.read_bytes() == (clone.path / "build" / name).read_bytes()
            assert not copy.is_symlink()


@pytest.mark.parametrize("folder", ["/home/ann/private", "../../ann/private"])
def test_the_card_hides_the_folders_of_a_source_outside_the_checkout(clone, folder):
    lock = clone.path / "dvc.lock"
    lock.write_text(lock.read_text().replace("source: data", f"source: {folder}/a.txt"))
    _, card = write_cards(clone.path)
    assert "| `fetch.source` | `a.txt` |" in card.read_text()
    assert "private" not in card.read_text()


def test_the_front_matter_is_yaml_and_the_example_runs(clone):
    _, card = write_cards(
        clone.path, {"name": 'Ann: "stories"', "license": "CDLA-Sharing-1.0"}
    )
    text = card.read_text()
    assert yaml.safe_load(text.split("---\n")[1]) == {
        "pretty_name": 'Ann: "stories"',
        "license": "cdla-sharing-1.0",
        "task_categories": ["text-generation"],
    }
    [script] = re.findall(r"(?s)```python\n(.*?)```", text)
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=card.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    story = (clone.path / "data" / "train.txt").read_text()
    assert story.startswith(done.stdout.rstrip("\n"))
    assert len(done.stdout) > 200


def test_the_same_inputs_give_the_same_bytes(clone):
    first = [path.read_bytes() for path in write_cards(clone.path)]
    assert [path.read_bytes() for path in write_cards(clone.path)] == first


def test_a_license_by_url_is_linked_and_a_missing_one_is_said_to_be_missing(clone):
    url = "https://example.org/terms"
    _, card = write_cards(clone.path, {"license": url})
    front = yaml.safe_load(card.read_text().split("---\n")[1])
    assert (front["license"], front["license_link"]) == ("other", url)
    croissant, card = write_cards(clone.path)
    assert "No license is stated." in card.read_text()
    assert "license" not in json.loads(croissant.read_bytes())


def test_files_that_dvc_lock_does_not_describe_are_refused(clone):
    path = clone.path / "build" / "tokens" / "valid.documents"
    content = path.read_bytes()
    path.unlink()
    with pytest.raises(InputError, match=r"valid.documents: no such file; run `dvc"):
        write_cards(clone.path)
    path.write_bytes(content[:-1] + b"\x01")
    with pytest.raises(IntegrityError, match=r"dvc.lock describes another .*documents"):
        write_cards(clone.path)
    path.write_bytes(content)
    write_cards(clone.path)
    lock = clone.path / "dvc.lock"
    for text in ("", "stages:", "stages: {bpe: 3}", "[]", "schema: '2.0'"):
        lock.write_text(text)
        with pytest.raises(IntegrityError, match=r"dvc.lock is not the lock of a pipe"):
            write_cards(clone.path)
    lock.unlink()
    with pytest.raises(InputError, match=r"dvc.lock: no such file"):
        write_cards(clone.path)


def test_an_unknown_property_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no property 'licence' here; give some of"):
        write_cards(tmp_path, {"licence": "MIT"})
