"""What simultaneous requests share: calls of the database, and a user's places."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from bson import ObjectId

from app.alerting.creation import AlertCreator
from app.alerting.sharing import Shared
from app.auth.auth_handler import CurrentUser
from app.database.client import SyncDB, connect_async
from app.errors import ConflictError
from app.models import AlertSchema
from tests.support import ManualClock, make_settings

MOST = 100


class Store:
    """Something that is asked; it answers with what it held when the call began."""

    def __init__(self) -> None:
        self.value = 0
        self.calls: list[list[str]] = []
        self.began = asyncio.Event()
        self.answers = asyncio.Event()

    async def ask(self, items: list[str]) -> list[str]:
        self.calls.append(items)
        self.began.set()
        held = self.value
        await self.answers.wait()
        if "poison" in items:
            raise OSError("away")
        return [f"{item}={held}" for item in items]


def test_who_comes_while_a_call_is_under_way_shares_the_next_one() -> None:
    async def run() -> None:
        store = Store()
        shared = Shared(store.ask)
        first = asyncio.create_task(shared("a"))
        await store.began.wait()
        others = [asyncio.create_task(shared(item)) for item in "bcb"]
        await asyncio.sleep(0)
        store.value = 1
        store.answers.set()
        assert await first == "a=0"
        assert [await other for other in others] == ["b=1", "c=1", "b=1"]
        assert store.calls == [["a"], ["b", "c", "b"]]
        assert await shared("d") == "d=1"

    asyncio.run(run())


def test_a_call_that_fails_fails_for_those_who_shared_it_alone() -> None:
    async def run() -> None:
        store = Store()
        shared = Shared(store.ask)
        first = asyncio.create_task(shared("a"))
        await store.began.wait()
        together = [asyncio.create_task(shared(item)) for item in ("poison", "b")]
        await asyncio.sleep(0)
        store.answers.set()
        assert await first == "a=0"
        assert [type(outcome) for outcome in await asyncio.gather(*together, return_exceptions=True)] == [OSError] * 2
        assert await shared("c") == "c=0"

    asyncio.run(run())


def test_who_leaves_does_not_take_the_call_of_the_others_along() -> None:
    async def run() -> None:
        store = Store()
        shared = Shared(store.ask)
        first = asyncio.create_task(shared("a"))
        await store.began.wait()
        leaver, stayer = asyncio.create_task(shared("b")), asyncio.create_task(shared("c"))
        await asyncio.sleep(0)
        leaver.cancel()
        first.cancel()
        store.answers.set()
        assert await stayer == "c=0"
        assert store.calls[1] == ["b", "c"]

    asyncio.run(run())


@pytest.fixture
def copies(mongo_url: str, database_name: str, database: SyncDB, clock: ManualClock) -> Callable[..., None]:
    """Runs `steps` with what sets alerts in two copies of the service; each returns whether it was set."""
    user = CurrentUser(ObjectId(), "alice@example.com")

    def run(steps: Callable[[list[Callable[[float], Awaitable[bool]]]], Awaitable[None]]) -> None:
        async def talk() -> None:
            client = connect_async(mongo_url)

            def copy() -> Callable[[float], Awaitable[bool]]:
                settings = make_settings(max_alerts_per_user=MOST)
                creator = AlertCreator(database=client[database_name], settings=settings, clock=clock)

                async def create(target: float) -> bool:
                    try:
                        await creator.create(AlertSchema(targetPrice=target), user=user)
                    except ConflictError:
                        return False
                    return True

                return create

            try:
                await steps([copy(), copy()])
            finally:
                await client.close()

        asyncio.run(talk())

    return run


def test_two_copies_together_give_out_no_more_places_than_there_are(
    copies: Callable[..., None], database: SyncDB
) -> None:
    """Though not every creation counts the live alerts, and neither copy knows what the other gave out."""

    async def steps(create: list[Callable[[float], Awaitable[bool]]]) -> None:
        outcomes = [await create[number % 2](1000.0 + number) for number in range(MOST + 50)]
        assert sum(outcomes) == MOST
        assert outcomes[:MOST] == [True] * MOST

    copies(steps)
    assert database.alerts.count_documents({"status": "created"}) == MOST


def test_what_was_counted_a_second_ago_no_longer_counts(copies: Callable[..., None], clock: ManualClock) -> None:
    async def steps(create: list[Callable[[float], Awaitable[bool]]]) -> None:
        assert await create[0](1000.0)
        for number in range(MOST - 1):
            assert await create[1](2000.0 + number)
        clock.advance(1)
        assert not await create[0](3000.0)

    copies(steps)


def test_alerts_that_are_stored_together_are_refused_one_by_one(copies: Callable[..., None], database: SyncDB) -> None:
    """Of simultaneous equal ones one is set, and none of the others is lost with them."""

    async def steps(create: list[Callable[[float], Awaitable[bool]]]) -> None:
        assert await create[0](1000.0)
        outcomes = await asyncio.gather(*(create[0](1000.0 + number // 2) for number in range(20)))
        assert sum(outcomes) == 9

    copies(steps)
    assert sorted(alert["target"] for alert in database.alerts.find()) == [1000.0 + number for number in range(10)]
