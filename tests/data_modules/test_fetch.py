"""Files over HTTP from a site on this machine: good, slow, broken, redirecting, and asking for patience."""

from __future__ import annotations

import socket
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import TYPE_CHECKING

import pytest
from fakes.site import FakeTime, Site, say

from data_modules import fetch
from data_modules.fetch import Failure, Fetcher, Pace, retry_after

if TYPE_CHECKING:
    from collections.abc import Callable

DATA = bytes(range(256)) * 40


@pytest.fixture
def time() -> FakeTime:
    return FakeTime()


@pytest.fixture
def fetcher(time: FakeTime, monkeypatch: pytest.MonkeyPatch) -> Fetcher:
    monkeypatch.setenv("no_proxy", "*")
    return Fetcher("cir-test/1", Pace(1000, clock=time.clock, sleep=time.sleep), timeout=10, retries=3)


def failure(fetcher: Fetcher, url: str) -> Failure:
    with pytest.raises(Failure) as caught:
        fetcher.fetch(url)
    return caught.value


def test_a_file_comes_as_it_is_under_the_projects_name(site: Site, fetcher: Fetcher):
    site.answers["/a%2Bb.jpg"] = [say(DATA, Content_Type="image/jpeg")]
    assert fetcher.fetch(f"{site.address}/a%2Bb.jpg") == DATA
    assert site.agents == {"cir-test/1"}


@pytest.mark.parametrize("code", [408, 429, 500, 502, 503])
def test_errors_that_pass_are_tried_again(site: Site, fetcher: Fetcher, time: FakeTime, code: int):
    site.answers["/a"] = [say(status=code), say(status=code), say(DATA)]
    assert fetcher.fetch(f"{site.address}/a") == DATA
    first, second = (seconds for seconds in time.slept if seconds > 0.1)
    assert 0.5 <= first <= 1.5
    assert 1 <= second <= 3


@pytest.mark.parametrize(("code", "asked", "dead"), [(404, 1, True), (410, 1, True), (403, 1, True), (500, 4, False)])
def test_errors_that_stay(site: Site, fetcher: Fetcher, code: int, asked: int, dead):
    site.answers["/a"] = [say(b"<html>sorry</html>", code)]
    error = failure(fetcher, f"{site.address}/a")
    assert (error.reason, error.dead) == (f"HTTP {code}", dead)
    assert site.asked["/a"] == asked


def test_a_server_that_asks_for_a_pause_gets_it(site: Site, fetcher: Fetcher, time: FakeTime):
    site.answers["/a"] = [say(status=429, Retry_After="77"), say(DATA)]
    fetcher.fetch(f"{site.address}/a")
    assert 77 <= time.now < 78  # the pause and the back-off run side by side


@pytest.mark.parametrize(
    ("value", "low", "high"),
    [("7", 7, 7), ("99999", 120, 120), ("-3", 0, 0), ("soon", 0, 0), ("", 0, 0), ("Thu, 01 Jan 1970 00:00:00 GMT", 0, 0)],
)
def test_how_long_the_pause_is(value: str, low: float, high: float):
    assert low <= retry_after(value) <= high


def test_a_pause_until_a_date():
    assert 50 < retry_after(format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)) <= 60
    assert retry_after("Fri, 31 Dec 2100 23:59:59 -0000") == 0  # a date without its zone


def test_pace_spreads_requests_and_saves_up_none(time: FakeTime):
    pace = Pace(4, clock=time.clock, sleep=time.sleep)
    sent = []
    for at in range(5):
        pace.wait()
        sent.append(time.now)
        time.now += 10 if at == 2 else 0
    assert sent == [0, 0.25, 0.5, 10.5, 10.75]
    pace.pause(3)
    pace.pause(1)
    pace.wait()
    assert time.now == 13.75


def test_every_request_waits_its_turn_also_after_a_redirect(site: Site, time: FakeTime):
    site.answers |= {"/a": [say(status=302, Location="/b")], "/b": [say(DATA)]}
    fetcher = Fetcher("t", Pace(0.5, clock=time.clock, sleep=time.sleep))
    for _ in range(3):
        assert fetcher.fetch(f"{site.address}/a") == DATA
    assert time.now == 10  # six requests, the first at 0


def test_no_answer_and_an_answer_that_never_ends(site: Site, time: FakeTime):
    impatient, fetcher = (Fetcher("t", Pace(1000, clock=time.clock, sleep=time.sleep), timeout=0.2, retries=n) for n in (9, 1))
    site.answers |= {"/hang": [site.hang, say(DATA)], "/drip": [site.drip], "/both": [site.hang, site.drip]}
    assert impatient.fetch(f"{site.address}/hang") == DATA
    for path in ("/drip", "/both"):
        error = failure(fetcher, site.address + path)
        assert (error.reason, error.dead, site.asked[path]) == ("time-out", False, 2)


def test_a_body_that_is_cut_off_is_fetched_again(site: Site, fetcher: Fetcher):
    short = say(DATA[:-1], Content_Length=str(len(DATA)))
    site.answers |= {"/a": [short, say(DATA)], "/b": [short]}
    assert fetcher.fetch(f"{site.address}/a") == DATA
    assert failure(fetcher, f"{site.address}/b").reason == "cut off"


def test_no_more_than_the_limit_is_read(site: Site, fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fetch, "MAX_BYTES", len(DATA))
    site.answers |= {"/a": [say(DATA)], "/b": [say(DATA + b"x")]}
    assert fetcher.fetch(f"{site.address}/a") == DATA
    error = failure(fetcher, f"{site.address}/b")
    assert error.reason.startswith("more than")
    assert error.dead


def test_redirects_are_followed_without_reading_their_pages(site: Site, fetcher: Fetcher):
    site.answers |= {
        "/a": [say(status=301, Location="/b", Content_Length="9999999")],
        "/b": [say(status=302, Location="c")],
        "/c": [say(DATA)],
    }
    assert fetcher.fetch(f"{site.address}/a") == DATA
    assert site.asked == {"/a": 1, "/b": 1, "/c": 1}


def test_redirects_in_a_circle_end(site: Site, fetcher: Fetcher):
    site.answers |= {"/a": [say(status=302, Location="/b")], "/b": [say(status=302, Location="/a")]}
    error = failure(fetcher, f"{site.address}/a")
    assert (error.reason, error.dead) == ("redirects in a circle, or to no http address", True)
    assert site.asked.total() <= 12


@pytest.mark.parametrize("target", ["file:///etc/hostname", "ftp://127.0.0.1/a.jpg", "data:,x", "gopher://127.0.0.1/"])
def test_redirects_out_of_the_web_are_refused(site: Site, fetcher: Fetcher, target: str):
    site.answers["/a"] = [say(status=302, Location=target)]
    assert failure(fetcher, f"{site.address}/a").reason == "redirects in a circle, or to no http address"


@pytest.mark.parametrize(
    "url", ["file:///etc/hostname", "ftp://127.0.0.1/a.jpg", "http://[::1", "http://127.0.0.1:x/", "http:///a", "http://127.0.0.1/ä"]
)
def test_addresses_that_are_none(fetcher: Fetcher, url: str):
    error = failure(fetcher, url)
    assert (error.reason, error.dead) == ("not a valid address", True)


@pytest.mark.parametrize(
    ("error", "reason", "dead"),
    [
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "no such host", True),
        (socket.gaierror(socket.EAI_AGAIN, "Temporary failure"), r"connection failed \(Temporary failure\)", False),
        (ConnectionRefusedError(111, "Connection refused"), r"connection failed \(Connection refused\)", False),
        (TimeoutError("timed out"), "time-out", False),
    ],
)
def test_hosts_out_of_reach(fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch, error: OSError, reason: str, dead):
    calls = []

    def create_connection(*arguments: object, **_: object) -> None:
        calls.append(arguments)
        raise error

    monkeypatch.setattr(socket, "create_connection", create_connection)
    with pytest.raises(Failure, match=reason) as caught:
        fetcher.fetch("http://pictures.invalid/a.jpg")
    assert caught.value.dead == dead
    assert len(calls) == 4


def nonsense(handler: object) -> None:
    handler.wfile.write(b"what?\r\n\r\n")


def gone(handler: object) -> None:
    handler.connection.close()


@pytest.mark.parametrize("answer", [nonsense, gone])
def test_answers_that_are_none_are_tried_again(site: Site, fetcher: Fetcher, answer: Callable[[object], None]):
    site.answers["/a"] = [answer, say(DATA)]
    assert fetcher.fetch(f"{site.address}/a") == DATA
    assert site.asked["/a"] == 2
