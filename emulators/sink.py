"""Plays ResponseURL's server: a local TLS server that takes or refuses answers, with its `certificate`."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import tempfile
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal, Self

from .tls import Server, self_signed

Reply = int | bytes | Literal["hang", "close"]
"""A status; bytes to send as they are before closing; "hang": never reply; "close": close at once."""

#: Seconds after which a hanging connection closes all the same, so that every test ends.
LONGEST_HANG = 5.0


@dataclass(frozen=True)
class Put:
    """A PUT as it came, with the names of its headers in lower case."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def answer(self) -> dict[str, Any]:
        """Read the body as JSON."""
        return json.loads(self.body)  # type: ignore[no-any-return]  # an answer is an object


class Sink:
    """Replies with each of `replies` in turn, then with 200. It listens only inside `with`."""

    def __init__(self, *replies: Reply, certificate: bytes | None = None) -> None:
        """Bind a free port of 127.0.0.1, with a certificate of its own or another sink's."""
        self.replies = list(replies)
        self.puts: list[Put] = []
        self.connections: list[socket.socket] = []
        """Every connection that a client made."""
        self._folder = tempfile.TemporaryDirectory()
        self.certificate = Path(self._folder.name, "sink.pem")
        """Clients trust it as SSL_CERT_FILE."""
        self.certificate.write_bytes(certificate or b"".join(self_signed()))
        self._came = threading.Condition()
        self._stopped = threading.Event()
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})

    @property
    def url(self) -> str:
        """Make a ResponseURL that leads here, pre-signed like CloudFormation's, at this moment."""
        signed = f"X-Amz-Date={datetime.now(UTC):%Y%m%dT%H%M%SZ}"
        return f"https://127.0.0.1:{self._server.server_port}/stack%7Cresource?{signed}&{SIGNATURE}"

    @property
    def answers(self) -> list[dict[str, Any]]:
        """Read the body of each PUT as JSON."""
        return [put.answer for put in self.puts]

    def wait(self, puts: int = 1, seconds: float = 5.0) -> bool:
        """Wait until so many PUTs have come; return False if they have not."""
        with self._came:
            return self._came.wait_for(lambda: len(self.puts) >= puts, seconds)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._server.shutdown()
        self._thread.join()
        for connection in self.connections:
            with contextlib.suppress(OSError):  # The connection has ended by itself.
                connection.shutdown(socket.SHUT_RDWR)
        self._server.server_close()
        self._folder.cleanup()

    def take(self, put: Put) -> Reply:
        """Record a PUT, and say how to reply."""
        with self._came:
            self.puts.append(put)
            self._came.notify_all()
            return self.replies.pop(0) if self.replies else 200

    def hang(self) -> None:
        """Wait for the end."""
        self._stopped.wait(LONGEST_HANG)


#: This part makes a pre-signed URL a secret.
SIGNATURE = "X-Amz-Signature=51951951951951951951951951951951"


class _Server(Server):
    daemon_threads = False  # So that server_close waits for them.

    def __init__(self, sink: Sink) -> None:
        super().__init__(("127.0.0.1", 0), _Handler, sink.certificate)
        self.sink = sink

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept, and keep the connection."""
        connection, address = super().get_request()
        self.sink.connections.append(connection)
        return connection, address


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 30

    def do_PUT(self) -> None:
        """Record it, and reply as the sink says."""
        body = self.rfile.read(int(self.headers["content-length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        match self.server.sink.take(Put(self.path, headers, body)):
            case "hang":
                self.server.sink.hang()
                self.close_connection = True
            case "close":
                self.close_connection = True
            case bytes() as raw:
                self.wfile.write(raw)
                self.close_connection = True
            case int() as status:
                self.send_response_only(status)
                self.send_header("content-length", "0")
                if 300 <= status < 400:
                    self.send_header("location", "/elsewhere")
                self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # its base's name for it
        """Say nothing: a URL is pre-signed."""


class Proxy:
    """A proxy that tunnels, for HTTPS_PROXY. It listens only inside `with`."""

    def __init__(self) -> None:
        """Bind a free port of 127.0.0.1."""
        self.connects: list[tuple[str, str | None]] = []
        """The target of each tunnel, and its Proxy-Authorization."""
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Tunnel, self))
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self.netloc = f"127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Tunnel(BaseHTTPRequestHandler):
    def __init__(self, proxy: Proxy, *args: Any) -> None:
        self._proxy = proxy
        super().__init__(*args)

    def do_CONNECT(self) -> None:
        """Carry bytes both ways until one side has no more."""
        self._proxy.connects.append((self.path, self.headers["proxy-authorization"]))
        host, _, port = self.path.rpartition(":")
        with socket.create_connection((host, int(port))) as target:
            self.send_response_only(200)
            self.end_headers()
            ends = {self.connection: target, target: self.connection}
            while True:
                for end in select.select(list(ends), [], [], 5)[0]:
                    if not (data := end.recv(65536)):
                        return
                    ends[end].sendall(data)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # its base's name for it
        """Say nothing."""
