"""A web server on the loopback with a folder's files: by range, with tags, and with the faults of stores on request."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from urllib.parse import unquote


@dataclass
class Store:
    """What a server has and does.

    Attributes:
        root: Folder with the files.
        url: Address of the folder.
        faults: Faults of the next answers about file contents: ``503``, ``cut``, ``slow``, ``silent`` (for ever),
            ``401``.
        always: Fault of all answers about contents and properties.
        ranges: Whether requests for a range of bytes get that range, or the whole file.
        gets: Names of the files whose content was asked for.
        ended: Set at the end of the server.
    """

    root: Path
    url: str = ""
    faults: list[str] = field(default_factory=list)
    always: str = ""
    ranges: bool = True
    gets: list[str] = field(default_factory=list)
    ended: Event = field(default_factory=Event)


@contextmanager
def serve(root: Path) -> Iterator[Store]:
    """Serve a folder."""
    store = Store(root)

    class Handler(_Handler):
        pass

    Handler.store = store
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    store.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield store
    finally:
        store.ended.set()
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    store: Store
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(head=True)

    def do_GET(self) -> None:
        self._answer(head=False)

    def _answer(self, head: bool) -> None:
        path = self.store.root / unquote(self.path).strip("/")
        if path.is_dir():
            names = [f"{one.name}/" if one.is_dir() else one.name for one in sorted(path.iterdir())]
            return self._send(200, "".join(f'<a href="{one}">{one}</a>' for one in names).encode(), head)
        if not path.is_file():
            return self._send(404, b"", head)
        content = path.read_bytes()
        if not head:
            self.store.gets.append(path.name)
        fault = self.store.always or ("" if head or not self.store.faults else self.store.faults.pop(0))
        if fault.isdecimal():
            return self._send(int(fault), b"", head)
        if fault == "slow":
            time.sleep(0.3)
        if fault == "silent":
            self.store.ended.wait()
        tag = hashlib.md5(content).hexdigest()
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")) if self.store.ranges else None
        if wanted:
            first, last = int(wanted[1]), min(int(wanted[2]), len(content) - 1)
            extra = {"Content-Range": f"bytes {first}-{last}/{len(content)}"}
            return self._send(206, content[first : last + 1], head, fault == "cut", ETag=f'"{tag}"', **extra)
        return self._send(200, content, head, fault == "cut", ETag=f'"{tag}"')

    def _send(self, status: int, content: bytes, head: bool, cut: bool = False, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        if status == 200 and self.store.ranges:
            self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if not head:
            self.wfile.write(content[: len(content) // 2] if cut else content)
        if cut:
            self.close_connection = True
