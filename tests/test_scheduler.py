"""The background threads: they don't die, don't overlap, don't wait for a stepped clock, and stop (invariant 7)."""

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from threading import Event
from typing import Any

import pymongo
import pytest
from bson import ObjectId
from pymongo.errors import AutoReconnect, PyMongoError

from app.clock import Clock
from app.database import alerts, notifications
from app.database.client import SyncDB
from app.job_scheduler import SchedulerThread
from app.market.coinmarketcap import CoinMarketCap
from sandbox.exchange import Exchange
from sandbox.faults import Fault
from sandbox.mailbox import Mailbox
from tests.support import Caller, ManualClock, failing, make_settings, make_ticker, running_service, wait_until

QUOTES = "/quotes/latest"


class Polls:
    """Stands where the Ticker stands, and notes what happens."""

    def __init__(self) -> None:
        self.began = 0
        self.running = 0
        self.overlapped = False
        self.raises: list[Exception] = []
        self.hold = Event()
        self.hold.set()

    def poll(self) -> int:
        self.began += 1
        self.running += 1
        self.overlapped |= self.running > 1
        self.hold.wait()
        self.running -= 1
        if self.raises:
            raise self.raises.pop()
        return 1

    def retire(self) -> None:
        pass

    def mend_times(self) -> None:
        pass


@contextmanager
def scheduler(polls: Any, poll_seconds: float = 0.01) -> Iterator[tuple[SchedulerThread, list[int]]]:
    fired: list[int] = []
    thread = SchedulerThread(ticker=polls, poll_seconds=poll_seconds, on_fired=lambda: fired.append(1))
    thread.start()
    try:
        yield thread, fired
    finally:
        polls.hold.set()
        thread.stop()
    assert not thread.is_alive()


def test_the_first_job_runs_at_start_and_firing_wakes_the_sender() -> None:
    polls = Polls()
    with scheduler(polls, poll_seconds=3600) as (thread, fired):
        assert thread.first_run_done.wait(10)
        assert (polls.began, fired) == (1, [1])


def test_whatever_a_job_raises_the_thread_lives(caplog: pytest.LogCaptureFixture) -> None:
    polls = Polls()
    polls.raises = [ValueError("a bug"), AutoReconnect("away"), OSError("no"), KeyError("x"), RecursionError()]
    with scheduler(polls) as (thread, _):
        wait_until(lambda: polls.began >= 8)
        assert thread.is_alive()
    assert caplog.text.count("the job failed") == 4
    assert caplog.text.count("Traceback") == 4
    assert "MongoDB is away (AutoReconnect): prices wait" in caplog.text


def test_jobs_never_overlap() -> None:
    polls = Polls()
    polls.hold.clear()
    with scheduler(polls) as (thread, _):
        wait_until(lambda: polls.began == 1)
        assert not thread.first_run_done.wait(0.2)
        assert polls.began == 1
        polls.hold.set()
        wait_until(lambda: polls.began > 3)
    assert not polls.overlapped


def test_a_wall_clock_set_back_does_not_silence_the_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    """`schedule` reads the local wall clock: one set back by hours would put the next poll hours away."""
    polls = Polls()
    with scheduler(polls, poll_seconds=0.2):
        wait_until(lambda: polls.began >= 2)
        # Set this process's time zone back by three hours: for naive local time that is the same as setting the clock.
        monkeypatch.setenv("TZ", "UTC+3")
        time.tzset()
        before = polls.began
        wait_until(lambda: polls.began >= before + 3)
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
def exchange() -> Iterator[Exchange]:
    with Exchange() as running:
        yield running


def test_a_stop_does_not_wait_for_an_upstream_that_hangs(
    mongo_url: str, database_name: str, exchange: Exchange, caplog: pytest.LogCaptureFixture
) -> None:
    exchange.faults.add("/cryptocurrency/", Fault.hang(60))
    settings = make_settings(mongo_url=mongo_url, mongo_db=database_name, coinmarketcap_url=exchange.url)
    with running_service(settings):
        wait_until(lambda: exchange.asked("/cryptocurrency/"))
    assert "the scheduler is still waiting for an answer" in caplog.text


def test_requests_do_not_wait_for_an_upstream_or_a_mail_server_that_hangs(
    service: str, exchange: Exchange, mailbox: Mailbox, caller: Callable[[str], Caller]
) -> None:
    """Invariant 7: everything that a user does goes on, and /health still says what works."""
    user = caller(service).sign_up("alice@example.com")
    user.create(1_000_000)
    exchange.faults.add("/cryptocurrency/", Fault.hang(60))
    mailbox.stall("CONNECT", seconds=60, times=None)
    before = len(exchange.asked(QUOTES))
    wait_until(lambda: len(exchange.asked(QUOTES)) > before)
    alert = user.create(2_000_000)
    assert user.post("/alerts/delete/", {"alert_id": alert["alert_id"]}).status_code == 200
    assert user.get("/health").json()["database"] == "ok"
    exchange.faults.clear()
    mailbox.behave()


def test_what_was_seen_while_mongodb_was_away_still_fires(
    exchange: Exchange, database: SyncDB, clock: ManualClock
) -> None:
    """A price that rose and fell again during the outage is evaluated, oldest first, once MongoDB is back."""
    exchange.market.now = clock.now
    settings = make_settings(poll_seconds=20.0)
    with closing(CoinMarketCap(base_url=exchange.url, api_key="", clock=clock)) as client:
        ticker = make_ticker(settings, database, client, clock)
        ticker.poll()
        alert = alerts.new_alert(
            user_id=ObjectId(), email="a@example.com", coin={"_id": 1, "symbol": "BTC"}, target=150_000.0,
            direction="above", touch=True, current_price=100_000.0, now=clock.now(),
        )  # fmt: skip
        database.alerts.insert_one(alert)
        touched_at = clock.now() + timedelta(seconds=40)
        with failing(database, "find", "distinct", "update"):
            for price in (120_000.0, 160_000.0, 110_000.0):
                clock.advance(20)
                exchange.market.set_price(1, price)
                with pymongo.timeout(0.3), pytest.raises(PyMongoError):
                    ticker.poll()
        clock.advance(20)
        assert ticker.poll() == 1

    fired = database.alerts.find_one({"_id": alert["_id"]})
    assert fired is not None
    assert (fired["triggered_price"], fired["triggered_at"]) == (160_000.0, touched_at)
    assert fired["fired_at"] == clock.now()


def test_requests_get_a_503_while_mongodb_is_away(
    service: str, database: SyncDB, caller: Callable[[str], Caller]
) -> None:
    user = caller(service).sign_up("alice@example.com")
    admin = database.client.admin
    broken = {"failCommands": ["find", "insert", "aggregate"], "errorCode": 11602, "appName": "cryptoticker-web"}
    admin.command({"configureFailPoint": "failCommand", "mode": "alwaysOn", "data": broken})
    try:
        refused = user.get("/alerts/fetch/")
        health = user.get("/health")
    finally:
        admin.command({"configureFailPoint": "failCommand", "mode": "off"})
    assert refused.status_code == 503
    assert int(refused.headers["Retry-After"]) > 0
    assert "database" in refused.json()["detail"]
    assert (health.status_code, health.json()["status"], health.json()["database"]) == (503, "down", "down")
    assert user.get("/alerts/fetch/").status_code == 200
    assert user.get("/health").json()["status"] == "ok"


def test_health_says_what_is_old(
    service: str, exchange: Exchange, mailbox: Mailbox, caller: Callable[[str], Caller]
) -> None:
    user = caller(service).sign_up("alice@example.com")
    healthy = user.get("/health")
    assert (healthy.status_code, healthy.json()["status"]) == (200, "ok")
    assert healthy.json()["mail"] == {"transport": "smtp", "queue_length": 0, "oldest_age_seconds": None, "error": None}
    assert healthy.json()["prices"]["last_good_age_seconds"] < 60

    mailbox.refuse("alice@example.com", "451 4.7.1 later")
    user.create(150_000)
    exchange.market.set_price(1, 160_000.0)
    wait_until(lambda: user.get("/health").json()["mail"]["error"] == "451 4.7.1 later")
    assert user.get("/health").json()["mail"]["queue_length"] == 1
    exchange.faults.add(QUOTES, Fault.html(502))
    wait_until(lambda: "502" in (user.get("/health").json()["prices"]["last_error"] or ""))
    assert user.get("/health").status_code == 200


def test_the_clock_is_utc_in_whole_milliseconds() -> None:
    now = Clock().now()
    assert now.utcoffset() == timedelta(0)
    assert now.microsecond % 1000 == 0


def test_what_was_written_by_a_clock_that_was_ahead_is_mended(
    exchange: Exchange, database: SyncDB, clock: ManualClock
) -> None:
    """An alert made, and a mail owed, a year in the future: after the clock is right they fire and go out today."""
    with closing(CoinMarketCap(base_url=exchange.url, api_key="", clock=clock)) as client:
        ticker = make_ticker(make_settings(), database, client, clock)
        clock.step(365 * 86_400)
        ticker.poll()
        alert = alerts.new_alert(
            user_id=ObjectId(), email="a@example.com", coin={"_id": 1, "symbol": "BTC"}, target=150_000.0,
            direction="above", touch=True, current_price=100_000.0, now=clock.now(),
        )  # fmt: skip
        database.alerts.insert_one(alert)
        owed = {
            "notification": {"state": "pending", "due_at": clock.now()},
            "status": "triggered",
            "user_id": ObjectId(),
        }
        database.alerts.insert_one(owed)
        database.watermarks.insert_one({"_id": 1, "watermark": clock.now()})
        clock.step(-365 * 86_400)

        other_copy = make_ticker(make_settings(), database, client, clock)
        other_copy.mend_times()
        exchange.market.now = clock.now
        exchange.market.set_price(1, 160_000.0)
        clock.advance(1)
        assert other_copy.poll() == 1
    claimed = notifications.claim_due(database, now=clock.now(), lease=timedelta(minutes=1), limit=10)
    assert len(claimed) == 2
    mark = database.watermarks.find_one({"_id": 1})
    assert mark is not None
    assert mark["watermark"] <= clock.now()


def test_a_price_frozen_by_a_clock_that_was_set_back_moves_again(
    exchange: Exchange, database: SyncDB, clock: ManualClock
) -> None:
    exchange.market.now = clock.now
    with closing(CoinMarketCap(base_url=exchange.url, api_key="", clock=clock)) as client:
        ticker = make_ticker(make_settings(), database, client, clock)
        ticker.poll()
        clock.step(-3600)
        exchange.market.set_price(1, 123_456.0)
        ticker.poll()
    coin = database.coins.find_one({"_id": 1})
    assert coin is not None
    assert (coin["price"], coin["price_seen_at"]) == (123_456.0, clock.now())


def test_a_clock_that_is_behind_mends_nothing(exchange: Exchange, database: SyncDB, clock: ManualClock) -> None:
    """Invariant 4: to it everything seems to lie in the future; CoinMarketCap's time says who is wrong."""
    exchange.market.now = lambda: clock.now() + timedelta(minutes=50)
    with closing(CoinMarketCap(base_url=exchange.url, api_key="", clock=clock)) as client:
        ticker = make_ticker(make_settings(), database, client, clock)
        created = clock.now() + timedelta(minutes=40)
        database.alerts.insert_one({"_id": 1, "status": "created", "coin_id": 1, "created_at": created})
        ticker.mend_times()
        for _ in range(3):
            ticker.poll()
            clock.advance(1)
        assert database.alerts.distinct("created_at") == [created]
        clock.step(50 * 60)
        exchange.market.now = clock.now
        ticker.poll()
        ticker.poll()
    assert database.alerts.distinct("created_at") == [created]
