"""Pages of alerts: their bytes are the model's, their totals exact without counting everything each time."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from itertools import count
from typing import Any

import pytest
from bson import ObjectId
from pydantic import TypeAdapter

from app.alerting import listing
from app.alerting.listing import Totals
from app.database import alerts
from app.database.client import AsyncDB, Document, SyncDB, connect_async
from app.models import Alert, AlertStatus
from tests.conftest import Quiet
from tests.support import Caller, ManualClock

USER = ObjectId()
PER_PAGE = 5


def alert(clock: ManualClock, **changes: Any) -> Document:
    made = alerts.new_alert(
        user_id=USER, email="alice@example.com", coin={"_id": 1, "symbol": "BTC"}, target=100_000.0, direction="above",
        touch=True, current_price=90_000.0, now=clock.now(),
    )  # fmt: skip
    return made | changes


def test_answers_are_byte_for_byte_what_the_model_would_give(
    quiet: Quiet, caller: Callable[[str], Caller], clock: ManualClock
) -> None:
    """They are written from documents: docs/decisions/0011-speed.md."""
    alice = caller(quiet.url).sign_up("alice@example.com")
    created = alice.post("/alerts/create/", {"targetPrice": 0.00000001234})
    deleted = alice.post("/alerts/delete/", {"alert_id": created.json()["alert_id"]})
    owner = quiet.database.alerts.find_one({})
    assert owner is not None
    mail = {"state": "failed", "attempts": 3, "sent_at": None, "error": 'said "no" € ünfreundlich', "refusals": 2}
    fired = {"status": "triggered", "triggered_at": clock.now(), "triggered_price": 1e-18, "triggered_source": "bybit"}
    moments = [clock.now(), clock.now() + timedelta(milliseconds=120)]
    quiet.database.alerts.insert_many(
        [
            alert(clock, user_id=owner["user_id"], directions=[1], direction=None, currentPrice=None, coin_id=2**40),
            *(alert(clock, user_id=owner["user_id"], created_at=at, notification=mail, **fired) for at in moments),
            alert(
                clock, user_id=owner["user_id"], notification=mail | {"sent_at": clock.now(), "error": None}, **fired
            ),
        ]
    )
    page = alice.get("/alerts/fetch/")
    assert len(page.json()) == 5
    one, several = TypeAdapter(Alert), TypeAdapter(list[Alert])
    assert created.content == one.dump_json(one.validate_json(created.content, strict=True))
    assert deleted.content == one.dump_json(one.validate_json(deleted.content, strict=True))
    assert page.content == several.dump_json(several.validate_json(page.content, strict=True))
    assert {answer.headers["Content-Type"] for answer in (created, deleted, page)} == {"application/json"}


def test_links_keep_what_was_asked_for(quiet: Quiet, caller: Callable[[str], Caller]) -> None:
    alice = caller(quiet.url).sign_up("alice+tag@example.com")
    for number in range(3):
        alice.create(1000.0 + number)
    answer = alice.get("/alerts/fetch/", email="alice+tag@example.com", page=2, per_page=1, filterStr="created,deleted")
    links = answer.links
    assert links.keys() == {"first", "prev", "next", "last"}
    pages = [alice.get(links[relation]["url"].removeprefix(quiet.url)) for relation in ("first", "next")]
    assert [page.json()[0]["targetPrice"] for page in pages] == [1002.0, 1000.0]


@pytest.fixture
def ask(mongo_url: str, database_name: str, database: SyncDB, clock: ManualClock) -> Callable[..., Any]:
    """Runs a conversation with one copy of the service: `ask(steps)` gives `steps` a function that fetches a page."""

    def run(steps: Callable[[Callable[..., Awaitable[tuple[int, int]]]], Awaitable[None]]) -> None:
        async def talk() -> None:
            client = connect_async(mongo_url)
            totals = Totals()

            async def fetch(page: int = 1, *statuses: AlertStatus) -> tuple[int, int]:
                web: AsyncDB = client[database_name]
                found, total = await listing.list_alerts(
                    web, totals, user_id=USER, statuses=statuses, page=page, per_page=PER_PAGE, now=clock.now()
                )
                return len(found), total

            try:
                await steps(fetch)
            finally:
                await client.close()

        asyncio.run(talk())

    return run


def test_totals_are_exact_however_old_the_alerts_and_whoever_made_them(
    ask: Callable[..., Any], database: SyncDB, clock: ManualClock
) -> None:
    """Other copies of the service, too, make alerts: these here are made behind this one's back."""

    targets = count(1000.0)

    def make(number: int) -> None:
        database.alerts.insert_many([alert(clock, target=next(targets)) for _ in range(number)])

    async def steps(fetch: Callable[..., Awaitable[tuple[int, int]]]) -> None:
        assert await fetch() == (0, 0)
        make(7)
        clock.advance(61)
        assert await fetch() == (5, 7)  # all of them counted
        make(2)
        assert await fetch() == (5, 9)  # the page itself shows what is new
        assert await fetch(2) == (4, 9)
        make(6)
        assert await fetch() == (5, 15)  # more new ones than the page shows
        assert await fetch(3) == (5, 15)
        assert await fetch(4) == (0, 15)
        clock.advance(61)
        make(1)
        assert await fetch() == (5, 16)
        assert await fetch(1, "created") == (5, 16)
        assert await fetch(1, "deleted") == (0, 0)

    ask(steps)


def test_older_alerts_are_counted_once_a_minute_at_most(
    ask: Callable[..., Any], database: SyncDB, clock: ManualClock
) -> None:
    """A million of them take a third of a second to count. What was deleted by hand shows the difference."""

    async def steps(fetch: Callable[..., Awaitable[tuple[int, int]]]) -> None:
        database.alerts.insert_many([alert(clock, target=1000.0 + number) for number in range(12)])
        clock.advance(61)
        assert await fetch() == (5, 12)
        database.alerts.delete_many({"target": {"$lt": 1003.0}})
        clock.advance(59)
        assert await fetch() == (5, 12)
        clock.advance(1)
        assert await fetch() == (5, 9)

    ask(steps)
