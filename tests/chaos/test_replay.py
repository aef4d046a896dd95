"""Hours of one-minute history in seconds, with outages of everything; then compared with the path alone."""

import random
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import pymongo
import pytest
from bson import ObjectId
from pymongo.errors import PyMongoError

from app.alerting.candles_first import FAILURE_COUNTS_SECONDS
from app.database import alerts
from app.database.client import Document, SyncDB
from app.spans import MINUTE, SETTLING
from sandbox.candles import Candle
from sandbox.exchange import Exchange
from sandbox.faults import Fault
from tests.chaos.conftest import Chaos
from tests.chaos.oracle import Path, reaches
from tests.support import ManualClock, failing
from tests.watch import Watch

COINS = {1: 100_000.0, 1027: 4_000.0, 52: 2.5, 74: 0.25}
TICK = timedelta(seconds=20)
AFTER_OUTAGE = timedelta(seconds=FAILURE_COUNTS_SECONDS)
"""For so long after Bybit failed, a poll may be quicker than the candles of what it missed."""
COMMANDS = ("find", "distinct", "update", "aggregate", "insert", "delete")
QUIET, WILD = 0.0008, 0.004


@pytest.fixture
def exchange(clock: ManualClock) -> Iterator[Exchange]:
    with Exchange(now=clock.now) as running:
        yield running


@dataclass
class Diary:
    """What really happened: polls that must have been evaluated, and when Bybit was away."""

    polls: list[datetime] = field(default_factory=list)
    bybit_away: list[datetime] = field(default_factory=list)

    def bybit_was_away(self, around: datetime) -> bool:
        return any(abs(moment - around) <= AFTER_OUTAGE + TICK for moment in self.bybit_away)


@pytest.mark.parametrize("run", range(3))
def test_every_touch_is_noticed_once_whatever_was_out(
    chaos: Chaos, exchange: Exchange, database: SyncDB, clock: ManualClock, run: int
) -> None:
    """Invariants 1, 4, 5 and 6: the fired set is the path's, both ways, with its minutes, prices and sources."""
    dice = random.Random(chaos.dice.random() + run)
    minutes = chaos.size(120, 2_880)
    for coin_id, price in COINS.items():
        exchange.market.set_price(coin_id, price)
    clock.advance(60)  # that minute has prices from before
    paths = make_paths(exchange, clock.now(), minutes, dice)
    armed = make_alerts(database, paths, chaos.size(300, 2_000), dice)
    watch = Watch(exchange, database, clock)
    for coin_id, price in COINS.items():  # followed from the start, whatever is out when the others are set
        watch.arm(price * 100, coin_id)
    watch.run(minutes=3)
    diary = replay(watch, exchange, database, clock, minutes - 3, dice)

    stored = list(database.alerts.find())
    assert len(stored) == len(armed) + len(COINS)
    for alert in stored:
        check(alert, paths[alert["coin_id"]], diary)
    fired = [alert for alert in stored if alert["status"] == "triggered"]
    assert 0.1 * len(armed) < len(fired) < len(armed)
    assert database.holes.count_documents({"source": "bybit"}) == 0
    assert all(alert["notification"]["state"] == "pending" for alert in fired)


def make_paths(exchange: Exchange, start: datetime, minutes: int, dice: random.Random) -> dict[int, Path]:
    """A path for each coin, quiet and wild by turns, that the exchange follows from now on."""
    paths = {}
    for coin_id, price in COINS.items():
        candles, wildness = [], QUIET
        for number in range(minutes):
            if dice.random() < 0.02:
                wildness = WILD if wildness == QUIET else QUIET
            candles.append(random_candle(start + number * MINUTE, price, wildness, dice))
            price = candles[-1].close
        last = range(minutes, minutes + 5)
        candles += [Candle(to_ms(start + number * MINUTE), price, price, price, price, 1.0) for number in last]
        paths[coin_id] = Path(start, candles)
        exchange.market.replay(coin_id, candles, speed=1.0)
    return paths


def random_candle(start: datetime, price: float, wildness: float, dice: random.Random) -> Candle:
    close = float(f"{price * (1 + dice.gauss(0, wildness)):.8g}")
    high, low = max(price, close), min(price, close)
    if dice.random() < 0.02:  # a wick that no poll need see
        high, low = high * (1 + abs(dice.gauss(0, 0.02))), low * (1 - abs(dice.gauss(0, 0.02)))
    return Candle(to_ms(start), price, float(f"{high:.8g}"), float(f"{low:.8g}"), close, 1.0)


def to_ms(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)


def make_alerts(database: SyncDB, paths: dict[int, Path], count: int, dice: random.Random) -> list[Document]:
    """Alerts set at any moment of the first two thirds, at targets around the price of then."""
    made = []
    for number in range(count):
        coin_id, path = dice.choice(list(paths.items()))
        created = path.start + timedelta(minutes=3, seconds=dice.uniform(0, len(path.candles) * 40))
        created = created.replace(microsecond=0)
        then = path.price_at(created)
        target = float(f"{then * (1 + dice.gauss(0, 0.015)):.6g}")
        alert = alerts.new_alert(
            user_id=ObjectId(), email=f"{number}@example.com", coin={"_id": coin_id, "symbol": "X"}, target=target,
            direction="above" if target >= then else "below", touch=dice.random() < 0.9,
            current_price=then, now=created,
        )  # fmt: skip
        made.append(alert)
    database.alerts.insert_many(made)
    return made


def replay(
    watch: Watch, exchange: Exchange, database: SyncDB, clock: ManualClock, minutes: int, dice: random.Random
) -> Diary:
    """Let the time of the paths pass, three polls a minute, and break things; at the end all is well for a while."""
    diary = Diary()
    was_out = True
    dead_until = bybit_until = feed_until = database_until = clock.now()
    with watch:
        for tick in range((minutes + 4) * 3):
            calm = tick >= minutes * 3
            clock.advance(TICK.total_seconds())
            now = clock.now()
            dead_until = outage(dead_until, now, 0.01, dice)
            bybit_until = outage(bybit_until, now, 0.006, dice)
            feed_until = outage(feed_until, now, 0.006, dice)
            database_until = outage(database_until, now, 0.004, dice)
            if calm:
                dead_until = bybit_until = feed_until = database_until = now
            if dead_until > now:
                watch.restart()
                was_out = True
                continue
            exchange.faults.clear()
            if bybit_until > now:
                diary.bybit_away.append(now)
                exchange.faults.add("/v5/", Fault.html(502))
            if feed_until > now:
                exchange.faults.add("/quotes/latest", Fault.drop())
            with ExitStack() as stack:
                if database_until > now:
                    stack.enter_context(failing(database, *COMMANDS))
                    stack.enter_context(pymongo.timeout(0.1))
                    stack.enter_context(suppress(PyMongoError))
                # The candle thread looks every second; only when both just began, a poll may be first.
                turns = [watch.follow_candles, watch.poll]
                for turn in reversed(turns) if was_out else turns:
                    turn()
            is_out = database_until > now
            if feed_until <= now and not is_out and not was_out:
                diary.polls.append(now)  # the first after an outage may still be for the coins of before
            was_out = is_out
    return diary


def outage(until: datetime, now: datetime, likelihood: float, dice: random.Random) -> datetime:
    """When what is out comes back: most outages take some minutes, a few take longer."""
    if until > now or dice.random() > likelihood:
        return until
    return now + timedelta(minutes=dice.expovariate(1 / 8))


def check(alert: Document, path: Path, diary: Diary) -> None:
    """Compare one alert with the path and the polls that were evaluated."""
    touch = path.first_touch(alert) if alert["touch"] else None
    polled = next((at for at in diary.polls if at >= alert["created_at"] and reaches(alert, path.price_at(at))), None)
    if alert["status"] == "created":
        assert touch is None, "missed"
        assert polled is None, "missed"
        return
    at, price = alert["triggered_at"], alert["triggered_price"]
    assert reaches(alert, price)
    assert at >= alert["created_at"]
    if alert["triggered_source"] == "bybit":
        assert touch is not None
        assert (at, price) == (touch.at, touch.price)
        return
    assert price == path.price_at(at)
    assert polled is None or at <= polled or alert["touch"]
    if touch is not None and at > touch.at + MINUTE + SETTLING:
        assert diary.bybit_was_away(around=at), "an earlier candle had touched it"
