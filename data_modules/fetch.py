"""Getting files over HTTP politely: one pace for all threads; retries, redirects, sizes and waits have bounds."""

from __future__ import annotations

import random
import socket
import threading
import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.client import HTTPException, InvalidURL
from typing import IO, TYPE_CHECKING
from urllib import request
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable
    from http.client import HTTPMessage, HTTPResponse

SCHEMES = ("http", "https")
MAX_BYTES = 20_000_000
MAX_BACKOFF = 30.0  # seconds
MAX_PAUSE = 120.0  # seconds; a server that asks for more is not waited for
GONE = (404, 410)
TRY_AGAIN = (408, 425, 429)


class Failure(Exception):  # noqa: N818 - mostly the server's fault, and expected
    """Why a file cannot be had.

    Args:
        reason: a few words, the same for the same kind of failure.
        again: whether another try may help soon.
        dead: whether the link is to be given up: at once, or with ``again`` after the last try.
    """

    def __init__(self, reason: str, *, again: bool, dead: bool) -> None:
        super().__init__(reason)
        self.reason, self.again, self.dead = reason, again, dead


class Pace:
    """Spreads the requests of all threads evenly over time.

    Args:
        rate: requests per second, above 0.
        clock: the time in seconds.
        sleep: waits for a number of seconds.
    """

    def __init__(self, rate: float, *, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], object] = time.sleep) -> None:
        self.interval, self.clock, self.sleep = 1 / rate, clock, sleep
        self._lock, self._free_at = threading.Lock(), clock()

    def wait(self) -> None:
        """Return when the next request may be sent."""
        while True:
            with self._lock:
                now = self.clock()
                if now >= self._free_at:
                    self._free_at = now + self.interval
                    return
                delay = self._free_at - now
            self.sleep(delay)

    def pause(self, seconds: float) -> None:
        """Let no thread send a request for so many seconds."""
        with self._lock:
            self._free_at = max(self._free_at, self.clock() + seconds)


class Fetcher:
    """Fetches files from http and https addresses, from many threads at once.

    Args:
        user_agent: what the requests call themselves.
        pace: when they may be sent.
        timeout: seconds that one answer may take.
        retries: tries after the first.
    """

    def __init__(self, user_agent: str, pace: Pace, *, timeout: float = 20.0, retries: int = 4) -> None:
        self.pace, self.timeout, self.retries = pace, timeout, retries
        self._opener = request.OpenerDirector()  # build_opener would add ftp:, file: and data:
        self._opener.addheaders = [("User-Agent", user_agent)]
        plain = (request.ProxyHandler, request.HTTPHandler, request.HTTPSHandler, request.UnknownHandler)
        errors = (request.HTTPErrorProcessor, request.HTTPDefaultErrorHandler, _Redirects)
        for handler in (*(kind() for kind in plain + errors), _Paced(pace)):
            self._opener.add_handler(handler)

    def fetch(self, url: str) -> bytes:
        """The file at an address, whole.

        Raises:
            Failure: there is none, or it cannot be had.
        """
        for tries in range(self.retries):
            try:
                return self._ask(url)
            except Failure as failure:
                if not failure.again:
                    raise
            self.pace.sleep(min(2.0**tries, MAX_BACKOFF) * random.uniform(0.5, 1.5))
        return self._ask(url)

    def _ask(self, url: str) -> bytes:
        try:
            with self._opener.open(url, timeout=self.timeout) as response:
                return self._body(response)
        except HTTPError as error:
            error.close()
            failure = _refusal(error.code)
            if failure.again:
                self.pace.pause(retry_after(error.headers.get("Retry-After", "")))
            raise failure from error
        except (OSError, HTTPException, ValueError) as error:
            raise _breakdown(error.reason if isinstance(error, URLError) else error) from error

    def _body(self, response: HTTPResponse) -> bytes:
        body, length, deadline = bytearray(), response.length, time.monotonic() + self.timeout
        while chunk := response.read1(1 << 16):
            body += chunk
            if len(body) > MAX_BYTES:
                raise Failure(f"more than {MAX_BYTES // 1_000_000} MB", again=False, dead=True)
            if time.monotonic() > deadline:  # the socket's own time-out begins anew with every byte
                raise Failure("time-out", again=True, dead=False)
        if length is not None and len(body) < length:
            raise Failure("cut off", again=True, dead=False)
        return bytes(body)


class _Redirects(request.HTTPRedirectHandler):
    max_redirections = 5

    def redirect_request(
        self,
        req: request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: HTTPMessage,
        newurl: str,
    ) -> request.Request | None:
        fp.close()  # the caller would read the body to its end, however long it is
        if urlsplit(newurl).scheme not in SCHEMES:
            raise HTTPError(req.full_url, code, msg, headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _Paced(request.BaseHandler):
    """Each request waits for its turn, also those that follow a redirect."""

    def __init__(self, pace: Pace) -> None:
        self.pace = pace

    def http_request(self, req: request.Request) -> request.Request:
        self.pace.wait()
        return req

    https_request = http_request


def _refusal(code: int) -> Failure:
    if 300 <= code < 400:
        return Failure("redirects in a circle, or to no http address", again=False, dead=True)
    again = code in TRY_AGAIN or code >= 500
    return Failure(f"HTTP {code}", again=again, dead=not again)


def _breakdown(cause: BaseException | str) -> Failure:
    if isinstance(cause, TimeoutError):
        return Failure("time-out", again=True, dead=False)
    if isinstance(cause, socket.gaierror) and cause.errno == socket.EAI_NONAME:  # others say that the name server is out of reach
        return Failure("no such host", again=True, dead=True)
    if isinstance(cause, OSError) or (isinstance(cause, HTTPException) and not isinstance(cause, InvalidURL)):
        return Failure(f"connection failed ({getattr(cause, 'strerror', None) or type(cause).__name__})", again=True, dead=False)
    return Failure("not a valid address", again=False, dead=True)


def retry_after(value: str) -> float:
    """Seconds that a ``Retry-After`` header asks for, 0 to ``MAX_PAUSE``; 0 if it cannot be read.

    Args:
        value: seconds or an HTTP date.

    Source: RFC 9110, section 10.2.3.
    """
    try:
        seconds = float(value) if value.isdecimal() else (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError):  # no date; a date without its zone
        return 0.0
    return min(max(seconds, 0.0), MAX_PAUSE)
