"""HTTP of downloads: certificates, redirects, proxies, passwords and tokens."""

import logging

import pytest
import requests

from tests.faulty_server import (
    BODY,
    CERTIFICATE,
    IMPATIENT,
    answer,
    refused,
    serve,
)
from tiny_llm.download import Patience, download
from tiny_llm.errors import ConfigError, DownloadError
from tiny_llm.pins import Pin, check_url
from tiny_llm.transport import authorize_hf

COMMIT = "f54c09fd23315a6f9c86f9dc80f725de7d8f9c64"
TOKEN = "hf_secret"
CALM = Patience(connect_s=5, read_s=0.5, stall_s=20, backoff_s=0.01)


def test_https_is_read_and_never_redirected_to_http(server, fetch, monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(CERTIFICATE))
    with serve(certificate=CERTIFICATE) as secure:
        assert fetch(secure.pin()) == BODY
        server.faults = [answer(302, Location=secure.url)]
        assert fetch(server.pin(f"{server.url}?from=http")) == BODY
        secure.faults = [answer(302, Location=server.url)]
        pin = Pin(secure.url, 5, "0" * 64)
        with pytest.raises(
            DownloadError, match=r"from https to http: https://127\S* -> "
        ):
            fetch(pin)


def test_a_certificate_that_nobody_vouches_for_is_named_at_once(fetch):
    with serve(certificate=CERTIFICATE) as secure:
        refused(
            fetch, r"the certificate of 127\S+ is not valid: self", secure.pin(), CALM
        )
        assert secure.requests == []
        assert fetch.waits == []


def test_a_certificate_for_another_host_is_named(fetch, monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(CERTIFICATE))
    with serve(certificate=CERTIFICATE) as secure:
        pin = secure.pin(secure.url.replace("127.0.0.1", "localhost"))
        refused(
            fetch, r"certificate of localhost\S+ is not valid: .*mismatch", pin, CALM
        )


def test_https_to_a_server_of_http_is_one_line(server, fetch):
    pin = server.pin(server.url.replace("http", "https"))
    # It waits for more if the random bytes of the handshake hold no newline.
    refused(fetch, "no secure connection to 127|127.* sends nothing", pin, CALM)


def test_a_redirect_is_followed(server, fetch):
    server.faults = [answer(302, Location="/a?x=1"), answer(307, Location="b.txt#top")]
    assert fetch() == BODY
    assert server.paths == ["/stories.txt", "/a?x=1", "/b.txt"]


@pytest.mark.parametrize("length", [1, 2, 30])
def test_endless_redirects_name_their_hops(server, fetch, length):
    server.faults = [answer(302, Location=f"/{i % length}") for i in range(99)]
    message = refused(fetch, "redirects do not end: ")
    assert "/stories.txt -> http://127.0.0.1" in message or length == 1
    assert len(server.requests) <= 11


@pytest.mark.parametrize(
    "location",
    [
        "http://",
        "http:///x",
        "http://[::1",
        "http://127.0.0.1:port/",
        "http://127.0.0.1:99999/",
        "//",
        "ftp://127.0.0.1/x",
        "file:///etc/passwd",
        "javascript:alert(1)",
        "http://user:secret@127.0.0.1/x",
        "http://" + "a" * 70 + ".invalid/",
        "http://.../",
        "http://\u00ff\u00fe/",
        "http://a b/",
        "http://127.0.0.1\x1b[2J/",
        "/x" * 30_000,
    ],
)
def test_a_malformed_redirect_is_one_line(server, fetch, location):
    server.faults = [answer(302, Location=location), "404"]
    message = refused(fetch, "redirects? (leads|do not)|not a usable|cannot|404")
    assert len(message) < 800
    assert message.isprintable()
    assert "secret" not in message


def test_a_redirect_without_a_target_is_named(server, fetch):
    server.faults = [answer(302)]
    refused(fetch, "the server answered 302 Found")


def test_a_proxy_of_the_environment_is_used(server, fetch, monkeypatch):
    monkeypatch.setenv("http_proxy", server.base.replace("//", "//ann:secret@"))
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert fetch(server.pin("http://stories.invalid/stories.txt")) == BODY
    assert server.paths == ["http://stories.invalid/stories.txt"]
    assert server.requests[0]["Proxy-Authorization"] == "Basic YW5uOnNlY3JldA=="


@pytest.mark.parametrize("fault", ["404", "503", "flip", "html"])
def test_no_message_shows_the_password_of_a_url(server, fetch, fault):
    server.faults = [fault] * 20
    url = server.url.replace("//", "//ann:secret@") + "?key=secret"
    message = refused(fetch, "stories", server.pin(url))
    assert "//***@127.0.0.1" in message
    assert "secret" not in message + str(fetch.waits)
    assert "ann" not in message
    assert server.requests[0]["Authorization"] == "Basic YW5uOnNlY3JldA=="


@pytest.fixture
def hub(monkeypatch):
    with serve() as server:
        monkeypatch.setenv("HF_ENDPOINT", f"{server.base}/")
        monkeypatch.setenv("HF_TOKEN", f" {TOKEN}\n")
        yield server


@pytest.fixture
def hf_pin(hub):
    return hub.pin(check_url(f"hf://datasets/ann/stories@{COMMIT}/data/a%20b.jsonl"))


def test_a_dataset_of_hugging_face_is_downloaded_with_the_token(
    hub, hf_pin, tmp_path, caplog
):
    caplog.set_level(logging.DEBUG)
    hub.faults = ["short"]
    path = download(hf_pin, tmp_path, patience=IMPATIENT)
    assert path.read_bytes() == BODY
    assert path.suffix == ".jsonl"
    assert hub.paths[0] == f"/datasets/ann/stories/resolve/{COMMIT}/data/a%20b.jsonl"
    sent = [headers["Authorization"] for headers in hub.requests]
    assert sent == [f"Bearer {TOKEN}"] * 2
    assert TOKEN not in caplog.text


def test_the_token_is_sent_to_the_host_of_hugging_face_alone(hub, hf_pin, tmp_path):
    """As it redirects to another host for the bytes."""
    with serve() as other:
        hub.faults = [answer(302, Location=f"{other.base}/bytes?Signature=xyz")]
        assert download(hf_pin, tmp_path).read_bytes() == BODY
        assert other.requests[0]["Authorization"] is None
        pin = other.pin(f"{other.base}/x.txt")
        (tmp_path / f"{pin.sha256}.jsonl").unlink()
        assert download(pin, tmp_path).read_bytes() == BODY
        assert other.requests[1]["Authorization"] is None


def test_a_password_is_not_sent_to_the_target_of_a_redirect(server, tmp_path):
    with serve() as other:
        server.faults = [answer(302, Location=other.url)]
        pin = server.pin(server.url.replace("//", "//ann:pw@"))
        assert download(pin, tmp_path).read_bytes() == BODY
        assert other.requests[0]["Authorization"] is None


@pytest.mark.parametrize("fault", ["401", "403", "404", "503"])
def test_no_message_shows_the_token(hub, hf_pin, tmp_path, fault):
    hub.faults = [fault] * 9
    lines = []
    with pytest.raises(DownloadError, match=f"{COMMIT}.* answered {fault}") as caught:
        download(hf_pin, tmp_path, on_wait=lines.append, patience=IMPATIENT)
    assert TOKEN not in str(caught.value) + str(lines)
    assert ("HF_TOKEN" in str(caught.value)) == (fault in ("401", "403"))


def test_a_token_that_no_header_can_hold_is_refused_without_showing_it(
    hub, hf_pin, tmp_path, monkeypatch
):
    monkeypatch.setenv("HF_TOKEN", "hf_sec\nret: 1")
    with pytest.raises(ConfigError, match="HF_TOKEN holds characters") as caught:
        download(hf_pin, tmp_path)
    assert "ret: 1" not in str(caught.value)
    assert hub.requests == []


@pytest.mark.parametrize(
    "url",
    [
        "http://huggingface.co/x",
        "https://huggingface.co:8443/x",
        "https://huggingface.co.evil.org/x",
        "https://evil.org/huggingface.co",
    ],
)
def test_the_token_is_for_https_of_one_host_and_port(monkeypatch, url):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    ours = requests.Request("GET", "https://HuggingFace.co:443/x").prepare()
    assert authorize_hf(ours).headers["Authorization"] == f"Bearer {TOKEN}"
    theirs = requests.Request("GET", url).prepare()
    assert "Authorization" not in authorize_hf(theirs).headers


def test_a_password_in_netrc_is_not_sent(hub, hf_pin, tmp_path, monkeypatch):
    """Requests would prefer it to the token."""
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login ann password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert download(hf_pin, tmp_path).read_bytes() == BODY
    assert hub.requests[0]["Authorization"] == f"Bearer {TOKEN}"
