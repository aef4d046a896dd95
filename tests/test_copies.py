"""Several copies of the service on one MongoDB: one polls, all deliver, and a dead poller is replaced."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from datetime import timedelta

import pytest
from bson import ObjectId

from app.config import Settings
from app.database import alerts, coins, leases
from app.database.client import SyncDB
from app.market.coinmarketcap import CoinMarketCap
from app.observations import Observation
from app.ticker import Ticker
from sandbox.exchange import Exchange
from sandbox.mailbox import Mailbox
from tests.support import Caller, ManualClock, make_settings, make_ticker, running_service, wait_until

QUOTES = "/quotes/latest"
POLL_SECONDS = 20.0


@pytest.fixture
def ticker_at(database: SyncDB, clock: ManualClock) -> Iterator[Callable[[Exchange], Ticker]]:
    with ExitStack() as stack:

        def make(exchange: Exchange) -> Ticker:
            client = stack.enter_context(closing(CoinMarketCap(base_url=exchange.url, api_key="", clock=clock)))
            return make_ticker(make_settings(poll_seconds=POLL_SECONDS), database, client, clock)

        yield make


def test_one_copy_polls_until_it_falls_silent(ticker_at: Callable[[Exchange], Ticker], clock: ManualClock) -> None:
    """No credit is spent twice, and the poller's death is noticed within three polls."""
    with Exchange(now=clock.now) as exchange_of_first, Exchange(now=clock.now) as exchange_of_second:
        first, second = ticker_at(exchange_of_first), ticker_at(exchange_of_second)
        for _ in range(5):
            first.poll()
            second.poll()
            clock.advance(POLL_SECONDS)
        assert len(exchange_of_first.asked(QUOTES)) == 5
        assert exchange_of_second.requests == []

        silent_polls = 0
        while not exchange_of_second.asked(QUOTES):
            second.poll()
            clock.advance(POLL_SECONDS)
            silent_polls += 1
        assert silent_polls <= 3
        exchange_of_first.forget_requests()
        first.poll()
        assert exchange_of_first.requests == []


def test_a_copy_that_retires_is_followed_at_once(ticker_at: Callable[[Exchange], Ticker], clock: ManualClock) -> None:
    with Exchange(now=clock.now) as exchange:
        first, second = ticker_at(exchange), ticker_at(exchange)
        first.poll()
        first.retire()
        exchange.forget_requests()
        second.poll()
        assert len(exchange.asked(QUOTES)) == 1


def test_two_copies_send_one_mail_each_alert(
    settings: Settings, exchange: Exchange, mailbox: Mailbox, caller: Callable[[str], Caller]
) -> None:
    """Invariants 1 to 3 with two whole services: sign up at one, look at the other."""
    with running_service(settings) as one, running_service(settings) as other:
        alice, elsewhere = caller(one).sign_up("alice@example.com"), caller(other)
        elsewhere.token = alice.token
        for number in range(40):
            (alice if number % 2 else elsewhere).create(150_000 + number)
        exchange.market.set_price(1, 160_000.0)
        mailbox.wait_for(40)
        wait_until(lambda: {alert["notification"]["state"] for alert in elsewhere.alerts()} == {"sent"})
    assert len(mailbox.mails) == 40
    assert len({mail.message["Message-ID"] for mail in mailbox.mails}) == 40


def test_a_price_that_a_dying_copy_stored_is_still_evaluated(
    ticker_at: Callable[[Exchange], Ticker], database: SyncDB, clock: ManualClock
) -> None:
    """Killed between storing a price and firing on it: whoever polls next does it, though the price is another now."""
    with Exchange(now=clock.now) as exchange:
        dying = ticker_at(exchange)
        dying.poll()
        alert = alerts.new_alert(
            user_id=ObjectId(), email="a@example.com", coin={"_id": 1, "symbol": "BTC"}, target=150_000.0,
            direction="above", touch=False, current_price=100_000.0, now=clock.now(),
        )  # fmt: skip
        database.alerts.insert_one(alert)
        clock.advance(POLL_SECONDS)
        seen = Observation.of_instant(coin_id=1, at=clock.now(), price=160_000.0, source="coinmarketcap")
        coins.store_prices(database, [seen], now=clock.now())
        clock.advance(4 * POLL_SECONDS)
        assert ticker_at(exchange).poll() == 1
    fired = database.alerts.find_one({"_id": alert["_id"]})
    assert fired is not None
    assert (fired["triggered_price"], fired["triggered_at"]) == (160_000.0, seen.start)


def test_a_lease_from_a_clock_that_was_ahead_holds_nobody_up(database: SyncDB, clock: ManualClock) -> None:
    length = timedelta(minutes=1)
    ahead, here = ObjectId(), ObjectId()
    assert leases.hold(database, "a duty", holder=ahead, now=clock.now() + timedelta(minutes=90), length=length)
    assert leases.hold(database, "a duty", holder=here, now=clock.now(), length=length)
    assert not leases.hold(database, "a duty", holder=ahead, now=clock.now(), length=length)


def test_an_older_price_never_replaces_a_newer_one(database: SyncDB, clock: ManualClock) -> None:
    """A copy that kept prices through an outage stores them after another has seen newer ones."""
    older = Observation.of_instant(coin_id=1, at=clock.now(), price=1.0, source="coinmarketcap")
    clock.advance(60)
    newer = Observation.of_instant(coin_id=1, at=clock.now(), price=2.0, source="coinmarketcap")
    for seen in (newer, older):
        coins.store_prices(database, [seen], now=clock.now())
    assert coins.prices_seen(database, [1])[1].price == 2.0
