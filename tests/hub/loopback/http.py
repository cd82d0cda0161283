"""HTTP: bytes to requests, answers to bytes, and connections that break on demand."""

import re
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from loopback.exchange import Answer, RefusedError, Request, account_of

if TYPE_CHECKING:
    from loopback.server import Hub


class Server(ThreadingHTTPServer):
    """Listens on a free port of this machine."""

    daemon_threads = True

    def __init__(self, hub: "Hub") -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.hub = hub


class Handler(BaseHTTPRequestHandler):
    """Speaks with one client."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def take(self) -> None:
        path = urlsplit(self.path).path
        hub = self.server.hub
        if hub.cuts and (self.command == "PUT" or "/v1/xorbs/" in path):
            hub.cuts -= 1
            self.rfile.read(100)
            self.close_connection = True
            self.connection.close()
            return
        with suppress(ConnectionError):
            self._send(self._answer(path, self._body()))

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = take

    def _answer(self, path: str, body: bytes) -> Answer:
        headers = {key.title(): value for key, value in self.headers.items()}
        is_store = path.startswith("/cas/")
        try:
            account = None if is_store else account_of(headers.get("Authorization", ""))
            query = urlsplit(self.path).query
            request = Request(self.command, path, query, headers, body, account)
            return self.server.hub.answer(request)
        except RefusedError as refused:
            return refused.answer

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _send(self, answer: Answer) -> None:
        body = answer.body.read_bytes() if isinstance(answer.body, Path) else answer.body
        status, headers = answer.status, dict(answer.headers)
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted and status == 200:
            first, last = int(wanted[1]), int(wanted[2] or len(body) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(body)}"
            status, body = 206, body[first : last + 1]
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *words: object) -> None:
        """Say nothing: the requests are in `hub.requests`."""
