"""What bad input gets: a 4xx with a clear `detail`, never a 500, and nothing is written."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.conftest import Quiet
from tests.support import PASSWORD, Caller

BAD_STRINGS: list[Any] = [{"$gt": ""}, ["a"], 5, None, True, "\x00", "\ud800", "x" * 100_000]


def raw(body: Any) -> bytes:
    """JSON as hostile as its sender likes: NaN and Infinity as bare words, lone surrogates escaped."""
    return json.dumps(body).encode()


def assert_refused(caller: Caller, path: str, body: bytes) -> None:
    answer = caller.post_raw(path, body)
    assert 400 <= answer.status_code < 500, (answer.status_code, answer.text[:300])
    assert answer.json()["detail"]
    assert len(answer.text) < 2000


@pytest.fixture
def alice(quiet: Quiet, caller: Callable[[str], Caller]) -> Iterator[Caller]:
    """A user; after the test nothing else may have been written."""
    yield caller(quiet.url).sign_up("alice@example.com")
    assert quiet.database.alerts.count_documents({}) == 0
    assert quiet.database.users.count_documents({}) == 1


@pytest.mark.parametrize("field", ["username", "email", "password"])
def test_sign_up_fields(alice: Caller, field: str) -> None:
    good = {"username": "dave", "email": "dave@example.com", "password": PASSWORD}
    for bad in BAD_STRINGS:
        assert_refused(alice, "/user/signup/", raw(good | {field: bad}))
    assert_refused(alice, "/user/signup/", raw({name: value for name, value in good.items() if name != field}))


@pytest.mark.parametrize("field", ["email", "password"])
def test_login_fields(alice: Caller, field: str) -> None:
    for bad in BAD_STRINGS:
        assert_refused(alice, "/user/login/", raw({"email": "dave@example.com", "password": PASSWORD} | {field: bad}))


@pytest.mark.parametrize(
    "address",
    [
        "a@b",
        "a b@example.com",
        "a@example.com\nBcc: x@example.com",
        "@example.com",
        "a@-example.com",
        "=?utf-8?q?victim=40bank.org=2C?=@evil.example.com",
    ],
)
def test_addresses_that_mail_cannot_reach(alice: Caller, address: str) -> None:
    assert_refused(alice, "/user/signup/", raw({"username": "dave", "email": address, "password": PASSWORD}))


@pytest.mark.parametrize(
    "price",
    [float("nan"), float("inf"), -float("inf"), 0, -1, 1e-300, 1e300, 10**400, "100", "", None, True, [1], {"$gt": 0}],
)
def test_target_prices(alice: Caller, price: Any) -> None:
    assert_refused(alice, "/alerts/create/", raw({"targetPrice": price}))


@pytest.mark.parametrize(
    ("field", "bad"),
    [("email", bad) for bad in BAD_STRINGS if bad is not None]
    + [("symbol", bad) for bad in [*BAD_STRINGS, "", " ", "BTC\n", "X" * 33]]
    + [("direction", bad) for bad in [*BAD_STRINGS, "up", "ABOVE"] if bad is not None]
    + [("touch", bad) for bad in ["true", 1, 0, None, {}]],
)
def test_alert_fields(alice: Caller, field: str, bad: Any) -> None:
    if bad != "BTC\n":  # white space around a ticker is forgiven
        assert_refused(alice, "/alerts/create/", raw({"targetPrice": 5, field: bad}))


def test_alert_ids(alice: Caller) -> None:
    for bad in BAD_STRINGS:
        assert_refused(alice, "/alerts/delete/", raw({"alert_id": bad}))
    assert_refused(alice, "/alerts/delete/", raw({}))


@pytest.mark.parametrize(
    "query",
    [
        {"page": 0}, {"page": -1}, {"page": 10**9}, {"page": "x"}, {"page": "1e3"}, {"per_page": 0}, {"per_page": 201},
        {"per_page": 10**9}, {"filterStr": "sent"}, {"filterStr": "created,"}, {"filterStr": "created,created,nope"},
        {"filterStr": "x" * 1000}, {"filterStr": "\x00"}, {"email": "\x00"}, {"email": "x" * 1000},
        {"email": "eve@example.com"},
    ],
)  # fmt: skip
def test_queries(alice: Caller, query: dict[str, Any]) -> None:
    answer = alice.get("/alerts/fetch/", **query)
    assert answer.status_code in {403, 422}, answer.text
    assert answer.json()["detail"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"\xff\xfe",
        b'{"a":' * 5000,
        b"[" * 100_000,
        b"x" * 10_000_000,
        b" " * 10_000_000,
    ],
    ids=["empty", "open", "list", "null", "text", "not-utf8", "deep-objects", "deep-lists", "10MB", "10MB-of-blanks"],
)
@pytest.mark.parametrize("path", ["/user/signup/", "/user/login/", "/alerts/create/", "/alerts/delete/"])
def test_bodies(alice: Caller, path: str, body: bytes) -> None:
    assert_refused(alice, path, body)


def test_a_body_in_pieces_is_bounded_too(alice: Caller) -> None:
    """Without a Content-Length only counting helps."""
    pieces = (b" " * 10_000 for _ in range(100))
    answer = alice.post_raw("/alerts/create/", pieces)
    assert answer.status_code == 413


def test_a_password_is_never_echoed(alice: Caller) -> None:
    secret = "hunter2" * 20
    answer = alice.post("/user/signup/", {"username": "dave", "email": "dave@example.com", "password": secret})
    assert answer.status_code == 422
    assert "hunter2" not in answer.text
