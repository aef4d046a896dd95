"""The snapshot's life: when it is refreshed, who does it, and what is served meanwhile."""

import asyncio
import gzip
import json
import logging
import math
import uuid
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from datetime import UTC, timedelta
from typing import TypeVar

from pymongo.errors import PyMongoError

from app.clock import Clock
from app.database import market
from app.database.client import AsyncDB, Document
from app.errors import UnavailableError, UpstreamError, UpstreamThrottledError
from app.market.parts import part_of
from app.market.refresh import Refresher
from app.market.wire import Body, Snapshot, make_snapshot

logger = logging.getLogger(__name__)

AHEAD_SHARE = 0.2
"""A refresh begins this share of the lifetime before its end."""
LEASE = timedelta(seconds=60)
"""Longer than a refresh can take. One that died with its process is repeated by another copy after that."""
LOOK_AGAIN_SECONDS = 1.0
"""How often a copy looks whether the one that holds the lease is done."""
COLD_LOOK_SECONDS = 0.1
COLD_WAIT_SECONDS = 25.0
"""How long the very first callers wait for a snapshot."""
FIRST_PAUSE_SECONDS = 5.0
LONGEST_PAUSE_SECONDS = 60.0
LONGEST_SHARED_SECONDS = 900.0
"""How long at most a failure keeps the lease from everyone, a later start of this service included."""

Noted = Callable[[], Awaitable[None]]
T = TypeVar("T")


class Snapshots:
    """The one keeper of the snapshot in this process; belongs to the event loop."""

    def __init__(
        self,
        *,
        database: AsyncDB,
        refresher: Refresher,
        clock: Clock,
        lifetime_seconds: int,
        pool: Executor,
        part_pool: Executor,
        noted: Noted,
    ) -> None:
        self.lifetime_seconds = lifetime_seconds
        self._database = database
        self._refresher = refresher
        self._clock = clock
        self._pool = pool
        self._part_pool = part_pool
        self._noted = noted
        self._holder = uuid.uuid4().hex
        self._latest: Snapshot | None = None
        self._due = clock.monotonic()
        self._pause = FIRST_PAUSE_SECONDS
        self._failure = "nothing has been asked yet"
        self._refreshing: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Take up what an earlier run or another copy has stored."""
        await self._adopt_stored()

    async def close(self) -> None:
        """Give up a refresh that is under way."""
        if self._refreshing is not None:
            self._refreshing.cancel()
            await asyncio.wait({self._refreshing})

    @property
    def is_refreshing(self) -> bool:
        """Whether a refresh is under way in this process."""
        return self._refreshing is not None

    def latest(self) -> Snapshot | None:
        """Return the snapshot at hand, however old, and see to it that a refresh runs if one is due."""
        if self._refreshing is None and self._clock.monotonic() >= self._due:
            self._refreshing = asyncio.create_task(self._refresh_safely(), name="market snapshot")
        return self._latest

    def age(self, snapshot: Snapshot) -> float:
        """Seconds since Bybit's figures came."""
        return self._clock.monotonic() - snapshot.born

    async def current(self) -> Snapshot:
        """Return the snapshot at hand; waits for one only as long as there has never been any.

        Raises UnavailableError, with the time of the next attempt, if there is none to be had.
        """
        snapshot = self.latest()
        if snapshot is None and self._refreshing is not None:
            await asyncio.wait({self._refreshing}, timeout=COLD_WAIT_SECONDS)
            snapshot = self._latest
        if snapshot is None:
            seconds = max(1, math.ceil(self._due - self._clock.monotonic()))
            raise UnavailableError(f"Market data could not be fetched yet: {self._failure}", seconds)
        return snapshot

    async def part(self, snapshot: Snapshot, *, symbols: str, fields: str) -> Body:
        """Return a part of the snapshot; see `parts.part_of`, also for what it raises."""
        return await part_of(snapshot, symbols=symbols, fields=fields, pool=self._part_pool)

    async def _refresh_safely(self) -> None:
        self._due = self._clock.monotonic() + LOOK_AGAIN_SECONDS
        try:
            await self._refresh()
        except Exception:
            logger.exception("the refresh of the market snapshot failed; it is tried again")
            self._back_off("an error of this service itself, which its log shows.", None)
        finally:
            self._refreshing = None

    async def _refresh(self) -> None:
        if not await self._win_lease():
            return
        loop = asyncio.get_running_loop()
        try:
            snapshot = await loop.run_in_executor(self._pool, self._refresher.refresh, self._latest)
        except UpstreamError as error:
            await self._give_up(error)
        else:
            self._adopt(snapshot)
            await self._try("store the snapshot", self._store(snapshot))
        await self._try("record calls and credits", self._noted())

    async def _win_lease(self) -> bool:
        """Claim the right to ask upstream, or take what the copy of the service that has it stores.

        Without a MongoDB to arbitrate every copy asks for itself.
        """
        deadline = self._clock.monotonic() + COLD_WAIT_SECONDS
        while True:
            if await self._adopt_stored() and not self._is_due():
                return False
            now = self._clock.now()
            claim = market.claim_refresh(self._database, holder=self._holder, now=now, until=now + LEASE)
            if await self._try("claim the refresh", claim) is not False:
                return True
            if self._latest is not None or await self._must_wait() or self._clock.monotonic() > deadline:
                return False
            await asyncio.sleep(COLD_LOOK_SECONDS)

    async def _must_wait(self) -> bool:
        """Whether a failure that another copy met, or this one before a restart, keeps everybody waiting."""
        now = self._clock.now()
        lease = await self._try("read the lease", market.failed_refresh(self._database, now=now))
        if not lease:
            return False
        self._failure = lease["failure"]
        self._due = self._clock.monotonic() + (lease["lease_until"] - now).total_seconds()
        return True

    async def _adopt_stored(self) -> bool:
        """Take the stored snapshot if it is newer; returns whether it was."""
        newer_than = self._latest.made_at if self._latest else None
        stored = await self._try("read the snapshot", market.load_snapshot(self._database, newer_than=newer_than))
        if not stored:
            return False
        loop = asyncio.get_running_loop()
        self._adopt(await loop.run_in_executor(self._pool, _restored, stored, self._clock))
        return True

    def _adopt(self, snapshot: Snapshot) -> None:
        self._latest = snapshot
        self._pause = FIRST_PAUSE_SECONDS
        self._due = snapshot.born + self.lifetime_seconds * (1 - AHEAD_SHARE)
        if snapshot.capped_at != snapshot.made_at:
            self._due = min(
                self._due, self._clock.monotonic() + max(LOOK_AGAIN_SECONDS, self._refresher.caps_wait_seconds)
            )

    def _is_due(self) -> bool:
        return self._clock.monotonic() >= self._due

    async def _store(self, snapshot: Snapshot) -> None:
        await market.store_snapshot(
            self._database,
            made_at=snapshot.made_at,
            capped_at=snapshot.capped_at,
            pairs=snapshot.body.encodings["gzip"][0],
        )
        await market.release_refresh(self._database, holder=self._holder, until=self._clock.now())

    async def _give_up(self, error: UpstreamError) -> None:
        """Ask nobody before a pause is over, and let the other copies of the service do the same."""
        seconds = self._back_off(error.detail, error)
        logger.warning("no new market snapshot, next try in %.0f s: %s", seconds, error)
        until = self._clock.now() + timedelta(seconds=min(seconds, LONGEST_SHARED_SECONDS))
        release = market.release_refresh(self._database, holder=self._holder, until=until, failure=error.detail)
        await self._try("release the refresh", release)

    def _back_off(self, failure: str, error: UpstreamError | None) -> float:
        seconds = self._pause
        self._pause = min(seconds * 2, LONGEST_PAUSE_SECONDS)
        if isinstance(error, UpstreamThrottledError) and error.retry_at is not None:
            seconds = max(seconds, (error.retry_at - self._clock.now()).total_seconds())
        self._failure = failure
        self._due = self._clock.monotonic() + seconds
        return seconds

    async def _try(self, what: str, query: Awaitable[T]) -> T | None:
        """Return the query's answer; None, after a line in the log, while MongoDB is away: the market goes on."""
        try:
            return await query
        except PyMongoError as error:
            logger.warning("MongoDB did not %s: %s", what, type(error).__name__)
            return None


def _restored(stored: Document, clock: Clock) -> Snapshot:
    # bson's own time zone is not the one that email.utils takes for UTC.
    made_at, capped_at = (moment and moment.astimezone(UTC) for moment in (stored["made_at"], stored["capped_at"]))
    age = max(0.0, (clock.now() - made_at).total_seconds())
    return make_snapshot(
        json.loads(gzip.decompress(stored["pairs"])),
        made_at=made_at,
        capped_at=capped_at,
        born=clock.monotonic() - age,
    )
