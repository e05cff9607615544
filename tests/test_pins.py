"""Manifests of pinned downloads, and the URLs they may name."""

import pytest

from tests.conftest import ROOT
from tiny_llm.errors import ConfigError
from tiny_llm.pins import (
    Pin,
    UnpinnedError,
    check_url,
    file_ending,
    hide_password,
    read_pins,
)

SHA = "a" * 64
GOOD = f"{{url: https://example.org/x, size: 3, sha256: {SHA}}}"
COMMIT = "f54c09fd23315a6f9c86f9dc80f725de7d8f9c64"


@pytest.fixture
def read(tmp_path):
    def read(text):
        (tmp_path / "pins.yaml").write_text(text)
        return read_pins(tmp_path / "pins.yaml")

    return read


def test_a_split_is_one_file_or_a_list(read):
    pin = Pin("https://example.org/x", 3, SHA)
    assert read(f"train: {GOOD}\nvalid: {GOOD}") == {"train": [pin], "valid": [pin]}
    assert read(f"train: [{GOOD}, {GOOD}]") == {"train": [pin, pin]}


def test_a_path_is_relative_to_its_manifest(read, tmp_path):
    pins = read(f"train: {{url: sub/a b.txt, size: 3, sha256: {SHA}}}")
    assert pins["train"][0].url == (tmp_path / "sub" / "a b.txt").as_uri()


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ("", "lacks train, with url, size and sha256"),
        ("[]", "lacks train"),
        (f"valid: {GOOD}", "lacks train"),
        ("train: {url: x", "is not plain YAML"),
        ("!!python/object/apply:os.system [exit]", "is not plain YAML"),
        (f"train: {GOOD}\ntest: {GOOD}", "unknown split 'test'"),
        ("train: []", "train is empty"),
        ("train: https://example.org/x", "train is 'https.*; give url, size and"),
        (f"train: [{GOOD}, 3]", "yaml: train 2 is 3; give url"),
        (f"train: [{GOOD}, {GOOD[:-1]}, x: 1}}]", "train 2 has the unknown key 'x'"),
        (f"train: {{size: 3, sha256: {SHA}}}", "train has url None"),
        (f"train: {{url: 3, size: 3, sha256: {SHA}}}", "train has url 3"),
        (f"train: {{url: https://a/x, sha256: {SHA}}}", "train has size None"),
        (f"train: {GOOD}".replace("3", "0"), "train has size 0"),
        (f"train: {GOOD}".replace("3", "-3"), "train has size -3"),
        (f"train: {GOOD}".replace("3", "3.0"), "train has size 3.0"),
        (f"train: {GOOD}".replace("3", "true"), "train has size True"),
        (f"train: {GOOD}".replace("3", "big"), "train has size 'big'"),
        (f"train: {GOOD}\nvalid: [{GOOD[:-3]}z}}]", "valid 1 has sha256 'aa"),
        (f"train: {GOOD}".replace("aaa", "AAA"), "in lower case"),
        (f"train: {GOOD}".replace("https", "ftp"), "train: url ftp://.* scheme 'ftp'"),
    ],
)
def test_a_manifest_without_proper_pins_is_refused(read, manifest, message):
    with pytest.raises(ConfigError, match=message) as caught:
        read(manifest)
    assert "pins.yaml" in str(caught.value)


def test_a_missing_digest_is_refused_with_the_way_to_get_it(read):
    with pytest.raises(
        UnpinnedError, match=r"valid 2 lacks sha256; .* --pin"
    ) as caught:
        read(f"train: {GOOD}\nvalid: [{GOOD}, {{url: http://a/x, size: 3}}]")
    assert caught.value.url == "http://a/x"


@pytest.mark.parametrize(
    "url",
    [
        "https://example.org/x.txt",
        "http://127.0.0.1:8080/x?a=b",
        "http://[::1]:80/x",
        f"hf://datasets/roneneldan/TinyStories@{COMMIT}/data/train-0.parquet",
        f"hf://datasets/squad@{COMMIT}/train.json",
        "s3://bucket/some/key.jsonl.gz?versionId=abc",
        "gs://bucket/object.txt#1712345678",
        "file:///tmp/x.txt",
    ],
)
def test_urls_of_every_scheme_are_taken(url):
    assert check_url(url) == url


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "give https, http, hf, s3, gs or file"),
        ("ftp://example.org/x", "scheme 'ftp'; give https, http, hf, s3, gs or file"),
        ("htps://example.org/x", "scheme 'htps'"),
        ("://x", "scheme ''"),
        ("http://", "names no host"),
        ("https:///x", "names no host"),
        ("http://:80/x", "names no host"),
        ("http://[::1/x", "is malformed"),
        ("http://a:port/x", "is malformed"),
        ("http://a:99999/x", "is malformed"),
        ("https://example.org/a b", "use %20"),
        ("https://example.org/\r\nX-Evil: 1", "control character"),
        ("hf://datasets/a/b/x.txt", "a commit of 40 hexadecimal digits"),
        ("hf://datasets/a/b@main/x.txt", "a branch such as main can change"),
        (f"hf://a/b@{COMMIT}/x.txt", "is not hf://datasets/OWNER/NAME@COMMIT/PATH"),
        (f"hf://datasets/a/b@{COMMIT}/", "is not hf://"),
        ("s3://bucket", "is not s3://BUCKET/KEY"),
        ("s3:///key", "is not s3://BUCKET/KEY"),
        ("gs://bucket/", "is not gs://BUCKET/KEY"),
        ("file://host/x", "names a host"),
        ("ftp://ann:secret@example.org/x?key=secret", r"ftp://\*\*\*@example.org/x\?"),
    ],
)
def test_a_url_of_another_form_is_refused(url, message):
    with pytest.raises(ConfigError, match=message) as caught:
        check_url(url)
    assert "secret" not in str(caught.value)
    assert str(caught.value).isprintable()


def test_the_ending_of_a_file_tells_its_shape():
    for url, ending in [
        ("http://a/stories.JSONL.gz", ".jsonl.gz"),
        ("http://a/x.txt.zst#top", ".txt.zst"),
        ("http://a/x.jsonl.zstd", ".jsonl.zstd"),
        ("file:///a/x.y.ndjson.GZip", ".ndjson.gzip"),
        ("http://a/.jsonl.gz", ".jsonl.gz"),
        ("http://a/x.gz", ".gz"),
        ("hf://datasets/a/b@0123456/data/x%20y.jsonl.zst", ".jsonl.zst"),
        ("http://a/get?file=x.txt.gz", ""),
        ("http://a/x.txt.bz2", ".bz2"),
        ("s3://a/b.c/part-0.parquet?versionId=x.y", ".parquet"),
        ("http://a.b/", ""),
        ("http://a/.hidden", ""),
        ("http://a/v1.2.txt", ".txt"),
        ("http://a/x.%2F..%2Fy", ""),
        ("http://a/x." + "y" * 300, ""),
    ]:
        assert file_ending(url) == ending


def test_secrets_of_urls_are_hidden_in_any_text():
    text = "see https://a:b@c.org/x?k=v#f, s3://b/k?versionId=1 and mail@example.org?"
    assert hide_password(text) == (
        "see https://***@c.org/x?***#f, s3://b/k?*** and mail@example.org?"
    )


def test_the_tinystories_manifest_is_read():
    pins = read_pins(ROOT / "pipeline" / "tinystories.yaml")
    assert [pin.size for pin in pins["train"]] == [2_227_753_162]
    assert [pin.size for pin in pins["valid"]] == [22_502_601]
    assert all("f54c09fd23315a6f" in pins[split][0].url for split in pins)
