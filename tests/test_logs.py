"""The log: one line an event in both forms, no address and no secret in it, a request's lines under its id."""

import json
import logging
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import requests

from app.config import Settings
from app.logs import JsonLines, TextLines, set_up, without_addresses
from app.main import create_app
from app.routers.bookkeeping import WELL_FORMED
from sandbox.exchange import Exchange
from sandbox.mailbox import Mailbox
from tests.support import PASSWORD, SECRET, Caller, make_settings, running_service, serving, wait_until

ROOT = Path(__file__).parent.parent
KEY = "a-key-for-market-data-of-tests"
UPSTREAM_KEY = "a-key-of-coinmarketcap-of-tests"
MOMENT = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"
LINE = re.compile(rf"{MOMENT} (INFO|WARNING|ERROR|CRITICAL) [\w.]+( \[[\w.+/=:-]+\])?: \S.*")
BTC = 1


class Program:
    """`python -m app` in a process of its own, and what it has logged so far."""

    def __init__(self, url: str, log: Path) -> None:
        self.url = url
        self._log = log

    @property
    def lines(self) -> list[str]:
        return self._log.read_text(encoding="utf-8").splitlines()

    def wait_for(self, text: str) -> str:
        """The first line that holds this."""
        line: str = wait_until(lambda: next((line for line in self.lines if text in line), None))
        return line


Start = Callable[..., Program]


@pytest.fixture
def start(mongo_url: str, database_name: str, exchange: Exchange, mailbox: Mailbox, tmp_path: Path) -> Iterator[Start]:
    """Starts the program against the sandbox; it ends with the test."""
    running: list[subprocess.Popen[bytes]] = []
    exchange.plan.monthly_credits, exchange.plan.minute_requests = 10**9, 10**6  # else polls would be spread out

    def start(**settings: str) -> Program:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = str(probe.getsockname()[1])
        given = {
            **{"JWT_SECRET": SECRET, "BCRYPT_ROUNDS": "4", "CRYPTO_API_KEY": KEY, "POLL_SECONDS": "0.1"},
            **{"MONGO_URL": mongo_url, "MONGO_DB": database_name, "HOST": "127.0.0.1", "PORT": port},
            **{"COINMARKETCAP_URL": exchange.url, "BYBIT_URL": exchange.url, "COINMARKETCAP_API_KEY": UPSTREAM_KEY},
            **{"SMTP_HOST": mailbox.host, "SMTP_PORT": str(mailbox.port), "SMTP_SECURITY": "none"},
            **{"MAIL_FROM": "alerts@cryptoticker.example.com", **settings},
        }
        log = tmp_path / f"{port}.log"
        command = [sys.executable, "-m", "app"]
        with log.open("wb") as out:
            process = subprocess.Popen(command, cwd=ROOT, env=os.environ | given, stdout=out, stderr=out)
        running.append(process)
        program = Program(f"http://127.0.0.1:{port}", log)
        program.wait_for("Application startup complete")
        return program

    yield start
    for process in running:
        process.terminate()
        process.wait(30)


def use_everything(program: Program, exchange: Exchange, mailbox: Mailbox) -> list[str]:
    """What users do, and what can go wrong with their mails; returns what must not be in the log."""
    caller = Caller(program.url).sign_up("alice.in.wonderland@example.com")
    exchange.market.set_price(BTC, 100_000.0)
    caller.post("/user/login/", {"email": caller.email, "password": "wrong one"})
    caller.post("/user/signup/", {"username": "again", "email": caller.email, "password": PASSWORD})
    caller.post("/user/login/", {"email": caller.email, "password": PASSWORD})
    caller.get("/alerts/fetch/", email=caller.email)
    caller.get("/alerts/fetch/", email="somebody.else@example.com")
    caller.get(f"/nowhere/{caller.email}")
    for key in (KEY, f"{KEY}-not"):
        requests.get(f"{program.url}/api/market/aggregated_data", headers={"X-API-Key": key}, timeout=30)
    words = f"<{caller.email}>: is not who she was"
    refusals = {f"450 4.2.1 {words}": "mail not taken", f"550 5.1.1 {words}": "mail refused", "": "mail accepted"}
    for target, (reply, said) in enumerate(refusals.items(), start=200_000):
        if reply:
            mailbox.refuse(caller.email, reply, times=1)
        alert = caller.create(target)
        exchange.market.set_price(BTC, target + 0.5)
        program.wait_for(f"alert {alert['alert_id']}: {said}")
    caller.close()
    return [
        caller.email,
        "somebody.else@",
        caller.token or "no token",
        PASSWORD,
        "wrong one",
        KEY,
        UPSTREAM_KEY,
        SECRET,
    ]


def test_the_log_holds_lines_and_nobodys_data(start: Start, exchange: Exchange, mailbox: Mailbox) -> None:
    """The whole way from sign-up to mails that are refused with words that repeat the address."""
    program = start(ACCESS_LOG="yes")
    secrets = use_everything(program, exchange, mailbox)
    text = "\n".join(program.lines)
    assert [secret for secret in secrets if secret in text] == []
    assert "<address>: is not who she was" in text
    assert [line for line in program.lines if not LINE.fullmatch(line)] == []
    assert re.search(r" INFO app\.access \[[\w.-]+\]: GET /alerts/fetch: 403 in [\d.]+ ms", text)
    assert re.search(r" INFO app\.access \[[\w.-]+\]: GET \(unmatched\): 404 in [\d.]+ ms", text)
    assert re.search(r" INFO app\.access \[[\w.-]+\]: GET /api/market/aggregated_data: 401 in", text)


def test_each_json_line_is_one_whole_event(start: Start, exchange: Exchange, mailbox: Mailbox) -> None:
    program = start(LOG_FORMAT="json")
    secrets = use_everything(program, exchange, mailbox)
    events = [json.loads(line) for line in program.lines]
    assert {"time", "level", "logger", "message"} <= set.intersection(*(set(event) for event in events))
    assert all(re.fullmatch(MOMENT, event["time"]) for event in events)
    assert [secret for secret in secrets if secret in "\n".join(program.lines)] == []
    assert "app.access" not in {event["logger"] for event in events}


def test_a_request_keeps_its_own_id_or_gets_one(service: str) -> None:
    def asked(identifier: str | None, path: str = "/nowhere") -> str:
        headers = {} if identifier is None else {"X-Request-ID": identifier}
        return requests.get(service + path, headers=headers, timeout=30).headers["X-Request-ID"]

    assert asked("proxy-1234:abc/def+g=") == "proxy-1234:abc/def+g="
    assert asked("x" * 128, "/health") == "x" * 128
    made = [asked(given) for given in (None, None, "", "x" * 129, "two words", "<b>", "alice@example.com", "é")]
    assert len(set(made)) == len(made)
    assert all(WELL_FORMED.fullmatch(identifier.encode()) for identifier in made)


def test_the_market_snapshots_fast_path_echoes_ids(settings: Settings, exchange: Exchange) -> None:
    """It makes none of its own, unless there is an access log to find it in."""
    with running_service(replace(settings, bybit_url=exchange.url, crypto_api_key=KEY)) as url:
        path = f"{url}/api/market/aggregated_data"
        headers = {"X-API-Key": KEY, "X-Request-ID": "mine"}
        wait_until(lambda: requests.get(path, headers=headers, timeout=30).status_code == 200)
        assert requests.get(path, headers=headers, timeout=30).headers["X-Request-ID"] == "mine"
        assert "X-Request-ID" not in requests.get(path, headers={"X-API-Key": KEY}, timeout=30).headers


def test_an_error_nobody_expected_is_one_event_under_the_id_that_the_caller_gets(
    mongo_url: str, database_name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """The answer has the one shape of all errors, and says nothing of the error itself."""

    async def broken() -> None:
        raise RuntimeError("alice@example.com\nhas broken it")

    settings = make_settings(mongo_url=mongo_url, mongo_db=database_name, log_format="json")
    app = create_app(settings)
    app.add_api_route("/broken", broken)
    with logging_to_stdout(settings), serving(app) as url:
        answer = requests.get(f"{url}/broken", timeout=30)
        assert answer.status_code == 500
        assert answer.json()["detail"].endswith(f"under the request id {answer.headers['X-Request-ID']}.")
        assert "alice" not in answer.text
    events = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    [event] = [event for event in events if event["level"] == "ERROR"]
    assert event["request_id"] == answer.headers["X-Request-ID"]
    assert event["exc_info"].startswith("Traceback (most recent call last):")
    assert event["exc_info"].endswith("RuntimeError: <address>\nhas broken it")


@contextmanager
def logging_to_stdout(settings: Settings) -> Iterator[None]:
    """What `set_up` does, undone in the end."""
    root = logging.getLogger()
    kept, level = root.handlers[:], root.level
    root.handlers.clear()
    set_up(settings)
    try:
        yield
    finally:
        root.handlers[:] = kept
        root.setLevel(level)


def record(message: str, *arguments: object) -> logging.LogRecord:
    return logging.LogRecord("app.test", logging.INFO, __file__, 1, message, arguments, None)


def test_what_a_message_quotes_begins_no_line_of_its_own() -> None:
    line = TextLines().format(
        record("upstream said: %s", "fine\n2026-01-01T00:00:00.000Z INFO forged: \x1b[31mline\u2028")
    )
    assert line.isprintable()
    assert line.endswith(r"fine\n2026-01-01T00:00:00.000Z INFO forged: \x1b[31mline")
    event = JsonLines().format(record("upstream said: %s", "fine\nforged"))
    assert json.loads(event)["message"] == "upstream said: fine\nforged"
    assert "\n" not in event


@pytest.mark.parametrize(
    "address",
    ["alice@example.com", "a.b+c@sub.example.co.uk", "ålice@exämple.com", "x@xn--exmple-cua.com", "o'hara@example.com"],
)
def test_an_address_is_left_out_wherever_it_stands(address: str) -> None:
    for text in ("{}", "<{}>: no such user", "to {}, and {}", '{{"email": "{}"}}', "RCPT TO:<{}>", "{}.", "\n{}\n"):
        assert "example" not in without_addresses(text.format(address, address))
        assert "exämple" not in without_addresses(text.format(address, address))
    assert json.loads(JsonLines().format(record("\n%s", address)))["message"].endswith("<address>")


def test_what_is_no_address_stays() -> None:
    text = "mongodb://host:27017/?a=b, 3@2, @here, user@localhost, at 10:30"
    assert without_addresses(text) == text


def test_looking_for_addresses_in_a_long_line_takes_no_time() -> None:
    """Its cost grows with the line's length, not with the square of it."""
    assert without_addresses("@" + "a" * 2_000_000) == "@" + "a" * 2_000_000
    assert without_addresses("a@" * 1_000_000) == "a@" * 1_000_000
