"""A page of a user's alerts, and how many there are: without counting a million of them for each page."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from bson import ObjectId

from app.alerting.sharing import Turns
from app.database import alerts
from app.database.client import AsyncDB, Document
from app.models import AlertStatus

SETTLED_AFTER = timedelta(minutes=1)
"""No alert that was created longer ago than this is restated or taken back any more: their number stays what it is."""
RECOUNT_AFTER = timedelta(minutes=1)
"""Heals what somebody changed by hand, or a copy of the service whose clock is behind."""
MOST_USERS = 10_000


@dataclass(frozen=True, slots=True)
class Settled:
    """So many alerts were created up to `until`, as counted at `counted_at`."""

    count: int
    until: datetime
    counted_at: datetime


class Totals:
    """How many older alerts a user has, as counted lately. Belongs to one event loop."""

    def __init__(self) -> None:
        self._settled: OrderedDict[ObjectId, Settled] = OrderedDict()
        self._turns = Turns()

    async def settled(self, database: AsyncDB, *, user_id: ObjectId, now: datetime) -> Settled:
        """Return the count; requests that need the same one wait for it together."""
        if known := self._known(user_id, now):
            return known
        async with self._turns.of(user_id):
            return self._known(user_id, now) or await self._count(database, user_id, now)

    def _known(self, user_id: ObjectId, now: datetime) -> Settled | None:
        settled = self._settled.get(user_id)
        return settled if settled and settled.until < now < settled.counted_at + RECOUNT_AFTER else None

    async def _count(self, database: AsyncDB, user_id: ObjectId, now: datetime) -> Settled:
        until = now - SETTLED_AFTER
        count = await alerts.count_created(database, user_id=user_id, until=until)
        self._settled[user_id] = settled = Settled(count, until, now)
        self._settled.move_to_end(user_id)
        if len(self._settled) > MOST_USERS:
            self._settled.popitem(last=False)
        return settled


async def list_alerts(
    database: AsyncDB,
    totals: Totals,
    *,
    user_id: ObjectId,
    statuses: Sequence[AlertStatus],
    page: int,
    per_page: int,
    now: datetime,
) -> tuple[list[Document], int]:
    """Return one page (from 1) of the user's alerts, newest first, and how many there are over all pages."""
    skipped = (page - 1) * per_page
    found = await alerts.find_page(database, user_id=user_id, statuses=statuses, skip=skipped, limit=per_page)
    if found and len(found) < per_page:
        return found, skipped + len(found)
    if statuses:
        return found, await alerts.count_with_status(database, user_id=user_id, statuses=statuses)
    settled = await totals.settled(database, user_id=user_id, now=now)
    if page == 1 and found and found[-1]["created_at"] <= settled.until:
        return found, settled.count + sum(alert["created_at"] > settled.until for alert in found)
    return found, settled.count + await alerts.count_created(database, user_id=user_id, after=settled.until)
