"""What tests share: a clock that stands still, a running service, a caller, and waiting on a condition."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import requests
import uvicorn
from fastapi import FastAPI

from app.alerting.candles_first import CandlesFirst
from app.clock import Clock, floor_to_ms
from app.config import Settings
from app.database.client import SyncDB
from app.main import create_app
from app.market.coinmarketcap import CoinMarketCap
from app.market.credits import Credits
from app.market.meter import Meter
from app.ticker import Ticker
from sandbox.mailbox import Mail

SECRET = "a-secret-of-tests-that-is-long-enough"
PASSWORD = "correct horse"
DOCKER_SETTINGS = ("COMPOSE_PROFILES", "MONGO_PASSWORD")
"""Those of .env that docker-compose.yml reads and the service doesn't."""
PATIENCE_SECONDS = 60.0
"""How long a test waits for something that must happen: only ever reached by a test that fails."""


class ManualClock(Clock):
    """A clock that moves when told to."""

    def __init__(self, now: datetime = datetime(2026, 3, 1, 12, tzinfo=UTC)) -> None:
        self._now = now
        self._monotonic = 1000.0

    def now(self) -> datetime:
        return floor_to_ms(self._now)

    def monotonic(self) -> float:
        return self._monotonic

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self._now += timedelta(seconds=seconds)
        self._monotonic += seconds

    def step(self, seconds: float) -> None:
        """Set the wall clock, as an administrator or NTP does: the monotonic one does not follow."""
        self._now += timedelta(seconds=seconds)


def make_settings(**changes: Any) -> Settings:
    """Settings for tests: quick hashing, quick polls, nothing that reaches outside."""
    defaults: dict[str, Any] = {
        "jwt_secret": SECRET,
        "bcrypt_rounds": 4,
        "poll_seconds": 0.1,
        "coinmarketcap_url": "http://127.0.0.1:9",
        "bybit_url": "http://127.0.0.1:9",
        "smtp_security": "none",
        "mail_from": "alerts@cryptoticker.example.com",
        "host": "127.0.0.1",
    }
    return Settings(**defaults | changes)


def wait_until(condition: Callable[[], Any], timeout: float = PATIENCE_SECONDS) -> Any:
    """Return the first true value of `condition`; fails the test if none comes."""
    deadline = time.monotonic() + timeout
    pause = threading.Event()
    while time.monotonic() < deadline:
        if value := condition():
            return value
        pause.wait(0.01)
    raise AssertionError(f"this never came true: {condition}")


@contextmanager
def failing(database: SyncDB, *commands: str) -> Iterator[None]:
    """MongoDB drops the connection of every such command."""
    admin = database.client.admin
    admin.command(
        {
            "configureFailPoint": "failCommand",
            "mode": "alwaysOn",
            "data": {"failCommands": list(commands), "closeConnection": True, "appName": "cryptoticker-worker"},
        }
    )
    try:
        yield
    finally:
        admin.command({"configureFailPoint": "failCommand", "mode": "off"})


def plain_text(mail: Mail) -> str:
    """The plain-text part of a mail."""
    part = next(part for part in mail.message.walk() if part.get_content_type() == "text/plain")
    content = part.get_payload(decode=True)
    assert isinstance(content, bytes)
    return content.decode()


@contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """Serve an application on a free port, in a thread; yields its base URL."""
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None, access_log=False, backlog=4096)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, name="service under test")
    thread.start()
    try:
        wait_until(lambda: server.started or not thread.is_alive())
        assert server.started, "the service did not start"
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def make_ticker(settings: Settings, database: SyncDB, client: CoinMarketCap, clock: Clock) -> Ticker:
    """A ticker whose polls wait for no thread of candles but its own holes."""
    candles_first = CandlesFirst(database=database, clock=clock)
    return Ticker(
        settings=settings,
        database=database,
        client=client,
        credits_of_key=Credits(clock=clock, meter=Meter("coinmarketcap", clock)),
        clock=clock,
        candles_first=candles_first,
    )


def running_service(settings: Settings, clock: Clock | None = None) -> AbstractContextManager[str]:
    """The whole service."""
    return serving(create_app(settings, clock))


class Caller:
    """Somebody who talks to the service over HTTP, with or without a token."""

    def __init__(self, base_url: str, token: str | None = None) -> None:
        self.base_url = base_url
        self.email = ""
        self.token = token
        self._session = requests.Session()

    def close(self) -> None:
        self._session.close()

    def get(self, path: str, **params: Any) -> requests.Response:
        return self._session.get(self.base_url + path, params=params, headers=self._headers(), timeout=30)

    def post(self, path: str, body: Any) -> requests.Response:
        return self._session.post(self.base_url + path, json=body, headers=self._headers(), timeout=30)

    def post_raw(self, path: str, body: bytes | Iterable[bytes]) -> requests.Response:
        headers = self._headers() | {"Content-Type": "application/json"}
        return self._session.post(self.base_url + path, data=body, headers=headers, timeout=30)

    def sign_up(self, email: str, password: str = PASSWORD) -> "Caller":
        answer = self.post("/user/signup/", {"username": "somebody", "email": email, "password": password})
        assert answer.status_code == 201, answer.text
        self.email = email
        self.token = answer.json()["access_token"]
        return self

    def create(self, target: float, **wishes: Any) -> dict[str, Any]:
        answer = self.post("/alerts/create/", {"targetPrice": target, **wishes})
        assert answer.status_code == 201, answer.text
        alert: dict[str, Any] = answer.json()
        return alert

    def alerts(self, **params: Any) -> list[dict[str, Any]]:
        answer = self.get("/alerts/fetch/", **params)
        assert answer.status_code == 200, answer.text
        alerts: list[dict[str, Any]] = answer.json()
        return alerts

    def alert(self, alert_id: str) -> dict[str, Any]:
        return next(alert for alert in self.alerts(per_page=200) if alert["alert_id"] == alert_id)

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}
