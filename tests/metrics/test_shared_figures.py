"""The figures that all copies share: cheap to read, and never read too often."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from bson import ObjectId
from pymongo.errors import AutoReconnect

from app.clock import Clock
from app.database import alerts
from app.database.client import SyncDB
from app.database.figures import Figures, read_figures
from app.exposition import LONGEST_REST_SECONDS, SHORTEST_REST_SECONDS, SharedFigures
from app.market.coinmarketcap import SOURCE
from tests.metrics.support import Beat, values
from tests.support import ManualClock

BTC = 1


def test_the_figures_of_mails_and_alerts_are_read_off_indexes(database: SyncDB, clock: ManualClock) -> None:
    """However many alerts there are, no document is looked at."""
    live = [armed_alert(clock, target) for target in range(1, 101)]
    owed = {"state": "pending", "attempts": 0, "due_at": clock.now(), "sent_at": None, "error": None}
    fired = {"status": "triggered", "fired_at": clock.now(), "notification": owed}
    database.alerts.insert_many(live + [armed_alert(clock, target) | fired for target in (5, 6)])
    database.client.admin.command("profile", -1)
    database.command("profile", 2)
    figures = read_figures(database, source=SOURCE)
    database.command("profile", 0)
    assert figures == Figures(100, 2, clock.now())
    readings = database["system.profile"].find({"command.aggregate": "alerts"})
    assert [reading["docsExamined"] for reading in readings] == [0, 0]


def armed_alert(clock: Clock, target: float) -> dict[str, object]:
    coin = {"_id": BTC, "symbol": "BTC"}
    return alerts.new_alert(
        user_id=ObjectId(), email="a@example.com", coin=coin, target=target, direction="above", touch=True,
        current_price=1.0, now=clock.now(),
    )  # fmt: skip


def test_many_scrapes_at_once_are_one_reading_and_an_outage_is_looked_at_again_soon(
    clock: ManualClock,
) -> None:
    readings: list[Figures | None] = []
    answers: Iterator[Figures | None] = iter([Figures(7, 0), None, Figures(8, 0)])

    def read() -> Figures:
        readings.append(next(answers))
        if readings[-1] is None:
            raise AutoReconnect("gone")
        return readings[-1]

    shared = SharedFigures(read, clock=clock, scheduler=Beat())
    with ThreadPoolExecutor(8) as pool:
        told = list(pool.map(lambda _: values(shared), range(50)))
    assert len(readings) == 1
    assert all(each["cryptoticker_alerts_armed"] == 7 for each in told)
    clock.advance(SHORTEST_REST_SECONDS)
    assert values(shared)["cryptoticker_database_up"] == 0
    assert "cryptoticker_alerts_armed" not in values(shared)
    clock.advance(SHORTEST_REST_SECONDS)
    assert values(shared)["cryptoticker_alerts_armed"] == 8
    assert values(shared)["cryptoticker_scheduler_heartbeat_age_seconds"] == 0.5
    shared.close()


def test_a_reading_that_hangs_is_not_begun_again_by_each_scrape(clock: ManualClock) -> None:
    readings: list[float] = []
    begun, hold = threading.Event(), threading.Event()

    def read() -> Figures:
        readings.append(clock.monotonic())
        begun.set()
        hold.wait(20)
        return Figures(7, 0)

    shared = SharedFigures(read, clock=clock, scheduler=Beat())
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(values, shared)
        begun.wait(20)
        clock.advance(LONGEST_REST_SECONDS)
        second = pool.submit(values, shared)
        with pytest.raises(TimeoutError):
            second.result(0.2)
        hold.set()
        assert first.result(20) == second.result(20)
    assert len(readings) == 1
    shared.close()


def test_what_takes_long_to_count_is_counted_seldom(clock: ManualClock) -> None:
    """At most a hundredth of the time goes to it."""
    readings: list[float] = []

    def read() -> Figures:
        readings.append(clock.monotonic())
        clock.advance(0.2)
        return Figures(1_000_000, 0)

    shared = SharedFigures(read, clock=clock, scheduler=Beat())
    for _ in range(100):
        values(shared)
        clock.advance(1)
    shared.close()
    assert len(readings) == 5
