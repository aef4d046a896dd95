"""/health/live and /health/ready: what a restart would mend, and where requests can be sent."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import requests

from app.database.embedded import EmbeddedMongo
from app.exposition import serving_metrics
from app.health import check_liveness
from app.main import create_app
from app.metrics import Metrics
from sandbox.exchange import Exchange
from sandbox.mailbox import Mailbox
from tests.conftest import Quiet
from tests.support import Caller, make_settings, serving, wait_until

PROBE_SECONDS = 5.0
"""What Docker's health check and most others wait for an answer."""


def state(url: str) -> tuple[int, dict[str, Any]]:
    answer = requests.get(url, timeout=PROBE_SECONDS)
    return answer.status_code, answer.json()


@contextmanager
def stopped(process: int) -> Iterator[None]:
    """A process that hangs: it keeps its connections and answers none."""
    os.kill(process, signal.SIGSTOP)
    wait_until(lambda: "State:\tT" in Path(f"/proc/{process}/status").read_text())
    try:
        yield
    finally:
        os.kill(process, signal.SIGCONT)


def test_a_healthy_service_is_alive_and_ready(service: str) -> None:
    threads = {"scheduler": "ok", "sender 1": "ok", "sender 2": "ok", "candle thread": "ok"}
    for slash in ("", "/"):
        assert state(f"{service}/health/live{slash}") == (200, {"status": "ok", "threads": threads})
        assert state(f"{service}/health/ready{slash}") == (200, {"status": "ok", "database": "ok"})


def test_while_mongodb_hangs_the_process_is_alive_but_not_ready(tmp_path: Path) -> None:
    """Restarting it would help nobody. Metrics of its own stay there to be seen."""
    metrics = Metrics()
    with EmbeddedMongo(tmp_path) as mongo:
        app = create_app(make_settings(mongo_url=mongo.url), metrics=metrics)
        with serving(app) as url, serving_metrics(metrics, host="127.0.0.1", port=0) as port:
            assert mongo.pid is not None
            with stopped(mongo.pid):
                assert state(f"{url}/health/ready") == (503, {"status": "down", "database": "down"})
                assert state(f"{url}/health/live")[0] == 200
                told = requests.get(f"http://127.0.0.1:{port}/metrics", timeout=9).text
                assert "\ncryptoticker_database_up 0.0\n" in told
                assert "\ncryptoticker_http_request_seconds_count{" in told
            wait_until(lambda: state(f"{url}/health/ready")[0] == 200)


def test_health_is_open_to_all_and_names_nobody(
    service: str, exchange: Exchange, mailbox: Mailbox, caller: Callable[[str], Caller]
) -> None:
    """Mail servers repeat in their refusals whom they refuse; the alert's owner may read it, everybody else not."""
    user = caller(service).sign_up("alice@example.com")
    mailbox.refuse("alice@example.com", "451 4.7.1 <alice@example.com>: later")
    alert = user.create(150_000)
    exchange.market.set_price(1, 160_000.0)
    wait_until(lambda: state(f"{service}/health")[1]["mail"]["error"] == "451 4.7.1 <address>: later")
    assert user.alert(alert["alert_id"])["notification"]["error"] == "451 4.7.1 <alice@example.com>: later"


class StandIn:
    """A thread as the probe sees it."""

    def __init__(self, name: str, *, alive: bool = True, heartbeat_age: float = 0.0) -> None:
        self.name = name
        self.heartbeat_age = heartbeat_age
        self._alive = alive

    def is_alive(self) -> bool:
        return self._alive


@pytest.mark.parametrize(
    ("scheduler", "sender", "wrong"),
    [
        (StandIn("scheduler"), StandIn("sender"), set()),
        (StandIn("scheduler"), StandIn("sender", alive=False), {"sender"}),
        (StandIn("scheduler", alive=False), StandIn("sender"), {"scheduler"}),
        (StandIn("scheduler", heartbeat_age=119.0), StandIn("sender"), set()),
        (StandIn("scheduler", heartbeat_age=121.0), StandIn("sender"), {"scheduler"}),
    ],
)
def test_a_thread_that_died_or_hangs_is_named(scheduler: StandIn, sender: StandIn, wrong: set[str]) -> None:
    told = check_liveness(make_settings(), scheduler, [scheduler, sender])
    assert {name for name, how in told.threads.items() if how == "down"} == wrong
    assert told.status == ("down" if wrong else "ok")


def test_health_is_degraded_without_prices_for_an_hour_or_with_late_candles(quiet: Quiet) -> None:
    """However slow a small plan makes polling, and though Bybit is not what requests need."""
    now = datetime.now(UTC)

    def status(age: timedelta, candle_ages: list[timedelta]) -> str:
        feed = {"last_good_at": now - age, "poll_seconds": 2_556_000.0}
        quiet.database.feeds.update_one({"_id": "coinmarketcap"}, {"$set": feed}, upsert=True)
        quiet.database.watermarks.delete_many({})
        marks = [{"_id": coin, "pair": "XUSDT", "watermark": now - late} for coin, late in enumerate(candle_ages)]
        if marks:
            quiet.database.watermarks.insert_many(marks)
        health = requests.get(f"{quiet.url}/health", timeout=30).json()
        assert health["candles"]["followed"] == len(candle_ages)
        told: str = health["status"]
        return told

    fresh, late = timedelta(minutes=1), timedelta(minutes=11)
    assert status(fresh, []) == "ok"
    assert status(timedelta(minutes=50), [fresh, late]) == "ok"
    assert status(timedelta(minutes=70), [fresh]) == "degraded"
    assert status(fresh, [late, late, fresh]) == "degraded"
