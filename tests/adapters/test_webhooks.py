"""Receivers on loopback that take, refuse, hang, redirect and lie."""

from __future__ import annotations

import json
import re
import socket
import ssl
import subprocess
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks import Webhook, WebhookVerificationError
from werkzeug import Request, Response

from chalicelib.adapters import webhooks
from chalicelib.adapters.webhooks import HttpWebhooks
from chalicelib.errors import Unavailable
from chalicelib.ports import Announcement
from infra.bench.serving import served
from tests.factories import NOW

SECRET = "whsec_" + b64encode(b"k" * 32).decode()
TOLD = Announcement("m-1", "build.succeeded", NOW, '{"type": "build.succeeded", "data": "ä"}')
LOCAL = HttpWebhooks("127.0.0.1 localhost")


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine is no slow receiver."""
    for name in ("CONNECT_SECONDS", "SECONDS"):
        monkeypatch.setattr(webhooks, name, 60)


@contextmanager
def receiving(talk: Callable[[socket.socket], None]) -> Iterator[str]:
    """A receiver that speaks as `talk` does with each connection; its URL."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection, suppress(OSError):
                    talk(connection)

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/builds"
        server.shutdown(socket.SHUT_RDWR)


def request_of(connection: socket.socket) -> bytes:
    """All of it: a client sends head and body one after the other."""
    got = b""
    while piece := connection.recv(65_536):
        got += piece
        head, _, body = got.partition(b"\r\n\r\n")
        if (length := re.search(rb"content-length: (\d+)", head, re.I)) and len(body) >= int(length[1]):
            break
    return got


def saying(answer: bytes) -> Callable[[socket.socket], None]:
    def talk(connection: socket.socket) -> None:
        request_of(connection)
        connection.sendall(answer)

    return talk


def refused(url: str, by: HttpWebhooks = LOCAL) -> str:
    with pytest.raises(Unavailable) as refusal:
        by.send(url, SECRET, TOLD, NOW)
    return str(refusal.value)


def test_a_receiver_gets_what_is_told_signed_with_its_secret() -> None:
    got: list[Request] = []

    def answer(request: Request) -> Response:
        request.get_data()
        got.append(request)
        return Response(status=204)

    with served(answer) as address:
        LOCAL.send(f"http://{address}/builds?team=a%20b", SECRET, TOLD, datetime.now(UTC))
    (request,) = got
    assert (request.method, request.path, request.query_string) == ("POST", "/builds", b"team=a%20b")
    assert request.headers["Content-Type"] == "application/json"
    assert request.host == address
    assert Webhook(SECRET).verify(request.get_data(), dict(request.headers)) == json.loads(TOLD.text)
    with pytest.raises(WebhookVerificationError):
        Webhook("whsec_" + b64encode(b"x" * 32).decode()).verify(request.get_data(), dict(request.headers))


@pytest.mark.parametrize("status", [199, 301, 302, 307, 400, 404, 410, 500, 503])
def test_only_2xx_is_a_yes(status: int) -> None:
    with receiving(saying(f"HTTP/1.1 {status} So\r\nContent-Length: 0\r\n\r\n".encode())) as url:
        if status == 199:
            with pytest.raises(Unavailable):
                LOCAL.send(url, SECRET, TOLD, NOW)
        else:
            assert refused(url) == f"The receiver answered {status}."


def test_no_redirect_is_followed() -> None:
    asked: list[bytes] = []

    def other(connection: socket.socket) -> None:
        asked.append(request_of(connection))

    with (
        receiving(other) as elsewhere,
        receiving(saying(f"HTTP/1.1 307 Go\r\nLocation: {elsewhere}\r\nContent-Length: 0\r\n\r\n".encode())) as url,
    ):
        assert refused(url) == "The receiver answered 307."
    assert asked == []


@pytest.mark.parametrize(
    "lie",
    [
        b"",
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 twohundred OK\r\n\r\n",
        b"HTTP/1.1 " + b"2" * 200_000,
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20_000 + b"\r\n",
    ],
    ids=["nothing", "no HTTP", "no status", "a line without an end", "headers without an end"],
)
def test_what_is_no_answer_is_a_no(lie: bytes) -> None:
    with receiving(saying(lie)) as url:
        assert refused(url).startswith("The receiver did not answer (")


def test_no_more_than_the_status_is_taken_of_an_answer_without_end() -> None:
    sent = [0]

    def talk(connection: socket.socket) -> None:
        request_of(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 9999999999\r\n\r\n")
        while True:
            sent[0] += connection.send(b"x" * 65_536)

    with receiving(talk) as url:
        LOCAL.send(url, SECRET, TOLD, NOW)
    assert sent[0] < 50_000_000  # what buffers took


@pytest.mark.parametrize("drips", [False, True], ids=["hangs", "sends a byte now and then"])
def test_a_receiver_has_a_bounded_time_however_it_spends_it(drips: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhooks, "SECONDS", 0.5)
    ends = threading.Event()

    def talk(connection: socket.socket) -> None:
        request_of(connection)
        while not ends.wait(0.05):
            if drips:
                connection.sendall(b"H")

    with receiving(talk) as url:
        began = time.monotonic()
        assert refused(url).startswith("The receiver did not answer (")
        took = time.monotonic() - began
        ends.set()
    assert took < 30  # and not for ever


def test_a_handshake_that_hangs_is_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhooks, "SECONDS", 0.5)
    ends = threading.Event()

    def talk(_: socket.socket) -> None:
        ends.wait(60)

    with receiving(talk) as url:
        assert refused(url.replace("http:", "https:")).startswith("The receiver did not answer (")
        ends.set()


def test_nobody_there_is_a_no() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert refused(f"http://127.0.0.1:{port}/") == "The receiver did not answer (ConnectionRefusedError)."
    assert refused("https://nobody.invalid/") == "The receiver did not answer (gaierror)."
    assert refused(f"https://{'x' * 64}.test/").startswith("The receiver did not answer (")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0x7f.1", "2130706433"])
def test_what_is_not_of_the_internet_is_not_connected_to(host: str) -> None:
    asked: list[bytes] = []
    with receiving(lambda connection: asked.append(connection.recv(9))) as url:
        words = refused(url.replace("127.0.0.1", host), HttpWebhooks("other.lan"))
    assert words == f"{host} has an address that is not of the Internet."
    assert asked == []


def test_one_address_that_is_not_of_the_internet_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    resolves(monkeypatch, "93.184.215.14", "169.254.169.254")
    words = refused("https://rebinding.test/", HttpWebhooks(""))
    assert words == "rebinding.test has an address that is not of the Internet."


def test_what_is_connected_to_is_what_was_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is resolved again may lead elsewhere the second time."""
    asked = resolves(monkeypatch, "93.184.215.14", then="127.0.0.1")
    connected: list[Any] = []

    def connect(address: Any, timeout: float) -> socket.socket:
        connected.append(address)
        raise TimeoutError

    monkeypatch.setattr(socket, "create_connection", connect)
    assert refused("https://rebinding.test/", HttpWebhooks("")) == "The receiver did not answer (TimeoutError)."
    assert connected == [("93.184.215.14", 443)]
    assert len(asked) == 1


def resolves(monkeypatch: pytest.MonkeyPatch, *addresses: str, then: str | None = None) -> list[str]:
    """Names lead there, and later elsewhere; returns the list of those that were asked for."""
    asked: list[str] = []

    def getaddrinfo(host: str, port: int, *_: Any, **__: Any) -> list[Any]:
        found = addresses if not asked or then is None else (then,)
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


@pytest.mark.parametrize(
    "address",
    [
        *(
            "0.0.0.0",
            "127.0.0.1",
            "10.0.0.1",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "198.18.0.1",
        ),
        *("192.0.0.1", "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255", "203.0.113.1"),
    ],
)
def test_an_address_of_a_machine_or_its_network_is_refused(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    resolves(monkeypatch, address)
    assert refused("https://inner.test/", HttpWebhooks("")) == "inner.test has an address that is not of the Internet."


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For localhost, signed by itself."""
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject]
    subprocess.run([*command, "-keyout", path, "-out", path.with_suffix(".crt")], check=True, capture_output=True)
    path.write_text(path.read_text() + path.with_suffix(".crt").read_text())
    return path


@contextmanager
def over_tls(certificate: Path, got: list[bytes]) -> Iterator[str]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)

    def talk(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as secured:
            got.append(request_of(secured))
            secured.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")

    with receiving(talk) as url:
        yield url.replace("http://127.0.0.1", "https://localhost")


def test_the_certificate_must_be_good_for_the_name(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    got: list[bytes] = []
    with over_tls(certificate, got) as url:
        assert refused(url) == "The receiver did not answer (SSLCertVerificationError)."
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate.with_suffix(".crt")))
        LOCAL.send(url, SECRET, TOLD, NOW)
        assert refused(url.replace("localhost", "127.0.0.1")).endswith("(SSLCertVerificationError).")
    (request,) = got
    assert request.startswith(b"POST /builds HTTP/1.1\r\n")
    assert f"Host: {url.split('/')[2]}".encode() in request
