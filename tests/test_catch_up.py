"""Wicks and holes: candles in real Bybit shapes over a real socket, with the clock replaced."""

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from bson import ObjectId

from app.alerting.candles_first import CandlesFirst
from app.alerting.catch_up import CatchUp
from app.database import alerts, firings
from app.database.client import Document, SyncDB
from app.errors import UpstreamError
from app.market.bybit import Bybit
from app.market.meter import Meter
from app.spans import Span, ceil_to_minute, without
from sandbox.candles import Candle
from sandbox.exchange import Exchange
from sandbox.faults import Fault
from tests.support import ManualClock, make_settings

MINUTE = timedelta(minutes=1)
BTC, ETH = 1, 1027
PRICE = 100_000.0


@pytest.fixture
def exchange(clock: ManualClock) -> Iterator[Exchange]:
    """An exchange whose time is the test's."""
    with Exchange(now=clock.now) as running:
        running.market.set_price(BTC, PRICE)
        running.market.set_price(ETH, 4000.0)
        yield running


@pytest.fixture
def bybit(exchange: Exchange, clock: ManualClock) -> Iterator[Bybit]:
    with closing(Bybit(base_url=exchange.url, clock=clock, meter=Meter("bybit", clock))) as made:
        yield made


@pytest.fixture
def catch_up(database: SyncDB, exchange: Exchange, bybit: Bybit, clock: ManualClock) -> Iterator[CatchUp]:
    for coin_id, ticker in ((BTC, "BTC"), (ETH, "ETH")):
        price = exchange.market.coins[coin_id].history.price
        # Seen a while from now: CoinMarketCap's price counts as fresh for the whole test.
        known = {"ticker": ticker, "price": price, "price_seen_at": clock.now() + timedelta(days=30)}
        database.coins.update_one({"_id": coin_id}, {"$set": known}, upsert=True)
    candles_first = CandlesFirst(database=database, clock=clock)
    made = CatchUp(settings=make_settings(), database=database, bybit=bybit, clock=clock, candles_first=candles_first)
    with closing(made):
        yield made


@pytest.fixture
def arm(database: SyncDB, clock: ManualClock) -> Callable[..., ObjectId]:
    def make(target: float, coin_id: int = BTC, direction: Any = "above", **changes: Any) -> ObjectId:
        wishes: dict[str, Any] = {"touch": True, "current_price": PRICE, "now": clock.now()}
        alert = alerts.new_alert(
            user_id=ObjectId(), email="a@example.com", coin={"_id": coin_id, "symbol": "X"}, target=target,
            direction=direction, **wishes | changes,
        )  # fmt: skip
        database.alerts.insert_one(alert)
        made: ObjectId = alert["_id"]
        return made

    return make


def stored(database: SyncDB, alert_id: ObjectId) -> Document:
    alert = database.alerts.find_one({"_id": alert_id})
    assert alert is not None
    return alert


def pass_minutes(exchange: Exchange, clock: ManualClock, *prices: float) -> None:
    """A minute for each price, in which BTC touches it and comes back, and then a few seconds."""
    for price in prices:
        clock.advance(20)
        exchange.market.set_price(BTC, price)
        clock.advance(20)
        exchange.market.set_price(BTC, PRICE)
        clock.advance(20)
    clock.advance(6)


def test_a_wick_between_two_polls_fires_with_its_extreme_and_its_minute(
    catch_up: CatchUp, exchange: Exchange, clock: ManualClock, database: SyncDB, arm: Callable[..., ObjectId]
) -> None:
    high, low, far = arm(104_000), arm(97_000, direction="below"), arm(110_000)
    began = clock.now()
    pass_minutes(exchange, clock, 100_100.0, 105_000.0, 96_500.0)
    assert catch_up.run() == 2
    fired = stored(database, high)
    assert (fired["triggered_price"], fired["triggered_at"]) == (105_000.0, began + MINUTE)
    assert (fired["triggered_until"], fired["triggered_source"]) == (began + 2 * MINUTE, "bybit")
    assert fired["triggered_pair"] == "BTCUSDT"
    assert stored(database, low)["triggered_price"] == 96_500.0
    assert stored(database, low)["triggered_at"] == began + 2 * MINUTE
    assert stored(database, far)["status"] == "created"


def test_a_candle_counts_only_if_it_began_after_the_alert(
    catch_up: CatchUp, exchange: Exchange, clock: ManualClock, database: SyncDB, arm: Callable[..., ObjectId]
) -> None:
    """Invariant 4: the wick's minute began before this alert was set."""
    clock.advance(20)
    exchange.market.set_price(BTC, 105_000.0)
    clock.advance(10)
    exchange.market.set_price(BTC, PRICE)
    late = arm(104_000)
    clock.advance(36)
    assert catch_up.run() == 0
    pass_minutes(exchange, clock, 104_500.0)
    assert catch_up.run() == 1
    assert stored(database, late)["triggered_price"] == 104_500.0


def test_an_alert_without_touch_ignores_candles(
    catch_up: CatchUp, exchange: Exchange, clock: ManualClock, arm: Callable[..., ObjectId]
) -> None:
    arm(104_000, touch=False)
    arm(104_000, touch=False, direction=None, current_price=None)
    pass_minutes(exchange, clock, 105_000.0)
    assert catch_up.run() == 0
    assert exchange.asked("/kline") == []


def test_a_quiet_minute_costs_one_call_whatever_the_number_of_coins(
    catch_up: CatchUp, exchange: Exchange, clock: ManualClock, arm: Callable[..., ObjectId]
) -> None:
    arm(200_000)
    arm(50_000, direction="below")
    arm(90_000, coin_id=ETH)
    pass_minutes(exchange, clock, 100_100.0)
    catch_up.run()
    exchange.forget_requests()
    for _ in range(5):
        clock.advance(60)
        for _ in range(3):
            catch_up.run()
    assert [asked.path for asked in exchange.requests] == ["/v5/market/tickers"] * 5


def test_a_coin_is_followed_from_its_oldest_alert_and_forgotten_with_its_last(
    catch_up: CatchUp, exchange: Exchange, clock: ManualClock, database: SyncDB, arm: Callable[..., ObjectId]
) -> None:
    """Invariant 5: the watermark starts at the first whole minute after the alert and moves with time."""
    clock.advance(17)
    alert = arm(200_000)
    clock.advance(60)
    catch_up.run()
    mark = database.watermarks.find_one({"_id": BTC})
    assert mark is not None
    assert mark["watermark"] == datetime(2026, 3, 1, 12, 1, tzinfo=UTC)
    clock.advance(120)
    catch_up.run()
    mark = database.watermarks.find_one({"_id": BTC})
    assert mark is not None
    assert mark["watermark"] == datetime(2026, 3, 1, 12, 3, tzinfo=UTC)
    assert mark["pair"] == "BTCUSDT"

    database.alerts.update_one({"_id": alert}, {"$set": {"status": "deleted"}})
    clock.advance(3600)
    catch_up.run()
    assert database.watermarks.count_documents({}) == 0
    arm(300_000)
    clock.advance(120)
    catch_up.run()
    again = database.watermarks.find_one({"_id": BTC})
    assert again is not None
    assert again["watermark"] > datetime(2026, 3, 1, 13, tzinfo=UTC)


def test_an_equal_ticker_with_another_price_is_another_coin(
    catch_up: CatchUp, exchange: Exchange, clock: ManualClock, database: SyncDB, arm: Callable[..., ObjectId]
) -> None:
    """A pair counts only after its price agreed with CoinMarketCap's within 5 %; until then the hole stays open."""
    database.coins.update_one({"_id": BTC}, {"$set": {"price": PRICE * 1.2}})
    arm(104_000)
    pass_minutes(exchange, clock, 105_000.0)
    assert catch_up.run() == 0
    database.coins.update_one({"_id": BTC}, {"$set": {"price": PRICE * 1.04, "price_seen_at": clock.now()}})
    clock.advance(60)
    assert catch_up.run() == 1


def candles_of(path: list[tuple[float, float]], start: datetime) -> list[Candle]:
    return [
        Candle(int((start + number * MINUTE).timestamp() * 1000), low, high, low, high, 1.0)
        for number, (low, high) in enumerate(path)
    ]


def random_path(minutes: int, seed: int) -> list[tuple[float, float]]:
    """A price that wanders by about 0.1 % a minute, with rare wicks of some per cent."""
    dice = random.Random(seed)
    price, path = PRICE, []
    for _ in range(minutes):
        price *= 1 + dice.gauss(0, 0.001)
        wick = 1 + (abs(dice.gauss(0, 0.03)) if dice.random() < 0.005 else 0.0)
        low, high = sorted((price / wick if dice.random() < 0.5 else price, price * wick))
        path.append((low, high))
    return path


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("minutes", [90, 7 * 24 * 60])
def test_after_an_outage_exactly_what_the_path_touched_has_fired(
    catch_up: CatchUp, exchange: Exchange, clock: ManualClock, database: SyncDB, seed: int, minutes: int
) -> None:
    """Invariants 1, 4 and 5 against an oracle that knows nothing but the price path; an hour and a half, and a week."""
    dice = random.Random(seed)
    start, path = clock.now(), random_path(minutes, seed)
    armed = []
    for number in range(300):
        created = start + timedelta(seconds=dice.uniform(0, minutes * 60 * 0.5))
        direction, target = dice.choice(["above", "below"]), PRICE * (1 + dice.gauss(0, 0.06))
        armed.append(
            alerts.new_alert(
                user_id=ObjectId(),
                email=f"{number}@example.com",
                coin={"_id": BTC, "symbol": "BTC"},
                target=target,
                direction="above" if direction == "above" else "below",
                touch=True,
                current_price=PRICE,
                now=created.replace(microsecond=0),
            )
        )
    database.alerts.insert_many(armed)
    clock.advance(minutes * 60)
    exchange.market.load_candles(BTC, candles_of(path, start))
    database.coins.update_one({"_id": BTC}, {"$set": {"price": path[-1][1], "price_seen_at": clock.now()}})
    clock.advance(6)
    exchange.forget_requests()

    expected = {}
    for alert in armed:
        first = (ceil_to_minute(alert["created_at"]) - start) // MINUTE
        for number in range(first, minutes):
            low, high = path[number]
            if high >= alert["target"] if alert["direction"] == "above" else low <= alert["target"]:
                price = high if alert["direction"] == "above" else low
                expected[alert["_id"]] = (start + number * MINUTE, price)
                break

    assert catch_up.run() == len(expected)
    fired = {
        alert["_id"]: (alert["triggered_at"], alert["triggered_price"])
        for alert in database.alerts.find({"status": "triggered"})
    }
    assert fired == expected
    assert 0 < len(expected) < len(armed)
    assert database.holes.count_documents({}) == 0
    mark = database.watermarks.find_one({"_id": BTC})
    assert mark is not None
    assert mark["watermark"] == start + minutes * MINUTE
    assert len(exchange.asked("/kline")) < minutes / 60 + 12


@pytest.mark.parametrize(
    "fault", [Fault.html(502), Fault.bybit(10016), Fault.drop(), Fault.not_json(), Fault.truncate()]
)
def test_what_bybit_could_not_say_it_says_later(
    catch_up: CatchUp, exchange: Exchange, clock: ManualClock, database: SyncDB, arm: Any, fault: Fault
) -> None:
    """The watermark stays where it was, and the wick of the outage fires afterwards."""
    alert = arm(104_000)
    clock.advance(66)
    catch_up.run()
    exchange.faults.add("/v5/market/", fault)
    before = database.watermarks.find_one({"_id": BTC})
    pass_minutes(exchange, clock, 105_000.0, 100_000.0)
    for _ in range(3):
        with pytest.raises(UpstreamError):
            catch_up.run()
    assert database.watermarks.find_one({"_id": BTC}) == before
    assert stored(database, alert)["status"] == "created"
    exchange.faults.clear()
    assert catch_up.run() == 1


def test_one_coin_whose_candles_are_broken_holds_up_no_other(
    catch_up: CatchUp, exchange: Exchange, clock: ManualClock, database: SyncDB, arm: Callable[..., ObjectId]
) -> None:
    """Invariant 7."""
    broken, sound = arm(104_000), arm(4_100, coin_id=ETH)

    def break_bitcoin(body: Any) -> Any:
        if body["result"]["symbol"] == "BTCUSDT":
            body["result"]["list"] = [["x"]]
        return body

    exchange.faults.add("/kline", Fault.changed(break_bitcoin))
    clock.advance(20)
    exchange.market.set_price(BTC, 105_000.0)
    exchange.market.set_price(ETH, 4_150.0)
    clock.advance(46)
    database.coins.update_many({}, {"$set": {"price_seen_at": clock.now()}})
    with pytest.raises(UpstreamError):
        catch_up.run()
    assert stored(database, sound)["status"] == "triggered"
    assert stored(database, broken)["status"] == "created"


def test_minutes_that_bybit_no_longer_has_are_listed_as_a_hole(
    catch_up: CatchUp, exchange: Exchange, clock: ManualClock, database: SyncDB, arm: Callable[..., ObjectId]
) -> None:
    """Invariant 5: what can't be covered is recorded, and the rest goes on."""
    start = clock.now()
    arm(104_000)
    clock.advance(66)
    catch_up.run()
    lost = [int((start + number * MINUTE).timestamp() * 1000) for number in (2, 3)]

    def lose(body: Any) -> Any:
        body["result"]["list"] = [row for row in body["result"]["list"] if int(row[0]) not in lost]
        return body

    exchange.faults.add("/kline", Fault.changed(lose))
    pass_minutes(exchange, clock, PRICE, 105_000.0, PRICE, *[PRICE] * 8)
    database.coins.update_many({}, {"$set": {"price_seen_at": clock.now()}})
    catch_up.run()
    (hole,) = database.holes.find()
    assert (hole["coin_id"], hole["start"], hole["end"]) == (BTC, start + 2 * MINUTE, start + 4 * MINUTE)
    assert "BTCUSDT" in hole["reason"]


def test_what_is_left_of_a_span() -> None:
    at = [datetime(2026, 3, 1, hour, tzinfo=UTC) for hour in range(8)]
    span = Span(at[1], at[6])
    assert without(span, []) == [span]
    assert without(span, [Span(at[0], at[2]), Span(at[3], at[4])]) == [Span(at[2], at[3]), Span(at[4], at[6])]
    assert without(span, [Span(at[0], at[7])]) == []
    assert without(span, [Span(at[5], at[7])]) == [Span(at[1], at[5])]


def load_path(
    exchange: Exchange, database: SyncDB, clock: ManualClock, path: list[tuple[float, float]], coin_ids: Iterable[int]
) -> None:
    """Let the time of the path pass; these coins went along it."""
    start = clock.now()
    clock.advance(len(path) * 60)
    candles = candles_of(path, start)
    for coin_id in coin_ids:
        exchange.market.load_candles(coin_id, candles)
        seen = {"price": path[-1][1], "price_seen_at": clock.now()}
        database.coins.update_one({"_id": coin_id}, {"$set": seen})
    clock.advance(6)
    exchange.forget_requests()


def test_a_price_that_stays_beyond_a_target_for_a_week_costs_one_look(
    catch_up: CatchUp, exchange: Exchange, clock: ManualClock, database: SyncDB, arm: Callable[..., ObjectId]
) -> None:
    """Once the alert fired, the hours behind it are none of its business."""
    alert, start = arm(104_000), clock.now()
    load_path(exchange, database, clock, [(PRICE, PRICE)] * 1500 + [(104_500.0, 104_600.0)] * 8_580, [BTC])
    assert catch_up.run() == 1
    assert stored(database, alert)["triggered_at"] == start + 1500 * MINUTE
    assert len(exchange.asked("/kline")) == 2


def test_the_last_minute_of_a_long_hole_waits_for_its_candle(
    catch_up: CatchUp, exchange: Exchange, clock: ManualClock, database: SyncDB, arm: Callable[..., ObjectId]
) -> None:
    """Invariant 5: a candle that comes a little late is not skipped, although hourly ones covered the rest."""
    alert, start = arm(104_000), clock.now()
    load_path(exchange, database, clock, [(PRICE, PRICE)] * 249 + [(PRICE, 105_000.0)], [BTC])

    def hold_back(body: Any) -> Any:
        last = str(int((start + 249 * MINUTE).timestamp() * 1000))
        body["result"]["list"] = [row for row in body["result"]["list"] if row[0] != last]
        return body

    exchange.faults.add("/kline", Fault.changed(hold_back))
    assert catch_up.run() == 0
    mark = database.watermarks.find_one({"_id": BTC})
    assert mark is not None
    assert mark["watermark"] == start + 249 * MINUTE
    exchange.faults.clear()
    clock.advance(60)
    database.coins.update_many({}, {"$set": {"price_seen_at": clock.now()}})
    assert catch_up.run() == 1
    assert stored(database, alert)["triggered_at"] == start + 249 * MINUTE


def test_a_week_over_many_coins_takes_fewer_calls_than_minutes_alone_would(
    catch_up: CatchUp, exchange: Exchange, clock: ManualClock, database: SyncDB, arm: Callable[..., ObjectId]
) -> None:
    """40 coins, 400 alerts; a week of minutes alone is 11 calls a coin."""
    dice, start, coin_ids = random.Random(9), clock.now(), range(10_001, 10_041)
    path = random_path(7 * 24 * 60, seed=9)
    for coin_id in coin_ids:
        exchange.market.add_coin(coin_id, f"T{coin_id}", "Test", rank=coin_id, price=PRICE)
        exchange.market.add_pair(f"T{coin_id}USDT", f"T{coin_id}", "USDT", coin_id=coin_id)
        database.coins.insert_one({"_id": coin_id, "ticker": f"T{coin_id}"})
    wanted: dict[ObjectId, datetime | None] = {}
    for number in range(400):
        target = PRICE * (1 + dice.gauss(0, 0.06))
        direction = dice.choice(["above", "below"])
        alert = arm(target, coin_ids[number % 40], direction)
        reached = (
            minute
            for minute, (low, high) in enumerate(path)
            if (high >= target if direction == "above" else low <= target)
        )
        minute = next(reached, None)
        wanted[alert] = None if minute is None else start + minute * MINUTE
    load_path(exchange, database, clock, path, coin_ids)
    for _ in range(4):  # the request budget goes by the clock, which stands still
        with suppress(UpstreamError):
            catch_up.run()
        clock.advance(6)
    assert {alert["_id"]: alert["triggered_at"] for alert in database.alerts.find()} == wanted
    assert len(exchange.requests) < 40 * 11 / 2


class Ahead(ManualClock):
    """The wall clock of a machine that is some seconds ahead of the exchange."""

    def __init__(self, clock: ManualClock, seconds: float) -> None:
        super().__init__()
        self._clock, self._seconds = clock, seconds

    def now(self) -> datetime:
        return self._clock.now() + timedelta(seconds=self._seconds)

    def monotonic(self) -> float:
        return self._clock.monotonic()


@pytest.mark.parametrize("seconds", [0, 30, 7_200])
def test_a_clock_that_is_ahead_skips_no_part_of_a_minute(
    exchange: Exchange, bybit: Bybit, clock: ManualClock, database: SyncDB, catch_up: CatchUp, arm: Any, seconds: int
) -> None:
    """Invariant 5: the day's range settles a minute only once the minute is over by Bybit's own clock."""
    ours = Ahead(clock, seconds)
    candles_first = CandlesFirst(database=database, clock=ours)
    settings = make_settings()
    with closing(
        CatchUp(settings=settings, database=database, bybit=bybit, clock=ours, candles_first=candles_first)
    ) as ahead:
        alert = arm(104_000)
        for second in range(600):
            clock.advance(1)
            if second == 300 + 57:
                exchange.market.set_price(BTC, 105_000.0)
            if second == 300 + 58:
                exchange.market.set_price(BTC, PRICE)
            ahead.run()
    assert stored(database, alert)["triggered_price"] == 105_000.0
    assert database.holes.count_documents({}) == 0


def test_half_a_reply_is_no_hole(
    catch_up: CatchUp, exchange: Exchange, clock: ManualClock, database: SyncDB, arm: Callable[..., ObjectId]
) -> None:
    """Invariant 5: answers without candles, to the question for hours and once to that for minutes, give none away."""
    alert = arm(104_000)
    path = [(PRICE, PRICE)] * 100 + [(PRICE, 105_000.0)] + [(PRICE, PRICE)] * 1_100
    load_path(exchange, database, clock, path, [BTC])

    def emptied(body: Any) -> Any:
        body["result"]["list"] = []
        return body

    exchange.faults.add("/kline", Fault.changed(emptied), times=2)
    assert catch_up.run() == 1
    assert stored(database, alert)["triggered_price"] == 105_000.0
    assert database.holes.count_documents({}) == 0


def test_alerts_that_were_set_later_make_no_hole_dearer(database: SyncDB, clock: ManualClock, arm: Any) -> None:
    """Only those set within the candles at hand forbid to leave out what sets no record."""
    arm(104_000)
    start, later = clock.now(), clock.now() + timedelta(hours=1)
    between = {"after": start, "until": start + timedelta(minutes=30)}
    clock.advance(3600)
    arm(105_000)
    assert not firings.is_any_created(database, coin_id=BTC, **between)
    assert firings.is_any_created(database, coin_id=BTC, after=start, until=later)
