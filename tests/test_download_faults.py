"""Downloads while servers go wrong: each fault, on the loopback interface."""

import contextlib
import gc
import random
import socket
import time
import warnings
from email.utils import formatdate

import pytest

from tests.faulty_server import (
    BODY,
    FAULTS,
    IMPATIENT,
    answer,
    drip_headers,
    raw,
    refused,
    serve,
    stay_silent,
)
from tiny_llm.download import Patience, is_cached, measure
from tiny_llm.errors import DownloadError
from tiny_llm.pins import Pin

HALF = len(BODY) // 2
PAGE = b"\n<!DOCTYPE html><title>Sign in</title>"


@pytest.mark.parametrize("fault", ["short", "no length", "stall"])
def test_a_body_cut_short_is_resumed(server, fetch, fault):
    server.faults = [fault, fault]
    assert fetch() == BODY
    assert sum(fetch.seen) == len(BODY)
    assert server.ranges == [None, f"bytes={HALF}-", f"bytes={HALF * 3 // 2}-"]
    assert len(fetch.waits) == 2
    assert "; try 2 of 6 in 0.0 s" in fetch.waits[0]


def test_a_reset_connection_is_resumed(server, fetch):
    server.faults = ["reset", "reset"]
    assert fetch() == BODY
    assert len(fetch.waits) == 2


def test_a_server_that_always_stops_early_still_ends(server, fetch):
    """Each try brings some bytes, so tries do not run out."""
    server.faults = ["short"] * 12
    assert fetch() == BODY


def test_a_server_that_ignores_the_range_starts_over(server, fetch):
    server.faults = ["short", "ignore range"]
    assert fetch() == BODY
    assert sum(fetch.seen) == len(BODY)


def test_a_server_that_always_starts_over_is_given_up(server, fetch):
    def ignore_range(handler):
        server.faults.insert(0, "short")
        del server.requests.pop()["Range"]
        handler.do_GET()

    server.faults = [ignore_range] * 50
    refused(fetch, "got 1,048,576 of 2,097,152 bytes")
    assert len(server.faults) > 40


@pytest.mark.parametrize("etag", ['"v1"', None])
def test_a_file_that_changes_between_parts_is_never_mixed(server, fetch, etag):
    """If-Range finds out at once; without an ETag, the digest does at the end."""
    pin = server.pin()
    server.body, server.etag = BODY[::-1], etag and '"v0"'
    server.faults = ["short"]

    def change(_):
        server.body, server.etag = BODY, etag

    fetch.waits = type("Waits", (), {"append": staticmethod(change)})
    assert fetch(pin) == BODY
    if etag:
        assert server.requests[1]["If-Range"] == '"v0"'
        assert len(server.requests) == 2
    else:
        assert server.ranges == [None, f"bytes={HALF}-", None]


def test_a_server_that_ignores_if_range_is_found_out_by_its_etag(server, fetch):
    server.etag = '"v1"'

    def send_other_version(handler):
        server.etag = '"v2"'
        del server.requests.pop()["If-Range"]
        handler.do_GET()

    server.faults = ["short", send_other_version]
    assert fetch() == BODY
    assert server.ranges == [None, f"bytes={HALF}-", None]


def test_a_weak_etag_is_not_used_to_resume_but_a_date_is(server, fetch):
    date = formatdate(1e9, usegmt=True)
    head = {"ETag": 'W/"x"', "Last_Modified": date, "Content_Length": str(len(BODY))}
    server.faults = [answer(200, BODY[:100], **head)]
    server.etag = date  # To have the server compare it.
    assert fetch() == BODY
    assert server.requests[1]["If-Range"] == date


@pytest.mark.parametrize(
    "fault",
    [
        "416",
        answer(206, BODY[5:], Content_Range=f"bytes 5-{len(BODY) - 1}/{len(BODY)}"),
        answer(206, BODY[5:]),
    ],
    ids=["416", "another range", "no range"],
)
def test_a_range_that_is_not_served_starts_over(server, fetch, fault):
    server.faults = ["short", fault]
    assert fetch() == BODY
    assert server.ranges == [None, f"bytes={HALF}-", None]


@pytest.mark.parametrize("fault", ["500", "502", "503", "429", "408"])
def test_a_server_error_is_tried_again(server, fetch, fault):
    server.faults = [fault, fault]
    assert fetch() == BODY
    assert f"the server answered {fault} " in fetch.waits[0]


def test_retries_are_bounded_and_each_is_announced(server, fetch):
    server.faults = ["503"] * 50
    refused(fetch, "answered 503 Service Unavailable; got 0 of 2,097,152 bytes")
    assert len(server.requests) == 6
    assert len(fetch.waits) == 5


@pytest.mark.parametrize("as_date", [False, True])
def test_retry_after_is_honoured_and_announced(server, fetch, as_date):
    wait = formatdate(time.time() + 2, usegmt=True) if as_date else "1"
    server.faults = [answer(429, Retry_After=wait)]
    begin = time.monotonic()
    patience = Patience(stall_s=10, backoff_s=0.01)
    assert fetch(patience=patience) == BODY
    assert time.monotonic() - begin > 0.9
    assert "asks to wait" in fetch.waits[0]


@pytest.mark.parametrize("wait", ["3600", "999999999", formatdate(4e9, usegmt=True)])
def test_a_long_retry_after_ends_the_download_at_once(server, fetch, wait):
    server.faults = [answer(503, Retry_After=wait)]
    refused(fetch, r"503 Service Unavailable and asks to wait [\d,]{5,} s; got 0")
    assert len(server.requests) == 1


@pytest.mark.parametrize("wait", ["-1", "soon", "1e9", "\u00b2", ""])
def test_an_odd_retry_after_is_ignored(server, fetch, wait):
    server.faults = [answer(503, Retry_After=wait)]
    assert fetch() == BODY


@pytest.mark.parametrize(
    "fault",
    [stay_silent, drip_headers, "drip", raw(b"HTTP/1.1 100 Continue\r\n\r\n" * 9000)],
    ids=["silent", "headers drip", "body drips", "100 Continue"],
)
def test_a_download_without_progress_ends_in_bounded_time(server, fetch, fault):
    """The default bound is 150 s, here 1 s; without one, some of these never end."""
    server.faults = [fault] * 50
    refused(fetch, "got [0-9]+ of 2,097,152 bytes; check the network")


def test_a_slow_download_that_makes_progress_goes_on(server, fetch):
    """It takes longer than the patience for no progress, at a reasonable rate."""
    server.rate = 1 << 20
    patience = Patience(read_s=0.3, stall_s=0.5)
    assert fetch(patience=patience) == BODY
    assert fetch.waits == []


def test_a_server_that_cannot_be_reached_is_named(fetch, server):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        nobody = Pin(f"http://127.0.0.1:{port}/stories.txt", 10, "0" * 64)
        refused(
            fetch, rf"stories\.txt: cannot reach 127\.0\.0\.1:{port}: .*efused", nobody
        )
    assert len(fetch.waits) == 5


def test_a_host_that_does_not_exist_is_named(fetch):
    nobody = Pin("http://stories.invalid/x.txt", 10, "0" * 64)
    refused(fetch, "cannot find the host stories.invalid", nobody)


@pytest.mark.parametrize(
    "data", [b"", b"\0\xff\r\n\r\n", b"SSH-2.0-x\r\n", b"HTTP/1.1"]
)
def test_an_answer_that_is_not_http_is_tried_again(server, fetch, data):
    server.faults = [raw(data)]
    assert fetch() == BODY


@pytest.mark.parametrize(
    "fault",
    [
        raw(b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n" + BODY),
        raw(b"HTTP/1.1 200 OK\r\nContent-Length: 5, 6\r\n\r\n" + BODY),
        raw(b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n" + BODY),
        raw(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n" + BODY),
        raw(b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n" + BODY),
        raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"),
        raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nabc"),
        answer(200, BODY, Content_Encoding="gzip", Content_Length=len(BODY)),
    ],
)
def test_odd_headers_end_in_the_file_or_in_one_line(server, fetch, fault):
    server.faults = [fault]
    with warnings.catch_warnings():
        # urllib3 leaves the socket of some of them to the garbage collector.
        warnings.simplefilter("ignore", ResourceWarning)
        with contextlib.suppress(DownloadError):
            assert fetch() == BODY
        gc.collect()


@pytest.mark.parametrize("seed", range(10))
def test_any_faults_end_in_the_file_or_in_one_line(server, fetch, seed):
    """In short form; benchmarks/bench_download.py tries hundreds of sequences."""
    choose = random.Random(seed)
    server.etag = choose.choice([None, '"v1"'])
    server.faults = choose.choices(FAULTS, k=4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        with contextlib.suppress(DownloadError):
            assert fetch() == BODY
        gc.collect()
    assert all(path.read_bytes() == BODY for path in fetch.cache.glob("*.txt"))
    server.errors.clear()  # Some faults end a connection before their answer does.


def test_a_chunked_body_is_read(server, fetch):
    server.faults = ["chunked"]
    assert fetch() == BODY


@pytest.mark.parametrize("status", ["400", "401", "403", "404", "410", "416", "451"])
def test_a_refusal_is_final(server, fetch, status):
    server.faults = [status] * 20
    refused(fetch, f"stories.txt: the server answered {status} ")
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [204, 205, 206, 304, 299, 600])
def test_a_status_that_brings_no_file_is_named(server, fetch, status):
    server.faults = [answer(status)]
    refused(fetch, f"the server answered {status}")


def test_other_bytes_than_the_pinned_ones_are_refused(server, fetch):
    server.faults = ["flip"]
    refused(fetch, r"got sha256 .* the bytes began")
    assert list(fetch.cache.iterdir()) == []


@pytest.mark.parametrize("fault", [None, "chunked"])
def test_more_bytes_than_the_pinned_ones_are_refused(server, fetch, fault):
    server.faults = [fault]
    short = Pin(server.url, 1000, server.pin().sha256)
    message = "got more than 1,000" if fault else "sends 2,097,152 bytes, not 1,000"
    refused(fetch, message, short)
    assert list(fetch.cache.iterdir()) == []


def test_an_error_page_is_never_taken_for_the_file(server, fetch):
    server.faults = ["html"]
    refused(
        fetch, f"17 bytes, not 2,097,152, .* {server.pin().sha256}; it begins `<html"
    )
    assert len(server.requests) == 1


def test_an_error_page_without_a_length_is_named(server, fetch):
    server.faults = [answer(200, PAGE)]
    refused(fetch, r"a web page, not the file with sha256 .* `\\n<!DOCTYPE html")


@pytest.mark.parametrize(
    "fault", [answer(200, PAGE), answer(200, PAGE, Content_Length=len(PAGE))]
)
def test_an_error_page_leaves_the_bytes_of_earlier_tries_alone(server, fetch, fault):
    server.faults = ["short", fault]
    refused(fetch, "it begins `")
    assert fetch() == BODY
    assert server.ranges == [None, f"bytes={HALF}-", f"bytes={HALF}-"]


def test_a_pinned_web_page_is_a_file_like_any_other(fetch):
    with serve(body=PAGE) as server:
        assert fetch(server.pin()) == PAGE


def test_measuring_refuses_what_cannot_be_pinned(server, tmp_path):
    for fault, message in [
        (answer(200, Content_Length="0"), "the file is empty"),
        ("no length", "does not say where the file ends"),
        (answer(200, PAGE, Content_Length=str(len(PAGE))), "a web page, not a file"),
        ("404", "404 Not Found"),
    ]:
        server.faults = [fault]
        with pytest.raises(DownloadError, match=message):
            measure(server.url, tmp_path, patience=IMPATIENT)
    server.faults = ["chunked"]
    assert measure(server.url, tmp_path) == server.pin()
    assert is_cached(server.pin(), tmp_path)
