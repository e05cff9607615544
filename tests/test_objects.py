"""Objects in S3 and Google Cloud Storage, from a loopback server.

The test of gcsfs is skipped where it is not installed: it brings 25 packages more, and
our part is the same as for s3fs, which the extra dev brings.
"""

import json
import sys

import pytest

from tests.faulty_server import BODY, answer, serve
from tiny_llm.download import Patience, download
from tiny_llm.errors import ConfigError, DownloadError


@pytest.fixture
def server():
    with serve(etag='"v1"') as server:
        yield server


@pytest.fixture
def s3(server, monkeypatch, tmp_path):
    """Credentials and an endpoint, as users of any S3-like store set them."""
    pytest.importorskip("s3fs", reason="the extra s3")
    for name, value in {
        "AWS_ENDPOINT_URL_S3": server.base,
        "AWS_ACCESS_KEY_ID": "AKIDLOOPBACK",
        "AWS_SECRET_ACCESS_KEY": "aws-secret",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
    }.items():
        monkeypatch.setenv(name, value)
    return server


@pytest.fixture
def gs(server, monkeypatch):
    pytest.importorskip("gcsfs", reason="the extra gs")
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.base)
    info = {"name": "some/object.parquet", "bucket": "bucket", "etag": "v1"}
    info = {**info, "size": str(len(BODY)), "generation": "1"}

    def serve_storage(handler):
        if "alt=media" in handler.path:
            server.faults.clear()
            handler.do_GET()
        elif "prefix=" in handler.path:  # Is it a folder?
            answer(200, b"{}")(handler)
        else:
            answer(200, json.dumps(info).encode())(handler)

    server.faults = [serve_storage] * 9
    return server


def test_an_object_of_s3_is_downloaded(s3, tmp_path):
    path = download(s3.pin("s3://bucket/some/key.jsonl.gz"), tmp_path)
    assert path.read_bytes() == BODY
    assert path.name.endswith(".jsonl.gz")
    assert s3.paths == ["/bucket/some/key.jsonl.gz"]
    assert "Credential=AKIDLOOPBACK/" in s3.requests[0]["Authorization"]


@pytest.mark.parametrize("etag", ['"v1"', '"v0"'])
def test_an_object_is_resumed_unless_it_has_changed(s3, tmp_path, etag):
    pin = s3.pin("s3://bucket/key")
    (tmp_path / f"{pin.sha256}.part").write_bytes(BODY[:1000])
    (tmp_path / f"{pin.sha256}.part.etag").write_text(etag)
    assert download(pin, tmp_path).read_bytes() == BODY
    start = 1000 if etag == '"v1"' else 0
    assert s3.ranges == [f"bytes={start}-{len(BODY) - 1}"]


def test_an_object_that_does_not_match_its_pin_is_refused(s3, tmp_path):
    pin = s3.pin("s3://bucket/key")
    s3.body = b"x" + BODY[1:]
    with pytest.raises(DownloadError, match="s3://bucket/key: got sha256"):
        download(pin, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("status", "message"),
    [("403", "PermissionError: Forbidden"), ("404", "FileNotFoundError")],
)
def test_an_object_that_is_not_to_be_had_is_named(s3, tmp_path, status, message):
    s3.faults = [status] * 9
    with pytest.raises(DownloadError, match=f"s3://bucket/key: {message}") as caught:
        download(s3.pin("s3://bucket/key"), tmp_path, patience=Patience(backoff_s=0.01))
    assert "AKID" not in str(caught.value)
    assert str(caught.value).isprintable()


def test_an_object_without_credentials_says_what_to_set(s3, tmp_path, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(DownloadError, match="set FSSPEC_S3_ANON=true"):
        download(s3.pin("s3://bucket/key"), tmp_path)


def test_an_object_of_google_storage_is_downloaded(gs, tmp_path):
    path = download(gs.pin("gs://bucket/some/object.parquet"), tmp_path)
    assert (path.read_bytes(), path.suffix) == (BODY, ".parquet")
    assert gs.ranges[-1] == f"bytes=0-{len(BODY) - 1}"


@pytest.mark.parametrize(("scheme", "package"), [("s3", "s3fs"), ("gs", "gcsfs")])
def test_a_missing_package_is_named_with_the_way_to_get_it(
    server, tmp_path, monkeypatch, scheme, package
):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=f"run `python -m pip install {package}`"):
        download(server.pin(f"{scheme}://a/b"), tmp_path)


def test_other_schemes_import_no_extra(server, tmp_path):
    before = {"s3fs", "gcsfs"} & set(sys.modules)
    download(server.pin(), tmp_path)
    assert {"s3fs", "gcsfs"} & set(sys.modules) == before
