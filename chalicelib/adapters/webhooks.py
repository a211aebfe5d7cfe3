"""Calls of webhooks, after the specification of Standard Webhooks."""

import socket
import ssl
from datetime import datetime
from functools import partial
from http.client import HTTPConnection, HTTPException
from ipaddress import ip_address
from threading import Timer
from urllib.parse import urlsplit

from standardwebhooks import Webhook

from chalicelib.errors import Unavailable
from chalicelib.ports import Announcement

CONNECT_SECONDS, SECONDS = 3, 10  # the second for all that follows, however slowly it comes


class HttpWebhooks:
    """`Webhooks` by IPv4, since functions have no IPv6. Only `private_hosts` may have private addresses."""

    def __init__(self, private_hosts: str) -> None:
        self._private_hosts = private_hosts.split()

    def send(self, url: str, secret: str, announcement: Announcement, now: datetime) -> None:
        headers = {
            "Content-Type": "application/json",
            "webhook-id": announcement.id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": Webhook(secret).sign(announcement.id, now, announcement.text),
        }
        try:
            status = self._post(url, announcement.text.encode(), headers)
        except (OSError, HTTPException, ValueError) as exc:  # ValueError: a host that is no name
            raise Unavailable(f"The receiver did not answer ({type(exc).__name__}).") from exc
        if not 200 <= status < 300:
            raise Unavailable(f"The receiver answered {status}.")

    def _post(self, url: str, body: bytes, headers: dict[str, str]) -> int:
        """The status, of which no more is read; redirects are not followed. The host's name is resolved once: what is
        connected to is what was checked."""
        to = urlsplit(url)
        host, port = to.hostname or "", to.port or (443 if to.scheme == "https" else 80)
        found = socket.getaddrinfo(host, port, socket.AF_INET, socket.SOCK_STREAM)
        addresses = [ip_address(each[4][0]) for each in found]
        if host not in self._private_hosts and not all(it.is_global and not it.is_multicast for it in addresses):
            raise Unavailable(f"{host} has an address that is not of the Internet.")
        connected = socket.create_connection((str(addresses[0]), port), CONNECT_SECONDS)
        if to.scheme == "https":
            context = ssl.create_default_context()
            connected = context.wrap_socket(connected, server_hostname=host, do_handshake_on_connect=False)
        # Not the method of TLS, which would take apart what is being read.
        late = Timer(SECONDS, partial(socket.socket.shutdown, connected, socket.SHUT_RDWR))
        late.start()
        try:
            with connected:
                if isinstance(connected, ssl.SSLSocket):
                    connected.do_handshake()
                connection = HTTPConnection(to.netloc)
                connection.sock = connected
                connection.request("POST", to._replace(scheme="", netloc="").geturl() or "/", body, headers)
                return connection.getresponse().status
        finally:
            late.cancel()
