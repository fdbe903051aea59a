"""A web site on this machine, with good and with odd answers, that remembers what it was asked."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Answer = Callable[[BaseHTTPRequestHandler], None]


def picture(kind: str = "JPEG", size: tuple[int, int] = (12, 9), colour: str = "red") -> bytes:
    """A small picture file."""
    file = BytesIO()
    Image.new("RGB", size, colour).save(file, kind)
    return file.getvalue()


def say(body: bytes = b"", status: int = 200, **headers: str) -> Answer:
    """An answer with the right length, unless a ``Content_Length`` says otherwise."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **{k.replace("_", "-"): v for k, v in headers.items()}}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


class Server(ThreadingHTTPServer):
    """One that many clients can knock at together: with the usual queue of 5, some wait for a second."""

    request_queue_size = 64

    def handle_error(self, *_: object) -> None:
        """Clients that go away are part of the tests."""


class Site:
    """Answers by path: those of a list one after the other, the last one for ever; paths without any are 404."""

    def __init__(self) -> None:
        self.answers: dict[str, list[Answer]] = {}
        self.asked: Counter[str] = Counter()
        self.agents: set[str] = set()
        self.seen: defaultdict[str, threading.Event] = defaultdict(threading.Event)
        self.closing = threading.Event()
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                answers = site.answers.get(self.path, [say(status=404)])
                at = site.asked[self.path]
                site.asked[self.path] += 1
                site.agents.add(self.headers["User-Agent"])
                site.seen[self.path].set()
                answers[min(at, len(answers) - 1)](self)

            def log_message(self, *_: object) -> None:
                pass

        self.server = Server(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"

    def hang(self, handler: BaseHTTPRequestHandler) -> None:
        """No answer, until the site closes."""
        self.closing.wait(30)

    def drip(self, handler: BaseHTTPRequestHandler) -> None:
        """An answer that never ends, with a byte now and then."""
        handler.send_response(200)
        handler.end_headers()
        while not self.closing.wait(0.02):
            handler.wfile.write(b"x")


@contextmanager
def serve() -> Iterator[Site]:
    """A site at work."""
    site = Site()
    thread = threading.Thread(target=site.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield site
    finally:
        site.closing.set()
        site.server.shutdown()
        site.server.server_close()
        thread.join()


class FakeTime:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now, self.slept = 0.0, []
        self._lock = threading.Lock()

    def clock(self) -> float:
        """Seconds."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Move on at once."""
        with self._lock:
            self.now += seconds
            self.slept.append(seconds)
