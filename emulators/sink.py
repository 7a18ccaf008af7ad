"""Plays ResponseURL's server: a local TLS server that takes or refuses answers, with its `certificate`."""

from __future__ import annotations

import contextlib
import json
import socket
import tempfile
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

from .tls import Handler, Server, self_signed

Reply = int | bytes | Literal["hang", "close"]
"""A status; bytes to send as they are before closing; "hang": never reply; "close": close at once."""

#: Seconds after which a hanging connection closes all the same, so that every test ends.
LONGEST_HANG = 5.0


class Put(NamedTuple):
    """A PUT as it came, with the names of its headers in lower case."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def answer(self) -> dict[str, Any]:
        return json.loads(self.body)  # type: ignore[no-any-return]  # an answer is an object


class Sink(Server):
    """Replies with each of `replies` in turn, then with 200. It listens only inside `with`."""

    daemon_threads = False  # So that server_close waits for them.

    def __init__(self, *replies: Reply, certificate: bytes | None = None) -> None:
        """Bind a free port of 127.0.0.1, with a certificate of its own or another sink's."""
        self.replies, self.puts = list(replies), list[Put]()
        self.connections: list[socket.socket] = []
        self._folder = tempfile.TemporaryDirectory()
        self.certificate = Path(self._folder.name, "sink.pem")
        """Clients trust it as SSL_CERT_FILE."""
        self.certificate.write_bytes(certificate or b"".join(self_signed()))
        self._came, self._stopped = threading.Condition(), threading.Event()
        super().__init__(_Handler, certificate=self.certificate)

    @property
    def url(self) -> str:
        """Make a ResponseURL that leads here, pre-signed like CloudFormation's, at this moment."""
        signed = f"X-Amz-Date={datetime.now(UTC):%Y%m%dT%H%M%SZ}"
        return f"{self.place}/stack%7Cresource?{signed}&{SIGNATURE}"

    @property
    def answers(self) -> list[dict[str, Any]]:
        return [put.answer for put in self.puts]

    def wait(self, puts: int = 1, seconds: float = 5.0) -> bool:
        """Wait until so many PUTs have come; return False if they have not."""
        with self._came:
            return self._came.wait_for(lambda: len(self.puts) >= puts, seconds)

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        for connection in self.connections:
            with contextlib.suppress(OSError):  # The connection has ended by itself.
                connection.shutdown(socket.SHUT_RDWR)
        super().__exit__()
        self._folder.cleanup()

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        self.connections.append(connection)
        return connection, address

    def take(self, put: Put) -> Reply:
        """Record a PUT, and say how to reply; a reply that hangs does so until the end."""
        with self._came:
            self.puts.append(put)
            self._came.notify_all()
            reply = self.replies.pop(0) if self.replies else 200
        if reply == "hang":
            self._stopped.wait(LONGEST_HANG)
        return reply


#: This part makes a pre-signed URL a secret.
SIGNATURE = "X-Amz-Signature=51951951951951951951951951951951"


class _Handler(Handler):
    server: Sink
    timeout = 30

    def do_PUT(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        reply = self.server.take(Put(self.path, headers, self.body()))
        if isinstance(reply, int):
            self.reply(reply, [("location", "/elsewhere")] if 300 <= reply < 400 else [])
            return
        if isinstance(reply, bytes):
            self.wfile.write(reply)
        self.close_connection = True


class Proxy(Server):
    """A proxy for HTTPS_PROXY, with a sink behind it. It listens only inside `with`."""

    def __init__(self, sink: Sink) -> None:
        super().__init__(_Tunnel)
        self.sink, self.connects = sink, list[tuple[str, str | None]]()
        """The target of each tunnel, and its Proxy-Authorization."""


class _Tunnel(Handler):
    server: Proxy

    def do_CONNECT(self) -> None:
        self.server.connects.append((self.path, self.headers["proxy-authorization"]))
        self.send_response_only(200)
        self.end_headers()
        self.wfile.flush()
        with self.server.sink.secured(self.connection) as connection:
            self.server.sink.finish_request(connection, self.client_address)
