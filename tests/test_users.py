"""Sign-up, login and tokens."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import pytest

from tests.conftest import Quiet
from tests.support import PASSWORD, SECRET, Caller, wait_until

SIGN_UP = {"username": "carol", "email": "Carol@Example.com", "password": PASSWORD}


@pytest.fixture
def stranger(quiet: Quiet, caller: Callable[[str], Caller]) -> Caller:
    return caller(quiet.url)


def test_sign_up_gives_a_token_that_works(stranger: Caller) -> None:
    answer = stranger.post("/user/signup/", SIGN_UP | {"alerts": []})
    assert answer.status_code == 201
    body = answer.json()
    assert (body["token_type"], body["expires_in"]) == ("bearer", 900)
    stranger.token = body["access_token"]
    assert stranger.alerts() == []


def test_an_address_is_unique_without_regard_to_case(stranger: Caller) -> None:
    assert stranger.post("/user/signup/", SIGN_UP).status_code == 201
    twin = stranger.post("/user/signup/", SIGN_UP | {"email": "cAROL@eXAMPLE.cOM"})
    assert twin.status_code == 409
    assert "already" in twin.json()["detail"]


def test_of_simultaneous_sign_ups_exactly_one_wins(stranger: Caller, quiet: Quiet) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: stranger.post("/user/signup/", SIGN_UP).status_code, range(8)))
    assert sorted(answers) == [201] + [409] * 7
    assert quiet.database.users.count_documents({}) == 1


@pytest.mark.parametrize(
    ("email", "password"),
    [
        ("carol@example.com", "wrong horse"),
        ("nobody@example.com", PASSWORD),
        ("not an address", PASSWORD),
        ("carol@example.com", PASSWORD + "x" * 100),
        ("carol@example.com", PASSWORD + "\0"),
        ("carol@example.com", ""),
    ],
)
def test_whatever_is_wrong_with_a_login_the_answer_is_the_same_401(stranger: Caller, email: str, password: str) -> None:
    stranger.post("/user/signup/", SIGN_UP)
    answer = stranger.post("/user/login/", {"email": email, "password": password})
    assert answer.status_code == 401
    assert answer.json() == {"detail": "The email address or the password is wrong."}


def test_login_takes_the_address_in_any_case(stranger: Caller) -> None:
    stranger.post("/user/signup/", SIGN_UP)
    answer = stranger.post("/user/login/", {"email": "CAROL@example.COM", "password": PASSWORD})
    assert answer.status_code == 200
    assert answer.json().keys() == {"access_token", "token_type", "expires_in"}


@pytest.mark.parametrize("address", ["bob@b\u00fccher.example.com", "x@stra\u00dfe.example.com", "e\u0301@example.com"])
def test_an_address_typed_as_at_sign_up_logs_in(stranger: Caller, address: str) -> None:
    assert stranger.post("/user/signup/", SIGN_UP | {"email": address}).status_code == 201
    assert stranger.post("/user/signup/", SIGN_UP | {"email": address}).status_code == 409
    answer = stranger.post("/user/login/", {"email": address, "password": PASSWORD})
    assert answer.status_code == 200
    stranger.token = answer.json()["access_token"]
    assert stranger.get("/alerts/fetch/", email=address).status_code == 200


@pytest.mark.parametrize(
    ("password", "status"),
    [
        ("short12", 422),
        ("x" * 8, 201),
        ("x" * 72, 201),
        ("x" * 73, 422),
        ("€" * 24, 201),
        ("€" * 25, 422),
        ("a\0bcdefgh", 422),
    ],
)
def test_passwords_have_8_to_72_bytes_and_are_never_cut(stranger: Caller, password: str, status: int) -> None:
    assert stranger.post("/user/signup/", SIGN_UP | {"password": password}).status_code == status


def test_passwords_are_stored_as_bcrypt_hashes_only(stranger: Caller, quiet: Quiet) -> None:
    stranger.post("/user/signup/", SIGN_UP)
    user = quiet.database.users.find_one({"email_key": "carol@example.com"})
    assert user is not None
    assert user["password_hash"].startswith(b"$2b$04$")
    assert PASSWORD not in str(user)


def claims(**changes: Any) -> dict[str, Any]:
    now = datetime.now(UTC)
    whole = {
        "sub": "6740c0ffee0ddba11ca7f00d",
        "email": "carol@example.com",
        "iat": now,
        "exp": now + timedelta(minutes=5),
    }
    return {name: value for name, value in (whole | changes).items() if value is not None}


@pytest.mark.parametrize(
    "token",
    [
        pytest.param(jwt.encode(claims(exp=datetime(2020, 1, 1, tzinfo=UTC)), SECRET, "HS256"), id="expired"),
        pytest.param(jwt.encode(claims(), "", "none"), id="unsigned"),
        pytest.param(jwt.encode(claims(), "another-secret-that-is-long-enough-too", "HS256"), id="other-key"),
        pytest.param(jwt.encode(claims(), SECRET * 2, "HS512"), id="other-algorithm"),
        pytest.param(jwt.encode(claims(exp=None), SECRET, "HS256"), id="no-exp"),
        pytest.param(jwt.encode(claims(sub=None), SECRET, "HS256"), id="no-sub"),
        pytest.param(jwt.encode(claims(iat=None), SECRET, "HS256"), id="no-iat"),
        pytest.param(jwt.encode(claims(sub="not-an-id"), SECRET, "HS256"), id="odd-sub"),
        pytest.param(jwt.encode(claims(email=None), SECRET, "HS256"), id="no-email"),
        pytest.param("a.b.c", id="nonsense"),
        pytest.param(None, id="none"),
    ],
)
def test_a_token_that_does_not_hold_is_a_401(stranger: Caller, token: str | None) -> None:
    stranger.token = token
    answer = stranger.get("/alerts/fetch/")
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert stranger.post("/alerts/create/", {"targetPrice": 5}).status_code == 401
    assert stranger.post("/alerts/delete/", {"alert_id": "x"}).status_code == 401


def test_a_token_that_holds_is_let_in(stranger: Caller) -> None:
    """The control of the test above: the same claims, signed properly."""
    stranger.token = jwt.encode(claims(), SECRET, "HS256")
    assert stranger.get("/alerts/fetch/").status_code == 200


def test_a_token_that_held_is_a_401_once_it_has_expired(stranger: Caller) -> None:
    """Verified tokens are remembered: not for longer than they hold."""
    soon = datetime.now(UTC) + timedelta(seconds=2)
    stranger.token = jwt.encode(claims(exp=soon), SECRET, "HS256")
    assert stranger.get("/alerts/fetch/").status_code == 200
    wait_until(lambda: stranger.get("/alerts/fetch/").status_code == 401)
    assert datetime.now(UTC) >= soon.replace(microsecond=0)
    assert "expired" in stranger.get("/alerts/fetch/").json()["detail"]
