"""Against a real HTTP server on the loopback interface, with real faults."""

import contextlib
import hashlib
import http.server
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from tests.conftest import ROOT
from tiny_llm.download import Pin, download, read_pins
from tiny_llm.errors import ConfigError, IntegrityError

BODY = bytes(range(256)) * 8192  # 2 MiB


class Server(http.server.ThreadingHTTPServer):
    """Serves BODY, with Range; each request uses one of `faults` (None: no fault)."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.faults: list[str | None] = []
        self.ranges: list[str | None] = []
        self.errors: list[BaseException | None] = []
        self.url = f"http://127.0.0.1:{self.server_port}/stories.txt"

    def handle_error(self, *_):
        self.errors.append(
            sys.exc_info()[1]
        )  # Not printed: it would interrupt the test report.


class Handler(http.server.BaseHTTPRequestHandler):
    def handle(self):
        with contextlib.suppress(ConnectionError):  # Some tests kill the client.
            super().handle()

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.server.ranges.append(self.headers["Range"])
        fault = self.server.faults.pop(0) if self.server.faults else None
        start = 0
        if self.headers["Range"] and fault != "ignore range":
            start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
        if fault in ("404", "500"):
            self.send_error(int(fault))
            return
        if start > len(BODY):
            self.send_error(416)
            return
        body = b"<html>busy</html>" if fault == "html" else BODY[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header(
                "Content-Range", f"bytes {start}-{len(BODY) - 1}/{len(BODY)}"
            )
        if fault != "no length":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if fault == "slow":
            for place in range(0, len(body), 1 << 16):
                self.wfile.write(body[place : place + (1 << 16)])
                time.sleep(0.05)
        elif fault in ("short", "no length"):
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
        elif fault == "flip":
            self.wfile.write(bytes([body[0] ^ 1]) + body[1:])
        else:
            self.wfile.write(body)


@pytest.fixture
def server():
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.01])
        thread.start()
        yield server
        server.shutdown()
        thread.join()
        assert server.errors == []


@pytest.fixture
def pin(server):
    return Pin(server.url, len(BODY), hashlib.sha256(BODY).hexdigest())


def test_a_download_is_verified_and_kept(server, pin, tmp_path):
    seen = []
    path = download(pin, tmp_path / "cache", on_progress=seen.append)
    assert path.read_bytes() == BODY
    assert sum(seen) == len(BODY)
    assert download(pin, tmp_path / "cache") == path
    assert server.ranges == [None]
    assert list((tmp_path / "cache").iterdir()) == [path]


@pytest.mark.parametrize("fault", ["short", "no length"])
def test_a_body_cut_short_is_resumed(server, pin, tmp_path, fault):
    server.faults = [fault, fault]
    seen = []
    assert download(pin, tmp_path, on_progress=seen.append).read_bytes() == BODY
    assert sum(seen) == len(BODY)
    assert server.ranges == [
        None,
        f"bytes={len(BODY) // 2}-",
        f"bytes={len(BODY) * 3 // 4}-",
    ]


def test_a_server_that_ignores_the_range_starts_over(server, pin, tmp_path):
    server.faults = ["short", "ignore range"]
    seen = []
    assert download(pin, tmp_path, on_progress=seen.append).read_bytes() == BODY
    assert sum(seen) == len(BODY)


def test_a_server_error_is_tried_again(server, pin, tmp_path):
    server.faults = ["500", "500"]
    assert download(pin, tmp_path).read_bytes() == BODY


def test_a_damaged_file_in_the_cache_is_downloaded_again(server, pin, tmp_path):
    (tmp_path / pin.sha256).write_bytes(b"x" * len(BODY))
    assert download(pin, tmp_path).read_bytes() == BODY


def test_a_part_longer_than_the_file_is_replaced(server, pin, tmp_path):
    (tmp_path / f"{pin.sha256}.part").write_bytes(b"x" * (len(BODY) + 1))
    assert download(pin, tmp_path).read_bytes() == BODY


def test_other_bytes_than_the_pinned_ones_are_refused(server, pin, tmp_path):
    server.faults = ["flip"]
    with pytest.raises(IntegrityError, match=r"got sha256 .* the bytes began"):
        download(pin, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_more_bytes_than_the_pinned_ones_are_refused(server, pin, tmp_path):
    short = Pin(pin.url, 1000, pin.sha256)
    with pytest.raises(IntegrityError, match="got more than 1,000 bytes"):
        download(short, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_error_page_is_never_taken_for_the_file(server, pin, tmp_path):
    server.faults = ["html"] * 20
    with pytest.raises(IntegrityError, match="of 2,097,152 bytes"):
        download(pin, tmp_path)
    assert not (tmp_path / pin.sha256).exists()


def test_a_missing_file_on_the_server_is_final(server, pin, tmp_path):
    server.faults = ["404"] * 20
    with pytest.raises(IntegrityError, match="404"):
        download(pin, tmp_path)
    assert len(server.ranges) == 1


def test_a_server_that_cannot_be_reached_is_named(pin, tmp_path, monkeypatch):
    monkeypatch.setattr("tiny_llm.download._TRIES", 1)
    monkeypatch.setattr("tiny_llm.download._CONNECT_RETRIES", 0)
    nobody = Pin("http://127.0.0.1:9/stories.txt", 10, pin.sha256)
    with pytest.raises(
        IntegrityError, match=r"stories\.txt: cannot reach 127\.0\.0\.1; got 0"
    ):
        download(nobody, tmp_path)


@pytest.mark.parametrize("fault", ["404", "flip", "refused"])
def test_no_message_shows_the_password_of_a_url(server, pin, tmp_path, fault):
    server.faults = [fault] * 20
    url = server.url.replace("//", "//ann:secret@")
    if fault == "refused":
        url = url.replace("http:", "ftp:")
        (tmp_path / "pins.yaml").write_text(
            f"train: {{url: '{url}', size: 3, sha256: a}}"
        )
        with pytest.raises(ConfigError) as caught:
            read_pins(tmp_path / "pins.yaml")
    else:
        with pytest.raises(IntegrityError) as caught:
            download(Pin(url, pin.size, pin.sha256), tmp_path)
    assert "//***@127.0.0.1" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "ann" not in str(caught.value)


def test_a_killed_download_is_resumed(server, pin, tmp_path):
    server.faults = ["slow"]
    code = (
        "import sys\nfrom tiny_llm.download import Pin, download\n"
        "download(Pin(sys.argv[1], int(sys.argv[2]), sys.argv[3]), sys.argv[4])\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, pin.url, str(pin.size), pin.sha256, tmp_path]
    )
    part = tmp_path / f"{pin.sha256}.part"
    deadline = time.monotonic() + 20
    while not (part.exists() and part.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    have = part.stat().st_size
    assert 0 < have < len(BODY)
    assert os.listdir(tmp_path) == [part.name]
    assert download(pin, tmp_path).read_bytes() == BODY
    assert server.ranges == [None, f"bytes={have}-"]


GOOD = "{url: https://example.org/x, size: 3, sha256: " + "a" * 64 + "}"


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        (f"train: {GOOD}", "valid needs url, size and sha256"),
        ("", "train needs url"),
        ("[]", "train needs url"),
        ("train: {url: x", "is not plain YAML"),
        ("!!python/object/apply:os.system [exit]", "is not plain YAML"),
        ("train: {url: https://example.org/x, size: 3}", "train needs .* sha256"),
        (GOOD.replace("https", "ftp").join(["train: ", ""]), "ftp://"),
        (GOOD.replace("aaa", "zzz").join(["train: ", ""]), "64 hexadecimal digits"),
        (GOOD.replace("size: 3", "size: 0").join(["train: ", ""]), "size 0, sha256"),
        (GOOD.replace("size: 3", "size: -3").join(["train: ", ""]), "size -3, sha256"),
        (GOOD.replace("size: 3", "size: big").join(["train: ", ""]), "size 'big'"),
    ],
)
def test_a_manifest_without_proper_pins_is_refused(tmp_path, manifest, message):
    (tmp_path / "pins.yaml").write_text(manifest)
    with pytest.raises(ConfigError, match=message):
        read_pins(tmp_path / "pins.yaml")


def test_the_tinystories_manifest_is_read():
    pins = read_pins(ROOT / "pipeline" / "tinystories.yaml")
    assert pins["train"].size == 2_227_753_162
    assert pins["valid"].size == 22_502_601
    assert all("f54c09fd23315a6f" in pin.url for pin in pins.values())
