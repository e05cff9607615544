"""An HTTP server on the loopback interface that misbehaves on demand."""

import contextlib
import hashlib
import http.server
import socket
import ssl
import struct
import sys
import threading
from pathlib import Path

import pytest

from tiny_llm.download import Patience, download
from tiny_llm.errors import DownloadError, IntegrityError
from tiny_llm.pins import Pin

BODY = bytes(range(256)) * 8192  # 2 MiB
CERTIFICATE = Path(__file__).with_name("loopback.pem")  # For 127.0.0.1, until 2126.
# Real waits, a hundred times shorter.
IMPATIENT = Patience(connect_s=5, read_s=0.3, stall_s=1, backoff_s=0.01)


class Server(http.server.ThreadingHTTPServer):
    """Serves `body`, with Range and If-Range.

    Attributes:
        faults: What goes wrong with the next requests, in their order: the name of a
            fault of `Handler`, or a function of the handler; None is no fault.
        requests: The headers of each request; `paths` has the paths.
        rate: Bytes per second for each connection; None for no limit.
    """

    daemon_threads = True

    def __init__(self, body=BODY, etag=None, certificate=None):
        super().__init__(("127.0.0.1", 0), Handler)
        self.body, self.etag, self.rate = body, etag, None
        self.faults, self.requests, self.paths, self.errors = [], [], [], []
        self.num_sent = 0
        self.closing = threading.Event()
        scheme = "http"
        if certificate:
            scheme = "https"
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self.socket = context.wrap_socket(
                self.socket, server_side=True, do_handshake_on_connect=False
            )
        self.base = f"{scheme}://127.0.0.1:{self.server_port}"
        self.url = f"{self.base}/stories.txt"

    @property
    def ranges(self):
        return [headers["Range"] for headers in self.requests]

    def pin(self, url=None):
        digest = hashlib.sha256(self.body).hexdigest()
        return Pin(url or self.url, len(self.body), digest)

    def handle_error(self, *_):
        # Not printed: it would interrupt the test report.
        if not isinstance(sys.exc_info()[1], ssl.SSLError):  # Clients may refuse us.
            self.errors.append(sys.exc_info()[1])


class Handler(http.server.BaseHTTPRequestHandler):
    def handle(self):
        with contextlib.suppress(ConnectionError):  # Some tests kill the client.
            super().handle()

    def log_message(self, *_):
        pass

    def send_body(self, body):
        rate = self.server.rate
        step = 1 << 14 if rate else max(1, len(body))
        for place in range(0, len(body), step):
            self.wfile.write(body[place : place + step])
            self.server.num_sent += len(body[place : place + step])
            if rate:
                self.server.closing.wait(step / rate)

    def start_answer(self, start, size, status=None):
        self.send_response(status or (206 if start else 200))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        if self.server.etag:
            self.send_header("ETag", self.server.etag)

    def do_HEAD(self):
        self.start_answer(0, len(self.server.body), 200)
        self.send_header("Content-Length", str(len(self.server.body)))
        self.end_headers()

    def do_GET(self):
        server = self.server
        server.requests.append(self.headers)
        server.paths.append(self.path)
        fault = server.faults.pop(0) if server.faults else None
        if callable(fault):
            fault(self)
            return
        if fault and fault.isdecimal():
            self.send_error(int(fault))
            return
        start, last = 0, ""
        is_same = self.headers["If-Range"] in (None, server.etag)
        if self.headers["Range"] and fault != "ignore range" and is_same:
            first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
            start = int(first)
        size = len(server.body)
        if start >= size:
            self.send_error(416)
            return
        end = int(last) + 1 if last else size
        body = b"<html>busy</html>" if fault == "html" else server.body[start:end]
        self.start_answer(start, size)
        if fault == "chunked":
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for place in range(0, len(body), 70_000):
                block = body[place : place + 70_000]
                self.wfile.write(b"%x\r\n%b\r\n" % (len(block), block))
            self.wfile.write(b"0\r\n\r\n")
            self.close_connection = True
            return
        if fault != "no length":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        half = body[: len(body) // 2]
        if fault in ("short", "no length"):
            self.send_body(half)
            self.close_connection = True
        elif fault == "reset":
            self.send_body(half)
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.close_connection = True
        elif fault == "stall":
            self.send_body(half)
            self.server.closing.wait()
        elif fault == "drip":
            for place in range(len(body)):
                self.wfile.write(body[place : place + 1])
                if self.server.closing.wait(0.05):
                    break
        elif fault == "flip":
            self.send_body(bytes([body[0] ^ 1]) + body[1:])
        else:
            self.send_body(body)


def stay_silent(handler):
    """Accept a request and never answer."""
    handler.server.closing.wait()
    handler.close_connection = True


def drip_headers(handler):
    """Send a header that never ends, in time for any read timeout."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    while not handler.server.closing.wait(0.05):
        handler.wfile.write(b"x")
    handler.close_connection = True


def answer(status, body=b"", **headers):
    """Return a fault: exactly this answer, then the end of the connection."""

    def fault(handler):
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)
        handler.close_connection = True

    return fault


def raw(data):
    """Return a fault: these bytes in place of an HTTP answer."""

    def fault(handler):
        handler.wfile.write(data)
        handler.close_connection = True

    return fault


def flip_version(handler):
    """Send half of another version of the file, under another ETag."""
    server = handler.server
    good, server.body = server.body, server.body[::-1]
    etag, server.etag = server.etag, '"other"'
    server.faults.insert(0, "short")
    server.requests.pop()
    try:
        handler.do_GET()
    finally:
        server.body, server.etag = good, etag


_PAGE = b"<html>busy</html>"
# Every kind of fault, for random sequences of them.
FAULTS = [
    *("short", "no length", "reset", "stall", "drip", "flip", "html", "chunked"),
    *("ignore range", "404", "403", "408", "416", "429", "500", "503"),
    stay_silent,
    drip_headers,
    answer(200, _PAGE),
    answer(200, _PAGE, Content_Length=len(_PAGE)),
    answer(200, BODY[:-1]),
    answer(200, BODY[:-1], Content_Length=len(BODY) - 1),
    answer(200, BODY + b"x"),
    answer(200, BODY[::-1], Content_Length=len(BODY)),
    answer(200, BODY[::-1][:99_999], Content_Length=len(BODY)),
    answer(200, BODY, Content_Encoding="gzip", Content_Length=len(BODY)),
    answer(204),
    answer(206, BODY),
    answer(206, BODY[7:], Content_Range=f"bytes 7-{len(BODY) - 1}/{len(BODY)}"),
    answer(302),
    answer(302, Location="/stories.txt"),
    answer(302, Location="/other.txt"),
    answer(302, Location="http://"),
    answer(302, Location="http://[::1"),
    answer(302, Location="ftp://127.0.0.1/x"),
    answer(429, Retry_After="0"),
    answer(503, Retry_After="3600"),
    raw(b""),
    raw(b"SSH-2.0-x\r\n"),
    raw(b"HTTP/1.1 100 Continue\r\n\r\n" * 999),
    raw(b"HTTP/1.1 200 OK\r\nContent-Length: 5, 6\r\n\r\nxxxxx"),
    raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nabc"),
    raw(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n" + BODY),
    flip_version,
]


class Fetch:
    """Downloads what a server has; `waits` and `seen` get the reports."""

    def __init__(self, server, cache):
        self.server, self.cache = server, cache
        self.waits, self.seen = [], []

    def __call__(self, pin=None, patience=IMPATIENT):
        path = download(
            pin or self.server.pin(),
            self.cache,
            on_progress=self.seen.append,
            on_wait=self.waits.append,
            patience=patience,
        )
        return path.read_bytes()


def refused(fetch, match, pin=None, patience=IMPATIENT):
    """Check that a download fails in one line and leaves no file; return the line."""
    with pytest.raises(DownloadError, match=match) as caught:
        fetch(pin, patience)
    assert str(caught.value).isprintable()
    assert isinstance(caught.value, IntegrityError)
    assert caught.value.exit_status == 4
    assert not list(fetch.cache.glob("*.txt"))
    return str(caught.value)


@contextlib.contextmanager
def serve(*args, **kwargs):
    """Run a server; at the end, check that nothing went wrong in it."""
    with Server(*args, **kwargs) as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.01])
        thread.start()
        try:
            yield server
        finally:
            server.closing.set()
            server.shutdown()
            thread.join()
        assert server.errors == [], server.errors
